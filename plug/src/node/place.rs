//! The directory that a node is found by: made, taken over from a dead node, and removed.
//!
//! Theory of operation. Whoever serves a directory holds a lock on it (flock, so the kernel ends it with the process).
//! An existing directory is taken over only when it is ours, nobody holds the lock, it holds nothing but what networks
//! leave behind, and nobody has any of its sockets open. Other programs that serve networks know nothing of the lock,
//! so the sockets are asked: a datagram socket that is connected to the name of a stream socket fails in one way if
//! somebody has that open and in another if nobody has, and the one who has it does not notice. (A connection of the
//! right kind would make a `multi://` of the original library spin for ever, defect M-2.)
//!
//! While a directory is being filled, and its contents are being judged, it has mode 0700. Later others may write to
//! it, if its mode says so; therefore everything in it is then changed through descriptors of what was verified to be
//! a socket of ours. Others may also own what is around it, and have its name mean another directory: then our sockets
//! are made through a descriptor too, at the price that tools like `ss` show that instead of the name.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Gid, Mode, OFlags, Stat, chownat, fchmod, fchown, flock,
    fstat, mkdirat, openat, stat, statat, unlinkat,
};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::geteuid;

use super::error::NodeError;
use super::settings::Access;
use crate::vde::data_socket::{chmod, is_client_name, name_of, pin};
use crate::vde::request::{BIG_SUFFIX, SUN_PATH_LEN};

/// Longest name of a directory: our sockets in it are called `/fd0NNNNNNN+gso`, with a NUL behind; those of clients are
/// no longer.
const DIRECTORY_MAX: usize = SUN_PATH_LEN - 1 - "/fd0NNNNNNN+gso".len();

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// How often something is tried anew that others may come in between of.
const ATTEMPTS: usize = 8;

/// The directory of a node that lives. It goes when this goes.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// The directory itself, locked.
    handle: OwnedFd,
    /// The name of it by which sockets are made there.
    inside: PathBuf,
    /// Mode of data sockets.
    mode: u32,
    /// Device and inode of our `ctl`.
    ctl: Option<(u64, u64)>,
}

impl Place {
    /// Makes the directory, or takes it over, and listens in it.
    pub(super) fn take(path: &Path, access: &Access) -> Result<(Self, OwnedFd), NodeError> {
        let path = absolute(path)?;
        let len = path.as_os_str().as_bytes().len();
        if len > DIRECTORY_MAX {
            return Err(NodeError::NameTooLong { path, len, max: DIRECTORY_MAX });
        }
        for _ in 0..ATTEMPTS {
            let made = make(&path)?;
            let Some(handle) = lock(&path)? else { continue };
            if !made {
                judge(&path, &handle)?;
            }
            // From here on it is ours, to be removed whatever happens.
            let inside = if is_settled(&path) { path.clone() } else { name_of(&handle).into() };
            let mut place = Self { path, handle, inside, mode: access.mode, ctl: None };
            let listener = place.fill(access)?;
            return Ok((place, listener));
        }
        Err(NodeError::Served { path })
    }

