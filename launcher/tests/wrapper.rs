//! What users of the old wrapper rely on, with the real back end, real switches and a QEMU that tells what it was given.

mod rig;

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use rig::{Rig, finish, finish_child, gone, private_dir, processes_with, spawn, stderr, stdout, until};
use rustix::process::{Pid, Signal, kill_process};

/// For the fake QEMU: tell the words.
const TELL: &str = "printf '%s\\n' \"$@\"";

/// vdeq by another name.
fn link(rig: &Rig, name: &str) -> Command {
    let path = rig.path(name);
    symlink(env!("CARGO_BIN_EXE_vdeq"), &path).expect("link");
    let mut command = Command::new(path);
    for (key, value) in rig.vdeq().get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    command
}

#[test]
fn c_45_links_run_what_they_name() {
    let rig = Rig::new();
    for (name, first) in [
        ("vdeqemu-system-x86_64", None),
        ("vdeoqemu-system-x86_64", None),
        ("vdeq", Some("qemu-system-x86_64")),
        ("vdeoq", Some("qemu-system-x86_64")),
        ("foo", Some("qemu-system-x86_64")),
    ] {
        let output = finish(link(&rig, name).args(first).args(["-m", "64"]).env("FQ_DO", TELL));
        assert_eq!(stdout(&output), "-m\n64\n", "{name}: {}", stderr(&output));
    }
    let output = finish(link(&rig, "vde-no-such-program").arg("-m"));
    assert_eq!(output.status.code(), Some(127));
    assert!(stderr(&output).contains("'-no-such-program'"), "{}", stderr(&output));
}

#[test]
fn c_47_one_interface_is_rewritten_and_all_else_stays_in_order() {
    let mut rig = Rig::new();
    let switch = rig.switch();
    let vde = format!("vde,vlan=3,sock={switch},port=7");
    let mut command = rig.vdeq();
    command.args(["qemu-system-x86_64", "-snapshot", "-net", "nic,vlan=3,model=virtio", "-net", &vde]);
    command.args(["-net", "tap,ifname=x", "-name", "a,,b"]).env("FQ_DO", TELL);
    let child = spawn(&mut command);
    let pid = child.id();
    let output = finish_child(child);
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    let socket = format!("socket,id=vdeq0c,path={}/0.sock,reconnect-ms=1000", private_dir(pid));
    let expected = [
        "-snapshot",
        "-chardev",
        &socket,
        "-netdev",
        "vhost-user,id=vdeq0n,chardev=vdeq0c",
        "-net",
        "nic,netdev=vdeq0n,model=virtio-net-pci",
        "-net",
        "tap,ifname=x",
        "-name",
        "a,,b",
    ];
    assert_eq!(lines[..expected.len()], expected, "{}", stderr(&output));
    assert!(!text.contains("vlan="), "{text}");
    gone(pid);
}

#[test]
fn c_49_commas_in_quotes_are_of_the_name() {
    let mut rig = Rig::new();
    let switch = rig.switch_at("a,b");
    for sock in [format!("\"{switch}\""), switch.replace(',', ",,")] {
        let mut command = rig.vdeq();
        command.args(["qemu-system-x86_64", "-net", "nic,model=virtio", "-net", &format!("vde,sock={sock}")]);
        let child = spawn(&mut command);
        let pid = child.id();
        let output = finish_child(child);
        assert!(output.status.success(), "{sock}: {}", stderr(&output));
        gone(pid);
    }
}

#[test]
fn c_50_lists_and_modes_reach_the_networks_in_either_order() {
    let mut rig = Rig::new();
    let list = [rig.switch_at("a"), rig.switch_at("b")].join(",");
    for (number, words) in
        [["-sock", &list, "--mod", "0770"], ["-mod", "0770", "-unix", &list]].iter().enumerate()
    {
        let trace = rig.text(&format!("trace{number}"));
        let go = rig.text(&format!("go{number}"));
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-e", "trace=chmod,fchmod,fchmodat", "-o", &trace]);
        command.arg(env!("CARGO_BIN_EXE_vdeq")).arg("qemu-system-x86_64").args(words);
        for (key, value) in rig.vdeq().get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        command.env("FQ_DO", rig::wait_for(&go));
        let child = spawn(&mut command);
        for name in ["a", "b"] {
            until("the switch has us", || rig.ports(name).contains("vdeqemu user="));
        }
        std::fs::write(&go, "").expect("go");
        let output = finish_child(child);
        assert!(output.status.success(), "{}", stderr(&output));
        for name in ["a", "b"] {
            until("the switch has us no more", || !rig.ports(name).contains("vdeqemu"));
        }
        let calls = rig.read(&format!("trace{number}"));
        let changed = calls.lines().filter_map(|line| line.split_once(", 0770) = 0")?.0.rsplit_once(' '));
        let sockets: BTreeSet<&str> = changed.map(|(_, socket)| socket).collect();
        assert_eq!(sockets.len(), 2, "{calls}");
    }
}

