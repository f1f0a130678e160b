//! Command lines of the old wrapper, with real guests: the examples of its manual, and every `vlan=` a hub as it was.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use vde_tests::{Guest, Kernel, Machine, Qemu, Station, Switch, places};

const LIMIT: Duration = Duration::from_secs(60);

fn ping(guest: &mut Guest, address: &str) {
    guest.ping(4, address).unwrap();
}

/// A host process on the switch.
fn station(switch: &Switch, number: u8) -> Station {
    let station = Station::start(switch, number).unwrap();
    station.wait_plugged(switch).unwrap();
    station
}

/// A guest by `vdeq` with options of its own, for a user with this home.
fn example(qemu: Qemu, home: &Path, options: &[&str]) -> Machine {
    places::own_program("vhost-user-vde").unwrap();
    let vdeq = places::own_program("vdeq").unwrap().display().to_string();
    let home = format!("HOME={}", home.display());
    Machine::new().qemu(qemu).launcher(&[&["env", &home, &vdeq], options].concat())
}

/// The examples of the old manual, but for what QEMU itself never took (`-b c`, `-hda=`).
fn examples_of_the_manual(qemu: Qemu, name: &str) {
    let (standard, mine) = (Switch::start().unwrap(), Switch::start().unwrap());
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join(".vde2")).unwrap();
    symlink(standard.path(), home.path().join(".vde2/default.switch")).unwrap();
    let (on_standard, on_mine) = (station(&standard, 99), station(&mine, 98));
    let sock = mine.path().display().to_string();

    // vdeq qemu -net nic,vlan=0 -net nic,vlan=1 -net vde,vlan=0 -net vde,vlan=1,sock=/tmp/my.ctl,port=10
    let port = format!("vde,vlan=1,sock={sock},port=10");
    let two = ["-net", "nic,vlan=0", "-net", "nic,vlan=1", "-net", "vde,vlan=0", "-net", &port];
    let two = example(qemu, home.path(), &[]).nics(&two);
    let two = two.address(0, "10.0.0.1/24").address(1, "10.0.1.1/24");
    let mut guest = Guest::start(&format!("legacy-{name}-two"), &two).unwrap();
    ping(&mut guest, "10.0.0.99");
    guest.run_ok("ip addr add 10.0.0.2/32 dev eth1; ip route add 10.0.0.98/32 dev eth1", LIMIT).unwrap();
    ping(&mut guest, "-I eth1 10.0.0.98");
    let ports = mine.ports().unwrap();
    let ours = ports.iter().find(|port| port.number == 10).expect("port 10 is in use");
    assert!(ours.endpoints[0].starts_with("vdeqemu user="), "{ours:?}");
    // The two networks are two.
    assert!(!guest.run("ping -c 1 -W 1 -I eth0 10.0.0.98", LIMIT).unwrap().text.contains(" 0% packet loss"));
    assert!(guest.power_off(LIMIT).unwrap().success());

    // vdeq qemu -sock /tmp/vde.ctl,/tmp/my.ctl: one NIC on both.
    let list = format!("{},{sock}", standard.path().display());
    let both = example(qemu, home.path(), &["-sock", &list]).nics::<&str>(&[]);
    let mut guest = Guest::start(&format!("legacy-{name}-sock"), &both.address(0, "10.0.0.1/24")).unwrap();
    ping(&mut guest, "10.0.0.99");
    ping(&mut guest, "10.0.0.98");
    assert!(guest.power_off(LIMIT).unwrap().success());

    // vdeq qemu, without a word of networks: the default switch.
    let plain = example(qemu, home.path(), &[]).nics::<&str>(&[]);
    let mut guest = Guest::start(&format!("legacy-{name}-plain"), &plain.address(0, "10.0.0.1/24")).unwrap();
    ping(&mut guest, "10.0.0.99");
    assert!(guest.power_off(LIMIT).unwrap().success());
    for (switch, station) in [(&standard, on_standard), (&mine, on_mine)] {
        drop(station);
        switch.wait_ports("nobody on the switch", LIMIT, <[_]>::is_empty).unwrap();
    }
}

#[test]
fn examples_of_the_old_manual_on_qemu_10() {
    examples_of_the_manual(Qemu::Installed, "10");
}

#[test]
fn examples_of_the_old_manual_on_qemu_7_2() {
    examples_of_the_manual(Qemu::V7_2, "7.2");
}

/// Makes a host of its own of a NIC, so that the NICs of the guest have to talk over the wire; gives what runs a command there.
fn other_host(guest: &mut Guest, mac: &str, address: &str) -> String {
    let script = format!(
        "set -- $(grep -l {mac} /sys/class/net/*/address); nic=$(basename ${{1%/address}}); \
        unshare -n sleep 9999 & host=$!; \
        until [ $(readlink /proc/$host/ns/net) != $(readlink /proc/$$/ns/net) ]; do :; done; \
        ip link set $nic netns $host; enter=\"nsenter -n -t $host\"; \
        $enter ip link set lo up; $enter ip link set $nic up; $enter ip address add {address}/24 dev $nic; \
        until $enter ip link show $nic | grep -q LOWER_UP; do :; done; \
        echo $enter >/tmp/enter"
    );
    guest.run_ok(&script, LIMIT).unwrap();
    guest.run_ok("cat /tmp/enter", LIMIT).unwrap().trim().to_owned()
}

