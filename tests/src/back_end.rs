//! The back end of a machine: a supervisor and its worker, by the directory that both have among their words.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::wait_until;

const LIMIT: Duration = Duration::from_secs(60);

/// A back end that was started with a supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackEnd {
    /// The process that was started.
    pub supervisor: u32,
    /// The machine's private directory.
    pub directory: PathBuf,
}

impl BackEnd {
    /// That of the machine that root's `vdeq` became, once it is there.
    pub fn of(machine: u32) -> Result<Self> {
        Self::in_directory(&Path::new("/run/vdeq").join(machine.to_string()))
    }

    /// The one of this directory, once it is there.
    pub fn in_directory(directory: &Path) -> Result<Self> {
        let is_ours = |process: u32| {
            let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            words.next().is_some_and(|word| word.ends_with(b"vhost-user-vde"))
                && words.any(|word| word == directory.as_os_str().as_encoded_bytes())
        };
        let supervisor = wait_until("the back end", LIMIT, || {
            let all = fs::read_dir("/proc")?.flatten();
            let mut all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
            // Its worker is there, too, and a child of it.
            let found = all.find(|process| is_ours(*process) && !parent(*process).is_some_and(is_ours));
            Ok(found)
        })?;
        Ok(Self { supervisor, directory: directory.into() })
    }

    /// The process that serves, if there is one at the moment.
    pub fn worker(&self) -> Option<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.supervisor);
        fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
    }

    /// Kills the worker, and waits until it is gone.
    pub fn kill_worker(&self) -> Result<()> {
        let worker = wait_until("a worker", LIMIT, || Ok(self.worker()))?;
        signal(worker, Signal::KILL)?;
        wait_until("its end", LIMIT, || Ok((self.worker() != Some(worker)).then_some(())))
    }

    /// Kills both, so that nothing comes after them.
    pub fn kill(&self) -> Result<()> {
        let worker = self.worker();
        signal(self.supervisor, Signal::KILL)?;
        worker.map_or(Ok(()), |worker| signal(worker, Signal::KILL))
    }

    /// Waits until both are gone, and the directory with them.
    pub fn wait_gone(&self) -> Result<()> {
        let worker = self.worker();
        let is_there = |process: u32| Path::new("/proc").join(process.to_string()).exists();
        wait_until("the end of the back end", LIMIT, || {
            let is_left =
                is_there(self.supervisor) || worker.is_some_and(is_there) || self.directory.exists();
            Ok((!is_left).then_some(()))
        })
    }
}

/// Sends a process a signal.
pub fn signal(process: u32, signal: Signal) -> Result<()> {
    Ok(kill_process(Pid::from_raw(i32::try_from(process)?).context("no process")?, signal)?)
}

fn parent(process: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}
