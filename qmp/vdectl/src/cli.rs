//! The command line; clap's help, the manual page and the completions come from it.

mod libvirt;

use std::path::PathBuf;

use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Parser, Subcommand, value_parser};
pub use libvirt::{AttachDomain, DetachDomain, Domains, Libvirt, Part, Xml};
use vde_libvirt::plan::QUEUES_MAX;

use crate::names::{read_id, read_mac};

/// VDE NICs of running QEMU guests: plugs and unplugs them, moves their cables, shows what passes.
///
/// A VM is named by the name that it was started with (-name), by its process id, or by its QMP socket (unix:PATH,
/// tcp:HOST:PORT or a path). A NIC is named by the id of its device or of its netdev, or by its MAC address.
#[derive(Debug, Parser)]
#[command(
    name = "vdectl",
    version,
    after_help = "Exit status: 0 done, 1 not done (what could not be undone is named), 2 command line, 3 no such VM, NIC or link (or \
    more than one), 4 the guest has not done its part yet."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the VMs that run here
    Vms(Vms),
    /// Show the NICs of a VM, with their links and counters
    List(List),
    /// Plug a NIC on a VDE network into a running VM
    Attach(Attach),
    /// Take a NIC out of a running VM
    Detach(Detach),
    /// Plug the cables of a NIC into other networks, or pull them
    Link(Link),
    /// Show all VMs, NICs and links live
    Top(Top),
    /// Print the counters
    Stats(Stats),
    /// Write the frames of a NIC to a file for Wireshark
    Capture(Capture),
    /// Plug NICs in and out of domains of libvirt, and see to these
    Libvirt(Libvirt),
}

/// `vdectl vms`
#[derive(Debug, Args)]
pub struct Vms {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `vdectl list`
#[derive(Debug, Args)]
pub struct List {
    /// The VM
    pub vm: String,
    /// With netdevs, addresses, sockets and features
    #[arg(long, conflicts_with = "json")]
    pub wide: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `vdectl attach`
#[derive(Debug, Args)]
pub struct Attach {
    /// The VM
    pub vm: String,
    /// Network that the NIC is plugged into; several make it a member of each
    #[arg(required = true, value_name = "LOCATOR")]
    pub locators: Vec<String>,
    /// Name of the NIC [default: the first of vde0, vde1, ... that is free]
    #[arg(long, value_parser = read_id)]
    pub id: Option<String>,
    /// Its MAC address [default: a random one]
    #[arg(long, value_parser = read_mac)]
    pub mac: Option<String>,
    /// What the guest sees: virtio, or a device of QEMU's (e1000, rtl8139, ...), whose frames pass through QEMU
    #[arg(long, default_value = "virtio", value_parser = NonEmptyStringValueParser::new())]
    pub model: String,
    /// Queue pairs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = queues)]
    pub queues: u16,
    /// Bus that it is plugged into [default: a free place is looked for]
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub bus: Option<String>,
    /// Address on the bus
    #[arg(long, requires = "bus", value_parser = NonEmptyStringValueParser::new())]
    pub addr: Option<String>,
    /// Largest packet that the guest is told to send, in bytes
    #[arg(long, value_name = "BYTES", value_parser = value_parser!(u16).range(MTU_MIN..))]
    pub mtu: Option<u16>,
    /// Wait until the guest's driver is up, so many seconds at most
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "30")]
    pub wait: Option<u64>,
}

/// `vdectl detach`
#[derive(Debug, Args)]
pub struct Detach {
    /// The VM
    pub vm: String,
    /// The NIC
    pub nic: String,
    /// How long the guest may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    pub wait: u64,
    /// Pull the cable at least, if the guest does not let go
    #[arg(long)]
    pub force: bool,
}

/// `vdectl link`
#[derive(Debug, Args)]
pub struct Link {
    /// The VM
    pub vm: String,
    /// The NIC
    pub nic: String,
    /// Also for when the domain is started the next time, of a domain of libvirt
    #[arg(long, global = true)]
    pub config: bool,
    /// What to do with its links.
    #[command(subcommand)]
    pub change: Change,
}

/// What to do with the links of a NIC. A link is named by its id or by its locator.
#[derive(Debug, Subcommand)]
pub enum Change {
    /// Plug it into one more network
    Add {
        /// The network
        locator: String,
    },
    /// Pull one cable
    Remove {
        /// The link
        link: String,
    },
    /// Move a cable to another network, without losing a frame
    Replace {
        /// The link
        link: String,
        /// The network
        locator: String,
    },
    /// Let the guest see that the cable is pulled
    Down,
    /// Let the guest see that the cable is plugged in
    Up,
}

