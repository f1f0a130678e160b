//! `vdectl attach` and `detach` on guests that run: what the guest sees, and that nothing stays behind.

mod bare;
mod faults;
mod outputs;
mod proxy;
mod rig;
mod strangers;

use std::path::PathBuf;

use proxy::{How, Proxy, When};
use qmp::Error;
use rig::{LIMIT, Rig, descriptors, done};
use rustix::process::Signal;
use vde_tests::process::wait_until;
use vde_tests::{BackEnd, Guest, Kernel, Machine, Qemu, Station, Switch, vdectl};

/// Enough that a descriptor, port or file lost now and then adds up.
const CYCLES: usize = 100;

/// Twice with the same id: the NIC is seen, carries frames, goes, and everything with it.
fn comes_and_goes(name: &str, qemu: Qemu, board: &str) {
    let switch = Switch::start().unwrap();
    let station = Station::start(&switch, 99).unwrap();
    station.wait_plugged(&switch).unwrap();
    let mut rig = Rig::start(name, qemu, Kernel::Linux6_1, board);
    let before = rig.state();
    for mac in ["52:54:00:00:21:01", "52:54:00:00:21:02"] {
        let line = done(rig.attach(&switch, &["--id", "net0", "--mac", mac, "--wait"]));
        let place = if board == "pc" { "pci.0 " } else { "vdeport0 00.0" };
        assert!(line.starts_with(&format!("net0 {mac} {place}")), "{line}");
        // The guest has it by then: its driver registers it before it starts the rings.
        let nic = rig.guest.run_ok(&format!("grep -l {mac} /sys/class/net/*/address"), LIMIT).unwrap();
        let nic = nic.split('/').nth(4).unwrap();
        rig.ping(nic, 99);
        switch.wait_ports("the NIC on the switch", LIMIT, |ports| ports.len() == 2).unwrap();
        assert_eq!(done(rig.detach(&["net0"])), "net0 is out of the VM\n");
        rig.no_interface(mac);
        assert_eq!(rig.state(), before);
        switch.wait_ports("the station alone on the switch", LIMIT, |ports| ports.len() == 1).unwrap();
        rig.no_back_end();
    }
    rig.guest.power_off(LIMIT).unwrap();
}

#[test]
fn q_21_a_nic_comes_and_goes_on_pc() {
    comes_and_goes("q21-pc", Qemu::Installed, "pc");
}

#[test]
fn q_21_a_nic_comes_and_goes_on_q35() {
    comes_and_goes("q21-q35", Qemu::Installed, "q35");
}

#[test]
fn q_21_a_nic_comes_and_goes_on_pc_of_qemu_7_2() {
    comes_and_goes("q21-pc-72", Qemu::V7_2, "pc");
}

#[test]
fn q_21_a_nic_comes_and_goes_on_q35_of_qemu_7_2() {
    comes_and_goes("q21-q35-72", Qemu::V7_2, "q35");
}

/// The guest takes six seconds, the attention button's five among them.
#[test]
fn q_21_native_hot_plug_takes_its_time() {
    let switch = Switch::start().unwrap();
    let native = "q35,acpi=on -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off";
    let mut rig = Rig::start("q21-native", Qemu::Installed, Kernel::Linux6_1, native);
    done(rig.attach(&switch, &["--mac", "52:54:00:00:21:03", "--wait"]));
    rig.interface("52:54:00:00:21:03");
    let quick = rig.detach(&["vde0", "--wait", "1"]);
    assert_eq!(quick.status, 4);
    assert!(quick.complaint.contains("has not let go of vde0 within 1 s"), "{}", quick.complaint);
    // Asked again, while the first request is under way: QEMU says so for five seconds, and then that the slot is busy.
    let mut monitor = rig.monitor();
    wait_until("the slot to be busy", LIMIT, || match monitor.device_del("vde0") {
        Err(Error::Command { desc, .. }) if desc.contains("in the process of unplug") => Ok(None),
        Err(Error::Command { desc, .. }) if desc.contains("blinking") => Ok(Some(())),
        // On a machine that was too busy itself to see it.
        Err(error) if error.is_not_found() => Ok(Some(())),
        other => anyhow::bail!("{other:?}"),
    })
    .unwrap();
    drop(monitor);
    done(rig.detach(&["vde0"]));
    rig.no_interface("52:54:00:00:21:03");
    rig.no_back_end();
}

