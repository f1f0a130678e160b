//! What must survive between `vdeq` and QEMU, on QEMU 10 and 7.2: users, roots, sandboxes, terminals, files and descriptors of
//! the caller, machines that wait, and machines in the background.

mod rig;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qmp::{Address, Client};
use rig::{
    Daemon, LIMIT, Rig, Running, finish_child, gone, kill_back_end, private_dir, processes_with, spawn,
    stderr, stdout, until,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A QEMU, and how it spells what was spelled otherwise later.
struct Qemu {
    program: PathBuf,
    becomes_nobody: &'static [&'static str],
    /// `ROOT` stands for the directory.
    changes_root: &'static [&'static str],
    /// Both.
    is_confined: &'static [&'static str],
}

fn qemus() -> [Qemu; 2] {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/qemu-7.2/qemu-system-x86_64");
    assert!(unpacked.exists(), "{} is missing: run cargo xtask deps", unpacked.display());
    [
        Qemu {
            program: "qemu-system-x86_64".into(),
            becomes_nobody: &["-run-with", "user=nobody"],
            changes_root: &["-run-with", "chroot=ROOT"],
            is_confined: &["-sandbox", "on", "-run-with", "chroot=ROOT,user=nobody"],
        },
        Qemu {
            program: unpacked.canonicalize().expect("a path"),
            becomes_nobody: &["-runas", "nobody"],
            changes_root: &["-chroot", "ROOT"],
            is_confined: &["-sandbox", "on", "-chroot", "ROOT", "-runas", "nobody"],
        },
    ]
}

/// vdeq and a small VM with a NIC on the rig's switch.
fn vdeq(rig: &Rig, qemu: &Qemu) -> Command {
    let mut command = rig.vdeq();
    command.env("PATH", std::env::var("PATH").unwrap_or_default());
    command.arg(&qemu.program).args(["-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64"]);
    command.args(["-net", "nic,model=virtio", "-net", &format!("vde,sock={}", rig.text("sw"))]);
    command
}

/// QEMU's monitor on a socket in the rig, and the words for it.
fn monitor_words(rig: &Rig) -> [String; 2] {
    ["-qmp".into(), format!("unix:{},server=on,wait=off", rig.text("qmp"))]
}

fn monitor(rig: &Rig) -> Client {
    let mut client = None;
    until("QEMU's monitor", || {
        client = Client::connect(&Address::Unix(rig.path("qmp")), LIMIT).ok();
        client.is_some()
    });
    std::fs::remove_file(rig.path("qmp")).ok();
    client.expect("a monitor")
}

/// Whether QEMU is connected to our back end.
fn is_connected(monitor: &mut Client) -> bool {
    let list = monitor.execute("query-chardev", json!({})).expect("chardevs");
    let ours = |chardev: &&Value| chardev["label"] == "vdeq0c";
    let ours = list.as_array().and_then(|list| list.iter().find(ours)).expect("our chardev");
    ours["filename"].as_str().expect("a name").starts_with("unix:")
}

fn quit(mut monitor: Client, child: Running) {
    let pid = child.id();
    monitor.execute("quit", json!({})).expect("quit");
    let output = finish_child(child);
    assert!(output.status.success(), "{}", stderr(&output));
    gone(pid);
}

fn with_root(words: &[&str], root: &Path) -> Vec<String> {
    words.iter().map(|word| word.replace("ROOT", root.to_str().expect("text"))).collect()
}

#[test]
fn users_roots_sandboxes_and_waiting_machines_have_their_nic() {
    const DENYING: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    let mut rig = Rig::new();
    rig.switch();
    std::fs::create_dir(rig.path("root")).expect("directory");
    for qemu in qemus() {
        for (words, status) in [
            (qemu.becomes_nobody, "running"),
            (qemu.changes_root, "running"),
            (&["-sandbox", DENYING], "running"),
            (&["-S"], "prelaunch"),
            (&["-incoming", "defer"], "inmigrate"),
        ] {
            let mut command = vdeq(&rig, &qemu);
            let child = spawn(command.args(monitor_words(&rig)).args(with_root(words, &rig.path("root"))));
            let mut monitor = monitor(&rig);
            assert!(is_connected(&mut monitor), "{words:?}");
            assert_eq!(monitor.execute("query-status", json!({})).expect("status")["status"], status);
            quit(monitor, child);
        }
    }
}

