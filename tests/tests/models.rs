//! Guests without virtio drivers: NICs that QEMU emulates, on the same back end and the same networks, by each of the
//! options that `vdeq` knows.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use rustix::process::Signal;
use vde_tests::process::{Owned, wait_until};
use vde_tests::{Guest, Kernel, Machine, Qemu, Station, Switch, places};

const LIMIT: Duration = Duration::from_secs(60);

fn ping(guest: &mut Guest, address: &str) {
    guest.ping(5, address).unwrap();
}

/// Waits until all NICs have their carrier: e1000 negotiates for two seconds, and what is sent meanwhile comes late or never.
fn wait_carrier(guest: &mut Guest) {
    let all = "for nic in /sys/class/net/eth*; do until grep -q 1 $nic/carrier; do sleep 0.1; done; done";
    guest.run_ok(all, LIMIT).unwrap();
}

/// A machine for `vdeq` whose kernel has all the drivers.
fn machine(qemu: Qemu) -> Machine {
    Machine::new().qemu(qemu).kernel(Kernel::Linux6_1Full).through_vdeq().unwrap()
}

/// The words for a NIC of this model; its number is the end of its MAC address.
fn nic(model: &str, number: usize) -> String {
    format!("nic,model={model},{}", mac("macaddr", number))
}

fn mac(key: &str, number: usize) -> String {
    format!("{key}=52:54:00:00:00:{number:02x}")
}

/// In what words a NIC and its network are given.
#[derive(Clone, Copy)]
enum Form {
    /// `-net nic` and `-net vde`.
    Net,
    /// `-device` and `-netdev vde`.
    Netdev,
    /// The same in JSON, with two queue pairs.
    Json,
    /// `-nic vde`.
    Nic,
}

/// Gives the machine a NIC of this model on the switch.
fn with_nic(machine: Machine, form: Form, model: &str, number: usize, switch: &Path) -> Machine {
    let (sock, id) = (switch.display(), format!("net{number}"));
    match form {
        Form::Net => machine.vdeq_nic_on(&nic(model, number), &[switch]),
        Form::Netdev => machine.args(&[
            "-device",
            &format!("{model},netdev={id},{}", mac("mac", number)),
            "-netdev",
            &format!("vde,id={id},sock={sock}"),
        ]),
        Form::Json => {
            let mac = format!("52:54:00:00:00:{number:02x}");
            let netdev = serde_json::json!({ "type": "vde", "id": id, "sock": switch, "queues": 2 });
            let device = serde_json::json!({ "driver": model, "netdev": id, "mac": mac });
            machine.args(&["-netdev", &netdev.to_string(), "-device", &device.to_string()])
        }
        Form::Nic => {
            machine.args(&["-nic", &format!("vde,sock={sock},model={model},{}", mac("mac", number))])
        }
    }
}

/// Fetches a file of 3 MiB by TCP and compares it with the original.
fn fetch_file(from: &mut Guest, to: &mut Guest, address: &str) {
    let serve =
        "dd if=/dev/urandom of=/tmp/data bs=64k count=48 2>/dev/null; httpd -p 7000 -h /tmp 2>/dev/null";
    from.run(serve, LIMIT).unwrap();
    to.run_ok(&format!("wget -q -O /tmp/got http://{address}:7000/data"), LIMIT).unwrap();
    let sum = |guest: &mut Guest, file| {
        let text = guest.run_ok(&format!("wc -c <{file}; md5sum <{file}"), LIMIT).unwrap();
        assert!(text.starts_with("3145728\n"), "{text}");
        text
    };
    assert_eq!(sum(from, "/tmp/data"), sum(to, "/tmp/got"));
}