    /// Removes what was left behind, listens on `ctl`, and lets others in.
    fn fill(&mut self, access: &Access) -> Result<OwnedFd, NodeError> {
        let make = |path: PathBuf| move |errno: Errno| NodeError::Make { path, source: errno.into() };
        fchmod(&self.handle, Mode::from_raw_mode(0o700)).map_err(make(self.path.clone()))?;
        for name in judge(&self.path, &self.handle)? {
            self.remove(&name).map_err(make(self.path.join(&name)))?;
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(system("make a socket"))?;
        let path = self.path.join("ctl");
        let bound = SocketAddrUnix::new(self.inside.join("ctl")).and_then(|address| {
            bind(&listener, &address)?;
            let stat = statat(&self.handle, "ctl", AtFlags::SYMLINK_NOFOLLOW)?;
            self.ctl = Some((stat.st_dev, stat.st_ino));
            listen(&listener, BACKLOG)
        });
        bound.map_err(make(path.clone()))?;
        if let Some((group, gid)) = &access.group {
            let refused = |errno: Errno| NodeError::Group { group: group.clone(), source: errno.into() };
            let gid = Some(Gid::from_raw(*gid));
            fchown(&self.handle, None, gid).map_err(refused)?;
            chownat(&self.handle, "ctl", None, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(refused)?;
        }
        self.set_mode("ctl").map_err(make(path))?;
        fchmod(&self.handle, Mode::from_raw_mode(access.dirmode)).map_err(make(self.path.clone()))?;
        Ok(listener)
    }

    /// Gives a data socket a name in the directory; returns the whole name.
    pub(super) fn bind(&self, socket: &OwnedFd, name: &str) -> Result<PathBuf, Errno> {
        let address = SocketAddrUnix::new(self.inside.join(name))?;
        // The name comes into being with this mode, less the umask: it never lets in more than it should.
        fchmod(socket, Mode::from_raw_mode(self.mode))?;
        match bind(socket, &address) {
            // The number in it is that of a descriptor of ours, so it is no other peer's.
            Err(Errno::ADDRINUSE) => {
                self.remove(name)?;
                bind(socket, &address)?;
            }
            result => result?,
        }
        self.set_mode(name)?;
        Ok(self.path.join(name))
    }

    /// Gives a socket of ours its mode, whatever the umask is.
    fn set_mode(&self, name: &str) -> Result<(), Errno> {
        let (socket, stat) = pin(&self.handle, Path::new(name))?;
        if stat.st_mode & 0o7777 == self.mode { Ok(()) } else { chmod(&socket, self.mode) }
    }

    /// Removes a name from the directory.
    pub(super) fn remove(&self, name: &str) -> Result<(), Errno> {
        match unlinkat(&self.handle, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            result => result,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let ctl = statat(&self.handle, "ctl", AtFlags::SYMLINK_NOFOLLOW);
        if ctl.is_ok_and(|stat| self.ctl == Some((stat.st_dev, stat.st_ino))) {
            let removed = self.remove("ctl");
            log::debug!("removing the socket of {:?}: {removed:?}", self.path);
        }
        // Nobody can join any more; a client that tries right now may add its name once.
        for _ in 0..ATTEMPTS {
            for (name, _) in entries(&self.handle).unwrap_or_default() {
                if leaves(&name)
                    && let Err(errno) = self.remove(&name)
                {
                    log::debug!("cannot remove {name:?} from {:?}: {errno}", self.path);
                }
            }
            if !is_at(&self.handle, &self.path) {
                return;
            }
            match unlinkat(CWD, &self.path, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(errno) => return log::debug!("cannot remove {:?}: {errno}", self.path),
                Ok(()) => return,
            }
        }
    }
}

fn system(what: &'static str) -> impl FnOnce(Errno) -> NodeError {
    move |errno| NodeError::System { what, source: errno.into() }
}

/// The name that works from every directory: clients are told names in it.
fn absolute(path: &Path) -> Result<PathBuf, NodeError> {
    let no_parent = || NodeError::NoParent { path: path.into() };
    let Some(name) = path.file_name() else {
        return match path.is_dir() {
            true => Err(NodeError::Occupied { path: path.into(), name: "..".into() }),
            false => Err(no_parent()),
        };
    };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match parent.canonicalize() {
        Ok(parent) => Ok(parent.join(name)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR) => Err(no_parent()),
            _ => Err(NodeError::Make { path: path.into(), source: error }),
        },
    }
}

/// Makes the directory; whether it is new.
fn make(path: &Path) -> Result<bool, NodeError> {
    match mkdirat(CWD, path, Mode::from_raw_mode(0o700)) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(Errno::NOENT) => Err(NodeError::NoParent { path: path.into() }),
        Err(errno) => Err(NodeError::Make { path: path.into(), source: errno.into() }),
    }
}

/// Opens and locks the directory; `None` if that is not what its name means any more.
fn lock(path: &Path) -> Result<Option<OwnedFd>, NodeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = match openat(CWD, path, flags, Mode::empty()) {
        Ok(handle) => handle,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => return Err(NodeError::NotADirectory { path: path.into() }),
        Err(Errno::ACCESS) => return Err(NodeError::Foreign { path: path.into() }),
        Err(errno) => return Err(system("open the network's directory")(errno)),
    };
    match flock(&handle, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(is_at(&handle, path).then_some(handle)),
        Err(Errno::WOULDBLOCK) => Err(NodeError::Served { path: path.into() }),
        Err(errno) => Err(system("lock the network's directory")(errno)),
    }
}

