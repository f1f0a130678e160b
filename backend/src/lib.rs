//! `vhost-user-vde`: plugs the NICs of virtual machines into VDE networks.
//!
//! ```text
//!  main       start-up order and exit status
//!  cli        the command line, checked into a `Config`
//!  logging    the log, and how much of it there may be
//!  socket     listening and inherited sockets, left-overs of dead predecessors
//!  front      one NIC with whoever is connected to its socket
//!  nic        a virtio NIC: the vhost-user device in front of its workers, one per queue pair
//!  relay      a NIC that QEMU emulates, whose frames come through a stream socket
//!  join       two networks that hear each other
//!  cable      a link as its user sees it: counted, and captured where that is asked for
//!  capture    the frames of a NIC in a file or a pipe
//!  follow     ending with the virtual machine
//!  supervisor what goes on when the process that does all this is killed
//!  journal    what its successor has to know
//!  open       opening networks
//!  links      the links of a NIC or a join, and opening them again when a network went away
//!  user       who uses links: a NIC with its door, or a join
//!  server     the control thread: accepts front ends, reads their messages, hears signals and the life line
//!  source     what its events are about
//!  news       what other threads tell it
//!  control    the control socket and its clients
//!  commands   what these can have done
//!  recording  those of them that capture
//!  tasks      what of it waits for a network
//!  pid_file   our process number in a file
//!  readiness  tells the program that started us that all is up, or why not
//!  sys        signals and descriptors by number
//! ```
//!
//! Start-up order: options, log, signals, links, sockets, workers, readiness. Whatever can fail fails before the first front
//! end can connect, because QEMU retries for ever on a back end that closes the connection.

mod cable;
mod capture;
pub mod cli;
mod commands;
mod control;
mod follow;
mod front;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod join;
mod journal;
mod links;
pub mod logging;
mod news;
mod nic;
mod open;
mod pid_file;
mod readiness;
mod recording;
mod relay;
mod server;
mod socket;
mod source;
mod supervisor;
mod sys;
mod tasks;
mod user;

use std::fmt;

use std::path::PathBuf;
use std::process::ExitCode;

use pid_file::PidFile;
pub use readiness::Readiness;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use server::Server;
use supervisor::{Role, Supervisor, Worker};
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
            && let Err(error) = registry::remove(dir)
        {
            log::warn!("cannot remove {}: {error}", dir.display());
        }
    }
}

/// Runs until a signal or the life line ends it. Everything is checked and opened before `ready` hears of it.
pub fn run(
    mut config: cli::Config,
    mut inherited: Inherited,
    ready: &mut Readiness,
) -> Result<ExitCode, Failure> {
    // Both outlive the server, whose sockets lie in the directory, and are there in each process after a fork: whichever ends
    // in order removes them.
    let _private_dir = PrivateDir(config.private_dir.take());
    let pid_file = config.pid_file.take().map(PidFile::new);
    let worker = match config.supervise {
        true => match Supervisor::new(&mut config, &mut inherited)?.run(&config, &inherited, ready)? {
            Role::Worker(worker) => Some(worker),
            Role::Over(status) => return Ok(status),
        },
        false => None,
    };
    serve(config, inherited, worker, pid_file.as_ref(), ready).map(|()| ExitCode::SUCCESS)
}

fn serve(
    config: cli::Config,
    inherited: Inherited,
    worker: Option<Worker>,
    pid_file: Option<&PidFile>,
    ready: &mut Readiness,
) -> Result<(), Failure> {
    raise_descriptor_limit();
    let signals = sys::take_signals().map_err(|e| Failure::system("cannot wait for signals", e))?;
    let (journal, served, _control) = worker.map_or((None, None, None), Worker::parts);
    let mut server = Server::new(config, served, inherited, signals)?;
    pid_file.map_or(Ok(()), PidFile::write)?;
    let is_supervised = journal.is_some();
    // From here on there is a successor, which whoever hears that all is up may count on.
    journal.into_iter().for_each(|journal| server.keep(journal));
    ready.tell_ready();
    if is_supervised {
        supervisor::leave();
    }
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