/// A model without vhost-user, in private memory; it works on a port of q35 too.
#[test]
fn a_nic_of_another_model_needs_no_shared_memory() {
    for (name, qemu) in [("e1000", Qemu::Installed), ("e1000-72", Qemu::V7_2)] {
        let switch = Switch::start().unwrap();
        let station = Station::start(&switch, 98).unwrap();
        station.wait_plugged(&switch).unwrap();
        let mut rig = Rig::start_private(name, qemu, Kernel::Linux6_1Full, "q35");
        let before = rig.state();
        let mac = "52:54:00:00:22:01";
        let refused = rig.attach(&switch, &[]);
        assert_eq!(refused.status, 1);
        assert!(
            refused.complaint.contains("the guest's memory pc.ram is not shared"),
            "{}",
            refused.complaint
        );
        done(rig.attach(&switch, &["--model", "e1000", "--mac", mac]));
        let nic = rig.interface(mac);
        rig.ping(&nic, 98);
        done(rig.detach(&[mac]));
        rig.no_interface(mac);
        assert_eq!(rig.state(), before);
        rig.no_back_end();
    }
}

/// The queue pairs are the guest's to use, and the packet size is told to it.
#[test]
fn queues_and_mtu_reach_the_guest() {
    let switch = Switch::start().unwrap();
    let mut rig = Rig::start("hot-queues", Qemu::Installed, Kernel::Linux6_1, "pc -smp 2");
    let mac = "52:54:00:00:23:01";
    done(rig.attach(&switch, &["--mac", mac, "--queues", "2", "--mtu", "1400", "--wait"]));
    let nic = rig.interface(mac);
    let mtu = rig.guest.run_ok(&format!("cat /sys/class/net/{nic}/mtu"), LIMIT).unwrap();
    assert_eq!(mtu.trim(), "1400");
    let queues = rig.guest.run_ok(&format!("ls -d /sys/class/net/{nic}/queues/tx-*"), LIMIT).unwrap();
    assert_eq!(queues.split_whitespace().count(), 2, "{queues}");
    done(rig.detach(&["vde0"]));
}

/// A guest that stands still keeps its NIC, alive; it goes when the guest can, and the command is given again.
#[test]
fn q_24_a_paused_guest_keeps_its_nic_until_reset() {
    for (name, qemu) in [("q24", Qemu::Installed), ("q24-72", Qemu::V7_2)] {
        let switch = Switch::start().unwrap();
        let rig = Rig::start(name, qemu, Kernel::Linux6_1, "pc");
        let before = rig.state();
        done(rig.attach(&switch, &["--id", "slow", "--wait"]));
        rig.monitor().execute("stop", serde_json::json!({})).unwrap();
        let pending = rig.detach(&["slow", "--wait", "1"]);
        assert_eq!(pending.status, 4);
        assert!(pending.complaint.contains("because the VM is paused"), "{}", pending.complaint);
        switch.wait_ports("the NIC on the switch", LIMIT, |ports| ports.len() == 1).unwrap();
        let forced = rig.detach(&["slow", "--wait", "0", "--force"]);
        assert_eq!(forced.status, 4);
        assert!(forced.complaint.contains("; its cable is pulled, which"), "{}", forced.complaint);
        switch.wait_ports("no NIC on the switch", LIMIT, <[_]>::is_empty).unwrap();
        // QEMU ends instead, by -no-reboot, unless it is told otherwise.
        let mut monitor = rig.monitor();
        monitor.execute("set-action", serde_json::json!({ "reboot": "reset" })).unwrap();
        monitor.execute("system_reset", serde_json::json!({})).unwrap();
        assert!(monitor.wait_for_event(LIMIT, |event| event.name == "RESET").unwrap().is_some());
        drop(monitor);
        wait_until("the end of the device", LIMIT, || {
            Ok((!rig.state().devices.contains("slow")).then_some(()))
        })
        .unwrap();
        assert_eq!(done(rig.detach(&["slow"])), "slow had left the VM already; the rest of it is removed\n");
        assert_eq!(rig.state(), before);
        rig.no_back_end();
    }
}

