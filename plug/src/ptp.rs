//! `ptp://PATH[group=/mode=/form=]`: a cable between two programs (VDE fact 3.5).
//!
//! Two forms are in use, and which one a path has is seen by the socket that is there:
//! - **datagram**, of vdeplug 4.0.1: the first program's socket is `PATH`, the second's `PATH+`, and each sends to the
//!   other's (module [`pair`]). A path with nothing there becomes this, unless `form=seqpacket` asks for the other.
//! - **seqpacket**, of later versions: the first program listens at `PATH` and the second connects (module
//!   [`connection`]).
//!
//! In both, either program may end and come back; what is sent meanwhile is lost. A third one is refused. A name whose
//! program died is taken over.

mod connection;
mod pair;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, fchmod, flock, linkat, openat, unlink};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::error::OpenError;
use crate::link::Link;
use crate::locator::{LocatorProblem, PathForm, parse_mode};
use crate::vde::data_socket::{chgrp, chmod, look, pin};
use crate::{OpenErrorKind, OpenOptions, sys};

/// Room for a name in `sockaddr_un`, with its NUL and the `+` of the second program's.
const PATH_MAX: usize = 106;

/// How many programs may wait to be answered.
const BACKLOG: i32 = 8;

/// How often and how long somebody who removes a dead name is waited for.
const TURN_WAITS: u32 = 100;
const TURN_WAIT: Duration = Duration::from_millis(1);

/// Part of names that last for a moment, counted over all links of this process.
static MOMENTARY: AtomicU32 = AtomicU32::new(0);

/// Why a `ptp` link could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PtpError {
    /// No path is given.
    #[error("ptp:// names no socket; write ptp://PATH, the same path for both ends")]
    NoPath,

    /// The path leaves no room in a socket's address.
    #[error("the path {path:?} is too long for a socket: {} bytes, of which there may be {PATH_MAX}; choose a shorter one", .path.as_os_str().len())]
    TooLong {
        /// The path.
        path: PathBuf,
    },

    /// Both ends of the cable are in use.
    #[error(
        "two programs hold the ends of the cable {path:?} already; end one of them, or choose another path"
    )]
    Taken {
        /// The path.
        path: PathBuf,
    },

    /// The program at the other end speaks the other form.
    #[error("the program that waits at {path:?} uses the form {found}; write form={found} or nothing")]
    OtherForm {
        /// The path.
        path: PathBuf,
        /// Its form.
        found: Form,
    },

    /// Something else has the name.
    #[error("{path:?} exists and is {what}; choose a name that does not exist")]
    NotOurs {
        /// The name.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },

    /// The program at the other end does not answer.
    #[error("the program that waits at {path:?} did not answer within {timeout:?}; wake it, or end it")]
    Silent {
        /// The path.
        path: PathBuf,
        /// How long was waited.
        timeout: Duration,
    },

    /// The program at the other end closed the connection, or answered with an error.
    #[error("the program that waits at {path:?} refused the connection; end it, or choose another path")]
    Refused {
        /// The path.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },

    /// The other end may not be used, or cannot be looked for.
    #[error("cannot connect to {path:?}; make its directory, or let its owner open it with group= and mode=")]
    Unreachable {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// Our end could not be made.
    #[error("cannot make the socket {path:?}; make its directory writable, or choose a path in another one")]
    Make {
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl PtpError {
    /// The coarse class of this error.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            Self::NoPath | Self::TooLong { .. } | Self::OtherForm { .. } => OpenErrorKind::Usage,
            Self::Taken { .. } | Self::Refused { .. } => OpenErrorKind::Refused,
            Self::NotOurs { .. } => OpenErrorKind::NotFound,
            Self::Silent { .. } => OpenErrorKind::Unavailable,
            Self::Unreachable { source, .. } | Self::Make { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => OpenErrorKind::Permission,
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OpenErrorKind::NotFound,
                _ => OpenErrorKind::System,
            },
        }
    }
}

/// How the two programs speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Two datagram sockets.
    Datagram,
    /// A connection.
    SeqPacket,
}

impl std::fmt::Display for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Datagram => "datagram",
            Self::SeqPacket => "seqpacket",
        })
    }
}

/// Who may use our end.
#[derive(Clone, Debug)]
struct Access {
    group: Option<(String, u32)>,
    mode: u32,
}

