//! The wrapper's own words: the name it was called by, and the options before QEMU's.
//!
//! Called as `vdeX` it runs X; under any other name the program is the first word that is no option. The
//! wrapper's options stand at the very front, before or right after the program's name, in any order; the
//! first word that is none of them, and everything behind it, belongs to QEMU. All that the old
//! wrapper did not have begin with `--vde-`, which no option of QEMU does.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::argv::scan;
use crate::error::Error;
use crate::queues::MAX_QUEUES;
use crate::settings::{LogLevel, Settings};

/// What the command line asks of the wrapper.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Print the usage; then, for a link, let that program print its own.
    Help {
        /// The program that the link names.
        program: Option<OsString>,
    },
    /// Print the wrapper's version.
    Version,
    /// Start a VM, or show how it would be started.
    Run(Request),
}

/// A VM to be started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The program as named by the user or by the link.
    pub program: OsString,
    /// QEMU's own words.
    pub args: Vec<OsString>,
    /// The elements of `-sock LIST`.
    pub sock: Option<Vec<String>>,
    /// There is a default switch, for a VM without any network.
    pub default_switch: bool,
    /// The octal text of `--mod`.
    pub mode: Option<String>,
    /// The queue pairs of NICs that do not say how many they have.
    pub queues: Option<u16>,
    /// What a NIC without a model is.
    pub default_model: Option<String>,
    /// The back end to be started.
    pub back_end: Option<OsString>,
    /// What the back end is told for all NICs.
    pub settings: Settings,
    /// Show the plan instead of carrying it out.
    pub print_plan: bool,
}

impl Request {
    /// Whether something was asked for that only a VM with a VDE NIC has.
    pub fn wants_vde(&self) -> bool {
        self.sock.is_some()
            || self.mode.is_some()
            || self.queues.is_some()
            || self.default_model.is_some()
            || self.settings != Settings::default()
    }
}

/// The most microseconds for which the back end polls.
const MAX_POLL_US: u64 = 1_000_000;

/// All options that begin with `--vde-`, without that.
const OWN: [&str; 9] = [
    "back-end",
    "capture",
    "default-model",
    "keep-going",
    "log",
    "offloads",
    "poll-us",
    "print-plan",
    "queues",
];

/// Reads the whole argument list, the name of the wrapper included.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let mut args = args.into_iter();
    let linked = args.next().and_then(|argv0| program_of_link(&argv0));
    let mut rest: VecDeque<OsString> = args.collect();
    let mut request = Request::default();

    if let Some(program) = &linked {
        request.program.clone_from(program);
    } else {
        let words = rest.clone();
        if front_options(&mut rest, &mut request)? == Front::Help {
            return Ok(Command::Help { program: None });
        }
        let taken = words.len() - rest.len();
        match rest.pop_front() {
            None if taken == 0 => return Ok(Command::Help { program: None }),
            None => return Err(Error::NoProgram(joined(words.iter().take(taken)))),
            Some(word) if word == "--version" || word == "-version" => return Ok(Command::Version),
            Some(word) if word.as_bytes().starts_with(b"-") => {
                return Err(Error::OptionForProgram(word.to_string_lossy().into_owned()));
            }
            Some(word) => request.program = word,
        }
    }
    if front_options(&mut rest, &mut request)? == Front::Help {
        return Ok(Command::Help { program: linked });
    }
    request.args = rest.into();
    let ours = |name: &str| name.starts_with("vde-");
    if let Some(late) = scan(&request.args).iter().find(|token| token.name().is_some_and(ours)) {
        return Err(Error::Misplaced(joined(late.words().iter().take(1))));
    }
    Ok(Command::Run(request))
}

