//! Starting the back end and waiting until it is ready.
//!
//! Two pipes connect us: on the first the back end reports `READY`, or `ERROR STATUS SENTENCE`; the
//! second is the lifeline. Its writing end is ours and later QEMU's, nobody ever writes to it, and
//! when it closes the VM is gone, however it ended: a daemonized QEMU keeps it too, while a pidfd would
//! report the death of the process that we became. It looks after itself: a worker of its that is killed
//! has a successor, which QEMU connects to again.

use std::env;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::Error;
use crate::exit::ExitStatus;
use crate::spawn::sys::HeldSignals;
use crate::spawn::{probe, program, sys};

const NAME: &str = "vhost-user-vde";

/// A switch that never answers must not hold the user for ever; the back end gives up earlier.
const LIMIT: Duration = Duration::from_secs(30);

/// Finds the back end: the one that was asked for, else `VDEQ_BACKEND`, else beside this program, else on
/// PATH.
pub fn find(asked: Option<&OsStr>) -> Result<PathBuf, Error> {
    let by_option = asked.map(|program| (program.to_owned(), "--vde-back-end"));
    let by_variable = || env::var_os("VDEQ_BACKEND").map(|program| (program, "VDEQ_BACKEND"));
    if let Some((chosen, by)) = by_option.or_else(by_variable).filter(|(program, _)| !program.is_empty()) {
        let missing = || Error::BackEndNotFound { program: chosen.to_string_lossy().into_owned(), by };
        return program::look_up(&chosen).map_err(start_error)?.ok_or_else(missing);
    }
    let beside = env::current_exe().ok().and_then(|path| Some(path.parent()?.join(NAME)));
    if let Some(path) = beside.filter(|path| path.is_file()) {
        return Ok(path);
    }
    program::look_up(NAME.as_ref()).map_err(start_error)?.ok_or(Error::BackEndMissing)
}

/// A back end that cannot be run ends in the back end's status, not in the one of a missing QEMU.
fn start_error(error: Error) -> Error {
    match error {
        Error::NotExecutable { program, source } => Error::BackEndStart { program, source },
        other => other,
    }
}

/// Starts the back end and waits until it is ready; gives the lifeline. `quiet` closes its stderr. One of `signals` ends it
/// while it starts.
pub fn start(program: &Path, args: &[String], quiet: bool, signals: &HeldSignals) -> Result<OwnedFd, Error> {
    let pipe =
        |source: rustix::io::Errno| Error::System { what: "cannot make a pipe", source: source.into() };
    let (ready, ready_writer) = pipe_with(PipeFlags::CLOEXEC).map_err(pipe)?;
    let (lifeline_reader, lifeline) = pipe_with(PipeFlags::CLOEXEC).map_err(pipe)?;

    let mut command = Command::new(program);
    command
        .arg("--ready-fd")
        .arg(ready_writer.as_raw_fd().to_string())
        .arg("--lifeline-fd")
        .arg(lifeline_reader.as_raw_fd().to_string())
        .arg("--supervise")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if quiet {
        command.stderr(Stdio::null());
    }
    let name = program.display().to_string();
    let mut between = sys::spawn_orphan(&mut command, &[ready_writer.as_fd(), lifeline_reader.as_fd()])
        .map_err(|source| Error::BackEndStart { program: name.clone(), source })?;
    let group = i32::try_from(between.id()).ok().and_then(Pid::from_raw);
    drop((ready_writer, lifeline_reader));

    let begin = Instant::now();
    let outcome = match signals.come_before(&ready, LIMIT) {
        true => Err(Error::Interrupted),
        false => wait_ready(ready.into(), &name, LIMIT.saturating_sub(begin.elapsed())),
    };
    let hangs = |error: &Error| {
        matches!(error, Error::BackEndSilent { .. } | Error::BackEndDied(_) | Error::Interrupted)
    };
    if let (true, Some(group)) = (outcome.as_ref().is_err_and(hangs), group) {
        // It may be stuck where the lifeline does not reach it. The child in between, not reaped yet,
        // keeps the group's number from being given to others.
        kill_process_group(group, Signal::KILL).ok();
    }
    // Before QEMU inherits it, which reaps nobody.
    between.wait().map_err(|source| Error::System { what: "cannot wait for a child", source })?;
    outcome.map(|()| lifeline)
}

/// Reads the back end's report.
fn wait_ready(mut report: File, program: &str, limit: Duration) -> Result<(), Error> {
    let (text, complete) = probe::read_until(&mut report, limit);
    let Some((line, _)) = text.split_once('\n') else {
        return Err(match complete {
            true => Error::BackEndDied(program.to_owned()),
            false => Error::BackEndSilent { program: program.to_owned(), seconds: LIMIT.as_secs() },
        });
    };
    if line == "READY" {
        return Ok(());
    }
    let refusal = line.strip_prefix("ERROR ").and_then(|rest| rest.split_once(' '));
    let Some((status, sentence)) = refusal else { return Err(Error::BackEndDied(program.to_owned())) };
    // Only these mean the same to our own user; any other would pass for QEMU's status.
    let status = status.parse().ok().filter(|status| matches!(status, 2..=4));
    Err(Error::BackEndRefused {
        status: status.unwrap_or(ExitStatus::BackEnd.code()),
        sentence: sentence.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn report(text: &str) -> Result<(), Error> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        File::from(writer).write_all(text.as_bytes()).expect("write");
        wait_ready(reader.into(), "be", Duration::from_secs(5))
    }

    #[test]
    fn wait_ready_reports() {
        report("READY\n").expect("ready");
        for (text, status, sentence) in [
            ("ERROR 3 no switch at /tmp/sw\n", 3, "no switch at /tmp/sw"),
            ("ERROR 2 no such option\n", 2, "no such option"),
            ("ERROR 0 odd\n", 4, "odd"),
            ("ERROR 1 out of memory\n", 4, "out of memory"),
            ("ERROR 5 odd\n", 4, "odd"),
            ("ERROR 999 odd\n", 4, "odd"),
            ("", 4, "ended before it was ready"),
            ("READ", 4, "ended before it was ready"),
            ("rubbish\n", 4, "ended before it was ready"),
        ] {
            let error = report(text).expect_err(text);
            assert_eq!(error.status(), status, "{text}");
            assert!(error.to_string().contains(sentence), "{error}");
        }
    }

    #[test]
    fn wait_ready_gives_up_in_time() {
        let (reader, _writer) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        let error = wait_ready(reader.into(), "be", Duration::from_millis(50)).expect_err("silent");
        assert!(matches!(error, Error::BackEndSilent { .. }));
    }
}
