//! libvirt in two versions, unpacked under `target/libvirt-11` and `target/libvirt-9`, with what the tests want beside it.
//!
//! Installed, its daemons would start on this machine, and two versions do not go together. Unpacked, they are only seen by a
//! test, which lays one of the folders over its own view of `/usr`, `/etc` and `/var`.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::apt::Apt;
use super::libraries;
use crate::{places, step};

/// One version.
struct Tree {
    folder: &'static str,
    packages: &'static [&'static str],
    /// What must find its libraries, besides the modules of libvirtd.
    programs: &'static [&'static str],
}

const TREES: [Tree; 2] = [
    Tree {
        folder: "libvirt-11",
        packages: &[
            "libvirt0/bookworm-backports",
            "libvirt-clients/bookworm-backports",
            "libvirt-common/bookworm-backports",
            "libvirt-daemon/bookworm-backports",
            "libvirt-daemon-common/bookworm-backports",
            "libvirt-daemon-driver-qemu/bookworm-backports",
            "libvirt-daemon-log/bookworm-backports",
            // virt-xml-validate runs its xmllint.
            "libxml2-utils",
            "passt",
            // The compilers of policies: apparmor_parser and checkmodule.
            "apparmor",
            "checkpolicy",
        ],
        programs: &[
            "usr/sbin/libvirtd",
            "usr/sbin/virtlogd",
            "usr/bin/virsh",
            "usr/bin/xmllint",
            "usr/bin/passt",
            "usr/bin/checkmodule",
        ],
    },
    Tree {
        folder: "libvirt-9",
        packages: &[
            "libvirt0",
            "libvirt-clients",
            "libvirt-daemon",
            "libvirt-daemon-driver-qemu",
            "libvirt-daemon-system",
            "libxml2-utils",
        ],
        programs: &["usr/sbin/libvirtd", "usr/sbin/virtlogd", "usr/bin/virsh", "usr/bin/xmllint"],
    },
];
/// Below it are the modules of libvirtd, in folders. It does not start if there is one that it cannot load.
const MODULES: &str = "usr/lib/x86_64-linux-gnu/libvirt";

/// Unpacks both, unless the newest packages are unpacked already.
pub fn unpack(apt: &Apt) -> Result<()> {
    TREES.iter().try_for_each(|tree| unpack_tree(apt, tree))
}

fn unpack_tree(apt: &Apt, tree: &Tree) -> Result<()> {
    let home = places::target(tree.folder);
    let names: Vec<String> = tree.packages.iter().map(|name| (*name).to_owned()).collect();
    let files: Vec<String> = apt.resolve(&names)?.iter().map(super::apt::Deb::file_name).collect();
    let wanted = files.join("\n");
    if fs::read_to_string(home.join("packages")).is_ok_and(|old| old == wanted) {
        return Ok(());
    }
    eprintln!("   unpacking libvirt under {}", home.display());
    let fresh = places::target(&format!("{}.{}", tree.folder, std::process::id()));
    for deb in apt.debs(&names)? {
        deb.unpack(&fresh)?;
    }
    merge_usr(&fresh)?;
    let mut programs: Vec<String> = tree.programs.iter().map(|name| (*name).to_owned()).collect();
    programs.extend(modules(&fresh)?);
    libraries::complete(apt, &fresh, tree.packages, &programs)?;
    fs::write(fresh.join("packages"), wanted)?;
    if home.exists() {
        fs::remove_dir_all(&home)?;
    }
    fs::rename(&fresh, &home)?;
    Ok(())
}

fn modules(fresh: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for folder in fs::read_dir(fresh.join(MODULES))? {
        for module in fs::read_dir(folder?.path())? {
            found.push(module?.path().strip_prefix(fresh)?.to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// Moves what old packages have beside `/usr` below it, where a machine of today has links to.
fn merge_usr(fresh: &Path) -> Result<()> {
    for name in ["bin", "sbin", "lib"] {
        let (old, new) = (fresh.join(name), fresh.join("usr").join(name));
        if old.exists() {
            fs::create_dir_all(&new)?;
            step::run(Command::new("cp").arg("-a").arg(old.join(".")).arg(&new))?;
            fs::remove_dir_all(&old)?;
        }
    }
    Ok(())
}
