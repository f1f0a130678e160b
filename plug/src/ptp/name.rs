//! Names of sockets: how one of ours comes by the cable's name, who removes it, and what the other end learns from it.
//!
//! # Theory of operation
//! A socket is bound to a name that lasts for a moment, and gets the name that others look for as soon as it is ready for
//! them, by a link. The kernel goes on to tell the first one to whoever is connected to the socket or got a datagram of it.
//! So a program learns without a word what the other one is: `.ptp-PID-NUMBER` is one of ours, and `+gso` behind that says
//! that it takes big frames and a header before each. Two of which both say so always send each other those and nothing
//! else. A socket's first name never changes, so a datagram's sender says how it is to be read, and the socket that ours
//! is connected to how it wants to be written to, whoever comes and goes meanwhile.
//!
//! Others bind to the cable's name, or to none, and look at nobody's.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, fchmod, flock, linkat, openat, unlink};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketType, bind};

use super::{End, PtpError, knock};
use crate::datagram::Framing;
use crate::error::OpenError;
use crate::sys;
use crate::vde::data_socket::{chgrp, chmod, look, pin};
use crate::vde::request::BIG_SUFFIX;

/// The beginning of a name that lasts for a moment.
const MOMENTARY: &str = ".ptp-";

/// Part of names that last for a moment, counted over all links of this process.
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// How many names are tried: a process of our number in another container may have some, and one that was killed left one.
const ATTEMPTS: usize = 16;

/// How often and how long somebody who removes a dead name is waited for.
const TURN_WAITS: u32 = 100;
const TURN_WAIT: Duration = Duration::from_millis(1);

/// A name that nobody else has. However long the directory's is, that of a descriptor before this one fits.
fn momentary(end: &End) -> String {
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let suffix = if end.big { BIG_SUFFIX } else { b"" };
    format!("{MOMENTARY}{}-{number}{}", std::process::id(), suffix.escape_ascii())
}

/// How two programs speak of which one takes big frames and the other one's socket is bound to this name.
pub(super) fn framing(name: &[u8]) -> Framing {
    let last = name.rsplit(|&byte| byte == b'/' || byte == 0).next().unwrap_or_default();
    let big = last.starts_with(MOMENTARY.as_bytes()) && last.ends_with(BIG_SUFFIX);
    if big { Framing::Header } else { Framing::Plain }
}

/// The same of the socket that ours is connected to.
pub(super) fn framing_of_peer(socket: impl AsFd, end: &End) -> Framing {
    if end.big { framing(sys::peer_name(socket.as_fd()).bytes()) } else { Framing::Plain }
}

