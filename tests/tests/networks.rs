//! Guests on every kind of network that is no `vde_switch`: nodes that our back end serves, a network namespace through
//! a veth pair, and what the installed plug-ins reach.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use vde_tests::guest::IPERF_SERVER;
use vde_tests::namespace::Namespace;
use vde_tests::wire::ether_type;
use vde_tests::{Guest, Machine, Station, Switch, places, process};

const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of a bulk transfer.
const BULK: u64 = 64 << 20;
/// Bytes per frame that only unsegmented TCP reaches; a segment has 1514.
const LARGE: u64 = 8000;

fn ping(guest: &mut Guest, address: &str) {
    guest.ping(5, address).unwrap();
}

/// A guest whose NICs are plugged into these locators; NIC n has the address 10.0.n.1/24.
fn machine(locators: &[&str]) -> Machine {
    let mut machine = Machine::new().through_vdeq().unwrap();
    for (nic, locator) in (0u32..).zip(locators) {
        machine = machine
            .vdeq_nic(Path::new(locator), &format!("52:54:00:00:01:{nic:02x}"))
            .address(nic, &format!("10.0.{nic}.1/24"));
    }
    machine
}

/// A server of iperf3 in a namespace.
fn serve(space: &Namespace) -> process::Owned {
    let [program, words @ ..] = space.prefix();
    let mut command = Command::new(program);
    command.args(words).arg(places::system_program("iperf3").unwrap()).arg("-s").stdout(Stdio::null());
    let server = process::Owned::new(command.spawn().unwrap(), "iperf3 -s");
    process::wait_until("iperf3 to listen", LIMIT, || {
        let table = space.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp6")?))?;
        // Port 5201 in state "listen".
        Ok(table.lines().any(|line| line.contains(":1451 ") && line.contains(" 0A ")).then_some(()))
    })
    .unwrap();
    server
}

#[test]
fn veth_carries_large_frames_between_guest_and_namespace() {
    let space = Namespace::new().unwrap();
    let ours = format!("vq{}", std::process::id());
    let locator = format!("veth://{ours}[peer=eth0/netns={}/up]", space.name());
    let mut guest = Guest::start("veth", &machine(&[&locator])).unwrap();
    space.ip("addr add 10.0.0.2/24 dev eth0").unwrap();
    ping(&mut guest, "10.0.0.2");

    let server = serve(&space);
    let before = space.passed("eth0").unwrap();
    guest.run_ok("iperf3 -n 64M -c 10.0.0.2", LIMIT).unwrap();
    let out = space.passed("eth0").unwrap();
    let (bytes, frames) = (out.rx_bytes - before.rx_bytes, out.rx_frames - before.rx_frames);
    assert!(bytes >= BULK && bytes / frames > LARGE, "from the guest: {bytes} bytes in {frames} frames");
    guest.run_ok("iperf3 -n 64M -R -c 10.0.0.2", LIMIT).unwrap();
    let back = space.passed("eth0").unwrap();
    let (bytes, frames) = (back.tx_bytes - out.tx_bytes, back.tx_frames - out.tx_frames);
    assert!(bytes >= BULK && bytes / frames > LARGE, "to the guest: {bytes} bytes in {frames} frames");
    drop(server);

    assert!(guest.power_off(LIMIT).unwrap().success());
    let pair = Path::new("/sys/class/net").join(&ours);
    process::wait_until("the pair to go", LIMIT, || Ok((!pair.exists()).then_some(()))).unwrap();
}