fn joined<'w>(words: impl Iterator<Item = &'w OsString>) -> String {
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[derive(PartialEq)]
enum Front {
    Help,
    Rest,
}

/// Takes the wrapper's options off the front.
fn front_options(rest: &mut VecDeque<OsString>, request: &mut Request) -> Result<Front, Error> {
    while let Some(word) = rest.front() {
        let word = word.to_string_lossy().into_owned();
        match word.as_str() {
            "-h" | "-help" | "--help" => return Ok(Front::Help),
            "-sock" | "-vdesock" | "-unix" => {
                let list = value(rest, "-sock /run/vde.ctl")?;
                request.sock = Some(list.split(',').map(str::to_owned).collect());
            }
            "--mod" | "-mod" => {
                let mode = value(rest, "--mod 0660")?;
                request.mode = Some(octal(&mode, "--mod ")?);
            }
            _ => match word.strip_prefix("--vde-").or_else(|| word.strip_prefix("-vde-")) {
                Some(name) => own_option(name, rest, request)?,
                None => break,
            },
        }
    }
    Ok(Front::Rest)
}

/// Takes an option off the front that begins with `--vde-`.
fn own_option(name: &str, rest: &mut VecDeque<OsString>, request: &mut Request) -> Result<(), Error> {
    let settings = &mut request.settings;
    match name {
        "print-plan" => {
            rest.pop_front();
            request.print_plan = true;
        }
        "keep-going" => {
            rest.pop_front();
            settings.keep_going = true;
        }
        "queues" => {
            let text = value(rest, "--vde-queues 2")?;
            let queues = text.parse().ok().filter(|queues| (1..=MAX_QUEUES).contains(queues));
            request.queues = Some(queues.ok_or_else(|| bad(name, &text, "give 1 to 16 queue pairs"))?);
        }
        "poll-us" => {
            let text = value(rest, "--vde-poll-us 50")?;
            let poll_us = text.parse().ok().filter(|number| *number <= MAX_POLL_US);
            let right = "give a number of microseconds, up to 1000000";
            settings.poll_us = Some(poll_us.ok_or_else(|| bad(name, &text, right))?);
        }
        "offloads" => {
            let text = value(rest, "--vde-offloads off")?;
            settings.no_offloads = match text.as_str() {
                "on" => false,
                "off" => true,
                _ => return Err(bad(name, &text, "write on or off")),
            };
        }
        "log" => {
            let text = value(rest, "--vde-log info")?;
            let level = LogLevel::named(&text);
            settings.log =
                Some(level.ok_or_else(|| bad(name, &text, "write off, error, warn, info or debug"))?);
        }
        "capture" => {
            let text = value(rest, "--vde-capture nic.pcapng")?;
            let file = Some(text).filter(|text| !text.is_empty());
            settings.capture = Some(file.ok_or_else(|| bad(name, "''", "give the name of a file"))?);
        }
        "default-model" => request.default_model = Some(value(rest, "--vde-default-model e1000")?),
        "back-end" => request.back_end = Some(value(rest, "--vde-back-end /usr/bin/vhost-user-vde")?.into()),
        _ => {
            return Err(Error::UnknownOption {
                option: format!("--vde-{name}"),
                known: OWN.join(", --vde-"),
            });
        }
    }
    Ok(())
}

fn bad(name: &str, value: &str, right: &'static str) -> Error {
    Error::BadValue { option: format!("--vde-{name}"), value: value.to_owned(), right }
}

/// Takes an option and the word after it. None of ours has a value that looks like an option.
fn value(rest: &mut VecDeque<OsString>, example: &'static str) -> Result<String, Error> {
    let option = rest.pop_front().unwrap_or_default().to_string_lossy().into_owned();
    match rest.pop_front().map(OsString::into_string) {
        Some(Ok(value)) if !value.starts_with('-') => Ok(value),
        Some(Err(value)) => {
            let value = value.to_string_lossy().into_owned();
            Err(Error::BadValue { option, value, right: "it is not UTF-8 text; give one that is" })
        }
        Some(Ok(_)) | None => Err(Error::OptionValue { option, example }),
    }
}

/// Checks a file mode; `option` is how the right form begins.
pub fn octal(text: &str, option: &'static str) -> Result<String, Error> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 && !text.starts_with('+') => Ok(text.to_owned()),
        _ => Err(Error::Mode { value: text.to_owned(), option }),
    }
}

/// The program in the name of a link: `vdekvm` is `kvm`. The old `vdeo…` names, which forced the
/// syntax of QEMU before 0.8, mean the same without the `o`.
fn program_of_link(argv0: &OsStr) -> Option<OsString> {
    let name = Path::new(argv0).file_name()?.as_bytes();
    let rest = name.strip_prefix(b"vde")?;
    let rest = rest.strip_prefix(b"o").unwrap_or(rest);
    (!matches!(rest, b"" | b"q")).then(|| OsStr::from_bytes(rest).to_owned())
}

/// The usage, as `-h` and `vdeq` alone print it.
pub const USAGE: &str = "\
Usage: vdeq [OPTIONS] PROGRAM [OPTIONS] [QEMU_OPTIONS]
       vdePROGRAM [OPTIONS] [QEMU_OPTIONS]      (through a link of that name)

Starts QEMU with NICs on VDE networks: each pair of
  -net nic[,vlan=N][,model=M][,macaddr=A][,name=ID][,vectors=V][,addr=S]
  -net vde[,vlan=N][,sock=LOCATOR][,port=P][,group=G][,mode=OCTAL]
           [,name=ID]
