//! The command line, and what it means once it was checked.
//!
//! Parsing and checking are apart: [`Cli`] is what was typed (clap's help and the manual page come from it), [`Config`] is
//! what is going to be served.

use std::io::Write;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Parser, ValueEnum, value_parser};
use log::LevelFilter;
use vdeplug::{Link, OpenError, OpenOptions};

use crate::{Failure, Status};

/// Most queue pairs that one NIC can have.
pub const MAX_QUEUES: u16 = 16;

/// vhost-user back end that plugs the NICs of virtual machines into VDE networks.
///
/// A virtual machine monitor connects to the socket and hands over its guest's virtqueues; frames go straight between these
/// and the links. NICs of other models than virtio are served through QEMU's netdev stream. One process serves any number of
/// NICs.
#[derive(Debug, Parser)]
#[command(
    name = "vhost-user-vde",
    version,
    after_help = "Exit status: 0 ended by a signal or the life line, 1 system, 2 command line, 3 network, 4 socket.\n\n\
    Example: vhost-user-vde --socket-path /tmp/n0.sock --link vde:///tmp/sw[7]\n\
    and: qemu-system-x86_64 -m 256 -object memory-backend-memfd,id=pc.ram,size=256M -machine memory-backend=pc.ram \
    -chardev socket,id=c0,path=/tmp/n0.sock,reconnect-ms=1000 -netdev vhost-user,id=n0,chardev=c0 \
    -device virtio-net-pci,netdev=n0"
)]
pub struct Cli {
    /// Listen on this Unix socket (one NIC; see --nic for more)
    #[arg(long, value_name = "PATH", conflicts_with_all = ["fd", "nic"], requires = "link")]
    pub socket_path: Option<PathBuf>,

    /// Serve this inherited Unix socket, listening or connected already
    #[arg(long, value_name = "N", conflicts_with = "nic", requires = "link")]
    pub fd: Option<RawFd>,

    /// Network that the NIC is plugged into; several make it a member of each
    #[arg(long, value_name = "LOCATOR", action = ArgAction::Append, conflicts_with = "nic")]
    pub link: Vec<String>,

    /// Queue pairs of the NIC
    #[arg(long, value_name = "N", conflicts_with = "nic")]
    pub queues: Option<u16>,

    /// What is spoken on the NIC's socket [default: vhost-user]
    #[arg(long, value_name = "PROTOCOL", conflicts_with = "nic")]
    pub protocol: Option<Protocol>,

    /// A NIC as `socket-path=PATH|fd=N,link=LOCATOR[,link=...][,queues=N][,protocol=P]`; commas inside values are doubled
    #[arg(long, value_name = "SPEC", action = ArgAction::Append)]
    pub nic: Vec<String>,

    /// Two networks that hear each other, as `link=LOCATOR,link=LOCATOR`; commas inside values are doubled
    #[arg(long, value_name = "SPEC", action = ArgAction::Append)]
    pub join: Vec<String>,

    /// Text that the networks show for our connections
    #[arg(long, value_name = "TEXT", default_value = "vhost-user-vde")]
    pub description: String,

    /// Look for frames without a break for so many microseconds, up to a second, after the last one, before sleeping until
    /// the next; saves the wake-up of each side, takes a core per busy queue pair
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u64).range(..=1_000_000))]
    pub poll_us: u64,

    /// Let the guest do its checksums and its segmentation itself
    #[arg(long)]
    pub no_offloads: bool,

    /// Serve without a network that cannot be joined yet, and try it again and again
    #[arg(long)]
    pub keep_going: bool,

    /// Write the frames of the NIC to this file, which Wireshark reads; of several, NIC 1 has one that ends in .nic1 before
    /// its extension
    #[arg(long, value_name = "FILE")]
    pub capture: Option<PathBuf>,

    /// Give the sockets that we make to this user
    #[arg(long, value_name = "UID:GID", value_parser = parse_owner)]
    pub socket_owner: Option<(u32, u32)>,

    /// What goes to the standard error: off, error, warn, info or debug
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: LevelFilter,

    /// Write READY or ERROR STATUS SENTENCE to this descriptor once it is decided
    #[arg(long, value_name = "N")]
    pub ready_fd: Option<RawFd>,

    /// End when the other end of this pipe is closed
    #[arg(long, value_name = "N")]
    pub lifeline_fd: Option<RawFd>,

    /// Remove this directory at the end, if it is empty then
    #[arg(long, value_name = "DIR")]
    pub private_dir: Option<PathBuf>,

    /// Print what this back end is as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,
}

