//! Our end of the cable: a datagram socket that has a name only while the switch looks for it.
//!
//! The name's owner and mode are how the switch knows who we are and whether it may plug us in (VDE fact
//! 2.6). The directory may belong to another user, who could put something else in the place of what we
//! made; so owner and mode are changed through a descriptor of what was verified to be our socket, never by
//! name. That is also why nothing can make us change files that a switch only names.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, chownat, fchmod, fstat, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, socket_with};
use rustix::process::geteuid;

use super::system;
use crate::error::OpenError;
use crate::sys;

/// Where the name goes when the switch's directory is not writable (VDE fact 2.6).
const FALLBACKS: [&str; 3] = ["/var/run", "/var/tmp", "/tmp"];

/// How many names are tried in one directory: a process of our number may have left some behind.
const ATTEMPTS: u32 = 1000;

/// Part of the names, counted over all links of this process.
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Who may use the data socket.
#[derive(Debug)]
pub(super) struct Access {
    /// The group that was asked for, as it was named and as a number.
    group: Option<(String, u32)>,
    mode: u32,
}

impl Access {
    /// `mode` 0 is the default: nobody but us.
    pub(super) fn new(group: Option<&String>, mode: u32) -> Result<Self, OpenError> {
        let group = match group {
            None => None,
            Some(name) => match sys::group_id(name).or_else(|| name.parse().ok()) {
                Some(gid) => Some((name.clone(), gid)),
                None => return Err(OpenError::UnknownGroup { group: name.clone() }),
            },
        };
        Ok(Self { group, mode: if mode == 0 { 0o700 } else { mode & 0o7777 } })
    }
}

/// A name in the file system that goes when this goes.
#[derive(Debug)]
struct Name(PathBuf);

impl Drop for Name {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            log::debug!("cannot remove the data socket's name {:?}: {error}", self.0);
        }
    }
}

/// A data socket with a name.
#[derive(Debug)]
pub(super) struct DataSocket {
    socket: OwnedFd,
    name: Name,
    /// The mode that it was given in the end.
    mode: u32,
}

impl DataSocket {
    /// Makes one in the switch's directory, or where there is room. `ctl` is the switch's socket.
    pub(super) fn bind(directory: &Path, access: &Access, ctl: &Path) -> Result<Self, OpenError> {
        sweep(directory);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
            .map_err(system("make a socket"))?;
        // The name comes into being with the mode that the socket has, less the umask: no moment passes in
        // which others could connect.
        fchmod(&socket, Mode::from_raw_mode(access.mode & 0o700))
            .map_err(system("set the mode of a socket"))?;
        let name = bind_somewhere(&socket, directory)?;
        let mut data = Self { socket, name, mode: access.mode };
        data.admit(access, ctl)?;
        Ok(data)
    }

    /// Gives the name the owner and mode by which the switch can use it.
    fn admit(&mut self, access: &Access, ctl: &Path) -> Result<(), OpenError> {
        let me = geteuid().as_raw();
        let (handle, stat) = pin(CWD, &self.name.0).map_err(system("look at our data socket"))?;
        if stat.st_uid != me {
            return Err(system("recognise our data socket, whose name was taken by another")(Errno::STALE));
        }
        match &access.group {
            Some((group, gid)) => chgrp(&handle, *gid)
                .map_err(|errno| OpenError::ChangeGroup { group: group.clone(), source: errno.into() })?,
            None if access.mode & 0o077 == 0 => {
                // A switch of a third user: let in its group, or, if we may not, everybody.
                if let Ok(switch) = fs::metadata(ctl)
                    && switch.uid() != 0
                    && switch.uid() != me
                {
                    let given = chgrp(&handle, switch.gid()).is_ok();
                    self.mode |= if given { 0o070 } else { 0o077 };
                }
            }
            None => {}
        }
        // Read anew, as a change of the group may have cleared bits.
        let mode = fstat(&handle).map_err(system("look at our data socket"))?.st_mode & 0o7777;
        if mode == self.mode {
            Ok(())
        } else {
            chmod(&handle, self.mode).map_err(system("set the mode of our data socket"))
        }
    }

    pub(super) fn name(&self) -> &Path {
        &self.name.0
    }

    /// Connects to the switch's end, then gives it the mode of ours, where we may; only so can a switch of
    /// the same user that is started with a narrow mode be shared on purpose.
    pub(super) fn join(&self, peer: &OwnedFd) -> Result<(), Errno> {
        connect(&self.socket, &SocketAddrUnix::new(name_of(peer))?)?;
        if let Err(errno) = chmod(peer, self.mode) {
            log::debug!("the mode of the switch's end stays as it is: {errno}");
        }
        Ok(())
    }

    /// The socket alone: its name goes.
    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket
    }
}

/// Binds the socket to the first name that can be had.
fn bind_somewhere(socket: &OwnedFd, directory: &Path) -> Result<Name, OpenError> {
    let pid = std::process::id();
    let inside = (directory, ".");
    let places = std::iter::once(inside).chain(FALLBACKS.map(|place| (Path::new(place), "vde.")));
    let mut tried: Vec<OsString> = Vec::new();
    let mut last = Errno::ADDRINUSE;
    for (place, prefix) in places {
        for _ in 0..ATTEMPTS {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = place.join(format!("{prefix}{pid:05}-{number:05}"));
            match SocketAddrUnix::new(&path).and_then(|address| bind(socket, &address)) {
                Ok(()) => return Ok(Name(path)),
                Err(Errno::ADDRINUSE) => last = Errno::ADDRINUSE,
                Err(errno) => {
                    last = errno;
                    break;
                }
            }
        }
        tried.push(place.into());
    }
    Err(OpenError::NoDataSocket { tried, source: last.into() })
}

