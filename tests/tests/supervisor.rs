//! Back ends that are killed while their guests run: what comes back, and that nothing stays behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use qmp::{Address, Client};
use rustix::process::Signal;
use serde_json::json;
use vde_tests::back_end::signal;
use vde_tests::process::{Owned, wait_until};
use vde_tests::{BackEnd, Guest, Kernel, Machine, Qemu, Station, Switch, places, vdectl};

const LIMIT: Duration = Duration::from_secs(60);
/// QEMU looks once a second for who listens again; the guest's carrier comes a moment later. Busy machines take longer.
const SOON: Duration = Duration::from_secs(15);

/// A switch with a host on it, number N.
fn network(number: u8) -> (Switch, Station) {
    let switch = Switch::start().unwrap();
    let station = Station::start(&switch, number).unwrap();
    station.wait_plugged(&switch).unwrap();
    (switch, station)
}

/// Waits until the guest reaches a host, and then without a loss.
fn reaches(guest: &mut Guest, nic: &str, host: u8) {
    let begin = Instant::now();
    let first = format!("until ping -c 1 -W 1 -I {nic} 10.0.0.{host} >/dev/null; do :; done");
    guest.run_ok(&first, LIMIT).unwrap();
    assert!(begin.elapsed() < SOON, "10.0.0.{host} answers after {:?}", begin.elapsed());
    guest.ping(5, &format!("-I {nic} 10.0.0.{host}")).unwrap();
}

/// As many ports as that are in use: each NIC has one.
fn has_ports(switch: &Switch, count: usize) {
    let reached = switch.wait_ports(&format!("{count} ports"), LIMIT, |ports| ports.len() == count);
    reached.unwrap_or_else(|error| panic!("{error}, but {:?}", switch.ports()));
}

/// Waits until so many of the guest's pings to a host are written down. They are a moment after they were answered, by a thread of
/// its own; what it has not written yet dies with the worker.
fn wait_written(capture: &Path, host: u8, count: usize) {
    // From 10.0.0.11, and the type of an echo request.
    let ping = [10, 0, 0, 11, 10, 0, 0, host, 8, 0];
    let written = || {
        let file = std::fs::read(capture)?;
        let found = file.windows(ping.len()).filter(|bytes| *bytes == ping).count();
        Ok((found >= count).then_some(()))
    };
    wait_until(&format!("{count} pings to host {host} in the capture"), LIMIT, written).unwrap();
}

/// A NIC from the start whose cable is moved, and one that is plugged in later, through two deaths.
fn killed_twice(name: &str, qemu: Qemu) {
    let [(home, _first), (moved, _second), (late, _third)] = [1, 2, 3].map(network);
    let capture = tempfile::tempdir().unwrap();
    let file = capture.path().join("c.pcapng");
    let vdeq = places::own_program("vdeq").unwrap();
    let (mac, hot) = ("52:54:00:00:51:01", "52:54:00:00:51:02");
    let machine = Machine::new()
        .qemu(qemu)
        .through_vdeq()
        .unwrap()
        .launcher(&[vdeq.to_str().unwrap(), "--vde-capture", file.to_str().unwrap()])
        .vdeq_nic(&home.path(), mac)
        .address(0, "10.0.0.11/24");
    let mut guest = Guest::start(name, &machine).unwrap();
    let vm = guest.pid().to_string();
    let back_end = BackEnd::of(guest.pid()).unwrap();
    reaches(&mut guest, "eth0", 1);
    wait_written(&file, 1, 6);
    // Nothing but the command line's so far.
    back_end.kill_worker().unwrap();
    reaches(&mut guest, "eth0", 1);
    wait_written(&file, 1, 12);
    has_ports(&home, 2);

    let path = |switch: &Switch| switch.path().to_str().unwrap().to_owned();
    vdectl::run_ok(&["link", &vm, mac, "replace", &path(&home), &path(&moved)]).unwrap();
    vdectl::run_ok(&["attach", &vm, &path(&late), "--mac", hot, "--wait"]).unwrap();
    let new = "basename $(dirname $(grep -l 52:54:00:00:51:02 /sys/class/net/*/address))";
    let new = guest.run_ok(new, LIMIT).unwrap().trim().to_owned();
    guest.run_ok(&format!("ip address add 10.0.0.12/24 dev {new}; ip link set {new} up"), LIMIT).unwrap();
    for life in 1..=2 {
        // Frames are on their way when it is killed.
        let storm =
            guest.start_job("ping -A -c 100000 -I eth0 10.0.0.2 >/dev/null & sleep 1; kill $!").unwrap();
        back_end.kill_worker().unwrap();
        guest.finish_job(storm, LIMIT).unwrap();
        reaches(&mut guest, "eth0", 2);
        wait_written(&file, 2, life * 6);
        reaches(&mut guest, &new, 3);
        [(&home, 1), (&moved, 2), (&late, 2)]
            .into_iter()
            .for_each(|(switch, count)| has_ports(switch, count));
    }
    vdectl::run_ok(&["detach", &vm, hot]).unwrap();
    back_end.kill_worker().unwrap();
    reaches(&mut guest, "eth0", 2);
    has_ports(&late, 1);
    let said = guest.messages().unwrap();
    assert_eq!(said.matches("which served, has ended by signal: 9 (SIGKILL)").count(), 4, "{said}");
    assert_eq!(guest.kernel_trouble().unwrap(), Vec::<String>::new());
    assert!(guest.power_off(LIMIT).unwrap().success());
    back_end.wait_gone().unwrap();
    [&home, &moved, &late].into_iter().for_each(|switch| has_ports(switch, 1));
    // The first life's, the second's, and the last one's, which began with the cable moved.
    let shown = Command::new("tshark")
        .arg("-r")
        .arg(&file)
        .args(["-Y", "icmp", "-T", "fields", "-e", "ip.dst"])
        .output()
        .expect("tshark is missing; cargo xtask test installs it");
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    let shown = String::from_utf8(shown.stdout).unwrap();
    let to = |host: &str| shown.lines().filter(|line| *line == host).count();
    assert!(to("10.0.0.1") >= 12 && to("10.0.0.2") >= 18, "{} {}", to("10.0.0.1"), to("10.0.0.2"));
}

