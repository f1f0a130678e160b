//! What libvirt asks of passt, where that can be had on a VDE network.
//!
//! A name of an interface never has a slash (the kernel refuses it), a VDE locator always has one, but for the names of locator
//! files in the present directory, which nobody means here. So the slash decides. From then on every word counts: what asks for
//! passt's own network (addresses, forwarded ports, names for its DHCP) is refused rather than forgotten, because a guest that
//! starts without it would be a surprise.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Longest path of a Unix socket.
const LONGEST_SOCKET: usize = 107;
/// Most queue pairs that the back end gives a NIC; those that are not used cost a sleeping thread.
const MOST_QUEUES: &str = "16";

/// A NIC to be served.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Its network, a VDE locator.
    network: String,
    /// Where QEMU will connect.
    socket: PathBuf,
    pid_file: Option<PathBuf>,
    log_file: Option<PathBuf>,
    vhost_user: bool,
    one_off: bool,
    /// Words that change nothing here.
    idle: Vec<String>,
}

/// What one of passt's options means here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Network,
    Socket,
    PidFile,
    LogFile,
    VhostUser,
    OneOff,
    /// It is about passt itself, or said by the virtual device already.
    Idle,
}

/// Those that can be had: long name, short one, whether a value follows.
const OPTIONS: [(&str, &str, bool, Meaning); 13] = [
    ("--interface", "-i", true, Meaning::Network),
    ("--socket", "-s", true, Meaning::Socket),
    ("--pid", "-P", true, Meaning::PidFile),
    ("--log-file", "-l", true, Meaning::LogFile),
    ("--vhost-user", "", false, Meaning::VhostUser),
    ("--one-off", "-1", false, Meaning::OneOff),
    ("--mtu", "-m", true, Meaning::Idle),
    ("--mac-addr", "-M", true, Meaning::Idle),
    ("--log-size", "", true, Meaning::Idle),
    ("--quiet", "-q", false, Meaning::Idle),
    ("--debug", "-d", false, Meaning::Idle),
    ("--trace", "", false, Meaning::Idle),
    ("--stderr", "-e", false, Meaning::Idle),
];

/// Reads passt's arguments; `None` if they name no VDE network.
pub fn parse(words: &[OsString]) -> Result<Option<Request>, String> {
    let text: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let Some(network) = network(&text) else { return Ok(None) };
    let mut request = Request { network: network.clone(), ..Request::default() };
    let mut rest = text.iter();
    while let Some(word) = rest.next() {
        let (name, joined) =
            word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
        let known =
            OPTIONS.iter().find(|(long, short, ..)| name == *long || (!short.is_empty() && name == *short));
        let Some((_, _, takes_value, meaning)) = known else { return Err(foreign(word, &network)) };
        let value = match (takes_value, joined) {
            (false, None) => "",
            (false, Some(_)) => return Err(format!("'{word}': {name} takes no value")),
            (true, Some(value)) => value,
            (true, None) => rest.next().ok_or_else(|| format!("'{word}' wants a value"))?,
        };
        match meaning {
            Meaning::Network if value != network => {
                return Err(format!(
                    "'{value}' is a second network; a NIC of libvirt's has one, here {network}"
                ));
            }
            Meaning::Network => {}
            Meaning::Socket => request.socket = value.into(),
            Meaning::PidFile => request.pid_file = Some(value.into()),
            Meaning::LogFile => request.log_file = Some(value.into()),
            Meaning::VhostUser => request.vhost_user = true,
            Meaning::OneOff => request.one_off = true,
            Meaning::Idle => request.idle.push(format!("{name} {value}").trim_end().to_owned()),
        }
    }
    match request.socket.as_os_str().is_empty() {
        true => Err(format!("--socket PATH is missing: QEMU has to find {network} somewhere")),
        false => Ok(Some(request)),
    }
}

/// The VDE network that the arguments name.
fn network(words: &[String]) -> Option<String> {
    let value = |(index, word): (usize, &String)| match word.as_str() {
        "--interface" | "-i" => words.get(index + 1).cloned(),
        word => word.strip_prefix("--interface=").map(str::to_owned),
    };
    words.iter().enumerate().filter_map(value).find(|value| value.contains('/'))
}

fn foreign(word: &str, network: &str) -> String {
    format!(
        "'{word}' is for the network that passt itself makes, but {network} is a VDE network, which has the addresses and ports \
         of those on it: take <ip>, <portForward> and the like out of this <interface>"
    )
}

/// The alias in libvirt's name for a socket, `ID-DOMAIN-ALIAS`. A domain's name may have anything in it.
fn alias(stem: &str) -> Option<&str> {
    let last = stem.rsplit_once('-').map(|(_, last)| last);
    let is_numbered =
        |alias: &&str| alias.strip_prefix("net").is_some_and(|number| number.parse::<u32>().is_ok());
    last.filter(is_numbered).or_else(|| stem.rfind("-ua-").and_then(|place| stem.get(place + 1..)))
}

/// A value in `--nic`.
fn doubled(value: &str) -> String {
    value.replace(',', ",,")
}

impl Request {
    /// Where libvirt has the sockets.
    pub fn directory(&self) -> Option<&Path> {
        self.socket.parent()
    }

