//! Work on Ethernet frames that a NIC would do in hardware. Pure functions: no rings, no input or output, no unsafe.
//!
//! ```text
//!  header  what a frame still wants done to it (struct virtio_net_hdr)
//!  csum    the Internet checksum over pieces of any length
//! ```

#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod csum;
pub mod header;

pub use header::{Header, Partial};
