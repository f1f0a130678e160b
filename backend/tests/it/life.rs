//! Start, readiness, errors and end.

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output, Stdio};

use rustix::io::FdFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;

use crate::driver::{Driver, VERSION_1};
use crate::world::{Backend, Switch, wait_for};

/// Runs it to its end, without number 4, by which another test may be passing something to a child of its own.
fn run(args: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" \"$@\" 4>&-"]).arg(Backend::command().get_program());
    command.args(args).stdin(Stdio::null()).output().unwrap()
}

/// Lets the next child inherit a descriptor, by its number.
fn pass(fd: &OwnedFd) -> String {
    rustix::io::fcntl_setfd(fd, FdFlags::empty()).unwrap();
    fd.as_raw_fd().to_string()
}

fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

fn read_all(fd: OwnedFd) -> String {
    let mut text = String::new();
    std::fs::File::from(fd).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn capabilities_are_printed_whatever_else_is_said() {
    let output = run(&["--print-capabilities", "--nonsense"]);
    assert!(output.status.success());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["type"], "net");
}

#[test]
fn capabilities_that_cannot_be_written_are_an_error() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = Backend::command().arg("--print-capabilities").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("standard output"));
}

#[test]
fn sigterm_ends_it_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let mut backend = Backend::on(&switch, &socket);
    let _driver = Driver::connect(&socket, VERSION_1, 1);
    assert_eq!(backend.terminate(), Some(0));
    assert!(!socket.exists());
    let sockets = || std::fs::read_dir(&switch.path).unwrap().count();
    wait_for("the switch to free the port", || (sockets() == 1).then_some(()));
    assert_eq!(backend.stderr(), "");
}

#[test]
fn errors_name_the_word_and_have_their_status() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("file"), "precious").unwrap();
    let _switch = Switch::start(&dir.path().join("sw"));
    let (sock, sw, file, none) = (path("n0"), path("sw"), path("file"), path("none"));
    let cases: [(&[&str], i32, &str); 9] = [
        (&[], 2, "no NIC to serve"),
        (&["--socket-path", &sock, "--link", &none], 3, &none),
        (&["--socket-path", &sock, "--link", "gopher://x"], 3, "gopher"),
        (&["--socket-path", &sock, "--link", &format!("{sw}[port=x=y]")], 3, "x=y"),
        (&["--socket-path", &file, "--link", &sw], 4, &file),
        (&["--socket-path", &path("no/n0"), "--link", &sw], 4, "directory"),
        (&["--fd", "77", "--link", &sw], 4, "77"),
        (&["--fd", "4", "--link", &sw], 4, "--fd 4"),
        (&["--control-fd", "4"], 4, "--control-fd 4"),
    ];
    for (args, status, word) in cases {
        let output = run(args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {text}");
        assert!(text.contains(word) && text.lines().count() == 1, "{args:?}: {text}");
        // Debian's switch removes its own socket of a port a moment after it was left; ours would stay.
        let is_left = || std::fs::read_dir(&sw).unwrap().count() > 1;
        wait_for("no socket to be left in the switch", || (!is_left()).then_some(()));
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
    assert!(!dir.path().join("n0").exists());
}

#[test]
fn readiness_is_told_once_all_is_up() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0").to_str().unwrap().to_owned();
    let (read, write) = pipe();
    let args =
        ["--ready-fd", &pass(&write), "--socket-path", &socket, "--link", switch.path.to_str().unwrap()];
    let mut backend = Backend { child: Backend::command().args(args).spawn().unwrap() };
    drop(write);
    assert_eq!(read_all(read), "READY\n");
    UnixStream::connect(&socket).unwrap();
    assert_eq!(backend.terminate(), Some(0));
}

#[test]
fn failure_is_told_instead_of_printed() {
    let dir = tempfile::tempdir().unwrap();
    let private = dir.path().join("private");
    std::fs::create_dir(&private).unwrap();
    let socket = private.join("n0").to_str().unwrap().to_owned();
    let (read, write) = pipe();
    let private_dir = private.to_str().unwrap();
    let fd = pass(&write);
    let args =
        ["--ready-fd", &fd, "--private-dir", private_dir, "--socket-path", &socket, "--link", "/nowhere/sw"];
    let child = Backend::command().args(args).spawn().unwrap();
    drop(write);
    let line = read_all(read);
    assert!(line.starts_with("ERROR 3 ") && line.contains("/nowhere/sw"), "{line}");
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.len()), (Some(3), 0));
    assert!(!private.exists());
}