#[test]
fn q_13_killed_workers_have_successors_on_qemu_10() {
    killed_twice("supervisor-10", Qemu::Installed);
}

#[test]
fn q_13_killed_workers_have_successors_on_qemu_7_2() {
    killed_twice("supervisor-72", Qemu::V7_2);
}

/// QEMU 7.2 knows no reconnection for these.
#[test]
fn emulated_nics_are_served_again() {
    let (switch, _station) = network(1);
    let machine = Machine::new()
        .kernel(Kernel::Linux6_1Full)
        .through_vdeq()
        .unwrap()
        .vdeq_nic_on("nic,model=e1000,macaddr=52:54:00:00:51:03", &[&switch.path()])
        .address(0, "10.0.0.11/24");
    let mut guest = Guest::start("supervisor-e1000", &machine).unwrap();
    let back_end = BackEnd::of(guest.pid()).unwrap();
    reaches(&mut guest, "eth0", 1);
    for _ in 0..2 {
        back_end.kill_worker().unwrap();
        reaches(&mut guest, "eth0", 1);
        has_ports(&switch, 2);
    }
    assert!(guest.power_off(LIMIT).unwrap().success());
    back_end.wait_gone().unwrap();
    has_ports(&switch, 1);
}

/// One that `vdectl attach` starts for a QEMU that has none follows that.
#[test]
fn the_back_end_of_attach_has_a_supervisor_too() {
    let (switch, _station) = network(1);
    let folder = tempfile::tempdir().unwrap();
    let vm = format!("unix:{}", folder.path().join("qmp").display());
    let machine = Machine::new().args(&[
        "-qmp",
        &format!("{vm},server=on,wait=off"),
        "-object",
        "memory-backend-memfd,id=pc.ram,size=256M,share=on",
        "-machine",
        "memory-backend=pc.ram",
    ]);
    let mut guest = Guest::start("supervisor-attach", &machine).unwrap();
    vdectl::run_ok(&["attach", &vm, switch.path().to_str().unwrap(), "--wait"]).unwrap();
    let entry = registry::entries().into_iter().find(|entry| entry.pid == Some(guest.pid())).unwrap();
    let back_end = BackEnd::in_directory(&entry.directory).unwrap();
    guest.run_ok("ip address add 10.0.0.11/24 dev eth0; ip link set eth0 up", LIMIT).unwrap();
    for _ in 0..2 {
        reaches(&mut guest, "eth0", 1);
        back_end.kill_worker().unwrap();
        // Who asks meanwhile waits for the successor.
        let list = vdectl::run_ok(&["list", &vm]).unwrap();
        assert!(list.contains("vde0"), "{list}");
    }
    reaches(&mut guest, "eth0", 1);
    back_end.kill_worker().unwrap();
    guest.signal(Signal::KILL).unwrap();
    guest.wait(LIMIT).unwrap();
    back_end.wait_gone().unwrap();
    has_ports(&switch, 1);
}

