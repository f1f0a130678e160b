//! Virtqueues over guest memory that another process shares with us.
//!
//! This crate owns every `unsafe` access to guest memory that the back end's own code makes, and knows no
//! Ethernet. What it is given by the front end ([`mem::Memory`], ring addresses) is checked once, when a ring
//! starts; what the guest writes into the ring is checked each time it is read.
//!
//! ```text
//!  mem    regions of guest RAM, guest address -> host pointer
//!  buf    one piece of a descriptor chain: copied from and to, or lent to the kernel, never a reference
//!  headed a chain split behind its header
//!  log    which pages were written to, while the guest is migrated
//!  raw    the parts of either ring as accessors of one field each
//!  window chains that were taken and not given back yet, as pieces of memory
//!  split, packed  the two layouts: which chain comes next, how it is given back, when to notify
//!  ring   a window in front of either layout
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
mod headed;
pub mod log;
pub mod mem;
mod packed;
mod raw;
mod ring;
mod split;
mod window;

pub use buf::GuestBuf;
pub use headed::Headed;
pub use log::{DirtyLog, LogError};
pub use mem::{Memory, MemoryError, RegionSpec};
pub use ring::{Broken, Direction, Layout, Ring, RingError};
