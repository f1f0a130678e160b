//! Whatever fails in `vdectl attach`: one sentence, and everything is as it was.

use qmp::{Address, Client};
use vde_tests::vdectl::{self, Said};
use vde_tests::{BackEnd, Qemu, Switch};

use crate::bare::{Bare, SHARED};
use crate::proxy::{How, When, kill_worker};
use crate::rig::{LIMIT, back_end, done};

const PORT: [&str; 2] = ["-device", "pcie-root-port,id=vdeport0,chassis=1,slot=1"];
const STEPS: [&str; 3] = ["chardev-add", "netdev_add", "device_add"];

/// It has failed with one sentence, in which these words are.
fn refused(said: &Said, words: &str) {
    assert_eq!((said.status, said.text.as_str()), (1, ""), "{said:?}");
    assert_eq!(said.complaint.lines().count(), 1, "{}", said.complaint);
    assert!(said.complaint.contains(words), "'{words}' is not in: {}", said.complaint);
}

/// An attach that has to fail at a step, and leave nothing.
fn fails(bare: &Bare, switch: &Switch, (when, how): (When, How), words: &[&str], why: &str) {
    let before = bare.state();
    bare.proxy.fail(when.clone(), how);
    let locator = switch.path();
    let said = bare.vdectl("attach", &[&[locator.to_str().unwrap()][..], words].concat());
    assert!(bare.proxy.seen().1, "{when:?} did not come: {said:?}");
    refused(&said, why);
    assert_eq!(bare.state(), before, "{when:?} {how:?}");
    bare.no_back_end();
    switch.wait_ports("no NIC on the switch", LIMIT, <[_]>::is_empty).unwrap();
}

/// Each step that changes QEMU is refused, lost on the way, or not answered.
fn each_step_fails(qemu: Qemu, board: &str, words: &[&str], model: &str) {
    let switch = Switch::start().unwrap();
    let bare = Bare::start(qemu, board, words);
    let steps = STEPS.into_iter().filter(|step| model == "virtio" || *step != "chardev-add");
    for step in steps {
        for how in [How::Refused, How::Vanished, How::Lost, How::Interrupted] {
            // Not even a device that nobody wants leaves without a guest's consent, and after this step all is done.
            if step == "device_add" && matches!(how, How::Lost | How::Interrupted) {
                continue;
            }
            let why = match how {
                How::Refused => format!("vdectl: {step} is refused\n"),
                How::Interrupted => "vdectl: interrupted\n".into(),
                _ => "vdectl: QEMU closed its monitor before the NIC was plugged in\n".into(),
            };
            fails(&bare, &switch, (When::Named(step), how), &["--model", model], &why);
        }
    }
}

#[test]
fn q_23_each_step_that_fails_is_undone_on_pc() {
    each_step_fails(Qemu::Installed, "pc", &[], "virtio");
    each_step_fails(Qemu::Installed, "pc", &[], "e1000");
}

#[test]
fn q_23_each_step_that_fails_is_undone_on_q35() {
    each_step_fails(Qemu::Installed, "q35", &PORT, "virtio");
}

#[test]
fn q_23_each_step_that_fails_is_undone_on_qemu_7_2() {
    each_step_fails(Qemu::V7_2, "pc", &[], "virtio");
    each_step_fails(Qemu::V7_2, "q35", &PORT, "e1000");
}

/// The connection ends at any command, questions included.
#[test]
fn q_23_the_monitor_may_go_at_any_moment() {
    let switch = Switch::start().unwrap();
    let bare = Bare::start(Qemu::Installed, "pc", &[]);
    bare.proxy.fail(When::Named("device_add"), How::Refused);
    bare.vdectl("attach", &[switch.path().to_str().unwrap()]);
    let (commands, _) = bare.proxy.seen();
    let last = commands.iter().position(|command| command == "device_add").unwrap();
    for number in 0..=last {
        fails(&bare, &switch, (When::Numbered(number), How::Vanished), &[], "vdectl: ");
    }
}

#[test]
fn q_23_a_qemu_that_dies_takes_its_back_end_along() {
    for step in STEPS {
        let switch = Switch::start().unwrap();
        let mut bare = Bare::start(Qemu::Installed, "pc", &[]);
        bare.proxy.fail(When::Named(step), How::Killed(bare.machine.pid()));
        let said = bare.vdectl("attach", &[switch.path().to_str().unwrap()]);
        refused(&said, "QEMU closed its monitor");
        bare.machine.wait(LIMIT).unwrap();
        bare.no_back_end();
        switch.wait_ports("no NIC on the switch", LIMIT, <[_]>::is_empty).unwrap();
    }
}

