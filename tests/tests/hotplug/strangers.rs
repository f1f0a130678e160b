//! Sockets that are no free QMP monitor, where `vdectl` is told that one is.

use std::io::Read;
use std::os::unix::net::UnixListener;

use qmp::{Address, Client};
use vde_tests::vdectl::{self, Said};
use vde_tests::{Qemu, Switch};

use crate::bare::Bare;
use crate::rig::{LIMIT, back_end, done};

/// Told to plug a NIC into this, it says why not, in one sentence.
fn refused(monitor: &str, why: &str) {
    for words in [&["attach", monitor, "/tmp"][..], &["detach", monitor, "net0"]] {
        let Said { status, text, complaint } = vdectl::run(words).unwrap();
        assert_eq!((status, text.as_str()), (1, ""), "{words:?}: {complaint}");
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
        assert!(complaint.contains(why), "'{why}' is not in: {complaint}");
        assert!(!complaint.chars().any(|c| c.is_control() && c != '\n'), "{complaint:?}");
    }
}

#[test]
fn a_switch_is_no_monitor() {
    let switch = Switch::start().unwrap();
    let management = switch.path().with_file_name("mgmt");
    refused(management.to_str().unwrap(), "this is not a QMP socket: VDE switch");
    refused(
        switch.path().join("ctl").to_str().unwrap(),
        "does not greet: another client uses it, or QEMU hangs",
    );
}

#[test]
fn what_says_nothing_is_not_waited_for_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mute");
    let listener = UnixListener::bind(&path).unwrap();
    refused(path.to_str().unwrap(), "does not greet: another client uses it, or QEMU hangs");
    // Children of other tests may have it as well.
    rustix::net::shutdown(&listener, rustix::net::Shutdown::Both).unwrap();
    refused(path.to_str().unwrap(), "Connection refused");
    refused(folder.path().join("none").to_str().unwrap(), "No such file or directory");
}

#[test]
fn what_hangs_up_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rude");
    let listener = UnixListener::bind(&path).unwrap();
    // Ends with the test.
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            client.shutdown(std::net::Shutdown::Write).ok();
            // Until the other side has understood.
            client.read_to_end(&mut Vec::new()).ok();
        }
    });
    refused(path.to_str().unwrap(), "is of no use: ");
}

/// QEMU's monitor for people, and one that somebody else has.
#[test]
fn monitors_that_are_of_no_use() {
    let folder = tempfile::tempdir().unwrap();
    let human = folder.path().join("human");
    let monitor = format!("unix:{},server=on,wait=off", human.display());
    let bare = Bare::start(Qemu::Installed, "pc", &["-monitor", &monitor]);
    refused(human.to_str().unwrap(), "this is not a QMP socket: QEMU 10");
    let held = Client::connect(&Address::Unix(bare.socket.clone()), LIMIT).unwrap();
    refused(bare.socket.to_str().unwrap(), "another client uses it");
    drop(held);
}

/// It says the same words as QEMU.
#[test]
fn a_back_end_is_no_qemu() {
    let switch = Switch::start().unwrap();
    let bare = Bare::start(Qemu::Installed, "pc", &[]);
    done(bare.vdectl("attach", &[switch.path().to_str().unwrap()]));
    let (_, directory) = back_end(&bare.proxy.address).unwrap();
    refused(directory.join("control.sock").to_str().unwrap(), "is of no use: ");
}

/// QEMU's other NICs are QEMU's business.
#[test]
fn nics_of_others_are_left_alone() {
    let words = [
        "-netdev",
        "hubport,hubid=0,id=n0",
        "-device",
        "e1000,id=net0,netdev=n0,mac=52:54:00:00:00:01",
        "-device",
        "rtl8139,mac=52:54:00:00:00:02",
    ];
    let bare = Bare::start(Qemu::Installed, "pc", &words);
    let before = bare.state();
    for (nic, why) in [
        ("net0", "net0 is no NIC of a VDE back end (its netdev n0 is of type hubport)"),
        ("52:54:00:00:00:02", "52:54:00:00:00:02 is no NIC of a VDE back end (it has no netdev)"),
    ] {
        let said = bare.vdectl("detach", &[nic]);
        assert_eq!(said.status, 1, "{said:?}");
        assert!(said.complaint.contains(why), "{}", said.complaint);
    }
    let said = bare.vdectl("detach", &["net7"]);
    assert_eq!(said.status, 3, "{said:?}");
    assert!(said.complaint.contains("there is no NIC 'net7'; the VM has net0, 52:54:00:00:00:02"));
    assert_eq!(bare.state(), before);
}
