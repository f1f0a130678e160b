//! What a guest gets from a network that knows no large frames: few large frames, on all its queues.

use std::process::{Command, Stdio};
use std::time::Duration;

use vde_tests::guest::IPERF_SERVER;
use vde_tests::process::{Owned, wait_until};
use vde_tests::{Guest, Machine, Switch, places};

const LIMIT: Duration = Duration::from_secs(90);
/// Bytes of a transfer, of which its last part may still be on the way when iperf3 ends.
const BULK: u64 = 48 << 20;
/// Bytes of the longest frame on the wire.
const FULL: u64 = 1514;

/// Bytes and frames that the guest's NIC received.
fn received(guest: &mut Guest) -> (u64, u64) {
    let text = guest.run_ok("cd /sys/class/net/eth0/statistics; cat rx_bytes rx_packets", LIMIT).unwrap();
    let mut numbers = text.lines().map(|line| line.trim().parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// How often each receive queue interrupted the guest.
fn interrupts(guest: &mut Guest) -> Vec<u64> {
    let text = guest.run_ok("grep -- '-input' /proc/interrupts", LIMIT).unwrap();
    let count = |line: &str| line.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).sum();
    text.lines().map(count).collect()
}

#[test]
fn segments_through_a_switch_arrive_joined_and_on_all_queues() {
    let switch = Switch::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("n0");
    let nic = format!("socket-path={},link={},queues=2", socket.display(), switch.path().display());
    let mut command = Command::new(places::own_program("vhost-user-vde").unwrap());
    command.args(["--nic", &nic]).stdin(Stdio::null());
    let _backend = Owned::new(command.spawn().unwrap(), "vhost-user-vde");
    wait_until("the back end's socket", LIMIT, || Ok(socket.exists().then_some(()))).unwrap();

    let chardev = format!("socket,id=c,path={}", socket.display());
    let receiver = Machine::new()
        .args(&["-smp", "2", "-object", "memory-backend-memfd,id=pc.ram,size=256M,share=on"])
        .args(&["-machine", "memory-backend=pc.ram", "-chardev", &chardev])
        .args(&["-netdev", "vhost-user,id=n,chardev=c,queues=2"])
        .args(&["-device", "virtio-net-pci,netdev=n,mq=on,vectors=6,mac=52:54:00:00:00:01"])
        .address(0, "10.0.0.1/24");
    let sender = Machine::new()
        .through_vdeq()
        .unwrap()
        .vdeq_nic(&switch.path(), "52:54:00:00:00:02")
        .address(0, "10.0.0.2/24");
    let guests = Guest::start_all(&[("receive-receiver", &receiver), ("receive-sender", &sender)]).unwrap();
    let [mut receiver, mut sender] = guests.try_into().unwrap_or_else(|_| panic!("two guests"));
    receiver.run_ok(IPERF_SERVER, LIMIT).unwrap();

    let before = received(&mut receiver);
    sender.run_ok("iperf3 -n 48M -c 10.0.0.1", LIMIT).unwrap();
    let after = received(&mut receiver);
    let (bytes, frames) = (after.0 - before.0, after.1 - before.1);
    assert!(bytes > BULK / 2 && bytes / frames > 2 * FULL, "{bytes} bytes in {frames} frames");

    let before = interrupts(&mut receiver);
    assert_eq!(before.len(), 2, "a queue for each CPU");
    sender.run_ok("iperf3 -n 24M -P 8 -c 10.0.0.1", LIMIT).unwrap();
    sender.run_ok("iperf3 -n 24M -P 8 -R -c 10.0.0.1", LIMIT).unwrap();
    let after = interrupts(&mut receiver);
    assert!(
        before.iter().zip(&after).all(|(before, after)| before + 20 < *after),
        "{before:?}, then {after:?}"
    );

    assert!(sender.power_off(LIMIT).unwrap().success());
    assert!(receiver.power_off(LIMIT).unwrap().success());
}