/// What is wrong with the machine, or with what is asked of it, with its remedy.
#[test]
fn q_22_what_cannot_work_is_refused_with_a_remedy() {
    let switch = Switch::start().unwrap();
    let path = switch.path();
    let path = path.to_str().unwrap();
    let nic = ["-device", "e1000,id=net1,mac=52:54:00:00:00:01,bus=vdeport0"];
    let bare = Bare::start(Qemu::Installed, "q35", &[&PORT[..], &nic].concat());
    let before = bare.state();
    let occupied = "PCI: slot 0 function 0 already occupied by e1000";
    let cases: [(&[&str], &str); 8] = [
        (&[path], "the only pcie-root-port of the VM is in use; start QEMU with -device pcie-root-port,id="),
        (&[path, "--bus", "vdeport0"], occupied),
        (&[path, "--bus", "pcie.9"], "Bus 'pcie.9' not found"),
        (&[path, "--bus", "pcie.0"], "Bus 'pcie.0' does not support hotplugging"),
        (&[path, "--id", "net1"], "the VM has a device 'net1' already; take another --id"),
        (
            &[path, "--mac", "52:54:00:00:00:01"],
            "net1 of the VM has the MAC address 52:54:00:00:00:01 already",
        ),
        (&[path, "--model", "e1001"], "this QEMU has no NIC model 'e1001'"),
        (&["/nowhere/at/all", "--bus", "vdeport0"], "/nowhere/at/all"),
    ];
    for (words, why) in cases {
        refused(&bare.vdectl("attach", words), why);
        assert_eq!(bare.state(), before, "{words:?}");
        bare.no_back_end();
    }
    let misused: [(&[&str], &str); 4] = [
        (&["--model", "e1000", "--mtu", "1400"], "--mtu is for virtio"),
        (&["--model", "e1000", "--queues", "2"], "--queues is for virtio"),
        (&["--mac", "53:54:00:00:00:01"], "'53:54:00:00:00:01' for '--mac <MAC>': its first octet is odd"),
        (&["--queues", "17"], "'17' for '--queues <N>': a NIC has 1 to 16 queue pairs"),
    ];
    for (words, why) in misused {
        let said = bare.vdectl("attach", &[&[path][..], words].concat());
        assert!(said.status == 2 && said.complaint.contains(why), "{said:?}");
        assert_eq!(bare.state(), before, "{words:?}");
    }
    switch.wait_ports("no NIC on the switch", LIMIT, <[_]>::is_empty).unwrap();
}

#[test]
fn q_22_memory_that_others_cannot_map_is_named() {
    let switch = Switch::start().unwrap();
    let path = switch.path();
    let path = path.to_str().unwrap();
    let anonymous =
        ["-object", "memory-backend-ram,id=mem7,size=32M,share=on", "-machine", "memory-backend=mem7"];
    let second = ["-object", "memory-backend-memfd,id=dimm,size=32M,share=off"];
    let remedy = "-object memory-backend-memfd,id=pc.ram,size=32M,share=on -machine memory-backend=pc.ram, or take \
        --model e1000";
    let cases: [(Qemu, &str, &[&str], &str); 5] = [
        (Qemu::Installed, "pc", &[], remedy),
        (Qemu::V7_2, "pc", &[], remedy),
        (Qemu::Installed, "pc", &[&SHARED[..], &second].concat(), "the guest's memory dimm is not shared"),
        (Qemu::V7_2, "pc", &anonymous, "mem7 is a memory-backend-ram, which this QEMU cannot share"),
        (Qemu::Installed, "microvm", &[], "a microvm has no PCI bus"),
    ];
    for (qemu, board, words, why) in cases {
        let bare = Bare::start_in(qemu, board, words, &[]);
        let before = bare.state();
        refused(&bare.vdectl("attach", &[path]), why);
        assert_eq!(bare.state(), before);
        bare.no_back_end();
    }
    // From 10.0 on it has a descriptor.
    let bare = Bare::start_in(Qemu::Installed, "pc", &anonymous, &[]);
    done(bare.vdectl("attach", &[path]));
}

/// A QEMU that cannot see the socket would freeze in the step after.
#[test]
fn q_22_a_qemu_that_does_not_reach_the_back_end_is_not_frozen() {
    let switch = Switch::start().unwrap();
    let jail = tempfile::tempdir().unwrap();
    let chroot = format!("chroot={}", jail.path().display());
    let bare = Bare::start(Qemu::Installed, "pc", &["-run-with", &chroot]);
    let before = bare.state();
    for model in ["virtio", "e1000"] {
        let said = bare.vdectl("attach", &[switch.path().to_str().unwrap(), "--model", model]);
        refused(&said, "where the back end listens: it may run as another user, or in another place");
        assert_eq!(bare.state(), before);
        bare.no_back_end();
    }
}

