//! In and out again and again on a guest that runs: nothing adds up.

use std::process::Stdio;

use vde_tests::libvirt::{Version, documented, reachable};
use vde_tests::{Console, Libvirt, Station, process};

use crate::rig::{HOST, LIMIT, MAC, bare, roomy, state, vdectl};

/// How many files the daemon and the domain's back end and QEMU have open.
fn descriptors(libvirt: &Libvirt) -> Vec<usize> {
    let count = |name: &str| {
        let pids = libvirt.processes(name).unwrap();
        let list = |pid: u32| libvirt.run_ok(&["ls", &format!("/proc/{pid}/fd")]).unwrap().lines().count();
        pids.into_iter().map(list).sum()
    };
    ["vhost-user-vde", "libvirtd", "virtlogd"].map(count).into()
}

fn cycles(version: Version, count: usize) {
    let libvirt = Libvirt::with_hook(version).unwrap();
    let _lab = libvirt.switch().unwrap();
    let (switch, locator) = reachable().unwrap();
    let host = Station::start(&switch, HOST).unwrap();
    host.wait_plugged(&switch).unwrap();
    libvirt.define(&roomy(&documented("web").unwrap())).unwrap();
    libvirt.virsh(&["start", "web"]).unwrap();
    let mut console = Console::open(&libvirt.virsh(&["ttyconsole", "web"]).unwrap()).unwrap();
    console.until("true").unwrap();
    let before = state(&libvirt, "web").unwrap();
    let mut open = Vec::new();
    for cycle in 0..count {
        // Each waits for the guest's driver: what is pulled out has been in use.
        let said =
            vdectl(&libvirt, &["libvirt", "attach", "web", &locator, "--mac", MAC, "--id", "hot", "--wait"]);
        assert!(said.unwrap().starts_with("ua-hot "));
        vdectl(&libvirt, &["libvirt", "detach", "web", "ua-hot"]).unwrap();
        if cycle == 1 {
            let twice = || {
                let (first, second) = (descriptors(&libvirt), descriptors(&libvirt));
                Ok((first == second).then_some(first))
            };
            open = process::wait_until("numbers of descriptors that stay", LIMIT, twice).unwrap();
        }
    }
    assert_eq!(state(&libvirt, "web").unwrap(), before);
    // They close the connection of a client who went a moment later.
    let as_before = || Ok((descriptors(&libvirt) == open).then_some(()));
    process::wait_until(&format!("{open:?} descriptors, as before"), LIMIT, as_before).unwrap_or_else(
        |error| panic!("{error}: {:?} of back end, libvirtd, virtlogd", descriptors(&libvirt)),
    );
    switch.wait_ports("the host alone", LIMIT, |ports| ports.len() == 1).unwrap();
    assert_eq!(std::fs::read_dir(switch.path()).unwrap().count(), 2, "ctl, and the host's socket");
    libvirt.virsh(&["destroy", "web"]).unwrap();
    libvirt.wait_nothing_left().unwrap();
}

#[test]
fn q_30_fifty_nics_leave_nothing_on_libvirt_11() {
    cycles(Version::V11, 50);
}

#[test]
fn q_30_ten_nics_leave_nothing_on_libvirt_9() {
    cycles(Version::V9, 10);
}

/// Each finds a name and a place that the others have not.
#[test]
fn q_30_several_at_once_wait_for_each_other() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let (switch, locator) = reachable().unwrap();
    let host = Station::start(&switch, HOST).unwrap();
    host.wait_plugged(&switch).unwrap();
    libvirt.define(&roomy(&bare().unwrap())).unwrap();
    libvirt.virsh(&["start", "bare"]).unwrap();
    let mut console = Console::open(&libvirt.virsh(&["ttyconsole", "bare"]).unwrap()).unwrap();
    console.until("true").unwrap();
    let at_once = |words: [&[&str]; 3]| {
        let start = |words: &[&str]| {
            let words = [&["vdectl", "libvirt"], words].concat();
            process::Owned::new(libvirt.command(&words).stdout(Stdio::null()).spawn().unwrap(), "vdectl")
        };
        let all: Vec<process::Owned> = words.into_iter().map(start).collect();
        for mut one in all {
            assert!(one.wait(LIMIT).unwrap().success(), "{words:?}");
        }
    };
    at_once([&["attach", "bare", &locator, "--wait"]; 3]);
    switch.wait_ports("the host and the guest's three", LIMIT, |ports| ports.len() == 4).unwrap();
    at_once([&["detach", "bare", "ua-vde0"], &["detach", "bare", "ua-vde1"], &["detach", "bare", "ua-vde2"]]);
    libvirt.wait_nothing_left().unwrap();
    switch.wait_ports("the host alone", LIMIT, |ports| ports.len() == 1).unwrap();
    libvirt.virsh(&["destroy", "bare"]).unwrap();
}
