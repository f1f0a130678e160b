//! What the tests stand on: a real switch, a fake one that records and misbehaves, other users, other
//! environments.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Gid, Signal, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use tempfile::TempDir;
use vdeplug::{Link, OpenOptions, RxBuf, RxFrame, TxBuf, TxFrame};

/// Longest wait for something that should happen at once, on a machine that is busy with other tests.
pub const LONG: Duration = Duration::from_secs(20);

/// The user and group of tests that need another one.
pub const NOBODY: u32 = 65534;

/// Options with a wait short enough for tests that run into it.
pub fn impatient() -> OpenOptions {
    OpenOptions { timeout: Duration::from_millis(1500), ..OpenOptions::default() }
}

/// Opens a link that has to open.
pub fn open(locator: impl AsRef<str>) -> Arc<dyn Link> {
    let locator = locator.as_ref();
    vdeplug::open(locator, &OpenOptions::default()).unwrap_or_else(|error| panic!("{locator}: {error}"))
}

/// Waits until something is so.
pub fn until(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < LONG, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// A name of a datagram socket that nobody has any more. A child that another test is starting has every socket of this
/// process, until it is a program.
pub fn dead_datagram(name: impl AsRef<Path>) {
    drop(UnixDatagram::bind(&name).expect("bind"));
    let probe = UnixDatagram::unbound().expect("socket");
    until("nobody has the socket", || probe.connect(&name).is_err());
}

/// The same of one that listened.
pub fn dead_listener(name: impl AsRef<Path>) {
    drop(UnixListener::bind(&name).expect("bind"));
    until("nobody has the socket", || UnixStream::connect(&name).is_err());
}

/// A directory that every user may enter.
pub fn open_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("plug").tempdir().expect("temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    dir
}

/// Names in a directory.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("read a directory");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A running `vde_switch`.
pub struct RealSwitch {
    child: Child,
    pub dir: PathBuf,
    /// One connection for all: Debian's switch loses track of a port that is being opened at the moment at which any
    /// other connection to it, to its management socket too, ends.
    management: Mutex<UnixStream>,
    /// Lives as long as the switch.
    _home: TempDir,
}

impl RealSwitch {
    pub fn start() -> Self {
        Self::start_with(&[], None, None)
    }

    /// Starts one with more arguments, in this directory or a temporary one, as this user.
    pub fn start_with(args: &[&str], dir: Option<&Path>, uid: Option<u32>) -> Self {
        let home = open_dir();
        if uid.is_some() {
            std::os::unix::fs::chown(home.path(), uid, uid)
                .expect("this test needs root, to start a switch as another user");
        }
        let dir = dir.map_or_else(|| home.path().join("sw"), Path::to_path_buf);
        let management = home.path().join("mg");
        let mut command = Command::new("vde_switch");
        command.arg("-s").arg(&dir).arg("-M").arg(&management).args(args);
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        // A switch in the foreground ends when its standard input does.
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("vde_switch has to be installed (package vde-switch)");
        // The management socket is made last; a probe of ctl would be a connection of its own.
        let mut stream = None;
        until("the switch starts", || {
            stream = UnixStream::connect(&management).ok();
            stream.is_some()
        });
        let mut stream = stream.expect("a switch that started");
        stream.set_read_timeout(Some(LONG)).expect("time-out");
        read_to_prompt(&mut stream);
        Self { child, dir, management: Mutex::new(stream), _home: home }
    }

    /// A locator of this switch with this behind its path.
    pub fn at(&self, rest: &str) -> String {
        format!("{}{rest}", self.dir.display())
    }

    /// What the switch answers to a management command.
    pub fn manage(&self, command: &str) -> String {
        let mut stream = self.management.lock().expect("management socket");
        stream.write_all(format!("{command}\n").as_bytes()).expect("management command");
        read_to_prompt(&mut stream)
    }

    /// How many plugs the switch knows.
    pub fn plugs(&self) -> usize {
        self.manage("port/print").matches("endpoint ID").count()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("kill");
    }

    /// Kills it, without a chance to clean up.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for RealSwitch {
    fn drop(&mut self) {
        // Both fail when a test has killed the switch; a stopped one dies of this too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_to_prompt(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while !text.ends_with(b"vde$ ") {
        let got = stream.read(&mut piece).expect("management reply");
        assert_ne!(got, 0, "the management socket closed");
        text.extend_from_slice(&piece[..got]);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// What a fake switch does with a request.
pub enum Act {
    /// Answers with a data socket in its directory.
    Answer,
    /// Answers with this name of a data socket, made absolute in its directory.
    Name(PathBuf),
    /// Answers with these bytes, then waits.
    Bytes(Vec<u8>),
    /// Answers with these bytes, then closes the connection.
    BytesAndClose(Vec<u8>),
}

/// What a fake switch saw.
pub struct Seen {
    /// The bytes of the first read.
    pub request: Vec<u8>,
    /// Owner, group and mode of the client's data socket at that time.
    pub data: Option<(u32, u32, u32)>,
    /// The connection, for more talk.
    pub stream: UnixStream,
    /// The switch's end of the cable.
    pub peer: Option<std::os::unix::net::UnixDatagram>,
}

impl Seen {
    /// The name of the client's data socket.
    pub fn data_name(&self) -> PathBuf {
        let path = &self.request[14..122];
        let end = path.iter().position(|&byte| byte == 0).expect("a NUL behind the name");
        PathBuf::from(std::str::from_utf8(&path[..end]).expect("ASCII"))
    }
}

/// A switch that serves one connection and tells what it saw.
pub struct FakeSwitch {
    pub home: TempDir,
    thread: Option<JoinHandle<Seen>>,
}

impl FakeSwitch {
    /// One that listens on `ctl`.
    pub fn start(act: Act) -> Self {
        Self::start_at("ctl", act)
    }

    /// One that listens on the socket of this name.
    pub fn start_at(name: &str, act: Act) -> Self {
        let home = open_dir();
        let dir = home.path().to_path_buf();
        let listener = UnixListener::bind(dir.join(name)).expect("listen");
        let thread = std::thread::spawn(move || serve(&listener, &dir, act));
        Self { home, thread: Some(thread) }
    }

    pub fn dir(&self) -> &Path {
        self.home.path()
    }

    pub fn at(&self, rest: &str) -> String {
        format!("{}{rest}", self.dir().display())
    }

    /// Waits for the end of the one connection's handshake.
    pub fn seen(&mut self) -> Seen {
        self.thread.take().expect("asked once").join().expect("the fake switch")
    }
}

fn serve(listener: &UnixListener, dir: &Path, act: Act) -> Seen {
    readable(listener).then_some(()).expect("a client connects");
    let (mut stream, _) = listener.accept().expect("accept");
    stream.set_read_timeout(Some(LONG)).expect("time-out");
    let mut request = vec![0; 4096];
    let got = stream.read(&mut request).expect("a request");
    request.truncate(got);
    let mut seen = Seen { request, data: None, stream, peer: None };
    let name = seen.data_name();
    seen.data = fs::symlink_metadata(&name).ok().map(|meta| (meta.uid(), meta.gid(), meta.mode() & 0o7777));
    match act {
        Act::Answer => {
            let peer_name = dir.join("001.7");
            let peer = std::os::unix::net::UnixDatagram::bind(&peer_name).expect("bind");
            fs::set_permissions(&peer_name, fs::Permissions::from_mode(0o777)).expect("chmod");
            peer.connect(&name).expect("connect to the client");
            seen.peer = Some(peer);
            seen.stream.write_all(&answer(&peer_name)).expect("answer");
        }
        Act::Name(name) => seen.stream.write_all(&answer(&dir.join(name))).expect("answer"),
        // The client may have gone already.
        Act::Bytes(bytes) => drop(seen.stream.write_all(&bytes)),
        Act::BytesAndClose(bytes) => {
            drop(seen.stream.write_all(&bytes));
            seen.stream.shutdown(std::net::Shutdown::Both).expect("shutdown");
        }
    }
    seen
}

/// The 110 bytes by which a switch names its data socket.
pub fn answer(path: &Path) -> Vec<u8> {
    let mut answer = 1_u16.to_ne_bytes().to_vec();
    answer.extend_from_slice(path.as_os_str().as_encoded_bytes());
    answer.resize(110, 0);
    answer
}

/// Waits until a descriptor is readable or at its end; `false` after a long time.
pub fn readable(fd: impl std::os::fd::AsFd) -> bool {
    let limit = Timespec::try_from(LONG).expect("fits");
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).expect("poll") > 0
}

/// Fails with a sentence when the tests are not run by root.
pub fn need_root(reason: &str) {
    assert!(rustix::process::geteuid().is_root(), "this test needs root, {reason}");
}

/// Runs something in a thread that is another user in the given groups, without changing this process.
pub fn as_user<T: Send>(uid: u32, groups: &[u32], work: impl FnOnce() -> T + Send) -> T {
    need_root("to become another user");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let groups: Vec<Gid> = groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
            set_thread_groups(&groups).expect("setgroups");
            let gid = Gid::from_raw(uid);
            set_thread_res_gid(gid, gid, gid).expect("setresgid");
            let uid = Uid::from_raw(uid);
            set_thread_res_uid(uid, uid, uid).expect("setresuid");
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The program that runs, also when another one was built in its place meanwhile.
pub fn this_program() -> String {
    format!("/proc/{}/exe", std::process::id())
}

const CHILD: &str = "VDEPLUG_TEST_CHILD";

/// Runs the body in a process of its own: this test again, in the environment that `prepare` makes.
pub fn in_child(test: &str, prepare: impl FnOnce(Command) -> Command, body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let mut command = prepare(Command::new(this_program()));
    let output = command
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("run the test program");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Sends one frame, which has to go.
pub fn send(link: &dyn Link, frame: &[u8]) {
    let sent = link.send(&[TxFrame::new(&[TxBuf::new(frame)])]).expect("a living link");
    assert_eq!((sent.taken, sent.dropped), (1, 0), "a frame of {} bytes", frame.len());
}

/// Waits for one frame.
pub fn receive(link: &dyn Link) -> Vec<u8> {
    assert!(readable(link.data_fd()), "no frame came");
    let mut room = [0; 10_000];
    let bufs = [RxBuf::new(&mut room)];
    let mut frames = [RxFrame::new(&bufs)];
    assert_eq!(link.recv(&mut frames).expect("a living link"), 1);
    let len = frames[0].len;
    room[..len].to_vec()
}

/// A broadcast frame of this length whose sender ends in `from`.
pub fn broadcast(from: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&[2, 0, 0, 0, 0, from, 0x88, 0xb5]);
    frame.resize(len, from);
    frame
}

/// Debian's `vde_plug`, whose standard streams carry the frames of a locator.
pub struct VdePlug {
    child: Child,
    input: std::process::ChildStdin,
    output: std::process::ChildStdout,
}

impl VdePlug {
    pub fn start(locator: &str) -> Self {
        let child =
            Command::new("vde_plug").arg(locator).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.expect("vde_plug has to be installed (package vdeplug)");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Self { child, input, output }
    }

    pub fn send(&mut self, frame: &[u8]) {
        let len = u16::try_from(frame.len()).expect("short").to_be_bytes();
        self.input.write_all(&[&len, frame].concat()).expect("vde_plug reads");
    }

    pub fn has_output(&self) -> bool {
        let mut fds = [PollFd::new(&self.output, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).expect("poll") > 0
    }

    /// Waits for a frame.
    pub fn receive(&mut self) -> Vec<u8> {
        assert!(readable(&self.output), "vde_plug shows no frame");
        let mut len = [0; 2];
        self.output.read_exact(&mut len).expect("a length");
        let mut frame = vec![0; usize::from(u16::from_be_bytes(len))];
        self.output.read_exact(&mut frame).expect("a frame");
        frame
    }

    /// Kills it, without a chance to clean up.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for VdePlug {
    fn drop(&mut self) {
        // Both fail when a test has killed it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
