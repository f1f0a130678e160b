//! `cmd://`: programs at the other end of a byte stream, among them Debian's `vde_plug`.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use vdeplug::{Link, LinkError, OpenErrorKind, RxBuf, RxFrame, Sent, TxBuf, TxFrame};

use crate::harness::{
    LONG, RealSwitch, broadcast, impatient, open, open_dir, readable, receive, send, until,
};

/// The process whose number is in a file that a shell wrote.
fn process(file: &Path) -> Pid {
    let mut pid = None;
    until("the shell writes its number", || {
        let text = fs::read_to_string(file).unwrap_or_default();
        pid = text.strip_suffix('\n').and_then(|text| text.parse().ok()).and_then(Pid::from_raw);
        pid.is_some()
    });
    pid.expect("found above")
}

fn offer(link: &dyn Link, frame: &[u8], count: usize) -> Sent {
    let pieces = [TxBuf::new(frame)];
    link.send(&vec![TxFrame::new(&pieces); count]).expect("a living command")
}

/// A program that writes these lengths, each with as many bytes behind it, with a pause between pieces of so many bytes.
fn writer(lens: &[usize], piece: usize, pause: &str) -> String {
    let lens = lens.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    format!(
        "perl -e 'my $s = join(\"\", map {{ pack(\"n\", $_) . (\"x\" x $_) }} ({lens})); \
         while (length $s) {{ syswrite(STDOUT, substr($s, 0, {piece}, \"\")); select(undef, undef, undef, {pause}) }} \
         sleep 100'"
    )
}

#[test]
fn vde_plug_as_the_command() {
    let switch = RealSwitch::start();
    let other = open(switch.at(""));
    let link = open(format!("cmd://vde_plug '{}'", switch.at("")));
    until("vde_plug plugs in", || switch.plugs() == 2);
    for len in [60, 1514] {
        send(&*link, &broadcast(1, len));
        assert_eq!(receive(&*other), broadcast(1, len));
        send(&*other, &broadcast(2, len));
        assert_eq!(receive(&*link), broadcast(2, len));
    }
    link.check_control().expect("it lives");
    drop(link);
    until("vde_plug is gone", || switch.plugs() == 1);
}

#[test]
fn c_26_lengths_of_the_stream() {
    let link = open(format!("cmd://{}", writer(&[0, 60, 9234, 9236, 9237, 61, 13, 62], 100_000, "0")));
    for len in [60, 9234, 9236, 61, 62] {
        assert_eq!(receive(&*link), vec![b'x'; len]);
    }
    // One that is too long, one that is no frame.
    assert_eq!(link.stats().total.rx_dropped, 2);
}

#[test]
fn c_27_stream_byte_by_byte() {
    let link = open(format!("cmd://{}", writer(&[14, 60, 15], 1, "0.01")));
    for len in [14, 60, 15] {
        let mut room = [0; 100];
        let mut got = 0;
        while got == 0 {
            assert!(readable(link.data_fd()), "no byte came");
            let bufs = [RxBuf::new(&mut room)];
            got = link.recv(&mut [RxFrame::new(&bufs)]).expect("a living command");
        }
        assert_eq!(room[..len], vec![b'x'; len]);
        assert_eq!(room[len], 0);
    }
}

#[test]
fn frames_that_were_not_asked_for_stay() {
    let link = open("cmd://cat");
    for from in 0..10 {
        send(&*link, &broadcast(from, 100));
    }
    // One at a time: the descriptor shows each of them.
    for from in 0..10 {
        assert_eq!(receive(&*link), broadcast(from, 100));
    }
}

