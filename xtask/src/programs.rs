//! Builds our own programs for release: the tests and the demo run those, from `target/release`.

use std::process::Command;

use anyhow::Result;

use crate::{places, step};

/// Cargo, in our source tree and with our target folder, whatever the caller's environment says.
pub fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(places::root()).env("CARGO_TARGET_DIR", places::target("")).args(words);
    command
}

/// Builds everything that is delivered: all of the workspace but the crates that only serve its development.
pub fn build() -> Result<()> {
    let delivered = ["--workspace", "--exclude", "xtask", "--exclude", "vde-tests", "--exclude", "vde-bench"];
    step::run(cargo(&["build", "--release", "--locked"]).args(delivered))
}
