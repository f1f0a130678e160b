//! One side of a line, standing: its network, and a process for each end.
//!
//! The sockets of the ends lie in a folder of our own.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tempfile::TempDir;
use vde_tests::{Switch, process};

use super::plan::{HEADS, Library, Line, Network, Side, Traffic};
use crate::bench::end::{End, LIMIT, Report};
use crate::bench::usage::cpu_nanoseconds;
use crate::interrupt;

/// A network has delivered all that it will when for so long nothing more arrived.
const QUIET: Duration = Duration::from_millis(30);

/// The number of the end that has the node.
const OWNER: u8 = 100;

/// Everybody, as the number of an end.
const ALL: u8 = 0;

/// What it loads otherwise.
const DEBIANS_LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libvdeplug.so.2";

/// What one side did in one round.
#[derive(Clone, Copy, Default, serde::Serialize)]
pub struct Run {
    /// Frames, and their bytes, that the receivers got in one second.
    pub frames_per_second: f64,
    pub bytes_per_second: f64,
    /// The part of what was sent, without headers, that should have arrived and did not.
    pub lost: f64,
    /// Nanoseconds of CPU, in the ends and in the kernel for them, for each frame that arrived.
    pub end_nanoseconds: f64,
    /// The same of whoever carries the frames: the switch, or the node's process.
    pub network_nanoseconds: f64,
}

/// The programs that ends are.
#[derive(Default)]
pub struct Programs {
    /// `vde-load`.
    pub over_crate: PathBuf,
    /// `load-c`.
    pub over_c: PathBuf,
    /// What it loads: our `libvdeplug.so.2`.
    pub our_library: String,
}

/// Nanoseconds of CPU.
#[derive(Default)]
struct Cpu {
    ends: u64,
    network: u64,
}

/// A side that stands. Fields are dropped in this order: the ends, the node, its folder.
pub struct Stage {
    /// Whoever has the node comes first.
    ends: Vec<End>,
    /// How many have one: none, or the first.
    node_count: usize,
    switch: Option<Switch>,
    senders: Vec<usize>,
    receivers: Vec<usize>,
    /// How many ends each frame should reach.
    copies: usize,
    _folder: TempDir,
}

impl Stage {
    /// Starts the network and its ends, and waits until those who will receive have heard those who will send.
    pub fn start(programs: &Programs, line: &Line, side: &Side) -> Result<Self> {
        // A short name: the paths of sockets are limited to 107 bytes.
        let folder = tempfile::Builder::new().prefix("vdeb").tempdir_in("/tmp")?;
        let place = folder.path().join("n");
        let switch = matches!(side.network, Network::VdeSwitch).then(Switch::start).transpose()?;
        let mut ends = Vec::new();
        if let Network::Node(scheme, owner) = side.network {
            let locator = format!("{scheme}://{}", place.display());
            ends.push(start_end(programs, owner, &locator, side.size, OWNER, ALL)?);
        }
        let locator = match (side.network, &switch) {
            (Network::Pair(scheme), _) => format!("{scheme}://{}", place.display()),
            (_, Some(switch)) => switch.path().display().to_string(),
            _ => place.display().to_string(),
        };
        let node_count = ends.len();
        let (numbers, senders, receivers) = cast(line.traffic, node_count);
        for (own, peer) in numbers {
            interrupt::check()?;
            ends.push(start_end(programs, side.ends, &locator, side.size, own, peer)?);
        }
        let copies = receivers.len() / senders.len().min(receivers.len());
        let mut stage = Self { ends, node_count, switch, senders, receivers, copies, _folder: folder };
        stage.acquaint()?;
        Ok(stage)
    }

    /// Lets everybody speak until everybody who will receive was reached.
    fn acquaint(&mut self) -> Result<()> {
        process::wait_until("every end has heard another", LIMIT, || {
            interrupt::check()?;
            for end in &mut self.ends {
                end.ask("hello")?;
            }
            let counts = self.counts()?;
            Ok(counts.iter().all(|count| count.frames > 0).then_some(()))
        })
    }

    /// One round: the senders send for so long.
    pub fn run(&mut self, time: Duration) -> Result<Run> {
        self.wait_quiet()?;
        for number in &self.receivers {
            self.ends[*number].ask("mark")?;
        }
        let before = self.cpu()?;
        for number in &self.senders {
            self.ends[*number].tell(&format!("send {}", time.as_millis()))?;
        }
        let (mut sent, mut due) = (0, 0);
        for number in &self.senders {
            let report = self.ends[*number].answer("send", time + LIMIT)?;
            sent += report.frames;
            due += carried(&report) * self.copies as u64;
        }
        let counts = self.wait_quiet()?;
        let after = self.cpu()?;
        let frames: u64 = counts.iter().map(|count| count.frames).sum();
        let bytes: u64 = counts.iter().map(|count| count.bytes).sum();
        let span = counts.iter().map(|count| count.nanoseconds).max().unwrap_or_default();
        if frames == 0 || span == 0 {
            bail!("none of {sent} frames arrived");
        }
        let carried: u64 = counts.iter().map(carried).sum();
        Ok(Run {
            frames_per_second: frames as f64 * 1e9 / span as f64,
            bytes_per_second: bytes as f64 * 1e9 / span as f64,
            lost: 1.0 - carried as f64 / due as f64,
            end_nanoseconds: (after.ends - before.ends) as f64 / frames as f64,
            network_nanoseconds: (after.network - before.network) as f64 / frames as f64,
        })
    }