    /// The back end's command line, and its log.
    pub fn command(&self, program: &Path) -> Result<Command, String> {
        let mut command = Command::new(program);
        let stem = self.socket.file_stem().unwrap_or_default().to_string_lossy();
        let kind = match self.vhost_user {
            // How many QEMU will want is not said, and it asks for ever where there are fewer.
            true => format!("protocol=vhost-user,queues={MOST_QUEUES}"),
            false => "protocol=stream".into(),
        };
        let path = doubled(&self.socket.to_string_lossy());
        let id = alias(&stem).map(|alias| format!(",id={}", doubled(alias))).unwrap_or_default();
        let nic = format!("socket-path={path},link={},{kind}{id}", doubled(&self.network));
        command.args(["--nic", &nic, "--description", &format!("passt {stem}")]);
        let control = self.socket.with_extension("control");
        if control.as_os_str().len() <= LONGEST_SOCKET {
            command.arg("--control").arg(control);
        }
        if self.one_off {
            // Nor for ever for a QEMU that libvirt then did not start: it knows of us only once that runs.
            command.args(["--one-off", "--follow-front-end"]);
        }
        if let Some(file) = &self.pid_file {
            command.arg("--pid-file").arg(file);
        }
        let Some(path) = &self.log_file else {
            command.stderr(Stdio::null());
            return Ok(command);
        };
        let failed = |error| format!("cannot write to --log-file {}: {error}", path.display());
        let mut log = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        for word in &self.idle {
            writeln!(log, "vde-passt: {word} changes nothing on {}", self.network).map_err(failed)?;
        }
        command.args(["--log-level", "info"]).stderr(log);
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Option<Request>, String> {
        parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn parse_reads_what_libvirt_11_says() {
        let line = "--vhost-user --one-off --socket /run/1-a-net0.socket --pid /run/1-a-net0-passt.pid --mtu 1400 \
                    --interface vde:///run/sw[7] --log-file /var/log/a";
        let request = of(line).unwrap().unwrap();
        let expected = Request {
            network: "vde:///run/sw[7]".into(),
            socket: "/run/1-a-net0.socket".into(),
            pid_file: Some("/run/1-a-net0-passt.pid".into()),
            log_file: Some("/var/log/a".into()),
            vhost_user: true,
            one_off: true,
            idle: vec!["--mtu 1400".into()],
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn a_nic_is_called_by_its_alias() {
        for (stem, expected) in [
            ("1-a-net0", Some("net0")),
            ("1-a-net0-ua-my-nic", Some("ua-my-nic")),
            ("1-a-ua-b-ua-c", Some("ua-c")),
            ("1-netx", None),
            ("", None),
        ] {
            assert_eq!(alias(stem), expected, "{stem}");
        }
        let request = of("-s /r/1-a,b-net0.socket -i /run/a,b").unwrap().unwrap();
        let command = request.command(Path::new("x")).unwrap();
        let nic = "socket-path=/r/1-a,,b-net0.socket,link=/run/a,,b,protocol=stream,id=net0";
        assert_eq!(command.get_args().nth(1).unwrap(), nic);
        let words = |line| -> Vec<OsString> {
            of(line).unwrap().unwrap().command(Path::new("x")).unwrap().get_args().map(Into::into).collect()
        };
        let limits = ["--one-off", "--follow-front-end"];
        assert!(limits.iter().all(|word| words("-1 -s /r/a -i /run/a").contains(&word.into())));
        assert!(!limits.iter().any(|word| words("-s /r/a -i /run/a").contains(&word.into())));
    }

    #[test]
    fn parse_leaves_all_else_to_passt() {
        for line in [
            "",
            "--help",
            "--version",
            "--one-off --socket /s --pid /p --tcp-ports 2022:22",
            "--socket /s --interface eth0 --address 10.0.0.1",
            "-i eth0 -s /s",
            "--interface",
        ] {
            assert_eq!(of(line), Ok(None), "{line}");
        }
    }

    #[test]
    fn parse_takes_all_forms_of_the_word() {
        for line in ["-s /s -i /run/sw", "--interface=/run/sw -s /s", "-1 -s /s -i /run/sw -i /run/sw"] {
            assert_eq!(of(line).unwrap().unwrap().network, "/run/sw", "{line}");
        }
        assert_eq!(of("-i tap://t0 -s /s").unwrap().unwrap().network, "tap://t0");
    }

    #[test]
    fn parse_names_words_that_a_vde_network_cannot_have() {
        for (line, word) in [
            ("-s /s -i /run/sw --tcp-ports 2022:22", "'--tcp-ports'"),
            ("-s /s -i /run/sw --address=10.0.0.1", "'--address=10.0.0.1'"),
            ("-s /s -i /run/sw -i eth0", "'eth0' is a second network"),
            ("-i /run/sw", "--socket PATH is missing"),
            ("-i /run/sw -s", "'-s' wants a value"),
            ("-i /run/sw --one-off=yes -s /s", "--one-off takes no value"),
        ] {
            let sentence = of(line).unwrap_err();
            assert!(sentence.contains(word), "{line} gave {sentence}");
        }
    }
}
