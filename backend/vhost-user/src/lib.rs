//! The vhost-user protocol, back end's side, for one connection to a front end.
//!
//! ```text
//!  conn     socket: bytes and descriptors into whole messages, replies out; never blocks
//!  message  the table: per request its body length, its descriptors, which rings it stops, its handler
//!  session  what the front end configured: features, memory, rings; calls the [`Device`]
//! ```
//!
//! Life cycle: [`Connection::new`] on an accepted socket, [`Connection::on_readable`] whenever it is readable, until
//! that returns an error; then [`Connection::close`] stops every ring. What the rings carry is the [`Device`]'s business.
//!
//! The stock handlers of the `vhost` crate are not used, only its message bodies: QEMU's NIC sends SET_VRING_ENABLE
//! before its first SET_FEATURES, which they answer by closing the connection.

#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod conn;
mod message;
mod session;

use std::os::fd::OwnedFd;

pub use conn::{Connection, Error};
use vring::{Direction, Ring};

/// A ring that the front end configured and started, for the device to run.
#[derive(Debug)]
pub struct StartedRing {
    /// The ring itself.
    pub ring: Ring,
    /// Written by the driver when it added chains. Non-blocking, and possibly not an eventfd at all.
    pub kick: OwnedFd,
    /// To be written when used chains were published; `None`: the driver polls. Non-blocking.
    pub call: Option<OwnedFd>,
    /// See [`Device::enable_ring`].
    pub enabled: bool,
    /// Feature bits that the driver accepted.
    pub features: u64,
}

/// What a front end drives. All calls come from the thread that reads the connection; they must not block for longer
/// than it takes a worker to finish its current batch, because QEMU holds its big lock while it waits for replies.
pub trait Device {
    /// Feature bits offered to the driver, `VHOST_USER_F_PROTOCOL_FEATURES` excepted.
    fn features(&self) -> u64;

    /// How many rings there are.
    fn ring_count(&self) -> u16;

    /// Answer to GET_QUEUE_NUM: for a NIC the number of queue pairs.
    fn queue_num(&self) -> u16;

    /// Which way the data of a ring goes.
    fn direction(&self, ring: u16) -> Direction;

    /// Runs a ring. Only called for rings that do not run.
    fn start_ring(&mut self, ring: u16, started: StartedRing);

    /// Stops a running ring for good and returns its next available index; the ring's memory is not touched afterwards.
    fn stop_ring(&mut self, ring: u16) -> u16;

    /// Replaces the call descriptor of a running ring.
    fn set_call(&mut self, ring: u16, call: Option<OwnedFd>);

    /// A disabled ring runs without effect: nothing is received into it, what is sent through it is discarded
    /// (vhost-user, "Ring states").
    fn enable_ring(&mut self, ring: u16, enabled: bool);

    /// The guest with this address came here by migration and cannot say so itself: tells the networks (SEND_RARP). The
    /// rings may not be set up yet.
    fn announce(&mut self, mac: [u8; 6]);
}
