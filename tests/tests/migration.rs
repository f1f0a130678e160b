//! A guest that moves from one QEMU to another, and from one back end to another, while it receives: every byte arrives. And
//! the other things that only a real guest does to packed rings, or sees of a back end that is killed.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use qmp::{Address, Client};
use serde_json::{Value, json};
use vde_tests::{Guest, Kernel, Machine, Station, Switch, places, process};

const LIMIT: Duration = Duration::from_secs(60);
const COPY_LIMIT: Duration = Duration::from_secs(300);
const MAC: &str = "52:54:00:00:03:01";
/// What comes by TCP meanwhile.
const COPY_MEBIBYTES: u32 = 48;

fn back_end(switch: &Switch, socket: &Path, name: &str) -> process::Owned {
    let mut command = Command::new(places::own_program("vhost-user-vde").unwrap());
    command.arg("--socket-path").arg(socket).arg("--link").arg(switch.path()).stdin(Stdio::null());
    command.args(["--log-level", "debug"]);
    command.stderr(File::create(places::log_file(&format!("{name}.backend.log")).unwrap()).unwrap());
    let back_end = process::Owned::new(command.spawn().unwrap(), "vhost-user-vde");
    process::wait_until("the back end to listen", LIMIT, || Ok(socket.exists().then_some(()))).unwrap();
    back_end
}

fn machine(home: &Path, place: &str, properties: &str) -> Machine {
    let monitor = format!("unix:{},server=on,wait=off", home.join(format!("{place}.qmp")).display());
    Machine::new()
        .vhost_user_nic(&home.join(place), MAC, properties)
        .address(0, "10.0.0.1/24")
        .args(&["-qmp", &monitor])
}

fn monitor(home: &Path, place: &str) -> Client {
    let address = Address::Unix(home.join(format!("{place}.qmp")));
    process::wait_until("the monitor", LIMIT, || Ok(Client::connect(&address, LIMIT).ok())).unwrap()
}

/// Moves the guest to the QEMU at `there`, which waits for it.
fn migrate(home: &Path, here: &str, there: &str) {
    let [mut source, mut destination] = [here, there].map(|place| monitor(home, place));
    let uri = format!("unix:{}", home.join("migration").display());
    destination.execute("migrate-incoming", json!({ "uri": &uri })).unwrap();
    // A guest without KVM writes faster than it is copied in less.
    source.execute("migrate-set-parameters", json!({ "downtime-limit": 2000 })).unwrap();
    source.execute("migrate", json!({ "uri": &uri })).unwrap();
    let state = process::wait_until("the end of the migration", COPY_LIMIT, || {
        let state: Value = source.execute("query-migrate", json!({}))?;
        Ok(matches!(state["status"].as_str(), Some("completed" | "failed" | "cancelled")).then_some(state))
    });
    let state = state.unwrap();
    assert_eq!(state["status"], "completed", "{state}");
    source.execute("quit", json!({})).unwrap();
}

fn guest_moves(name: &str, properties: &str) {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let switch = Switch::start().unwrap();
    let names =
        ["here", "there", "peer"].map(|place| (home.join(place), format!("migration-{name}-{place}")));
    let _back_ends = names.each_ref().map(|(socket, name)| back_end(&switch, socket, name));
    let peer = Machine::new().vhost_user_nic(&names[2].0, "52:54:00:00:03:02", "").address(0, "10.0.0.2/24");
    let here = machine(home, "here", properties);
    let mut guests = Guest::start_all(&[(&names[0].1, &here), (&names[2].1, &peer)]).unwrap();
    let waiting = machine(home, "there", properties).args(&["-incoming", "defer"]);
    let mut there = Guest::spawn(&names[1].1, &waiting).unwrap();
    let station = Station::start(&switch, 9).unwrap();
    station.wait_plugged(&switch).unwrap();

    let [here, peer] = &mut guests[..] else { panic!("two guests") };
    here.run_ok("mkfifo /tmp/open", LIMIT).unwrap();
    let receive = here.start_job("nc -l -p 5000 <>/tmp/open | sha256sum").unwrap();
    peer.run_ok(&format!("dd if=/dev/urandom of=/tmp/data bs=1M count={COPY_MEBIBYTES}"), COPY_LIMIT)
        .unwrap();
    here.run_ok("until netstat -ltn | grep -q ':5000 '; do sleep 0.1; done", LIMIT).unwrap();
    // Slowly, so that some of it comes before, most of it during, and the rest after the move.
    let parts = format!("for part in $(seq 0 {}); do", COPY_MEBIBYTES - 1);
    let part = "dd if=/tmp/data bs=1M count=1 skip=$part 2>/dev/null; sleep 0.1";
    let send = peer.start_job(&format!("{parts} {part}; done | nc 10.0.0.1 5000")).unwrap();
    migrate(home, "here", "there");
    let rarp = [&[0xff; 6][..], &[0x52, 0x54, 0, 0, 3, 1, 0x80, 0x35]].concat();
    station.wait_frame("its new place", LIMIT, |frame| frame.starts_with(&rarp)).unwrap();
    let sent = peer.finish_job(send, COPY_LIMIT).unwrap();
    assert_eq!(sent.status, 0, "{}", sent.text);
    let received = there.finish_job(receive, COPY_LIMIT).unwrap().text;
    let sent = peer.run_ok("sha256sum </tmp/data", LIMIT).unwrap();
    assert!(sent.len() > 64 && sent == received, "sent {sent}, received {received}");
    there.ping(5, "-s 20000 10.0.0.2").unwrap();
    assert_eq!(there.kernel_trouble().unwrap(), Vec::<String>::new());
}

