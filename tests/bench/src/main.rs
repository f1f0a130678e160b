//! `vde-load`: one end of a measured network, which sends frames when it is told to and counts those that arrive.
//!
//! `cargo xtask bench` starts one process for each end and talks to it in lines:
//!
//! | asked on standard input | answered on standard output |
//! |---|---|
//! | (at the start) | `ready` |
//! | `hello` | `hello`, when one frame to everybody went out, by which a network learns where we are |
//! | `mark` | `mark`; the count begins anew |
//! | `count` | `count FRAMES BYTES NANOSECONDS`: what arrived, and from its first frame to its last |
//! | `send MILLISECONDS [RATE]` | `send FRAMES BYTES NANOSECONDS`: what went meanwhile, as fast as it would go, or so many frames in a second |
//!
//! The end of standard input ends the process. While it is not sending it receives, whatever it was told: the owner
//! of a node of the original library must, or nobody could join.
//!
//! `load.c` is the same program over the C library. Both are as fast as their library allows and do
//! nothing else: no clock is read for a frame, frames are not looked at, buffers are made once.

#![deny(unsafe_code)]

mod frame;
mod plug;
mod raw;

use std::io::{BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use frame::Frame;

/// Frames per call.
const BATCH: usize = 64;

/// Room for a frame of the longest that networks carry. An odd number of cache lines, or the beginnings of all frames
/// would compete for a few of them.
const ROOM: usize = 145 * 64;

/// The same for a frame that is still to be segmented.
const BIG_ROOM: usize = 1025 * 64;

/// How long a sender waits for room before it looks at the clock.
const ROOM_LIMIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// How long a sender that has a rate rests when no frame is due.
const PACE: Duration = Duration::from_micros(50);

/// One end of a network.
trait End {
    fn fd(&self) -> BorrowedFd<'_>;

    /// Sends the frame up to `count` times, at most [`BATCH`], and says how often it went; fewer means
    /// "again".
    fn send(&mut self, frame: &Frame, count: usize) -> Result<usize>;

    /// Receives what is there, at most [`BATCH`] frames: how many, and their bytes.
    fn recv(&mut self) -> Result<(usize, usize)>;
}

/// What arrived since the mark.
#[derive(Default)]
struct Arrived {
    frames: usize,
    bytes: usize,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Arrived {
    /// Takes all that is there. The clock is read when that was all, which is when there is time for it.
    fn take(&mut self, end: &mut dyn End) -> Result<()> {
        let before = self.frames;
        loop {
            let (frames, bytes) = end.recv()?;
            if frames > 0 && self.first.is_none() {
                self.first = Some(Instant::now());
            }
            self.frames += frames;
            self.bytes += bytes;
            if frames < BATCH {
                break;
            }
        }
        if self.frames > before {
            self.last = Some(Instant::now());
        }
        Ok(())
    }

    fn line(&self, word: &str) -> String {
        let span = self.first.zip(self.last).map_or(Duration::ZERO, |(first, last)| last - first);
        format!("{word} {} {} {}", self.frames, self.bytes, span.as_nanos())
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [library, locator, size, own, peer] = words.as_slice() else {
        bail!("usage: vde-load plug|big|raw LOCATOR FRAME-SIZE OWN-NUMBER PEER-NUMBER");
    };
    let (own, peer): (u8, u8) = (own.parse()?, peer.parse()?);
    let frame = Frame::new(size.parse()?, own, Some(peer).filter(|peer| *peer != 0))?;
    let mut end: Box<dyn End> = match library.as_str() {
        "plug" => Box::new(plug::Plug::open(locator, false)?),
        "big" => Box::new(plug::Plug::open(locator, true)?),
        "raw" => Box::new(raw::Raw::open(locator, own, peer)?),
        other => bail!("there is no way to send called {other}; take plug, big or raw"),
    };
    answer("ready")?;
    serve(end.as_mut(), &frame)
}

/// Receives, and does what it is told, until its input ends.
fn serve(end: &mut dyn End, frame: &Frame) -> Result<()> {
    let stdin = std::io::stdin();
    let mut arrived = Arrived::default();
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(end.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN),
        ];
        poll(&mut fds, None)?;
        let (data, told) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if data {
            arrived.take(end)?;
        }
        if !told {
            continue;
        }
        let mut line = String::new();
        // One line is written at a time, so nothing stays behind in the buffer where poll would not see it.
        if stdin.lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("hello"), None) => {
                end.send(&frame.to_everybody(), 1)?;
                answer("hello")?;
            }
            (Some("mark"), None) => {
                arrived = Arrived::default();
                answer("mark")?;
            }
            (Some("count"), None) => answer(&arrived.line("count"))?,
            (Some("send"), Some(time)) => {
                let time = Duration::from_millis(time.parse().context("send wants milliseconds")?);
                let rate = words.next().map(str::parse).transpose().context("a rate is a number")?;
                let sent = match rate {
                    None => send_for(end, frame, time)?,
                    Some(rate) => send_at(end, frame, time, rate)?,
                };
                answer(&sent.line("send"))?;
            }
            _ => bail!("there is no order \"{}\"", line.trim()),
        }
    }
}

/// Sends as fast as it goes.
fn send_for(end: &mut dyn End, frame: &Frame, time: Duration) -> Result<Arrived> {
    let start = Instant::now();
    let mut sent = 0;
    let mut now = start;
    while now - start < time {
        // The clock is read once for several batches.
        for _ in 0..4 {
            let went = end.send(frame, BATCH)?;
            sent += went;
            if went < BATCH {
                poll(&mut [PollFd::from_borrowed_fd(end.fd(), PollFlags::OUT)], Some(&ROOM_LIMIT))?;
            }
        }
        now = Instant::now();
    }
    Ok(Arrived { frames: sent, bytes: sent * frame.len(), first: Some(start), last: Some(now) })
}

/// Sends so many frames in a second, as evenly as a thread wakes up. What there is no room for is not sent later.
fn send_at(end: &mut dyn End, frame: &Frame, time: Duration, rate: u64) -> Result<Arrived> {
    let start = Instant::now();
    let (mut sent, mut offered, mut now) = (0, 0, start);
    while now - start < time {
        let due = usize::try_from((now - start).as_micros() * u128::from(rate) / 1_000_000)?;
        match (due - offered).min(BATCH) {
            0 => std::thread::sleep(PACE),
            count => {
                sent += end.send(frame, count)?;
                offered += count;
            }
        }
        now = Instant::now();
    }
    Ok(Arrived { frames: sent, bytes: sent * frame.len(), first: Some(start), last: Some(now) })
}

fn answer(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}
