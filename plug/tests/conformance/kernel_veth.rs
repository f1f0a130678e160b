//! `veth://` against the kernel: pairs that are made, interfaces that are there.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use vdeplug::{Header, LinkError, OpenErrorKind, OpenOptions, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::harness::{NOBODY, as_user, readable, this_program, until};
use crate::kernel::{
    OTHER_MAC, Space, Udp, is_complete, next, next_udp, open_in, poll_next, refused_in, send_with,
    sent_until, talk,
};

#[test]
fn veth_carries_frames_both_ways() {
    for offloads in [false, true] {
        let (here, there) = (Space::new(), Space::new());
        let netns = there.quoted();
        let locator = format!("veth://v0[peer=eth0/netns={netns}/mtu=9000/mac=02:00:00:00:00:01/up]");
        let link = open_in(&here, locator, offloads);
        assert_eq!((here.interfaces(), there.interfaces()), (vec!["v0".to_owned()], vec!["eth0".to_owned()]));
        assert_eq!(there.mac("eth0"), [2, 0, 0, 0, 0, 1]);
        assert_eq!((link.max_frame(), link.offloads()), (9018, offloads));
        for (space, name) in [(&here, "v0"), (&there, "eth0")] {
            let text = space.ip(&format!("link show dev {name}"));
            assert!(text.contains("mtu 9000") && text.contains(",UP"), "{text}");
        }
        talk(&*link, &there, "eth0", offloads);
        drop(link);
        assert_eq!((here.interfaces(), there.interfaces()), (vec![], vec![]));
    }
}

#[test]
fn veth_peer_is_in_the_namespace_by_any_of_its_names() {
    let here = Space::new();
    // The name of the process whose namespace it is, and a name that `ip netns` would give.
    let mut sleeper =
        Command::new("unshare").args(["-n", "sleep", "1000"]).spawn().expect("unshare and sleep");
    let pid = sleeper.id();
    let ours = std::fs::read_link("/proc/self/ns/net").expect("our namespace");
    let theirs = format!("/proc/{pid}/ns/net");
    until("the process has its namespace", || std::fs::read_link(&theirs).is_ok_and(|it| it != ours));
    let name = format!("vdeplug-test-{pid}");
    here.ip(&format!("netns attach {name} {pid}"));
    for netns in [pid.to_string(), name.clone(), format!("/run/netns/{name}").replace('/', "%2f")] {
        let link = open_in(&here, format!("veth://v0[netns={netns}]"), true);
        let peers = here.ip(&format!("-n {name} -o link"));
        assert!(peers.contains("v0@"), "{netns}: {peers}");
        drop(link);
    }
    here.ip(&format!("netns del {name}"));
    sleeper.kill().expect("kill");
    sleeper.wait().expect("wait");
}

#[test]
fn veth_end_of_ours_is_none_of_this_machine() {
    let (here, there) = (Space::new(), Space::new());
    // An address of this machine, for which it would answer on any interface.
    here.ip("link set lo up");
    here.ip("addr add 10.9.0.7/32 dev lo");
    let link = open_in(&here, format!("veth://v0[netns={}/up]", there.quoted()), false);
    assert!(!here.ip("addr show dev v0").contains("inet"));
    there.ip("addr add 10.9.0.1/24 dev v0");
    there.run(|| {
        let socket = std::net::UdpSocket::bind("10.9.0.1:0").expect("bind");
        socket.send_to(b"who are you", "10.9.0.7:9").expect("send");
    });
    // The kernel answers in the course of what brings the question to us.
    until("the question comes", || next(&*link).1[12..14] == [8, 6]);
    let neighbours = there.ip("neigh show dev v0");
    assert!(neighbours.contains("10.9.0.7") && !neighbours.contains("lladdr"), "{neighbours}");
}