/// A guest may eject a device that nobody asked it for.
#[test]
fn what_the_guest_unplugs_by_itself_is_cleaned_up() {
    let switch = Switch::start().unwrap();
    let mut rig = Rig::start("ejects", Qemu::Installed, Kernel::Linux6_1, "pc");
    let before = rig.state();
    let mac = "52:54:00:00:24:01";
    done(rig.attach(&switch, &["--id", "loose", "--mac", mac, "--wait"]));
    let nic = rig.interface(mac);
    // Taken out of the guest's system, it is in the VM still.
    let slot = "/sys/bus/pci/slots/*/address";
    let device =
        rig.guest.run_ok(&format!("basename $(readlink -f /sys/class/net/{nic}/device/..)"), LIMIT).unwrap();
    let address = device.trim().rsplit_once('.').unwrap().0.to_owned();
    let folder = rig.guest.run_ok(&format!("dirname $(grep -l {address} {slot})"), LIMIT).unwrap();
    rig.guest.run_ok(&format!("echo 0 > {}/power", folder.trim()), LIMIT).unwrap();
    wait_until("the end of the device", LIMIT, || Ok((!rig.state().devices.contains("loose")).then_some(())))
        .unwrap();
    assert_eq!(done(rig.detach(&["loose"])), "loose had left the VM already; the rest of it is removed\n");
    assert_eq!(rig.state(), before);
    rig.no_back_end();
}

/// Descriptors of QEMU and of the back end, processes, files and ports of the switch are as before.
#[test]
fn q_21_a_hundred_cycles_leave_nothing_behind() {
    let switch = Switch::start().unwrap();
    let rig = Rig::start("cycles", Qemu::Installed, Kernel::Linux6_1, "pc");
    // It keeps the back end alive.
    done(rig.attach(&switch, &["--id", "stays", "--wait"]));
    let (_, directory) = rig.back_end();
    let pid = BackEnd::in_directory(&directory).unwrap().worker().unwrap();
    let files = |path: &PathBuf| std::fs::read_dir(path).unwrap().count();
    let count = |rig: &Rig| (descriptors(rig.guest.pid()), descriptors(pid), files(&directory));
    let mut before = None;
    for cycle in 0..CYCLES {
        done(rig.attach(&switch, &["--id", "comes", "--mac", "52:54:00:00:25:01", "--wait"]));
        done(rig.detach(&["comes"]));
        if cycle == 0 {
            before = Some((count(&rig), rig.state()));
        }
    }
    let (counted, state) = before.unwrap();
    // QEMU closes the connection of the monitor when it gets to it, after the first cycle as well.
    let no_more = |now: (usize, usize, usize)| now.0 <= counted.0 && now.1 <= counted.1 && now.2 <= counted.2;
    wait_until("as few descriptors and files", LIMIT, || Ok(no_more(count(&rig)).then_some(()))).unwrap();
    assert_eq!(rig.state(), state);
    switch.wait_ports("one NIC on the switch", LIMIT, |ports| ports.len() == 1).unwrap();
    done(rig.detach(&["stays"]));
    rig.no_back_end();
    wait_until("the end of its directory", LIMIT, || Ok((!directory.exists()).then_some(()))).unwrap();
    switch.wait_ports("no NIC on the switch", LIMIT, <[_]>::is_empty).unwrap();
    assert_eq!(rig.guest.kernel_trouble().unwrap(), [""; 0]);
}

