//! Virtqueues over guest memory that another process shares with us.
//!
//! This crate owns every `unsafe` access to guest memory that the back end's own code makes, and knows no
//! Ethernet. What it is given by the front end ([`mem::Memory`], ring addresses) is checked once, when a ring
//! starts; what the guest writes into the ring is checked each time it is read.
//!
//! ```text
//!  mem    regions of guest RAM, guest address -> host pointer
//!  buf    one piece of a descriptor chain: copied from and to, or lent to the kernel, never a reference
//!  raw    the three parts of a split ring as accessors of one field each
//!  split  the ring: chains in, used entries out, when to notify
//! ```
//!
//! Life cycle: [`Ring::new`] on start, then rounds of [`Ring::fill`], [`Ring::complete`], [`Ring::publish`] and
//! [`Ring::wants_call`]; [`Ring::next_avail`] is what the front end gets back when it stops the ring. A ring belongs
//! to one thread and never allocates after its first full batch.
//!
//! Guest memory is written by the guest while we read it. Therefore no Rust reference to it is ever made, save to the
//! atomics that a ring's fields are; nothing is read twice, and lengths are taken from private copies.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod buf;
pub mod mem;
mod raw;
pub mod split;

pub use buf::GuestBuf;
pub use mem::{Memory, MemoryError, RegionSpec};
pub use split::{Broken, Direction, Layout, Ring, RingError};
