//! Guests whose NICs have properties drawn at random, through one `vde_switch`: whatever QEMU lets be switched on or off,
//! every byte arrives.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use fastrand::Rng;
use vde_tests::{Guest, Kernel, Machine, Switch, places, process};

const LIMIT: Duration = Duration::from_secs(60);
const COPY_LIMIT: Duration = Duration::from_secs(240);
const COPY_MEBIBYTES: u32 = 16;

/// What `virtio-net-pci` of QEMU 10 lets be switched, and what means something to a back end.
const SWITCHES: [&str; 19] = [
    "csum",
    "host_tso4",
    "host_tso6",
    "host_ecn",
    "host_uso",
    "guest_csum",
    "guest_tso4",
    "guest_tso6",
    "guest_ecn",
    "guest_uso4",
    "guest_uso6",
    "mrg_rxbuf",
    "event_idx",
    "indirect_desc",
    "packed",
    "in_order",
    "queue_reset",
    "disable-modern",
    "ctrl_guest_offloads",
];

/// Properties for one NIC.
fn draw_properties(draw: &mut Rng) -> String {
    let mut words = vec!["disable-legacy=off".to_owned()];
    for name in SWITCHES {
        words.push(format!("{name}={}", if draw.bool() { "on" } else { "off" }));
    }
    words.push(format!("rx_queue_size={}", 256 << draw.usize(..3)));
    words.push(format!("tx_queue_size={}", 256 << draw.usize(..3)));
    words.join(",")
}

/// A back end with two NICs on a switch.
fn back_end(switch: &Switch, sockets: &[std::path::PathBuf], name: &str) -> process::Owned {
    let mut command = Command::new(places::own_program("vhost-user-vde").unwrap());
    command.args(["--log-level", "info"]).stdin(Stdio::null());
    for socket in sockets {
        let nic = format!("socket-path={},link={}", socket.display(), switch.path().display());
        command.args(["--nic", &nic]);
    }
    command.stderr(File::create(places::log_file(&format!("{name}.backend.log")).unwrap()).unwrap());
    let back_end = process::Owned::new(command.spawn().unwrap(), "vhost-user-vde");
    process::wait_until("the back end to listen", LIMIT, || {
        Ok(sockets.iter().all(|socket| socket.exists()).then_some(()))
    })
    .unwrap();
    back_end
}

/// Copies random bytes by TCP and compares their hashes.
fn copy(sender: &mut Guest, receiver: &mut Guest, to: &str) {
    receiver.run_ok("rm -f /tmp/open && mkfifo /tmp/open", LIMIT).unwrap();
    let listen = receiver.start_job("nc -l -p 5000 <>/tmp/open | sha256sum").unwrap();
    let make = format!("dd if=/dev/urandom of=/tmp/data bs=1M count={COPY_MEBIBYTES}");
    sender.run_ok(&make, COPY_LIMIT).unwrap();
    let connect = format!("until nc {to} 5000 </tmp/data; do sleep 0.2; done");
    sender.run_ok(&connect, COPY_LIMIT).unwrap();
    let sent = sender.run_ok("sha256sum </tmp/data", COPY_LIMIT).unwrap();
    let received = receiver.finish_job(listen, COPY_LIMIT).unwrap().text;
    assert!(sent.len() > 64 && sent == received, "sent {sent}, received {received}");
}

fn traffic_with(seed: u64) {
    let mut draw = Rng::with_seed(seed);
    let properties = [draw_properties(&mut draw), draw_properties(&mut draw)];
    println!("seed {seed}: {properties:#?}");
    let home = tempfile::tempdir().unwrap();
    let switch = Switch::start().unwrap();
    let sockets = [1, 2].map(|number| home.path().join(format!("n{number}")));
    let _back_end = back_end(&switch, &sockets, &format!("combinations-{seed}"));
    let machines = [0, 1].map(|index| {
        let number = index + 1;
        Machine::new()
            .kernel(Kernel::Linux6_12)
            .vhost_user_nic(&sockets[index], &format!("52:54:00:00:02:{number:02x}"), &properties[index])
            .address(0, &format!("10.0.0.{number}/24"))
            .address(0, &format!("fd00::{number}/64"))
    });
    let names = [1, 2].map(|number| format!("combinations-{seed}-{number}"));
    let guests = Guest::start_all(&[(&names[0], &machines[0]), (&names[1], &machines[1])]).unwrap();
    let [mut first, mut second]: [Guest; 2] = guests.try_into().ok().unwrap();
    for size in [56, 1472, 20_000] {
        first.ping(4, &format!("-s {size} 10.0.0.2")).unwrap();
    }
    copy(&mut first, &mut second, "10.0.0.2");
    copy(&mut second, &mut first, "fd00::1");
}

#[test]
fn any_properties_carry_any_traffic_1() {
    traffic_with(1);
}

#[test]
fn any_properties_carry_any_traffic_2() {
    traffic_with(2);
}

#[test]
fn any_properties_carry_any_traffic_3() {
    traffic_with(3);
}
