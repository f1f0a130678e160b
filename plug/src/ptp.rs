//! `ptp://PATH[group=/mode=/form=]`: a cable between two programs (VDE fact 3.5).
//!
//! Two forms are in use, and which one a path has is seen by the socket that is there:
//! - **datagram**, of vdeplug 4.0.1: the first program's socket is `PATH`, the second's `PATH+`, and each sends to the
//!   other's (module [`pair`]). A path with nothing there becomes this, unless `form=seqpacket` asks for the other.
//! - **seqpacket**, of later versions: the first program listens at `PATH` and the second connects (module
//!   [`connection`]).
//!
//! In both, either program may end and come back; what is sent meanwhile is lost. A third one is refused. A name whose
//! program died is taken over. Two programs of this project whose ends both take big frames exchange those, with a header
//! before each, and see that of the other by the name of its socket (module [`name`]); nobody else notices.

mod connection;
mod name;
mod pair;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::error::OpenError;
use crate::link::Link;
use crate::locator::{LocatorProblem, PathForm, parse_mode};
use crate::{OpenErrorKind, OpenOptions, sys};

/// Room for a name in `sockaddr_un`, with its NUL and the `+` of the second program's.
const PATH_MAX: usize = 106;

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

/// What our end is to be.
#[derive(Clone, Debug)]
struct End {
    /// Who may use it.
    group: Option<(String, u32)>,
    mode: u32,
    /// It takes big frames.
    big: bool,
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
    let mode = if mode == 0 { 0o700 } else { mode & 0o7777 };
    let end = End { group, mode, big: options.offloads };
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
        (Form::Datagram, _) => Ok(Arc::new(pair::PairLink::open(path, end)?)),
        (Form::SeqPacket, _) => Ok(Arc::new(connection::ConnectionLink::open(path, end, options.timeout)?)),
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
