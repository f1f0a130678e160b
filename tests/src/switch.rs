//! A `vde_switch` in a folder of its own, and what its management socket says.
//!
//! There is one management connection, for as long as the switch runs: Debian's switch loses track of a port that is being
//! opened at the moment at which any other connection to it ends.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::{places, process};

const LIMIT: Duration = Duration::from_secs(60);

/// A port of the switch with something plugged in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub number: u32,
    /// Frames and bytes that came into the switch here.
    pub received: (u64, u64),
    /// Frames and bytes that the switch sent here.
    pub sent: (u64, u64),
    /// The description of each endpoint on it.
    pub endpoints: Vec<String>,
}

/// A running switch; it is killed, and its folder removed, when this is dropped.
pub struct Switch {
    child: process::Owned,
    /// The management connection, greeted already; `None` before the switch is ready.
    management: Mutex<Option<UnixStream>>,
    folder: TempDir,
}

impl Switch {
    /// A plain switch.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// A switch with further options, as `-x` or `-n 8`.
    pub fn start_with(options: &[&str]) -> Result<Self> {
        // A short name: the paths of sockets are limited to 107 bytes.
        let folder = tempfile::Builder::new().prefix("vde").tempdir_in("/tmp")?;
        let child = spawn(folder.path(), options)?;
        let mut switch = Self { child, management: Mutex::default(), folder };
        switch.wait_ready()?;
        Ok(switch)
    }

    /// Starts it again in the same folder, after [`Switch::stop`] or [`Switch::kill`].
    pub fn restart(&mut self, options: &[&str]) -> Result<()> {
        self.child = spawn(self.folder.path(), options)?;
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let Self { child, folder, management } = self;
        // It is made last.
        let socket = folder.path().join("mgmt");
        let mut stream = process::wait_until("vde_switch ready", LIMIT, || {
            if let Some(status) = child.ended()? {
                bail!("vde_switch ended with {status}");
            }
            Ok(UnixStream::connect(&socket).ok())
        })?;
        stream.set_read_timeout(Some(LIMIT))?;
        read_to(&mut stream, "vde$ ")?;
        *management.get_mut().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        Ok(())
    }

    /// The folder that users of the switch name: `sock=` of QEMU, `vde://` of a locator.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("ctl")
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Kills it without a chance to clean up.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.child.signal(Signal::KILL)?;
        self.child.wait(LIMIT)
    }

    /// Ends it in good order.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.child.signal(Signal::TERM)?;
        self.child.wait(LIMIT)
    }

    /// The ports that are in use.
    pub fn ports(&self) -> Result<Vec<Port>> {
        parse_ports(&self.manage("port/print")?)
    }

    /// Waits until `wanted` is true of the ports.
    pub fn wait_ports(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl Fn(&[Port]) -> bool,
    ) -> Result<Vec<Port>> {
        process::wait_until(what, limit, || {
            let ports = self.ports()?;
            Ok(wanted(&ports).then_some(ports))
        })
    }

    /// Runs a management command, and gives the data of its answer.
    pub fn manage(&self, command: &str) -> Result<String> {
        let mut stream = self.management.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = stream.as_mut().context("the switch is not ready")?;
        stream.write_all(format!("{command}\n").as_bytes())?;
        let answer = read_to(stream, "\nvde$ ")?;
        let lines: Vec<&str> = answer.lines().collect();
        let code = lines.iter().rev().find(|line| line.starts_with('1'));
        if code.is_none_or(|line| !line.starts_with("1000")) {
            bail!("the switch refused \"{command}\": {}", answer.trim());
        }
        let data = lines
            .iter()
            .filter(|line| !line.starts_with("0000") && !line.starts_with("1000") && **line != ".");
        Ok(data.copied().collect::<Vec<_>>().join("\n"))
    }
}

fn spawn(folder: &Path, options: &[&str]) -> Result<process::Owned> {
    let child = Command::new(places::system_program("vde_switch")?)
        .arg("-s")
        .arg(folder.join("ctl"))
        .arg("-M")
        .arg(folder.join("mgmt"))
        .args(options)
        // The end of its input would end it: the pipe stays open as long as the child is ours.
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("vde_switch did not start")?;
    Ok(process::Owned::new(child, "vde_switch"))
}

fn read_to(stream: &mut UnixStream, end: &str) -> Result<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    while !text.ends_with(end.as_bytes()) {
        match stream.read(&mut buffer).context("the switch does not answer on its management socket")? {
            0 => bail!("the switch closed its management socket"),
            length => text.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn parse_ports(text: &str) -> Result<Vec<Port>> {
    let mut ports: Vec<Port> = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("Port ") {
            let number = rest.split_whitespace().next().unwrap_or_default();
            ports.push(Port {
                number: number.parse().with_context(|| format!("no port number in {line}"))?,
                ..Port::default()
            });
            continue;
        }
        let Some(port) = ports.last_mut() else { continue };
        if let Some(rest) = line.strip_prefix("IN:") {
            port.received = counters(rest)?;
        } else if let Some(rest) = line.strip_prefix("OUT:") {
            port.sent = counters(rest)?;
        } else if line.starts_with("-- endpoint") {
            let description = line.split_once(" : ").map_or(line, |(_, text)| text);
            port.endpoints.push(description.to_owned());
        }
    }
    Ok(ports)
}

/// `pkts N bytes M`.
fn counters(text: &str) -> Result<(u64, u64)> {
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    let both = numbers.next().zip(numbers.next());
    both.with_context(|| format!("no two counters in \"{}\"", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_ports_real_answer_gives_numbers_counters_and_names() {
        let text = "Port 0001 untagged_vlan=0000 ACTIVE - Unnamed Allocatable\n \
            Current User: root Access Control: (User: NONE - Group: NONE)\n \
            IN:  pkts         12          bytes                  840\n \
            OUT: pkts          3          bytes                  180\n  \
            -- endpoint ID 0003 module unix prog   : vdeplug: user=root pid=358\n";
        let port = &parse_ports(text).unwrap()[0];
        assert_eq!((port.number, port.received, port.sent), (1, (12, 840), (3, 180)));
        assert_eq!(port.endpoints, ["vdeplug: user=root pid=358"]);
    }
}