/// Its back end goes with a QEMU that was killed.
#[test]
fn a_back_end_follows_its_qemu() {
    let switch = Switch::start().unwrap();
    let mut rig = Rig::start("follows", Qemu::Installed, Kernel::Linux6_1, "pc");
    done(rig.attach(&switch, &[]));
    rig.back_end();
    rig.guest.signal(Signal::KILL).unwrap();
    rig.guest.wait(LIMIT).unwrap();
    rig.no_back_end();
    switch.wait_ports("no NIC on the switch", LIMIT, <[_]>::is_empty).unwrap();
}

/// A machine of `vdeq` has a back end and a monitor already. Its first NIC, which has no id, leaves like any other.
fn a_vm_of_vdeq(name: &str, qemu: Qemu, board: &str) {
    let switch = Switch::start().unwrap();
    let station = Station::start(&switch, 97).unwrap();
    station.wait_plugged(&switch).unwrap();
    let vm = format!("{name}-{}", std::process::id());
    let port = ["-device", "pcie-root-port,id=vdeport0,chassis=1,slot=1"];
    let mut machine =
        Machine::new().qemu(qemu).through_vdeq().unwrap().args(&["-name", &vm, "-machine", board]);
    if board == "q35" {
        machine = machine.args(&port);
    }
    machine = machine.vdeq_nic(&switch.path(), "52:54:00:00:26:01");
    let mut rig = Rig::of(Guest::start(name, &machine).unwrap(), &vm);
    switch.wait_ports("both on the switch", LIMIT, |ports| ports.len() == 2).unwrap();
    for _ in 0..2 {
        let line = done(rig.attach(&switch, &["--mac", "52:54:00:00:26:02", "--wait"]));
        assert!(line.starts_with("vde0 52:54:00:00:26:02 "), "{line}");
        let nic = rig.interface("52:54:00:00:26:02");
        rig.ping(&nic, 97);
        done(rig.detach(&["vde0n"]));
        rig.no_interface("52:54:00:00:26:02");
    }
    let first = rig.detach(&["52:54:00:00:26:01"]);
    if board == "q35" {
        assert_eq!(first.status, 1, "{first:?}");
        assert!(first.complaint.contains("does not support hotplugging"), "{first:?}");
    } else {
        assert_eq!(done(first), "52:54:00:00:26:01 is out of the VM\n");
        rig.no_interface("52:54:00:00:26:01");
        switch.wait_ports("the station alone", LIMIT, |ports| ports.len() == 1).unwrap();
        // Its back end stays for what is to come.
        done(rig.attach(&switch, &["--wait"]));
        switch.wait_ports("the new NIC", LIMIT, |ports| ports.len() == 2).unwrap();
    }
    rig.guest.power_off(LIMIT).unwrap();
    switch.wait_ports("the station alone", LIMIT, |ports| ports.len() == 1).unwrap();
}

#[test]
fn q_21_nics_of_a_vm_of_vdeq_on_pc() {
    a_vm_of_vdeq("hot-vdeq-pc", Qemu::Installed, "pc");
}

#[test]
fn q_21_nics_of_a_vm_of_vdeq_on_q35_of_qemu_7_2() {
    a_vm_of_vdeq("hot-vdeq-q35", Qemu::V7_2, "q35");
}

/// QEMU has the device, and `vdectl` does not know it: it is taken out of the guest again.
#[test]
fn q_23_a_device_whose_answer_is_lost_is_taken_out_again() {
    let switch = Switch::start().unwrap();
    let mut rig = Rig::start("lost", Qemu::Installed, Kernel::Linux6_1, "pc");
    let before = rig.state();
    let proxy = Proxy::start(&rig.socket);
    proxy.fail(When::Named("device_add"), How::Lost);
    let mac = "52:54:00:00:27:01";
    let said =
        vdectl::run(&["attach", &proxy.address, switch.path().to_str().unwrap(), "--mac", mac]).unwrap();
    assert_eq!(said.status, 1, "{said:?}");
    assert_eq!(said.complaint, "vdectl: QEMU closed its monitor before the NIC was plugged in\n");
    assert_eq!(rig.state(), before);
    rig.no_interface(mac);
    switch.wait_ports("no NIC on the switch", LIMIT, <[_]>::is_empty).unwrap();
}