#[test]
fn confined_machines_send_and_leave_nothing() {
    let mut rig = Rig::new();
    rig.switch();
    std::fs::create_dir(rig.path("root")).expect("directory");
    for qemu in qemus() {
        let mut command = vdeq(&rig, &qemu);
        let child = spawn(command.args(["-boot", "n"]).args(with_root(qemu.is_confined, &rig.path("root"))));
        let pid = child.id();
        until("the machine is on the switch", || rig.ports("sw").contains("vdeqemu"));
        let before = frames(&rig.ports("sw"));
        // Its firmware asks for an address.
        until("a frame on the switch", || frames(&rig.ports("sw")) > before);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        assert!(status.contains("\nUid:\t65534\t") && status.contains("\nSeccomp:\t2"), "{status}");
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/root")).expect("root"), rig.path("root"));
        kill(pid, Signal::TERM);
        let output = finish_child(child);
        assert!(output.status.success(), "{}", stderr(&output));
        gone(pid);
        until("the port is free", || !rig.ports("sw").contains("vdeqemu"));
    }
}

/// How many frames came into the switch; a port keeps its counters from one user to the next.
fn frames(ports: &str) -> u64 {
    let counts = ports.lines().filter_map(|line| line.trim().strip_prefix("IN:"));
    counts.filter_map(|counts| counts.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

fn kill(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a PID");
    kill_process(pid, signal).expect("a process");
}

#[test]
fn q_19_another_user_connects_again() {
    let mut rig = Rig::new();
    rig.switch();
    for qemu in qemus() {
        let mut command = vdeq(&rig, &qemu);
        let child = spawn(command.arg("-S").args(monitor_words(&rig)).args(qemu.becomes_nobody));
        let pid = child.id();
        let mut monitor = monitor(&rig);
        let dir = private_dir(pid);
        let back_end = *processes_with(&dir).first().expect("a back end");
        let line = std::fs::read(format!("/proc/{back_end}/cmdline")).expect("command line");
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        kill_back_end(&dir);
        until("QEMU has lost it", || !is_connected(&mut monitor));

        // The same again, but for the descriptors, which are numbers two and four; the last word is empty.
        let [program, ready, _, lifeline, _, supervise, words @ .., end] = words.as_slice() else {
            panic!("{words:?}")
        };
        assert_eq!([ready, lifeline, supervise, end], ["--ready-fd", "--lifeline-fd", "--supervise", ""]);
        let mut again = spawn(Command::new(program).args(words).stdin(Stdio::null()));
        until("QEMU has found it", || is_connected(&mut monitor));
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        assert!(status.contains("\nUid:\t65534\t65534\t65534\t"), "{status}");
        monitor.execute("quit", json!({})).expect("quit");
        let output = finish_child(child);
        assert!(output.status.success(), "{}", stderr(&output));
        kill(again.id(), Signal::TERM);
        again.wait().expect("wait");
        gone(pid);
    }
}

#[test]
fn c_58_machines_in_the_background_keep_their_network() {
    let mut rig = Rig::new();
    rig.switch();
    for (number, qemu) in qemus().iter().enumerate() {
        let pidfile = rig.text(&format!("pid{number}"));
        let mut command = vdeq(&rig, qemu);
        command.args(["-daemonize", "-sandbox", "on", "-pidfile", &pidfile]).args(monitor_words(&rig));
        let child = spawn(&mut command);
        let started = child.id();
        // Reads both pipes to their ends: nobody in the background may hold them.
        let output = finish_child(child);
        assert!(output.status.success(), "{}", stderr(&output));
        let pid: i32 = std::fs::read_to_string(pidfile).expect("pidfile").trim().parse().expect("a PID");
        let daemon = Daemon::new(pid);
        assert_ne!(u32::try_from(pid).ok(), Some(started));
        let mut monitor = monitor(&rig);
        assert!(is_connected(&mut monitor));
        assert!(rig.ports("sw").contains("vdeqemu user="));
        daemon.kill().expect("kill");
        gone(started);
    }
}

#[test]
fn terminal_is_qemus() {
    let mut rig = Rig::new();
    rig.switch();
    for qemu in qemus() {
        let (mut ours, theirs) = terminal();
        let mut command = Command::new("setsid");
        // A session of its own with this terminal, as a login has it.
        command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_vdeq")]).arg(&qemu.program);
        command.args([
            "-nodefaults",
            "-nographic",
            "-serial",
            "mon:stdio",
            "-accel",
            "tcg",
            "-m",
            "64",
            "-S",
        ]);
        command.args(["-net", "nic,model=virtio", "-net", &format!("vde,sock={}", rig.text("sw"))]);
        for (key, value) in rig.vdeq().get_envs().filter(|(key, _)| *key != "PATH") {
            command.env(key, value.unwrap_or_default());
        }
        command
            .stdin(theirs.try_clone().expect("dup"))
            .stdout(theirs.try_clone().expect("dup"))
            .stderr(theirs);
        let mut child = command.spawn().expect("setsid");
        drop(command);
        // From the serial line to the monitor, by QEMU's own key.
        ours.write_all(b"\x01c").expect("write");
        read_past(&mut ours, "(qemu) ");
        ours.write_all(b"info status\r").expect("write");
        read_past(&mut ours, "VM status: paused");
        // Would end a program that has not made the terminal its own.
        ours.write_all(b"\x03").expect("write");
        ours.write_all(b"info chardev\r").expect("write");
        read_past(&mut ours, "vdeq0c: filename=unix:");
        ours.write_all(b"quit\r").expect("write");
        assert!(child.wait().expect("wait").success());
        until("the port is free", || !rig.ports("sw").contains("vdeqemu"));
    }
}

/// A terminal: our end and the one of the programs in it.
fn terminal() -> (File, OwnedFd) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let ours = openpt(flags).expect("a terminal");
    grantpt(&ours).expect("granted");
    unlockpt(&ours).expect("unlocked");
    let name = ptsname(&ours, Vec::new()).expect("its name");
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let theirs = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).expect("its other end");
    (ours.into(), theirs)
}

