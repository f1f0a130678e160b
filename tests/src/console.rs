//! A guest's shell on a terminal that somebody else gives, as libvirt does with the serial line of a domain.
//!
//! What is written while nobody reads is lost on such a line, and nobody knows when the guest is there. So a line is said again
//! and again until its answer comes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

/// How long a guest may take to answer, one that boots while others do.
const LIMIT: Duration = Duration::from_secs(120);
/// Time between two attempts.
const PATIENCE: Duration = Duration::from_secs(2);

/// The shell.
pub struct Console {
    terminal: File,
    /// How often it was asked for something: an answer that comes late is not that to the next question.
    questions: u32,
}

impl Console {
    /// Opens the terminal `path`.
    pub fn open(path: &str) -> Result<Self> {
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits())?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(flags).open(path.trim());
        Ok(Self { terminal: file.with_context(|| format!("the console {path}"))?, questions: 0 })
    }

    /// Says a line once.
    pub fn say(&mut self, line: &str) -> Result<()> {
        Ok(self.terminal.write_all(format!("{line}\n").as_bytes())?)
    }

    /// Runs a command again and again until it succeeds.
    pub fn until(&mut self, command: &str) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        let mut heard = String::new();
        self.questions += 1;
        let answer = format!("done {}.", self.questions);
        while Instant::now() < deadline {
            // The quotes: an echo of the line is no answer.
            self.say(&format!("{command} && echo do''ne {}.", self.questions))?;
            let pause = Instant::now() + PATIENCE;
            while Instant::now() < pause {
                let mut buffer = [0; 4096];
                match self.terminal.read(&mut buffer) {
                    Ok(length @ 1..) => heard.push_str(&String::from_utf8_lossy(&buffer[..length])),
                    _ => self.wait_readable(pause)?,
                }
                if heard.contains(&answer) {
                    return Ok(());
                }
            }
        }
        bail!("\"{command}\" did not succeed in the guest within {LIMIT:?}; it said {heard:?}")
    }

    /// The guest reaches a host.
    pub fn ping(&mut self, address: &str) -> Result<()> {
        self.until(&format!("ping -c 1 -W 1 {address} >/dev/null"))
    }

    fn wait_readable(&self, until: Instant) -> Result<()> {
        let limit = Timespec::try_from(until.saturating_duration_since(Instant::now()))?;
        poll(&mut [PollFd::new(&self.terminal, PollFlags::IN)], Some(&limit))?;
        Ok(())
    }
}
