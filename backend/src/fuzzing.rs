//! What the fuzz targets (`tests/fuzz` in the source tree) look at and nobody else: one connection to the control socket.
//! Only there with the feature `fuzzing`, and no part of the interface.

pub use crate::control::{Client, Line};
