//! What goes over the control stream, and what comes back.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use vdeplug::{LinkError, OpenErrorKind, OpenOptions};

use crate::harness::{
    Act, FakeSwitch, RealSwitch, answer, impatient, in_child, names, open, readable, until,
};

/// Who runs the tests, by the system's own word for it.
fn login_name() -> String {
    let output = std::process::Command::new("id").arg("-un").output().expect("id");
    String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
}

#[test]
fn c_01_c_02_request_is_one_write_of_this_layout() {
    let mut fake = FakeSwitch::start(Act::Answer);
    let link = open(fake.at(""));
    let seen = fake.seen();
    let request = &seen.request;
    assert_eq!(request[..4], 0xfeed_face_u32.to_ne_bytes());
    assert_eq!(request[4..8], 3_u32.to_ne_bytes());
    assert_eq!(request[8..12], 0_u32.to_ne_bytes());
    assert_eq!(request[12..14], 1_u16.to_ne_bytes());
    let name = seen.data_name();
    let used = 14 + name.as_os_str().len();
    assert!(request[used..122].iter().all(|&byte| byte == 0));
    let text = format!("vdeplug user={} pid={}", login_name(), std::process::id());
    let described = std::str::from_utf8(&request[122..]).expect("text");
    assert!(described.starts_with(&text), "{described}");
    // Silence afterwards, and the end of the stream with the end of the link.
    let mut rest = [0; 8];
    let more = rustix::net::recv(&seen.stream, &mut rest, RecvFlags::DONTWAIT);
    assert_eq!(more.map(|(got, _)| got), Err(rustix::io::Errno::AGAIN));
    drop(link);
    assert!(readable(&seen.stream));
    assert_eq!(rustix::net::recv(&seen.stream, &mut rest, RecvFlags::DONTWAIT).map(|(got, _)| got), Ok(0));
}

#[test]
fn c_03_port_is_in_the_request_and_in_the_switch() {
    let mut fake = FakeSwitch::start(Act::Answer);
    let _link = open(fake.at("[5]"));
    assert_eq!(fake.seen().request[8..12], (5_u32 << 8).to_ne_bytes());

    let switch = RealSwitch::start();
    // C-04: nothing called `5` is in the directory, which is no error.
    let _link = open(switch.at("[5]"));
    let ports = switch.manage("port/print 5");
    assert!(ports.contains("endpoint ID") && ports.contains("vdeplug user="), "{ports}");
    let options = OpenOptions { port: vdeplug::Port::Number(7), ..OpenOptions::default() };
    let _link = vdeplug::open(&switch.at(""), &options).expect("the port of the options");
    assert!(switch.manage("port/print 7").contains("endpoint ID"));
}

#[test]
fn c_04_port_group_socket_is_used_where_it_exists() {
    let mut fake = FakeSwitch::start_at("5", Act::Answer);
    let _link = open(fake.at("[5]"));
    fake.seen();
    let mut fake = FakeSwitch::start_at("office", Act::Answer);
    let _link = open(fake.at("[office]"));
    assert_eq!(fake.seen().request[8..12], 0_u32.to_ne_bytes());

    let switch = RealSwitch::start();
    let error = vdeplug::open(&switch.at("[office]"), &impatient()).expect_err("no such group");
    assert!(error.to_string().contains("no port group \"office\""), "{error}");
    assert_eq!(error.kind(), OpenErrorKind::NotFound);
}

#[test]
fn c_05_port_zero_is_the_management_port() {
    let mut fake = FakeSwitch::start(Act::Answer);
    let _link = open(fake.at("[0]"));
    assert_eq!(fake.seen().request[8..12], 1_u32.to_ne_bytes());
    let switch = RealSwitch::start();
    let _link = open(switch.at("[0]"));
    assert!(names(&switch.dir).iter().any(|name| name.starts_with("000.")), "{:?}", names(&switch.dir));
}

#[test]
fn c_06_description_says_who_and_from_where() {
    let prepare = |mut command: std::process::Command| {
        command.env("SSH_CLIENT", "10.1.2.3 5 22");
        command
    };
    in_child("request::c_06_description_says_who_and_from_where", prepare, || {
        let switch = RealSwitch::start();
        let options = OpenOptions { description: "my guest".into(), ..OpenOptions::default() };
        let _link = vdeplug::open(&switch.at(""), &options).expect("a switch");
        let ports = switch.manage("port/print");
        let text = format!(": my guest user={} pid={} SSH=10.1.2.3", login_name(), std::process::id());
        assert!(ports.contains(&text), "{ports}");
    });
    let mut fake = FakeSwitch::start(Act::Answer);
    let options = OpenOptions { description: "x".repeat(200), ..OpenOptions::default() };
    let _link = vdeplug::open(&fake.at(""), &options).expect("a switch");
    assert_eq!(fake.seen().request.len(), 249);
}