becomes a NIC served by vhost-user-vde; so do
  -netdev vde,id=ID[,sock=LOCATOR][,...][,queues=N]  and the NIC that names it
  -nic vde[,model=M][,mac=A][,sock=LOCATOR][,...][,queues=N]
More than one of a kind with the same vlan= are on a hub.
All other options are QEMU's.
Without model= it is virtio, the fastest; e1000, rtl8139, ne2k_pci and others
are for guests without its driver.

Options, before or right after PROGRAM, in any order:
  -sock LIST, -vdesock LIST, -unix LIST
                   without -net vde: one NIC on each of these networks
  --mod OCTAL, -mod OCTAL
                   who may send to our end of the connection (default 0700)
  --vde-print-plan show what would be run, as shell lines and JSON; run nothing
  --vde-queues N   queue pairs of each virtio NIC, 1 to 16 (default 1)
  --vde-default-model M
                   what a NIC without model= is: virtio, which is the default,
                   another model, or machine for what QEMU would take
  --vde-offloads off
                   do not let the guest leave checksums and segmentation to us
  --vde-poll-us N  the back end looks for frames for N microseconds after the
                   last one before it sleeps: quicker, for a core per NIC
  --vde-keep-going start without a network that is missing; keep trying it
  --vde-capture FILE
                   write the NICs' frames to FILE, which Wireshark opens
  --vde-log LEVEL  what the back end says: off, error, warn, info or debug
  --vde-back-end PROGRAM
                   the back end, instead of vhost-user-vde
  -h, -help, --help
                   this text
  --version        the version of vdeq

PROGRAM `qemu' or `kvm' finds the emulator of this machine; VDEQ_QEMU names another.

Examples:
  vdeq qemu-system-x86_64 -m 512 -hda disk.img -net nic -net vde,sock=/tmp/sw
  vdeq qemu -sock /tmp/sw -m 512 -hda disk.img
  vdeq kvm -net nic,vlan=0 -net vde,vlan=0 \\
           -net nic,vlan=1,model=e1000 -net vde,vlan=1,sock=/tmp/my.ctl,port=10
  vdeq --vde-print-plan qemu -net nic -net vde,sock=/tmp/sw

Exit status: that of QEMU, or
  2 command line   3 network   4 back end   5 guest memory   6 QEMU's version
  126 PROGRAM cannot be executed   127 PROGRAM not found
