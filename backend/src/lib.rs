//! `vhost-user-vde`: plugs the NICs of virtual machines into VDE networks.
//!
//! ```text
//!  main       start-up order and exit status
//!  cli        the command line, checked into a `Config`
//!  socket     listening and inherited sockets, left-overs of dead predecessors
//!  front      one NIC with whoever is connected to its socket
//!  nic        a virtio NIC: the vhost-user device in front of its workers, one per queue pair
//!  relay      a NIC that QEMU emulates, whose frames come through a stream socket
//!  join       two networks that hear each other
//!  capture    the frames of a NIC in a file
//!  links      opening links, and opening them again when a network went away
//!  server     the control thread: accepts front ends, reads their messages, hears signals and the life line
//!  readiness  tells the program that started us that all is up, or why not
//!  sys        signals and descriptors by number
//! ```
//!
//! Start-up order: options, log, signals, links, sockets, workers, readiness. Whatever can fail fails before the first front
//! end can connect, because QEMU retries for ever on a back end that closes the connection.

mod capture;
pub mod cli;
mod front;
mod join;
mod links;
mod nic;
mod readiness;
mod relay;
mod server;
mod socket;
mod sys;

use std::fmt;

use std::path::PathBuf;

pub use readiness::Readiness;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use server::Server;
pub use sys::Inherited;

/// Exit statuses, as the manual page lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// The machine failed us: out of descriptors, threads, memory.
    System = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A link cannot be opened.
    Network = 3,
    /// A socket cannot be served.
    Socket = 4,
}

/// Why the program ends early.
#[derive(Debug)]
pub struct Failure {
    /// What the process exits with.
    pub status: Status,
    /// One sentence for a person.
    pub sentence: String,
}

impl Failure {
    fn new(status: Status, sentence: impl fmt::Display) -> Self {
        Self { status, sentence: sentence.to_string() }
    }

    fn system(what: &str, error: impl fmt::Display) -> Self {
        Self::new(Status::System, format_args!("{what}: {error}"))
    }
}

/// A directory that was made for us, and that we remove at the end, however we end in order.
struct PrivateDir(Option<PathBuf>);

impl Drop for PrivateDir {
    fn drop(&mut self) {
        if let Some(dir) = &self.0
            && let Err(error) = std::fs::remove_dir(dir)
        {
            log::warn!("cannot remove {}: {error}", dir.display());
        }
    }
}

/// Runs until a signal or the life line ends it. Everything is checked and opened before `ready` hears of it.
pub fn run(mut config: cli::Config, inherited: Inherited, ready: &mut Readiness) -> Result<(), Failure> {
    // Outlives the server, whose sockets lie in it.
    let _private_dir = PrivateDir(config.private_dir.take());
    raise_descriptor_limit();
    let signals = sys::take_signals().map_err(|e| Failure::system("cannot wait for signals", e))?;
    let server = Server::new(config, inherited, signals)?;
    ready.tell_ready();
    server.run()
}

/// A NIC holds a descriptor per memory region and four per ring; what does not fit is refused when it comes.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        log::info!("the limit of descriptors stays as it is: {error}");
    }
}

/// An error with its causes in one sentence.
fn sentence(error: &dyn std::error::Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {}", sentence(source)),
    }
}
