//! Writes manual pages and completions of shells from the definitions of the command lines.
//!
//! `cargo run -p man` refreshes the files in `man/`, which are checked in; a test fails when one is stale. The page of `vdeq`,
//! whose command line is mostly QEMU's, is written by hand.

mod back_end;
mod completions;
mod vdectl_page;

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Each file and what is in it.
fn files() -> anyhow::Result<Vec<(PathBuf, Vec<u8>)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![
        (folder.join("vhost-user-vde.1"), back_end::page()?),
        (folder.join("vdectl.1"), vdectl_page::page()?),
    ];
    files.extend(
        completions::scripts().into_iter().map(|(name, text)| (folder.join("completions").join(name), text)),
    );
    Ok(files)
}

fn main() -> anyhow::Result<()> {
    for (path, text) in files()? {
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn checked_in_files_are_fresh() {
        for (path, text) in super::files().unwrap() {
            let stored = std::fs::read(&path).unwrap();
            assert!(text == stored, "{} is stale, run: cargo run -p man", path.display());
        }
    }
}
