//! One end of a network: a process that sends frames when it is told to, and counts those that arrive.
//!
//! It is told what to do in lines on its standard input (`tests/bench/src/main.rs` lists them), and ends with it,
//! however we end.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vde_tests::process;

use crate::{places, programs, step};

/// For everything but sending, which takes as long as it was asked to.
pub const LIMIT: Duration = Duration::from_secs(10);

/// The process.
pub struct End {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    child: process::Owned,
}

/// Numbers that an end reports of its frames.
#[derive(Clone, Copy, Default)]
pub struct Report {
    pub frames: u64,
    pub bytes: u64,
    pub nanoseconds: u64,
}

/// Builds the program that ends are over our crate, and says where it is.
pub fn build() -> Result<PathBuf> {
    step::run(&mut programs::cargo(&["build", "--release", "--locked", "-p", "vde-bench"]))?;
    Ok(places::target("release/vde-load"))
}

impl End {
    /// Starts it and waits until it is plugged in.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let child = process::Owned::new(child, "an end of the network");
        let (stdin, stdout) = stdin.zip(stdout).context("a child without pipes")?;
        let mut end = Self { stdin, stdout: BufReader::new(stdout), child };
        end.answer("ready", LIMIT)?;
        Ok(end)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Gives an order that is answered at once.
    pub fn ask(&mut self, order: &str) -> Result<Report> {
        self.tell(order)?;
        self.answer(order, LIMIT)
    }

    /// Gives an order.
    pub fn tell(&mut self, order: &str) -> Result<()> {
        writeln!(self.stdin, "{order}").context("an end of the network is gone")
    }

    /// Waits for the answer that begins with `word`. Nothing is in the buffer before: each order has one answer of
    /// one line.
    pub fn answer(&mut self, word: &str, limit: Duration) -> Result<Report> {
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