/// Whether a directory is still what its name means.
fn is_at(handle: &OwnedFd, path: &Path) -> bool {
    match (fstat(handle), statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)) {
        (Ok(ours), Ok(there)) => (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino),
        _ => false,
    }
}

/// Whether nobody but root and us can have a name mean another directory. None of its parents is a link.
fn is_settled(path: &Path) -> bool {
    let me = geteuid().as_raw();
    path.ancestors().skip(1).all(|parent| {
        stat(parent).is_ok_and(|stat| {
            // In a sticky directory others cannot rename what is not theirs.
            let closed = stat.st_mode & 0o022 == 0 || stat.st_mode & 0o1000 != 0;
            closed && (stat.st_uid == 0 || stat.st_uid == me)
        })
    })
}

/// Whether an existing directory may be taken over; the names in it that nobody uses.
fn judge(path: &Path, handle: &OwnedFd) -> Result<Vec<String>, NodeError> {
    let owner = fstat(handle).map_err(system("look at the network's directory"))?.st_uid;
    let (inside, mut dead) = (PathBuf::from(name_of(handle)), Vec::new());
    for (name, stat) in entries(handle).map_err(system("read the network's directory"))? {
        let is_socket = FileType::from_raw_mode(stat.st_mode) == FileType::Socket;
        if !is_socket || name != "ctl" && !leaves(&name) {
            return Err(NodeError::Occupied { path: path.into(), name });
        }
        match (is_dead(&inside.join(&name)), is_client_name(name.as_bytes())) {
            (true, _) => dead.push(name),
            // A client that is looking for the network will remove its name by itself.
            (false, true) => {}
            (false, false) => return Err(NodeError::Served { path: path.into() }),
        }
    }
    // Another user could change what is in it under our hands, whoever we are.
    if owner == geteuid().as_raw() { Ok(dead) } else { Err(NodeError::Foreign { path: path.into() }) }
}

/// What is in a directory.
fn entries(handle: impl AsFd) -> Result<Vec<(String, Stat)>, Errno> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(&handle)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match statat(&handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            // A name of ours is ASCII; one that is not text is somebody else's, however it is written here.
            Ok(stat) => {
                let name = OsString::from_vec(name.to_bytes().to_vec());
                entries.push((name.to_string_lossy().into_owned(), stat));
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(entries)
}

/// Whether a name is one of those that networks leave behind beside `ctl`: a node's `fdN` or `fd0N`, a client's `.PID-N`.
fn leaves(name: &str) -> bool {
    let bytes = name.as_bytes();
    let number = bytes.strip_prefix(b"fd").map(|rest| rest.strip_suffix(BIG_SUFFIX).unwrap_or(rest));
    number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
        || is_client_name(bytes)
}

/// Whether no process has the socket of this name open; asks without its noticing.
fn is_dead(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        .and_then(|probe| connect(&probe, &SocketAddrUnix::new(path)?))
        .is_err_and(|errno| matches!(errno, Errno::CONNREFUSED | Errno::NOENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_knows_the_names_of_networks() {
        for (name, is) in [
            ("fd5", true),
            ("fd123+gso", true),
            (".00123-00000", true),
            ("fd", false),
            ("fd+gso", false),
            ("fd5x", false),
            ("fd5+gso+gso", false),
            ("001.7", false),
            ("notes", false),
        ] {
            assert_eq!(leaves(name), is, "{name}");
        }
    }

    #[test]
    fn is_dead_tells_the_open_from_the_closed_of_either_kind() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (stream, datagram) = (dir.path().join("ctl"), dir.path().join("fd5"));
        let listener = std::os::unix::net::UnixListener::bind(&stream)?;
        let socket = std::os::unix::net::UnixDatagram::bind(&datagram)?;
        assert!(!is_dead(&stream) && !is_dead(&datagram));
        listener.set_nonblocking(true)?;
        assert!(listener.accept().is_err(), "it noticed");
        drop((listener, socket));
        assert!(is_dead(&stream) && is_dead(&datagram));
        Ok(())
    }
}