#[test]
fn life_line_ends_it_and_the_private_directory() {
    let dir = tempfile::tempdir().unwrap();
    let private = dir.path().join("private");
    std::fs::create_dir(&private).unwrap();
    let socket = private.join("n0");
    let (read, write) = pipe();
    let (fd, dir_arg) = (pass(&read), private.to_str().unwrap());
    let args = ["--lifeline-fd", &fd, "--private-dir", dir_arg, "--socket-path", socket.to_str().unwrap()];
    let mut backend = Backend::start(&[&args[..], &["--link", "null://"]].concat(), &socket);
    assert!(backend.child.try_wait().unwrap().is_none());
    drop(write);
    let status = wait_for("its end", || backend.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert!(!private.exists());
}

#[test]
fn listening_and_connected_sockets_are_inherited() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("n0");
    let listener: OwnedFd = UnixListener::bind(&path).unwrap().into();
    let child = Backend::command().args(["--fd", &pass(&listener), "--link", "null://"]).spawn().unwrap();
    let mut backend = Backend { child };
    for _ in 0..2 {
        let _driver = Driver::connect(&path, VERSION_1, 1);
    }
    assert_eq!(backend.terminate(), Some(0));
    assert!(path.exists(), "whoever made it removes it");

    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs: OwnedFd = theirs.into();
    let child = Backend::command().args(["--fd", &pass(&theirs), "--link", "null://"]).spawn().unwrap();
    let mut backend = Backend { child };
    drop(theirs);
    let frontend = Frontend::from_stream(ours, 2);
    assert_ne!(frontend.get_features().unwrap() & VERSION_1, 0);
    drop(frontend);
    let status = wait_for("its end with the connection", || backend.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn control_socket_is_inherited_and_then_ours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control");
    let listener = UnixListener::bind(&path).unwrap();
    let peer = |socket: &UnixStream| rustix::net::sockopt::socket_peercred(socket).unwrap().pid;
    let before = UnixStream::connect(&path).unwrap();
    assert_eq!(peer(&before), rustix::process::getpid());
    let listener: OwnedFd = listener.into();
    let child = Backend::command().args(["--control-fd", &pass(&listener)]).spawn().unwrap();
    let mut backend = Backend { child };
    wait_for("the greeting", || {
        let socket = UnixStream::connect(&path).ok()?;
        (peer(&socket) == rustix::process::Pid::from_child(&backend.child)).then_some(())
    });
    // Who came before it is served, too.
    let mut greeting = [0; 7];
    (&before).read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"{\"QMP\":");
    assert_eq!(backend.terminate(), Some(0));
    assert!(path.exists(), "whoever made it removes it");
}

#[test]
fn stale_socket_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("n0");
    let args = ["--socket-path", socket.to_str().unwrap(), "--link", "null://"];
    let mut first = Backend::start(&args, &socket);
    assert_eq!(run(&args).status.code(), Some(4), "a live one is not");
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert!(socket.exists());
    let mut second = Backend { child: Backend::command().args(args).spawn().unwrap() };
    wait_for("the successor", || UnixStream::connect(&socket).ok());
    assert_eq!(second.terminate(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn idle_process_never_wakes_up() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let backend = Backend::on(&switch, &socket);
    let _driver = Driver::connect(&socket, VERSION_1, 1);
    // Whether all threads sleep, and how often any did.
    let rest = || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", backend.child.id())).unwrap();
        let look = |task: std::fs::DirEntry| {
            let status = std::fs::read_to_string(task.path().join("status")).unwrap();
            let lines = status.lines().filter(|l| l.contains("voluntary_ctxt_switches"));
            let switches = lines.map(|l| l.rsplit('\t').next().unwrap().parse::<u64>().unwrap()).sum::<u64>();
            (status.contains("(sleeping)"), switches)
        };
        let looks = tasks.map(|task| look(task.unwrap()));
        looks.fold((true, 0), |all, one| (all.0 && one.0, all.1 + one.1))
    };
    // It settles as soon as the last message is answered; a busy machine may preempt it on the way.
    let settled = wait_for("it to settle", || {
        let before = rest();
        std::thread::sleep(std::time::Duration::from_millis(100));
        (before.0 && rest() == before).then_some(before)
    });
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(rest(), settled);
}
