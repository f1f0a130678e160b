//! A worker that is killed, at any moment and by whatever, and what its successor does.

mod ends;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use qmp::{Address, Client};
use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::control::{add, nics, refusal};
use crate::driver::{Driver, VERSION_1};
use crate::pcapng;
use crate::world::{Backend, LIMIT, Switch, process, wait_for};

/// A back end with a supervisor, as `vdeq` starts it. Whatever becomes of the test, it ends with its life line.
struct Rig {
    dir: tempfile::TempDir,
    backend: Backend,
    lifeline: Option<OwnedFd>,
}

impl Rig {
    /// One that is started with these arguments besides, in which DIR is the directory, and PRIVATE the one that it removes.
    fn start(args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), args)
    }

    fn start_in(dir: tempfile::TempDir, args: &[&str]) -> Self {
        let (read, lifeline) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::fcntl_setfd(&read, FdFlags::empty()).unwrap();
        let private = dir.path().join("private");
        std::fs::create_dir(&private).unwrap();
        let number = read.as_raw_fd().to_string();
        let (path, control) = (dir.path().to_str().unwrap(), private.join("control.sock"));
        let args =
            args.iter().map(|arg| arg.replace("PRIVATE", private.to_str().unwrap()).replace("DIR", path));
        let child = Backend::command()
            .args(["--supervise", "--lifeline-fd", &number, "--private-dir"])
            .arg(&private)
            .arg("--control")
            .arg(&control)
            .args(args)
            .stderr(File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let rig = Self { dir, backend: Backend { child }, lifeline: Some(lifeline) };
        // It has begun to serve when it answers.
        nics(&mut rig.client());
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self) -> Client {
        let control = self.path("private/control.sock");
        let connect = || Client::connect(&Address::Unix(control.clone()), LIMIT).ok();
        wait_for("the control socket", connect)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }

    fn worker(&self) -> Option<Pid> {
        let supervisor = self.backend.child.id();
        let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children"));
        Pid::from_raw(children.ok()?.split_whitespace().next()?.parse().ok()?)
    }

    /// Kills the worker, once it serves, and waits until it is gone.
    fn kill(&self, signal: Signal) {
        let worker = wait_for("a worker", || self.worker());
        kill_process(worker, signal).unwrap();
        wait_for("its end", || (self.worker() != Some(worker)).then_some(()));
    }

    /// Ends what is served, as a virtual machine does by its end.
    fn cut(&mut self) -> Option<i32> {
        self.lifeline = None;
        self.is_over()
    }

    fn is_over(&mut self) -> Option<i32> {
        let worker = self.worker();
        let status = wait_for("its end", || self.backend.child.try_wait().unwrap());
        wait_for("the worker's end", || worker.is_none_or(|worker| !is_there(worker)).then_some(()));
        assert!(!self.path("private").exists());
        status.code()
    }
}

fn is_there(process: Pid) -> bool {
    Path::new("/proc").join(process.as_raw_nonzero().to_string()).exists()
}

/// As many sockets are in a switch's directory as it has ports in use, beside its own.
fn ports(switch: &Switch) -> usize {
    std::fs::read_dir(&switch.path).unwrap().count() - 1
}

