//! Open vSwitch over DPDK: one bridge with two vhost-user ports, as a switch between two NICs.
//!
//! It has its own database and sockets in a folder, so that one that the machine runs is not touched. Its ports are
//! clients: they connect to the sockets of their front ends, and try again until these are there. It wants huge pages: the
//! machine's number of them is raised meanwhile.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use vde_tests::process;

use crate::step;

const LIMIT: Duration = Duration::from_secs(30);

/// Debian has two of that name; this one has DPDK.
const VSWITCHD: &str = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk";

/// How many huge pages of 2 MiB it gets; its pools of buffers take what they find.
const PAGES: u64 = 384;

const PAGES_FILE: &str = "/proc/sys/vm/nr_hugepages";

/// The two daemons; they are killed when this is dropped.
pub struct Ovs {
    vswitchd: process::Owned,
    _database: process::Owned,
    _pages: HugePages,
}

/// More huge pages; as many as before when this is dropped.
struct HugePages {
    before: u64,
}

impl HugePages {
    fn take() -> Result<Self> {
        let before: u64 = std::fs::read_to_string(PAGES_FILE)?.trim().parse()?;
        std::fs::write(PAGES_FILE, (before + PAGES).to_string())?;
        let pages = Self { before };
        let now: u64 = std::fs::read_to_string(PAGES_FILE)?.trim().parse()?;
        ensure!(now == before + PAGES, "the machine has no memory left for {PAGES} huge pages");
        Ok(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Err(error) = std::fs::write(PAGES_FILE, self.before.to_string()) {
            eprintln!("{PAGES_FILE} stays raised: {error}");
        }
    }
}

impl Ovs {
    /// Starts it in `folder`, its polling thread on the CPU `core`, with a port for each socket.
    pub fn start(folder: &Path, core: u32, sockets: &[PathBuf]) -> Result<Self> {
        let pages = HugePages::take()?;
        let (file, socket) = (folder.join("db"), folder.join("db.sock"));
        let schema = "/usr/share/openvswitch/vswitch.ovsschema";
        step::output(Command::new("ovsdb-tool").arg("create").arg(&file).arg(schema))?;
        let database = daemon(
            folder,
            Command::new("ovsdb-server").arg(&file).arg(format!("--remote=punix:{}", socket.display())),
        )?;
        process::wait_until("the socket of ovsdb-server", LIMIT, || Ok(socket.exists().then_some(())))?;
        let remote = format!("unix:{}", socket.display());
        let set = |words: &[&str]| {
            step::output(Command::new("ovs-vsctl").arg(format!("--db={remote}")).arg("--no-wait").args(words))
        };
        set(&["init"])?;
        let mask = format!("other_config:pmd-cpu-mask={:#x}", 1 << core);
        let lcore = format!("other_config:dpdk-lcore-mask={:#x}", 1 << core);
        let extra = "other_config:dpdk-extra=-m 512 --no-pci --no-telemetry";
        set(&["set", "Open_vSwitch", ".", "other_config:dpdk-init=true", extra, &mask, &lcore])?;
        set(&["add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev"])?;
        for (number, path) in sockets.iter().enumerate() {
            let name = format!("v{number}");
            let path = format!("options:vhost-server-path={}", path.display());
            set(&[
                "add-port",
                "br0",
                &name,
                "--",
                "set",
                "Interface",
                &name,
                "type=dpdkvhostuserclient",
                &path,
            ])?;
        }
        let mut command = Command::new(VSWITCHD);
        command.arg(&remote).arg(format!("--pidfile={}", folder.join("pid").display()));
        command.arg(format!("--unixctl={}", folder.join("ctl").display()));
        Ok(Self { vswitchd: daemon(folder, &mut command)?, _database: database, _pages: pages })
    }

    /// Stops it, or lets it go on.
    pub fn pause(&mut self, yes: bool) -> Result<()> {
        self.vswitchd.signal(if yes { Signal::STOP } else { Signal::CONT })
    }
}

fn daemon(folder: &Path, command: &mut Command) -> Result<process::Owned> {
    // Where it would otherwise look for what belongs to the machine's own.
    command.env("OVS_RUNDIR", folder).env("OVS_LOGDIR", folder).env("OVS_DBDIR", folder);
    let log = std::fs::File::create(folder.join("log"))?;
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn()?;
    Ok(process::Owned::new(child, &name))
}