/// Reads until this text has come, or fails with what came.
fn read_past(terminal: &mut File, text: &str) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut said = Vec::new();
    while !String::from_utf8_lossy(&said).contains(text) {
        let limit = Timespec { tv_sec: 20, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(terminal, PollFlags::IN)], Some(&limit)).expect("poll");
        let so_far = String::from_utf8_lossy(&said).into_owned();
        assert_eq!(ready, 1, "no '{text}' in: {so_far}");
        let mut chunk = [0; 1024];
        let length = terminal.read(&mut chunk).expect(&so_far);
        said.extend(&chunk[..length]);
    }
}

#[test]
fn files_in_place_of_a_terminal_get_qemus_words_only() {
    let mut rig = Rig::new();
    rig.switch();
    std::fs::write(rig.path("orders"), "info status\nquit\n").expect("orders");
    for qemu in qemus() {
        let open = |name: &str| File::create(rig.path(name)).expect("file");
        let mut command = vdeq(&rig, &qemu);
        command.args(["-S", "-monitor", "stdio"]);
        command.stdin(File::open(rig.path("orders")).expect("orders"));
        let mut child = command.stdout(open("out")).stderr(open("err")).spawn().expect("vdeq");
        assert!(child.wait().expect("wait").success(), "{}", rig.read("err"));
        gone(child.id());
        let said = rig.read("out");
        assert!(said.starts_with("QEMU ") && said.contains("VM status: paused"), "{said}");
        assert_eq!(rig.read("err"), "");
    }
}

