//! `vdectl list` and `vdectl link`: what a VM has for NICs, and what is done to their cables while its guest runs.

use std::time::Duration;

use serde_json::{Value, json};
use vde_tests::process::wait_until;
use vde_tests::{Guest, Kernel, Machine, Qemu, Station, Switch, vdectl};

const LIMIT: Duration = Duration::from_secs(60);

/// The NICs of a VM, by their names.
fn nics(vm: &str) -> Vec<Value> {
    let text = vdectl::run_ok(&["list", vm, "--json"]).unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    list["nics"].as_array().unwrap().clone()
}

fn named<'a>(nics: &'a [Value], name: &str) -> &'a Value {
    nics.iter().find(|nic| nic["name"] == name).unwrap_or_else(|| panic!("no {name} in {nics:#?}"))
}

/// NICs made in all ways, on a machine that does not run yet.
fn list_shows_every_nic(name: &str, qemu: Qemu) {
    let switch = Switch::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let sock = switch.path();
    let sock = sock.display();
    let netdevs = ["d0", "hostnet0"].map(|id| format!("vde,id={id},sock={sock}"));
    let machine =
        Machine::new().qemu(qemu).through_vdeq().unwrap().vdeq_nic(&switch.path(), "52:54:00:00:00:01");
    let machine = machine.args(&[
        "-S",
        "-qmp",
        &format!("unix:{},server=on,wait=off", socket.display()),
        "-netdev",
        &netdevs[0],
        "-device",
        "e1000,netdev=d0,mac=52:54:00:00:00:02",
        "-netdev",
        &netdevs[1],
        "-device",
        "virtio-net-pci,netdev=hostnet0,id=net0,mac=52:54:00:00:00:03,vectors=0",
        "-netdev",
        "user,id=u0",
        "-device",
        "e1000,netdev=u0,id=outside,mac=52:54:00:00:00:04",
    ]);
    let mut guest = Guest::spawn(name, &machine).unwrap();
    let connect = || Ok(qmp::Client::connect(&qmp::Address::Unix(socket.clone()), LIMIT).ok());
    drop(wait_until("the monitor", LIMIT, connect).unwrap());
    let vm = socket.to_str().unwrap();
    let nics = nics(vm);
    assert_eq!(nics.len(), 4, "{nics:#?}");
    let row =
        |nic: &Value| [&nic["mac"], &nic["model"], &nic["netdev"]["kind"], &nic["id"]].map(Value::clone);
    let expected = [
        ("vdeq0n", "52:54:00:00:00:01", "virtio-net-pci", "vhost-user", None),
        ("d0", "52:54:00:00:00:02", "e1000", "stream", None),
        ("net0", "52:54:00:00:00:03", "virtio-net-pci", "vhost-user", Some("net0")),
        ("outside", "52:54:00:00:00:04", "e1000", "user", Some("outside")),
    ];
    for (name, mac, model, kind, id) in expected {
        assert_eq!(row(named(&nics, name)), [json!(mac), json!(model), json!(kind), json!(id)]);
    }
    assert_eq!(named(&nics, "net0")["netdev"]["id"], "hostnet0");
    let table = vdectl::run_ok(&["list", vm]).unwrap();
    assert_eq!(table.lines().count(), 5, "{table}");
    assert!(table.contains("user net=10.0.2.0"), "{table}");
    guest.signal(rustix::process::Signal::TERM).unwrap();
    guest.wait(LIMIT).unwrap();
}

#[test]
fn q_25_list_shows_nics_made_in_any_way_on_qemu_10() {
    list_shows_every_nic("q25", Qemu::Installed);
}

#[test]
fn q_25_list_shows_nics_made_in_any_way_on_qemu_7_2() {
    list_shows_every_nic("q25-72", Qemu::V7_2);
}

/// A virtio NIC and an e1000, the cables of which are pulled and plugged in again.
fn the_guest_sees_its_cables(name: &str, qemu: Qemu) {
    let switch = Switch::start().unwrap();
    let _peer = Station::start(&switch, 99).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    let machine = Machine::new()
        .qemu(qemu)
        .kernel(Kernel::Linux6_1Full)
        .through_vdeq()
        .unwrap()
        .vdeq_nic(&switch.path(), "52:54:00:00:00:01")
        .vdeq_nic_on("nic,model=e1000,macaddr=52:54:00:00:00:02", &[&switch.path()])
        // A third one, in a hub of QEMU's.
        .vdeq_nic_on("nic,model=e1000,macaddr=52:54:00:00:00:03", &[&switch.path()])
        .args(&["-net", "user,vlan=2"])
        .address(0, "10.0.0.1/24")
        .args(&["-qmp", &monitor]);
    let mut guest = Guest::start(name, &machine).unwrap();
    let vm = socket.to_str().unwrap();
    for nic in 0..3 {
        let mac = &format!("52:54:00:00:00:{:02x}", nic + 1);
        wait_carrier(&mut guest, nic, true);
        assert_eq!(vdectl::run_ok(&["link", vm, mac, "down"]).unwrap(), format!("{mac}: down\n"));
        wait_carrier(&mut guest, nic, false);
        assert_eq!(vdectl::run_ok(&["link", vm, mac, "up"]).unwrap(), format!("{mac}: up\n"));
        wait_carrier(&mut guest, nic, true);
    }
    // QEMU lets a virtio NIC's driver work as long as there is a cable; of others it does not tell.
    let carrier = |mac: &str| {
        nics(vm).into_iter().find(|nic| nic["mac"] == mac).map(|nic| nic["carrier"].clone()).unwrap()
    };
    assert_eq!((carrier("52:54:00:00:00:01"), carrier("52:54:00:00:00:02")), (json!(true), json!(null)));
    vdectl::run_ok(&["link", vm, "52:54:00:00:00:01", "down"]).unwrap();
    assert_eq!(carrier("52:54:00:00:00:01"), json!(false));
    vdectl::run_ok(&["link", vm, "52:54:00:00:00:01", "up"]).unwrap();
    // A cable that is plugged in again carries.
    for nic in 0..3 {
        let others = "for nic in 0 1 2; do ip addr flush dev eth$nic; done";
        guest.run_ok(&format!("{others}; ip addr add 10.0.0.1/24 dev eth{nic}"), LIMIT).unwrap();
        guest.ping(5, "10.0.0.99").unwrap();
    }
    guest.power_off(LIMIT).unwrap();
}

fn wait_carrier(guest: &mut Guest, nic: u32, up: bool) {
    let value = u8::from(up);
    guest
        .run_ok(&format!("until grep -q {value} /sys/class/net/eth{nic}/carrier; do sleep 0.1; done"), LIMIT)
        .unwrap();
}

#[test]
fn q_26_cables_are_pulled_and_plugged_in_on_qemu_10() {
    the_guest_sees_its_cables("q26", Qemu::Installed);
}

#[test]
fn q_26_cables_are_pulled_and_plugged_in_on_qemu_7_2() {
    the_guest_sees_its_cables("q26-72", Qemu::V7_2);
}