impl Cli {
    /// All descriptors that the command line names.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let of_nics = self.nic.iter().filter_map(|spec| match parse_nic(spec).ok()?.door {
            Door::Fd(fd) => Some(fd),
            Door::Path(_) => None,
        });
        of_nics.chain(self.fd).chain(self.ready_fd).chain(self.lifeline_fd).collect()
    }
}

/// Where front ends come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Door {
    /// We listen there.
    Path(PathBuf),
    /// Somebody made the socket for us.
    Fd(RawFd),
}

/// What is spoken on a NIC's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// A virtio NIC's: the guest's virtqueues are served.
    #[default]
    VhostUser,
    /// QEMU's netdev stream, for a NIC of any other model: QEMU hands over frame by frame.
    Stream,
}

/// One NIC to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicConfig {
    /// Its socket.
    pub door: Door,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Its networks, as VDE locators; an empty one is the user's default network.
    pub links: Vec<String>,
    /// Its queue pairs.
    pub queues: u16,
}

/// How the network that a locator names is opened.
pub type Opener = fn(&str, &OpenOptions) -> Result<Arc<dyn Link>, OpenError>;

/// All that is going to be served.
#[derive(Clone, Debug)]
pub struct Config {
    /// At least one.
    pub nics: Vec<NicConfig>,
    /// Networks that hear each other, as VDE locators.
    pub joins: Vec<[String; 2]>,
    /// Text that the networks show for our connections.
    pub description: String,
    /// How long queue pairs go on looking for frames after the last one.
    pub poll: Duration,
    /// Guests may leave checksums and segmentation to others.
    pub offloads: bool,
    /// A network that cannot be joined is tried again.
    pub keep_going: bool,
    /// Where frames are written to.
    pub capture: Option<PathBuf>,
    /// Whose the sockets are that we make, by user and group; ours if nobody is named.
    pub socket_owner: Option<(u32, u32)>,
    /// [`vdeplug::open`], unless a program over this library knows further networks.
    pub open: Opener,
    /// Its closing ends us.
    pub lifeline: Option<RawFd>,
    /// Removed at the end.
    pub private_dir: Option<PathBuf>,
}

fn usage<T>(sentence: impl Into<String>) -> Result<T, Failure> {
    Err(Failure { status: Status::Usage, sentence: sentence.into() })
}

impl TryFrom<Cli> for Config {
    type Error = Failure;

    fn try_from(cli: Cli) -> Result<Self, Failure> {
        let door = cli.socket_path.map(Door::Path).or(cli.fd.map(Door::Fd));
        let mut nics = cli.nic.iter().map(|spec| parse_nic(spec)).collect::<Result<Vec<_>, _>>()?;
        match door {
            Some(door) => nics.push(NicConfig {
                door,
                protocol: cli.protocol.unwrap_or_default(),
                links: cli.link,
                queues: cli.queues.unwrap_or(1),
            }),
            None if !cli.link.is_empty() || cli.queues.is_some() || cli.protocol.is_some() => {
                return usage(
                    "--link, --queues and --protocol describe a NIC: say where it is with --socket-path or --fd",
                );
            }
            None if nics.is_empty() => {
                return usage(
                    "no NIC to serve: give --socket-path PATH --link LOCATOR, or --nic; see --help",
                );
            }
            None => {}
        }
        for (index, nic) in nics.iter().enumerate() {
            if nic.queues == 0 || nic.queues > MAX_QUEUES {
                return usage(format!("queues={}: a NIC has 1 to {MAX_QUEUES} queue pairs", nic.queues));
            }
            if nic.protocol == Protocol::Stream && nic.queues > 1 {
                return usage(format!(
                    "queues={}: with protocol=stream a NIC has 1; drop queues=",
                    nic.queues
                ));
            }
            if let Some(before) = nics.iter().take(index).find(|n| n.door == nic.door) {
                let name = match &before.door {
                    Door::Path(path) => format!("socket {}", path.display()),
                    Door::Fd(fd) => format!("descriptor {fd}"),
                };
                return usage(format!("{name} is given to two NICs; each needs its own"));
            }
        }
        let joins = cli.join.iter().map(|spec| parse_join(spec)).collect::<Result<_, _>>()?;
        Ok(Self {
            nics,
            joins,
            description: cli.description,
            poll: Duration::from_micros(cli.poll_us),
            offloads: !cli.no_offloads,
            keep_going: cli.keep_going,
            capture: cli.capture,
            socket_owner: cli.socket_owner,
            open: vdeplug::open,
            lifeline: cli.lifeline_fd,
            private_dir: cli.private_dir,
        })
    }
}

