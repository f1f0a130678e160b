//! The life of a machine started by `vdeq`: what it is, how it ends, and that nothing stays behind, even after 200 of them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use qmp::{Address, Client};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use vde_tests::process::{Owned, wait_until};
use vde_tests::{BackEnd, Guest, Machine, Port, Qemu, Station, Switch, places};

const LIMIT: Duration = Duration::from_secs(30);
/// Enough that a descriptor, port or file lost now and then adds up. Their firmware drives the NIC; `tests/pair.rs` and others
/// start whole systems.
const STARTS: u32 = 200;
/// How long a switch may take to hear that a process is gone, before it counts as never to hear it.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// The command line of a machine without an operating system: its firmware starts the NIC.
fn vdeq(switch: &Switch, more: &[&str]) -> Result<Command> {
    let mut command = Command::new(places::own_program("vdeq")?);
    command
        .arg(Qemu::Installed.program()?)
        .args(["-accel", "tcg", "-m", "32", "-display", "none", "-serial", "none", "-boot", "n"])
        .args(["-net", "nic,model=virtio", "-net", &format!("vde,sock={}", switch.path().display())])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(command)
}

/// Where root's machines keep their sockets.
fn private_dir(pid: u32) -> PathBuf {
    Path::new("/run/vdeq").join(pid.to_string())
}

/// Waits until back end, directory and port are gone.
fn gone(switch: &Switch, back_end: &BackEnd) -> Result<()> {
    back_end.wait_gone()?;
    switch.wait_ports("no machine on the switch", LIMIT, <[_]>::is_empty)?;
    let files = std::fs::read_dir(switch.path())?.count();
    ensure!(files == 1, "{files} files in the switch's directory instead of ctl alone");
    Ok(())
}

/// Waits until `vdeq` has become QEMU and the firmware sends frames. A port keeps its counters from one user to the next.
///
/// Debian's switch loses track of a port that is being opened while a management connection ends (`vde_plug` beside a loop
/// of `port/print` fills all ports in seconds), so it is asked nothing before that.
fn wait_frame(switch: &Switch, machine: &Owned) -> Result<()> {
    let name = PathBuf::from(format!("/proc/{}/comm", machine.pid()));
    wait_until("vdeq to become QEMU", LIMIT, || {
        Ok(std::fs::read_to_string(&name)?.starts_with("qemu-system").then_some(()))
    })?;
    let sent = |ports: &[Port]| ports.iter().map(|p| p.received.0).sum::<u64>();
    let before = sent(&switch.wait_ports("a machine on the switch", LIMIT, |ports| !ports.is_empty())?);
    switch.wait_ports("a frame", LIMIT, |ports| sent(ports) > before)?;
    Ok(())
}

#[test]
fn q_16_q_17_poweroff_and_signals_are_qemus_own() {
    let switch = Switch::start().unwrap();
    let machine = Machine::new().through_vdeq().unwrap().vdeq_nic(&switch.path(), "52:54:00:00:00:01");
    let guest = Guest::start("life-poweroff", &machine).unwrap();
    let name = std::fs::read_to_string(format!("/proc/{}/comm", guest.pid())).unwrap();
    assert!(name.starts_with("qemu-system"), "the process that was started is QEMU: {name}");
    let parts = BackEnd::of(guest.pid()).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", parts.supervisor)).unwrap();
    assert!(status.contains("PPid:\t1\n"), "init owns the back end, QEMU would not reap it");
    assert!(guest.power_off(LIMIT).unwrap().success());
    gone(&switch, &parts).unwrap();
    for (signal, success) in [(Signal::TERM, true), (Signal::INT, true), (Signal::KILL, false)] {
        let child = vdeq(&switch, &["-monitor", "none"]).unwrap().spawn().unwrap();
        let mut machine = Owned::new(child, "QEMU");
        wait_frame(&switch, &machine).unwrap();
        let parts = BackEnd::of(machine.pid()).unwrap();
        machine.signal(signal).unwrap();
        assert_eq!(machine.wait(LIMIT).unwrap().success(), success, "{signal:?}");
        gone(&switch, &parts).unwrap();
    }
}

/// A machine in the background, by its pidfile; killed on drop.
struct Daemon(PathBuf);

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(&self.0).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