/// Three NICs and two networks in one segment: everybody hears everybody.
fn all_hear_each_other(qemu: Qemu, name: &str) {
    let (first, mut second) = (Switch::start().unwrap(), Switch::start().unwrap());
    let here = Station::start(&first, 99).unwrap();
    here.wait_plugged(&first).unwrap();
    let there = station(&second, 98);
    let vde = |switch: &Switch| format!("vde,vlan=4,sock={}", switch.path().display());
    let (one, other) = (vde(&first), vde(&second));
    let nic = |model: &str, number: u8| format!("nic,vlan=4,model={model},macaddr=52:54:00:00:04:0{number}");
    let (a, b, c) = (nic("virtio", 1), nic("virtio", 2), nic("e1000", 3));
    let words = ["-net", &a, "-net", &one, "-net", &b, "-net", &c, "-net", &other];
    let machine = Machine::new().qemu(qemu).kernel(Kernel::Linux6_1Full).through_vdeq().unwrap();
    let mut guest = Guest::start(&format!("legacy-hub-{name}"), &machine.nics(&words)).unwrap();
    let host =
        |number| other_host(&mut guest, &format!("52:54:00:00:04:0{number}"), &format!("10.0.0.{number}"));
    let hosts = [1, 2, 3].map(host);
    let talk = |guest: &mut Guest, from: usize, to: u8| {
        for _ in 0..2 {
            let ping = format!("{} ping -c 1 -W 5 -s 1400 10.0.0.{to}", hosts[from]);
            guest.run_ok(&ping, LIMIT).unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
        }
    };
    for from in 0..3 {
        for to in [1, 2, 3, 99, 98] {
            talk(&mut guest, from, to);
        }
    }
    // The networks hear each other too.
    let mut frame = vec![0xff; 6];
    frame.extend([2, 0, 0, 0, 1, 99, 0x88, 0xb5]);
    frame.extend([7; 50]);
    here.send(&frame).unwrap();
    there.wait_frame("a frame from the other network", LIMIT, |heard| *heard == frame).unwrap();
    // Bulk, with what the guest leaves to others.
    let serve = format!("{} httpd -p 7000 -h /tmp", hosts[1]);
    guest
        .run_ok(&format!("dd if=/dev/urandom of=/tmp/data bs=64k count=48 2>/dev/null; {serve}"), LIMIT)
        .unwrap();
    for from in [0, 2] {
        let fetch = format!(
            "{} wget -q -O /tmp/got http://10.0.0.2:7000/data && cmp /tmp/got /tmp/data",
            hosts[from]
        );
        guest.run_ok(&fetch, LIMIT).unwrap();
    }
    drop(there);
    second.kill().unwrap();
    talk(&mut guest, 0, 99);
    second.restart(&[]).unwrap();
    second.wait_ports("the hub to come back", LIMIT, |ports| ports.len() == 1).unwrap();
    let _there = station(&second, 98);
    talk(&mut guest, 2, 98);
    assert!(guest.power_off(LIMIT).unwrap().success());
    second.wait_ports("no machine on the switch", LIMIT, |ports| ports.len() == 1).unwrap();
}

#[test]
fn q_11_nics_of_one_vlan_reach_networks_and_each_other_on_qemu_10() {
    all_hear_each_other(Qemu::Installed, "10");
}

#[test]
fn q_11_nics_of_one_vlan_reach_networks_and_each_other_on_qemu_7_2() {
    all_hear_each_other(Qemu::V7_2, "7.2");
}

/// Gets an address from QEMU's user network.
fn dhcp(guest: &mut Guest, nic: &str) {
    let text = guest.run_ok(&format!("udhcpc -i {nic} -n -q -f -t 5 -s /bin/true"), LIMIT).unwrap();
    assert!(text.contains("10.0.2.15"), "{nic}: {text}");
}

/// One NIC on VDE and on QEMU's user network, with a recording; and a segment that has nothing to do with VDE.
fn vde_beside_user(qemu: Qemu, name: &str) {
    let switch = Switch::start().unwrap();
    let station = station(&switch, 99);
    let folder = tempfile::tempdir().unwrap();
    let record = folder.path().join("a,b.pcap");
    let vde = format!("vde,vlan=2,sock={}", switch.path().display());
    let dump = format!("dump,vlan=2,file={}", record.display().to_string().replace(',', ",,"));
    let words = ["nic,vlan=2", &vde, "user,vlan=2", &dump, "nic,vlan=7,model=virtio", "user,vlan=7,name=nat"];
    let words: Vec<&str> = words.iter().flat_map(|word| ["-net", word]).collect();
    let machine = Machine::new().qemu(qemu).through_vdeq().unwrap().nics(&words).address(0, "10.0.0.1/24");
    let mut guest = Guest::start(&format!("legacy-user-{name}"), &machine).unwrap();
    ping(&mut guest, "10.0.0.99");
    dhcp(&mut guest, "eth0");
    dhcp(&mut guest, "eth1");
    // Who is on the switch hears the guest ask, and reaches the user network as well.
    let asks = |frame: &[u8]| frame.starts_with(&[0xff; 6]) && frame.get(23) == Some(&17);
    station.wait_frame("the question for an address", LIMIT, asks).unwrap();
    assert!(guest.power_off(LIMIT).unwrap().success());
    let mut pcap = Vec::new();
    File::open(&record).unwrap().read_to_end(&mut pcap).unwrap();
    assert_eq!(pcap[..4], 0xa1b2_c3d4_u32.to_ne_bytes());
    let station_mac = station.identity().mac;
    assert!(pcap.windows(6).any(|bytes| bytes == station_mac), "{} bytes", pcap.len());
    assert!(pcap.windows(4).any(|bytes| bytes == [10, 0, 2, 15]), "{} bytes", pcap.len());
}

#[test]
fn vde_and_user_network_in_one_vlan_on_qemu_10() {
    vde_beside_user(Qemu::Installed, "10");
}

#[test]
fn vde_and_user_network_in_one_vlan_on_qemu_7_2() {
    vde_beside_user(Qemu::V7_2, "7.2");
}
