//! QEMU 7.2, Debian 12's own, unpacked under `target/qemu-7.2` beside the installed version.
//!
//! Two versions of one Debian package cannot be installed at once. The programs themselves are content to live
//! elsewhere: a small script for each, such as `qemu-system-x86_64`, tells it where its ROMs are (`-L`), which libraries
//! the machine lacks (`LD_LIBRARY_PATH`) and that it has no modules (those of the installed version do not fit it).
//! Beside that of a PC there are those of other architectures, 55 MB to download: their boards differ in the name of
//! their memory and in where a virtio NIC goes.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use super::apt::Apt;
use crate::{places, step};

const PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "qemu-system-arm",
    "qemu-system-misc",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
    "ipxe-qemu",
];
/// How long an empty machine may take to start and to leave; 0.2 s were seen.
const START_SECONDS: &str = "20";
const PROGRAMS: &[&str] = &[
    "qemu-system-x86_64",
    "qemu-system-aarch64",
    "qemu-system-arm",
    "qemu-system-riscv64",
    "qemu-system-s390x",
    "qemu-system-loongarch64",
];

/// Unpacks it, unless the newest package is unpacked already, and tries it.
pub fn unpack(apt: &Apt) -> Result<()> {
    let home = places::target("qemu-7.2");
    let names: Vec<String> = PACKAGES.iter().map(|name| (*name).to_owned()).collect();
    let files: Vec<String> = apt.resolve(&names)?.iter().map(super::apt::Deb::file_name).collect();
    let wanted = files.join("\n");
    if fs::read_to_string(home.join("packages")).is_ok_and(|old| old == wanted) {
        return try_it(&home);
    }
    eprintln!("   unpacking QEMU 7.2 under {}", home.display());
    let fresh = places::target(&format!("qemu-7.2.{}", std::process::id()));
    for deb in apt.debs(&names)? {
        deb.unpack(&fresh)?;
    }
    add_missing_libraries(apt, &fresh)?;
    fs::write(fresh.join("packages"), wanted)?;
    for name in PROGRAMS {
        let script = fresh.join(name);
        fs::write(&script, SCRIPT)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    }
    if home.exists() {
        fs::remove_dir_all(&home)?;
    }
    fs::rename(&fresh, &home)?;
    try_it(&home)
}

const SCRIPT: &str = r#"#!/bin/sh
# QEMU 7.2 from the Debian packages unpacked beside this script.
program=$(readlink -f "$0")
here=$(dirname "$program")
LD_LIBRARY_PATH="$here/usr/lib/x86_64-linux-gnu${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
QEMU_MODULE_DIR="$here/usr/lib/x86_64-linux-gnu/qemu"
export LD_LIBRARY_PATH QEMU_MODULE_DIR
exec "$here/usr/bin/$(basename "$program")" \
    -L "$here/usr/share/seabios" -L "$here/usr/lib/ipxe/qemu" -L "$here/usr/share/qemu" "$@"
"#;

/// Unpacks those packages that QEMU depends on and whose libraries the machine does not have.
fn add_missing_libraries(apt: &Apt, fresh: &Path) -> Result<()> {
    if missing_libraries(fresh)?.is_empty() {
        return Ok(());
    }
    let mut names = Vec::new();
    for package in PACKAGES.iter().filter(|package| package.starts_with("qemu-system-")) {
        names.extend(apt.dependencies(package)?);
    }
    names.retain(|name| name.starts_with("lib") && name != "libc6");
    names.sort();
    names.dedup();
    for deb in apt.debs(&names)? {
        let aside = fresh.join("aside");
        deb.unpack(&aside)?;
    }
    keep_missing(fresh)?;
    let still = missing_libraries(fresh)?;
    if !still.is_empty() {
        bail!(
            "QEMU 7.2 needs libraries that neither this machine nor its packages have: {}",
            still.join(", ")
        );
    }
    Ok(())
}

/// Moves the libraries that are missing from `aside` into place and drops the rest.
fn keep_missing(fresh: &Path) -> Result<()> {
    let folder = fresh.join("usr/lib/x86_64-linux-gnu");
    fs::create_dir_all(&folder)?;
    let aside = fresh.join("aside");
    // A library that is found may need further ones: again, until nothing new is found.
    while let missing @ [_, ..] = missing_libraries(fresh)?.as_slice() {
        let mut found = false;
        for name in missing {
            for place in ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"] {
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
    fs::remove_dir_all(&aside)?;
    Ok(())
}

fn missing_libraries(fresh: &Path) -> Result<Vec<String>> {
    let libraries = fresh.join("usr/lib/x86_64-linux-gnu");
    let programs = PROGRAMS.iter().map(|name| fresh.join("usr/bin").join(name));
    let text = step::output(Command::new("ldd").args(programs).env("LD_LIBRARY_PATH", libraries))?;
    let missing = text.lines().filter(|line| line.ends_with("=> not found"));
    Ok(missing.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

/// They must start: print their version, and make a machine and leave it.
fn try_it(home: &Path) -> Result<()> {
    PROGRAMS.iter().try_for_each(|name| try_program(home, name))
}

fn try_program(home: &Path, name: &str) -> Result<()> {
    let program = home.join(name);
    let text = step::output(Command::new(&program).arg("-version"))?;
    if !text.contains("version 7.2.") {
        bail!("{} says that it is {}", program.display(), text.lines().next().unwrap_or_default());
    }
    let machine = ["-machine", "none", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"];
    let mut child = Command::new("timeout")
        .arg(START_SECONDS)
        .arg(&program)
        .args(machine)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    if let Some(mut monitor) = child.stdin.take() {
        monitor.write_all(b"quit\n")?;
    }
    let status = child.wait()?;
    if !status.success() {
        bail!(
            "{} -machine none ended with {status}; remove {} and try again",
            program.display(),
            home.display()
        );
    }
    Ok(())
}