#[test]
fn successors_serve_what_was_served_at_last() {
    let dir = tempfile::tempdir().unwrap();
    let (near, far) = (Switch::start(&dir.path().join("near")), Switch::start(&dir.path().join("far")));
    let mut rig = Rig::start_in(
        dir,
        &["--nic", "socket-path=PRIVATE/a.sock,link=DIR/near,link=null://,id=a", "--nic"]
            .into_iter()
            .chain(["socket-path=PRIVATE/b.sock,link=DIR/near,protocol=stream,id=b"])
            .chain(["--join", "link=hub://DIR/hub,link=DIR/near"])
            .collect::<Vec<_>>(),
    );
    let mut client = rig.client();
    let text = |name: &str| rig.path(name).to_str().unwrap().to_owned();
    add(&mut client, "c", &text("private/c.sock"), &["null://", &text("far")]).unwrap();
    client.execute("nic-del", json!({ "id": "b" })).unwrap();
    client.execute("link-remove", json!({ "nic": "c", "link": "link0" })).unwrap();
    client.execute("link-add", json!({ "nic": "a", "locator": "null://" })).unwrap();
    client.execute("link-replace", json!({ "nic": "a", "link": "link0", "locator": text("far") })).unwrap();
    client
        .execute("link-replace", json!({ "nic": "join0", "link": "link1", "locator": text("far") }))
        .unwrap();
    let served = |client: &mut Client| {
        let nics = nics(client).into_iter().map(|mut nic| {
            nic.links.iter_mut().for_each(|link| link.traffic = Default::default());
            (nic.id, nic.socket_path, nic.protocol, nic.links)
        });
        (nics.collect::<Vec<_>>(), client.execute("query-joins", json!({})).unwrap()[0]["links"].clone())
    };
    let (before, joined) = served(&mut client);
    let links: Vec<&str> = before[0].3.iter().map(|link| link.id.as_str()).collect();
    assert_eq!((before.len(), &links[..]), (2, &["link3", "link1", "link2"][..]));
    // A switch hears of an end when it gets to it.
    let has_ports = |expected| {
        wait_for("a port for each link", || ((ports(&near), ports(&far)) == expected).then_some(()));
    };
    has_ports((0, 3));
    // A segmentation fault that is sent, and does not happen, is not one for Rust's own handler.
    for signal in [Signal::KILL, Signal::ILL, Signal::ABORT] {
        rig.kill(signal);
        let mut client = rig.client();
        // A switch that takes longer than 0.3 s is asked again.
        let is_as_before = |client: &mut Client| {
            let (nics, joins) = served(client);
            nics == before && joins[0]["locator"] == joined[0]["locator"]
        };
        wait_for("all to be served", || is_as_before(&mut client).then_some(()));
        has_ports((0, 3));
        Driver::connect(&rig.path("private/a.sock"), VERSION_1, 1);
        assert!(!rig.path("private/b.sock").exists());
    }
    // Links go by the numbers that come next.
    let added = rig.client().execute("link-add", json!({ "nic": "a", "locator": "null://" })).unwrap();
    assert_eq!(added["id"], "link4");
    let log = rig.log();
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains("which served, has ended by signal")).collect();
    assert_eq!(lines.len(), 3, "{log}");
    for (line, words) in
        lines.iter().zip(["9 (SIGKILL); the next one begins in 100ms", "4 (SIGILL)", "6 (SIGABRT)"])
    {
        assert!(line.contains(words) && line.contains("counters"), "{line}");
    }
    assert_eq!(rig.cut(), Some(0));
    has_ports((0, 0));
}

#[test]
fn successor_waits_for_a_network_that_is_not_there() {
    let mut rig = Rig::start(&["--keep-going", "--nic", "socket-path=DIR/n,link=DIR/sw"]);
    let switch = Switch::start(&rig.path("sw"));
    let is_up = |rig: &Rig| nics(&mut rig.client())[0].links[0].up;
    wait_for("the link", || is_up(&rig).then_some(()));
    drop(switch);
    // The locator leads nowhere now, and then to what was never a network.
    for make in [|_: &Path| (), |path: &Path| std::fs::write(path, "no locator[").unwrap()] {
        std::fs::remove_dir_all(rig.path("sw")).unwrap_or_default();
        make(&rig.path("sw"));
        rig.kill(Signal::KILL);
        assert!(!is_up(&rig));
    }
    std::fs::remove_file(rig.path("sw")).unwrap();
    let _switch = Switch::start(&rig.path("sw"));
    wait_for("the link", || is_up(&rig).then_some(()));
    assert_eq!(rig.cut(), Some(0));
    assert!(!rig.path("n").exists());
}

