//! How a worker and its supervisor end, by themselves and otherwise: nothing stays behind, and nothing spins.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::io::FdFlags;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{Rig, is_there};
use crate::control::nics;
use crate::world::{Backend, wait_for};

#[test]
fn both_end_with_one_and_the_worker_without_its_supervisor() {
    let nic = ["--nic", "socket-path=DIR/n,link=null://"];
    // A signal to either, and the command.
    for how in ["supervisor", "worker", "quit"] {
        let mut rig = Rig::start(&nic);
        match how {
            "supervisor" => assert_eq!(rig.backend.terminate(), Some(0)),
            "worker" => kill_process(rig.worker().unwrap(), Signal::TERM).unwrap(),
            _ => drop(rig.client().execute("quit", json!({})).unwrap()),
        }
        assert_eq!(rig.is_over(), Some(0), "{how}");
        assert!(!rig.path("n").exists() && rig.log().is_empty(), "{how}: {}", rig.log());
    }
    let mut rig = Rig::start(&nic);
    let worker = rig.worker().unwrap();
    rig.backend.child.kill().unwrap();
    rig.backend.child.wait().unwrap();
    assert_eq!(nics(&mut rig.client()).len(), 1);
    rig.lifeline = None;
    wait_for("the worker's end", || (!is_there(worker)).then_some(()));
    assert!(!rig.path("private").exists() && !rig.path("n").exists());
}

/// Has the worker killed as often as it comes, until the next one is late.
fn wear_out(rig: &Rig) {
    let mut last = None;
    for _ in 0..7 {
        let worker = wait_for("a worker", || rig.worker().filter(|worker| Some(*worker) != last));
        // It may have begun this moment.
        kill_process(worker, Signal::KILL).unwrap();
        last = Some(worker);
    }
    wait_for("the last one's end", || rig.worker().is_none().then_some(()));
}

#[test]
fn who_dies_at_once_each_time_does_not_spin_and_ends_with_the_machine() {
    let begin = Instant::now();
    let mut rig = Rig::start(&["--nic", "socket-path=DIR/n,link=null://"]);
    wear_out(&rig);
    // Six successors: 0.1, 0.2, 0.4, 0.8, 1.6, 3.2 seconds.
    assert!(begin.elapsed() > Duration::from_millis(6000), "{:?}", begin.elapsed());
    wait_for("the delay to grow", || rig.log().contains("begins in 5s").then_some(()));
    // While it waits, nobody takes connections that nobody serves, and commands wait.
    let refused = UnixStream::connect(rig.path("n")).unwrap_err();
    // The last one may have been killed when it had taken the name away, to listen itself.
    assert!(matches!(refused.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound), "{refused}");
    UnixStream::connect(rig.path("private/control.sock")).unwrap();
    let begin = Instant::now();
    assert_eq!(rig.cut(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    assert!(!rig.path("n").exists());

    let mut rig = Rig::start(&["--nic", "socket-path=DIR/n,link=null://", "--pid-file", "DIR/pid"]);
    wear_out(&rig);
    assert_eq!(rig.backend.terminate(), Some(0));
    assert_eq!(rig.is_over(), Some(0));
    assert!(!rig.path("n").exists());
    assert!(!rig.path("pid").exists());
}

#[test]
fn worker_that_dies_before_it_is_ready_has_no_successor() {
    let dir = tempfile::tempdir().unwrap();
    // Listens, and never answers.
    std::fs::create_dir(dir.path().join("mute")).unwrap();
    let _mute = UnixListener::bind(dir.path().join("mute/ctl")).unwrap();
    let start = || -> Child {
        let nic = format!("socket-path={0}/n,link={0}/mute", dir.path().display());
        let mut command = Backend::command();
        command.args(["--supervise", "--nic", &nic]).arg("--private-dir").arg(dir.path().join("private"));
        std::fs::create_dir(dir.path().join("private")).unwrap_or_default();
        command.spawn().unwrap()
    };
    let worker = |child: &Child| {
        let path = format!("/proc/{0}/task/{0}/children", child.id());
        wait_for("a worker", || Pid::from_raw(std::fs::read_to_string(&path).ok()?.trim().parse().ok()?))
    };
    let child = start();
    kill_process(worker(&child), Signal::KILL).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("has ended by signal: 9 (SIGKILL)\n") && said.lines().count() == 1, "{said}");
    assert!(!dir.path().join("private").exists());
    // Who started it knows the supervisor only.
    let mut child = start();
    let worker = worker(&child);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for("the worker's end", || (!is_there(worker)).then_some(()));
    assert!(!dir.path().join("n").exists());
}

#[test]
fn errors_are_those_of_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let connection = theirs.as_raw_fd().to_string();
    let cases: [(&[&str], i32, &str); 5] = [
        (&["--socket-path", &path("n"), "--link", &path("none")], 3, "none"),
        (&["--socket-path", &path("no/n"), "--link", "null://"], 4, "directory"),
        (&["--control", &path("no/control")], 4, "no/control"),
        (&["--fd", &connection, "--link", "null://"], 2, "is a connection"),
        (&["--fd", &connection, "--link", "null://", "--one-off"], 2, "--one-off"),
    ];
    for (args, status, word) in cases {
        let output = Backend::command().arg("--supervise").args(args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said}");
    }
    drop(ours);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
