//! Ends: of links, of switches, of clients that died.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Instant;

use rustix::process::Signal;
use vdeplug::{LinkError, OpenErrorKind};

use crate::harness::{
    RealSwitch, dead_datagram, impatient, in_child, names, open, open_dir, readable, until,
};

#[test]
fn c_14_close_frees_the_port() {
    let switch = RealSwitch::start();
    let link = open(switch.at("[4]"));
    assert_eq!((switch.plugs(), names(&switch.dir).len()), (1, 2));
    drop(link);
    until("the switch forgets the port", || switch.plugs() == 0);
    assert_eq!(names(&switch.dir), ["ctl"]);
}

#[test]
fn c_15_end_of_the_switch_shows_on_the_control_descriptor() {
    for signal in [Signal::TERM, Signal::KILL] {
        let switch = RealSwitch::start();
        let link = open(switch.at(""));
        switch.signal(signal);
        assert!(readable(link.control_fd().expect("vde has one")));
        assert!(matches!(link.check_control(), Err(LinkError::Closed)));
    }
}

#[test]
fn c_15_long_directory_is_an_error() {
    let home = open_dir();
    let used = home.path().as_os_str().len() + 1;
    let dir = home.path().join("x".repeat(103 - used));
    let _switch = RealSwitch::start_with(&[], Some(&dir), None);
    // Left over from a client that was cut short in name and in life.
    dead_datagram(dir.join(".12"));
    let start = Instant::now();
    let error = vdeplug::open(dir.to_str().expect("ASCII"), &impatient()).expect_err("too long");
    assert!(error.to_string().contains("103 bytes"), "{error}");
    assert_eq!(error.kind(), OpenErrorKind::Usage);
    assert!(start.elapsed().as_secs() < 5);
    // One in which the switch's sockets fit and ours does not.
    let dir = home.path().join("y".repeat(98 - used));
    let switch = RealSwitch::start_with(&[], Some(&dir), None);
    let _link = open(dir.to_str().expect("ASCII"));
    assert_eq!(switch.plugs(), 1);
}

#[test]
fn dead_switch_is_named() {
    let mut switch = RealSwitch::start();
    switch.kill();
    let error = vdeplug::open(&switch.at(""), &impatient()).expect_err("dead");
    assert_eq!(error.kind(), OpenErrorKind::Unavailable);
    assert!(error.to_string().contains("is dead: nobody listens"), "{error}");
    assert_eq!(names(&switch.dir), ["ctl"]);
}

#[test]
fn stopped_switch_is_an_error_in_time() {
    let switch = RealSwitch::start();
    switch.signal(Signal::STOP);
    let error = vdeplug::open(&switch.at(""), &impatient()).expect_err("stopped");
    assert_eq!(error.kind(), OpenErrorKind::Unavailable);
    assert!(error.to_string().contains("did not answer within 1.5s"), "{error}");
}

#[test]
fn names_of_dead_clients_are_removed() {
    let switch = RealSwitch::start();
    dead_datagram(switch.dir.join(".00042-00000"));
    let _alive = UnixDatagram::bind(switch.dir.join(".00042-00001")).expect("bind");
    drop(open(switch.at("")));
    until("the port is free", || switch.plugs() == 0);
    assert_eq!(names(&switch.dir), [".00042-00001", "ctl"]);
}

#[test]
fn two_hundred_links_leave_nothing() {
    // In a process of its own, as descriptors of other tests come and go.
    in_child(
        "life::two_hundred_links_leave_nothing",
        |command| command,
        || {
            let switch = RealSwitch::start();
            let descriptors = || fs::read_dir("/proc/self/fd").expect("/proc").count();
            let before = descriptors();
            // One after the other: Debian's vde_switch loses a port for good when it sees the end of one plug
            // between the connection and the request of the next.
            for _ in 0..200 {
                drop(open(switch.at("")));
                until("the switch forgets the port", || switch.plugs() == 0);
            }
            for _ in 0..20 {
                vdeplug::open(&switch.at("[zzz=1]"), &impatient()).expect_err("bad option");
                vdeplug::open(&switch.at("[office]"), &impatient()).expect_err("no such group");
            }
            assert_eq!(descriptors(), before);
            until("the switch forgets the ports", || switch.plugs() == 0);
            assert_eq!(names(&switch.dir), ["ctl"]);
        },
    );
}

#[test]
fn descriptors_close_on_exec_and_do_not_block() {
    let switch = RealSwitch::start();
    let link = open(switch.at(""));
    for fd in [link.data_fd(), link.control_fd().expect("vde has one")] {
        let flags = rustix::io::fcntl_getfd(fd).expect("fcntl");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        let status = rustix::fs::fcntl_getfl(fd).expect("fcntl");
        assert!(status.contains(rustix::fs::OFlags::NONBLOCK));
    }
}