/// Opens either form.
pub(crate) fn open(argument: &str, options: &OpenOptions) -> Result<Arc<dyn Link>, OpenError> {
    let locator = PathForm::parse(argument, &["group", "mode", "form"], None)?;
    let (mut group, mut mode, mut form) = (options.group.clone(), options.mode, None);
    for option in &locator.options {
        let value = &option.value;
        match option.key {
            "group" => group = Some(value.clone()),
            "mode" => mode = locator.check(option, parse_mode(value))?.unwrap_or(mode),
            _ => form = Some(locator.check(option, parse_form(value))?),
        }
    }
    let group = match group.filter(|group| !group.is_empty()) {
        None => None,
        Some(name) => match sys::group_id(&name).or_else(|| name.parse().ok()) {
            Some(gid) => Some((name, gid)),
            None => return Err(OpenError::UnknownGroup { group: name }),
        },
    };
    let access = Access { group, mode: if mode == 0 { 0o700 } else { mode & 0o7777 } };
    let path = PathBuf::from(&locator.path);
    if path.as_os_str().is_empty() {
        return Err(PtpError::NoPath.into());
    }
    if path.as_os_str().as_bytes().len() > PATH_MAX {
        return Err(PtpError::TooLong { path }.into());
    }
    // A peer that comes back is looked for by name, wherever the process is then.
    let path =
        std::path::absolute(&path).ok().filter(|path| path.as_os_str().len() <= PATH_MAX).unwrap_or(path);
    let found = match knock(&path, SocketType::DGRAM) {
        Ok(_) | Err(Errno::PERM) => Some(Form::Datagram),
        Err(Errno::PROTOTYPE) => Some(Form::SeqPacket),
        Err(_) => None,
    };
    match (form.or(found).unwrap_or(Form::Datagram), found) {
        (wanted, Some(found)) if wanted != found => Err(PtpError::OtherForm { path, found }.into()),
        (Form::Datagram, _) => Ok(Arc::new(pair::PairLink::open(path, &access)?)),
        (Form::SeqPacket, _) => {
            Ok(Arc::new(connection::ConnectionLink::open(path, access, options.timeout)?))
        }
    }
}

fn parse_form(word: &str) -> Result<Form, LocatorProblem> {
    match word {
        "datagram" => Ok(Form::Datagram),
        "seqpacket" => Ok(Form::SeqPacket),
        _ => Err(LocatorProblem::BadValue {
            key: "form",
            word: word.into(),
            right: "form=datagram or form=seqpacket",
        }),
    }
}

fn new_socket(kind: SocketType) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

/// Connects to a name. `ECONNREFUSED`: nobody has it. `EPERM`: a datagram socket that talks to another. `EPROTOTYPE`: a
/// socket of another type.
fn knock(path: &Path, kind: SocketType) -> Result<OwnedFd, Errno> {
    let socket = new_socket(kind)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// The name of a socket of ours, which goes with this if it is still that socket's. To be dropped before the socket, for the
/// name of a dead one is anybody's.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    identity: (u64, u64),
}

impl Name {
    /// Binds a socket to a name that does not exist and lets in whom it should. `None`: somebody was faster.
    fn bind(socket: &OwnedFd, path: &Path, access: &Access) -> Result<Option<Self>, OpenError> {
        match admit(socket, path, path, access) {
            Ok(name) => Ok(Some(name)),
            Err(OpenError::Ptp(PtpError::Make { source, .. })) if is(&source, Errno::ADDRINUSE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As `bind`, and lets the socket listen. A name of a socket that does not listen yet looks like that of a dead
    /// program and would be taken over, so the socket gets this name when it listens.
    fn listen(socket: &OwnedFd, path: &Path, access: &Access) -> Result<Option<Self>, OpenError> {
        let failed = |errno: Errno| PtpError::Make { path: path.into(), source: errno.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = openat(CWD, directory_of(path), flags, Mode::empty()).map_err(failed)?;
        // However long the directory's name is, this fits.
        let number = MOMENTARY.fetch_add(1, Ordering::Relaxed);
        let first = format!("/proc/self/fd/{}/.ptp-{}-{number}", handle.as_raw_fd(), std::process::id());
        let mut name = admit(socket, Path::new(&first), path, access)?;
        listen(socket, BACKLOG).map_err(failed)?;
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

/// Binds a socket to a name and lets in whom it should; `path` is what the user knows it by.
fn admit(socket: &OwnedFd, name: &Path, path: &Path, access: &Access) -> Result<Name, OpenError> {
    let failed = |errno: Errno| PtpError::Make { path: path.into(), source: errno.into() };
    // The name comes into being with the mode that the socket has, less the umask: no moment passes in which others
    // could connect.
    fchmod(socket, Mode::from_raw_mode(access.mode & 0o700)).map_err(failed)?;
    SocketAddrUnix::new(name).and_then(|address| bind(socket, &address)).map_err(failed)?;
    let (handle, stat) = pin(CWD, name).map_err(failed)?;
    let name = Name { path: name.into(), identity: (stat.st_dev, stat.st_ino) };
    if let Some((group, gid)) = &access.group {
        chgrp(&handle, *gid)
            .map_err(|errno| OpenError::ChangeGroup { group: group.clone(), source: errno.into() })?;
    }
    chmod(&handle, access.mode).map_err(failed)?;
    Ok(name)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
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
fn remove_dead(path: &Path) -> Result<(), PtpError> {
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
