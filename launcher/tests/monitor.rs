//! The monitor that vdeq gives a VM for `vdectl`, on QEMU 10 and 7.2: it is there whatever the VM is started with, QEMU's own
//! is still there, and whose VM it is can be told.

mod rig;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use qmp::{Address, Client};
use rig::{
    Daemon, LIMIT, Rig, Running, emulator, finish_child, gone, kill_back_end, private_dir, processes_with,
    spawn, stderr, stdout, until,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// vdeq and a small VM with a NIC on the rig's switch.
fn vdeq(rig: &Rig, qemu: &Path) -> Command {
    let mut command = rig.vdeq();
    command.env("PATH", std::env::var("PATH").unwrap_or_default());
    command.arg(qemu).args(["-display", "none", "-accel", "tcg", "-m", "64"]).args(nic(rig));
    command
}

fn nic(rig: &Rig) -> [String; 4] {
    ["-net".into(), "nic,model=virtio".into(), "-net".into(), format!("vde,sock={}", rig.text("sw"))]
}

/// The monitor in a VM's directory.
fn monitor(dir: &str) -> Client {
    let address = Address::Unix(Path::new(dir).join(registry::MONITOR));
    let mut client = None;
    until("the private monitor", || {
        client = Client::connect(&address, LIMIT).ok();
        client.is_some()
    });
    client.expect("a monitor")
}

fn status(monitor: &mut Client) -> String {
    let status = monitor.execute("query-status", json!({})).expect("status");
    status["status"].as_str().expect("text").to_owned()
}

fn quit(mut monitor: Client, child: Running) {
    let pid = child.id();
    monitor.execute("quit", json!({})).expect("quit");
    let output = finish_child(child);
    assert!(output.status.success(), "{}", stderr(&output));
    gone(pid);
}

fn kill(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a PID");
    kill_process(pid, Signal::KILL).expect("a process");
}

/// The VM that lives in a directory, as everybody finds it.
fn entry(dir: &str) -> Option<registry::Entry> {
    registry::entries().into_iter().find(|entry| entry.directory == Path::new(dir))
}

#[test]
fn is_there_however_the_vm_starts() {
    let mut rig = Rig::new();
    rig.switch();
    std::fs::create_dir(rig.path("root")).expect("directory");
    let root = rig.text("root");
    let config = rig.text("user.conf");
    let users = rig.text("user.qmp");
    // A monitor of the user's, with ids that look like ours, and another such file.
    let text = format!(
        "[chardev \"vdeq-monitors\"]\nbackend = \"socket\"\npath = \"{users}\"\nserver = \"on\"\nwait = \"off\"\n\
         [mon \"m\"]\nchardev = \"vdeq-monitors\"\nmode = \"control\"\n"
    );
    std::fs::write(&config, text).expect("config");
    std::fs::write(rig.path("empty.conf"), "").expect("config");
    let (chroot, confined) = (format!("chroot={root}"), format!("chroot={root},user=nobody"));
    let of_10: &[&[&str]] = &[&["-run-with", &chroot], &["-sandbox", "on", "-run-with", &confined]];
    let of_7: &[&[&str]] = &[&["-chroot", &root], &["-sandbox", "on", "-chroot", &root, "-runas", "nobody"]];
    let of_all: &[(&[&str], &str)] = &[
        (&["-S"], "prelaunch"),
        (&["-incoming", "defer"], "inmigrate"),
        (&["-preconfig", "-nodefaults"], "prelaunch"),
        (&["-no-user-config", "-nodefaults", "-msg", "timestamp=on"], "running"),
        (&["-readconfig", &config, "-readconfig", &rig.text("empty.conf")], "running"),
        (&["-chardev", "null,id=vdeq-monitor", "-name", "vdeq-qmp"], "running"),
        (&["-monitor", "none", "-M", "q35"], "running"),
    ];
    for (qemu, confined) in emulator::both().iter().zip([of_10, of_7]) {
        let confined = confined.iter().map(|words| (*words, "running"));
        for (words, expected) in of_all.iter().copied().chain(confined) {
            let child = spawn(vdeq(&rig, qemu).args(words));
            let dir = private_dir(child.id());
            let mut monitor = monitor(&dir);
            assert_eq!(status(&mut monitor), expected, "{words:?}");
            let entry = entry(&dir).expect("an entry");
            assert_eq!(entry.pid, Some(child.id()), "{words:?}");
            assert_eq!(entry.record.name.as_deref(), words.contains(&"-name").then_some("vdeq-qmp"));
            quit(monitor, child);
        }
    }
}

#[test]
fn default_monitor_is_still_behind_the_serial_line() {
    let mut rig = Rig::new();
    rig.switch();
    for qemu in emulator::both() {
        let mut command = rig.vdeq();
        command.env("PATH", std::env::var("PATH").unwrap_or_default()).arg(qemu);
        command.args(["-nographic", "-accel", "tcg", "-m", "64", "-S"]).args(nic(&rig));
        let mut child = spawn(command.stdin(Stdio::piped()));
        let dir = private_dir(child.id());
        let mut ours = monitor(&dir);
        assert_eq!(status(&mut ours), "prelaunch");
        drop(ours);
        let mut keys = child.stdin.take().expect("a pipe");
        keys.write_all(b"\x01cinfo status\ninfo chardev\nquit\n").expect("write");
        let pid = child.id();
        let output = finish_child(child);
        let said = stdout(&output);
        assert!(output.status.success() && said.contains("VM status: paused"), "{said}");
        assert!(said.contains("vdeq-monitor: filename="), "{said}");
        gone(pid);
    }
}

#[test]
fn monitors_of_the_user_are_the_users() {
    let mut rig = Rig::new();
    rig.switch();
    for qemu in emulator::both() {
        let mut paused = emulator::Paused::start(&mut vdeq(&rig, &qemu), []);
        let dir = private_dir(paused.pid());
        let mut ours = monitor(&dir);
        assert_eq!(status(&mut ours), "prelaunch");
        let chardevs = paused.ask("query-chardev", json!({}));
        let labels: Vec<&Value> = chardevs.as_array().expect("a list").iter().map(|c| &c["label"]).collect();
        assert!(labels.contains(&&json!("vdeq-monitor")) && labels.contains(&&json!("compat_monitor0")));
        paused.quit();
    }
}

#[test]
fn a_vm_in_the_background_is_found_by_its_new_process() {
    let mut rig = Rig::new();
    rig.switch();
    for (number, qemu) in emulator::both().iter().enumerate() {
        let pidfile = rig.text(&format!("pid{number}"));
        let child = spawn(vdeq(&rig, qemu).args(["-daemonize", "-name", "bg", "-pidfile", &pidfile]));
        let dir = private_dir(child.id());
        let started = child.id();
        let output = finish_child(child);
        assert!(output.status.success(), "{}", stderr(&output));
        let pid: u32 = std::fs::read_to_string(pidfile).expect("pidfile").trim().parse().expect("a PID");
        let daemon = Daemon::new(i32::try_from(pid).expect("a PID"));
        // Other tests look at all VMs, and one of them may have its monitor at the moment.
        until("its monitor to answer", || entry(&dir).is_some_and(|found| found.pid == Some(pid)));
        let found = entry(&dir).expect("an entry");
        assert_eq!((found.pid, found.record.name.as_deref()), (Some(pid), Some("bg")));
        assert_eq!(found.record.process.map(|process| process.pid), Some(started));
        // The same while somebody else uses the monitor, unless its queue is full by then: other tests look at all VMs.
        until("it is found by a monitor in use", || {
            let mut used = monitor(&dir);
            let found = entry(&dir).and_then(|entry| entry.pid);
            assert_eq!(status(&mut used), "running");
            found == Some(pid)
        });
        daemon.kill().expect("kill");
        gone(started);
        assert_eq!(entry(&dir), None);
    }
}

#[test]
fn the_monitor_is_nobody_elses() {
    let mut rig = Rig::new();
    rig.switch();
    let qemu = emulator::installed();
    for (mask, there) in [("022", true), ("002", false)] {
        // As what it becomes QEMU could be reached by everybody who passes through the directory.
        let words = vdeq(&rig, &qemu);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {mask}; exec \"$@\""), "sh"]).arg(words.get_program());
        command.args(words.get_args()).args(["-run-with", "user=nobody"]);
        for (key, value) in words.get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        let child = spawn(&mut command);
        let pid = child.id();
        let dir = private_dir(pid);
        until("the VM is on the switch", || rig.ports("sw").contains("vdeqemu"));
        assert_eq!(entry(&dir).expect("an entry").record.qmp.is_some(), there);
        assert_eq!(Path::new(&dir).join(registry::MONITOR_CONFIG).exists(), there);
        if there {
            drop(monitor(&dir));
            let socket = std::fs::metadata(Path::new(&dir).join(registry::MONITOR)).expect("a socket");
            assert_eq!(socket.permissions().mode() & 0o022, 0);
        }
        kill(pid);
        finish_child(child);
        gone(pid);
        until("the port is free", || !rig.ports("sw").contains("vdeqemu"));
    }
}