#[test]
fn c_53_missing_network_is_told_before_anything_starts() {
    let mut rig = Rig::new();
    let switch = rig.switch();
    for (words, named) in [
        (["-sock".to_owned(), rig.text("gone")], rig.text("gone")),
        (["-sock".to_owned(), format!("{switch},{}", rig.text("none"))], rig.text("none")),
    ] {
        let mut command = rig.vdeq();
        command.arg("qemu-system-x86_64").args(&words);
        let child = spawn(&mut command);
        let pid = child.id();
        let output = finish_child(child);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{text}");
        assert!(text.starts_with("vdeq: ") && text.lines().count() == 1 && text.contains(&named), "{text}");
        assert!(!rig.qemu_ran());
        gone(pid);
        // Nor is anything left on the switch that was there.
        until("the switch has us no more", || !rig.ports("sw").contains("vdeqemu"));
    }
    // Asked for, it is waited for instead.
    let mut command = rig.vdeq();
    command.args(["--vde-keep-going", "--vde-log", "off", "qemu-system-x86_64", "-sock", &rig.text("gone")]);
    let child = spawn(&mut command);
    let pid = child.id();
    let output = finish_child(child);
    assert!(output.status.success() && rig.qemu_ran(), "{}", stderr(&output));
    gone(pid);
}

fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a PID");
    kill_process(pid, signal).expect("a process");
}

#[test]
fn c_54_signals_end_the_machine_and_its_network() {
    let mut rig = Rig::new();
    let switch = rig.switch();
    for name in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mark = rig.path("mark");
        std::fs::remove_file(&mark).ok();
        let mut command = rig.vdeq();
        command.args(["qemu-system-x86_64", "-sock", &switch]).env("FQ_DO", "exec sleep 60");
        let child = spawn(&mut command);
        let pid = child.id();
        until("QEMU runs", || rig.qemu_ran());
        signal(pid, name);
        assert_eq!(finish_child(child).status.signal(), Some(name.as_raw()));
        gone(pid);
    }
}

#[test]
fn c_54_signals_end_an_emulator_that_is_asked() {
    let rig = Rig::new();
    // Never answers; what waits for the next question would stay as long.
    let slow = rig.script("slow", "#!/bin/sh\necho $$ >\"$FQ_MARK\"\nexec sleep 60\n");
    // The first is asked for its version, the second about its board.
    let machines = ["pc", "no-such-board"];
    for (machine, name) in machines.into_iter().flat_map(|m| [(m, Signal::TERM), (m, Signal::KILL)]) {
        std::fs::remove_file(rig.path("mark")).ok();
        let mut command = rig.vdeq();
        let child = spawn(command.arg(&slow).args(["-sock", "/no/such/switch", "-M", machine]));
        until("the emulator is asked", || rig.read("mark").ends_with('\n'));
        signal(child.id(), name);
        assert_eq!(finish_child(child).status.signal(), Some(name.as_raw()));
        let asked = format!("/proc/{}", rig.read("mark").trim());
        until("nobody is asked any more", || !std::path::Path::new(&asked).exists());
    }
}

#[test]
fn c_54_signals_end_a_start_that_waits_for_a_switch() {
    let rig = Rig::new();
    // Listens, and never answers.
    std::fs::create_dir(rig.path("mute")).expect("directory");
    let _mute = std::os::unix::net::UnixListener::bind(rig.path("mute/ctl")).expect("socket");
    for name in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut command = rig.vdeq();
        let child = spawn(command.args(["qemu-system-x86_64", "-sock", &rig.text("mute")]));
        let pid = child.id();
        until("the back end asks the switch", || !processes_with(&private_dir(pid)).is_empty());
        signal(pid, name);
        let output = finish_child(child);
        assert_eq!(output.status.signal(), Some(name.as_raw()), "{}", stderr(&output));
        // A back end that had gone on until the switch did not answer would have said so.
        assert_eq!(stderr(&output), "");
        gone(pid);
    }
    // Who has made us ignore a signal wants the start to go on: to its end, which this switch brings.
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_vdeq")]);
    command.args(["qemu-system-x86_64", "-sock", &rig.text("mute")]);
    for (key, value) in rig.vdeq().get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    let child = spawn(&mut command);
    let pid = child.id();
    until("the back end asks the switch", || !processes_with(&private_dir(pid)).is_empty());
    signal(pid, Signal::HUP);
    let output = finish_child(child);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    gone(pid);
    assert!(!rig.qemu_ran());
}
