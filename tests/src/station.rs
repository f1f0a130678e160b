//! A host process on the switch, through Debian's own `vde_plug`: what our programs have to get along with.
//!
//! `vde_plug LOCATOR` speaks a stream of frames on its standard input and output: two bytes of length, high byte first, then the
//! frame. A thread reads it, answers what a host would answer (`wire::answer`), and keeps the latest frames for the test. A
//! station that is told to be silent only records.

use std::collections::VecDeque;
use std::io::{BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::namespace::Namespace;
use crate::wire::{self, Identity};
use crate::{Switch, places, process};

/// How many frames are kept; older ones are forgotten.
const KEPT_FRAMES: usize = 65_536;

/// A host process on a switch.
pub struct Station {
    who: Identity,
    child: process::Owned,
    writer: Arc<Mutex<ChildStdin>>,
    heard: Arc<Heard>,
}

#[derive(Default)]
struct Heard {
    frames: Mutex<VecDeque<Vec<u8>>>,
    news: Condvar,
}

impl Heard {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Station {
    /// Host number `number` (1 to 254): 02:00:00:00:01:NUMBER, 10.0.0.NUMBER, fd00::NUMBER. It answers.
    pub fn start(switch: &Switch, number: u8) -> Result<Self> {
        Self::start_at(&switch.path(), number, true)
    }

    /// The same host on any locator that `vde_plug` knows, and silent if it is not to answer.
    pub fn start_at(locator: &Path, number: u8, answers: bool) -> Result<Self> {
        Self::spawn(&mut Command::new(places::system_program("vde_plug")?), locator, number, answers)
    }

    /// The same host in a network namespace, and one that answers.
    pub fn start_in(space: &Namespace, locator: &str, number: u8) -> Result<Self> {
        let [program, words @ ..] = space.prefix();
        let mut command = Command::new(program);
        command.args(words).arg(places::system_program("vde_plug")?);
        Self::spawn(&mut command, Path::new(locator), number, true)
    }

    fn spawn(vde_plug: &mut Command, locator: &Path, number: u8, answers: bool) -> Result<Self> {
        let who = Identity {
            mac: [2, 0, 0, 0, 1, number],
            ipv4: Ipv4Addr::new(10, 0, 0, number),
            // fd00::99 is written for host 99: the digits are the same in the guest's command line.
            ipv6: format!("fd00::{number}").parse().context("a small number makes an address")?,
        };
        let mut child = vde_plug
            .arg(locator)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("vde_plug did not start")?;
        let writer = Arc::new(Mutex::new(child.stdin.take().context("standard input was asked for")?));
        let reader = child.stdout.take().context("standard output was asked for")?;
        let heard = Arc::new(Heard::default());
        let (to_heard, to_writer) = (Arc::clone(&heard), Arc::clone(&writer));
        // Ends with vde_plug, whose end of the pipe closes when the station is dropped.
        std::thread::spawn(move || listen(reader, &who, answers, &to_heard, &to_writer));
        let station = Self { who, child: process::Owned::new(child, "vde_plug"), writer, heard };
        Ok(station)
    }

    /// Its addresses.
    pub fn identity(&self) -> Identity {
        self.who
    }

    /// The process id of `vde_plug`.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Waits until the switch lists it as plugged in.
    pub fn wait_plugged(&self, switch: &Switch) -> Result<()> {
        let mark = format!("pid={}", self.pid());
        let here = |text: &String| text.split_whitespace().any(|word| word == mark);
        let what = "vde_plug on the switch";
        switch
            .wait_ports(what, Duration::from_secs(10), |ports| {
                ports.iter().any(|port| port.endpoints.iter().any(here))
            })
            .map(drop)
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(&self.writer, frame)
    }

    /// The frames heard so far; they are forgotten by this.
    pub fn take_frames(&self) -> Vec<Vec<u8>> {
        self.heard.lock().drain(..).collect()
    }

    /// Waits for a frame that `wanted` takes, among those already heard too.
    pub fn wait_frame(&self, what: &str, limit: Duration, wanted: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let deadline = Instant::now() + limit;
        let mut frames = self.heard.lock();
        loop {
            if let Some(frame) = frames.iter().find(|frame| wanted(frame)) {
                return Ok(frame.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{what}: no such frame within {limit:?}, {} others were heard", frames.len());
            }
            frames = self.heard.news.wait_timeout(frames, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn listen(reader: ChildStdout, who: &Identity, answers: bool, heard: &Heard, writer: &Mutex<ChildStdin>) {
    let mut reader = BufReader::new(reader);
    let mut length = [0; 2];
    while reader.read_exact(&mut length).is_ok() {
        let mut frame = vec![0; usize::from(u16::from_be_bytes(length))];
        if reader.read_exact(&mut frame).is_err() {
            break;
        }
        if let Some(reply) = answers.then(|| wire::answer(who, &frame)).flatten()
            && send(writer, &reply).is_err()
        {
            break;
        }
        let mut frames = heard.lock();
        if frames.len() == KEPT_FRAMES {
            frames.pop_front();
        }
        frames.push_back(frame);
        heard.news.notify_all();
    }
}

/// One write per frame: vde_plug loses a length of which it reads only the first byte.
fn send(writer: &Mutex<ChildStdin>, frame: &[u8]) -> Result<()> {
    let length = u16::try_from(frame.len()).context("a frame is shorter than 64 KiB")?;
    let bytes = [&length.to_be_bytes(), frame].concat();
    writer.lock().unwrap_or_else(PoisonError::into_inner).write_all(&bytes).context("vde_plug takes no frame")
}