/// How VMs are killed: QEMU, its back end, or both.
#[test]
fn what_was_killed_is_cleaned_up() {
    let mut rig = Rig::new();
    rig.switch();
    for qemu in emulator::both() {
        for (kills_qemu, kills_back_end) in [(true, false), (false, true), (true, true)] {
            let child = spawn(vdeq(&rig, &qemu).args(["-S", "-name", "victim"]));
            let dir = private_dir(child.id());
            drop(monitor(&dir));
            assert!(!processes_with(&dir).is_empty());
            if kills_back_end {
                kill_back_end(&dir);
            }
            assert!(entry(&dir).is_some());
            if kills_qemu {
                kill(child.id());
                finish_child(child);
            } else {
                // Nobody else knows of it now.
                let mut monitor = monitor(&dir);
                monitor.execute("quit", json!({})).expect("quit");
                finish_child(child);
            }
            if !kills_back_end {
                until("the back end has removed it", || !Path::new(&dir).exists());
            }
            assert_eq!(entry(&dir), None);
            age(&PathBuf::from(&dir));
            assert_eq!(entry(&dir), None);
            assert!(!Path::new(&dir).exists());
        }
    }
}

/// Makes a directory so old that nobody can be starting in it.
fn age(dir: &Path) {
    if let Ok(file) = std::fs::File::open(dir) {
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(120);
        file.set_modified(old).expect("a time");
    }
}
