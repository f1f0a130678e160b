//! Guests whose memory is given in every way that there is, on the boards that people run: what they send and get
//! passes through that memory, so the back end must have mapped all of it.

use std::time::Duration;

use qmp::{Address, Client};
use serde_json::{Value, json};
use vde_tests::{Guest, Machine, Qemu, Station, Switch, process};

const LIMIT: Duration = Duration::from_secs(60);
const MAC: &str = "52:54:00:00:05:01";

/// A guest through `vdeq` on a switch where a station answers.
struct Wired {
    guest: Guest,
    _station: Station,
    _switch: Switch,
}

impl Wired {
    fn start(name: &str, machine: impl FnOnce(Machine) -> Machine) -> Self {
        let switch = Switch::start().unwrap();
        let station = Station::start(&switch, 99).unwrap();
        station.wait_plugged(&switch).unwrap();
        let plain = Machine::new().through_vdeq().unwrap().vdeq_nic(&switch.path(), MAC);
        let guest = Guest::start(name, &machine(plain.address(0, "10.0.0.1/24"))).unwrap();
        Self { guest, _station: station, _switch: switch }
    }

    /// More pings than a ring has buffers, so that each is filled and taken anew.
    fn ping(&mut self, count: u32) {
        let text =
            self.guest.run_ok(&format!("ping -q -A -c {count} -W 5 -s 1400 10.0.0.99"), LIMIT).unwrap();
        assert!(text.contains(" 0% packet loss"), "{text}");
    }

    fn number(&mut self, command: &str) -> u64 {
        let text = self.guest.run_ok(command, LIMIT).unwrap();
        text.trim().parse().unwrap_or_else(|_| panic!("{command}: {text}"))
    }

    fn end(self) {
        assert!(self.guest.power_off(LIMIT).unwrap().success());
    }

    /// The words that QEMU was started with in the end.
    fn words(&self) -> Vec<String> {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.guest.pid())).unwrap();
        let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        words.collect()
    }
}

/// A guest with one NIC and nothing said about memory but its size.
fn plain_guest(name: &str, qemu: Qemu) -> Wired {
    let folder = tempfile::tempdir().unwrap();
    let address = Address::Unix(folder.path().join("qmp"));
    let monitor = format!("{address},server=on,wait=off");
    let mut wired = Wired::start(name, |machine| machine.qemu(qemu).args(&["-qmp", &monitor]));
    wired.ping(20);
    let mut client =
        process::wait_until("the monitor", LIMIT, || Ok(Client::connect(&address, LIMIT).ok())).unwrap();
    let memory: Value = client.execute("query-memdev", json!({})).unwrap();
    assert_eq!((&memory[0]["id"], &memory[0]["share"]), (&json!("pc.ram"), &json!(true)), "{memory}");
    assert_eq!(memory[0]["size"], 256 << 20);
    wired
}

#[test]
fn q_2_guest_on_qemu_10_pings_and_its_memory_is_shared() {
    plain_guest("memory-q2", Qemu::Installed).end();
}

#[test]
fn q_3_guest_on_qemu_7_2_pings_without_vectors_and_with_its_own_reconnect() {
    let wired = plain_guest("memory-q3", Qemu::V7_2);
    let words = wired.words();
    assert!(words.iter().any(|word| word.starts_with("nic,") && word.contains(",vectors=0")), "{words:?}");
    assert!(
        words.iter().any(|word| word.starts_with("socket,") && word.ends_with(",reconnect=1")),
        "{words:?}"
    );
    wired.end();
}

#[test]
fn q_4_odd_size_boots() {
    // The last -m counts: the harness has its own before. Half of a page is missing at the end.
    let mut wired = Wired::start("memory-odd", |machine| machine.args(&["-m", "200001k"]));
    wired.ping(5);
    assert!(wired.number("awk '/MemTotal/{print $2}' /proc/meminfo") < 200_001);
    wired.end();
}

#[test]
fn q_5_buffers_above_4_gib_pass() {
    let mut wired = Wired::start("memory-q35", |machine| machine.memory(4096).args(&["-M", "q35"]));
    // The kernel takes buffers for a NIC from this zone, all of which lies above 4 GiB, as long as it has room.
    let pages = wired.number("awk '/zone +Normal/{z=1} z&&/present/{print $2; exit}' /proc/zoneinfo");
    assert!(pages >= 400_000, "{pages} pages above 4 GiB");
    let free = wired.number("awk '/zone +Normal/{z=1} z&&/pages free/{print $3; exit}' /proc/zoneinfo");
    assert!(free > 100_000, "only {free} of them are free");
    wired.ping(300);
    wired.end();
}

#[test]
fn q_6_a_private_file_is_made_to_pass() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("ram").display().to_string();
    let mut wired = Wired::start("memory-path", |machine| machine.args(&["-mem-path", &file]));
    wired.ping(20);
    wired.end();
}

/// Two nodes whose memory was private, of both kinds.
fn nodes_are_made_to_pass(qemu: Qemu, name: &str) {
    let place = tempfile::tempdir().unwrap();
    let file = format!("memory-backend-file,id=b,size=128M,mem-path={}", place.path().display());
    let mut wired = Wired::start(name, |machine| {
        let first = machine.qemu(qemu).args(&["-object", "memory-backend-ram,id=a,size=128M"]);
        first.args(&["-object", &file, "-numa", "node,memdev=a,cpus=0", "-numa", "node,memdev=b"])
    });
    wired.ping(20);
    // The first node has the only processor and is taken from first. Once it is full, buffers come from the second.
    let first = "/sys/devices/system/node/node0/meminfo";
    let fill = "mount -o remount,size=90% /tmp && dd if=/dev/zero of=/tmp/fill bs=1M count=$((free / 1024))";
    let command = format!("free=$(awk '/MemFree/{{print $4}}' {first}); {fill} 2>/dev/null");
    wired.guest.run_ok(&command, LIMIT).unwrap();
    wired.ping(600);
    wired.end();
}

#[test]
fn q_6_nodes_of_private_memory_are_made_to_pass_on_qemu_10() {
    nodes_are_made_to_pass(Qemu::Installed, "memory-nodes-10");
}

#[test]
fn q_6_nodes_of_private_memory_are_made_to_pass_on_qemu_7_2() {
    nodes_are_made_to_pass(Qemu::V7_2, "memory-nodes-7.2");
}

#[test]
fn q_7_microvm_with_legacy_rings_passes() {
    for (qemu, version) in [(Qemu::Installed, "10"), (Qemu::V7_2, "7.2")] {
        // The board wires one serial line; the harness speaks through a second. And it has no clock that the
        // kernel could measure an emulated processor's by.
        let board = ["-M", "microvm", "-device", "isa-serial,chardev=serial1"];
        let mut wired = Wired::start(&format!("microvm-{version}"), |machine| {
            machine.qemu(qemu).kernel_word("tsc_early_khz=2000000").args(&board)
        });
        let features = wired.guest.run_ok("cat /sys/class/net/eth0/device/features", LIMIT).unwrap();
        // VIRTIO_F_VERSION_1 is what a legacy device lacks.
        assert_eq!(features.as_bytes().get(32), Some(&b'0'), "{features}");
        let ring = wired.guest.run_ok("ethtool -g eth0", LIMIT).unwrap();
        let lengths = ring.lines().filter(|line| line.starts_with("RX:") || line.starts_with("TX:"));
        assert!(lengths.clone().count() == 4 && lengths.clone().all(|line| line.ends_with("1024")), "{ring}");
        wired.ping(1200);
        wired.end();
    }
}
