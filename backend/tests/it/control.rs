//! The control socket: commands good and bad, clients good and bad.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use qmp::{Address, Client, Error};
use serde_json::{Value, json};
use vde_control::{Nic, Protocol};

use crate::driver::{Driver, VERSION_1};
use crate::world::{Backend, LIMIT, Switch, wait_for};

/// A back end with a control socket, and where all is.
pub struct Rig {
    pub dir: tempfile::TempDir,
    pub backend: Backend,
    pub control: PathBuf,
}

impl Rig {
    /// One that is started with these arguments besides, in which DIR is the directory.
    pub fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("control");
        let args: Vec<String> =
            args.iter().map(|arg| arg.replace("DIR", dir.path().to_str().unwrap())).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let args = [&["--control", control.to_str().unwrap(), "--log-level", "info"], &args[..]].concat();
        let backend = Backend::start(&args, &control);
        // Its name comes a moment before it listens.
        wait_for("the control socket", || UnixStream::connect(&control).ok());
        Self { dir, backend, control }
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn client(&self) -> Client {
        Client::connect(&Address::Unix(self.control.clone()), LIMIT).unwrap()
    }

    /// A connection that says nothing by itself.
    pub fn raw(&self) -> UnixStream {
        let socket = UnixStream::connect(&self.control).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        socket
    }

    pub fn switch(&self, name: &str) -> Switch {
        Switch::start(&self.dir.path().join(name))
    }

    /// Descriptors and threads of the back end, once it opens nothing.
    pub fn holdings(&self) -> (usize, usize) {
        wait_for("threads that open to end", || (self.opening() == 0).then_some(()));
        (self.list("fd").count(), self.list("task").count())
    }

    /// Threads that open something.
    pub fn opening(&self) -> usize {
        let name = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
        self.list("task")
            .filter_map(Result::ok)
            .filter(|task| name(task).is_ok_and(|name| name == "open\n"))
            .count()
    }

    fn list(&self, what: &str) -> impl Iterator<Item = std::io::Result<std::fs::DirEntry>> {
        std::fs::read_dir(format!("/proc/{}/{what}", self.backend.child.id())).unwrap()
    }
}

pub fn nics(client: &mut Client) -> Vec<Nic> {
    serde_json::from_value(client.execute("query-nics", json!({})).unwrap()).unwrap()
}

/// Class and sentence of an error.
pub fn refusal(result: Result<Value, Error>) -> (String, String) {
    match result.unwrap_err() {
        Error::Command { class, desc, .. } => (class, desc),
        error => panic!("{error}"),
    }
}

pub fn add(client: &mut Client, id: &str, socket: &str, links: &[&str]) -> Result<Value, Error> {
    client.execute("nic-add", json!({ "id": id, "socket-path": socket, "links": links }))
}

pub fn lines(socket: &UnixStream) -> impl Iterator<Item = Value> + use<> {
    let reader = BufReader::new(socket.try_clone().unwrap());
    reader.lines().map_while(Result::ok).map(|line| serde_json::from_str(&line).unwrap())
}

