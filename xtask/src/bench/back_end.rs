//! Our back end, `vhost-user-vde`, as a process of its own.
//!
//! `vdeq` would start the same program; here its process id is wanted, and its log, in which it says at a front end's
//! end what became of the frames.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use vde_tests::process;

const LIMIT: Duration = Duration::from_secs(10);

/// One NIC of it.
pub struct Nic {
    pub socket: PathBuf,
    pub link: String,
    pub queues: u16,
}

/// The running program; it is killed when this is dropped.
pub struct BackEnd {
    child: process::Owned,
    log: PathBuf,
}

impl BackEnd {
    /// Starts `program` behind the words of `launcher`, as `taskset -c 1`, and waits until its sockets are there. The log
    /// goes to a file beside the first of them.
    pub fn start(program: &Path, launcher: &[&str], nics: &[Nic]) -> Result<Self> {
        let first = nics.first().context("a back end has a NIC")?;
        let log = first.socket.with_extension("log");
        let mut words: Vec<&str> = launcher.to_vec();
        let name = program.to_string_lossy();
        words.extend([&*name, "--log-level", "info"]);
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        for Nic { socket, link, queues } in nics {
            let link = link.replace(',', ",,");
            command.arg("--nic").arg(format!("socket-path={},link={link},queues={queues}", socket.display()));
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?).spawn()?;
        let mut back_end = Self { child: process::Owned::new(child, "vhost-user-vde"), log };
        process::wait_until("the sockets of vhost-user-vde", LIMIT, || {
            if let Some(status) = back_end.child.ended()? {
                bail!("vhost-user-vde ended with {status}: {}", back_end.log()?.trim());
            }
            Ok(nics.iter().all(|nic| nic.socket.exists()).then_some(()))
        })?;
        Ok(back_end)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// The features that it offers to a front end on `socket`, by a connection that ends at once.
    pub fn features(&self, socket: &Path) -> Result<u64> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        // GET_FEATURES, version 1, no payload; the answer has 8 bytes behind such a header.
        let ask = [1u32, 1, 0].map(u32::to_ne_bytes).concat();
        stream.write_all(&ask)?;
        let (mut header, mut features) = ([0; 12], [0; 8]);
        stream.read_exact(&mut header).and_then(|()| stream.read_exact(&mut features))?;
        Ok(u64::from_ne_bytes(features))
    }

    /// What became of the frames of its first NIC, which it says when the front end has gone: names and numbers.
    pub fn wait_counters(&self) -> Result<Vec<(String, u64)>> {
        process::wait_until("the counters of vhost-user-vde", LIMIT, || {
            Ok(self.log()?.lines().find_map(|line| counters(line.split_once("nic0:")?.1)))
        })
    }

    /// Ends it in good order.
    pub fn stop(&mut self) -> Result<()> {
        self.child.signal(Signal::TERM)?;
        self.child.wait(LIMIT).map(drop)
    }

    /// What it said so far.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }
}

/// ` rx_frames=5 rx_bytes=300`; nothing else that is said of a NIC looks like that.
fn counters(text: &str) -> Option<Vec<(String, u64)>> {
    let number = |word: &str| {
        let (name, value) = word.split_once('=')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    let counters: Option<Vec<_>> = text.split_whitespace().map(number).collect();
    counters.filter(|counters| !counters.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_told_from_other_lines() {
        let five = vec![("rx_frames".to_owned(), 5), ("rx_bytes".to_owned(), 300)];
        assert_eq!(counters(" rx_frames=5 rx_bytes=300"), Some(five));
        assert_eq!(counters(" front end gone"), None);
        assert_eq!(counters(""), None);
    }
}