";

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &[&str]) -> Command {
        parse(line.iter().map(OsString::from)).expect("a good line")
    }

    fn program(line: &[&str]) -> String {
        match run(line) {
            Command::Run(request) => request.program.into_string().expect("text"),
            other => panic!("{line:?} gave {other:?}"),
        }
    }

    #[test]
    fn c_45_parse_names() {
        for (line, expected) in [
            (&["vdeq", "qemu"][..], "qemu"),
            (&["/usr/bin/vdeq", "./my-qemu", "-h5"], "./my-qemu"),
            (&["foo", "qemu"], "qemu"),
            (&["./bin/avdeq", "qemu"], "qemu"),
            (&["", "qemu"], "qemu"),
            (&["vde", "qemu"], "qemu"),
            (&["vdeo", "qemu"], "qemu"),
            (&["vdeoq", "qemu"], "qemu"),
            (&["vdeqemu"], "qemu"),
            (&["vdeoqemu"], "qemu"),
            (&["vdeokvm"], "kvm"),
            (&["./x/vdekvm", "-m", "64"], "kvm"),
            (&["vdeqemu-system-x86_64"], "qemu-system-x86_64"),
            (&["vdeqx"], "qx"),
        ] {
            assert_eq!(program(line), expected, "{line:?}");
        }
    }

    #[test]
    fn c_50_parse_front_options_in_any_order() {
        let expected = Request {
            program: "qemu".into(),
            args: vec!["-m".into(), "64".into(), "-sock".into(), "z".into()],
            sock: Some(vec!["a".into(), String::new(), "b".into()]),
            mode: Some("0660".into()),
            settings: Settings { poll_us: Some(50), ..Settings::default() },
            print_plan: true,
            ..Request::default()
        };
        for line in [
            "vdeq qemu -sock a,,b --mod 0660 --vde-poll-us 50 --vde-print-plan -m 64 -sock z",
            "vdeq qemu --vde-poll-us 50 --mod 0660 --vde-print-plan -unix a,,b -m 64 -sock z",
            "vdeq --vde-print-plan --vde-poll-us 50 qemu -mod 0660 -vdesock a,,b -m 64 -sock z",
            "vdeq -sock a,,b --mod 0660 --vde-print-plan --vde-poll-us 50 qemu -m 64 -sock z",
            "vdeqemu --vde-print-plan -mod 0660 -vdesock a,,b --vde-poll-us 50 -m 64 -sock z",
            // The last one counts.
            "vdeq -sock x --mod 0600 --vde-poll-us 1 qemu -unix y -sock a,,b -mod 0660 --vde-print-plan \
             --vde-poll-us 50 -m 64 -sock z",
        ] {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert_eq!(run(&words), Command::Run(expected.clone()), "{line}");
        }
    }

    #[test]
    fn parse_own_options() {
        let line = "vdeq --vde-queues 16 --vde-offloads off -vde-keep-going qemu --vde-capture a,b.pcapng \
                    --vde-log debug --vde-back-end ./be --vde-default-model e1000 --vde-poll-us 0 -m 64";
        let words: Vec<&str> = line.split_whitespace().collect();
        let settings = Settings {
            poll_us: Some(0),
            no_offloads: true,
            keep_going: true,
            log: Some(LogLevel::Debug),
            capture: Some("a,b.pcapng".into()),
        };
        let expected = Request {
            program: "qemu".into(),
            args: vec!["-m".into(), "64".into()],
            queues: Some(16),
            default_model: Some("e1000".into()),
            back_end: Some("./be".into()),
            settings,
            ..Request::default()
        };
        assert_eq!(run(&words), Command::Run(expected));
        let usage = |name: &&str| USAGE.contains(&format!("  --vde-{name} "));
        assert!(OWN.iter().all(usage), "the usage lacks one of {OWN:?}");
    }

    #[test]
    fn c_46_parse_help_and_version() {
        for line in [
            &["vdeq"][..],
            &["vdeq", "-h"],
            &["vdeq", "-help"],
            &["vdeq", "--help"],
            &["vdeq", "-sock", "a", "-h"],
            &["vdeq", "qemu", "-h"],
            &["vdeq", "qemu", "--mod", "0660", "-help"],
            &[],
        ] {
            assert_eq!(run(line), Command::Help { program: None }, "{line:?}");
        }
        assert_eq!(run(&["vdekvm", "-h"]), Command::Help { program: Some("kvm".into()) });
        assert_eq!(run(&["vdeq", "--version"]), Command::Version);
        // QEMU's own, once the program is named.
        assert!(matches!(run(&["vdeq", "qemu", "--version"]), Command::Run(_)));
        assert!(matches!(run(&["vdeq", "qemu", "-m", "64", "-h"]), Command::Run(_)));
    }

    #[test]
    fn q_15_parse_refuses_more_queues_than_the_back_end_has() {
        for number in ["0", "17", "65537", "two"] {
            let line = ["vdeq", "qemu", "--vde-queues", number].map(OsString::from);
            let text = parse(line).expect_err(number).to_string();
            assert_eq!(text, format!("--vde-queues {number}: give 1 to 16 queue pairs"));
        }
    }

    #[test]
    fn parse_bad_words_are_named() {
        for (line, word) in [
            ("vdeq qemu -sock", "-sock needs a value"),
            ("vdeq qemu -sock -m 64", "-sock needs a value"),
            ("vdeq -sock qemu", "after -sock qemu"),
            ("vdeq --vde-print-plan", "after --vde-print-plan"),
            ("vdeq qemu --mod", "--mod"),
            ("vdeq qemu --mod rw", "'rw'"),
            ("vdeq qemu --mod 07777", "'07777'"),
            ("vdeq qemu --vde-poll-us", "--vde-poll-us 50"),
            ("vdeq qemu --vde-poll-us 1ms", "--vde-poll-us 1ms"),
            ("vdeq qemu --vde-poll-us 1000001", "--vde-poll-us 1000001"),
            ("vdeq qemu --vde-offloads no", "on or off"),
            ("vdeq qemu --vde-log loud", "--vde-log loud"),
            ("vdeq qemu --vde-capture ", "give the name of a file"),
            ("vdeq qemu --vde-quees 2", "'--vde-quees'"),
            ("vdeq --vde-quees 2 qemu", "'--vde-quees'"),
            ("vdeq --vde-queues=2 qemu", "'--vde-queues=2'"),
            ("vdeqemu -vde-", "'--vde-'"),
            ("vdeq --print-plan qemu", "'--print-plan'"),
            ("vdeq -m 64 qemu", "'-m'"),
            ("vdeq qemu -m 64 --vde-print-plan", "--vde-print-plan"),
        ] {
            let error = parse(line.split(' ').map(OsString::from)).expect_err(line);
            assert!(error.to_string().contains(word), "{line}: {error}");
            assert_eq!(error.status(), 2);
        }
    }
}
