//! Guests of ours among others: host processes on `vde_plug`, guests on QEMU's own `-netdev vde`, several NICs, a network that
//! goes away, and the firmware's driver.

use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use vde_tests::guest::IPERF_SERVER;
use vde_tests::process::{self, Owned};
use vde_tests::{Guest, Kernel, Machine, Qemu, Station, Switch, places};

const LIMIT: Duration = Duration::from_secs(60);

fn ping(guest: &mut Guest, address: &str) {
    guest.ping(5, address).unwrap();
}

fn machine(switch: &Switch, number: u8) -> Machine {
    let machine = Machine::new().through_vdeq().unwrap();
    machine
        .vdeq_nic(&switch.path(), &format!("52:54:00:00:00:{number:02x}"))
        .address(0, &format!("10.0.0.{number}/24"))
        .address(0, &format!("fd00::{number}/64"))
}

#[test]
fn guest_talks_to_vde_plug_and_to_a_native_guest() {
    let switch = Switch::start().unwrap();
    let station = Station::start(&switch, 99).unwrap();
    station.wait_plugged(&switch).unwrap();
    let native = Machine::new()
        .native_nic(&switch.path(), "52:54:00:00:00:02")
        .address(0, "10.0.0.2/24")
        .address(0, "fd00::2/64");
    let ours = machine(&switch, 1);
    let mut guests = Guest::start_all(&[("mixed-ours", &ours), ("mixed-native", &native)]).unwrap();
    for address in ["10.0.0.99", "fd00::99", "10.0.0.2", "fd00::2"] {
        ping(&mut guests[0], address);
    }
    ping(&mut guests[1], "10.0.0.1");
    // TCP from the native guest, whose NIC trusts us with nothing, and to it, which leaves us the checksums.
    for (server, client, address) in [(0, 1, "10.0.0.1"), (1, 0, "10.0.0.2")] {
        guests[server].run_ok(IPERF_SERVER, LIMIT).unwrap();
        let text = guests[client].run_ok(&format!("iperf3 -n 8M -c {address}"), LIMIT).unwrap();
        assert!(text.contains("receiver"), "{text}");
    }
    for guest in guests {
        assert!(guest.power_off(LIMIT).unwrap().success());
    }
}

#[test]
fn four_nics_keep_four_networks_apart() {
    let switches: Vec<Switch> = (0..4).map(|_| Switch::start().unwrap()).collect();
    let mut machine = Machine::new().through_vdeq().unwrap().kernel(Kernel::Linux6_12);
    for (number, switch) in (0u32..).zip(&switches) {
        let mac = format!("52:54:00:00:00:1{number}");
        machine = machine.vdeq_nic(&switch.path(), &mac).address(number, &format!("10.0.{number}.1/24"));
    }
    let mut guest = Guest::start("four-nics", &machine).unwrap();
    for (number, switch) in (0u8..).zip(&switches) {
        // One back end process has a port on each switch.
        let ports = switch.ports().unwrap();
        assert_eq!(ports.len(), 1, "{ports:?}");
        let address = guest.run_ok(&format!("cat /sys/class/net/eth{number}/address"), LIMIT).unwrap();
        assert_eq!(address.trim(), format!("52:54:00:00:00:1{number}"));
    }
    // The host's address is in the first network only; in each other one nobody answers the guest.
    let station = Station::start(&switches[2], 99).unwrap();
    station.wait_plugged(&switches[2]).unwrap();
    guest
        .run_ok("ip addr add 10.0.0.7/32 dev eth2; ip route add 10.0.0.99/32 dev eth2 src 10.0.0.7", LIMIT)
        .unwrap();
    ping(&mut guest, "10.0.0.99");
    for other in [0, 1, 3] {
        let command = format!(
            "ip route replace 10.0.0.99/32 dev eth{other}; ip neigh flush all; ping -c 1 -W 1 10.0.0.99"
        );
        assert_ne!(guest.run(&command, LIMIT).unwrap().status, 0, "eth{other} reaches the station");
    }
    assert!(guest.power_off(LIMIT).unwrap().success());
}

#[test]
fn switch_that_is_restarted_gets_its_guest_back() {
    let mut switch = Switch::start().unwrap();
    let mut guest = Guest::start("restart", &machine(&switch, 1)).unwrap();
    switch.kill().unwrap();
    switch.restart(&[]).unwrap();
    switch.wait_ports("the guest to come back", LIMIT, |ports| ports.len() == 1).unwrap();
    let station = Station::start(&switch, 99).unwrap();
    station.wait_plugged(&switch).unwrap();
    ping(&mut guest, "10.0.0.99");
    let said = guest.messages().unwrap();
    assert!(said.contains("is down") && said.contains("is up again"), "{said}");
    assert!(guest.power_off(LIMIT).unwrap().success());
}