/// `UID:GID`, both numbers.
fn parse_owner(text: &str) -> Result<(u32, u32), &'static str> {
    let numbers = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    numbers.ok_or("give two numbers, as 1000:1000")
}

/// `socket-path=PATH,link=LOCATOR,…` with QEMU's rules: `,,` is a comma inside a value.
fn parse_nic(spec: &str) -> Result<NicConfig, Failure> {
    let (mut door, mut protocol, mut links, mut queues) = (None, Protocol::default(), Vec::new(), 1);
    for word in split_commas(spec) {
        let Some((key, value)) = word.split_once('=') else {
            return usage(format!("--nic {spec}: '{word}' is not of the form KEY=VALUE"));
        };
        let number = || format!("--nic {spec}: '{word}' wants a number");
        match key {
            "socket-path" | "fd" if door.is_some() => {
                return usage(format!("--nic {spec}: '{word}' is a second socket; a NIC has one"));
            }
            "socket-path" => door = Some(Door::Path(value.into())),
            "fd" => match value.parse() {
                Ok(fd) => door = Some(Door::Fd(fd)),
                Err(_) => return usage(number()),
            },
            "link" => links.push(value.to_owned()),
            "queues" => match value.parse() {
                Ok(count) => queues = count,
                Err(_) => return usage(number()),
            },
            "protocol" => match Protocol::from_str(value, false) {
                Ok(known) => protocol = known,
                Err(_) => {
                    return usage(format!(
                        "--nic {spec}: '{word}' names no protocol; known are vhost-user and stream"
                    ));
                }
            },
            _ => {
                return usage(format!(
                    "--nic {spec}: unknown word '{key}'; known are socket-path, fd, link, queues and protocol"
                ));
            }
        }
    }
    match door {
        None => usage(format!("--nic {spec}: socket-path= or fd= is missing")),
        Some(_) if links.is_empty() => usage(format!("--nic {spec}: link= is missing")),
        Some(door) => Ok(NicConfig { door, protocol, links, queues }),
    }
}

/// `link=LOCATOR,link=LOCATOR` with the same rules.
fn parse_join(spec: &str) -> Result<[String; 2], Failure> {
    let words = split_commas(spec);
    let links: Vec<&str> = words.iter().filter_map(|word| word.strip_prefix("link=")).collect();
    match links[..] {
        [one, other] if words.len() == 2 => Ok([one.into(), other.into()]),
        _ => usage(format!("--join {spec}: not of the form link=LOCATOR,link=LOCATOR")),
    }
}

/// Splits at single commas; doubled ones become one comma of the value.
fn split_commas(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            words.push(String::new());
        } else if let Some(word) = words.last_mut() {
            word.push(c);
        }
    }
    words
}

