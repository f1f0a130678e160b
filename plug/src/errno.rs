//! Errors as the numbers of `errno.h`, for callers that know nothing else.
//!
//! | number | what happened |
//! |---|---|
//! | `ENOENT` | there is no switch of this name, no default switch, no such port group |
//! | `ENOTDIR` | the name is a file's or a socket's |
//! | `EACCES` | the switch may not be used |
//! | `ECONNREFUSED` | the switch is dead, or it refused the connection |
//! | `EADDRINUSE` | the switch refused this port number; both ends of the cable are held already |
//! | `ETIMEDOUT` | the switch did not accept or did not answer in time (Debian's answers no request for a port that it refuses) |
//! | `EPROTO` | what listens there does not speak the protocol |
//! | `EPROTOTYPE` | the program at the other end of the cable speaks the other form |
//! | `EPROTONOSUPPORT` | the scheme is unknown, or its plug-in cannot be loaded |
//! | `ENAMETOOLONG` | the switch's directory leaves no room for the names of sockets |
//! | `EINVAL` | the locator or an option cannot be read, the group is unknown |
//! | `EEXIST` | the name of a network, cable or interface that was to be made is taken; a network is served there already, or its directory is something else |
//! | `ENODEV`, `EBUSY` | there is no such interface; somebody else is at its other end |
//!
//! All else is the number of the system call that failed, or the one that stands for the error's class.
//! Where Debian's libvdeplug reports the same failure on purpose, the number is the same; where it reports what an
//! earlier call left in `errno`, or waits for ever, it is not (VDE facts 2.5, V-6).

use std::error::Error;
use std::io;

use rustix::io::Errno;

use crate::error::{OpenError, OpenErrorKind};
use crate::kernel::KernelError;
use crate::link::LinkError;
use crate::locator::Port;
use crate::node::NodeError;
use crate::{PluginError, PtpError};

impl OpenError {
    /// The number in `errno.h` that says it best.
    pub fn errno(&self) -> i32 {
        let errno = match self {
            Self::InFile { source, .. } => return source.errno(),
            Self::Locator(_) | Self::Option(_) | Self::UnknownGroup { .. } => Errno::INVAL,
            Self::Plugin(
                PluginError::Missing { .. } | PluginError::BadScheme { .. } | PluginError::Unusable { .. },
            ) => Errno::PROTONOSUPPORT,
            Self::Ptp(PtpError::Taken { .. }) => Errno::ADDRINUSE,
            Self::Ptp(PtpError::OtherForm { .. }) => Errno::PROTOTYPE,
            Self::Ptp(PtpError::NotOurs { .. }) => Errno::EXIST,
            Self::Ptp(PtpError::Silent { .. }) => Errno::TIMEDOUT,
            Self::Ptp(PtpError::TooLong { .. }) => Errno::NAMETOOLONG,
            Self::Kernel(KernelError::NoInterface { .. }) => Errno::NODEV,
            Self::Kernel(KernelError::TapInUse { .. }) => Errno::BUSY,
            Self::Kernel(KernelError::NameTaken { .. } | KernelError::OtherPeer { .. }) => Errno::EXIST,
            Self::NoSwitch { .. } | Self::NoDefaultSwitch | Self::NoPortGroup { .. } => Errno::NOENT,
            Self::NotASwitch { path, .. } if path.is_dir() => Errno::NOENT,
            Self::NotASwitch { .. } => Errno::NOTDIR,
            Self::NoPermission { .. } => Errno::ACCESS,
            Self::DeadSwitch { .. } => Errno::CONNREFUSED,
            Self::Refused { port: Port::Number(_), .. } => Errno::ADDRINUSE,
            Self::Refused { .. } => Errno::CONNREFUSED,
            Self::BusySwitch { .. } | Self::NoAnswer { .. } => Errno::TIMEDOUT,
            Self::BadAnswer { .. } => Errno::PROTO,
            Self::NameTooLong { .. } | Self::Node(NodeError::NameTooLong { .. }) => Errno::NAMETOOLONG,
            // That a directory can be made is how Debian's library knows that nobody serves a network there.
            Self::Node(
                NodeError::Served { .. }
                | NodeError::Foreign { .. }
                | NodeError::Occupied { .. }
                | NodeError::NotADirectory { .. },
            ) => Errno::EXIST,
            other => return of_cause(other).unwrap_or_else(|| of_kind(other.kind()).raw_os_error()),
        };
        errno.raw_os_error()
    }
}

