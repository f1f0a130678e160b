//! A guest that runs, and its shell.
//!
//! The guest has two serial lines. The first is the kernel's console and goes to a file; the second is a raw shell
//! (`images/init`) on QEMU's standard input and output. A command is sent as one line that evaluates it in a
//! subshell, away from the shell's own input, and then prints a mark with a number and the exit status. What came
//! before the mark is the command's output. A command that does not end in time leaves the shell busy, so the guest
//! refuses further ones.
//!
//! Logs, in `target/test-logs`: `NAME.console.log` (kernel), `NAME.shell.log` (both directions of the shell),
//! `NAME.qemu.log` (what QEMU and its launcher said). Their ends are part of every error, and are printed when a
//! test panics.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::boot_slot::BootSlot;
use crate::machine::Machine;
use crate::{places, process};

/// How long a boot may take: 4 to 6 s were seen alone, up to 20 s with both CPUs busy.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const TAIL_LINES: usize = 30;
/// What the kernel says when something is wrong with it.
const KERNEL_TROUBLE: [&str; 6] =
    ["BUG:", "Oops", "Call Trace", "Kernel panic", "WARNING:", "general protection"];

/// A command that starts iperf3's server and ends when it listens.
pub const IPERF_SERVER: &str = "iperf3 -s -D && until netstat -ltn | grep -q ':5201 '; do sleep 0.1; done";

/// What a command gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Its exit status.
    pub status: i32,
    /// What it wrote, to both its outputs.
    pub text: String,
}

/// A command that runs in the background of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job(u32);

/// A running guest; it is killed when this is dropped.
pub struct Guest {
    name: String,
    child: process::Owned,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    pending: Vec<u8>,
    busy_with: Option<String>,
    marks: u32,
    transcript: File,
    boot_time: Duration,
    logs: Logs,
}

struct Logs {
    console: PathBuf,
    shell: PathBuf,
    qemu: PathBuf,
}

impl Guest {
    /// Starts `machine` and waits for its shell. `name` names the logs: take one that no other test uses.
    pub fn start(name: &str, machine: &Machine) -> Result<Self> {
        let _slot = BootSlot::take()?;
        let mut guest = Self::spawn(name, machine)?;
        guest.wait_ready(BOOT_LIMIT)?;
        Ok(guest)
    }

    /// Starts several guests at the same time, as many of them as CPUs; the order is kept.
    pub fn start_all(machines: &[(&str, &Machine)]) -> Result<Vec<Self>> {
        std::thread::scope(|scope| {
            let boots: Vec<_> = machines
                .iter()
                .map(|(name, machine)| scope.spawn(move || Self::start(name, machine)))
                .collect();
            let ended: Vec<_> = boots.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            ended
                .into_iter()
                .map(|end| end.unwrap_or_else(|_| bail!("the thread of a boot panicked")))
                .collect()
        })
    }