#[test]
fn back_end_without_nics_greets_answers_and_quits() {
    let mut rig = Rig::start(&[]);
    let mode = std::fs::metadata(&rig.control).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut client = rig.client();
    assert!(client.greeting()["version"]["package"].as_str().unwrap().starts_with("vhost-user-vde "));
    assert!(client.version().is_err(), "it is no QEMU");
    assert_eq!(client.execute("query-nics", json!({})).unwrap(), json!([]));
    assert_eq!(client.execute("query-joins", json!({})).unwrap(), json!([]));
    assert_eq!(client.execute("quit", json!({})).unwrap(), json!({}));
    let event = client.next_event(LIMIT).unwrap().unwrap();
    assert_eq!(event.name, "SHUTDOWN");
    let status = wait_for("its end", || rig.backend.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert!(!rig.control.exists());
}

#[test]
fn nics_of_the_command_line_are_described() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let sockets = ["n0", "n1"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    let locator = dir.path().join("sw").to_str().unwrap().to_owned();
    let hub = format!("hub://{}", dir.path().join("hub").display());
    let specs = [
        format!("socket-path={},link={locator},queues=2,id=net7", sockets[0]),
        format!("socket-path={},link={hub},protocol=stream", sockets[1]),
    ];
    let join = format!("link={hub},link=null://");
    let rig = Rig::start(&["--nic", &specs[0], "--nic", &specs[1], "--join", &join]);
    let mut client = rig.client();
    let [virtio, stream] = &nics(&mut client)[..] else { panic!("two NICs") };
    assert_eq!((virtio.id.as_str(), stream.id.as_str()), ("net7", "nic1"));
    assert_eq!(virtio.socket_path.as_deref(), Some(Path::new(&sockets[0])));
    assert_eq!((virtio.protocol, stream.protocol), (Protocol::VhostUser, Protocol::Stream));
    assert_eq!((virtio.queues, virtio.connected, virtio.pid, virtio.features), (2, false, None, 0));
    let link = &virtio.links[0];
    assert_eq!((link.id.as_str(), link.locator.as_str(), link.up), ("link0", &*locator, true));
    let joins = client.execute("query-joins", json!({})).unwrap();
    assert_eq!((&joins[0]["id"], &joins[0]["links"][1]["locator"]), (&json!("join0"), &json!("null://")));

    let mut driver = Driver::connect(Path::new(&sockets[0]), VERSION_1, 2);
    driver.tx().send(&[0; 12], &[0xff; 60], 2000);
    driver.tx().used();
    let nic = &nics(&mut client)[0];
    assert_eq!((nic.connected, nic.pid, nic.features), (true, Some(std::process::id()), VERSION_1));
    assert_eq!((nic.counters["tx_frames"], nic.links[0].traffic.tx_frames), (1, 1));
    drop(driver);
    let event = |client: &mut Client| client.next_event(LIMIT).unwrap().unwrap();
    for name in ["NIC_CONNECTED", "NIC_DISCONNECTED"] {
        let event = event(&mut client);
        assert_eq!((event.name.as_str(), event.text("nic")), (name, Some("net7")));
    }
    assert_eq!(nics(&mut client)[0].pid, None);
    drop(switch);
    let down = event(&mut client);
    assert_eq!(
        (down.name.as_str(), down.text("nic"), down.text("link")),
        ("LINK_DOWN", Some("net7"), Some("link0"))
    );
    let link = nics(&mut client)[0].links[0].clone();
    assert_eq!((link.up, link.reason.as_deref()), (false, down.text("reason")));
    let _switch = Switch::start(&dir.path().join("sw"));
    let up = event(&mut client);
    assert_eq!((up.name.as_str(), up.text("locator")), ("LINK_UP", Some(&*locator)));
    assert!(nics(&mut client)[0].links[0].up);
}

#[test]
fn nics_come_and_go_and_leave_nothing() {
    let rig = Rig::start(&[]);
    let switch = rig.switch("sw");
    let ports = || std::fs::read_dir(&switch.path).unwrap().count();
    let (locator, hub) = (rig.path("sw"), format!("hub://{}", rig.path("hub")));
    let socket = rig.path("n0");
    let (mut client, mut other) = (rig.client(), rig.client());
    let mut cycle = |kind: usize| {
        let arguments = json!({ "id": "net0", "socket-path": socket, "links": [locator, hub],
            "protocol": if kind.is_multiple_of(2) { "vhost-user" } else { "stream" } });
        assert_eq!(client.execute("nic-add", arguments).unwrap(), json!({}));
        assert_eq!(ports(), 2);
        if kind.is_multiple_of(2) {
            let mut driver = Driver::connect(Path::new(&socket), VERSION_1, 1);
            driver.tx().send(&[0; 12], &[0xff; 60], 2000);
            driver.tx().used();
        } else {
            UnixStream::connect(&socket).unwrap();
        }
        assert_eq!(nics(&mut client).len(), 1);
        assert_eq!(client.execute("nic-del", json!({ "id": "net0" })).unwrap(), json!({}));
        assert!(nics(&mut client).is_empty());
        assert!(!Path::new(&socket).exists());
        assert!(!Path::new(&rig.path("hub")).exists());
        wait_for("the switch to free the port", || (ports() == 1).then_some(()));
        for name in ["NIC_ADDED", "NIC_DELETED"] {
            let ours = |event: &qmp::Event| event.name == name;
            assert!(other.wait_for_event(LIMIT, ours).unwrap().is_some(), "{name}");
        }
    };
    (0..2).for_each(&mut cycle);
    let before = rig.holdings();
    (0..30).for_each(&mut cycle);
    wait_for("threads to end", || (rig.holdings() == before).then_some(()));
}

#[test]
fn nics_that_cannot_be_are_refused_and_leave_nothing() {
    let rig = Rig::start(&["--nic", "socket-path=DIR/taken,link=null://,id=net0"]);
    let mut client = rig.client();
    let before = rig.holdings();
    let (socket, none, file) = (rig.path("n0"), rig.path("none"), rig.path("file"));
    std::fs::write(&file, "precious").unwrap();
    let nic = |changes: Value| {
        let mut all = json!({ "id": "a", "socket-path": socket, "links": ["null://"] });
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        all
    };
    let cases = [
        (nic(json!({ "id": "net0" })), "'net0' already"),
        (nic(json!({ "id": "" })), "name of a NIC"),
        (nic(json!({ "id": "a b" })), "name of a NIC"),
        (nic(json!({ "id": "a\n" })), "'a\\n'"),
        (nic(json!({ "id": "x".repeat(129) })), "128"),
        (nic(json!({ "links": [] })), "no links"),
        (nic(json!({ "links": ["null://", none] })), none.as_str()),
        (nic(json!({ "links": ["gopher://x"] })), "gopher"),
        (nic(json!({ "queues": 0 })), "queues=0"),
        (nic(json!({ "queues": 17 })), "queues=17"),
        (nic(json!({ "queues": 65536 })), "65536"),
        (nic(json!({ "queues": 2, "protocol": "stream" })), "queues=2"),
        (nic(json!({ "protocol": "dgram" })), "dgram"),
        (nic(json!({ "socket-path": "n0" })), "'n0' does not begin with /"),
        (nic(json!({ "socket-path": file })), "not a socket"),
        (nic(json!({ "socket-path": format!("{none}/s") })), "directory"),
        (nic(json!({ "socket-path": rig.path("taken") })), "in use"),
        (nic(json!({ "sockte": 1 })), "sockte"),
        (json!({ "id": "a" }), "socket-path"),
        (json!({ "id": 5, "socket-path": "/s", "links": [] }), "5"),
    ];
    for (arguments, word) in cases {
        let (class, desc) = refusal(client.execute("nic-add", arguments.clone()));
        assert!(class == "GenericError" && desc.contains(word), "{arguments}: {desc}");
    }
    let (class, desc) = refusal(client.execute("nic-del", json!({ "id": "b" })));
    assert!(class == "DeviceNotFound" && desc.contains("'b'") && desc.contains("net0"), "{desc}");
    assert_eq!(nics(&mut client).len(), 1);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    wait_for("threads to end", || (rig.holdings() == before).then_some(()));
}

/// Somebody else may make the socket, where we may not.
#[test]
fn a_nic_is_served_on_a_socket_that_comes_with_it() {
    let rig = Rig::start(&[]);
    let mut client = rig.client();
    let socket = rig.path("n0");
    let arguments = json!({ "id": "net0", "socket-path": socket, "links": ["null://"] });
    let before = rig.holdings();
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let (stream, _other) = UnixStream::pair().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    for (descriptors, word) in [
        (&[file.as_fd()][..], "no Unix socket that listens"),
        (&[stream.as_fd()], "no Unix socket that listens"),
        (&[listener.as_fd(), listener.as_fd()], "one descriptor at most, and not with 2"),
    ] {
        let (_, desc) = refusal(client.execute_with("nic-add", arguments.clone(), descriptors));
        assert!(desc.contains(word), "{desc}");
    }
    wait_for("what came to be closed", || (rig.holdings() == before).then_some(()));
    client.execute_with("nic-add", arguments, &[listener.as_fd()]).unwrap();
    drop(listener);
    let mut driver = Driver::connect(Path::new(&socket), VERSION_1, 1);
    driver.tx().send(&[0; 12], &[0xff; 60], 2000);
    driver.tx().used();
    assert_eq!(nics(&mut client)[0].socket_path.as_deref(), Some(Path::new(&socket)));
    client.execute("nic-del", json!({ "id": "net0" })).unwrap();
    // A child that another test is starting has ours, too, until it is a program.
    wait_for("nobody to listen", || UnixStream::connect(&socket).is_err().then_some(()));
    assert!(Path::new(&socket).exists(), "the name is not ours");
}

/// A switch that takes connections and never answers.
pub fn mute_switch(rig: &Rig, name: &str) -> (String, std::os::unix::net::UnixListener) {
    let path = rig.path(name);
    std::fs::create_dir(&path).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(format!("{path}/ctl")).unwrap();
    (path, listener)
}

#[test]
fn network_that_does_not_answer_keeps_nobody_else_waiting() {
    let rig = Rig::start(&[]);
    let (mute, _listener) = mute_switch(&rig, "mute");
    let (socket, other) = (rig.path("n0"), rig.path("n1"));
    let mut waiting = rig.raw();
    let add_line = json!({ "execute": "nic-add", "id": "late",
        "arguments": { "id": "slow", "socket-path": socket, "links": [mute] } });
    writeln!(waiting, "{}", json!({ "execute": "qmp_capabilities" })).unwrap();
    writeln!(waiting, "{add_line}").unwrap();
    let mut client = rig.client();
    wait_for("the name to be reserved", || {
        let (_, desc) = refusal(add(&mut client, "slow", &other, &["gopher://x"]));
        desc.contains("'slow' already").then_some(())
    });
    add(&mut client, "quick", &other, &["null://"]).unwrap();
    let names: Vec<String> = nics(&mut client).into_iter().map(|nic| nic.id).collect();
    assert_eq!(names, ["quick"]);
    // Taken back: the one who waits is told, the name is free at once, and nothing comes of it later.
    client.execute("nic-del", json!({ "id": "slow" })).unwrap();
    let answer = lines(&waiting).find(|line| line["id"] == "late").unwrap();
    assert!(answer["error"]["desc"].as_str().unwrap().contains("deleted"), "{answer}");
    add(&mut client, "slow", &socket, &["null://"]).unwrap();
    client.execute("nic-del", json!({ "id": "slow" })).unwrap();
    // The same when who waits goes away.
    let threads = rig.opening();
    writeln!(waiting, "{add_line}").unwrap();
    wait_for("a thread for it", || (rig.opening() > threads).then_some(()));
    drop(waiting);
    wait_for("the name to be free", || add(&mut client, "slow", &socket, &["null://"]).ok());
}

#[test]
fn control_socket_of_a_dead_one_is_taken_over_and_a_live_one_is_not() {
    let mut rig = Rig::start(&[]);
    let control = rig.control.to_str().unwrap().to_owned();
    let output = Backend::command().args(["--control", &control]).output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8(output.stderr).unwrap().contains("in use"));
    rig.backend.child.kill().unwrap();
    rig.backend.child.wait().unwrap();
    let mut second = Backend { child: Backend::command().args(["--control", &control]).spawn().unwrap() };
    wait_for("the successor", || Client::connect(&Address::Unix(rig.control.clone()), LIMIT).ok());
    assert_eq!(second.terminate(), Some(0));
}
