//! The switch's side of the file system: its directory, which socket in it to connect to, and a sentence for
//! each way in which that fails.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, fstat, openat, stat};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::data_socket::pin;
use super::request::SUN_PATH_LEN;
use super::{Deadline, system};
use crate::error::OpenError;
use crate::locator::Port;
use crate::sys;

/// Where a switch is when nobody says where (VDE fact 3.4).
const DEFAULTS: [&str; 2] = ["/var/run/vde.ctl", "/tmp/vde.ctl"];

/// Longest name of a directory: the switch's own sockets are called `/NNN.FFF`, with a NUL behind. Longer names
/// are cut by the switch without a word, and then two of its sockets have the same one (defect V-7).
const DIRECTORY_MAX: usize = SUN_PATH_LEN - 1 - "/NNN.FFF".len();

/// A switch that accepted our connection.
#[derive(Debug)]
pub(super) struct Switch {
    directory: PathBuf,
    /// The directory itself, whatever becomes of its name.
    handle: OwnedFd,
    /// The socket that was connected to.
    ctl: PathBuf,
    stream: OwnedFd,
}

impl Switch {
    /// Connects to the switch of this directory, or to a default one if the path is empty.
    pub(super) fn connect(
        path: &Path,
        port: &Port,
        timeout: Duration,
        deadline: Deadline,
    ) -> Result<Self, OpenError> {
        if !path.as_os_str().is_empty() {
            return Self::connect_to(path, port, timeout, deadline);
        }
        // The first one that lives; else the first reason that is more than "nothing there".
        let mut reason = OpenError::NoDefaultSwitch;
        for path in DEFAULTS {
            match Self::connect_to(Path::new(path), port, timeout, deadline) {
                Ok(switch) => return Ok(switch),
                Err(OpenError::NoSwitch { .. }) => {}
                Err(error) if matches!(reason, OpenError::NoDefaultSwitch) => reason = error,
                Err(_) => {}
            }
        }
        Err(reason)
    }

