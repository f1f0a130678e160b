//! A network namespace of its own, as `ip netns` makes it.
//!
//! What a test does inside of it runs in a thread that entered it: sockets that it opens there stay in there.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A network namespace; it goes, with all interfaces in it, when this is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// What passed through an interface, as its namespace counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// Bytes that it received.
    pub rx_bytes: u64,
    /// Frames that it received; one of 64 KiB counts once.
    pub rx_frames: u64,
    /// Bytes that it sent.
    pub tx_bytes: u64,
    /// Frames that it sent.
    pub tx_frames: u64,
}

impl Namespace {
    /// Makes one; its loopback interface is up.
    pub fn new() -> Result<Self> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let space = Self { name: format!("vde-test-{}-{number}", std::process::id()) };
        ip(&["netns", "add", &space.name])?;
        space.ip("link set lo up")?;
        Ok(space)
    }

    /// Its name, for `ip netns` and for locators.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` inside of it.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let mut words = vec!["-n", &self.name];
        words.extend(arguments.split_whitespace());
        ip(&words)
    }

    /// The words that run a program inside of it.
    pub fn prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// Runs `work` inside of it.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let space = File::open(format!("/run/netns/{}", self.name))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))?;
                work()
            });
            thread.join().expect("a test that panics in a namespace panics outside as well")
        })
    }

    /// What passed through one of its interfaces.
    pub fn passed(&self, interface: &str) -> Result<Passed> {
        let table = self.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/dev")?))?;
        let named = |line: &&str| line.trim_start().starts_with(&format!("{interface}:"));
        let line = table.lines().find(named).with_context(|| format!("no {interface} in {table}"))?;
        let (_, numbers) = line.split_once(':').context("a line of /proc/net/dev")?;
        let numbers: Vec<u64> = numbers.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        let at = |index: usize| numbers.get(index).copied().context("too few numbers in /proc/net/dev");
        Ok(Passed { rx_bytes: at(0)?, rx_frames: at(1)?, tx_bytes: at(8)?, tx_frames: at(9)? })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.name]) {
            eprintln!("the namespace {} stays: {error:#}", self.name);
        }
    }
}

fn ip(words: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(words).output().context("the program ip (package iproute2)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {}: {said}", words.join(" "));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
