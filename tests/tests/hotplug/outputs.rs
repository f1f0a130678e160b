//! Where `vdectl` writes to takes nothing.

use std::fs::{File, OpenOptions};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use vde_tests::process::{Owned, wait_until};
use vde_tests::{Qemu, Switch, places};

use crate::bare::Bare;
use crate::rig::LIMIT;

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

#[test]
fn what_was_done_stays_done_when_nobody_hears_of_it() {
    let switch = Switch::start().unwrap();
    let bare = Bare::start(Qemu::Installed, "pc", &[]);
    let vdectl = |words: &[&str]| {
        let mut command = Command::new(places::own_program("vdectl").unwrap());
        command.args(words).stdin(Stdio::null());
        command
    };
    let socket = bare.socket.to_str().unwrap();
    let locator = switch.path();
    let attach = ["attach", socket, locator.to_str().unwrap(), "--id", "net0"];
    let said = vdectl(&attach).stdout(full()).output().unwrap();
    let complaint = String::from_utf8(said.stderr).unwrap();
    assert_eq!(said.status.code(), Some(1), "{complaint}");
    assert!(complaint.starts_with("vdectl: this is done: net0 52:54:00:"), "{complaint}");
    assert!(complaint.contains("cannot write to the standard output"), "{complaint}");
    assert!(bare.state().devices.contains("net0"));
    // Nor is a complaint that nobody hears a reason to die.
    let said = vdectl(&attach).stdout(full()).stderr(full()).status().unwrap();
    assert_eq!(said.code(), Some(1), "{said}");
}

/// A pipe that nobody reads is waited for until a signal comes.
#[test]
fn a_capture_into_a_pipe_without_a_reader_can_be_ended() {
    let switch = Switch::start().unwrap();
    let bare = Bare::start(Qemu::Installed, "pc", &[]);
    assert_eq!(bare.vdectl("attach", &[switch.path().to_str().unwrap(), "--id", "net0"]).status, 0);
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("frames");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let mut command = Command::new(places::own_program("vdectl").unwrap());
    command.args(["capture", &bare.proxy.address, "net0n"]).arg(&pipe);
    let child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut capture = Owned::new(child, "vdectl capture");
    // The kernel says where it waits.
    let place = format!("/proc/{}/wchan", capture.pid());
    let waits = || Ok(std::fs::read_to_string(&place)?.contains("wait_for_partner").then_some(()));
    wait_until("it waits for a reader", LIMIT, waits).unwrap();
    capture.signal(Signal::INT).unwrap();
    assert!(!capture.wait(LIMIT).unwrap().success());
}