#[test]
fn veth_down_drops_and_removed_is_closed() {
    let (here, there) = (Space::new(), Space::new());
    for offloads in [false, true] {
        let link = open_in(&here, format!("veth://v0[netns={}/up]", there.quoted()), offloads);
        let udp = Udp::new([0xff; 6], b"lost").complete();
        let mut room = [0; 100];
        let bufs = [RxBuf::new(&mut room)];
        let alive = || {
            link.recv(&mut [RxFrame::new(&bufs)]).expect("alive");
            link.check_control().expect("alive");
        };
        here.ip("link set v0 down");
        assert!(!send_with(&*link, Header::NONE, &udp));
        alive();
        here.ip("link set v0 up");
        assert!(send_with(&*link, Header::NONE, &udp));
        assert_eq!(link.stats().total.tx_dropped, 1);
        // Nobody takes it now, which the kernel says at first and soon no more.
        there.ip("link set v0 down");
        send_with(&*link, Header::NONE, &udp);
        alive();
        there.ip("link set v0 up");
        talk(&*link, &there, "v0", offloads);
        there.ip("link del v0");
        let control = link.control_fd().expect("veth has one");
        until("the end is told", || readable(control) && link.check_control().is_err());
        assert!(matches!(link.check_control(), Err(LinkError::Closed)));
        assert!(matches!(link.send(&[TxFrame::new(&[TxBuf::new(&udp)])]), Err(LinkError::Closed)));
        // What came before, and then nothing.
        until("it is quiet", || link.recv(&mut [RxFrame::new(&bufs)]).expect("no error") == 0);
    }
}

#[test]
fn veth_mtu_is_followed() {
    let (here, there) = (Space::new(), Space::new());
    let link = open_in(&here, format!("veth://v0[netns={}/up]", there.quoted()), true);
    let jumbo = Udp::new([0xff; 6], &[7; 3000]).complete();
    assert_eq!(link.max_frame(), 1518);
    assert!(!send_with(&*link, Header::NONE, &jumbo));
    there.ip("link set v0 mtu 4000");
    here.ip("link set v0 mtu 4000");
    until("the new MTU is told", || {
        assert!(readable(link.control_fd().expect("veth has one")));
        link.check_control().expect("alive");
        link.max_frame() == 4018
    });
    assert!(send_with(&*link, Header::NONE, &jumbo));
}

#[test]
fn veth_attaches_to_what_is_there() {
    let here = Space::new();
    // A bridge with a port, whose other end is an interface of the kernel's.
    here.ip("link add br0 type bridge");
    here.ip("link set br0 up");
    here.ip("link add v0 type veth peer name v1");
    here.ip("link set v0 master br0");
    here.ip("link set v0 up");
    for offloads in [false, true] {
        let link = open_in(&here, "veth://v1[up/mtu=1400]", offloads);
        assert_eq!(link.max_frame(), 1418);
        talk(&*link, &here, "br0", offloads);
    }
    assert_eq!(here.interfaces(), ["br0", "v1", "v0"]);
    assert!(here.ip("link show dev v1").contains("mtu 1400"));
}

#[test]
fn veth_vlan_tags_pass_both_ways() {
    let here = Space::new();
    let outer = [0x88, 0xa8, 0x20, 5];
    for offloads in [false, true] {
        // Both ends of one pair are links of ours.
        let a = open_in(&here, "veth://v0[peer=v1/up]", true);
        let b = open_in(&here, "veth://v1", offloads);
        for tags in [vec![], vec![[0x81, 0, 0x60, 7]], vec![outer, [0x81, 0, 0, 7]]] {
            let udp = Udp { tags, ..Udp::new(OTHER_MAC, &[9; 1200]) };
            let (header, partial) = udp.partial();
            let ours = |frame: &[u8]| frame[..6] == OTHER_MAC;
            let next = || loop {
                let (header, frame) = next(&*b);
                if ours(&frame) {
                    return (header, frame);
                }
            };
            assert!(send_with(&*a, Header::NONE, &udp.complete()));
            assert_eq!(next(), (Header::NONE, udp.complete()));
            assert!(send_with(&*a, header, &partial));
            let (got, frame) = next();
            if offloads {
                assert_eq!(
                    (got.flags, got.csum_start, got.csum_offset),
                    (header.flags, header.csum_start, 6)
                );
                assert_eq!(frame, partial);
            } else {
                assert_eq!((got, frame), (Header::NONE, udp.complete()));
            }
        }
    }
}

#[test]
fn veth_tagged_frame_in_tight_rooms() {
    let here = Space::new();
    for offloads in [false, true] {
        let a = open_in(&here, "veth://v0[peer=v1/up]", true);
        let b = open_in(&here, "veth://v1", offloads);
        let udp = Udp { tags: vec![[0x81, 0, 0, 7]], ..Udp::new(OTHER_MAC, &[9; 1200]) }.complete();
        for (missing, split) in [(0, 1), (0, 13), (0, 15), (0, 300), (1, 13), (4, 300), (1000, 7)] {
            assert!(send_with(&*a, Header::NONE, &udp));
            let mut room = vec![0; udp.len() - missing];
            let (first, second) = room.split_at_mut(split);
            let bufs = [RxBuf::new(first), RxBuf::new(second)];
            let mut frames = [RxFrame::new(&bufs)];
            until("the frame comes", || {
                assert!(readable(b.data_fd()));
                b.recv(&mut frames).expect("alive") == 1 && frames[0].len == udp.len()
            });
            assert!(missing > 0 || room == udp, "{missing} {split}");
        }
    }
}

