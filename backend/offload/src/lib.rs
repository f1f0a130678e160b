//! Work on Ethernet frames that a NIC would do in hardware. Pure functions: no rings, no input or output, no unsafe.
//!
//! ```text
//!  header   what a frame still wants done to it (struct virtio_net_hdr)
//!  check    a header that somebody else wrote, held against its frame; a checksum completed
//!  segment  a frame that is to be segmented, cut into segments
//!  coalesce segments that came one behind the other, joined into one frame
//!  layout   where the headers of a TCP or UDP frame begin and end
//!  csum     the Internet checksum over pieces of any length
//! ```

#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

// As the fuzz target that shares a file with the tests knows this crate.
#[cfg(test)]
extern crate self as offload;

pub mod check;
pub mod coalesce;
pub mod csum;
pub mod header;
mod layout;
pub mod segment;

pub use check::{Misfit, check, checksum_is_own, complete};
pub use coalesce::{Coalescer, Joined, Part, Take};
pub use header::{Header, Partial};
pub use layout::HEAD_MAX;
pub use segment::Plan;
