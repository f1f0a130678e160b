//! Listening and inherited sockets, left-overs of dead predecessors.

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::cli::Door;
use crate::sys::Inherited;
use crate::{Failure, Status};

/// Longest path of a Unix socket, in bytes (`sun_path` less its terminator).
const MAX_PATH: usize = 107;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// Where front ends come from, open.
#[derive(Debug)]
pub enum Entrance {
    /// One after the other.
    Listener(UnixListener),
    /// This one and no other; `None` once it is served.
    Connected(Option<UnixStream>),
}

/// A socket that we made; its name is removed on drop if it is still ours.
#[derive(Debug)]
pub struct OwnName {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for OwnName {
    fn drop(&mut self) {
        if inode(&self.path) == Some(self.inode)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

fn failure(sentence: String) -> Failure {
    Failure { status: Status::Socket, sentence }
}

/// Opens what the configuration names; what is made belongs to `owner`, by user and group.
pub fn open(
    door: &Door,
    owner: Option<(u32, u32)>,
    inherited: &mut Inherited,
) -> Result<(Entrance, Option<OwnName>), Failure> {
    match door {
        Door::Path(path) => make(path, owner).map(|(entrance, name)| (entrance, Some(name))),
        Door::Fd(fd) => inherit(*fd, inherited).map(|entrance| (entrance, None)),
    }
}

/// Listens on `path`; the socket belongs to `owner`, by user and group.
pub fn make(path: &Path, owner: Option<(u32, u32)>) -> Result<(Entrance, OwnName), Failure> {
    let (listener, name) = bind(path, None)?;
    if let Some((uid, gid)) = owner {
        // Never what a name in its place points to.
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(|e| {
            failure(format!("cannot give socket {} to user {uid}, group {gid}: {e}", path.display()))
        })?;
    }
    Ok((Entrance::Listener(listener), name))
}

/// Listens on `path`, for those whom `mode` permits to connect; without one, for those whom the umask leaves.
pub fn bind(path: &Path, mode: Option<Mode>) -> Result<(UnixListener, OwnName), Failure> {
    let shown = path.display();
    if path.as_os_str().len() > MAX_PATH {
        return Err(failure(format!(
            "socket path {shown} is longer than {MAX_PATH} bytes; choose a shorter one"
        )));
    }
    remove_stale(path)?;
    let listener = listen(path, mode).map_err(|errno| match errno {
        Errno::NOENT => failure(format!("cannot make socket {shown}: its directory does not exist")),
        Errno::ACCESS => {
            failure(format!("cannot make socket {shown}: its directory is not writable for you"))
        }
        _ => failure(format!("cannot make socket {shown}: {errno}")),
    })?;
    let inode = inode(path).ok_or_else(|| failure(format!("socket {shown} vanished as it was made")))?;
    Ok((listener, OwnName { path: path.into(), inode }))
}

fn listen(path: &Path, mode: Option<Mode>) -> rustix::io::Result<UnixListener> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    if let Some(mode) = mode {
        // Its file gets the mode of the socket at birth: there is no moment at which others may connect.
        fchmod(&socket, mode)?;
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// A socket on which nobody listens any more is removed; anything else in the way is left alone and reported.
pub fn remove_stale(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(failure(format!("{shown} exists and is not a socket; choose another path")));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            log::info!("removing {shown}, left over by a program that died");
            std::fs::remove_file(path)
                .map_err(|e| failure(format!("cannot remove stale socket {shown}: {e}")))
        }
        Err(error) => Err(failure(format!("socket {shown} exists and cannot be probed: {error}"))),
        Ok(_) => Err(failure(format!("socket {shown} is in use by another process; choose another path"))),
    }
}

fn inherit(fd: RawFd, inherited: &mut Inherited) -> Result<Entrance, Failure> {
    let owned = inherited.take(fd).map_err(|e| failure(format!("--fd {fd}: {e}")))?;
    let listening = socket_acceptconn(owned.as_fd())
        .ok()
        .filter(|_| socket_domain(owned.as_fd()) == Ok(AddressFamily::UNIX))
        .ok_or_else(|| failure(format!("--fd {fd}: not a Unix socket")))?;
    Ok(match listening {
        true => Entrance::Listener(owned.into()),
        false => Entrance::Connected(Some(owned.into())),
    })
}

/// A socket that came over the control socket, if front ends can connect to it.
pub fn listening(socket: OwnedFd) -> Result<Entrance, Failure> {
    let is_unix = socket_domain(socket.as_fd()) == Ok(AddressFamily::UNIX);
    match is_unix && socket_acceptconn(socket.as_fd()) == Ok(true) {
        true => Ok(Entrance::Listener(socket.into())),
        false => Err(failure("the descriptor that came with nic-add is no Unix socket that listens".into())),
    }
}

/// Takes over a socket of a name that was given to it by whoever started us. Listening once more makes us the process that
/// others see at its other end.
///
/// It may be of commands that other processes of our user shall not give, such as a QEMU that was broken out of. So they get no
/// descriptor of ours from now on, neither by ptrace nor by pidfd_getfd.
pub fn inherit_listener(fd: RawFd, inherited: &mut Inherited) -> Result<UnixListener, Failure> {
    let owned = inherited.take(fd).map_err(|e| failure(format!("--control-fd {fd}: {e}")))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| failure(format!("--control-fd {fd}: it cannot be kept from other processes: {e}")))?;
    let listens = socket_domain(owned.as_fd()) == Ok(AddressFamily::UNIX);
    match listens && rustix::net::listen(&owned, BACKLOG).is_ok() {
        true => Ok(owned.into()),
        false => Err(failure(format!("--control-fd {fd}: not a Unix socket that can listen"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_takes_over_stale_and_refuses_live_and_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let (_listener, name) = bind(&path, None).unwrap();
        assert!(bind(&path, None).unwrap_err().sentence.contains("in use"));
        drop(name);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(bind(&path, None).unwrap_err().sentence.contains("not a socket"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        assert!(bind(&dir.path().join("no/s"), None).unwrap_err().sentence.contains("directory"));
        assert!(bind(&dir.path().join("x".repeat(120)), None).unwrap_err().sentence.contains("107"));
    }

    #[test]
    fn own_name_spares_a_successor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_listener, name) = bind(&path, None).unwrap();
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(name);
        assert!(path.exists());
    }

    #[test]
    fn bind_gives_the_mode_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_listener, _name) = bind(&path, Some(Mode::from_raw_mode(0o600))).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }
}