#[test]
fn guest_that_receives_moves_over_split_rings() {
    guest_moves("split", "rx_queue_size=1024,tx_queue_size=1024");
}

#[test]
fn guest_that_receives_moves_over_packed_rings() {
    guest_moves("packed", "packed=on,rx_queue_size=256");
}

/// The driver comes and goes, which resets the device each time, and its guest has the MTU of the device.
#[test]
fn device_with_packed_rings_is_reset_again_and_again() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let switch = Switch::start().unwrap();
    let station = Station::start(&switch, 9).unwrap();
    station.wait_plugged(&switch).unwrap();
    let _back_end = back_end(&switch, &home.join("here"), "reset");
    let properties = "packed=on,host_mtu=1400,rx_queue_size=1024,tx_queue_size=1024";
    let machine = machine(home, "here", properties).kernel(Kernel::Linux6_12);
    let mut guest = Guest::start("reset", &machine).unwrap();
    let features = guest.run_ok("cat /sys/class/net/eth0/device/features", LIMIT).unwrap();
    // VIRTIO_NET_F_MTU, VIRTIO_F_RING_PACKED, and no VIRTIO_F_RING_RESET: QEMU would not tell us of it.
    assert_eq!([3, 34, 40].map(|bit| &features[bit..=bit]), ["1", "1", "0"], "{features}");
    let device = "$(basename $(readlink -f /sys/class/net/eth0/device))";
    let rebind = format!(
        "dev={device} && cd /sys/bus/virtio/drivers/virtio_net && echo $dev >unbind && echo $dev >bind && \
         ip link set eth0 up && ip addr add 10.0.0.1/24 dev eth0"
    );
    for _ in 0..3 {
        let mtu = guest.run_ok("cat /sys/class/net/eth0/mtu", LIMIT).unwrap();
        assert_eq!(mtu.trim(), "1400");
        guest.ping(20, "-s 1300 10.0.0.9").unwrap();
        guest.run_ok(&rebind, LIMIT).unwrap();
    }
    assert_eq!(guest.kernel_trouble().unwrap(), Vec::<String>::new());
}

#[test]
fn q_13_killed_back_end_is_missed_and_its_successor_taken() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let switch = Switch::start().unwrap();
    let station = Station::start(&switch, 9).unwrap();
    station.wait_plugged(&switch).unwrap();
    let socket = home.join("here");
    let mut killed = back_end(&switch, &socket, "killed");
    let mut guest = Guest::start("killed", &machine(home, "here", "")).unwrap();
    let mut monitor = monitor(home, "here");
    let carrier = |up: u8| format!("until grep -q {up} /sys/class/net/eth0/carrier; do sleep 0.05; done");
    let words = "-s 1400 10.0.0.9";
    guest.run_ok(&carrier(1), LIMIT).unwrap();
    guest.ping(20, words).unwrap();
    // Frames are on their way both ways when it is killed.
    let storm = guest.start_job("ping -A -c 100000 -s 1400 10.0.0.9 >/dev/null & sleep 1; kill $!").unwrap();
    killed.signal(rustix::process::Signal::KILL).unwrap();
    killed.wait(LIMIT).unwrap();
    let missed = monitor.wait_for_event(LIMIT, |event| event.name == "NETDEV_VHOST_USER_DISCONNECTED");
    assert!(missed.unwrap().is_some());
    guest.finish_job(storm, LIMIT).unwrap();
    guest.run_ok(&carrier(0), LIMIT).unwrap();

    // It takes the place of the socket that nobody listens on any more.
    let _successor = back_end(&switch, &socket, "successor");
    let taken = monitor.wait_for_event(LIMIT, |event| event.name == "NETDEV_VHOST_USER_CONNECTED");
    assert!(taken.unwrap().is_some());
    guest.run_ok(&carrier(1), LIMIT).unwrap();
    // Neither ring has lost its place: more frames pass than either has entries.
    let text = guest.run_ok("ping -A -c 1000 -W 5 -s 1400 10.0.0.9", LIMIT).unwrap();
    assert!(text.contains("1000 packets transmitted"), "{text}");
    guest.ping(20, words).unwrap();
    assert_eq!(guest.kernel_trouble().unwrap(), Vec::<String>::new());
}