/// A machine without an operating system.
fn bare(switch: &Switch, socket: &str) -> Result<Owned> {
    let mut command = Command::new(places::own_program("vdeq")?);
    places::own_program("vhost-user-vde")?;
    command
        .arg(Qemu::Installed.program()?)
        .args(["-accel", "tcg", "-m", "32", "-display", "none", "-serial", "none", "-monitor", "none", "-S"])
        .args(["-net", "nic,model=virtio", "-net", &format!("vde,sock={}", switch.path().display())])
        .args(["-qmp", &format!("unix:{socket},server=on,wait=off")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(Owned::new(command.spawn()?, "QEMU"))
}

/// Kills the worker once it serves: Debian's switch loses track of a port whose opener dies over it.
fn kill_serving(back_end: &BackEnd) {
    let control = back_end.directory.join(registry::CONTROL);
    Client::connect(&Address::Unix(control), LIMIT).unwrap().execute("query-nics", json!({})).unwrap();
    back_end.kill_worker().unwrap();
}

/// Kills the worker again and again until the supervisor waits for seconds.
fn wear_out(back_end: &BackEnd, switch: &Switch) {
    for _ in 0..7 {
        kill_serving(back_end);
    }
    has_ports(switch, 0);
}

/// A program that does not want to hear of its children hands that down to whom it starts.
#[test]
fn a_starter_that_ignores_its_children_is_no_reason_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("private");
    std::fs::create_dir(&directory).unwrap();
    let control = directory.join(registry::CONTROL);
    let mut command = Command::new("env");
    command.arg("--ignore-signal=CHLD").arg(places::own_program("vhost-user-vde").unwrap());
    command.args(["--supervise", "--follow-front-end", "--private-dir"]).arg(&directory);
    command.arg("--control").arg(&control);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut supervisor = Owned::new(child.unwrap(), "vhost-user-vde");
    let connect = || Ok(Client::connect(&Address::Unix(control.clone()), LIMIT).ok());
    drop(wait_until("the control socket", LIMIT, connect).unwrap());
    let back_end = BackEnd::in_directory(&directory).unwrap();
    for _ in 0..2 {
        kill_serving(&back_end);
    }
    supervisor.signal(Signal::TERM).unwrap();
    supervisor.wait(LIMIT).unwrap();
    back_end.wait_gone().unwrap();
}

/// However QEMU and its back end end, while a worker serves and while none does.
#[test]
fn nothing_stays_behind() {
    let switch = Switch::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp").to_str().unwrap().to_owned();
    let monitor = || {
        let connect = || Ok(Client::connect(&Address::Unix(socket.clone().into()), LIMIT).ok());
        wait_until("the monitor", LIMIT, connect).unwrap()
    };
    for is_worn_out in [false, true] {
        for quits in [false, true] {
            let mut machine = bare(&switch, &socket).unwrap();
            drop(monitor());
            let back_end = BackEnd::of(machine.pid()).unwrap();
            if is_worn_out {
                wear_out(&back_end, &switch);
            } else {
                kill_serving(&back_end);
                has_ports(&switch, 1);
            }
            let begin = Instant::now();
            match quits {
                true => drop(monitor().execute("quit", json!({})).unwrap()),
                false => machine.signal(Signal::KILL).unwrap(),
            }
            machine.wait(LIMIT).unwrap();
            back_end.wait_gone().unwrap();
            assert!(begin.elapsed() < SOON);
            has_ports(&switch, 0);
        }
    }
    // A signal to the supervisor ends both, and QEMU goes on without a network.
    let mut machine = bare(&switch, &socket).unwrap();
    drop(monitor());
    let back_end = BackEnd::of(machine.pid()).unwrap();
    signal(back_end.supervisor, Signal::TERM).unwrap();
    back_end.wait_gone().unwrap();
    has_ports(&switch, 0);
    assert!(machine.ended().unwrap().is_none());
    drop(machine);
    // A worker without its supervisor goes on, and ends with QEMU.
    let mut machine = bare(&switch, &socket).unwrap();
    drop(monitor());
    let back_end = BackEnd::of(machine.pid()).unwrap();
    let worker = back_end.worker().unwrap();
    signal(back_end.supervisor, Signal::KILL).unwrap();
    let is_alone = || Ok((back_end.worker().is_none()).then_some(()));
    wait_until("the supervisor's end", LIMIT, is_alone).unwrap();
    has_ports(&switch, 1);
    let list = vdectl::run_ok(&["list", &machine.pid().to_string()]).unwrap();
    assert!(list.contains("vdeq0n"), "{list}");
    machine.signal(Signal::KILL).unwrap();
    machine.wait(LIMIT).unwrap();
    let path = PathBuf::from(format!("/proc/{worker}"));
    wait_until("the worker's end", LIMIT, || Ok((!path.exists()).then_some(()))).unwrap();
    back_end.wait_gone().unwrap();
    has_ports(&switch, 0);
}
