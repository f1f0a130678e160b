//! `cargo xtask deps`: what demo and tests need on a fresh Debian 12, and how it gets there.
//!
//! 1. Look what is missing (`TOOLS` by file, QEMU by its version).
//! 2. Say it, and ask when somebody sits at a terminal (`--yes`, or no terminal, means yes).
//! 3. Install it with apt, as root or through sudo. On Debian 12 apt gets the private configuration of `apt.rs`,
//!    because QEMU 10 lies in backports; on a newer Debian its own packages are new enough. Anywhere else
//!    nothing is installed, and the missing programs are named.
//! 4. Unpack QEMU 7.2, the other version that the tests use, and libvirt under `target/` (`qemu72.rs`, `libvirt.rs`).
//!
//! A C linker is not in the list: without one Cargo cannot even build this program, and says so itself.

pub mod apt;
mod libraries;
mod libvirt;
mod qemu72;
mod sources;

use std::io::{BufRead, IsTerminal, Write};
use std::process::Command;

use anyhow::{Result, bail};

use crate::step;
use apt::Apt;

/// Options of every command that may install something.
#[derive(clap::Args, Clone)]
#[group(skip)]
pub struct Args {
    /// Install without asking (the default when standard input is no terminal)
    #[arg(long)]
    pub yes: bool,
}

/// The oldest QEMU on `PATH` that the tests take as "the new one".
const QEMU_MAJOR: u32 = 10;

/// A program or plug-in that is needed: how to see it, and the package it comes from.
struct Tool {
    package: &'static str,
    seen_by: Seen,
    purpose: &'static str,
}

