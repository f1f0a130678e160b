//! virtio-net: frames between the virtqueues of a guest's NIC and the links it is plugged into.
//!
//! ```text
//!  worker    one thread per queue pair: its event loop, and the handle by which the NIC's owner commands it
//!  tx        one batch out of the guest: chains -> headers checked -> links
//!  rx        one batch into the guest: link -> chains -> headers
//!  rx_big    the same from a link whose frames may be big or unfinished
//!  pace      when a worker looks for events, and when it sleeps
//!  features  what is offered to the guest, and what a driver's choice means for the queues
//!  lend      guest memory as buffers that a link hands to the kernel
//!  counters  what happened to frames
//! ```
//!
//! TX leaves the guest, RX enters it. The crate knows rings and links, and nothing of how either was set up.

#![deny(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod counters;
pub mod features;
mod lend;
mod pace;
mod queue;
mod rx;
mod rx_big;
mod tx;
pub mod worker;

pub use counters::Counters;
pub use pace::{Next, Pace};
pub use queue::Start;
pub use tx::{Links as TxLinks, Round as TxRound, offer};
pub use worker::{LinkLost, PATIENCE, Side, Worker};
