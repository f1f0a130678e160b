//! Libraries that unpacked programs need and this machine does not have.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use super::apt::Apt;
use crate::step;

/// Where Debian's libraries lie.
const FOLDER: &str = "usr/lib/x86_64-linux-gnu";

/// Adds to `fresh`, where `packages` are unpacked, the libraries that its `programs` miss.
pub fn complete(apt: &Apt, fresh: &Path, packages: &[&str], programs: &[String]) -> Result<()> {
    if missing(fresh, programs)?.is_empty() {
        return Ok(());
    }
    let mut names = Vec::new();
    for package in packages {
        names.extend(apt.dependencies(package)?);
    }
    // What is unpacked already, perhaps of another suite, is not to be fetched again.
    let own = |name: &str| packages.iter().any(|package| package.split('/').next() == Some(name));
    names.retain(|name| name.starts_with("lib") && name != "libc6" && !own(name));
    names.sort();
    names.dedup();
    let aside = fresh.join("aside");
    for deb in apt.debs(&names)? {
        deb.unpack(&aside)?;
    }
    keep_missing(fresh, &aside, programs)?;
    let still = missing(fresh, programs)?;
    if !still.is_empty() {
        bail!(
            "{} needs libraries that neither this machine nor its packages have: {}",
            fresh.display(),
            still.join(", ")
        );
    }
    Ok(())
}

/// Moves the libraries that are missing from `aside` into place and drops the rest.
fn keep_missing(fresh: &Path, aside: &Path, programs: &[String]) -> Result<()> {
    let folder = fresh.join(FOLDER);
    fs::create_dir_all(&folder)?;
    // A library that is found may need further ones: again, until nothing new is found.
    while let missing @ [_, ..] = missing(fresh, programs)?.as_slice() {
        let mut found = false;
        for name in missing {
            for place in [FOLDER, "lib/x86_64-linux-gnu"] {
                let file = aside.join(place).join(name);
                if file.exists() {
                    fs::copy(&file, folder.join(name))?;
                    found = true;
                }
            }
        }
        if !found {
            break;
        }
    }
    fs::remove_dir_all(aside)?;
    Ok(())
}

fn missing(fresh: &Path, programs: &[String]) -> Result<Vec<String>> {
    let programs = programs.iter().map(|name| fresh.join(name));
    let text = step::output(Command::new("ldd").args(programs).env("LD_LIBRARY_PATH", fresh.join(FOLDER)))?;
    let missing = text.lines().filter(|line| line.ends_with("=> not found"));
    let mut names: Vec<String> =
        missing.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    Ok(names)
}
