//! One side of a line, standing: its network, and a process for each end.
//!
//! The ends are told what to do in lines on their standard input (`tests/bench/src/main.rs` lists them) and end with
//! it, however we end. Their sockets lie in a folder of our own.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use vde_tests::{Switch, process};

use super::figures::Run;
use super::plan::{HEADS, Library, Line, Network, Side, Traffic};
use crate::interrupt;

/// For everything but sending, which takes as long as it was asked to.
const LIMIT: Duration = Duration::from_secs(10);

/// A network has delivered all that it will when for so long nothing more arrived.
const QUIET: Duration = Duration::from_millis(30);

/// The number of the end that has the node.
const OWNER: u8 = 100;

/// Everybody, as the number of an end.
const ALL: u8 = 0;

/// What it loads otherwise.
const DEBIANS_LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libvdeplug.so.2";

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

/// One end: its process.
struct End {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    child: process::Owned,
}

/// Numbers that an end reports of its frames.
#[derive(Clone, Copy, Default)]
struct Report {
    frames: u64,
    bytes: u64,
    nanoseconds: u64,
}

impl Report {
    /// Bytes behind the headers: as many for a frame as for the segments that were made of it.
    fn carried(&self) -> u64 {
        self.bytes.saturating_sub(self.frames * HEADS as u64)
    }
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
            ends.push(End::start(programs, owner, &locator, side.size, OWNER, ALL)?);
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
            ends.push(End::start(programs, side.ends, &locator, side.size, own, peer)?);
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
                end.ask("hello", LIMIT)?;
            }
            let counts = self.counts()?;
            Ok(counts.iter().all(|count| count.frames > 0).then_some(()))
        })
    }

    /// One round: the senders send for so long.
    pub fn run(&mut self, time: Duration) -> Result<Run> {
        self.wait_quiet()?;
        for number in &self.receivers {
            self.ends[*number].ask("mark", LIMIT)?;
        }
        let before = self.cpu()?;
        for number in &self.senders {
            self.ends[*number].tell(&format!("send {}", time.as_millis()))?;
        }
        let (mut sent, mut due) = (0, 0);
        for number in &self.senders {
            let report = self.ends[*number].answer("send", time + LIMIT)?;
            sent += report.frames;
            due += report.carried() * self.copies as u64;
        }
        let counts = self.wait_quiet()?;
        let after = self.cpu()?;
        let frames: u64 = counts.iter().map(|count| count.frames).sum();
        let bytes: u64 = counts.iter().map(|count| count.bytes).sum();
        let span = counts.iter().map(|count| count.nanoseconds).max().unwrap_or_default();
        if frames == 0 || span == 0 {
            bail!("none of {sent} frames arrived");
        }
        let carried: u64 = counts.iter().map(Report::carried).sum();
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
            counts.push(self.ends[*number].ask("count", LIMIT)?);
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
            cpu.ends += cpu_nanoseconds(end.child.pid())?;
        }
        for end in &self.ends[..self.node_count] {
            cpu.network += cpu_nanoseconds(end.child.pid())?;
        }
        if let Some(switch) = &self.switch {
            cpu.network += cpu_nanoseconds(switch.pid())?;
        }
        Ok(cpu)
    }
}

/// How long all threads of a process ran so far.
fn cpu_nanoseconds(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let used = text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok());
        sum += used.context("the kernel does not say how long a thread ran")?;
    }
    Ok(sum)
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

impl End {
    fn start(
        programs: &Programs,
        library: Library,
        locator: &str,
        size: usize,
        own: u8,
        peer: u8,
    ) -> Result<Self> {
        let (program, word) = match library {
            Library::Crate => (&programs.over_crate, "plug"),
            Library::CrateBig => (&programs.over_crate, "big"),
            Library::Raw => (&programs.over_crate, "raw"),
            Library::OurC => (&programs.over_c, programs.our_library.as_str()),
            Library::Debian => (&programs.over_c, DEBIANS_LIBRARY),
        };
        let mut command = Command::new(program);
        command.args([word, locator, &size.to_string(), &own.to_string(), &peer.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let child = process::Owned::new(child, &format!("end {own}"));
        let (stdin, stdout) = stdin.zip(stdout).context("a child without pipes")?;
        let mut end = Self { stdin, stdout: BufReader::new(stdout), child };
        end.answer("ready", LIMIT)?;
        Ok(end)
    }

    fn ask(&mut self, order: &str, limit: Duration) -> Result<Report> {
        self.tell(order)?;
        self.answer(order, limit)
    }

    fn tell(&mut self, order: &str) -> Result<()> {
        writeln!(self.stdin, "{order}").context("an end of the network is gone")
    }

    /// Waits for the answer that begins with `word`. Nothing is in the buffer before: each order has one answer of
    /// one line.
    fn answer(&mut self, word: &str, limit: Duration) -> Result<Report> {
        let limit = Timespec::try_from(limit)?;
        // A signal for us ends the wait early; then the line is waited for without limit, and the signal's
        // thread ends the child.
        if let Ok(0) = poll(&mut [PollFd::new(self.stdout.get_ref(), PollFlags::IN)], Some(&limit)) {
            bail!("an end of the network does not answer \"{word}\" in time");
        }
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        if words.next() != Some(word) {
            bail!("an end of the network answers \"{}\" instead of \"{word}\"", line.trim());
        }
        let mut number = || words.next().map_or(Ok(0), str::parse);
        Ok(Report { frames: number()?, bytes: number()?, nanoseconds: number()? })
    }
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