impl LinkError {
    /// The number in `errno.h` that says it best.
    pub fn errno(&self) -> i32 {
        let number = match self {
            // What a send to a dead switch says.
            Self::Closed => None,
            Self::Io(source) => source.raw_os_error(),
        };
        number.unwrap_or(Errno::CONNREFUSED.raw_os_error())
    }
}

/// The number of the system call that is at the bottom of an error, if one is.
fn of_cause(error: &OpenError) -> Option<i32> {
    let causes = std::iter::successors(error.source(), |&error| error.source());
    causes.filter_map(|cause| cause.downcast_ref::<io::Error>()).find_map(io::Error::raw_os_error)
}

fn of_kind(kind: OpenErrorKind) -> Errno {
    match kind {
        OpenErrorKind::Usage => Errno::INVAL,
        OpenErrorKind::NotFound => Errno::NOENT,
        OpenErrorKind::Permission => Errno::ACCESS,
        OpenErrorKind::Unavailable | OpenErrorKind::Refused => Errno::CONNREFUSED,
        OpenErrorKind::System => Errno::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{OpenOptions, open};

    #[test]
    fn errno_of_what_cannot_be_opened() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("file");
        std::fs::write(&file, "\n").expect("write");
        let named = dir.path().join("named");
        std::fs::write(&named, "no-such-scheme://\n").expect("write");
        let long = "x".repeat(200);
        let deep = dir.path().join(&long);
        std::fs::create_dir(&deep).expect("mkdir");
        let dir = dir.path().display();
        for (locator, errno) in [
            ("/nowhere/sw".to_owned(), Errno::NOENT),
            (format!("{dir}"), Errno::NOENT),
            (format!("vde://{}", file.display()), Errno::NOTDIR),
            (format!("{}/sw", file.display()), Errno::NOTDIR),
            (format!("{}", deep.display()), Errno::NAMETOOLONG),
            (format!("{dir}[nosuchkey=1]"), Errno::INVAL),
            (format!("{dir}[group=no such group]"), Errno::INVAL),
            (format!("{dir}[99999999999]"), Errno::INVAL),
            ("no-such-scheme://".to_owned(), Errno::PROTONOSUPPORT),
            (named.display().to_string(), Errno::PROTONOSUPPORT),
            ("veth://no-such-one".to_owned(), Errno::NODEV),
            ("veth://lo[peer=a]".to_owned(), Errno::EXIST),
            ("tap://a/b".to_owned(), Errno::INVAL),
        ] {
            let error = open(&locator, &OpenOptions::default()).expect_err(&locator);
            assert_eq!(error.errno(), errno.raw_os_error(), "{locator}: {error}");
        }
    }

    #[test]
    fn errno_of_a_system_call_is_kept() {
        let source = io::Error::from(Errno::MFILE);
        assert_eq!(OpenError::System { what: "make a socket", source }.errno(), Errno::MFILE.raw_os_error());
        let source = io::Error::other("no number");
        assert_eq!(OpenError::System { what: "make a socket", source }.errno(), Errno::IO.raw_os_error());
        assert_eq!(LinkError::Closed.errno(), Errno::CONNREFUSED.raw_os_error());
        assert_eq!(LinkError::Io(Errno::NODEV.into()).errno(), Errno::NODEV.raw_os_error());
    }
}
