//! A back end for one front end, as programs want it that start one for each NIC.

use std::os::unix::net::UnixStream;

use crate::driver::{Driver, VERSION_1};
use crate::world::{Backend, Switch, wait_for};

#[test]
fn one_off_ends_with_its_front_end_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let (socket, pid_file) = (dir.path().join("n0"), dir.path().join("pid"));
    std::fs::write(&pid_file, "1\n").unwrap();
    let words = ["--socket-path", socket.to_str().unwrap(), "--link", switch.path.to_str().unwrap()];
    let more = ["--one-off", "--pid-file", pid_file.to_str().unwrap()];
    let mut backend = Backend::start(&[&words[..], &more].concat(), &socket);
    let own = format!("{}\n", backend.child.id());
    wait_for("its number", || (std::fs::read_to_string(&pid_file).ok()? == own).then_some(()));
    let driver = Driver::connect(&socket, VERSION_1, 1);
    // Nobody else is let in, or left waiting.
    let refused = UnixStream::connect(&socket).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    drop(driver);
    let status = wait_for("its end", || backend.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert!(!socket.exists() && !pid_file.exists());
}

#[test]
fn pid_file_that_cannot_be_written_is_an_error_and_one_of_a_successor_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (socket, pid_file) = (dir.path().join("n0"), dir.path().join("pid"));
    let words = ["--socket-path", socket.to_str().unwrap(), "--link", "null://", "--pid-file"];
    let output = Backend::command().args(words).arg(dir.path().join("no/pid")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("no/pid"));
    assert!(!socket.exists());

    let mut backend = Backend::start(&[&words[..], &[pid_file.to_str().unwrap()]].concat(), &socket);
    let own = format!("{}\n", backend.child.id());
    wait_for("its number", || (std::fs::read_to_string(&pid_file).ok()? == own).then_some(()));
    std::fs::write(&pid_file, "12\n").unwrap();
    assert_eq!(backend.terminate(), Some(0));
    assert_eq!(std::fs::read_to_string(&pid_file).unwrap(), "12\n");
}