    fn counts(&mut self) -> Result<Vec<Report>> {
        let mut counts = Vec::new();
        for number in &self.receivers {
            counts.push(self.ends[*number].ask("count")?);
        }
        Ok(counts)
    }

    /// Waits until nothing more arrives, and gives what did.
    fn wait_quiet(&mut self) -> Result<Vec<Report>> {
        let mut counts = self.counts()?;
        let deadline = Instant::now() + LIMIT;
        loop {
            std::thread::sleep(QUIET);
            let later = self.counts()?;
            if later.iter().zip(&counts).all(|(later, count)| later.frames == count.frames) {
                return Ok(later);
            }
            if Instant::now() > deadline {
                bail!("frames go on arriving though nobody sends any");
            }
            counts = later;
        }
    }

    /// What the ends' processes used so far, and what the network's did.
    fn cpu(&self) -> Result<Cpu> {
        let mut cpu = Cpu::default();
        for end in &self.ends[self.node_count..] {
            cpu.ends += cpu_nanoseconds(end.pid())?;
        }
        for end in &self.ends[..self.node_count] {
            cpu.network += cpu_nanoseconds(end.pid())?;
        }
        if let Some(switch) = &self.switch {
            cpu.network += cpu_nanoseconds(switch.pid())?;
        }
        Ok(cpu)
    }
}

/// The ends besides the owner, each with its number and its peer's, and which of all ends send and receive. The first
/// of them will be end `first` of the list.
fn cast(traffic: Traffic, first: usize) -> (Vec<(u8, u8)>, Vec<usize>, Vec<usize>) {
    match traffic {
        Traffic::Pairs(count) => (
            (0..count)
                .flat_map(|pair| [(2 * pair + 1, 2 * pair + 2), (2 * pair + 2, 2 * pair + 1)])
                .collect(),
            (0..usize::from(count)).map(|pair| first + 2 * pair).collect(),
            (0..usize::from(count)).map(|pair| first + 2 * pair + 1).collect(),
        ),
        Traffic::ToAll(count) => (
            (0..=count).map(|number| (number + 1, ALL)).collect(),
            vec![first],
            (1..=usize::from(count)).map(|number| first + number).collect(),
        ),
        Traffic::ToOwner(count) => (
            (0..count).map(|number| (number + 1, OWNER)).collect(),
            (0..usize::from(count)).map(|number| first + number).collect(),
            vec![0],
        ),
        Traffic::FromOwner(count) => (
            (0..count).map(|number| (number + 1, OWNER)).collect(),
            vec![0],
            (0..usize::from(count)).map(|number| first + number).collect(),
        ),
    }
}

/// Bytes behind the headers: as many for a frame as for the segments that were made of it.
fn carried(report: &Report) -> u64 {
    report.bytes.saturating_sub(report.frames * HEADS as u64)
}

/// Starts the process of one end.
fn start_end(
    programs: &Programs,
    library: Library,
    locator: &str,
    size: usize,
    own: u8,
    peer: u8,
) -> Result<End> {
    let (program, word) = match library {
        Library::Crate => (&programs.over_crate, "plug"),
        Library::CrateBig => (&programs.over_crate, "big"),
        Library::Raw => (&programs.over_crate, "raw"),
        Library::OurC => (&programs.over_c, programs.our_library.as_str()),
        Library::Debian => (&programs.over_c, DEBIANS_LIBRARY),
    };
    let mut command = Command::new(program);
    command.args([word, locator, &size.to_string(), &own.to_string(), &peer.to_string()]);
    End::start(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cast_every_receiver_has_a_sender() {
        let (numbers, senders, receivers) = cast(Traffic::Pairs(2), 1);
        assert_eq!(numbers, [(1, 2), (2, 1), (3, 4), (4, 3)]);
        assert_eq!((senders, receivers), (vec![1, 3], vec![2, 4]));
        let (numbers, senders, receivers) = cast(Traffic::ToAll(2), 1);
        assert_eq!(numbers, [(1, ALL), (2, ALL), (3, ALL)]);
        assert_eq!((senders, receivers), (vec![1], vec![2, 3]));
        let (numbers, senders, receivers) = cast(Traffic::ToOwner(2), 1);
        assert_eq!(numbers, [(1, OWNER), (2, OWNER)]);
        assert_eq!((senders, receivers), (vec![1, 2], vec![0]));
        let (_, senders, receivers) = cast(Traffic::FromOwner(2), 1);
        assert_eq!((senders, receivers), (vec![0], vec![1, 2]));
    }
}
