//! Where running VMs keep their sockets, and who they are.
//!
//! ```text
//!  place      the directory that all VMs of a user are below: /run/vdeq, $XDG_RUNTIME_DIR/vdeq or /tmp/vdeq-UID
//!  directory  one VM's directory in it: making, writing into, removing
//!  record     what vm.json in it says of the VM
//!  entry      the VMs that are there, and cleaning up after those that are not
//!  passt      the domains of libvirt that have no record: those of the passt door
//!  lock       one at a time changes a VM
//!  process    processes by number, and who listens on a socket
//! ```
//!
//! # Theory of operation
//! There is no server and no list: a VM is there if its directory is there, with a readable record in it, and somebody is
//! alive behind it: its process, its back end or its monitor. Who starts a VM makes the directory and writes the record before
//! the back end starts, and the back end removes both when it ends. All of them can be killed at any moment; what is then left
//! is nobody's, and goes when somebody looks the next time ([`entries`]) or starts a VM ([`Directory::choose`]).
//!
//! Nothing here follows a symbolic link, and nothing is removed but what we know by name and type, from directories of our
//! own user.

#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod directory;
mod entry;
mod lock;
pub mod passt;
mod place;
mod process;
mod record;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use directory::{CONTROL, Directory, LONGEST_SOCKET, MONITOR, MONITOR_CONFIG, remove};
pub use entry::{Entry, entries};
pub use lock::Lock;
pub use passt::running_domains;
pub use place::domains;
pub use process::{Process, listener};
pub use record::{Maker, Nic, Record};

/// Why there is no directory, record or lock.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory could not be made.
    #[error("private directory {path} cannot be made: {source}; {remedy}")]
    Make {
        /// The directory.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A directory belongs to somebody else or is open to others.
    #[error("{path} {problem}; {remedy}")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A file could not be written.
    #[error("{path} cannot be written: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A directory could not be locked.
    #[error("{path} cannot be locked: {source}")]
    Lock {
        /// The directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Somebody else has it locked, and does not let go.
    #[error("{holder} has been changing this VM for {} s; try again when it is done", .limit.as_secs())]
    Busy {
        /// Who.
        holder: String,
        /// How long we have waited.
        limit: Duration,
    },
    /// The VM has ended meanwhile.
    #[error("the VM has ended")]
    Gone,
}
