//! One call of a program that may hang, as `virsh` does with its libvirt, and has no time limit of its own.
//!
//! What it reads and writes are files in memory: there is no pipe that somebody could wait at, nor one that a process of its own
//! keeps open. It leads a process group: Ctrl-C reaches us alone. A step that is under way may still end then, and is undone.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use crate::interrupt::Interrupt;

/// Longest time between two looks at whether the person has enough; a signal ends one early.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How long a program may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// In the whole.
    pub limit: Duration,
    /// After a signal has come to us.
    pub grace: Duration,
}

/// What a program has said.
#[derive(Debug)]
pub struct Answer {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a program, and gives its answer; none if it was killed because it took too long.
pub fn call(
    command: &mut Command,
    input: &str,
    patience: Patience,
    interrupt: &Interrupt,
) -> io::Result<Option<Answer>> {
    let (mut stdin, stdout, stderr) = (memory()?, memory()?, memory()?);
    stdin.write_all(input.as_bytes())?;
    stdin.rewind()?;
    command.stdin(stdin).stdout(stdout.try_clone()?).stderr(stderr.try_clone()?).process_group(0);
    let mut child = command.spawn()?;
    let Some(status) = wait(&mut child, patience, interrupt)? else { return Ok(None) };
    Ok(Some(Answer { status, stdout: whole(stdout)?, stderr: whole(stderr)? }))
}

/// Waits until it ends, or kills it with what it has started.
fn wait(child: &mut Child, patience: Patience, interrupt: &Interrupt) -> io::Result<Option<ExitStatus>> {
    let begin = Instant::now();
    let mut interrupted = None;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if interrupt.has_come() {
            interrupted = interrupted.or_else(|| Some(Instant::now()));
        }
        let has_enough = interrupted.is_some_and(|since: Instant| since.elapsed() >= patience.grace);
        if has_enough || begin.elapsed() >= patience.limit {
            kill_process_group(pid, Signal::KILL)?;
            child.wait()?;
            return Ok(None);
        }
        // A signal ends it with an error, which is all right.
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&LOOK)).ok();
    }
}

fn memory() -> io::Result<File> {
    Ok(memfd_create("virsh", MemfdFlags::CLOEXEC)?.into())
}

fn whole(mut file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(50);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn call_hands_over_and_gives_back() {
        let patience = Patience { limit: LONG, grace: LONG };
        let mut command = shell("cat /dev/stdin; echo odd >&2; exit 3");
        let answer = call(&mut command, "text", patience, &Interrupt::default()).unwrap().unwrap();
        assert_eq!((answer.status.code(), &*answer.stdout, &*answer.stderr), (Some(3), "text", "odd\n"));
    }

    /// What it started is killed as well, and who keeps its output open is in nobody's way.
    #[test]
    fn call_ends_what_takes_too_long() {
        let begin = Instant::now();
        let patience = Patience { limit: SHORT, grace: LONG };
        let answer = call(&mut shell("sleep 50 & wait"), "", patience, &Interrupt::default()).unwrap();
        assert!(answer.is_none());
        let patience = Patience { limit: LONG, grace: LONG };
        let answer = call(&mut shell("sleep 2 & echo here"), "", patience, &Interrupt::default()).unwrap();
        assert_eq!(answer.unwrap().stdout, "here\n");
        assert!(begin.elapsed() < LONG);
    }
}