#[test]
fn descriptors_of_the_caller_are_qemus() {
    let mut rig = Rig::new();
    rig.switch();
    for qemu in qemus() {
        // Number 7 is a connected monitor, 8 a disk, and all standard ones are closed.
        let (ours, theirs) = UnixStream::pair().expect("sockets");
        std::fs::write(rig.path("disk"), [0; 4096]).expect("disk");
        let words = vdeq(&rig, &qemu);
        let mut command = Command::new("sh");
        command.args(["-c", "exec 7<&0 8<\"$0\" 0<&- 1>&- 2>&-; exec \"$@\""]).arg(rig.path("disk"));
        command.arg(words.get_program()).args(words.get_args());
        command.args(["-S", "-chardev", "socket,id=m,fd=7", "-mon", "chardev=m,mode=control"]);
        command.args([
            "-add-fd",
            "fd=8,set=1",
            "-drive",
            "file=/dev/fdset/1,format=raw,readonly=on,if=virtio",
        ]);
        for (key, value) in words.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        let child = spawn(command.stdin(OwnedFd::from(theirs)));
        drop(command);
        let mut monitor = Client::new(ours.into(), LIMIT).expect("the monitor on number 7");
        assert!(is_connected(&mut monitor));
        let disks = monitor.execute("query-block", json!({})).expect("disks").to_string();
        assert!(disks.contains("/dev/fdset/1"), "{disks}");
        let pid = child.id();
        monitor.execute("quit", json!({})).expect("quit");
        let output = finish_child(child);
        assert!(output.status.success() && stdout(&output).is_empty(), "{}", stderr(&output));
        gone(pid);
    }
}

#[test]
fn own_options_reach_the_back_end() {
    const MACS: [[u8; 6]; 2] = [[0x52, 0x54, 0, 0xaa, 0xbb, 1], [0x52, 0x54, 0, 0xaa, 0xbb, 2]];
    let mut rig = Rig::new();
    let switch = rig.switch();
    for (number, qemu) in qemus().iter().enumerate() {
        let capture = format!("frames{number}.pcapng");
        let mut command = rig.vdeq();
        command.env("PATH", std::env::var("PATH").unwrap_or_default());
        command.args(["--vde-capture", &rig.text(&capture), "--vde-log", "info"]).arg(&qemu.program);
        command.args(["--vde-offloads", "off", "--vde-poll-us", "10", "-nodefaults", "-display", "none"]);
        command.args(["-accel", "tcg", "-m", "64", "-boot", "n"]);
        for (vlan, mac) in MACS.iter().enumerate() {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            command.args(["-net", &format!("nic,vlan={vlan},model=virtio,macaddr={mac}"), "-net"]);
            command.arg(format!("vde,vlan={vlan},sock={switch}"));
        }
        let child = spawn(&mut command);
        let pid = child.id();
        let back_end = || processes_with(&private_dir(pid)).first().copied();
        until("a back end", || back_end().is_some());
        let line = std::fs::read(format!("/proc/{}/cmdline", back_end().expect("a back end")))
            .expect("command line");
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert!(line.contains(" --poll-us 10 ") && line.contains(" --no-offloads "), "{line}");
        // The firmware asks everybody through the first NIC, and leaves the second one alone until nobody has answered.
        let asks: Vec<u8> = [[0xff; 6], MACS[0]].concat();
        let bytes = |nic| std::fs::read(rig.path(&capture.replace(".pcapng", nic))).unwrap_or_default();
        let has_asked = |bytes: &[u8]| bytes.windows(asks.len()).any(|part| part == asks);
        until("the question", || has_asked(&bytes(".nic0.pcapng")));
        // What every file of this format begins with.
        assert!(bytes(".nic1.pcapng").starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]));
        kill(pid, Signal::TERM);
        let output = finish_child(child);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains("vhost-user-vde: "), "nothing was logged: {}", stderr(&output));
        gone(pid);
    }
}