/// The answer to `--print-capabilities` (QEMU's conventions for vhost-user programs).
pub fn print_capabilities() -> ExitCode {
    let text = serde_json::json!({ "type": "net", "features": [] });
    match writeln!(std::io::stdout(), "{text}") {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-user-vde: cannot write to the standard output: {error}");
            ExitCode::from(Status::System as u8)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(args: &[&str]) -> Result<Config, String> {
        let cli = Cli::try_parse_from([&["vhost-user-vde"], args].concat()).map_err(|e| e.to_string())?;
        Config::try_from(cli).map_err(|f| f.sentence)
    }

    #[test]
    fn one_nic_by_options() {
        let nics =
            config(&["--socket-path", "/s", "--link", "/a", "--link", "", "--queues", "2"]).unwrap().nics;
        let links = vec!["/a".to_owned(), String::new()];
        let protocol = Protocol::VhostUser;
        assert_eq!(nics, [NicConfig { door: Door::Path("/s".into()), protocol, links, queues: 2 }]);
        let nics = config(&["--fd", "7", "--link", "x", "--protocol", "stream"]).unwrap().nics;
        assert_eq!((&nics[0].door, nics[0].protocol), (&Door::Fd(7), Protocol::Stream));
    }

    #[test]
    fn polling_is_off_unless_asked_for() {
        let nic = ["--fd", "7", "--link", "x"];
        assert_eq!(config(&nic).unwrap().poll, Duration::ZERO);
        let polling = config(&[&nic[..], &["--poll-us", "1000000"]].concat()).unwrap();
        assert_eq!(polling.poll, Duration::from_secs(1));
    }

    #[test]
    fn several_nics_with_commas_in_values() {
        let nics = config(&[
            "--nic",
            "socket-path=/a,,b,link=vde:///x[5/mode=0660]",
            "--nic",
            "fd=5,link=,queues=16",
            "--nic",
            "fd=6,link=,protocol=stream",
        ])
        .unwrap()
        .nics;
        assert_eq!(nics[0].door, Door::Path("/a,b".into()));
        assert_eq!(nics[0].links, ["vde:///x[5/mode=0660]"]);
        assert_eq!((&nics[1].door, nics[1].queues), (&Door::Fd(5), 16));
        assert_eq!((nics[1].protocol, nics[2].protocol), (Protocol::VhostUser, Protocol::Stream));
    }

    #[test]
    fn what_concerns_all_nics() {
        let nic = ["--fd", "7", "--link", "x"];
        let plain = config(&nic).unwrap();
        assert!(
            plain.offloads && !plain.keep_going && plain.capture.is_none() && plain.socket_owner.is_none()
        );
        let more = ["--no-offloads", "--keep-going", "--capture", "/c", "--socket-owner", "5:6"];
        let config = config(&[&nic[..], &more].concat()).unwrap();
        assert!(!config.offloads && config.keep_going);
        assert_eq!((config.capture, config.socket_owner), (Some("/c".into()), Some((5, 6))));
    }

    #[test]
    fn joins_have_two_ends() {
        let join = |spec| config(&["--fd", "3", "--link", "/a", "--join", spec]).map(|config| config.joins);
        assert_eq!(join("link=hub:///h,link=").unwrap(), [["hub:///h".to_owned(), String::new()]]);
        assert_eq!(join("link=/a,,b,link=/c").unwrap(), [["/a,b".to_owned(), "/c".to_owned()]]);
        for spec in ["link=/a", "link=/a,link=/b,link=/c", "link=/a,link=/b,queues=1", "/a,/b"] {
            assert!(join(spec).unwrap_err().contains(spec), "{spec}");
        }
    }

    #[test]
    fn wrong_words_are_named() {
        let cases: [(&[&str], &str); 18] = [
            (&[], "no NIC to serve"),
            (&["--link", "/a"], "--socket-path or --fd"),
            (&["--protocol", "stream"], "--socket-path or --fd"),
            (&["--socket-path", "/s"], "--link"),
            (&["--socket-path", "/s", "--fd", "3", "--link", "x"], "--fd"),
            (&["--nic", "socket-path=/s"], "link= is missing"),
            (&["--nic", "link=/s"], "socket-path= or fd= is missing"),
            (&["--nic", "socket-path=/s,link=/a,port=5"], "unknown word 'port'"),
            (&["--nic", "socket-path=/s,link=/a,"], "'' is not of the form"),
            (&["--nic", "socket-path=/s,fd=3,link=/a"], "'fd=3' is a second socket"),
            (&["--nic", "fd=x,link=/a"], "'fd=x' wants a number"),
            (&["--fd", "3", "--link", "/a", "--poll-us", "1000001"], "1000001 is not in 0..=1000000"),
            (&["--fd", "3", "--link", "/a", "--poll-us", "1ms"], "'1ms'"),
            (&["--fd", "3", "--link", "/a", "--socket-owner", "nobody"], "1000:1000"),
            (&["--nic", "fd=3,link=/a,queues=17"], "queues=17"),
            (&["--nic", "fd=3,link=/a,queues=2,protocol=stream"], "queues=2"),
            (&["--nic", "fd=3,link=/a,protocol=dgram"], "'protocol=dgram'"),
            (&["--nic", "fd=3,link=/a", "--nic", "fd=3,link=/b"], "two NICs"),
        ];
        for (args, word) in cases {
            let sentence = config(args).unwrap_err();
            assert!(sentence.contains(word), "{args:?} gave {sentence:?}");
        }
    }

    #[test]
    fn clap_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
