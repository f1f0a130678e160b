//! The command line, and what it means once it was checked.
//!
//! Parsing and checking are apart: [`Cli`] is what was typed (clap's help and the manual page come from it), [`Config`] is
//! what is going to be served.

mod nic;

use std::io::Write;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{ArgAction, Parser, value_parser};
use log::LevelFilter;
use vdeplug::{Link, OpenError, OpenOptions};

use crate::{Failure, Status};
pub use nic::{Door, NicConfig, Protocol};

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

    /// A NIC as `socket-path=PATH|fd=N,link=LOCATOR[,link=...][,queues=N][,protocol=P][,id=NAME]`; commas inside values are
    /// doubled; NAME begins its lines in the log and is what control commands call it [default: nic0, nic1, ...]
    #[arg(long, value_name = "SPEC", action = ArgAction::Append)]
    pub nic: Vec<String>,

    /// Two networks that hear each other, as `link=LOCATOR,link=LOCATOR`; commas inside values are doubled
    #[arg(long, value_name = "SPEC", action = ArgAction::Append)]
    pub join: Vec<String>,

    /// Listen for commands on this Unix socket, which nobody but us may connect to
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// Listen for commands on this inherited Unix socket
    #[arg(long, value_name = "N", conflicts_with = "control")]
    pub control_fd: Option<RawFd>,

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
    /// its extension. A named pipe has to have a reader within 10 s
    #[arg(long, value_name = "FILE")]
    pub capture: Option<PathBuf>,

    /// Give the sockets that we make to this user
    #[arg(long, value_name = "UID:GID", value_parser = parse_owner)]
    pub socket_owner: Option<(u32, u32)>,

    /// What goes to the standard error: off, error, warn, info or debug
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: LevelFilter,

    /// Serve one front end per NIC, and end when all have gone
    #[arg(long)]
    pub one_off: bool,

    /// Keep our process number in this file from when all is up until the end
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,

    /// Write READY or ERROR STATUS SENTENCE to this descriptor once it is decided
    #[arg(long, value_name = "N")]
    pub ready_fd: Option<RawFd>,

    /// End when the other end of this pipe is closed
    #[arg(long, value_name = "N")]
    pub lifeline_fd: Option<RawFd>,

    /// End with the process that connects to a NIC first, with the last NIC that is deleted, and after a minute in which
    /// nobody came: for a virtual machine that runs already and cannot be given a life line
    #[arg(long, conflicts_with = "lifeline_fd")]
    pub follow_front_end: bool,

    /// Work in a child process; when a signal kills that, another one takes its place, serves what it served, and tries the
    /// networks again and again
    #[arg(long, conflicts_with = "one_off")]
    pub supervise: bool,

    /// Remove this directory at the end, with what vdeq keeps in it, if there is nothing else then
    #[arg(long, value_name = "DIR")]
    pub private_dir: Option<PathBuf>,

    /// Print what this back end is as JSON, and exit
    #[arg(long)]
    pub print_capabilities: bool,
}

impl Cli {
    /// All descriptors that the command line names.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let of_nics = self.nic.iter().filter_map(|spec| nic::parse(spec).ok()?.door.fd());
        of_nics.chain(self.fd).chain(self.control_fd).chain(self.ready_fd).chain(self.lifeline_fd).collect()
    }
}

/// How the network that a locator names is opened.
pub type Opener = fn(&str, &OpenOptions) -> Result<Arc<dyn Link>, OpenError>;

/// All that is going to be served.
#[derive(Clone, Debug)]
pub struct Config {
    /// At least one, unless there is a control socket.
    pub nics: Vec<NicConfig>,
    /// Networks that hear each other, as VDE locators.
    pub joins: Vec<[String; 2]>,
    /// Where commands come from.
    pub control: Option<Door>,
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
    /// Each NIC serves one front end, and no other after it.
    pub one_off: bool,
    /// Where our process number is kept.
    pub pid_file: Option<PathBuf>,
    /// [`vdeplug::open`], unless a program over this library knows further networks.
    pub open: Opener,
    /// Its closing ends us.
    pub lifeline: Option<RawFd>,
    /// The end of a front end's process ends us.
    pub follow: bool,
    /// A worker that was killed has a successor.
    pub supervise: bool,
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
        let control = cli.control.map(Door::Path).or(cli.control_fd.map(Door::Fd));
        let mut nics = cli.nic.iter().map(|spec| nic::parse(spec)).collect::<Result<Vec<_>, _>>()?;
        match door {
            Some(door) => nics.push(NicConfig {
                id: None,
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
            None if nics.is_empty() && control.is_none() => {
                return usage(
                    "no NIC to serve: give --socket-path PATH --link LOCATOR, or --nic, or --control; see --help",
                );
            }
            None => {}
        }
        nic::check_all(&nics)?;
        let joins = cli.join.iter().map(|spec| parse_join(spec)).collect::<Result<_, _>>()?;
        Ok(Self {
            nics,
            joins,
            control,
            description: cli.description,
            poll: Duration::from_micros(cli.poll_us),
            offloads: !cli.no_offloads,
            keep_going: cli.keep_going,
            capture: cli.capture,
            socket_owner: cli.socket_owner,
            one_off: cli.one_off,
            pid_file: cli.pid_file,
            open: vdeplug::open,
            lifeline: cli.lifeline_fd,
            follow: cli.follow_front_end,
            supervise: cli.supervise,
            private_dir: cli.private_dir,
        })
    }
}

/// `UID:GID`, both numbers.
fn parse_owner(text: &str) -> Result<(u32, u32), &'static str> {
    let numbers = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    numbers.ok_or("give two numbers, as 1000:1000")
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
mod tests;
