//! Finding `vhost-user-vde`, starting it, and waiting until it is ready.
//!
//! ```text
//!  find ── the program
//!  start ── Command ──▶ process of its own ── READY, or ERROR STATUS SENTENCE, on a pipe ──▶ Child, or Error
//! ```
//!
//! What is started stays when its starter goes. It takes no signals of the starter's terminal, reads nothing, prints nothing;
//! where its log goes is the caller's to say. `vdeq` has a way of its own, since it becomes QEMU, which reaps nobody.

#![forbid(unsafe_code)]

use std::env;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};

/// The program's name.
pub const PROGRAM: &str = "vhost-user-vde";
/// The variable of the environment that names another one.
pub const VARIABLE: &str = "VDEQ_BACKEND";

/// More than any sentence of its.
const LONGEST_REPORT: usize = 64 << 10;

/// Why there is no back end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not installed.
    #[error(
        "the back end {PROGRAM} is neither beside this program nor on PATH; install it, or name it in {VARIABLE}"
    )]
    Missing,
    /// The variable names nothing.
    #[error("there is no program '{}', which {VARIABLE} names", .0.display())]
    NoSuchProgram(PathBuf),
    /// It cannot be started, or not be waited for.
    #[error("the back end {program} cannot be started")]
    Start {
        /// Its file.
        program: String,
        /// What the system says.
        source: io::Error,
    },
    /// It says nothing.
    #[error("the back end {program} is not ready after {seconds} s")]
    Silent {
        /// Its file.
        program: String,
        /// The limit.
        seconds: u64,
    },
    /// It ended without a word.
    #[error("the back end {0} ended before it was ready")]
    Died(String),
    /// It says why it cannot serve.
    #[error("{0}")]
    Refused(String),
}

/// Finds the program: the one that `VDEQ_BACKEND` names, else beside ours, else on `PATH`.
///
/// # Errors
/// There is none.
pub fn find() -> Result<PathBuf, Error> {
    if let Some(chosen) = env::var_os(VARIABLE).filter(|chosen| !chosen.is_empty()) {
        let chosen = PathBuf::from(chosen);
        let found = match chosen.components().count() {
            1 => on_path(&chosen),
            _ => Some(chosen.clone()).filter(|path| path.is_file()),
        };
        return found.ok_or(Error::NoSuchProgram(chosen));
    }
    let beside = env::current_exe().ok().and_then(|own| Some(own.parent()?.join(PROGRAM)));
    beside.filter(|path| path.is_file()).or_else(|| on_path(PROGRAM.as_ref())).ok_or(Error::Missing)
}

fn on_path(name: &std::path::Path) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Runs `command`, the back end with its options and its standard error, and waits until it is ready. One that is not in time
/// is killed.
///
/// # Errors
/// It cannot be started, or says why it does not serve, or says nothing.
pub fn start(mut command: Command, limit: Duration) -> Result<Child, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source: io::Error| Error::Start { program: program.clone(), source };
    let (report, told) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
    // It is passed on; the other end is not.
    fcntl_setfd(&told, FdFlags::empty()).map_err(|errno| failed(errno.into()))?;
    command.arg("--ready-fd").arg(told.as_raw_fd().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    drop(told);
    let outcome = wait_ready(report, limit);
    if outcome.is_ok() {
        return Ok(child);
    }
    // It may be stuck; one that has ended cannot be killed.
    child.kill().ok();
    child.wait().map_err(failed)?;
    match outcome {
        Err(Unready::Silent) => Err(Error::Silent { program, seconds: limit.as_secs() }),
        Err(Unready::Refused(sentence)) => Err(Error::Refused(sentence)),
        Ok(()) | Err(Unready::Died) => Err(Error::Died(program)),
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Unready {
    Silent,
    Died,
    Refused(String),
}

/// Reads the report: one line.
fn wait_ready(report: OwnedFd, limit: Duration) -> Result<(), Unready> {
    let deadline = Instant::now() + limit;
    let (mut report, mut text, mut chunk) = (File::from(report), Vec::new(), [0; 512]);
    let line = loop {
        if let Some(end) = text.iter().position(|byte| *byte == b'\n') {
            text.truncate(end);
            break String::from_utf8_lossy(&text).into_owned();
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| Unready::Silent)?;
        match poll(&mut [PollFd::new(&report, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(Unready::Silent),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return Err(Unready::Died),
        }
        match report.read(&mut chunk) {
            Ok(count @ 1..) if text.len() < LONGEST_REPORT => text.extend(chunk.iter().take(count)),
            _ => return Err(Unready::Died),
        }
    };
    match line.strip_prefix("ERROR ").and_then(|rest| rest.split_once(' ')) {
        Some((_, sentence)) => Err(Unready::Refused(sentence.to_owned())),
        None if line == "READY" => Ok(()),
        None => Err(Unready::Died),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A program that says what it is told to in place of a back end.
    fn say(script: &str, limit: Duration) -> Result<Child, Error> {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]);
        start(command, limit)
    }

    #[test]
    fn start_waits_for_the_report() {
        let limit = Duration::from_secs(20);
        // The descriptor's number is the last argument.
        let report = |line: &str| format!("eval \"exec 9>&$2\"; printf '{line}' >&9");
        say(&report("READY\\n"), limit).unwrap().wait().unwrap();
        for (line, sentence) in [
            ("ERROR 3 no switch at /tmp/sw\\n", "no switch at /tmp/sw"),
            ("ERROR 3\\n", "ended before it was ready"),
            ("READ", "ended before it was ready"),
            ("rubbish\\n", "ended before it was ready"),
        ] {
            let error = say(&report(line), limit).unwrap_err().to_string();
            assert!(error.contains(sentence), "{line} gave {error}");
        }
        let error = say("exec sleep 60", Duration::from_millis(50)).unwrap_err().to_string();
        assert_eq!(error, "the back end sh is not ready after 0 s");
        let error = start(Command::new("/nowhere/back-end"), limit).unwrap_err().to_string();
        assert_eq!(error, "the back end /nowhere/back-end cannot be started");
    }

    #[test]
    fn report_without_end_is_given_up() {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let flood = std::thread::spawn(move || {
            let mut pipe = File::from(writer);
            while pipe.write_all(&[b'x'; 4096]).is_ok() {}
        });
        assert_eq!(wait_ready(reader, Duration::from_secs(20)), Err(Unready::Died));
        flood.join().unwrap();
    }
}