#[test]
fn c_11_port_that_the_switch_lacks_is_an_error_in_time() {
    let switch = RealSwitch::start();
    let start = Instant::now();
    let error = vdeplug::open(&switch.at("[99]"), &impatient()).expect_err("32 ports");
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(error.kind(), OpenErrorKind::Refused);
    assert!(error.to_string().contains("no port 99 or when another user has it"), "{error}");
    assert_eq!(names(&switch.dir), ["ctl"]);
}

#[test]
fn answers_that_make_no_sense_are_errors_and_leave_no_name() {
    let good = answer("/nowhere/001.7".as_ref());
    let mut family = good.clone();
    family[..2].copy_from_slice(&2_u16.to_ne_bytes());
    let mut endless = good.clone();
    endless[2..].fill(b'x');
    let none = [&good[..2], &[0; 108]].concat();
    for (act, kind, message) in [
        (Act::BytesAndClose(vec![]), OpenErrorKind::Refused, "refused the connection"),
        (Act::Bytes(vec![]), OpenErrorKind::Unavailable, "did not answer within 1.5s"),
        (Act::BytesAndClose(good[..50].to_vec()), OpenErrorKind::Unavailable, "answer is incomplete"),
        (Act::Bytes(good[..109].to_vec()), OpenErrorKind::Unavailable, "answer is incomplete"),
        (Act::Bytes(family), OpenErrorKind::Unavailable, "not the address of a local socket"),
        (Act::Bytes(endless), OpenErrorKind::Unavailable, "has no end"),
        (Act::Bytes(none), OpenErrorKind::Unavailable, "names no socket"),
        (Act::Bytes(good), OpenErrorKind::Unavailable, "names \"/nowhere/001.7\" as its end"),
    ] {
        let mut fake = FakeSwitch::start(act);
        let start = Instant::now();
        let error = vdeplug::open(&fake.at(""), &impatient()).expect_err(message);
        assert!(start.elapsed() < Duration::from_secs(5), "{error}");
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(names(fake.dir()), ["ctl"], "{error}");
        fake.seen();
    }
}

#[test]
fn answer_in_pieces_is_put_together() {
    let home = crate::harness::open_dir();
    let listener = UnixListener::bind(home.path().join("ctl")).expect("listen");
    let peer = home.path().join("001.7");
    let _peer = std::os::unix::net::UnixDatagram::bind(&peer).expect("bind");
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        for byte in answer(&peer) {
            stream.write_all(&[byte]).expect("write");
        }
        stream
    });
    open(home.path().to_str().expect("ASCII"));
    thread.join().expect("the fake switch");
}

#[test]
fn switch_that_accepts_nobody_is_an_error_in_time() {
    let home = crate::harness::open_dir();
    let ctl = home.path().join("ctl");
    let listener = UnixListener::bind(&ctl).expect("listen");
    rustix::net::listen(&listener, 0).expect("a short queue");
    let _queued = std::os::unix::net::UnixStream::connect(&ctl).expect("the one place in the queue");
    let start = Instant::now();
    let error = vdeplug::open(home.path().to_str().expect("ASCII"), &impatient()).expect_err("busy");
    assert!(error.to_string().contains("accepted no connection within 1.5s: it hangs"), "{error}");
    let remedy = format!(
        "wake it with kill -CONT, or end it and start it again with: vde_switch -s {:?}",
        home.path()
    );
    assert!(error.to_string().ends_with(&remedy), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn check_control_ignores_talk_and_sees_the_end() {
    let mut fake = FakeSwitch::start(Act::Answer);
    let link = open(fake.at(""));
    let mut seen = fake.seen();
    link.check_control().expect("a silent switch");
    seen.stream.write_all(&[0; 100_000]).expect("write");
    let control = link.control_fd().expect("vde has one");
    let nothing = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let waiting = || {
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(control, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&nothing)).expect("poll") > 0
    };
    while waiting() {
        link.check_control().expect("a talking switch");
    }
    drop(seen.stream);
    until("its end is seen", || matches!(link.check_control(), Err(LinkError::Closed)));
}