#[test]
fn q_18_daemonized_machine_keeps_its_network_until_it_ends() {
    let switch = Switch::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let pidfile = folder.path().join("pid");
    let words = ["-daemonize", "-monitor", "none", "-pidfile", pidfile.to_str().unwrap()];
    let mut child = vdeq(&switch, &words).unwrap().spawn().unwrap();
    let started = child.id();
    let daemon = Daemon(pidfile);
    assert!(child.wait().unwrap().success(), "vdeq returns 0 when QEMU has detached itself");
    let parts = BackEnd::of(started).unwrap();
    let sends = |ports: &[Port]| ports.iter().any(|port| port.received.0 > 0);
    switch.wait_ports("the daemon's frames", LIMIT, sends).unwrap();
    drop(daemon);
    gone(&switch, &parts).unwrap();
}

#[test]
fn c_56_firmware_asks_the_network_for_an_address() {
    let switch = Switch::start().unwrap();
    let station = Station::start_at(&switch.path(), 1, false).unwrap();
    station.wait_plugged(&switch).unwrap();
    let _machine = Owned::new(vdeq(&switch, &["-monitor", "none"]).unwrap().spawn().unwrap(), "QEMU");
    // From port 68 to port 67 of everybody, by UDP over IPv4.
    let asks = |frame: &[u8]| {
        frame.starts_with(&[0xff; 6])
            && frame.get(12..14) == Some(&[0x08, 0x00])
            && frame.get(23) == Some(&17)
            && frame.get(34..38) == Some(&[0, 68, 0, 67])
            && frame.len() > 300
    };
    station.wait_frame("DHCP", LIMIT, asks).unwrap();
}

#[test]
fn c_57_two_segments_are_two_networks() {
    let (near, far) = (Switch::start().unwrap(), Switch::start().unwrap());
    let stations = [(&near, 1), (&far, 2)].map(|(switch, number)| {
        let station = Station::start(switch, number).unwrap();
        station.wait_plugged(switch).unwrap();
        station
    });
    let machine = Machine::new()
        .through_vdeq()
        .unwrap()
        .vdeq_nic(&near.path(), "52:54:00:00:00:01")
        .vdeq_nic(&far.path(), "52:54:00:00:00:02")
        .address(0, "10.0.0.11/24")
        .address(1, "10.0.0.12/24");
    let mut guest = Guest::start("life-segments", &machine).unwrap();
    for (own, other) in [(0, 1), (1, 0)] {
        let ping = |host: usize| format!("ping -c 2 -W 5 -I eth{own} 10.0.0.{}", host + 1);
        guest.run_ok(&ping(own), LIMIT).unwrap();
        assert_ne!(guest.run(&ping(other).replace("-W 5", "-W 1"), LIMIT).unwrap().status, 0);
    }
    for (number, station) in (1..).zip(&stations) {
        let senders: Vec<u8> = station.take_frames().iter().map(|frame| frame[11]).collect();
        assert!(senders.contains(&number) && !senders.contains(&(3 - number)), "{senders:?}");
    }
    assert!(guest.power_off(LIMIT).unwrap().success());
}

#[test]
fn idle_back_end_makes_no_system_call() {
    let switch = Switch::start().unwrap();
    let machine = Machine::new().through_vdeq().unwrap().vdeq_nic(&switch.path(), "52:54:00:00:00:01");
    let mut guest = Guest::start("life-idle", &machine).unwrap();
    // What the guest's own IPv6 sends by itself is not idle.
    let quiet = "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6";
    guest.run_ok(quiet, LIMIT).unwrap();
    let back_end = BackEnd::of(guest.pid()).unwrap();
    let processes = [back_end.supervisor, back_end.worker().unwrap()].map(|process| process.to_string());
    let folder = tempfile::tempdir().unwrap();
    let summary = folder.path().join("summary");
    let strace = Command::new("timeout")
        .args(["-s", "INT", "10", "strace", "-c", "-f", "-p", &processes[0], "-p", &processes[1], "-o"])
        .arg(&summary)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&strace.stderr).into_owned();
    assert!(said.contains("attached"), "{said}");
    let counted = std::fs::read_to_string(summary).unwrap();
    let calls = counted.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit()));
    assert_eq!(calls.count(), 0, "{counted}");
    assert!(guest.power_off(LIMIT).unwrap().success());
}