/// A descriptor of a socket's name itself, and what it is. A symbolic link is no socket.
pub(crate) fn look(directory: impl AsFd, path: &Path) -> Result<(OwnedFd, Stat), Errno> {
    let handle = openat(directory, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&handle)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Socket => Ok((handle, stat)),
        _ => Err(Errno::NOTSOCK),
    }
}

/// The same, of a socket that something is to be done to. One with several names may be another's, of which somebody made a
/// link where he may write.
pub(crate) fn pin(directory: impl AsFd, path: &Path) -> Result<(OwnedFd, Stat), Errno> {
    let (handle, stat) = look(directory, path)?;
    if stat.st_nlink > 1 { Err(Errno::MLINK) } else { Ok((handle, stat)) }
}

/// Changes a group through a handle.
pub(crate) fn chgrp(handle: &OwnedFd, gid: u32) -> Result<(), Errno> {
    if gid == u32::MAX {
        return Err(Errno::INVAL);
    }
    chownat(handle, "", None, Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)
}

/// A name that leads to what a handle is of, and to nothing that is put in its place.
pub(crate) fn name_of(handle: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

/// Changes a mode through a handle. The kernel has a call for it only since 6.6.
pub(crate) fn chmod(handle: &OwnedFd, mode: u32) -> Result<(), Errno> {
    rustix::fs::chmodat(CWD, name_of(handle), Mode::from_raw_mode(mode), AtFlags::empty())
}

/// Removes names that killed clients of ours left in the switch's directory, for they pile up and keep the
/// switch from removing it (defect V-10).
fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| is_client_name(entry.file_name().as_bytes())) {
        let path = entry.path();
        let ours = fs::symlink_metadata(&path)
            .is_ok_and(|meta| meta.file_type().is_socket() && meta.uid() == geteuid().as_raw());
        if ours && is_dead(&path) {
            let removed = fs::remove_file(&path);
            log::debug!("removing {path:?}, the name of a client that died: {removed:?}");
        }
    }
}

/// Whether a name is of the form `.PPPPP-SSSSS`.
pub(crate) fn is_client_name(name: &[u8]) -> bool {
    let number = |part: &[u8]| part.len() >= 5 && part.iter().all(u8::is_ascii_digit);
    let Some(name) = name.strip_prefix(b".") else { return false };
    let mut parts = name.splitn(2, |&byte| byte == b'-');
    parts.next().is_some_and(number) && parts.next().is_some_and(number)
}

/// Whether no process has the socket of this name open. Asking the socket is surer than asking for the
/// process of its number, which may live in another container.
fn is_dead(path: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        .and_then(|probe| connect(&probe, &SocketAddrUnix::new(path)?))
        .is_err_and(|errno| errno == Errno::CONNREFUSED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_client_name_takes_nothing_else() {
        for (name, is) in [
            (".00123-00000", true),
            (".4194304-100000", true),
            (".123-00000", false),
            ("00123-00000", false),
            (".00123-", false),
            (".00123-0000x", false),
            (".00123", false),
            ("001.7", false),
        ] {
            assert_eq!(is_client_name(name.as_bytes()), is, "{name}");
        }
    }

    #[test]
    fn access_of_unknown_group_is_an_error() {
        let error = Access::new(Some(&"no such group".to_owned()), 0).expect_err("unknown");
        assert!(error.to_string().contains("no such group"), "{error}");
        let access = Access::new(Some(&"12345".to_owned()), 0).expect("a number");
        assert_eq!((access.group.map(|(_, gid)| gid), access.mode), (Some(12345), 0o700));
    }

    #[test]
    fn pin_takes_no_link_to_a_socket() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let [socket, soft, hard] = ["socket", "soft", "hard"].map(|name| dir.path().join(name));
        let _open = std::os::unix::net::UnixDatagram::bind(&socket)?;
        std::os::unix::fs::symlink(&socket, &soft)?;
        assert!(pin(CWD, &socket).is_ok());
        assert_eq!(pin(CWD, &soft).map(drop), Err(Errno::NOTSOCK));
        fs::hard_link(&socket, &hard)?;
        assert_eq!(pin(CWD, &hard).map(drop), Err(Errno::MLINK));
        assert!(look(CWD, &hard).is_ok());
        Ok(())
    }

    #[test]
    fn sweep_removes_the_dead_and_nothing_else() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let name = |name: &str| dir.path().join(name);
        drop(std::os::unix::net::UnixDatagram::bind(name(".00123-00000"))?);
        drop(std::os::unix::net::UnixDatagram::bind(name("other"))?);
        let _alive = std::os::unix::net::UnixDatagram::bind(name(".00123-00001"))?;
        fs::write(name(".00123-00002"), "a file")?;
        sweep(dir.path());
        let left = |file: &str| name(file).symlink_metadata().is_ok();
        assert!(!left(".00123-00000"));
        assert!(left(".00123-00001") && left(".00123-00002") && left("other"));
        Ok(())
    }
}