#[test]
fn veth_sees_nothing_from_before_and_nothing_of_its_own() {
    let here = Space::new();
    here.ip("link add v0 type veth peer name v1");
    here.ip("link set v0 up");
    here.ip("link set v1 up");
    let (a, b) = (open_in(&here, "veth://v0", true), open_in(&here, "veth://v1", true));
    let early = Udp::new(OTHER_MAC, b"early").complete();
    sent_until(
        || assert!(send_with(&*a, Header::NONE, &early)),
        || poll_next(&*b).filter(|(_, frame)| *frame == early),
    );
    // A second link on the end that sent, and one on the end that received: neither sees that frame.
    let late = [open_in(&here, "veth://v0", true), open_in(&here, "veth://v1", true)];
    assert!(send_with(&*a, Header::NONE, &Udp::new(OTHER_MAC, b"late").complete()));
    assert!(next_udp(&*late[1]).1.ends_with(b"late"));
    assert!(send_with(&*b, Header::NONE, &Udp::new(OTHER_MAC, b"back").complete()));
    for link in [&a, &late[0]] {
        assert!(next_udp(&**link).1.ends_with(b"back"));
    }
}

#[test]
fn veth_batches_pass_whole_and_in_order() {
    let here = Space::new();
    for offloads in [false, true] {
        let a = open_in(&here, "veth://v0[peer=v1/up]", true);
        let b = open_in(&here, "veth://v1", offloads);
        let frames: Vec<_> = (0..150_u8).map(|n| Udp::new(OTHER_MAC, &[n; 100]).complete()).collect();
        let pieces: Vec<_> =
            frames.iter().map(|frame| [TxBuf::new(&frame[..20]), TxBuf::new(&frame[20..])]).collect();
        let batch: Vec<_> = pieces.iter().map(|pieces| TxFrame::new(pieces)).collect();
        let sent = a.send(&batch).expect("alive");
        assert_eq!((sent.taken, sent.dropped), (150, 0));
        let mut rooms = vec![[0; 200]; 200];
        let bufs: Vec<_> = rooms.iter_mut().map(|room| [RxBuf::new(room)]).collect();
        let mut back: Vec<_> = bufs.iter().map(|bufs| RxFrame::new(bufs)).collect();
        let got = b.recv(&mut back).expect("alive");
        let lens: Vec<_> = back[..got].iter().map(|frame| frame.len).collect();
        let ours = lens.iter().zip(&rooms).filter(|(_, room)| room[..6] == OTHER_MAC);
        let got: Vec<_> = ours.map(|(len, room)| room[..*len].to_vec()).collect();
        assert_eq!(got, frames);
        assert!(is_complete(&got[149]));
    }
}