/// The sockets are made for it.
#[test]
fn a_qemu_of_another_user_reaches_its_back_end() {
    let switch = Switch::start().unwrap();
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
    let bare = Bare::start_in(Qemu::Installed, "pc", &SHARED, &nobody);
    let socket = bare.socket.to_str().unwrap();
    let line = done(vdectl::run(&["attach", socket, switch.path().to_str().unwrap()]).unwrap());
    assert!(line.starts_with("vde0 52:54:00:"), "{line}");
}

/// Each waits for the other, and neither takes the other's names.
#[test]
fn two_at_once_take_turns() {
    let switch = Switch::start().unwrap();
    let bare = Bare::start(Qemu::Installed, "pc", &[]);
    let path = switch.path();
    let attach = |words: &[&str]| bare.vdectl("attach", &[&[path.to_str().unwrap()][..], words].concat());
    let mut names = std::thread::scope(|scope| {
        let both = [scope.spawn(|| done(attach(&[]))), scope.spawn(|| done(attach(&[])))];
        both.map(|one| one.join().unwrap().split(' ').next().unwrap().to_owned())
    });
    names.sort();
    assert_eq!(names, ["vde0", "vde1"]);
    switch.wait_ports("two NICs on the switch", LIMIT, |ports| ports.len() == 2).unwrap();
    let same = std::thread::scope(|scope| {
        let both = [scope.spawn(|| attach(&["--id", "net0"])), scope.spawn(|| attach(&["--id", "net0"]))];
        both.map(|one| one.join().unwrap())
    });
    assert_eq!(same.iter().filter(|said| said.status == 0).count(), 1, "{same:?}");
    refused(same.iter().find(|said| said.status != 0).unwrap(), "the VM has a device 'net0' already");
    // A paused machine lets go of its NICs when it is reset.
    for nic in ["vde0", "vde1", "net0"] {
        assert_eq!(bare.vdectl("detach", &[nic, "--wait", "0"]).status, 4);
    }
    bare.reset();
    for nic in ["vde0", "vde1", "net0"] {
        done(bare.vdectl("detach", &[nic]));
    }
    bare.no_back_end();
    switch.wait_ports("no NIC on the switch", LIMIT, <[_]>::is_empty).unwrap();
}

/// Nor does one that goes without having read all that it was told keep the next one from the monitor.
#[test]
fn who_hangs_up_in_the_middle_of_a_word_frees_the_monitor() {
    let bare = Bare::start(Qemu::Installed, "pc", &[]);
    let place = bare.proxy.address.strip_prefix("tcp:").unwrap();
    let hasty = std::net::TcpStream::connect(place).unwrap();
    assert_eq!(hasty.peek(&mut [0]).unwrap(), 1);
    drop(hasty);
    done(bare.vdectl("list", &[]));
}

