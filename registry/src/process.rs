//! Processes by number, and who listens on a socket.

use std::fs;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use serde::{Deserialize, Serialize};

/// A process, also long after its number was given to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it began, in clock ticks since the machine did. It stays what it is when the process becomes another program.
    pub start_time: u64,
}

impl Process {
    /// The process that has this number now, if `/proc` shows it and it has not ended.
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name, which may contain anything.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        // One that ended and was not waited for.
        (!matches!(state, "Z" | "X")).then_some(Self { pid, start_time })
    }

    /// Our own.
    pub fn own() -> Option<Self> {
        Self::of(std::process::id())
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        Self::of(self.pid) == Some(*self)
    }
}

/// Whether somebody listens on a Unix socket, and if it can be told, who: the number of the process that called `listen`.
///
/// That is QEMU also after `-daemonize`. It costs the listener a connection that ends at once. Where so many wait to be served
/// that there is no room for another one, it cannot be told who it is.
pub fn listener(path: &Path) -> Option<Option<u32>> {
    let address = SocketAddrUnix::new(path).ok()?;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    match connect(&socket, &address) {
        Ok(()) => {
            let pid = socket_peercred(&socket).ok().map(|peer| peer.pid.as_raw_nonzero().get());
            // It is 0 where the process is of no concern to our namespace; rustix has no such number.
            Some(pid.and_then(|pid| u32::try_from(pid).ok()))
        }
        Err(Errno::AGAIN) => Some(None),
        Err(_) => None,
    }
}

/// Ends a listener at once: a child that another test is starting has every socket of this process until it is a program.
#[cfg(test)]
pub fn end(listener: std::os::unix::net::UnixListener) {
    rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    #[test]
    fn a_process_is_told_from_its_successor() {
        let own = Process::own().unwrap();
        assert!(own.is_alive() && own.pid == std::process::id());
        assert!(!Process { start_time: own.start_time + 1, ..own }.is_alive());
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let its = Process::of(child.id()).unwrap();
        assert!(its.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!its.is_alive());
        assert_eq!(Process::of(u32::MAX), None);
    }

    #[test]
    fn a_listener_is_found_also_when_it_is_busy() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("s");
        assert_eq!(listener(&path), None);
        let socket = UnixListener::bind(&path).unwrap();
        assert_eq!(listener(&path), Some(Some(std::process::id())));
        // As short a queue as QEMU's, with what came before still in it.
        rustix::net::listen(&socket, 0).unwrap();
        assert_eq!(listener(&path), Some(None));
        end(socket);
        assert_eq!(listener(&path), None);
        std::fs::write(scratch.path().join("file"), "").unwrap();
        assert_eq!(listener(&scratch.path().join("file")), None);
        assert_eq!(listener(Path::new(&"x".repeat(200))), None);
    }
}