/// `vdectl top`
#[derive(Debug, Args)]
pub struct Top {
    /// Only these VMs
    #[arg(value_name = "VM")]
    pub vms: Vec<String>,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    pub interval: f64,
}

/// `vdectl stats`
#[derive(Debug, Args)]
pub struct Stats {
    /// Only these VMs
    #[arg(value_name = "VM")]
    pub vms: Vec<String>,
    /// In the text format of Prometheus
    #[arg(long)]
    pub prometheus: bool,
    /// Write to this file, which is replaced at once and as a whole
    #[arg(long, value_name = "FILE", requires = "prometheus")]
    pub output: Option<PathBuf>,
    /// Listen on this Unix socket, and give the text to everyone who connects
    #[arg(long, value_name = "PATH", requires = "prometheus", conflicts_with = "output")]
    pub listen: Option<PathBuf>,
}

/// `vdectl capture`
#[derive(Debug, Args)]
pub struct Capture {
    /// The VM
    pub vm: String,
    /// The NIC
    pub nic: String,
    /// Where to, in pcapng; - is standard output. A file that is there is overwritten
    pub file: PathBuf,
    /// Only what passes through this link
    #[arg(long)]
    pub link: Option<String>,
    /// End before the file has more bytes than that; K, M and G are 2^10, 2^20 and 2^30
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub max_bytes: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = value_parser!(u64).range(1..))]
    pub max_seconds: Option<u64>,
}

/// The smallest packet size that IPv4 allows, and QEMU.
const MTU_MIN: i64 = 68;

/// As many as a back end serves.
fn queues(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (1..=QUEUES_MAX).contains(number));
    number.ok_or_else(|| format!("a NIC has 1 to {QUEUES_MAX} queue pairs"))
}

/// A number of bytes, in units that people use.
fn bytes(text: &str) -> Result<u64, String> {
    let number = |digits: &str, shift: u32| digits.parse::<u64>().ok()?.checked_mul(1 << shift);
    let units = [("K", 10), ("M", 20), ("G", 30)];
    let upper = text.to_ascii_uppercase();
    let unit = units.iter().find_map(|(unit, shift)| Some((upper.strip_suffix(unit)?, *shift)));
    let (digits, shift) = unit.unwrap_or((&upper, 0));
    number(digits, shift).filter(|bytes| *bytes > 0).ok_or_else(|| "a number of bytes, as 500K or 10M".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        for (text, expected) in [("1", 1), ("500k", 500 << 10), ("10M", 10 << 20), ("2G", 2 << 30)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "0", "M", "10T", "1.5M", "-1", "10MB", "17179869184G"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    /// Whatever can be told from the words alone is told before anybody is asked.
    #[test]
    fn words_that_mean_nothing_are_refused_at_once() {
        let long = "a".repeat(33);
        let attach: [(&str, &[&str]); 7] = [
            ("--id", &["", "0net", "a b", "a/b", &long]),
            ("--mac", &["", "52:54:00:12:34", "01:00:5e:00:00:01", "0:0:0:0:0:0", "52:54:00:12:34:+6"]),
            ("--queues", &["", "0", "17", "-1", "65537"]),
            ("--mtu", &["", "0", "67", "65536"]),
            ("--model", &[""]),
            ("--bus", &[""]),
            ("--wait", &["", "-1", "soon"]),
        ];
        let capture: [(&str, &[&str]); 2] =
            [("--max-bytes", &["", "0"]), ("--max-seconds", &["", "0", "1.5"])];
        let attach = attach.iter().map(|case| (["attach", "vm", "/sw"], case));
        let capture = capture.iter().map(|case| (["capture", "vm", "net0"], case));
        for (command, (option, values)) in attach.chain(capture) {
            for value in *values {
                let word = format!("{option}={value}");
                let words = [&["vdectl"], &command[..], &[&word, "file"]].concat();
                let error = Cli::try_parse_from(&words).expect_err(&format!("{words:?}"));
                assert_eq!(error.exit_code(), 2);
                assert!(error.to_string().contains(option), "{error}");
            }
        }
        for words in
            ["libvirt attach vm /sw --mac 1:2", "libvirt xml /sw --mac 1:2", "libvirt xml /sw --queues 0"]
        {
            let words = format!("vdectl {words}");
            assert!(Cli::try_parse_from(words.split(' ')).is_err(), "{words}");
        }
    }

    #[test]
    fn clap_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
