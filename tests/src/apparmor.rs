//! What AppArmor is told on a machine with libvirt: the profiles of both packages, and our rules for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::{Guest, libvirt, places};

/// A file of our policies.
pub fn policy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../libvirt/policy").join(name)
}

/// `/etc/apparmor.d` as AppArmor and a libvirt install it.
pub fn profiles(version: libvirt::Version, into: &Path) -> Result<()> {
    // AppArmor itself is with the newer one.
    for tree in [libvirt::Version::V11.tree()?, version.tree()?] {
        let status = Command::new("cp").arg("-rT").arg(tree.join("etc/apparmor.d")).arg(into).status()?;
        ensure!(status.success(), "cp: {status}");
    }
    // The packages make these for the administrator, empty.
    fs::create_dir_all(into.join("local/abstractions"))?;
    for name in ["usr.sbin.libvirtd", "usr.lib.libvirt.virt-aa-helper", "abstractions/libvirt-qemu"] {
        fs::write(into.join("local").join(name), "")?;
    }
    Ok(())
}

/// What AppArmor has denied in a guest since it was asked the last time.
pub fn denials(guest: &mut Guest) -> Result<Vec<String>> {
    let said = guest.run_ok("dmesg -c", Duration::from_secs(60))?;
    Ok(said.lines().filter(|line| line.contains("apparmor=\"DENIED\"")).map(str::to_owned).collect())
}

/// The program that compiles and loads profiles.
pub fn parser() -> Result<PathBuf> {
    places::made("libvirt-11/usr/sbin/apparmor_parser").context("of the package apparmor")
}