#[test]
fn nic_whose_socket_is_taken_is_given_up_and_the_others_are_not() {
    let mut rig =
        Rig::start(&["--nic", "socket-path=DIR/a,link=null://", "--nic", "socket-path=DIR/b,link=null://"]);
    std::fs::remove_file(rig.path("a")).unwrap();
    std::fs::write(rig.path("a"), "precious").unwrap();
    for _ in 0..2 {
        rig.kill(Signal::KILL);
        let nics = nics(&mut rig.client());
        assert_eq!((nics.len(), nics[0].id.as_str()), (1, "nic1"));
    }
    let log = rig.log();
    assert_eq!(log.lines().filter(|line| line.contains("nic0 is not served any more: ")).count(), 1, "{log}");
    assert_eq!(rig.cut(), Some(0));
    assert_eq!(std::fs::read_to_string(rig.path("a")).unwrap(), "precious");
}

#[test]
fn capture_goes_on_behind_what_the_dead_one_wrote() {
    let mut rig = Rig::start(&["--nic", "socket-path=DIR/n,link=null://", "--capture", "DIR/c"]);
    let send = |number: u8| {
        let mut driver = Driver::connect(&rig.path("n"), VERSION_1, 1);
        let frame: Vec<u8> =
            [[0xff; 6], [2, 0, 0, 0, 0, number]].concat().into_iter().chain([number; 48]).collect();
        driver.tx().send(&[0; 12], &frame, 2000);
        driver.tx().used();
    };
    let bytes = || std::fs::read(rig.path("c")).unwrap();
    let has = |number: u8| bytes().windows(48).any(|part| part == [number; 48]).then_some(());
    send(1);
    wait_for("the first frame in the file", || has(1));
    let first = bytes();
    // What a writer who dies leaves of a block.
    let worker = rig.worker().unwrap();
    kill_process(worker, Signal::STOP).unwrap();
    let half = first[first.len() - 100..first.len() - 20].to_vec();
    File::options().append(true).open(rig.path("c")).unwrap().write_all(&half[..48]).unwrap();
    rig.kill(Signal::KILL);
    wait_for("the successor", || UnixStream::connect(rig.path("n")).ok());
    send(2);
    wait_for("the second frame in the file", || has(2));
    // Whose capture was ended has none afterwards.
    rig.client().execute("capture-stop", json!({ "nic": "nic0" })).unwrap();
    wait_for("the end of the capture", || (!nics(&mut rig.client())[0].capturing).then_some(()));
    let all = bytes();
    let sections: Vec<usize> =
        (0..all.len() - 4).filter(|at| all[*at..].starts_with(&[0x0a, 0x0d, 0x0d, 0x0a])).collect();
    assert_eq!(sections, [0, first.len()]);
    let [before, after] = [&all[..first.len()], &all[first.len()..]].map(|part| pcapng::read(part).unwrap());
    assert_eq!((before.packets.len(), after.packets.len()), (1, 1));
    assert_eq!((before.packets[0].bytes[12], after.packets[0].bytes[12]), (1, 2));
    rig.kill(Signal::KILL);
    assert!(!nics(&mut rig.client())[0].capturing);
    assert_eq!(bytes(), all);
    assert_eq!(rig.cut(), Some(0));
}

#[test]
fn pid_file_names_the_supervisor_for_as_long_as_it_lives() {
    let mut rig = Rig::start(&["--pid-file", "DIR/pid"]);
    let own = format!("{}\n", rig.backend.child.id());
    let text = |rig: &Rig| std::fs::read_to_string(rig.path("pid")).unwrap_or_default();
    assert_eq!(text(&rig), own);
    rig.kill(Signal::KILL);
    nics(&mut rig.client());
    assert_eq!(text(&rig), own);
    assert_eq!(rig.backend.terminate(), Some(0));
    assert_eq!(rig.is_over(), Some(0));
    assert!(!rig.path("pid").exists());
}

