//! `vdeq` as the emulator of a real libvirt's domains.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use vde_tests::libvirt::{Version, documented};
use vde_tests::process::wait_until;
use vde_tests::{Console, Libvirt, Station};

const LIMIT: Duration = Duration::from_secs(60);
/// The host on the switch that the guest pings.
const HOST: u8 = 9;
const EMULATOR: &str = "/usr/local/bin/vdeqemu-system-x86_64";
const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// What vdeq keeps of its VMs is in the machine's /tmp, where `vdectl` would see another test's domain of the same name.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn libvirt(version: Version) -> Result<(MutexGuard<'static, ()>, Libvirt)> {
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let libvirt = Libvirt::start(version)?;
    for program in ["vhost-user-vde", "vdeq", "vdectl"] {
        libvirt.install(program, program)?;
    }
    libvirt.run_ok(&["ln", "-s", "vdeq", EMULATOR])?;
    Ok((alone, libvirt))
}

/// What QEMU runs with, as the domain `old` was started.
fn command_line(libvirt: &Libvirt) -> Result<Vec<String>> {
    let pid = libvirt.run_ok(&["cat", "/run/libvirt/qemu/old.pid"])?;
    let words = libvirt.run_ok(&["cat", &format!("/proc/{}/cmdline", pid.trim())])?;
    Ok(words.split('\0').map(str::to_owned).collect())
}

/// From start to end, with its network.
fn a_whole_life(version: Version) -> Result<()> {
    let (_alone, libvirt) = libvirt(version)?;
    let switch = libvirt.switch()?;
    let host = Station::start(&switch, HOST)?;
    host.wait_plugged(&switch)?;
    let file = libvirt.write("old.xml", &documented("old")?)?;
    libvirt.run_ok(&["virt-xml-validate", &file, "domain"])?;
    libvirt.virsh(&["define", &file])?;
    libvirt.virsh(&["start", "old"])?;
    Console::open(&libvirt.virsh(&["ttyconsole", "old"])?)?.ping("10.0.0.9")?;
    // A supervisor and its worker.
    assert_eq!(libvirt.processes("vhost-user-vde")?.len(), 2);
    // It is a VM of the user that QEMU runs as.
    let user = ["setpriv", "--reuid=libvirt-qemu", "--regid=libvirt-qemu", "--groups=kvm"];
    let vdectl = |words: &[&str]| libvirt.run_ok(&[&user[..], &["vdectl"], words].concat());
    let list = vdectl(&["list", "old"])?;
    assert!(list.contains("52:54:00:5f:00:03") && list.contains("/run/vde/lab"), "{list}");
    let stats = vdectl(&["stats", "--prometheus", "old"])?;
    assert!(stats.contains("vm=\"old\""), "{stats}");
    libvirt.virsh(&["destroy", "old"])?;
    wait_until("the end of the back end", LIMIT, || {
        Ok(libvirt.processes("vhost-user-vde")?.is_empty().then_some(()))
    })?;
    // The host stays.
    switch.wait_ports("the host alone on the switch", LIMIT, |ports| ports.len() == 1)?;
    Ok(())
}

#[test]
fn q_27_old_words_in_a_domain_give_it_a_network_on_libvirt_11() {
    a_whole_life(Version::V11).unwrap();
}

#[test]
fn q_27_old_words_in_a_domain_give_it_a_network_on_libvirt_9() {
    a_whole_life(Version::V9).unwrap();
}

/// On a machine whose devices are plugged straight into the first bus, libvirt knows nothing of ours.
#[test]
fn a_nic_with_an_address_is_in_nobodys_way() {
    let (_alone, libvirt) = libvirt(Version::V11).unwrap();
    let _switch = libvirt.switch().unwrap();
    let xml = documented("old").unwrap().replace("machine='q35'", "machine='pc'");
    let file = libvirt.write("old.xml", &xml.replace("5f:00:03'", "5f:00:03,addr=0x1e'")).unwrap();
    libvirt.virsh(&["create", &file]).unwrap();
    let device = "<controller type='scsi' index='0' model='virtio-scsi'/>";
    let device = libvirt.write("device.xml", device).unwrap();
    libvirt.virsh(&["attach-device", "old", &device, "--live"]).unwrap();
    libvirt.virsh(&["destroy", "old"]).unwrap();
}

#[test]
fn q_27_libvirt_learns_the_same_of_it_as_of_qemu() {
    let (_alone, libvirt) = libvirt(Version::V11).unwrap();
    let ask = |emulator: &str| {
        let text =
            libvirt.virsh(&["domcapabilities", "--emulatorbin", emulator, "--virttype", "qemu"]).unwrap();
        text.replace(emulator, "EMULATOR")
    };
    let plain = ask(QEMU);
    assert!(plain.contains("EMULATOR") && plain.len() > 5000, "{plain}");
    assert_eq!(ask(EMULATOR), plain);
}

#[test]
fn q_27_a_domain_without_our_words_has_the_command_line_of_qemu() {
    let (_alone, libvirt) = libvirt(Version::V11).unwrap();
    let xml = documented("old").unwrap();
    let (plain, _) = xml.split_once("  <qemu:commandline>").unwrap();
    let start = |emulator: &str| {
        let xml = format!("{}</domain>\n", plain.replace(EMULATOR, emulator));
        let xml = xml.replace("</name>", "</name><uuid>11111111-2222-3333-4444-555555555555</uuid>");
        libvirt.virsh(&["create", &libvirt.write("plain.xml", &xml).unwrap(), "--paused"]).unwrap();
        let words = command_line(&libvirt).unwrap();
        libvirt.virsh(&["destroy", "old"]).unwrap();
        words
    };
    let (through_vdeq, of_qemu) = (start(EMULATOR), start(QEMU));
    // The domain's number is counted up, and numbers of descriptors are what libvirt has left.
    let plain = |words: &[String]| -> Vec<String> {
        let plain = |word: &String| {
            let word = word.replace("/domain-2-old/", "/domain-1-old/");
            match word.split_once(",fd=") {
                Some((head, tail)) => format!("{head},fd={}", tail.trim_start_matches(char::is_numeric)),
                None => word,
            }
        };
        words.iter().skip(1).map(plain).collect()
    };
    assert_eq!(plain(&through_vdeq), plain(&of_qemu));
}