/// One guest with a NIC of each model, one with e1000 and one with virtio in this form: all models talk to both of these, and
/// to a host process.
///
/// Model N is alone in the network 10.0.N.0/24 of its guest, and answers for no other address of it.
fn models_talk(qemu: Qemu, name: &str, virtio_form: Form, models: &[(Form, &str)]) {
    let switch = Switch::start().unwrap();
    let station = Station::start(&switch, 99).unwrap();
    station.wait_plugged(&switch).unwrap();
    let path = switch.path();
    let mut virtio = with_nic(machine(qemu), virtio_form, "virtio-net-pci", 101, &path);
    let mut e1000 = with_nic(machine(qemu), Form::Nic, "e1000", 102, &path);
    let mut all = machine(qemu);
    for (number, (form, model)) in models.iter().enumerate() {
        virtio = virtio.address(0, &format!("10.0.{number}.1/24"));
        e1000 = e1000.address(0, &format!("10.0.{number}.2/24"));
        all = with_nic(all, *form, model, number, &path);
    }
    let names = ["virtio", "e1000", "all"].map(|guest| format!("models-{name}-{guest}"));
    let mut guests =
        Guest::start_all(&[(&names[0], &virtio), (&names[1], &e1000), (&names[2], &all)]).unwrap();
    guests.iter_mut().for_each(wait_carrier);
    let [virtio, e1000, all] = guests.as_mut_slice() else { panic!("three guests") };
    // Bit 22: several queue pairs.
    let pairs = virtio.run_ok("cut -c 23 /sys/class/net/eth0/device/features", LIMIT).unwrap();
    assert_eq!(pairs.trim() == "1", matches!(virtio_form, Form::Json), "{pairs}");
    all.run_ok("echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore", LIMIT).unwrap();
    for (number, (_, model)) in models.iter().enumerate() {
        let find =
            format!("basename $(dirname $(grep -il 52:54:00:00:00:{number:02x} /sys/class/net/*/address))");
        let device =
            all.run_ok(&find, LIMIT).unwrap_or_else(|error| panic!("no driver for {model}: {error:#}"));
        all.run_ok(&format!("ip address add 10.0.{number}.3/24 dev {}", device.trim()), LIMIT).unwrap();
        ping(all, &format!("10.0.{number}.1 -s 1472"));
        ping(all, &format!("10.0.{number}.2"));
        ping(e1000, &format!("10.0.{number}.3 -s 1472"));
        // virtio leaves checksums and segments to us, and this guest takes complete frames only.
        fetch_file(virtio, all, &format!("10.0.{number}.1"));
        fetch_file(all, virtio, &format!("10.0.{number}.3"));
    }
    ping(e1000, "10.0.0.99");
    for guest in guests {
        assert!(guest.power_off(LIMIT).unwrap().success());
    }
}

#[test]
fn q_9_models_of_qemu_10_talk_to_each_other_and_to_virtio() {
    let models = [
        (Form::Nic, "e1000"),
        (Form::Netdev, "ne2k_pci"),
        (Form::Net, "rtl8139"),
        (Form::Nic, "pcnet"),
        (Form::Netdev, "vmxnet3"),
        (Form::Nic, "e1000e"),
    ];
    models_talk(Qemu::Installed, "10", Form::Netdev, &models);
}

#[test]
fn q_3_q_9_models_of_qemu_7_2_talk_to_each_other_and_to_virtio() {
    let models = [(Form::Net, "e1000"), (Form::Nic, "ne2k_pci"), (Form::Netdev, "rtl8139")];
    models_talk(Qemu::V7_2, "7.2", Form::Json, &models);
}

#[test]
fn q_9_long_frames_pass_where_both_sides_have_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // A switch of ours, which carries long frames, and two kinds of ports on it in one process.
    let nic = |name: &str, more: &str| {
        format!("socket-path={},link=switch://{}{more}", at(name).display(), at("net").display())
    };
    let words = ["--nic".into(), nic("virtio", ""), "--nic".into(), nic("plain", ",protocol=stream")];
    let child = Command::new(places::own_program("vhost-user-vde").unwrap()).args(words).spawn().unwrap();
    let _served = Owned::new(child, "vhost-user-vde");
    wait_until("its sockets", LIMIT, || Ok(at("plain").exists().then_some(()))).unwrap();
    let machine = || Machine::new().kernel(Kernel::Linux6_1Full);
    let virtio = machine().vhost_user_nic(&at("virtio"), "52:54:00:00:00:01", "").address(0, "10.0.0.1/24");
    let e1000e = machine().stream_nic(&at("plain"), "e1000e", "52:54:00:00:00:02").address(0, "10.0.0.2/24");
    let mut guests = Guest::start_all(&[("long-virtio", &virtio), ("long-e1000e", &e1000e)]).unwrap();
    guests.iter_mut().for_each(wait_carrier);
    let (first, second) = guests.split_at_mut(1);
    fetch_file(&mut first[0], &mut second[0], "10.0.0.1");
    for guest in [&mut first[0], &mut second[0]] {
        guest.run_ok("ip link set eth0 mtu 9000", LIMIT).unwrap();
    }
    // The NIC is started anew by this, and has to find its partner again.
    second[0].run_ok("until ping -c 1 -W 1 10.0.0.1 >/dev/null; do :; done", LIMIT).unwrap();
    ping(&mut second[0], "10.0.0.1 -s 8900");
    ping(&mut first[0], "10.0.0.2 -s 8900");
    for guest in guests {
        assert!(guest.power_off(LIMIT).unwrap().success());
    }
}

