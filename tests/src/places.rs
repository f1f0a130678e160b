//! Where programs, guests and logs lie: all below `target/` of the source tree, made by `cargo xtask`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// A path under `target/` of the source tree.
pub fn target(relative: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies below the root");
    root.join("target").join(relative)
}

/// A path under `target/` that must be there.
pub fn made(relative: &str) -> Result<PathBuf> {
    let path = target(relative);
    if !path.exists() {
        bail!("{} is missing: run cargo xtask test", path.display());
    }
    Ok(path)
}

/// One of our own programs, built for release.
pub fn own_program(name: &str) -> Result<PathBuf> {
    made(&format!("release/{name}"))
}

/// A program on `PATH`, or among those of the system that a plain user's `PATH` lacks.
pub fn system_program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    match folders.map(|folder| folder.join(name)).find(|file| file.is_file()) {
        Some(file) => Ok(file),
        None => bail!("{name} is not installed: run cargo xtask test"),
    }
}

/// The file for a log of the test's part `name`.
pub fn log_file(name: &str) -> Result<PathBuf> {
    let folder = target("test-logs");
    std::fs::create_dir_all(&folder)?;
    Ok(folder.join(name))
}
