//! What the tests of `vdectl libvirt` have in common.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vde_tests::libvirt::documented;
use vde_tests::{Console, Libvirt};

pub const LIMIT: Duration = Duration::from_secs(60);
/// The host on the switch that guests ping.
pub const HOST: u8 = 9;
pub const DIRECTORY: &str = "/run/vdeq/libvirt";
pub const MAC: &str = "52:54:00:5f:00:77";

/// The documented domain without any network.
pub fn bare() -> Result<String> {
    let without = |text: String, from: &str, to: &str| {
        let (before, rest) = text.split_once(from)?;
        let (_, after) = rest.split_once(to)?;
        Some(format!("{before}{after}"))
    };
    let text = documented("web")?.replace("<name>web<", "<name>bare<");
    let text = without(text, "<metadata>", "</metadata>").context("metadata")?;
    without(text, "<interface", "</interface>").context("an interface")
}

pub fn vdectl(libvirt: &Libvirt, words: &[&str]) -> Result<String> {
    libvirt.run_ok(&[&["vdectl"], words].concat())
}

/// What it complains of.
pub fn refused(libvirt: &Libvirt, words: &[&str]) -> Result<(i32, String)> {
    let output = libvirt.run(&[&["vdectl", "libvirt"], words].concat())?;
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(!output.status.success(), "vdectl libvirt {words:?} succeeded: {said}");
    Ok((output.status.code().unwrap_or_default(), said))
}

/// The guest reaches the host by the interface that was plugged in.
pub fn ping_by(console: &mut Console, interface: &str) -> Result<()> {
    console.until(&format!(
        "ip addr flush dev eth0; ip link set {interface} up; ip addr add 10.0.0.1/24 dev {interface} 2>/dev/null; \
         ping -c 1 -W 1 10.0.0.{HOST} >/dev/null"
    ))
}

/// With places for more NICs.
pub fn roomy(xml: &str) -> String {
    let ports = "<controller type='pci' model='pcie-root-port'/>".repeat(6);
    xml.replace("<devices>", &format!("<devices><controller type='pci' model='pcie-root'/>{ports}"))
}

/// What QEMU itself says.
fn monitor(libvirt: &Libvirt, name: &str, question: &str) -> Result<String> {
    libvirt.virsh(&["qemu-monitor-command", name, "--hmp", question])
}

/// All that there is of a running domain, to be compared.
pub fn state(libvirt: &Libvirt, name: &str) -> Result<[String; 7]> {
    // Metadata comes back with other indentation, files in any order.
    let plain = |text: String| text.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    Ok([
        plain(libvirt.virsh(&["dumpxml", name])?),
        plain(libvirt.virsh(&["dumpxml", "--inactive", name])?),
        libvirt.run_ok(&["sh", "-c", &format!("find {DIRECTORY} -mindepth 1 | sort")])?,
        libvirt.run_ok(&["find", DIRECTORY, "-name", "vm.json", "-exec", "cat", "{}", ";"])?,
        format!("{:?}", libvirt.processes("vhost-user-vde")?),
        monitor(libvirt, name, "info chardev")?,
        monitor(libvirt, name, "info network")?,
    ])
}
