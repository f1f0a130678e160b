//! What a virtio-user front end is connected to.
//!
//! Two CPUs are used, in all cases alike: the front end has CPU 0; the back end, and whatever the frames go to or come from,
//! has CPU 1.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use vde_tests::namespace::Namespace;
use vde_tests::{places, process};

use super::ovs::Ovs;
use super::testpmd::{self, Options, Testpmd};
use crate::bench::back_end::{BackEnd, Nic};
use crate::bench::end::{End, LIMIT};
use crate::bench::usage::cpu_nanoseconds;

pub const FRONT_CORE: u32 = 0;
const BACK_CORE: u32 = 1;
pub const PINNED: [&str; 3] = ["taskset", "-c", "1"];

/// Bursts of 32 frames that circulate in each direction between two NICs; less than the ring of 256 holds.
const BURSTS: u32 = 4;

/// How long it takes until the rates are those that stay.
const WARM_UP: Duration = Duration::from_millis(300);

/// How a front end's rings are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    Split,
    Packed,
}

/// Who is behind the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    /// Our back end.
    Ours,
    /// `testpmd` over DPDK's vhost library.
    Dpdk,
    /// Open vSwitch over DPDK.
    Ovs,
    /// No rings: system calls on a socket, in batches prepared once.
    Bare,
}

/// Where frames go to or come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Out of the guest, and gone.
    Null,
    /// Into the guest, from nowhere.
    Source,
    /// Between two NICs of one back end, which is a switch.
    Crossed,
    /// Out of the guest, into an interface of the kernel.
    Tap,
    /// Out of the guest, into a VDE datagram socket whose other end swallows them.
    SocketOut,
    /// The other way: the other end of the socket sends as fast as it can.
    SocketIn,
}

/// One load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub way: Way,
    pub size: usize,
    pub ring: Ring,
    pub queues: u16,
}

/// A front end with what is behind it. Fields are dropped in this order.
pub struct Standing {
    load: Load,
    front: Option<Testpmd>,
    ours: Option<BackEnd>,
    dpdk: Option<Testpmd>,
    ovs: Option<Ovs>,
    /// The two ends of a socket, or the one that is not the back end: who sends comes first.
    ends: Vec<End>,
    _space: Option<Namespace>,
    _folder: TempDir,
}

impl Standing {
    /// Starts everything, and leaves it paused.
    pub fn start(load: Load, back: Back, number: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("vdev").tempdir_in("/tmp")?;
        let space = (load.way == Way::Tap).then(Namespace::new).transpose()?;
        let mut network = Self {
            load,
            front: None,
            ours: None,
            dpdk: None,
            ovs: None,
            ends: Vec::new(),
            _space: None,
            _folder: folder,
        };
        let folder = network._folder.path().to_path_buf();
        let count = if load.way == Way::Crossed { 2 } else { 1 };
        let sockets: Vec<PathBuf> = (0..count).map(|nic| folder.join(format!("s{nic}"))).collect();
        match back {
            Back::Ours => network.start_ours(&folder, &sockets, space.as_ref())?,
            Back::Dpdk => network.dpdk = Some(start_dpdk(load, &sockets, space.as_ref(), number)?),
            Back::Ovs => network.ovs = Some(Ovs::start(&folder, BACK_CORE, &sockets)?),
            Back::Bare => network.start_bare(&folder)?,
        }
        network._space = space;
        if back != Back::Bare {
            process::wait_until("the sockets of the back end", LIMIT, || {
                Ok((back == Back::Ovs || sockets.iter().all(|socket| socket.exists())).then_some(()))
            })?;
            network.front = Some(start_front(load, &sockets, back == Back::Ovs, number)?);
        }
        if let Some(front) = &mut network.front {
            front.wait_ready()?;
        }
        network.pause(true)?;
        Ok(network)
    }

    fn start_ours(&mut self, folder: &Path, sockets: &[PathBuf], space: Option<&Namespace>) -> Result<()> {
        let load = self.load;
        let node = folder.join("n").display().to_string();
        let link = match load.way {
            Way::Null => "null://".to_owned(),
            Way::Source => format!("source://{}", load.size),
            Way::Crossed => format!("switch://{node}"),
            Way::Tap => "tap://t0[up]".to_owned(),
            Way::SocketOut | Way::SocketIn => format!("ptp://{node}"),
        };
        let nics: Vec<Nic> = sockets
            .iter()
            .map(|socket| Nic { socket: socket.clone(), link: link.clone(), queues: load.queues })
            .collect();
        let program = match load.way {
            Way::Source => places::made("release/vde-source")?,
            _ => places::own_program("vhost-user-vde")?,
        };
        let mut launcher = space.map(|space| space.prefix().to_vec()).unwrap_or_default();
        launcher.extend(PINNED);
        let back_end = BackEnd::start(&program, &launcher, &nics)?;
        if load.ring == Ring::Packed {
            ensure!(back_end.features(&nics[0].socket)? & PACKED != 0, "the back end offers no packed rings");
        }
        self.ours = Some(back_end);
        if matches!(load.way, Way::SocketOut | Way::SocketIn) {
            let mut other = start_end("plug", &link, load.size, 2, 1)?;
            other.ask("hello")?;
            self.ends.push(other);
        }
        Ok(())
    }

    fn start_bare(&mut self, folder: &Path) -> Result<()> {
        let stem = folder.join("raw").display().to_string();
        for (own, peer) in [(1, 2), (2, 1)] {
            self.ends.push(start_end("raw", &stem, self.load.size, own, peer)?);
        }
        // Each connects to the other when it is told to speak, if that one is there.
        process::wait_until("two sockets are connected", LIMIT, || {
            let mut heard = true;
            for end in &mut self.ends {
                end.ask("hello")?;
            }
            for end in &mut self.ends {
                heard &= end.ask("count")?.frames > 0;
            }
            Ok(heard.then_some(()))
        })
    }