#[test]
fn slow_commands_take_some_and_lose_nothing() {
    let home = open_dir();
    let (pid, go) = (home.path().join("pid"), home.path().join("go"));
    mkfifoat(CWD, &go, Mode::RUSR | Mode::WUSR).expect("mkfifo");
    let link =
        open(format!("cmd://sh -c \"echo $$ >{}; read line <{}; exec cat\"", pid.display(), go.display()));
    let _ = process(&pid);
    let start = Instant::now();
    let frame = broadcast(7, 1514);
    let sent = offer(&*link, &frame, 1000);
    assert!((1..1000).contains(&sent.taken) && sent.dropped == 0, "{sent:?}");
    assert_eq!(offer(&*link, &frame, 1), Sent::default());
    assert!(start.elapsed() < Duration::from_secs(5), "it waited");
    fs::write(&go, "go\n").expect("the shell waits");
    let (mut left, mut back) = (1000 - sent.taken, 0);
    until("all come back", || {
        left -= offer(&*link, &frame, left.min(50)).taken;
        let mut rooms = vec![[0; 2000]; 20];
        let bufs: Vec<_> = rooms.iter_mut().map(|room| [RxBuf::new(room)]).collect();
        let mut frames: Vec<_> = bufs.iter().map(|bufs| RxFrame::new(bufs)).collect();
        let got = link.recv(&mut frames).expect("a living command");
        assert!(frames[..got].iter().all(|frame| frame.len == 1514));
        back += got;
        back == 1000
    });
}

#[test]
fn end_of_the_command_is_the_end_of_the_link() {
    for command in ["true", "false", "sh -c 'exit 3'", "sh -c 'kill -9 $$'"] {
        let link = open(format!("cmd://{command}"));
        assert!(readable(link.control_fd().expect("cmd has one")));
        assert!(matches!(link.check_control(), Err(LinkError::Closed)), "{command}");
        let mut room = [0; 100];
        let bufs = [RxBuf::new(&mut room)];
        // A child that another test is starting has the other end, too, until it is a program.
        let is_over = || matches!(link.recv(&mut [RxFrame::new(&bufs)]), Err(LinkError::Closed));
        until("the end of the other end", is_over);
        let frame = broadcast(1, 60);
        assert!(matches!(link.send(&[TxFrame::new(&[TxBuf::new(&frame)])]), Err(LinkError::Closed)));
    }
}

#[test]
fn end_of_the_link_is_the_end_of_the_command() {
    let home = open_dir();
    for (name, patience, script) in [
        // One that does not care for its input, and one that does not care for SIGTERM either.
        ("mild", Duration::from_secs(5), "exec sleep 1000"),
        ("stubborn", Duration::from_secs(8), "trap '' TERM; while :; do sleep 0.1; done"),
    ] {
        let file = home.path().join(name);
        let link = open(format!("cmd://sh -c \"echo $$ >{}; {script}\"", file.display()));
        let pid = process(&file);
        test_kill_process(pid).expect("it lives");
        let start = Instant::now();
        drop(link);
        assert!(start.elapsed() < patience, "{name}: {:?}", start.elapsed());
        test_kill_process(pid).expect_err("gone, and waited for");
    }
}

#[test]
fn stopped_command_is_killed() {
    let home = open_dir();
    let file = home.path().join("pid");
    let link = open(format!("cmd://sh -c \"echo $$ >{}; exec sleep 1000\"", file.display()));
    let pid = process(&file);
    kill_process(pid, Signal::STOP).expect("kill");
    let start = Instant::now();
    drop(link);
    assert!(start.elapsed() < LONG);
    test_kill_process(pid).expect_err("gone, and waited for");
}

#[test]
fn commands_that_cannot_be_are_named() {
    for (locator, message, kind) in [
        ("cmd://", "cmd:// names no program", OpenErrorKind::Usage),
        ("cmd://   ", "cmd:// names no program", OpenErrorKind::Usage),
        ("cmd://no-such-program -x", "cannot start \"no-such-program\"", OpenErrorKind::NotFound),
        ("cmd:///etc/passwd", "cannot start \"/etc/passwd\"", OpenErrorKind::Permission),
        ("cmd://cat 'x", "character 5: this quote is never closed", OpenErrorKind::Usage),
    ] {
        let error = vdeplug::open(locator, &impatient()).expect_err(locator);
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.kind(), kind, "{error}");
        assert_ne!(error.errno(), 0, "{error}");
    }
}
