//! Children with deadlines, which do not outlive the value that holds them.

use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// A child that is killed when this is dropped.
pub struct Owned {
    child: Child,
    name: String,
    status: Option<ExitStatus>,
}

impl Owned {
    /// Takes charge of `child`, which messages call `name`.
    pub fn new(child: Child, name: &str) -> Self {
        Self { child, name: name.to_owned(), status: None }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The child itself, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Its exit status if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status)
    }

    /// Sends a signal, unless the child is gone.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none() {
            let pid = Pid::from_child(&self.child);
            kill_process(pid, signal).with_context(|| format!("{} cannot be signalled", self.name))?;
        }
        Ok(())
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended()? {
            return Ok(status);
        }
        let handle = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let limit_spec =
            Timespec { tv_sec: i64::try_from(limit.as_secs())?, tv_nsec: limit.subsec_nanos().into() };
        // A signal for us may end the wait early: the end of the child decides.
        poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&limit_spec))?;
        match self.ended()? {
            Some(status) => Ok(status),
            None => bail!("{} (pid {}) has not ended within {limit:?}", self.name, self.pid()),
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Asks `done` again and again until it gives something, or fails with `what` when `limit` has passed.
pub fn wait_until<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        // Its last look begins when time is up: it may have had to wait itself.
        let is_last = Instant::now() >= deadline;
        if let Some(value) = done()? {
            return Ok(value);
        }
        if is_last {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(ASK_AGAIN);
    }
}

const ASK_AGAIN: Duration = Duration::from_millis(10);

/// The last lines of a log, for messages.
pub fn tail(file: &Path, lines: usize) -> String {
    let text =
        std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