/// Binds a socket to a name that lasts for a moment, where `address` puts it; returns the name.
fn bind_momentary(
    socket: &OwnedFd,
    end: &End,
    address: impl Fn(&str) -> Result<SocketAddrUnix, Errno>,
) -> Result<String, Errno> {
    for _ in 0..ATTEMPTS {
        let name = momentary(end);
        match bind(socket, &address(&name)?) {
            Ok(()) => return Ok(name),
            Err(Errno::ADDRINUSE) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::ADDRINUSE)
}

/// Has a socket that nobody looks for say that we take big frames, if we do. Without a name it says nothing.
pub(super) fn sign(socket: &OwnedFd, end: &End) {
    let address = |name: &str| SocketAddrUnix::new_abstract_name(name.as_bytes());
    if end.big
        && let Err(errno) = bind_momentary(socket, end, address)
    {
        log::debug!("cannot name a socket: {errno}");
    }
}

/// The name of a socket of ours, which goes with this if it is still that socket's. To be dropped before the socket, for the
/// name of a dead one is anybody's.
#[derive(Debug)]
pub(super) struct Name {
    path: PathBuf,
    identity: (u64, u64),
}

impl Name {
    /// Gives a socket a name that does not exist, lets in whom it should, and makes it `ready` before anybody can find
    /// it: a name of a socket that does not listen yet, for one, looks like that of a dead program and would be taken
    /// over. `None`: somebody was faster.
    pub(super) fn give(
        socket: &OwnedFd,
        path: &Path,
        end: &End,
        ready: impl FnOnce() -> Result<(), Errno>,
    ) -> Result<Option<Self>, OpenError> {
        let failed = |errno: Errno| PtpError::Make { path: path.into(), source: errno.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = openat(CWD, directory_of(path), flags, Mode::empty()).map_err(failed)?;
        let here = |name: &str| format!("/proc/self/fd/{}/{name}", handle.as_raw_fd());
        // The name comes into being with the mode that the socket has, less the umask: no moment passes in which others
        // could connect.
        fchmod(socket, Mode::from_raw_mode(end.mode & 0o700)).map_err(failed)?;
        let first = bind_momentary(socket, end, |name| SocketAddrUnix::new(here(name))).map_err(failed)?;
        let first = here(&first);
        let mut name = admit(Path::new(&first), path, end)?;
        ready().map_err(failed)?;
        match linkat(CWD, &first, CWD, path, AtFlags::empty()) {
            // The other name goes.
            Ok(()) => {
                let kept = Self { path: path.into(), identity: name.identity };
                drop(std::mem::replace(&mut name, kept));
                Ok(Some(name))
            }
            Err(Errno::EXIST) => Ok(None),
            Err(errno) => Err(failed(errno).into()),
        }
    }
}

/// Lets in whom it should to a socket that has this name; `path` is what the user knows it by.
fn admit(name: &Path, path: &Path, end: &End) -> Result<Name, OpenError> {
    let failed = |errno: Errno| PtpError::Make { path: path.into(), source: errno.into() };
    let (handle, stat) = pin(CWD, name).map_err(failed)?;
    let name = Name { path: name.into(), identity: (stat.st_dev, stat.st_ino) };
    if let Some((group, gid)) = &end.group {
        chgrp(&handle, *gid)
            .map_err(|errno| OpenError::ChangeGroup { group: group.clone(), source: errno.into() })?;
    }
    chmod(&handle, end.mode).map_err(failed)?;
    Ok(name)
}

impl Drop for Name {
    fn drop(&mut self) {
        let same = look(CWD, &self.path).is_ok_and(|(_, stat)| (stat.st_dev, stat.st_ino) == self.identity);
        if same && let Err(error) = std::fs::remove_file(&self.path) {
            log::debug!("cannot remove the name {:?}: {error}", self.path);
        }
    }
}

/// Removes the name of a socket that nobody has any more, and no other: somebody may be doing the same, and have put a
/// living socket there since the caller looked. So those who remove take turns, and look anew in theirs; a name that
/// is there is given to another socket only after it was removed.
pub(super) fn remove_dead(path: &Path) -> Result<(), PtpError> {
    // Where there are no turns (a directory that may not be read), a moment stays in which one may be too late.
    let _turn = take_turn(directory_of(path));
    match look(CWD, path) {
        Ok(_) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(_) => return Err(PtpError::NotOurs { path: path.into(), what: "no socket" }),
    }
    // A datagram socket, which one that listens does not notice.
    if !matches!(knock(path, SocketType::DGRAM), Err(Errno::CONNREFUSED)) {
        return Ok(());
    }
    match unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(PtpError::Make { path: path.into(), source: errno.into() }),
    }
}

/// Waits for a lock on a directory, which ends with the descriptor. What is done under it takes microseconds; nobody who
/// holds it for longer is waited for.
fn take_turn(directory: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = openat(CWD, directory, flags, Mode::empty()).ok()?;
    for _ in 0..TURN_WAITS {
        match flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(handle),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(TURN_WAIT),
            Err(_) => return None,
        }
    }
    None
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptp::new_socket;

    #[test]
    fn framing_is_told_by_names_of_ours_alone() {
        let end = |big| End { group: None, mode: 0o700, big };
        for (name, expected) in [
            (momentary(&end(true)), Framing::Header),
            (format!("/proc/self/fd/2147483647/{}", momentary(&end(true))), Framing::Header),
            (format!("\0{}", momentary(&end(true))), Framing::Header),
            (momentary(&end(false)), Framing::Plain),
            (String::new(), Framing::Plain),
            ("/tmp/p+gso".into(), Framing::Plain),
            ("/tmp/.ptp-1-2+gso/p".into(), Framing::Plain),
            ("/tmp/.ptp-1-2+gso+".into(), Framing::Plain),
        ] {
            assert_eq!(framing(name.as_bytes()), expected, "{name:?}");
        }
    }

    #[test]
    fn a_name_that_was_left_behind_is_passed_over() {
        let home = tempfile::tempdir().expect("a directory");
        let end = End { group: None, mode: 0o700, big: true };
        let next = COUNTER.load(Ordering::Relaxed);
        let left: Vec<_> = (next..next + 3)
            .map(|number| home.path().join(format!("{MOMENTARY}{}-{number}+gso", std::process::id())))
            .collect();
        for name in &left {
            std::fs::write(name, "").expect("a file");
        }
        let path = home.path().join("p");
        let socket = new_socket(SocketType::DGRAM).expect("a socket");
        let name = Name::give(&socket, &path, &end, || Ok(())).expect("a name");
        assert!(name.is_some() && path.exists());
        drop(name);
        assert_eq!(std::fs::read_dir(home.path()).expect("a directory").count(), left.len());
    }
}
