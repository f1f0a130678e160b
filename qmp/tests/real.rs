//! Conversations with real QEMUs, 10 and 7.2, without a guest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use qmp::commands::Removal;
use qmp::{Address, Client, Error, Version};
use serde_json::json;
use vde_tests::machine::Qemu;
use vde_tests::process::{Owned, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
const BOTH: [Qemu; 2] = [Qemu::Installed, Qemu::V7_2];

/// A paused machine with a monitor.
fn qemu(version: Qemu, monitor: &str) -> Owned {
    let mut command = Command::new(version.program().unwrap());
    command.args(["-nodefaults", "-display", "none", "-S", "-m", "16", "-qmp", monitor]);
    Owned::new(command.stdin(Stdio::null()).spawn().unwrap(), "QEMU")
}

fn connect(address: &Address) -> Client {
    wait_until("the monitor", LIMIT, || Ok(Client::connect(address, LIMIT).ok())).unwrap()
}

fn on_socket(version: Qemu, folder: &Path) -> (Owned, Address) {
    let socket = folder.join("qmp");
    let machine = qemu(version, &format!("unix:{},server=on,wait=off", socket.display()));
    (machine, Address::Unix(socket))
}

#[test]
fn a_nic_comes_and_goes() {
    for version in BOTH {
        let folder = tempfile::tempdir().unwrap();
        let (mut machine, address) = on_socket(version, folder.path());
        let mut client = connect(&address);
        let major = if version == Qemu::V7_2 { 7 } else { 10 };
        assert!(client.version().unwrap() >= Version { major, minor: 0, micro: 0 });
        assert_eq!(client.query_status().unwrap(), "prelaunch");
        let memory = client.query_memdev().unwrap();
        assert_eq!((memory[0].size, memory[0].share), (16 << 20, Some(false)));

        // QEMU's end of a cable comes as a descriptor.
        let (ours, theirs) = UnixStream::pair().unwrap();
        client.getfd("cable", theirs.as_fd()).unwrap();
        let end = json!({ "type": "fd", "str": "cable" });
        client.netdev_add(json!({ "type": "stream", "id": "n0", "server": false, "addr": end })).unwrap();
        client.device_add(json!({ "driver": "e1000", "id": "d0", "netdev": "n0" })).unwrap();
        let children = client.qom_list("/machine/peripheral").unwrap();
        assert!(children.iter().any(|child| child.name == "d0" && child.kind == "child<e1000>"));
        assert_eq!(client.qom_get("/machine/peripheral/d0", "netdev").unwrap(), "n0");
        assert!(client.query_pci().unwrap().to_string().contains("\"qdev_id\":\"d0\""));
        assert!(client.human_monitor_command("info network").unwrap().contains("d0: "));
        client.set_link("d0", false).unwrap();
        client.set_link("n0", true).unwrap();
        assert!(client.set_link("n1", true).unwrap_err().is_not_found());

        client.device_del("d0").unwrap();
        // No guest lets go of it, but a reset does.
        assert_eq!(client.wait_for_removal("d0", Duration::from_millis(100)).unwrap(), Removal::Pending);
        client.execute("system_reset", json!({})).unwrap();
        client.execute("cont", json!({})).unwrap();
        assert_eq!(client.wait_for_removal("d0", LIMIT).unwrap(), Removal::Done);
        client.netdev_del("n0").unwrap();
        assert!(client.netdev_del("n0").is_err());
        drop(ours);

        let nobody = folder.path().join("nobody").display().to_string();
        client.chardev_add_socket("c0", &nobody, Duration::from_secs(1)).unwrap();
        let chardevs = client.query_chardev().unwrap();
        let chardev = chardevs.iter().find(|chardev| chardev.label == "c0").unwrap();
        assert_eq!(chardev.filename, format!("disconnected:unix:{nobody}"));
        assert!(!chardev.frontend_open);
        client.chardev_remove("c0").unwrap();
        assert!(client.execute("no-such-command", json!({})).unwrap_err().is_unknown_command());

        client.execute("quit", json!({})).unwrap();
        let end = client.wait_for_event(LIMIT, |event| event.name == "SHUTDOWN").unwrap();
        assert_eq!(end.unwrap().text("reason"), Some("host-qmp-quit"));
        assert!(matches!(client.next_event(LIMIT), Err(qmp::Error::Closed)));
        assert!(machine.wait(LIMIT).unwrap().success());
    }
}

#[test]
fn tcp_and_inherited_descriptors_carry_it_too() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut machine = qemu(Qemu::Installed, &format!("tcp:127.0.0.1:{port},server=on,wait=off"));
    let address: Address = format!("tcp:127.0.0.1:{port}").parse().unwrap();
    assert_eq!(connect(&address).query_status().unwrap(), "prelaunch");
    let socket = address.connect(LIMIT).unwrap();
    let mut inherited = connect(&Address::Fd(socket.as_raw_fd()));
    // A QEMU that ends may not have sent its last words yet.
    assert!(matches!(inherited.execute("quit", json!({})), Ok(_) | Err(qmp::Error::Closed)));
    assert!(machine.wait(LIMIT).unwrap().success());
}

#[test]
fn a_second_client_waits_for_the_first_to_go() {
    let folder = tempfile::tempdir().unwrap();
    let (mut machine, address) = on_socket(Qemu::Installed, folder.path());
    let first = connect(&address);
    let error = Client::connect(&address, Duration::from_millis(200)).unwrap_err();
    assert!(matches!(error, qmp::Error::TimedOut(_)), "{error}");
    drop(first);
    connect(&address).execute("quit", json!({})).unwrap();
    assert!(machine.wait(LIMIT).unwrap().success());
}

/// Clients that give many commands, read no answer and go, each with one behind it that waits to be served.
#[test]
fn who_comes_next_is_not_answered_in_place_of_who_left() {
    for version in BOTH {
        let folder = tempfile::tempdir().unwrap();
        let (_machine, address) = on_socket(version, folder.path());
        drop(connect(&address));
        let schema = "{\"execute\": \"query-qmp-schema\"}".repeat(5);
        let events = "{\"execute\": \"cont\", \"id\": 1}{\"execute\": \"stop\", \"id\": 2}".repeat(10);
        for round in 0..60 {
            let mut rude = UnixStream::connect(folder.path().join("qmp")).unwrap();
            let mut greeting = String::new();
            BufReader::new(rude.try_clone().unwrap()).read_line(&mut greeting).unwrap();
            let next = std::thread::spawn({
                let address = address.clone();
                move || ask(&address)
            });
            let commands = if round % 2 == 0 { &schema } else { &events };
            // QEMU may have cut it off, since it came when another one went.
            let said = rude.write_all(format!("{{\"execute\": \"qmp_capabilities\"}}{commands}").as_bytes());
            if round % 3 == 0 && said.is_ok() {
                let _ = rude.read_exact(&mut [0; 100]);
            }
            drop(rude);
            let answered = match next.join().unwrap() {
                // Cut off, as above, is not answered falsely.
                Err(Error::Closed) => ask(&address),
                answered => answered,
            };
            assert_eq!(answered.unwrap(), 1, "{version:?}, round {round}");
        }
    }
}

/// How many chardevs there are.
fn ask(address: &Address) -> Result<usize, Error> {
    let mut client = Client::connect(address, LIMIT)?;
    client.query_status()?;
    client.query_chardev().map(|chardevs| chardevs.len())
}