/// Another monitor of it leads to the same VM, and to the back end that it has.
#[test]
fn a_vm_is_the_same_by_another_monitor() {
    let switch = Switch::start().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let other = format!("tcp:127.0.0.1:{port}");
    let bare = Bare::start(Qemu::Installed, "pc", &["-qmp", &format!("{other},server=on,wait=off")]);
    let path = switch.path();
    let path = path.to_str().unwrap();
    done(bare.vdectl("attach", &[path, "--id", "one"]));
    done(vdectl::run(&["attach", &other, path, "--id", "two"]).unwrap());
    let (_, directory) = back_end(&bare.proxy.address).unwrap();
    let control = Address::Unix(directory.join("control.sock"));
    let served =
        Client::connect(&control, LIMIT).unwrap().execute("query-nics", serde_json::json!({})).unwrap();
    let ids: Vec<_> = served.as_array().unwrap().iter().map(|nic| nic["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["onen", "twon"]);
}

/// Killed with its supervisor, or it would be there again. A new one serves what is plugged in after that, and what it served
/// can be taken out.
#[test]
fn a_back_end_that_died_is_replaced() {
    let switch = Switch::start().unwrap();
    let bare = Bare::start(Qemu::Installed, "pc", &[]);
    let vm = format!("unix:{}", bare.socket.display());
    let path = switch.path();
    let attach = || done(vdectl::run(&["attach", &vm, path.to_str().unwrap()]).unwrap());
    let before = bare.state();
    attach();
    let (_, directory) = back_end(&vm).unwrap();
    BackEnd::in_directory(&directory).unwrap().kill().unwrap();
    switch.wait_ports("no NIC on the switch", LIMIT, <[_]>::is_empty).unwrap();
    attach();
    let (_, new) = back_end(&vm).unwrap();
    assert!(new != directory && !directory.exists());
    bare.reset();
    for nic in ["vde0", "vde1"] {
        assert_eq!(vdectl::run(&["detach", &vm, nic, "--wait", "0"]).unwrap().status, 4);
    }
    bare.reset();
    for nic in ["vde0", "vde1"] {
        let line = done(vdectl::run(&["detach", &vm, nic]).unwrap());
        assert_eq!(line, format!("{nic} had left the VM already; the rest of it is removed\n"));
    }
    assert_eq!(bare.state(), before);
    assert!(!new.exists());
}

/// Its successor serves what it did, and is told what is to go.
fn workers_are_killed(qemu: Qemu) {
    let switch = Switch::start().unwrap();
    let path = switch.path();
    let path = path.to_str().unwrap();
    let bare = Bare::start(qemu, "pc", &[]);
    let before = bare.state();
    for step in STEPS {
        bare.proxy.fail(When::Named(step), How::Unserved);
        done(bare.vdectl("attach", &[path]));
        assert!(bare.proxy.seen().1, "{step}");
    }
    for nic in ["vde0", "vde1", "vde2"] {
        assert_eq!(bare.vdectl("detach", &[nic, "--wait", "0"]).status, 4);
    }
    bare.reset();
    for nic in ["vde0", "vde1", "vde2"] {
        bare.proxy.fail(When::Named("netdev_del"), How::Unserved);
        done(bare.vdectl("detach", &[nic]));
        assert!(bare.proxy.seen().1, "{nic}");
    }
    assert_eq!(bare.state(), before);
    bare.no_back_end();
    switch.wait_ports("no NIC on the switch", LIMIT, <[_]>::is_empty).unwrap();
}

#[test]
fn a_worker_may_be_killed_at_any_step() {
    workers_are_killed(Qemu::Installed);
}

#[test]
fn a_worker_may_be_killed_at_any_step_of_qemu_7_2() {
    workers_are_killed(Qemu::V7_2);
}

#[test]
fn a_worker_may_be_killed_while_a_network_thinks() {
    let bare = Bare::start(Qemu::Installed, "pc", &[]);
    let folder = tempfile::tempdir().unwrap();
    let mute = std::os::unix::net::UnixListener::bind(folder.path().join("ctl")).unwrap();
    let said = std::thread::scope(|scope| {
        let attach = scope.spawn(|| bare.vdectl("attach", &[folder.path().to_str().unwrap()]));
        let _asked = mute.accept().unwrap();
        kill_worker(&bare.proxy.address);
        attach.join().unwrap()
    });
    refused(&said, "vdectl: the back end has ended before it answered nic-add\n");
    bare.no_back_end();
}

/// Nobody has plugged anything in before, and they come by two monitors: what one does, the other finds.
#[test]
fn two_at_once_by_two_monitors_share_a_back_end() {
    let switch = Switch::start().unwrap();
    let locator = switch.path();
    let locator = locator.to_str().unwrap();
    for round in 0..3 {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let second = format!("unix:{}", folder.path().join("second").display());
        let mut words = ["-qmp", "", "-qmp", ""].map(str::to_owned);
        (words[1], words[3]) =
            (format!("tcp:127.0.0.1:{port},server=on,wait=off"), format!("{second},server=on,wait=off"));
        let bare = Bare::start(Qemu::Installed, "pc", &words.each_ref().map(String::as_str));
        let first = format!("unix:{}", bare.socket.display());
        let third = format!("tcp:127.0.0.1:{port}");
        let monitors = [&first, if round == 0 { &second } else { &third }];
        let attach = |monitor: &str| done(vdectl::run(&["attach", monitor, locator]).unwrap());
        let mut names = std::thread::scope(|scope| {
            let both = monitors.map(|monitor| scope.spawn(|| attach(monitor)));
            both.map(|one| one.join().unwrap().split(' ').next().unwrap().to_owned())
        });
        names.sort();
        assert_eq!(names, ["vde0", "vde1"]);
        let there = monitors.map(|monitor| back_end(monitor));
        let count = there.iter().flatten().count();
        assert_eq!(count, 1, "round {round}: each has made an entry: {there:?}");
    }
}
