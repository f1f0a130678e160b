//! What the process tests share: a scratch directory with a fake QEMU and with fake back ends, a real
//! switch, and the real back end, built once.
//!
//! The fake QEMU is a shell script that answers `--version` and otherwise runs `$FQ_DO`. It shows what
//! a program sees that vdeq has become. Fake back ends exist only to fail in ways that the real one must not.

// Each test binary uses its own part of the rig.
#![allow(dead_code)]

pub mod emulator;

use std::fs;
use std::io::{Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// More than anything here takes on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(60);

const FAKE_QEMU: &str = "#!/bin/sh
if [ \"$1\" = --version ]; then
    echo \"QEMU emulator version ${FQ_VERSION:-10.0.2}\"
    exit 0
fi
[ -n \"$FQ_MARK\" ] && echo started >>\"$FQ_MARK\"
eval \"${FQ_DO:-:}\"
";

pub struct Rig {
    pub scratch: tempfile::TempDir,
    switches: Vec<Switch>,
}

impl Rig {
    /// A rig with the fake QEMU as `qemu-system-x86_64`, first on PATH.
    pub fn new() -> Self {
        let rig = Self { scratch: tempfile::tempdir().expect("scratch"), switches: Vec::new() };
        rig.script("qemu-system-x86_64", FAKE_QEMU);
        rig
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("text").to_owned()
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Makes an executable script.
    pub fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        let line = "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\"";
        make(Command::new("sh").args(["-c", line]).arg(&path).arg(text));
        path
    }

    /// Starts a switch; gives the locator.
    pub fn switch(&mut self) -> String {
        self.switch_at("sw")
    }

    /// Starts a switch in this directory.
    pub fn switch_at(&mut self, name: &str) -> String {
        let socket = self.text(name);
        let management = self.path(&format!("{name}.mgmt"));
        let mut command = Command::new("vde_switch");
        command.args(["-s", &socket, "-M"]).arg(&management);
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("vde_switch: apt-get install vde-switch");
        let running = Running(Some(child));
        let mut stream = None;
        // Made last.
        until("the switch listens", || {
            stream = UnixStream::connect(&management).ok();
            stream.is_some()
        });
        let mut management = stream.expect("a connection");
        management.set_read_timeout(Some(LIMIT)).expect("time limit");
        read_past(&mut management, "vde$ ");
        self.switches.push(Switch { name: name.to_owned(), management, _running: running });
        socket
    }

    /// What the switch in this directory says of its ports.
    pub fn ports(&mut self, name: &str) -> String {
        let switch = self.switches.iter_mut().find(|switch| switch.name == name).expect("a switch");
        switch.management.write_all(b"port/print\n").expect("write");
        read_past(&mut switch.management, "\nvde$ ")
    }

    /// vdeq with the rig's directory first on PATH and the real back end.
    pub fn vdeq(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vdeq"));
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.scratch.path().display()));
        command.env("VDEQ_BACKEND", back_end()).env_remove("VDEQ_QEMU").env("FQ_MARK", self.path("mark"));
        command.env("XDG_CACHE_HOME", self.path("cache")).stdin(Stdio::null());
        command
    }

    /// Whether the fake QEMU ran.
    pub fn qemu_ran(&self) -> bool {
        self.path("mark").exists()
    }
}

/// Has another process make a program. What this one has open for writing, a child that another test is starting has open
/// too, until it has become its program, and nobody can run a file that somebody may write to ("text file busy").
pub fn make(command: &mut Command) {
    let status = command.status().expect("a program of the system");
    assert!(status.success(), "{command:?}: {status}");
}

/// The name of a switch's management socket.
fn management(switch: &str) -> String {
    format!("{switch}.mgmt")
}

/// A switch, and the one management connection to it: Debian's loses track of a port that is being opened at the moment at
/// which another one ends.
struct Switch {
    name: String,
    management: UnixStream,
    _running: Running,
}

fn read_past(stream: &mut UnixStream, end: &str) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(end.as_bytes()) {
        stream.read_exact(&mut byte).expect("an answer of the switch");
        text.extend(byte);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The built back end.
pub fn back_end() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--package", "vhost-user-vde"])
            .status()
            .expect("cargo");
        assert!(built.success(), "the back end does not build");
        let profile =
            Path::new(env!("CARGO_BIN_EXE_vdeq")).parent().and_then(Path::parent).expect("target directory");
        profile.join("debug/vhost-user-vde")
    })
}

/// A child that a failing test does not leave behind.
pub struct Running(Option<Child>);

impl Deref for Running {
    type Target = Child;

    fn deref(&self) -> &Child {
        self.0.as_ref().expect("not finished")
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        self.0.as_mut().expect("not finished")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// Starts a command with pipes for what it prints.
pub fn spawn(command: &mut Command) -> Running {
    spawn_quiet(command.stdout(Stdio::piped()))
}

/// Starts a command with a pipe for what it complains about.
pub fn spawn_quiet(command: &mut Command) -> Running {
    Running(Some(command.stderr(Stdio::piped()).spawn().expect("spawn")))
}

/// Somebody else's child that a failing test does not leave behind; by a descriptor, because the
/// number may belong to another process by then.
pub struct Daemon(OwnedFd);

impl Daemon {
    pub fn new(pid: i32) -> Self {
        let pid = Pid::from_raw(pid).expect("not 0");
        Self(pidfd_open(pid, PidfdFlags::empty()).expect("a process"))
    }

    pub fn kill(&self) -> rustix::io::Result<()> {
        pidfd_send_signal(&self.0, Signal::KILL)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill().ok();
    }
}

/// Runs a command to its end, or fails.
pub fn finish(command: &mut Command) -> Output {
    finish_child(spawn(command))
}

/// Waits for a child that was started with pipes, or fails.
pub fn finish_child(mut child: Running) -> Output {
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().expect("wait").is_none() {
        if Instant::now() > deadline {
            child.kill().ok();
            let output = child.0.take().map(Child::wait_with_output);
            panic!("still running after {LIMIT:?}: {output:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.0.take().expect("a child").wait_with_output().expect("output")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for a condition, or fails with its name.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// PIDs of processes that have `word` among their arguments.
pub fn processes_with(word: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    };
    pids.filter(has).collect()
}

/// Kills the back end with this directory, the supervisor and its worker.
pub fn kill_back_end(dir: &str) {
    until("the back end has ended", || {
        let processes = processes_with(dir);
        for pid in processes.iter().filter_map(|pid| Pid::from_raw(i32::try_from(*pid).ok()?)) {
            // One has perhaps ended with the other.
            kill_process(pid, Signal::KILL).ok();
        }
        processes.is_empty()
    });
}

/// The private directory of the VM that `pid` became.
pub fn private_dir(pid: u32) -> String {
    let uid = rustix::process::geteuid();
    match (uid.is_root(), std::env::var("XDG_RUNTIME_DIR")) {
        (true, _) => format!("/run/vdeq/{pid}"),
        (false, Ok(dir)) => format!("{dir}/vdeq/{pid}"),
        (false, Err(_)) => format!("/tmp/vdeq-{}/{pid}", uid.as_raw()),
    }
}

/// Waits until nothing is left of a VM.
pub fn gone(pid: u32) {
    let dir = private_dir(pid);
    until("the back end has left", || processes_with(&dir).is_empty() && !Path::new(&dir).exists());
}

/// Shell words that wait until a file is there, but not for ever: whoever would make it may be killed.
pub fn wait_for(file: &str) -> String {
    format!("n=0; while [ ! -e {file} ] && [ $n -lt 600 ]; do sleep 0.05; n=$((n + 1)); done")
}
