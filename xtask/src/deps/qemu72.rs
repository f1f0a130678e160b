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
use super::libraries;
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
const PROGRAMS: [&str; 6] = [
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
    let needing: Vec<&str> =
        PACKAGES.iter().copied().filter(|name| name.starts_with("qemu-system-")).collect();
    libraries::complete(apt, &fresh, &needing, &PROGRAMS.map(|name| format!("usr/bin/{name}")))?;
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
