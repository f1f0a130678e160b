//! Frames through a real switch and past it.

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use vdeplug::{LinkError, RxBuf, RxFrame, Sent, TxBuf, TxFrame};

use crate::harness::{Act, FakeSwitch, RealSwitch, broadcast, open, receive, send, until};

#[test]
fn c_13_two_plugs_share_a_port() {
    let switch = RealSwitch::start();
    let (a, b, other) = (open(switch.at("[5]")), open(switch.at("[5]")), open(switch.at("")));
    send(&*other, &broadcast(3, 60));
    assert_eq!(receive(&*a), broadcast(3, 60));
    assert_eq!(receive(&*b), broadcast(3, 60));
    send(&*a, &broadcast(1, 60));
    assert_eq!(receive(&*other), broadcast(1, 60));
    // What the switch sends to the port next comes first, so nothing came before it.
    send(&*other, &broadcast(4, 60));
    assert_eq!(receive(&*b), broadcast(4, 60));
}

#[test]
fn c_16_frames_pass_unchanged() {
    let switch = RealSwitch::start();
    let (a, b) = (open(switch.at("")), open(switch.at("")));
    for len in [14, 60, 1514, 1518] {
        send(&*a, &broadcast(1, len));
        assert_eq!(receive(&*b), broadcast(1, len));
        send(&*b, &broadcast(2, len));
        assert_eq!(receive(&*a), broadcast(2, len));
    }
}