#[test]
fn inherited_sockets_and_readiness_outlive_a_worker() {
    let dir = tempfile::tempdir().unwrap();
    let [nic, control] = ["n", "c"].map(|name| UnixListener::bind(dir.path().join(name)).unwrap());
    let (told, ready) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let (lifeline, end) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let pass = |fd: BorrowedFd<'_>| {
        rustix::io::fcntl_setfd(fd, FdFlags::empty()).unwrap();
        fd.as_raw_fd().to_string()
    };
    let child = Backend::command()
        .args(["--supervise", "--fd", &pass(nic.as_fd()), "--link", "null://"])
        .args(["--control-fd", &pass(control.as_fd()), "--ready-fd", &pass(ready.as_fd())])
        .args(["--lifeline-fd", &pass(lifeline.as_fd())])
        .spawn()
        .unwrap();
    drop((nic, control, ready, lifeline));
    let mut text = String::new();
    std::io::Read::read_to_string(&mut File::from(told), &mut text).unwrap();
    assert_eq!(text, "READY\n", "and nobody has it open after that");
    let rig = Rig { dir, backend: Backend { child }, lifeline: Some(end) };
    for _ in 0..2 {
        rig.kill(Signal::KILL);
        Driver::connect(&rig.path("n"), VERSION_1, 1);
        let mut client = Client::connect(&Address::Unix(rig.path("c")), LIMIT).unwrap();
        assert_eq!(nics(&mut client).len(), 1);
        let peer =
            || rustix::net::sockopt::socket_peercred(UnixStream::connect(rig.path("c")).unwrap()).unwrap();
        assert_eq!(Some(peer().pid), rig.worker(), "who listens is who serves");
    }
    let Rig { dir, mut backend, lifeline } = rig;
    drop(lifeline);
    assert_eq!(wait_for("its end", || backend.child.try_wait().unwrap()).code(), Some(0));
    assert!(dir.path().join("n").exists() && dir.path().join("c").exists(), "whoever made them removes them");
}

#[test]
fn who_is_followed_is_followed_by_successors_and_missed_by_the_supervisor() {
    for ends_in_the_pause in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (control, socket) = (dir.path().join("control"), dir.path().join("n"));
        let child = Backend::command()
            .args(["--supervise", "--follow-front-end", "--control"])
            .arg(&control)
            .spawn()
            .unwrap();
        let mut rig = Rig { dir, backend: Backend { child }, lifeline: None };
        let connect = || Client::connect(&Address::Unix(control.clone()), LIMIT).ok();
        add(&mut wait_for("commands", connect), "n", socket.to_str().unwrap(), &["null://"]).unwrap();
        let mut qemu = process(&socket);
        let follows = || nics(&mut connect()?)[0].pid.filter(|pid| *pid == qemu.id());
        wait_for("its front end", follows);
        rig.kill(Signal::KILL);
        // A QEMU connects again; this one does not, and is followed all the same.
        assert!(nics(&mut wait_for("commands", connect))[0].pid.is_none());
        if ends_in_the_pause {
            rig.kill(Signal::KILL);
        }
        qemu.kill().unwrap();
        qemu.wait().unwrap();
        let status = wait_for("its end", || rig.backend.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
        assert!(!socket.exists() && !control.exists());
    }
}

#[test]
fn commands_are_refused_as_before_and_idle_supervisors_rest() {
    let mut rig = Rig::start(&["--nic", "socket-path=DIR/n,link=null://"]);
    rig.kill(Signal::KILL);
    let mut client = rig.client();
    let (_, desc) = refusal(add(&mut client, "nic0", "/nowhere", &["null://"]));
    assert!(desc.contains("there is a NIC or join 'nic0' already"), "{desc}");
    let rest = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", rig.backend.child.id())).unwrap();
        let tells = |line: &&str| line.starts_with("State:") || line.contains("ctxt_switches");
        status.lines().filter(tells).map(str::to_owned).collect::<Vec<_>>()
    };
    // It may be on its way to its rest, and a busy machine not let it go on.
    let settled = wait_for("it to settle", || {
        let before = rest();
        std::thread::sleep(Duration::from_millis(100));
        (before[0].ends_with("(sleeping)") && rest() == before).then_some(before)
    });
    for _ in 0..20 {
        nics(&mut client);
    }
    assert_eq!(rest(), settled);
    assert_eq!(rig.cut(), Some(0));
}