#[test]
fn one_nic_is_on_two_switches_and_finds_back_to_each() {
    let (mut first, second) = (Switch::start().unwrap(), Switch::start().unwrap());
    let paths = [first.path(), second.path()];
    let machine = machine(Qemu::Installed)
        .vdeq_nic_on(&nic("e1000", 1), &[&paths[0], &paths[1]])
        .address(0, "10.0.0.1/24");
    let mut guest = Guest::start("models-two-switches", &machine).unwrap();
    wait_carrier(&mut guest);
    let here = Station::start(&first, 99).unwrap();
    let there = Station::start(&second, 98).unwrap();
    here.wait_plugged(&first).unwrap();
    there.wait_plugged(&second).unwrap();
    ping(&mut guest, "10.0.0.99");
    ping(&mut guest, "10.0.0.98");
    drop(here);
    first.kill().unwrap();
    ping(&mut guest, "10.0.0.98");
    first.restart(&[]).unwrap();
    first.wait_ports("the guest to come back", LIMIT, |ports| ports.len() == 1).unwrap();
    let here = Station::start(&first, 99).unwrap();
    here.wait_plugged(&first).unwrap();
    ping(&mut guest, "10.0.0.99");
    let said = guest.messages().unwrap();
    assert!(said.contains("e1000 is not virtio") && said.contains("is up again"), "{said}");
    assert!(guest.power_off(LIMIT).unwrap().success());
    second.wait_ports("no machine on the switch", LIMIT, |ports| ports.len() == 1).unwrap();
}

/// A back end on the switch, started by hand.
fn back_end(switch: &Switch, socket: &Path) -> Result<Owned> {
    let child = Command::new(places::own_program("vhost-user-vde")?)
        .args(["--protocol", "stream", "--socket-path"])
        .arg(socket)
        .arg("--link")
        .arg(switch.path())
        .stdin(Stdio::null())
        .spawn()?;
    let back_end = Owned::new(child, "vhost-user-vde");
    let mark = format!("pid={}", back_end.pid());
    let here = |text: &String| text.split_whitespace().any(|word| word == mark);
    switch.wait_ports("the back end", LIMIT, |ports| ports.iter().any(|p| p.endpoints.iter().any(here)))?;
    wait_until("its socket", LIMIT, || Ok(socket.exists().then_some(())))?;
    Ok(back_end)
}

#[test]
fn qemu_and_back_end_may_end_and_come_back() {
    let switch = Switch::start().unwrap();
    let station = Station::start(&switch, 99).unwrap();
    station.wait_plugged(&switch).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let socket: PathBuf = folder.path().join("n0");
    let mut served = back_end(&switch, &socket).unwrap();
    let machine = |qemu| {
        Machine::new()
            .qemu(qemu)
            .kernel(Kernel::Linux6_1Full)
            .stream_nic(&socket, "e1000", "52:54:00:00:00:01")
            .address(0, "10.0.0.1/24")
    };
    for qemu in [Qemu::V7_2, Qemu::Installed] {
        let mut guest = Guest::start("models-killed", &machine(qemu)).unwrap();
        wait_carrier(&mut guest);
        ping(&mut guest, "10.0.0.99");
        guest.signal(Signal::KILL).unwrap();
        assert!(!guest.wait(LIMIT).unwrap().success());
    }
    let mut guest = Guest::start("models-again", &machine(Qemu::Installed)).unwrap();
    wait_carrier(&mut guest);
    ping(&mut guest, "10.0.0.99");
    served.signal(Signal::KILL).unwrap();
    served.wait(LIMIT).unwrap();
    let _served = back_end(&switch, &socket).unwrap();
    guest.run_ok("until ping -c 1 -W 1 10.0.0.99 >/dev/null; do :; done", LIMIT).unwrap();
    ping(&mut guest, "10.0.0.99");
    assert!(guest.power_off(LIMIT).unwrap().success());
}
