//! Client of the QEMU Machine Protocol (QMP), synchronous.
//!
//! ```text
//!  address   where a monitor listens: Unix socket, TCP, inherited descriptor
//!  wire      lines of JSON on a socket, with time limits, size limits and descriptors
//!  client    greeting, capabilities, commands and their answers, events
//!  commands  the commands that concern network devices, with typed arguments and answers
//! ```
//!
//! # Theory of operation
//! One connection, one command at a time: [`Client::connect`] reads the greeting and leaves capability negotiation,
//! [`Client::execute`] sends a command and waits for its answer. Each command has an id, so that neither the answer to one whose
//! time was up nor one to the client before is taken for the answer to the next. Events that arrive meanwhile are kept for
//! [`Client::next_event`].
//! Whatever is not known (fields, events, members of the greeting) passes through as JSON; nothing depends on the version of
//! QEMU. Every wait has a limit: a QEMU whose vhost-user back end is mute does not answer at all.
//!
//! A monitor serves one client at a time: the next one gets its greeting when the one before has gone.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use qmp::{Address, Client};
//!
//! let address: Address = "/run/vm1.qmp".parse()?;
//! let mut client = Client::connect(&address, Duration::from_secs(5))?;
//! println!("QEMU {}", client.version()?);
//! for chardev in client.query_chardev()? {
//!     println!("{} is {}", chardev.label, chardev.filename);
//! }
//! client.set_link("net0", false)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod address;
mod client;
pub mod commands;
mod wire;

use std::io;
use std::time::Duration;

pub use address::Address;
pub use client::{Client, Event, Version};

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Connecting, reading or writing failed.
    #[error("the QMP connection failed")]
    Io(#[from] io::Error),
    /// QEMU closed the connection; it may have ended.
    #[error("QEMU closed the QMP connection")]
    Closed,
    /// Nothing came in time.
    #[error("QEMU did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// Not a QMP server.
    #[error("this is not a QMP socket: {0}")]
    NotQmp(String),
    /// The command was carried out with an error.
    #[error("{command}: {desc}")]
    Command {
        /// The command.
        command: String,
        /// QEMU's error class, for instance `DeviceNotFound`.
        class: String,
        /// QEMU's sentence.
        desc: String,
    },
    /// The answer lacks what every QEMU says there.
    #[error("{command}: the answer cannot be understood ({reason})")]
    Answer {
        /// The command.
        command: &'static str,
        /// What is missing.
        reason: String,
    },
}

impl Error {
    /// Whether QEMU knows no such device, netdev, chardev or path.
    pub fn is_not_found(&self) -> bool {
        match self {
            // Of a chardev it is said in the sentence only.
            Self::Command { command, desc, .. } if command == "chardev-remove" => desc.ends_with("not found"),
            Self::Command { class, .. } => class == "DeviceNotFound",
            _ => false,
        }
    }

    /// Whether QEMU knows no such command: it is older or newer.
    pub fn is_unknown_command(&self) -> bool {
        matches!(self, Self::Command { class, .. } if class == "CommandNotFound")
    }
}
