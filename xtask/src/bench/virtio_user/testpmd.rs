//! DPDK's `testpmd`: as the driver in front of a back end, and as a back end over DPDK's vhost library.
//!
//! It is told what to do at its prompt. Its forwarding thread never sleeps, so it is stopped by signal while it is not its
//! turn.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use vde_tests::process;

/// It starts in a second; the machine may have other work.
const LIMIT: Duration = Duration::from_secs(30);

/// How many of its last lines an error quotes.
const TAIL: usize = 5;

/// How it is started.
pub struct Options<'a> {
    /// Words before the program, as those that enter a namespace.
    pub launcher: &'a [&'a str],
    /// The CPU that all its threads run on.
    pub core: u32,
    /// What it drives.
    pub devices: Vec<String>,
    /// `txonly`, `rxonly`, `io`.
    pub mode: &'a str,
    pub queues: u16,
    /// Bytes of the frames that it makes.
    pub size: usize,
    /// Begins at once, as a back end does.
    pub starts: bool,
}

/// The virtio-user device number `nic` on a back end's socket, as `--vdev` wants it.
pub fn virtio_user(nic: usize, socket: &Path, queues: u16) -> String {
    format!("net_virtio_user{nic},path={},queues={queues},queue_size=256", socket.display())
}

/// The program; it is killed when this is dropped.
pub struct Testpmd {
    child: process::Owned,
    stdin: ChildStdin,
    lines: Receiver<String>,
    last: Vec<String>,
    ports: usize,
    prefix: String,
}

/// Frames of all its ports.
#[derive(Clone, Copy)]
pub struct Counts {
    pub rx: u64,
    pub tx: u64,
    at: Instant,
}

impl Counts {
    /// Frames in a second since then, received and sent.
    pub fn rates(self, since: Self) -> (f64, f64) {
        let seconds = (self.at - since.at).as_secs_f64();
        ((self.rx - since.rx) as f64 / seconds, (self.tx - since.tx) as f64 / seconds)
    }
}

impl Testpmd {
    /// Starts it. `name` keeps its files apart from those of others.
    pub fn start(name: &str, options: &Options) -> Result<Self> {
        let prefix = format!("vde-bench-{}-{name}", std::process::id());
        let mut words: Vec<String> = options.launcher.iter().map(|word| (*word).to_owned()).collect();
        // What it prints would otherwise wait until there are 4 KiB of it.
        let fixed = [
            "stdbuf",
            "-oL",
            "dpdk-testpmd",
            "--no-huge",
            "-m",
            "512",
            "--no-pci",
            "--no-telemetry",
            "--file-prefix",
            &prefix,
        ];
        words.extend(fixed.map(str::to_owned));
        words.extend(["--lcores".to_owned(), format!("(0-1)@{}", options.core)]);
        words.extend(options.devices.iter().map(|device| format!("--vdev={device}")));
        words.extend(
            [
                "--",
                "-i",
                "--total-num-mbufs=32768",
                "--no-lsc-interrupt",
                "--disable-link-check",
                "--nb-cores=1",
            ]
            .map(str::to_owned),
        );
        if options.starts {
            words.push("--auto-start".to_owned());
        }
        let Options { mode, queues, size, .. } = options;
        words.extend([
            format!("--forward-mode={mode}"),
            format!("--rxq={queues}"),
            format!("--txq={queues}"),
        ]);
        words.push(format!("--txpkts={size}"));
        let (program, arguments) = words.split_first().context("a program")?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("{program} did not start"))?;
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).context("a child without pipes")?;
        let (sender, lines) = channel();
        // Ends with the program, or with whoever reads the lines.
        std::thread::spawn(move || {
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            for line in lines {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let ports = options.devices.len();
        let child = process::Owned::new(child, "dpdk-testpmd");
        Ok(Self { child, stdin, lines, last: Vec::new(), ports, prefix })
    }

    /// Waits until it answers at its prompt.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.counts().map(drop)
    }

    /// Begins to forward; `bursts` of 32 frames are sent first on each port.
    pub fn begin(&mut self, bursts: u32) -> Result<()> {
        match bursts {
            0 => self.tell("start"),
            count => self.tell(&format!("start tx_first {count}")),
        }
    }

    /// Ends to forward.
    pub fn end(&mut self) -> Result<()> {
        self.tell("stop")?;
        self.wait_line("its end of forwarding", |line| line.contains("Done."))
    }

    /// What its ports received and sent so far.
    pub fn counts(&mut self) -> Result<Counts> {
        self.tell("show port stats all")?;
        let (mut rx, mut tx) = (0, 0);
        for _ in 0..self.ports {
            let number =
                |line: &str| line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok());
            self.wait_line("its counters", |line| {
                let line = line.trim();
                if line.starts_with("RX-packets:") {
                    rx += number(line).unwrap_or_default();
                } else if line.starts_with("TX-packets:") {
                    tx += number(line).unwrap_or_default();
                }
                line.starts_with("Tx-pps:")
            })?;
        }
        Ok(Counts { rx, tx, at: Instant::now() })
    }

    /// Stops it, or lets it go on.
    pub fn pause(&mut self, yes: bool) -> Result<()> {
        self.child.signal(if yes { Signal::STOP } else { Signal::CONT })
    }

    fn tell(&mut self, order: &str) -> Result<()> {
        writeln!(self.stdin, "{order}").context("dpdk-testpmd is gone")
    }

    fn wait_line(&mut self, what: &str, mut is_it: impl FnMut(&str) -> bool) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    bail!("dpdk-testpmd: {what} did not come: {}", self.last.join(" / "))
                }
                Err(RecvTimeoutError::Disconnected) => bail!("dpdk-testpmd ended: {}", self.last.join(" / ")),
            };
            if is_it(&line) {
                return Ok(());
            }
            if !line.trim().is_empty() {
                self.last.push(line.trim().to_owned());
                let excess = self.last.len().saturating_sub(TAIL);
                self.last.drain(..excess);
            }
        }
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.signal(Signal::KILL);
        let _ = self.child.wait(LIMIT);
        // What DPDK leaves behind, where root's programs have it.
        let _ = std::fs::remove_dir_all(Path::new("/var/run/dpdk").join(&self.prefix));
    }
}