/// Bytes and frames that a guest's NIC received.
fn received(guest: &mut Guest, nic: u32) -> (u64, u64) {
    let command = format!("cd /sys/class/net/eth{nic}/statistics; cat rx_bytes rx_packets");
    let text = guest.run_ok(&command, LIMIT).unwrap();
    let mut numbers = text.lines().map(|line| line.trim().parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// TCP to a guest's NIC, of which nothing is cut on the way.
fn carries_large_frames(from: &mut Guest, to: &mut Guest, nic: u32, address: &str) {
    let before = received(to, nic);
    from.run_ok(&format!("iperf3 -n 64M -c {address}"), LIMIT).unwrap();
    let after = received(to, nic);
    let (bytes, frames) = (after.0 - before.0, after.1 - before.1);
    // The last part may still be on the way when iperf3 ends.
    assert!(bytes > BULK / 2 && bytes / frames > LARGE, "to {address}: {bytes} bytes in {frames} frames");
}

#[test]
fn guests_and_old_clients_meet_on_a_switch_and_a_cable_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node");
    let node = format!("switch://{}", path.display());
    let cable_path = dir.path().join("cable");
    let cable = format!("ptp://{}", cable_path.display());
    let mut owner = Guest::start("node-owner", &machine(&[&node, &cable])).unwrap();
    let joiner = Machine::new()
        .through_vdeq()
        .unwrap()
        .vdeq_nic(&path, "52:54:00:00:01:12")
        .address(0, "10.0.0.2/24")
        .vdeq_nic(Path::new(&cable), "52:54:00:00:01:13")
        .address(1, "10.0.1.2/24");
    let mut joiner = Guest::start("node-joiner", &joiner).unwrap();
    let _old = Station::start_at(&path, 99, true).unwrap();
    for address in ["10.0.0.2", "10.0.0.99", "10.0.1.2"] {
        ping(&mut owner, address);
    }
    ping(&mut joiner, "10.0.0.99");

    // Both back ends know large frames.
    for guest in [&mut owner, &mut joiner] {
        guest.run_ok(IPERF_SERVER, LIMIT).unwrap();
    }
    carries_large_frames(&mut joiner, &mut owner, 0, "10.0.0.1");
    carries_large_frames(&mut joiner, &mut owner, 1, "10.0.1.1");
    carries_large_frames(&mut owner, &mut joiner, 1, "10.0.1.2");
    assert!(joiner.power_off(LIMIT).unwrap().success());

    // A program that does not takes the place of the one at the other end of the cable, as soon as that one's is free.
    let free = || Ok(UnixDatagram::unbound()?.connect(&cable_path).ok());
    process::wait_until("the cable's end to be free", LIMIT, free).unwrap();
    let _old = Station::start_at(Path::new(&cable), 98, true).unwrap();
    owner.run_ok("ip route add 10.0.0.98/32 dev eth1 src 10.0.1.1", LIMIT).unwrap();
    ping(&mut owner, "10.0.0.98");
    assert!(owner.power_off(LIMIT).unwrap().success());
    process::wait_until("the node to go", LIMIT, || Ok((!path.exists()).then_some(()))).unwrap();
}

/// One guest, six plug-ins: each NIC on a network that only its plug-in knows.
#[test]
fn guest_reaches_what_installed_plug_ins_reach() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("key"), "00112233445566778899aabbccddeeff\n").unwrap();
    // Two hosts and the wire between them.
    let (here, there) = (Namespace::new().unwrap(), Namespace::new().unwrap());
    here.ip(&format!("link add wire type veth peer name wire netns {}", there.name())).unwrap();
    for (space, address) in [(&here, "192.0.2.1/24"), (&there, "192.0.2.2/24")] {
        space.ip(&format!("addr add {address} dev wire")).unwrap();
        space.ip("link set wire up").unwrap();
        space.ip("route add 239.0.0.0/8 dev wire").unwrap();
    }
    here.ip(&format!("link add pcap0 type veth peer name pcap1 netns {}", there.name())).unwrap();
    here.ip("link set pcap0 up").unwrap();
    there.ip("link set pcap1 up").unwrap();
    there.ip("addr add 10.0.5.2/24 dev pcap1").unwrap();

    let switch = Switch::start_with(&["-x"]).unwrap();
    let secret = format!("agno://{}{{{}}}", at("key"), switch.path().display());
    let hub = format!("vlan://5{{hub://{}}}", at("hub"));
    let _stations = [
        // With a table of stations, the plug-in of 4.0.1 sends nothing to those in it.
        Station::start_in(&there, "vxlan://239.0.0.1/vni=7/hashsize=0", 91).unwrap(),
        Station::start_in(&there, "vxvde://239.0.0.2/vni=8", 92).unwrap(),
        Station::start_at(Path::new(&hub), 93, true).unwrap(),
        Station::start_at(Path::new(&secret), 94, true).unwrap(),
    ];
    let listener = Station::start_at(&switch.path(), 99, false).unwrap();
    listener.wait_plugged(&switch).unwrap();
    let tagged = format!("vlan://5{{{}}}", at("hub"));
    let locators =
        ["slirp://", "vxlan://239.0.0.1/vni=7", "vxvde://239.0.0.2/vni=8", &tagged, &secret, "pcap://pcap0"];
    let mut guest = Guest::start("plug-ins", &machine(&locators).inside(&here)).unwrap();
    guest
        .run_ok("ip addr add 10.0.2.15/32 dev eth0; ip route add 10.0.2.2/32 dev eth0 src 10.0.2.15", LIMIT)
        .unwrap();
    ping(&mut guest, "10.0.2.2");
    for (nic, station) in [(1, 91), (2, 92), (3, 93), (4, 94)] {
        guest
            .run_ok(&format!("ip route add 10.0.0.{station}/32 dev eth{nic} src 10.0.{nic}.1"), LIMIT)
            .unwrap();
        ping(&mut guest, &format!("10.0.0.{station}"));
    }
    ping(&mut guest, "10.0.5.2");
    // What passed the switch was encrypted: the type is agno's own.
    let frame = listener.wait_frame("an encrypted frame", LIMIT, |frame| ether_type(frame) == Some(0xa6de));
    frame.unwrap();
    assert!(listener.take_frames().iter().all(|frame| ether_type(frame) == Some(0xa6de)));
    assert!(guest.power_off(LIMIT).unwrap().success());
}
