//! virtio-net: frames between the virtqueues of a guest's NIC and the links it is plugged into.
//!
//! ```text
//!  worker    one thread per queue pair: its event loop, and the handle by which the NIC's owner commands it
//!  tx        one batch out of the guest: chains -> headers checked -> links
//!  rx        one batch from a link towards the guest
//!  steer     which of the receive queues a frame enters
//!  inlet     the receive side of one queue pair, into which any thread may deliver
//!  place     frames -> chains
//!  backlog   frames that wait for chains
//!  ports     the links, and which of them can be read and written
//!  pace      when a worker looks for events, when it sleeps, and when it leaves a source alone
//!  events    what a thread waits for: descriptors and times
//!  thread    a thread, and the handle by which it is commanded
//!  features  what is offered to the guest, and what a driver's choice means for the queues
//!  lend      guest memory as buffers that a link hands to the kernel
//!  counters  what happened to frames
//! ```
//!
//! TX leaves the guest, RX enters it. The crate knows rings and links, and nothing of how either was set up.

#![deny(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod backlog;
pub mod counters;
pub mod events;
pub mod features;
#[cfg(test)]
mod guest;
mod inlet;
mod lend;
mod pace;
mod place;
pub mod ports;
mod queue;
mod rx;
mod steer;
pub mod thread;
mod tx;
pub mod worker;

pub use counters::Counters;
pub use inlet::Inlet;
pub use pace::{Next, Pace};
pub use queue::{Level, Start};
pub use steer::Inlets;
pub use tx::{Links as TxLinks, Round as TxRound, offer};
pub use worker::{LinkLost, Side, Worker};
