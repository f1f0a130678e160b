//! `vdectl`: the VDE NICs of running guests.
//!
//! ```text
//!  cli       the command line
//!  vm        the VM that a word means: its monitor and its back end
//!  back_end  the back end's control socket, typed
//!  nics      the NICs that QEMU has, and which of them the back end serves
//!  locator   networks as the back end has to be told of them
//!  features  feature bits in words
//!  counters  what the counters' names mean
//!  snapshot  what the back ends of several VMs say, for stats: as a table or as an exposition, written or scraped
//!  table     tables for people
//!  hold      one vdectl at a time changes a VM
//!  names     ids and MAC addresses for what is plugged in; interrupt: Ctrl-C, between two steps
//!  vms list attach detach link stats capture top libvirt    one command each
//! ```
//!
//! Two servers know a NIC: QEMU its device and netdev, the back end its links and counters. A command talks to both, through
//! the same client (crate `qmp`), and leaves either as it was when it fails.

#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod attach;
pub mod back_end;
mod capture;
pub mod cli;
pub mod counters;
mod detach;
mod exposition;
pub mod features;
mod hold;
mod interrupt;
mod libvirt;
mod link;
mod list;
pub mod locator;
mod names;
pub mod nics;
mod scrape;
pub mod snapshot;
mod stats;
pub mod table;
mod top;
pub mod vm;
mod vms;

use std::fmt;
use std::io::{ErrorKind, Write, stderr, stdout};

use cli::{Cli, Command};

/// Exit statuses, as the manual page lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// It could not be done; everything is as it was, save what the sentence names.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// There is no such VM, NIC or link, or more than one.
    NotFound = 3,
    /// The guest has not done its part yet: let go of the NIC, or start its driver. It may still do so.
    Pending = 4,
}

/// Why a command ends early: one sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What the process exits with.
    pub status: Status,
    /// Without a full stop.
    pub sentence: String,
}

impl Failure {
    /// It could not be done.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self { status: Status::Failed, sentence: sentence.into() }
    }

    /// There is no such thing.
    pub fn not_found(sentence: impl Into<String>) -> Self {
        Self { status: Status::NotFound, sentence: sentence.into() }
    }
}

impl fmt::Display for Failure {
    /// Names and sentences come from guests' command lines and from other programs: no control characters reach a
    /// terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sentence.chars().try_for_each(|c| write!(f, "{}", if c.is_control() { ' ' } else { c }))
    }
}

/// Writes a text to the standard output. Who has closed that has read enough.
fn print(text: &str) -> Result<(), Failure> {
    match stdout().write_all(text.as_bytes()).and_then(|()| stdout().flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to the standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Says what has been done, in a line.
fn report(line: &str) -> Result<(), Failure> {
    print(&format!("{line}\n"))
        .map_err(|failure| Failure::new(format!("this is done: {line}; but vdectl {failure}")))
}

/// Writes a line to the standard error. Where that takes nothing, it is no reason to end half-way.
pub fn complain(text: impl fmt::Display) {
    writeln!(stderr(), "vdectl: {text}").ok();
}

/// Carries a command out.
pub fn run(cli: Cli) -> Result<(), Failure> {
    match cli.command {
        Command::Vms(args) => vms::run(&args),
        Command::List(args) => list::run(&args),
        Command::Attach(args) => attach::run(&args),
        Command::Detach(args) => detach::run(&args),
        Command::Link(args) => link::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::Capture(args) => capture::run(&args),
        Command::Libvirt(args) => libvirt::run(&args),
    }
}