    fn connect_to(
        path: &Path,
        port: &Port,
        timeout: Duration,
        deadline: Deadline,
    ) -> Result<Self, OpenError> {
        // The switch needs absolute names, and a symbolic link may name its directory.
        let directory = fs::canonicalize(path).map_err(|error| explain_lookup(path, error))?;
        let len = directory.as_os_str().as_bytes().len();
        if len > DIRECTORY_MAX {
            return Err(OpenError::NameTooLong { path: directory, len, max: DIRECTORY_MAX });
        }
        let handle =
            openat(CWD, &directory, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .map_err(|errno| explain_lookup(path, errno.into()))?;
        let group = match port {
            Port::Number(number) => Some(number.to_string()),
            Port::Group(name) => Some(name.clone()),
            Port::Any | Port::Management => None,
        };
        // Each attempt has a socket of its own (defect V-4).
        if let Some(group) = group {
            let socket = directory.join(&group);
            match connect_stream(&socket, deadline)? {
                Ok(stream) => return Ok(Self { directory, handle, ctl: socket, stream }),
                Err(Errno::NOENT | Errno::NAMETOOLONG) if !matches!(port, Port::Group(_)) => {}
                Err(Errno::NOENT | Errno::NAMETOOLONG) if directory.join("ctl").exists() => {
                    return Err(OpenError::NoPortGroup { path: path.into(), group });
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => {}
                Err(errno) => return Err(explain_connect(path, &socket, errno, timeout)),
            }
        }
        let ctl = directory.join("ctl");
        match connect_stream(&ctl, deadline)? {
            Ok(stream) => Ok(Self { directory, handle, ctl, stream }),
            Err(errno) => Err(explain_connect(path, &ctl, errno, timeout)),
        }
    }

    /// The switch's directory, absolute and without links.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The socket that was connected to.
    pub(super) fn ctl(&self) -> &Path {
        &self.ctl
    }

    /// The socket that the switch names as its end of the cable. It has to be one in the switch's directory:
    /// whoever runs a switch could otherwise have us send to any socket that we may use and it may not. The
    /// switch may spell the directory in another way than we do, so not the names are compared.
    pub(super) fn peer(&self, named: &Path) -> Result<OwnedFd, OpenError> {
        let inside = |parent: &Path| {
            let (theirs, ours) = (stat(parent)?, fstat(&self.handle)?);
            Ok::<_, Errno>((theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino))
        };
        match (named.parent(), named.file_name()) {
            (Some(parent), Some(name)) if named.is_absolute() && inside(parent) == Ok(true) => {
                let (peer, _) =
                    pin(&self.handle, name.as_ref()).map_err(|errno| self.bad_peer(named, errno))?;
                Ok(peer)
            }
            _ => Err(OpenError::BadAnswer {
                path: self.directory.clone(),
                why: format!("it names {named:?} as its end of the cable, which is not in its directory"),
            }),
        }
    }

    /// Why the switch's end cannot be connected to.
    pub(super) fn bad_peer(&self, named: &Path, errno: Errno) -> OpenError {
        OpenError::BadPeer { path: self.directory.clone(), socket: named.into(), source: errno.into() }
    }

    pub(super) fn stream(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(super) fn into_stream(self) -> OwnedFd {
        self.stream
    }
}

/// Connects a new stream socket. The outer error is ours, the inner one the other side's.
fn connect_stream(path: &Path, deadline: Deadline) -> Result<Result<OwnedFd, Errno>, OpenError> {
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(system("make a socket"))?;
    let address = match SocketAddrUnix::new(path) {
        Ok(address) => address,
        Err(errno) => return Ok(Err(errno)),
    };
    loop {
        // A local connect waits only while the listener's queue is full. A non-blocking one would fail at
        // once and could not be polled for, so the kernel is given the time limit instead.
        let left = match deadline.left() {
            Ok(left) => left.map(|left| left.max(Duration::from_millis(1))),
            Err(_) => return Ok(Err(Errno::AGAIN)),
        };
        set_socket_timeout(&stream, Timeout::Send, left).map_err(system("set a time limit"))?;
        match connect(&stream, &address) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Ok(Err(errno)),
        }
    }
    set_socket_timeout(&stream, Timeout::Send, None).map_err(system("set a time limit"))?;
    rustix::io::ioctl_fionbio(&stream, true).map_err(system("make a socket non-blocking"))?;
    Ok(Ok(stream))
}

/// Why a directory could not be found.
fn explain_lookup(path: &Path, error: io::Error) -> OpenError {
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => OpenError::NoSwitch { path: path.into() },
        Some(Errno::NOTDIR) => {
            OpenError::NotASwitch { path: path.into(), why: "a part of its path is a file" }
        }
        Some(Errno::ACCESS) => OpenError::NoPermission { path: path.into(), object: refusing(path) },
        Some(Errno::NAMETOOLONG) => {
            let len = path.as_os_str().as_bytes().len();
            OpenError::NameTooLong { path: path.into(), len, max: DIRECTORY_MAX }
        }
        _ => OpenError::System { what: "resolve the path of the switch", source: error },
    }
}

/// Why a socket in a directory could not be connected to.
fn explain_connect(path: &Path, socket: &Path, errno: Errno, timeout: Duration) -> OpenError {
    let path = path.to_path_buf();
    let not_a_switch = |why| OpenError::NotASwitch { path: path.clone(), why };
    match errno {
        Errno::ACCESS | Errno::PERM => OpenError::NoPermission { path, object: refusing(socket) },
        Errno::AGAIN => OpenError::BusySwitch { path, timeout },
        Errno::NOENT => not_a_switch("there is no socket called ctl in it"),
        Errno::NOTDIR => match fs::metadata(&path) {
            Ok(meta) if meta.file_type().is_socket() => not_a_switch("it is a single socket"),
            _ => not_a_switch("it is a file, not a directory"),
        },
        Errno::PROTOTYPE => not_a_switch("its ctl is a socket of another kind"),
        Errno::CONNREFUSED => match fs::metadata(socket) {
            Ok(meta) if !meta.file_type().is_socket() => not_a_switch("its ctl is no socket"),
            _ => OpenError::DeadSwitch { path, socket: socket.into() },
        },
        errno => system("connect to the switch")(errno),
    }
}

/// The thing on the way to `path`, or at its end, that can still be looked at, with its owner and mode: that
/// is the one that refuses.
fn refusing(path: &Path) -> String {
    for place in path.ancestors() {
        if let Ok(meta) = fs::metadata(place) {
            let user = sys::user_name(meta.uid()).unwrap_or_else(|| meta.uid().to_string());
            let group = sys::group_name(meta.gid()).unwrap_or_else(|| meta.gid().to_string());
            return format!("{place:?} belongs to {user}:{group} and has mode {:04o}", meta.mode() & 0o7777);
        }
    }
    "a directory on the way to it cannot be searched".into()
}