    /// Starts QEMU and returns at once; [`Guest::wait_ready`] waits for the shell.
    pub fn spawn(name: &str, machine: &Machine) -> Result<Self> {
        let logs = Logs {
            console: places::log_file(&format!("{name}.console.log"))?,
            shell: places::log_file(&format!("{name}.shell.log"))?,
            qemu: places::log_file(&format!("{name}.qemu.log"))?,
        };
        File::create(&logs.console)?;
        let words = machine.words(&logs.console)?;
        let mut said = File::create(&logs.qemu)?;
        writeln!(said, "{}", words.join(" "))?;
        let (program, arguments) = words.split_first().context("a machine has a program")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(said)
            .spawn()
            .with_context(|| format!("{program} did not start"))?;
        let input = child.stdin.take().context("standard input was asked for")?;
        let mut stdout = child.stdout.take().context("standard output was asked for")?;
        let (sender, output) = channel();
        // Ends with QEMU, whose end of the pipe closes, or with the guest value that reads from the channel.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            name: name.to_owned(),
            child: process::Owned::new(child, &format!("the guest {name}")),
            input,
            output,
            pending: Vec::new(),
            busy_with: None,
            marks: 0,
            transcript: File::create(&logs.shell)?,
            boot_time: Duration::ZERO,
            logs,
        })
    }

    /// Waits until the guest's shell is there.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        let ready = self.read_past(b"\x01ready\x01\n", limit);
        self.boot_time = start.elapsed();
        ready.map(drop).map_err(|error| error.context(format!("the guest {} did not boot", self.name)))
    }

    /// How long it took from the start to the shell.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// The process id of QEMU (with `vdeq` too: it becomes QEMU).
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Runs a shell command to its end.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<Output> {
        self.evaluate(&format!("( eval {} ) </dev/null 2>&1", quote(command)), command, limit)
    }

    /// Runs a shell command that must succeed, and gives what it wrote.
    pub fn run_ok(&mut self, command: &str, limit: Duration) -> Result<String> {
        let output = self.run(command, limit)?;
        if output.status != 0 {
            bail!(
                "\"{command}\" in the guest {} ended with {}: {}",
                self.name,
                output.status,
                output.text.trim()
            );
        }
        Ok(output.text)
    }

    /// Pings with these words so many times, and wants each answer, within 5 seconds. One after the other: busybox waits for
    /// the last of several only a second, whatever `-W` says, once it has heard one.
    pub fn ping(&mut self, count: u32, words: &str) -> Result<()> {
        let each = format!("for n in $(seq {count}); do ping -c 1 -W 5 {words} || exit 1; sleep 0.1; done");
        self.run_ok(&each, Duration::from_secs(60)).map(drop)
    }

    /// Starts a shell command in the background.
    pub fn start_job(&mut self, command: &str) -> Result<Job> {
        let number = self.marks;
        let line = format!("( eval {} ) </dev/null >/tmp/job{number} 2>&1 & job{number}=$!", quote(command));
        self.evaluate(&line, command, Duration::from_secs(20))?;
        Ok(Job(number))
    }

    /// Waits for the end of a background command.
    pub fn finish_job(&mut self, job: Job, limit: Duration) -> Result<Output> {
        let number = job.0;
        let line = format!("wait $job{number}; set -- $?; cat /tmp/job{number}; ( exit $1 )");
        self.evaluate(&line, "the end of a background command", limit)
    }

    /// Turns the guest off from inside, waits for the end of QEMU, and fails if the kernel complained meanwhile.
    pub fn power_off(mut self, limit: Duration) -> Result<ExitStatus> {
        self.send("poweroff -f\n")?;
        let status = self.child.wait(limit).map_err(|error| error.context(self.report()))?;
        let trouble = self.kernel_trouble()?;
        if !trouble.is_empty() {
            bail!("the kernel of the guest {} complained: {}", self.name, trouble.join("; "));
        }
        Ok(status)
    }

    /// Sends a signal to QEMU.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.child.signal(signal)
    }

    /// Waits for the end of QEMU, whatever ends it.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.child.wait(limit)
    }

    /// The lines of the console that speak of trouble in the kernel.
    pub fn kernel_trouble(&self) -> Result<Vec<String>> {
        let text = String::from_utf8_lossy(&std::fs::read(&self.logs.console)?).into_owned();
        let bad = |line: &&str| KERNEL_TROUBLE.iter().any(|word| line.contains(word));
        Ok(text.lines().filter(bad).map(str::to_owned).collect())
    }

    /// What QEMU, or the launcher before it, wrote to its standard error, without the command line that stands first.
    pub fn messages(&self) -> Result<String> {
        let text = String::from_utf8_lossy(&std::fs::read(&self.logs.qemu)?).into_owned();
        Ok(text.split_once('\n').map(|(_, rest)| rest.to_owned()).unwrap_or_default())
    }

    fn evaluate(&mut self, line: &str, command: &str, limit: Duration) -> Result<Output> {
        if let Some(other) = &self.busy_with {
            bail!("the guest {} is still busy with \"{other}\", which did not end in time", self.name);
        }
        self.marks += 1;
        let mark = format!("\x01{} ", self.marks);
        self.busy_with = Some(command.to_owned());
        self.send(&format!("{line}; printf '\\001{} %d\\001\\n' $?\n", self.marks))?;
        let what = || format!("\"{command}\" in a guest did not end");
        let text = self.read_past(mark.as_bytes(), limit).with_context(what)?;
        let status = self.read_past(b"\x01\n", limit).with_context(what)?;
        self.busy_with = None;
        Ok(Output { status: status.trim().parse().context("the shell's mark holds no number")?, text })
    }

    fn send(&mut self, line: &str) -> Result<()> {
        self.transcript.write_all(line.as_bytes())?;
        self.input
            .write_all(line.as_bytes())
            .map_err(|error| anyhow::Error::new(error).context(self.report()))
    }

    /// Reads until `end` comes, and gives what came before it.
    fn read_past(&mut self, end: &[u8], limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(at) = self.pending.windows(end.len()).position(|window| window == end) {
                let text = String::from_utf8_lossy(&self.pending[..at]).into_owned();
                self.pending.drain(..at + end.len());
                return Ok(text);
            }
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => {
                    self.transcript.write_all(&bytes)?;
                    self.pending.extend_from_slice(&bytes);
                }
                Err(RecvTimeoutError::Timeout) => bail!("nothing within {limit:?}\n{}", self.report()),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait(Duration::from_secs(5))?;
                    bail!("QEMU ended with {status}\n{}", self.report());
                }
            }
        }
    }

    /// The ends of the logs.
    fn report(&self) -> String {
        let mut text = String::new();
        for file in [&self.logs.qemu, &self.logs.console, &self.logs.shell] {
            let tail = process::tail(file, TAIL_LINES);
            text.push_str(&format!("--- {}\n{tail}\n", file.display()));
        }
        text
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the guest {} at the end of the failed test:\n{}", self.name, self.report());
        }
    }
}

/// A word for the shell that means exactly `text`.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