    /// One round: frames per second in millions, or nanoseconds of CPU for each.
    pub fn run(&mut self, time: Duration) -> Result<f64> {
        self.pause(false)?;
        let figure = match self.load.way {
            Way::SocketOut | Way::SocketIn => self.run_socket(time),
            _ => self.run_rings(time),
        };
        self.pause(true)?;
        figure
    }

    fn run_rings(&mut self, time: Duration) -> Result<f64> {
        let load = self.load;
        let front = self.front.as_mut().context("a front end")?;
        front.begin(if load.way == Way::Crossed { BURSTS } else { 0 })?;
        std::thread::sleep(WARM_UP);
        let before = front.counts()?;
        std::thread::sleep(time);
        let (rx, tx) = front.counts()?.rates(before);
        front.end()?;
        let rate = match load.way {
            Way::Source | Way::Crossed => rx,
            _ => tx,
        };
        ensure!(rate > 0.0, "no frame passed");
        Ok(rate / 1e6)
    }

    /// CPU of the back end, or of the bare loop in its place.
    fn run_socket(&mut self, time: Duration) -> Result<f64> {
        let out = self.load.way == Way::SocketOut;
        if let Some(front) = &mut self.front {
            front.begin(0)?;
            std::thread::sleep(WARM_UP);
        }
        let pid = match (&self.ours, self.ends.as_slice()) {
            (Some(back_end), _) => back_end.pid(),
            (None, [sender, receiver]) => {
                if out {
                    sender.pid()
                } else {
                    receiver.pid()
                }
            }
            _ => bail!("nobody to measure"),
        };
        let before = (cpu_nanoseconds(pid)?, self.passed()?);
        match (out, self.ends.as_mut_slice()) {
            // The front end sends meanwhile.
            (true, [_other]) => std::thread::sleep(time),
            (_, [sender, ..]) => {
                sender.tell(&format!("send {}", time.as_millis()))?;
                sender.answer("send", time + LIMIT)?;
            }
            _ => bail!("no end"),
        }
        let after = (cpu_nanoseconds(pid)?, self.passed()?);
        if let Some(front) = &mut self.front {
            front.end()?;
        }
        let frames = after.1.saturating_sub(before.1);
        ensure!(frames > 0, "no frame passed");
        Ok((after.0 - before.0) as f64 / frames as f64)
    }

    /// Frames that came through so far.
    fn passed(&mut self) -> Result<u64> {
        match (self.load.way, &mut self.front) {
            (Way::SocketIn, Some(front)) => Ok(front.counts()?.rx),
            _ => Ok(self.ends.last_mut().context("an end")?.ask("count")?.frames),
        }
    }

    /// Those who never sleep are stopped, or let go on.
    fn pause(&mut self, yes: bool) -> Result<()> {
        if let Some(back) = &mut self.dpdk {
            back.pause(yes)?;
        }
        if let Some(back) = &mut self.ovs {
            back.pause(yes)?;
        }
        if let Some(front) = &mut self.front {
            front.pause(yes)?;
        }
        Ok(())
    }
}

/// Feature bit of packed rings (virtio 1.2 § 6).
const PACKED: u64 = 1 << 34;

fn start_front(load: Load, sockets: &[PathBuf], serves: bool, number: usize) -> Result<Testpmd> {
    let device = |(nic, socket): (usize, &PathBuf)| {
        let packed = u8::from(load.ring == Ring::Packed);
        let server = if serves { ",server=1" } else { "" };
        format!("{},packed_vq={packed}{server}", testpmd::virtio_user(nic, socket, load.queues))
    };
    let mode = match load.way {
        Way::Null | Way::Tap | Way::SocketOut => "txonly",
        Way::Source | Way::SocketIn => "rxonly",
        Way::Crossed => "io",
    };
    let devices = sockets.iter().enumerate().map(device).collect();
    let Load { queues, size, .. } = load;
    let options = Options { launcher: &[], core: FRONT_CORE, devices, mode, queues, size, starts: false };
    Testpmd::start(&format!("front{number}"), &options)
}

fn start_dpdk(load: Load, sockets: &[PathBuf], space: Option<&Namespace>, number: usize) -> Result<Testpmd> {
    let vhost = |(nic, socket): (usize, &PathBuf)| {
        format!("net_vhost{nic},iface={},queues={}", socket.display(), load.queues)
    };
    let mut devices: Vec<String> = sockets.iter().enumerate().map(vhost).collect();
    let mode = match load.way {
        Way::Null => "rxonly",
        Way::Source => "txonly",
        Way::Crossed => "io",
        Way::Tap => {
            devices.push("net_tap0,iface=t0".to_owned());
            "io"
        }
        Way::SocketOut | Way::SocketIn => bail!("DPDK knows no VDE socket"),
    };
    let prefix = space.map(Namespace::prefix);
    let launcher: &[&str] = prefix.as_ref().map_or(&[], |words| &words[..]);
    let Load { queues, size, .. } = load;
    let options = Options { launcher, core: BACK_CORE, devices, mode, queues, size, starts: true };
    let mut testpmd = Testpmd::start(&format!("back{number}"), &options)?;
    testpmd.wait_ready()?;
    Ok(testpmd)
}

fn start_end(library: &str, locator: &str, size: usize, own: u8, peer: u8) -> Result<End> {
    let mut command = Command::new(PINNED[0]);
    command.args(&PINNED[1..]).arg(places::made("release/vde-load")?);
    command.args([library, locator, &size.to_string(), &own.to_string(), &peer.to_string()]);
    End::start(&mut command)
}