#[test]
fn monitor_sees_shared_memory_and_a_live_socket() {
    let switch = Switch::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp");
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let mut machine = Owned::new(vdeq(&switch, &["-qmp", &qmp]).unwrap().spawn().unwrap(), "QEMU");
    let connect = || Ok(Client::connect(&Address::Unix(socket.clone()), LIMIT).ok());
    let mut monitor = wait_until("the monitor", LIMIT, connect).unwrap();
    let memory = monitor.execute("query-memdev", json!({})).unwrap();
    assert_eq!((&memory[0]["id"], &memory[0]["share"]), (&json!("pc.ram"), &json!(true)), "{memory}");
    assert_eq!(memory[0]["size"], 32 << 20);
    let chardevs = monitor.execute("query-chardev", json!({})).unwrap();
    let ours = |c: &&serde_json::Value| c["label"] == "vdeq0c";
    let ours = chardevs.as_array().unwrap().iter().find(ours).expect("our chardev");
    assert!(ours["filename"].as_str().unwrap().starts_with("unix:/run/vdeq/"), "{ours}");
    let parts = BackEnd::of(machine.pid()).unwrap();
    monitor.execute("quit", json!({})).unwrap();
    assert!(machine.wait(LIMIT).unwrap().success());
    gone(&switch, &parts).unwrap();
}

/// Whether what the switch still lists are endpoints of processes that are gone. Debian's switch loses track of a port that is
/// opened at the very moment at which another connection to it ends, and lists it for ever.
fn are_forgotten(ports: &[Port]) -> bool {
    let pid = |endpoint: &String| Some(endpoint.split_once("pid=")?.1.split(' ').next()?.to_owned());
    let mut endpoints = ports.iter().flat_map(|port| &port.endpoints);
    endpoints.all(|endpoint| !Path::new("/proc").join(pid(endpoint).unwrap()).exists())
}

#[test]
fn two_hundred_machines_leave_nothing() {
    let mut switch = Switch::start().unwrap();
    let shared = || {
        let text = std::fs::read_to_string("/proc/sysvipc/shm").unwrap().lines().count();
        (text, std::fs::read_dir("/dev/shm").unwrap().count())
    };
    let descriptors =
        |switch: &Switch| std::fs::read_dir(format!("/proc/{}/fd", switch.pid())).unwrap().count();
    let before = (shared(), descriptors(&switch));
    let mut forgotten = 0;
    for number in 0..STARTS {
        let child = vdeq(&switch, &["-monitor", "none"]).unwrap().spawn().unwrap();
        let mut machine = Owned::new(child, "QEMU");
        // Some end while vdeq starts, most while QEMU does, and some once their firmware sends.
        match number % 10 {
            0..3 => {}
            3..9 => drop(BackEnd::of(machine.pid()).unwrap()),
            _ => wait_frame(&switch, &machine).unwrap(),
        }
        let signal = if number % 2 == 0 { Signal::TERM } else { Signal::KILL };
        machine.signal(signal).unwrap();
        machine.wait(LIMIT).unwrap();
        let dir = private_dir(machine.pid());
        // A vdeq that is killed before its back end has the directory leaves it without sockets; a later vdeq removes it.
        let has_sockets = || {
            let names =
                std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
            names.filter_map(|name| name.into_string().ok()).any(|name| name.ends_with(".sock"))
        };
        let is_left =
            || number % 10 < 3 && signal == Signal::KILL && !has_sockets() && registry::remove(&dir).is_ok();
        let clean = || Ok((!dir.exists() || is_left()).then_some(()));
        wait_until(&format!("the directory of start {number} to go"), LIMIT, clean).unwrap();
        let ports = switch.wait_ports("no machine on the switch", LIMIT, are_forgotten);
        ports.unwrap_or_else(|error| panic!("start {number}: {error}, but {:?}", switch.ports()));
        if switch.wait_ports("an empty switch", FORGOTTEN, <[_]>::is_empty).is_err() {
            forgotten += 1;
            switch.stop().unwrap();
            switch.restart(&[]).unwrap();
        }
    }
    assert!(forgotten < 10, "the switch forgot {forgotten} ports");
    let after = wait_until("the switch to close what it had", LIMIT, || {
        let after = (shared(), descriptors(&switch));
        Ok((after == before).then_some(after))
    });
    assert_eq!(after.unwrap(), before);
    let left = std::fs::read_dir(switch.path()).unwrap().count();
    assert_eq!(left, 1, "only ctl is left in the switch's directory");
}
