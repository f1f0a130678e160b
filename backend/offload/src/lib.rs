//! Work on Ethernet frames that a NIC would do in hardware. Pure functions: no virtio, no input or output, no unsafe.

#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod csum;
