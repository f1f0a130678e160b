//! The wrapper's own words: the name it was called by, and the options before QEMU's.
//!
//! Called as `vdeX` it runs X; under any other name the program is the first word. The wrapper's
//! options stand at the very front, before or right after the program's name, in any order; the
//! first word that is none of them, and everything behind it, belongs to QEMU.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::Error;

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
    /// The octal text of `--mod`.
    pub mode: Option<String>,
    /// The number of `--poll-us`.
    pub poll_us: Option<u64>,
    /// Show the plan instead of carrying it out.
    pub print_plan: bool,
}

/// The most microseconds for which the back end polls.
pub const MAX_POLL_US: u64 = 1_000_000;

/// Reads the whole argument list, the name of the wrapper included.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Error> {
    let mut args = args.into_iter();
    let linked = args.next().and_then(|argv0| program_of_link(&argv0));
    let mut rest: VecDeque<OsString> = args.collect();
    let mut request = Request::default();

    if linked.is_none() {
        match front_options(&mut rest, &mut request)? {
            Front::Help => return Ok(Command::Help { program: None }),
            Front::Rest => {}
        }
        match rest.pop_front() {
            None => return Ok(Command::Help { program: None }),
            Some(word) if word == "--version" => return Ok(Command::Version),
            Some(word) => request.program = word,
        }
    } else if let Some(program) = &linked {
        request.program.clone_from(program);
    }
    match front_options(&mut rest, &mut request)? {
        Front::Help => return Ok(Command::Help { program: linked }),
        Front::Rest => {}
    }
    request.args = rest.into();
    Ok(Command::Run(request))
}

enum Front {
    Help,
    Rest,
}

/// Takes the wrapper's options off the front.
fn front_options(rest: &mut VecDeque<OsString>, request: &mut Request) -> Result<Front, Error> {
    while let Some(word) = rest.front() {
        match word.to_str().unwrap_or("") {
            "-h" | "-help" | "--help" => return Ok(Front::Help),
            "--print-plan" => {
                rest.pop_front();
                request.print_plan = true;
            }
            "-sock" | "-vdesock" | "-unix" => {
                let list = value(rest, "-sock /run/vde.ctl")?;
                request.sock = Some(list.split(',').map(str::to_owned).collect());
            }
            "--mod" | "-mod" => {
                let mode = value(rest, "--mod 0660")?;
                request.mode = Some(octal(&mode, "--mod ")?);
            }
            "--poll-us" => {
                let value = value(rest, "--poll-us 50")?;
                let number = value.parse().ok().filter(|number| *number <= MAX_POLL_US);
                request.poll_us = Some(number.ok_or(Error::PollTime { value })?);
            }
            _ => break,
        }
    }
    Ok(Front::Rest)
}

/// Takes an option and the word after it.
fn value(rest: &mut VecDeque<OsString>, example: &'static str) -> Result<String, Error> {
    let option = rest.pop_front().unwrap_or_default().to_string_lossy().into_owned();
    let value = rest.pop_front().and_then(|value| value.into_string().ok());
    value.ok_or(Error::OptionValue { option, example })
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
becomes a NIC served by vhost-user-vde. All other options are QEMU's.
Without model= it is virtio, the fastest; e1000, rtl8139, ne2k_pci and others
are for guests without its driver.

Options, before or right after PROGRAM:
  -sock LIST, -vdesock LIST, -unix LIST
                   without -net vde: one NIC on each of these networks
  --mod OCTAL      who may send to our end of the connection (default 0700)
  --poll-us N      the back end looks for frames for N microseconds after the
                   last one before it sleeps: quicker, for a core per NIC
  --print-plan     show what would be run, as shell lines and JSON; run nothing
  -h, --help       this text
  --version        the version of vdeq

PROGRAM `qemu' or `kvm' finds the emulator of this machine; VDEQ_QEMU names another.

Examples:
  vdeq qemu-system-x86_64 -m 512 -hda disk.img -net nic -net vde,sock=/tmp/sw
  vdeq qemu -sock /tmp/sw -m 512 -hda disk.img
  vdeq kvm -net nic,vlan=0 -net vde,vlan=0 \\
           -net nic,vlan=1,model=e1000 -net vde,vlan=1,sock=/tmp/my.ctl,port=10

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
    fn parse_names() {
        for (line, expected) in [
            (&["vdeq", "qemu"][..], "qemu"),
            (&["/usr/bin/vdeq", "./my-qemu", "-h5"], "./my-qemu"),
            (&["foo", "qemu"], "qemu"),
            (&["vde", "qemu"], "qemu"),
            (&["vdeoq", "qemu"], "qemu"),
            (&["vdeqemu"], "qemu"),
            (&["vdeoqemu"], "qemu"),
            (&["./x/vdekvm", "-m", "64"], "kvm"),
            (&["vdeqemu-system-x86_64"], "qemu-system-x86_64"),
            (&["vdeqx"], "qx"),
        ] {
            assert_eq!(program(line), expected, "{line:?}");
        }
    }

    #[test]
    fn parse_front_options_in_any_order() {
        let expected = Request {
            program: "qemu".into(),
            args: vec!["-m".into(), "64".into(), "-sock".into(), "z".into()],
            sock: Some(vec!["a".into(), String::new(), "b".into()]),
            mode: Some("0660".into()),
            poll_us: Some(50),
            print_plan: true,
        };
        for line in [
            "vdeq qemu -sock a,,b --mod 0660 --poll-us 50 --print-plan -m 64 -sock z",
            "vdeq qemu --poll-us 50 --mod 0660 --print-plan -unix a,,b -m 64 -sock z",
            "vdeq --print-plan --poll-us 50 qemu -mod 0660 -vdesock a,,b -m 64 -sock z",
            "vdeqemu --print-plan -mod 0660 -vdesock a,,b --poll-us 50 -m 64 -sock z",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            assert_eq!(run(&words), Command::Run(expected.clone()), "{line}");
        }
    }

    #[test]
    fn parse_help_and_version() {
        for line in [
            &["vdeq"][..],
            &["vdeq", "-h"],
            &["vdeq", "-help"],
            &["vdeq", "--help"],
            &["vdeq", "qemu", "-h"],
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
    fn parse_bad_values_are_named() {
        for (line, word) in [
            (&["vdeq", "qemu", "-sock"][..], "-sock"),
            (&["vdeq", "qemu", "--mod"], "--mod"),
            (&["vdeq", "qemu", "--mod", "rw"], "'rw'"),
            (&["vdeq", "qemu", "--mod", "07777"], "'07777'"),
            (&["vdeq", "qemu", "--poll-us"], "--poll-us 50"),
            (&["vdeq", "qemu", "--poll-us", "1ms"], "'1ms'"),
            (&["vdeq", "qemu", "--poll-us", "1000001"], "'1000001'"),
        ] {
            let error = parse(line.iter().map(OsString::from)).expect_err("bad");
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.status(), 2);
        }
    }
}
