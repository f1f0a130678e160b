//! Processes around the back end: the program itself and Debian's `vde_switch`.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vdeplug::{Link, OpenOptions, RxBuf, RxFrame, TxBuf, TxFrame};

pub const LIMIT: Duration = Duration::from_secs(60);

/// Looks until it sees, or fails with what it waited for.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether somebody listens on a socket, which is more than that it has its name. Nobody notices that it is asked.
fn listens(socket: &Path) -> bool {
    let end = format!(" {}", socket.display());
    let all = std::fs::read_to_string("/proc/net/unix").unwrap();
    all.lines().any(|line| line.ends_with(&end) && line.contains(" 00010000 "))
}

/// A process that connects to a socket and stays until it is killed.
pub fn process(socket: impl AsRef<Path>) -> Child {
    let script = "import socket, sys, time\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\ntime.sleep(600)";
    Command::new("python3").args(["-c", script]).arg(socket.as_ref()).stdin(Stdio::null()).spawn().unwrap()
}

/// A running `vde_switch`; ends with the value.
pub struct Switch {
    pub path: PathBuf,
    child: Child,
}

impl Switch {
    pub fn start(path: &Path) -> Self {
        let child = Command::new("vde_switch")
            .arg("-s")
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("vde_switch is missing; cargo xtask test installs it");
        // Connecting would tell too, but could make the switch lose track of a port.
        wait_for("the switch", || listens(&path.join("ctl")).then_some(()));
        Self { path: path.into(), child }
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Another member of the network: a frame that it sends goes to every NIC and the other way round.
    pub fn station(&self) -> Station {
        Station::on(&self.path)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A member of a network that is no virtual machine.
pub struct Station(Arc<dyn Link>);

impl Station {
    /// A member of the network of the switch at `path`.
    pub fn on(path: &Path) -> Self {
        Self(vdeplug::open(path.to_str().unwrap(), &OpenOptions::default()).unwrap())
    }

    pub fn send(&self, frame: &[u8]) {
        wait_for("room in the switch", || {
            (self.0.send(&[TxFrame::new(&[TxBuf::new(frame)])]).unwrap().taken == 1).then_some(())
        });
    }

    /// The next frame, or `None` after `wait`.
    pub fn receive(&self, wait: Duration) -> Option<Vec<u8>> {
        let fd = self.0.data_fd();
        let wait =
            Timespec { tv_sec: wait.as_secs().try_into().unwrap(), tv_nsec: wait.subsec_nanos().into() };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)).unwrap();
        let mut bytes = vec![0; 70_000];
        let room = [RxBuf::new(&mut bytes)];
        let mut frame = [RxFrame::new(&room)];
        let count = self.0.recv(&mut frame).unwrap();
        let len = frame[0].len;
        bytes.truncate(len);
        (count == 1).then_some(bytes)
    }
}

/// The program under test.
pub struct Backend {
    pub child: Child,
}

impl Backend {
    pub fn command() -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-vde"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts it and waits until it listens on `socket`.
    pub fn start(args: &[&str], socket: &Path) -> Self {
        let child = Self::command().args(args).spawn().unwrap();
        let mut backend = Self { child };
        wait_for("the back end's socket", || {
            assert!(backend.child.try_wait().unwrap().is_none(), "the back end ended: {}", backend.stderr());
            listens(socket).then_some(())
        });
        backend
    }

    /// One NIC on a switch.
    pub fn on(switch: &Switch, socket: &Path) -> Self {
        let args = ["--socket-path", socket.to_str().unwrap(), "--link", switch.path.to_str().unwrap()];
        Self::start(&args, socket)
    }

    /// The next line of its standard error.
    pub fn stderr_line(&mut self) -> String {
        let mut line = String::new();
        let stderr = self.child.stderr.as_mut().unwrap();
        BufReader::with_capacity(1, stderr).read_line(&mut line).unwrap();
        line
    }

    /// All that its standard error still holds; it must have ended.
    pub fn stderr(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Does something while no thread of it runs.
    pub fn stopped(&self, act: impl FnOnce()) {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).unwrap();
        wait_for("all threads to stop", || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
            let mut stats =
                tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap());
            stats.all(|stat| stat.rsplit(") ").next().unwrap().starts_with('T')).then_some(())
        });
        act();
        kill_process(pid, Signal::CONT).unwrap();
    }

    /// Asks it to end and returns its exit status.
    pub fn terminate(&mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        wait_for("its end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