/// The DHCP message type of a frame, if it is one for the client's or the server's port.
fn dhcp_type(frame: &[u8]) -> Option<u8> {
    let udp = frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17);
    let client = frame.get(34..38) == Some(&[0, 68, 0, 67]);
    let options = frame.get(14 + 20 + 8 + 240..).filter(|_| udp && client)?;
    options.windows(3).find(|w| w[..2] == [53, 1]).map(|w| w[2])
}

/// Takes the modern interface from all virtio NICs: their driver has to be a legacy one.
const LEGACY: [&str; 2] = ["-global", "virtio-net-pci.disable-modern=on"];

#[test]
fn legacy_linux_driver_talks_with_both_header_lengths() {
    let switch = Switch::start().unwrap();
    let station = Station::start(&switch, 99).unwrap();
    station.wait_plugged(&switch).unwrap();
    // Without mergeable buffers a legacy header has 10 bytes, else 12.
    for (name, mergeable) in [("legacy-12", "on"), ("legacy-10", "off")] {
        let buffers = format!("virtio-net-pci.mrg_rxbuf={mergeable}");
        let machine = machine(&switch, 1).args(&LEGACY).args(&["-global", &buffers]);
        let mut guest = Guest::start(name, &machine).unwrap();
        let features = guest.run_ok("cat /sys/class/net/eth0/device/features", LIMIT).unwrap();
        let bit = |number: usize| features.as_bytes().get(number).copied();
        assert_eq!((bit(32), bit(15)), (Some(b'0'), Some(if mergeable == "on" { b'1' } else { b'0' })));
        ping(&mut guest, "10.0.0.99 -s 1472");
        ping(&mut guest, "fd00::99");
        assert!(guest.power_off(LIMIT).unwrap().success());
    }
}

/// The iPXE ROM inside QEMU brings drivers of its own, a modern and a legacy one.
fn firmware_gets_an_offer(qemu: Qemu, more: &[&str]) -> Result<()> {
    const DISCOVER: u8 = 1;
    const REQUEST: u8 = 3;
    let switch = Switch::start()?;
    let mut slirp = std::process::Command::new(places::system_program("vde_plug")?);
    let slirp = slirp.arg(switch.path()).arg("slirp://").stdin(std::process::Stdio::null()).spawn()?;
    let _slirp = Owned::new(slirp, "vde_plug slirp://");
    let listener = Station::start_at(&switch.path(), 98, false)?;
    listener.wait_plugged(&switch)?;
    let vdeq = places::own_program("vdeq")?;
    let vectors = if qemu == Qemu::V7_2 { ",vectors=0" } else { "" };
    let guest = std::process::Command::new(vdeq)
        .arg(qemu.program()?)
        .args(["-accel", "tcg", "-m", "128", "-display", "none", "-monitor", "none", "-serial", "none"])
        .args(more)
        .args(["-boot", "n", "-net", &format!("nic,macaddr=52:54:00:00:00:01{vectors}")])
        .args(["-net", &format!("vde,sock={}", switch.path().display())])
        .stdin(std::process::Stdio::null())
        .spawn()?;
    let mut guest = Owned::new(guest, "QEMU with iPXE");
    listener.wait_frame("DHCPDISCOVER", LIMIT, |frame| dhcp_type(frame) == Some(DISCOVER))?;
    // A client requests only what it was offered.
    listener.wait_frame("DHCPREQUEST", LIMIT, |frame| dhcp_type(frame) == Some(REQUEST))?;
    guest.signal(Signal::TERM)?;
    ensure!(guest.wait(LIMIT)?.success(), "QEMU ends by SIGTERM with 0");
    process::wait_until("the back end to leave the switch", LIMIT, || {
        let ours = |p: &vde_tests::Port| p.endpoints.iter().any(|e| e.starts_with("vdeqemu"));
        Ok((!switch.ports()?.iter().any(ours)).then_some(()))
    })
}

#[test]
fn ipxe_gets_a_dhcp_offer() {
    firmware_gets_an_offer(Qemu::Installed, &[]).unwrap();
    firmware_gets_an_offer(Qemu::Installed, &LEGACY).unwrap();
    firmware_gets_an_offer(Qemu::V7_2, &[]).unwrap();
}