#[test]
fn c_16_frames_pass_to_and_from_vde_plug() {
    let switch = RealSwitch::start();
    let ours = open(switch.at(""));
    let mut plug = Command::new("vde_plug")
        .arg(switch.at(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("vde_plug has to be installed (package vdeplug)");
    until("vde_plug plugs in", || switch.plugs() == 2);
    let (mut stdin, mut stdout) = (plug.stdin.take().expect("piped"), plug.stdout.take().expect("piped"));
    // Its stream is a length of two bytes, the high one first, before each frame.
    let stream = |frame: &[u8]| {
        let len = u16::try_from(frame.len()).expect("short").to_be_bytes();
        [&len, frame].concat()
    };
    stdin.write_all(&stream(&broadcast(9, 1514))).expect("write");
    assert_eq!(receive(&*ours), broadcast(9, 1514));
    send(&*ours, &broadcast(1, 1514));
    let mut got = vec![0; 1516];
    stdout.read_exact(&mut got).expect("read");
    assert_eq!(got, stream(&broadcast(1, 1514)));
    plug.kill().expect("kill");
    plug.wait().expect("wait");
}

#[test]
fn send_drops_what_is_no_frame_and_goes_on() {
    let mut fake = FakeSwitch::start(Act::Answer);
    let link = open(fake.at(""));
    let peer = fake.seen().peer.expect("answered");
    let (good, long, short) = (broadcast(1, 60), vec![0; 9235], [0; 13]);
    let parts = [TxBuf::new(&good[..14]), TxBuf::new(&[]), TxBuf::new(&good[14..])];
    let crumbs: Vec<_> = good.iter().map(std::slice::from_ref).map(TxBuf::new).cycle().take(2000).collect();
    let (whole, long, short) = ([TxBuf::new(&good)], [TxBuf::new(&long)], [TxBuf::new(&short)]);
    let batch: [&[TxBuf<'_>]; 8] = [&short, &whole, &long, &[], &parts, &crumbs, &whole, &short];
    let sent = link.send(&batch.map(TxFrame::new)).expect("alive");
    assert_eq!(sent, Sent { taken: 8, dropped: 5, ..Sent::default() });
    let mut room = [0; 100];
    for _ in 0..3 {
        assert_eq!(peer.recv(&mut room).expect("a frame"), 60);
        assert_eq!(room[..60], good);
    }
    assert_eq!(
        link.send(&[TxFrame::new(&short), TxFrame::new(&long)]).expect("alive"),
        Sent { taken: 2, dropped: 2, ..Sent::default() }
    );
    assert_eq!(link.send(&[]).expect("alive"), Sent::default());
}

#[test]
fn recv_batches_and_reports_whole_lengths() {
    let mut fake = FakeSwitch::start(Act::Answer);
    let link = open(fake.at(""));
    let peer = fake.seen().peer.expect("answered");
    assert_eq!(link.recv(&mut []).expect("alive"), 0);
    for frame in [&broadcast(1, 60)[..], &[], &[7], &broadcast(2, 300)] {
        peer.send(frame).expect("send");
    }
    let (mut head, mut tail, mut one, mut two, mut three) = ([0; 14], [0; 50], [0; 64], [0; 64], [0; 64]);
    let split = [RxBuf::new(&mut head), RxBuf::new(&mut tail)];
    let (one_buf, two_buf, three_buf) =
        ([RxBuf::new(&mut one)], [RxBuf::new(&mut two)], [RxBuf::new(&mut three)]);
    let mut frames = [&split[..], &one_buf, &two_buf, &three_buf, &[]].map(RxFrame::new);
    assert_eq!(link.recv(&mut frames).expect("alive"), 4);
    assert_eq!(frames.each_ref().map(|frame| frame.len), [60, 0, 1, 300, 0]);
    assert_eq!(link.recv(&mut frames).expect("alive"), 0);
    assert_eq!(head, broadcast(1, 60)[..14]);
    assert_eq!(tail[..46], broadcast(1, 60)[14..]);
    assert_eq!((two[0], &three[..]), (7, &broadcast(2, 300)[..64]));
}

#[test]
fn long_batches_keep_order() {
    let mut fake = FakeSwitch::start(Act::Answer);
    let link = open(fake.at(""));
    let peer = fake.seen().peer.expect("answered");
    let frames: Vec<_> = (0..150).map(|from| broadcast(from, 60)).collect();
    let pieces: Vec<_> = frames.iter().map(|frame| [TxBuf::new(frame)]).collect();
    let batch: Vec<_> = pieces.iter().map(|pieces| TxFrame::new(pieces)).collect();
    assert_eq!(link.send(&batch).expect("alive"), Sent { taken: 150, ..Sent::default() });
    let mut room = [0; 100];
    for frame in &frames {
        let got = peer.recv(&mut room).expect("a frame");
        assert_eq!(room[..got], frame[..]);
        peer.send(frame).expect("send back");
    }
    let mut rooms = vec![[0; 60]; 200];
    let bufs: Vec<_> = rooms.iter_mut().map(|room| [RxBuf::new(room)]).collect();
    let mut back: Vec<_> = bufs.iter().map(|bufs| RxFrame::new(bufs)).collect();
    assert_eq!(link.recv(&mut back).expect("alive"), 150);
    assert!(rooms.iter().zip(&frames).all(|(room, frame)| room[..] == frame[..]));
}

#[test]
fn slow_switch_takes_some_and_never_blocks() {
    let switch = RealSwitch::start();
    let link = open(switch.at(""));
    switch.signal(Signal::STOP);
    let frame = broadcast(1, 1000);
    let pieces = [TxBuf::new(&frame)];
    let batch = [TxFrame::new(&pieces); 1000];
    let start = Instant::now();
    let sent = link.send(&batch).expect("alive");
    assert!((1..1000).contains(&sent.taken) && sent.dropped == 0, "{sent:?}");
    assert_eq!(link.send(&batch).expect("alive"), Sent::default());
    assert!(start.elapsed() < Duration::from_secs(2));
    let writable = |seconds| {
        let mut fds = [PollFd::from_borrowed_fd(link.data_fd(), PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).expect("poll") > 0
    };
    assert!(!writable(0));
    switch.signal(Signal::CONT);
    assert!(writable(20));
    until("the switch takes the rest", || link.send(&batch[..1]).expect("alive").taken == 1);
}

#[test]
fn data_fd_of_a_dead_switch_is_not_readable() {
    let mut switch = RealSwitch::start();
    let link = open(switch.at(""));
    switch.kill();
    let mut fds = [PollFd::from_borrowed_fd(link.data_fd(), PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll"), 0);
    let mut room = [0; 60];
    let bufs = [RxBuf::new(&mut room)];
    assert_eq!(link.recv(&mut [RxFrame::new(&bufs)]).expect("quiet"), 0);
    let frame = broadcast(1, 60);
    assert!(matches!(link.send(&[TxFrame::new(&[TxBuf::new(&frame)])]), Err(LinkError::Closed)));
}