#[test]
fn veth_errors_say_what_is_wrong_and_leave_nothing() {
    let (here, there) = (Space::new(), Space::new());
    there.ip("link add taken type veth peer name other");
    here.ip("link add v0 type veth peer name v1");
    here.ip(&format!("link add far type veth peer name far netns {}", std::process::id()));
    let netns = there.quoted();
    let before = (here.interfaces(), there.interfaces());
    for (locator, kind, word) in [
        ("veth://", OpenErrorKind::Usage, r#""" can name no interface"#),
        ("veth://a%25d[peer=b]", OpenErrorKind::Usage, r#""a%d" can name no interface"#),
        ("veth://a[peer=]", OpenErrorKind::Usage, r#""" can name no interface"#),
        (
            "veth://a",
            OpenErrorKind::NotFound,
            "there is no interface \"a\"; use one that `ip link` lists, or write",
        ),
        ("veth://lo", OpenErrorKind::Usage, r#"the interface "lo" carries no Ethernet frames"#),
        ("veth://a[peer=v0]", OpenErrorKind::Refused, r#"there is an interface "v0" already; choose"#),
        ("veth://v0[peer=a]", OpenErrorKind::Refused, r#"it is not the other end of "a"; leave peer= and"#),
        ("veth://far[peer=far]", OpenErrorKind::Refused, r#"it is not the other end of "far""#),
        ("veth://a[netns=0]", OpenErrorKind::NotFound, r#"there is no network namespace "0""#),
        ("veth://a[netns='/dev/null']", OpenErrorKind::NotFound, r#""/dev/null" is no network namespace"#),
        ("veth://a[peer=b/mtu=67]", OpenErrorKind::Usage, "character 10: mtu=67 makes no sense"),
        ("veth://a[nets=1]", OpenErrorKind::Usage, "the options are peer, netns, mtu, mac, up and persist"),
        (
            &format!("veth://a[peer=taken/netns={netns}]"),
            OpenErrorKind::Refused,
            "\"taken\" already in the network",
        ),
        (&format!("veth://v0[peer=v1/netns={netns}]"), OpenErrorKind::Refused, "in the network namespace"),
        (
            &format!("veth://far[netns={netns}]"),
            OpenErrorKind::Refused,
            "it is not the other end of \"far\" in the",
        ),
    ] {
        let error = refused_in(&here, locator);
        assert!(error.to_string().contains(word), "{locator}: {error}");
        assert_eq!(error.kind(), kind, "{locator}: {error}");
    }
    assert_eq!((here.interfaces(), there.interfaces()), before);
    here.ip("link del far");
}

#[test]
fn veth_needs_privileges_and_says_so() {
    let here = Space::new();
    here.ip("link add v0 type veth peer name v1");
    let open = |locator: &'static str| {
        here.run(move || as_user(NOBODY, &[], move || vdeplug::open(locator, &OpenOptions::default())))
    };
    for (locator, word) in [
        ("veth://a[peer=b]", r#"no permission to make the pair of veth "a" and "b"; that needs root"#),
        ("veth://v0", r#"no permission to read the interface "v0"; that needs root or CAP_NET_RAW"#),
        ("veth://a[netns=1]", r#"no permission to enter the network namespace "1"; that needs root"#),
    ] {
        let error = open(locator).expect_err(locator);
        assert!(error.to_string().starts_with(word), "{error}");
        assert_eq!(error.kind(), OpenErrorKind::Permission);
    }
}

#[test]
fn veth_stays_if_it_is_to_and_is_used_again() {
    let (here, there) = (Space::new(), Space::new());
    let locator = format!("veth://v0[netns={}/up/persist]", there.quoted());
    for _ in 0..2 {
        let link = open_in(&here, &locator, true);
        talk(&*link, &there, "v0", true);
        drop(link);
        assert_eq!((here.interfaces(), there.interfaces()), (vec!["v0".to_owned()], vec!["v0".to_owned()]));
    }
    // Who says nothing of it does not remove it either.
    drop(open_in(&here, format!("veth://v0[netns={}]", there.quoted()), true));
    assert_eq!(here.interfaces(), ["v0"]);
}

#[test]
fn veth_of_a_killed_process_is_taken_over_once() {
    const LOCATOR: &str = "veth://v0[peer=v1/up]";
    const TEST: &str = "kernel_veth::veth_of_a_killed_process_is_taken_over_once";
    if std::env::var_os("VDEPLUG_TEST_VICTIM").is_some() {
        let _link = vdeplug::open(LOCATOR, &OpenOptions::default()).expect("a pair");
        println!("\nready");
        loop {
            std::thread::park();
        }
    }
    let here = Space::new();
    let mut victim = here.run(|| {
        let mut command = Command::new(this_program());
        command.args(["--exact", TEST, "--nocapture"]).env("VDEPLUG_TEST_VICTIM", "1");
        command.stdout(Stdio::piped()).spawn().expect("run the test program")
    });
    let lines = BufReader::new(victim.stdout.take().expect("piped")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "ready"), "the victim ended early");
    // While it lives, the pair is its own: another link uses it and leaves it.
    drop(open_in(&here, LOCATOR, false));
    assert_eq!(here.interfaces(), ["v1", "v0"]);
    victim.kill().expect("kill");
    victim.wait().expect("wait");
    assert_eq!(here.interfaces(), ["v1", "v0"]);
    // Not what was asked for, so neither taken over nor removed.
    drop(open_in(&here, "veth://v0", false));
    assert_eq!(here.interfaces(), ["v1", "v0"]);
    let heir = open_in(&here, LOCATOR, false);
    drop(open_in(&here, LOCATOR, false));
    assert_eq!(here.interfaces(), ["v1", "v0"]);
    talk(&*heir, &here, "v1", false);
    drop(heir);
    assert_eq!(here.interfaces(), [""; 0]);
}
