//! `tap://` against the kernel.

use std::collections::HashSet;
use std::net::UdpSocket;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vdeplug::{Header, LinkError, OpenErrorKind, OpenOptions, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::harness::{NOBODY, as_user, in_child, until};
use crate::kernel::{
    OTHER_MAC, Space, Udp, next_udp, open_free, open_in, poll_next, refused_in, send_with, sent_until, talk,
};

#[test]
fn tap_carries_frames_both_ways() {
    for offloads in [false, true] {
        let space = Space::new();
        let link = open_in(&space, "tap://t0[mtu=9000/mac=02:00:00:00:00:01/up]", offloads);
        assert_eq!(space.mac("t0"), [2, 0, 0, 0, 0, 1]);
        assert!(space.ip("link show dev t0").contains("mtu 9000"));
        assert_eq!(link.offloads(), offloads);
        talk(&*link, &space, "t0", offloads);
        let stats = link.stats().total;
        assert!(stats.tx_frames >= 2 && stats.tx_dropped == 0);
        assert!(stats.rx_frames >= 1 && stats.rx_bytes >= 57);
        drop(link);
        until("the interface goes", || space.interfaces().is_empty());
    }
}

#[test]
fn tap_without_a_name_gets_one() {
    let space = Space::new();
    let links = [open_in(&space, "tap://", false), open_in(&space, "tap://", false)];
    assert_eq!(space.interfaces(), ["tap0", "tap1"]);
    assert!(format!("{links:?}").contains(r#"name: "tap1""#));
}

#[test]
fn tap_in_a_namespace_has_its_cable_here() {
    let (here, there) = (Space::new(), Space::new());
    let netns = there.quoted();
    let link = open_in(&here, format!("tap://t0[netns={netns}/up]"), true);
    assert_eq!((here.interfaces(), there.interfaces()), (vec![], vec!["t0".to_owned()]));
    talk(&*link, &there, "t0", true);
    let error = refused_in(&here, format!("tap://t0[netns={netns}]"));
    assert_eq!(error.kind(), OpenErrorKind::Unavailable, "{error}");
    drop(link);
    // Not at once: a process that another test is just starting has the descriptor too, until it becomes its program.
    until("the interface goes", || there.interfaces().is_empty());
    // What is there already is found there.
    let queues = [0, 1].map(|_| open_in(&here, format!("tap://t0[netns={netns}/multi/persist]"), true));
    assert_eq!((here.interfaces(), there.interfaces()), (vec![], vec!["t0".to_owned()]));
    drop(queues);
    open_in(&here, format!("tap://t0[netns={netns}/multi]"), true);
    assert_eq!(there.interfaces(), ["t0"]);
}

#[test]
fn tap_that_is_down_drops_and_comes_up_again() {
    let space = Space::new();
    let link = open_in(&space, "tap://t0", false);
    let udp = Udp::new([0xff; 6], b"lost").complete();
    assert!(!send_with(&*link, Header::NONE, &udp));
    assert_eq!(link.stats().total.tx_dropped, 1);
    assert!(link.check_control().is_ok());
    space.ip("link set t0 up");
    talk(&*link, &space, "t0", false);
    space.ip("link set t0 down");
    assert!(!send_with(&*link, Header::NONE, &udp));
    let mut room = [0; 100];
    let bufs = [RxBuf::new(&mut room)];
    link.recv(&mut [RxFrame::new(&bufs)]).expect("alive");
}

#[test]
fn tap_that_is_removed_is_closed() {
    let space = Space::new();
    let link = open_in(&space, "tap://t0[up]", false);
    space.ip("link del t0");
    let mut fds = [PollFd::from_borrowed_fd(link.data_fd(), PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&Timespec { tv_sec: 20, tv_nsec: 0 })).expect("poll"), 1);
    let mut room = [0; 100];
    let bufs = [RxBuf::new(&mut room)];
    assert!(matches!(link.recv(&mut [RxFrame::new(&bufs)]), Err(LinkError::Closed)));
    let frame = [0xff; 60];
    assert!(matches!(link.send(&[TxFrame::new(&[TxBuf::new(&frame)])]), Err(LinkError::Closed)));
}

#[test]
fn tap_frame_without_enough_room_is_cut() {
    let space = Space::new();
    let link = open_in(&space, "tap://t0[up]", false);
    space.address("t0");
    let socket = space.socket();
    let recv = |room: &mut [u8]| {
        let (first, second) = room.split_at_mut(20);
        let bufs = [RxBuf::new(first), RxBuf::new(second)];
        let mut frames = [RxFrame::new(&bufs)];
        until("a frame of UDP comes", || link.recv(&mut frames).expect("alive") == 1 && frames[0].len > 600);
        frames[0].len
    };
    for (room, cut) in [(1041, true), (1042, false), (2000, false), (700, true)] {
        socket.send(&[7; 1000]).expect("send");
        let mut room = vec![0; room];
        let len = recv(&mut room);
        assert_eq!(len > room.len(), cut, "{len} in {}", room.len());
        assert!(cut || (len == 1042 && room[42..1042] == [7; 1000]));
    }
}

#[test]
fn tap_with_bad_frames_goes_on() {
    let space = Space::new();
    let link = open_in(&space, "tap://t0[up]", true);
    let udp = Udp::new([0xff; 6], b"good");
    let (partial, frame) = udp.partial();
    let long = vec![0xff; 70_000];
    for (header, frame) in [
        (Header::NONE, &frame[..13]),
        (Header::NONE, &long[..]),
        (Header { gso_type: 1, gso_size: 100, ..partial }, &long[..]),
        (Header { gso_type: 77, gso_size: 100, ..partial }, &frame[..]),
        (Header { csum_start: 60_000, ..partial }, &frame[..]),
    ] {
        let pieces = [TxBuf::new(frame)];
        let sent = link.send(&[TxFrame { header, ..TxFrame::new(&pieces) }]).expect("alive");
        assert_eq!((sent.taken, sent.dropped), (1, 1), "{header:?}");
    }
    assert_eq!(link.stats().total.tx_dropped, 5);
    assert!(send_with(&*link, Header::NONE, &udp.complete()));
}

#[test]
fn tap_with_several_queues_is_one_interface() {
    let space = Space::new();
    let links = [0, 1].map(|_| open_in(&space, "tap://t0[multi/up]", true));
    assert_eq!(space.interfaces(), ["t0"]);
    space.address("t0");
    // Either queue takes frames for the kernel.
    let mac = space.mac("t0");
    let socket = space.socket();
    for (number, link) in links.iter().enumerate() {
        let udp = Udp::new(mac, &[7; 5][..=number]).complete();
        let mut room = [0; 10];
        let arrived = || (socket.recv(&mut room).ok()? == number + 1).then_some(());
        sent_until(|| assert!(send_with(&**link, Header::NONE, &udp)), arrived);
    }
    // Of many flows some come out of each.
    let sockets: Vec<UdpSocket> =
        (0..64).map(|_| space.run(|| UdpSocket::bind("10.9.0.1:0").expect("bind"))).collect();
    let mut queues = HashSet::new();
    until("frames come out of both queues", || {
        for socket in &sockets {
            socket.send_to(b"out", "10.9.0.2:6000").expect("send");
        }
        for (number, link) in links.iter().enumerate() {
            let mut room = [0; 100];
            let bufs = [RxBuf::new(&mut room)];
            let mut frames = [RxFrame::new(&bufs)];
            while link.recv(&mut frames).expect("alive") == 1 {
                queues.insert(number);
            }
        }
        queues.len() == 2
    });
    let [first, second] = links;
    drop(first);
    assert_eq!(space.interfaces(), ["t0"]);
    talk_on(&*second, &space);
    let error = refused_in(&space, "tap://t0");
    assert!(error.to_string().contains("can be opened without [multi]; open it with [multi]"), "{error}");
    assert_eq!(error.kind(), OpenErrorKind::Usage);
}

/// The last queue that is left gets everything.
fn talk_on(link: &dyn vdeplug::Link, space: &Space) {
    space.run(|| {
        UdpSocket::bind("10.9.0.1:4001").expect("bind").send_to(b"last", "10.9.0.2:6000").expect("send")
    });
    until("it comes out", || {
        let (_, frame) = next_udp(link);
        frame[..6] == OTHER_MAC && frame.ends_with(b"last")
    });
}

#[test]
fn tap_in_use_and_no_tap_are_told_apart() {
    let space = Space::new();
    let _link = open_in(&space, "tap://t0", false);
    let error = refused_in(&space, "tap://t0");
    assert!(error.to_string().starts_with(r#"the tap "t0" is in use by another program"#), "{error}");
    assert_eq!(error.kind(), OpenErrorKind::Unavailable);
    space.ip("link add v0 type veth peer name v1");
    for locator in ["tap://v0", "tap://t0[multi]"] {
        let error = refused_in(&space, locator);
        assert!(error.to_string().contains("is no tap that can be opened with"), "{locator}: {error}");
        assert_eq!(error.kind(), OpenErrorKind::Usage);
    }
    for (locator, word) in [
        ("tap://a/b", r#""a/b" can name no interface"#),
        ("tap://sixteen-letters-", "can name no interface"),
        ("tap://t1[mtu=many]", "character 4: mtu=many makes no sense; write a number of bytes"),
        ("tap://t1[up=no]", "up=no makes no sense; write the word alone"),
        ("tap://t1[mac=1]", "mac=1 makes no sense; write six pairs"),
        (
            "tap://t1[zzz]",
            "there is no option \"zzz\"; the options are mtu, mac, up, netns, multi and persist",
        ),
        ("tap://t1[netns=no-such-space]", r#"there is no network namespace "no-such-space"; use a name"#),
    ] {
        let error = refused_in(&space, locator);
        assert!(error.to_string().contains(word), "{locator}: {error}");
    }
    assert_eq!(space.interfaces(), ["t0", "v1", "v0"]);
}

#[test]
fn tap_stays_if_it_is_to() {
    let space = Space::new();
    drop(open_in(&space, "tap://t0[persist/up]", true));
    assert_eq!(space.interfaces(), ["t0"]);
    let link = open_in(&space, "tap://t0", false);
    talk(&*link, &space, "t0", false);
    drop(link);
    assert_eq!(space.interfaces(), ["t0"]);
}

#[test]
fn tap_of_a_user_needs_no_privilege() {
    let space = Space::new();
    space.ip(&format!("tuntap add dev mine mode tap user {NOBODY} vnet_hdr"));
    space.ip("tuntap add dev other mode tap user 1");
    let open = |locator: &'static str| {
        space.run(move || as_user(NOBODY, &[], move || open_free(locator, &OpenOptions::default())))
    };
    open("tap://mine").expect("its owner's");
    for (locator, word) in [
        ("tap://other", r#"no permission to use the tap "other"; become the user that it was made for"#),
        ("tap://new", r#"no permission to make the tap "new"; that needs root or CAP_NET_ADMIN"#),
        ("tap://mine[up]", r#"no permission to configure the tap "mine"; that needs root or CAP_NET_ADMIN"#),
    ] {
        let error = open(locator).expect_err(locator);
        assert!(error.to_string().starts_with(word), "{error}");
        assert_eq!(error.kind(), OpenErrorKind::Permission);
    }
    assert_eq!(space.interfaces(), ["mine", "other"]);
}

#[test]
fn taps_meet_across_a_vxlan() {
    let (home, x, y) = (Space::new(), Space::new(), Space::new());
    // What two machines have between them.
    x.ip("link add u0 type veth peer name u1");
    x.ip(&format!("link set u1 netns {}", y.path()));
    let links = [(&x, "u0", 1, 2), (&y, "u1", 2, 1)].map(|(space, wire, local, remote)| {
        space.ip(&format!("addr add 172.16.0.{local}/24 dev {wire}"));
        space.ip(&format!("link set {wire} up"));
        let link = open_in(&home, format!("tap://t0[netns={}]", space.quoted()), true);
        space.ip("link add br0 type bridge");
        let ends = format!("local 172.16.0.{local} remote 172.16.0.{remote}");
        space.ip(&format!("link add vx0 type vxlan id 7 dstport 4789 {ends}"));
        space.ip("link set vx0 master br0 up");
        space.ip("link set t0 master br0 mtu 1450 up");
        space.ip("link set br0 up");
        link
    });
    let udp = Udp::new([0xff; 6], &[7; 1400]);
    let (header, partial) = udp.partial();
    for (from, to) in [(0, 1), (1, 0)] {
        let arrived =
            || std::iter::from_fn(|| poll_next(&*links[to])).find(|(_, frame)| frame.ends_with(&[7; 1400]));
        let send = || assert!(send_with(&*links[from], header, &partial));
        let (header, mut frame) = sent_until(send, arrived);
        // Whether the kernel completed it on the way is its own affair.
        offload::complete(&header, &mut frame).expect("fits");
        assert_eq!(frame, udp.complete());
    }
}

#[test]
fn taps_and_veths_leave_no_descriptor() {
    in_child(
        "kernel_tap::taps_and_veths_leave_no_descriptor",
        |command| command,
        || {
            let space = Space::new();
            let descriptors = || std::fs::read_dir("/proc/self/fd").expect("/proc").count();
            let before = descriptors();
            for offloads in [false, true] {
                for locator in ["tap://t0[up]", "veth://v0[peer=v1/up]"] {
                    let link = open_in(&space, locator, offloads);
                    for fd in [Some(link.data_fd()), link.control_fd()].into_iter().flatten() {
                        let flags = rustix::io::fcntl_getfd(fd).expect("fcntl");
                        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
                        let status = rustix::fs::fcntl_getfl(fd).expect("fcntl");
                        assert!(status.contains(rustix::fs::OFlags::NONBLOCK));
                    }
                }
                refused_in(&space, "tap://lo");
                refused_in(&space, "veth://lo");
                refused_in(&space, "veth://v0[peer=lo]");
            }
            assert_eq!(descriptors(), before);
            assert_eq!(space.interfaces(), [""; 0]);
        },
    );
}
