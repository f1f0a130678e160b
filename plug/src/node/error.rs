//! Why a network could not be served.

use std::io;
use std::path::PathBuf;

use crate::error::OpenErrorKind;
use crate::locator::VdeLocator;

/// Why a network could not be served: `multi://`, `hub://`, `switch://`, `bonding://`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// Somebody serves a network there.
    #[error("the network {path:?} is served already; join it by the locator {}, or choose another path", VdeLocator::new(.path))]
    Served {
        /// The directory.
        path: PathBuf,
    },

    /// What another user left there.
    #[error("{path:?} belongs to another user; choose another path, or have its owner remove it")]
    Foreign {
        /// The directory.
        path: PathBuf,
    },

    /// A directory that is used for something else.
    #[error("{path:?} is no network's directory: it holds {name:?}; choose another path, or empty it")]
    Occupied {
        /// The directory.
        path: PathBuf,
        /// One of the things in it.
        name: String,
    },

    /// Not a directory at all.
    #[error("{path:?} exists and is no directory; choose another path, or remove it")]
    NotADirectory {
        /// The name.
        path: PathBuf,
    },

    /// The directory that should hold it is missing.
    #[error("there is no directory to make {path:?} in; make it with mkdir -p, or choose another path")]
    NoParent {
        /// The directory that was to be made.
        path: PathBuf,
    },

    /// It could not be made.
    #[error("cannot make {path:?}; choose a path in a directory that you may write to and that has room")]
    Make {
        /// The directory or socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// The directory's name leaves no room for the names of sockets in it.
    #[error(
        "the name {path:?} is too long: {len} bytes, of which the sockets in it leave room for {max}; choose a shorter \
         path"
    )]
    NameTooLong {
        /// The directory, made absolute.
        path: PathBuf,
        /// Length of its name.
        len: usize,
        /// The longest one that fits.
        max: usize,
    },

    /// The directory and its socket could not be given to the group.
    #[error("cannot give the network to the group {group:?}; use a group that you are a member of")]
    Group {
        /// The group as it was named.
        group: String,
        /// Why not.
        source: io::Error,
    },

    /// A system call failed for a reason that has nothing to do with the locator.
    #[error("cannot {what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl NodeError {
    /// The coarse class of this error.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            Self::Served { .. } => OpenErrorKind::Refused,
            Self::Occupied { .. } | Self::NotADirectory { .. } | Self::NoParent { .. } => {
                OpenErrorKind::NotFound
            }
            Self::Foreign { .. } | Self::Group { .. } => OpenErrorKind::Permission,
            Self::NameTooLong { .. } => OpenErrorKind::Usage,
            Self::Make { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                OpenErrorKind::Permission
            }
            Self::Make { .. } | Self::System { .. } => OpenErrorKind::System,
        }
    }
}