enum Seen {
    Program(&'static str),
    File(&'static str),
}

const fn program(name: &'static str, package: &'static str, purpose: &'static str) -> Tool {
    Tool { package, seen_by: Seen::Program(name), purpose }
}

/// A plug-in of vdeplug, by its scheme.
macro_rules! plug_in {
    ($scheme:literal, $purpose:literal) => {
        Tool {
            package: concat!("libvdeplug-", $scheme),
            seen_by: Seen::File(concat!("/usr/lib/x86_64-linux-gnu/vdeplug/libvdeplug_", $scheme, ".so")),
            purpose: $purpose,
        }
    };
}

/// In the order in which they are shown.
const TOOLS: &[Tool] = &[
    program("vde_switch", "vde-switch", "the switch that guests are plugged into"),
    program("vde_plug", "vdeplug", "host processes on the switch"),
    plug_in!("slirp", "a DHCP server on the switch"),
    plug_in!("vlan", "VLAN tags on a link"),
    plug_in!("agno", "encrypted links"),
    plug_in!("pcap", "links to an interface"),
    program("vdeq", "vde2", "a program on the C library: the original of ours"),
    program("vdens", "vdens", "a program on the C library: namespaces on the switch"),
    Tool {
        package: "libvdeplug-dev",
        seen_by: Seen::File("/usr/include/libvdeplug.h"),
        purpose: "the original C library, to compile with",
    },
    Tool {
        package: "libvdestack-dev",
        seen_by: Seen::File("/usr/include/vdestack.h"),
        purpose: "a library on the C library: stacks in a program",
    },
    program("dpdk-testpmd", "dpdk-dev", "a second virtio driver"),
    program("iperf3", "iperf3", "the far end of a guest's transfer"),
    program("strace", "strace", "counts the wake-ups of an idle back end"),
    program("python3", "python3", "a process at a socket, in tests"),
    program("pgrep", "procps", "processes by name, in tests"),
    program("ip", "iproute2", "network namespaces of tests"),
    program("ethtool", "ethtool", "interfaces without offloads, in tests"),
    program("socat", "socat", "a foreign client of control sockets"),
    program("tshark", "tshark", "reads what a capture wrote, in tests"),
    program("tcpdump", "tcpdump", "the same, and goes when it has enough"),
    program("tmux", "tmux", "a terminal for vdectl top, in tests"),
    program("xz", "xz-utils", "unpacks kernel modules"),
];

/// What the bench wants besides.
const BENCH_TOOLS: &[Tool] = &[
    program("cc", "gcc", "compiles the bench's program over the C library"),
    Tool {
        package: "openvswitch-switch-dpdk",
        seen_by: Seen::File("/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"),
        purpose: "a switch between vhost-user NICs, to compare with",
    },
    program("valgrind", "valgrind", "counts instructions"),
    program("sockperf", "sockperf", "the far end of a guest's round trips"),
];

/// Installs what demo and tests need and is missing.
pub fn run(args: &Args) -> Result<()> {
    bring(&TOOLS.iter().collect::<Vec<_>>(), args)
}

/// The same, and what only the bench needs.
pub fn run_for_bench(args: &Args) -> Result<()> {
    bring(&TOOLS.iter().chain(BENCH_TOOLS).collect::<Vec<_>>(), args)
}

fn bring(tools: &[&Tool], args: &Args) -> Result<()> {
    let mut missing: Vec<(&str, &str)> =
        tools.iter().filter(|tool| !tool.is_here()).map(|tool| (tool.package, tool.purpose)).collect();
    let qemu = installed_qemu_major();
    let want_qemu = qemu.is_none_or(|major| major < QEMU_MAJOR);
    if want_qemu {
        missing.push(("qemu-system-x86", "QEMU 10, the machine itself"));
        missing.push(("ipxe-qemu", "boot ROMs of network cards"));
    }
    let on_debian =
        std::path::Path::new("/etc/debian_version").exists() && step::find_program("apt-get").is_some();
    if !on_debian && !missing.is_empty() {
        let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
        bail!(
            "this is not Debian: install what these packages hold there, then try again: {}",
            names.join(", ")
        );
    }
    let apt = Apt::open()?;
    if missing.is_empty() {
        eprintln!("   every package is here");
    } else {
        ask(&missing, args.yes)?;
        let (qemu, tools): (Vec<&str>, Vec<&str>) =
            missing.iter().map(|(name, _)| *name).partition(|name| name.contains("qemu"));
        install(&apt, &tools, false)?;
        install(&apt, &qemu, true)?;
    }
    check(tools)?;
    qemu72::unpack(&apt)?;
    libvirt::unpack(&apt)
}

impl Tool {
    fn is_here(&self) -> bool {
        match self.seen_by {
            Seen::Program(name) => step::find_program(name).is_some(),
            Seen::File(path) => std::path::Path::new(path).exists(),
        }
    }
}

/// The major version of the `qemu-system-x86_64` on `PATH`.
fn installed_qemu_major() -> Option<u32> {
    let program = step::find_program("qemu-system-x86_64")?;
    let text = step::output(Command::new(program).arg("-version")).ok()?;
    let version = text.split_once("version ")?.1;
    version.split('.').next()?.parse().ok()
}

fn ask(missing: &[(&str, &str)], yes: bool) -> Result<()> {
    eprintln!("   These Debian packages are missing and will be installed with apt:");
    for (package, purpose) in missing {
        eprintln!("     {package:<18} {purpose}");
    }
    if yes || !std::io::stdin().is_terminal() {
        return Ok(());
    }
    eprint!("   Install them now? [Y/n] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "" | "y" | "yes" => Ok(()),
        _ => bail!("nothing was installed; install the packages above yourself, then try again"),
    }
}

fn install(apt: &Apt, packages: &[&str], backports: bool) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let bookworm = apt::codename().as_deref() == Some("bookworm");
    if bookworm {
        return as_root(&apt.install_words(packages, backports.then_some("bookworm-backports")));
    }
    as_root(&["apt-get", "-q", "update"].map(str::to_owned))?;
    let mut words = ["apt-get", "-y", "-q", "--no-install-recommends", "install"].map(str::to_owned).to_vec();
    words.extend(packages.iter().map(|name| (*name).to_owned()));
    as_root(&words)
}

/// Runs `words` as root: directly, or through sudo.
fn as_root(words: &[String]) -> Result<()> {
    let line = words.join(" ");
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("env")
    } else if step::find_program("sudo").is_some() {
        let mut sudo = Command::new("sudo");
        sudo.arg("env");
        sudo
    } else {
        bail!("installing needs root, and sudo is not here; run this as root, then try again: {line}");
    };
    eprintln!("   {line}");
    step::run(command.arg("DEBIAN_FRONTEND=noninteractive").args(words))
}

/// What was asked of apt must be there now: a package may have changed what it holds.
fn check(tools: &[&Tool]) -> Result<()> {
    for tool in tools {
        if !tool.is_here() {
            let name = match tool.seen_by {
                Seen::Program(name) | Seen::File(name) => name,
            };
            bail!("{name} is still missing although the package {} is installed", tool.package);
        }
    }
    match installed_qemu_major() {
        Some(major) if major >= QEMU_MAJOR => Ok(()),
        Some(major) => {
            bail!("qemu-system-x86_64 on PATH is version {major}; the tests need {QEMU_MAJOR} or newer")
        }
        None => bail!("qemu-system-x86_64 is not on PATH although its package is installed"),
    }
}
