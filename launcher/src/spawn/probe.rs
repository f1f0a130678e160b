//! Asking the emulator for its version, with a time limit, and once for all starts.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::Timespec;

use crate::error::Error;
use crate::spawn::program::exec_error;
use crate::spawn::{cache, sys};
use crate::version::QemuVersion;

/// QEMU answers in 20 ms; a loaded machine may take a while.
const LIMIT: Duration = Duration::from_secs(10);

/// More than any banner, even with warnings before it.
const LONGEST: usize = 64 << 10;

/// How long stderr is read once stdout has ended: a child of the program may keep it open for ever.
const REMARKS_LIMIT: Duration = Duration::from_secs(1);

/// The version that `PROGRAM --version` names.
pub fn version(program: &Path) -> Result<QemuVersion, Error> {
    let answer = cache::answer(program, "--version", || ask(program).map(banner))?;
    match QemuVersion::find(&answer) {
        Some(version) => Ok(version),
        // Not what was kept there.
        None => ask(program),
    }
}

/// What is kept of an answer.
fn banner(version: QemuVersion) -> String {
    format!("emulator version {version}\n")
}

/// Runs `PROGRAM --version` and reads what it says: on stdout, and only if no version is there on
/// stderr, where libraries complain.
fn ask(program: &Path) -> Result<QemuVersion, Error> {
    let pipe =
        |source: rustix::io::Errno| Error::System { what: "cannot make a pipe", source: source.into() };
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(pipe)?;
    let (errors, errors_writer) = pipe_with(PipeFlags::CLOEXEC).map_err(pipe)?;
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(writer).stderr(errors_writer);
    sys::bind_to_us(&mut command);
    let mut child = command.spawn().map_err(|source| exec_error(program, source))?;
    // The command holds the writing ends: without them only the child keeps the pipes open.
    drop(command);

    let (mut answer, complete) = read_until(&mut reader.into(), LIMIT);
    if complete && QemuVersion::find(&answer).is_none() {
        answer.push_str(&read_until(&mut errors.into(), REMARKS_LIMIT).0);
    }
    // Whatever is still running would not be asked again; one that has ended cannot be killed.
    child.kill().ok();
    child.wait().ok();
    QemuVersion::find(&answer).ok_or_else(|| {
        let line = answer.lines().next().unwrap_or("").chars().take(100).collect::<String>();
        let answer = match (complete, line.is_empty()) {
            (false, _) => format!("no answer in {} s", LIMIT.as_secs()),
            (true, true) => "it says nothing".into(),
            (true, false) => format!("it says '{line}'"),
        };
        Error::NoVersion { program: program.display().to_string(), answer }
    })
}

/// Reads text to its end or as far as the limits allow; tells whether the end was reached.
pub fn read_until(source: &mut std::fs::File, limit: Duration) -> (String, bool) {
    let deadline = Instant::now() + limit;
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    let complete = loop {
        if bytes.len() > LONGEST || !wait_readable(source, deadline) {
            break false;
        }
        match source.read(&mut chunk) {
            Ok(0) | Err(_) => break true,
            Ok(length) => bytes.extend_from_slice(&chunk[..length]),
        }
    };
    (String::from_utf8_lossy(&bytes).into_owned(), complete)
}

/// Waits until there is something to read, or its end; false when time is up.
fn wait_readable(source: &std::fs::File, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else { return false };
        let mut fds = [PollFd::new(source, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
