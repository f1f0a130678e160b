//! Where things lie: the root of the source tree and the folders that we make under its `target/`.
//!
//! `CARGO_TARGET_DIR` is not followed: the tests look for programs and guests in the same fixed places, whoever
//! started them.

use std::path::{Path, PathBuf};

/// The root of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies below the root").to_path_buf()
}

/// A path under `target/`.
pub fn target(relative: &str) -> PathBuf {
    root().join("target").join(relative)
}
