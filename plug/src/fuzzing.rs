//! What the fuzz targets (`tests/fuzz` in the source tree) look at and nobody else: decoders of bytes that strangers
//! send. Only there with the feature `fuzzing`, and no part of the interface.

pub use crate::node::{ClientName, REQUEST_MAX, Reading, Request, decode, encode_answer};
pub use crate::vde::{ANSWER_LEN, decode_answer};
