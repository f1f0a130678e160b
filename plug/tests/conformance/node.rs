//! Nodes that we serve, as section 4 of the VDE facts has them, with Debian's `vde_plug` as their peer.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::io::Errno;
use vdeplug::{Link, NodeError, OpenError, OpenErrorKind, OpenOptions, TxBuf, TxFrame};

use crate::harness::{
    LONG, NOBODY, RealSwitch, as_user, broadcast, dead_datagram, in_child, names, need_root, open, readable,
    receive, send, this_program, until,
};
use crate::node_peers::{
    Place, Plug, Raw, connect, drain, is_closed, receive_long, request, unicast, until_peers,
};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{path:?}: {error}")).permissions().mode() & 0o7777
}

#[test]
fn c_30_modes_do_not_depend_on_the_umask() {
    in_child(
        "node::c_30_modes_do_not_depend_on_the_umask",
        |command| command,
        || {
            for mask in [0o000, 0o077, 0o177] {
                rustix::process::umask(Mode::from_raw_mode(mask));
                let place = Place::new();
                for scheme in ["multi", "hub", "switch", "bonding"] {
                    let owner = place.serve(scheme);
                    assert_eq!((mode(&place.dir()), mode(&place.ctl())), (0o2700, 0o600), "{mask:o}");
                    let _peer = place.join();
                    let name = names(&place.dir()).into_iter().find(|name| name.starts_with("fd"));
                    assert_eq!(mode(&place.dir().join(name.expect("a data socket"))), 0o700, "{mask:o}");
                    drop(owner);
                }
                let _owner = open(place.at("multi", "[mode=0666]"));
                assert_eq!((mode(&place.dir()), mode(&place.ctl())), (0o2777, 0o666), "{mask:o}");
                let raw = Raw::join(&place.ctl(), &place.home.path().join("raw"));
                assert_eq!(mode(&raw.peer_name()), 0o666, "{mask:o}");
            }
        },
    );
}

#[test]
fn c_31_modes_and_group_are_as_asked_for() {
    need_root("to give a directory to a group it is no member of");
    let place = Place::new();
    let gid = |path: &Path| fs::metadata(path).expect("made").gid();
    for (options, dirmode, ctl, group) in [
        ("[mode=0666]", 0o2777, 0o666, 0),
        ("[mode=0640/dirmode=0750/grp=12345]", 0o750, 0o640, 12345),
        ("[mode=0660/grp=daemon]", 0o2770, 0o660, 1),
        ("[mode=0755]", 0o2755, 0o644, 0),
        ("[dirmode=0711]", 0o711, 0o600, 0),
        ("[dirmode=3777/mode=0666]", 0o3777, 0o666, 0),
    ] {
        let _owner = open(place.at("multi", options));
        assert_eq!((mode(&place.dir()), mode(&place.ctl())), (dirmode, ctl), "{options}");
        assert_eq!((gid(&place.dir()), gid(&place.ctl())), (group, group), "{options}");
    }
    // What options say is below that (defect M-10).
    let options = OpenOptions { mode: 0o660, group: Some("12345".into()), ..OpenOptions::default() };
    let owner = vdeplug::open(&place.at("multi", ""), &options).expect("a node");
    assert_eq!((mode(&place.dir()), mode(&place.ctl()), gid(&place.ctl())), (0o2770, 0o660, 12345));
    drop(owner);
    let error = vdeplug::open(&place.at("hub", "[grp=no such group]"), &options).expect_err("no such group");
    assert_eq!((error.kind(), error.errno()), (OpenErrorKind::Usage, Errno::INVAL.raw_os_error()));
    assert!(!place.dir().exists());
}

#[test]
fn c_31_group_of_others_is_refused() {
    let place = Place::new();
    fs::set_permissions(place.home.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    let locator = place.at("multi", "[grp=daemon]");
    let error =
        as_user(NOBODY, &[], || vdeplug::open(&locator, &OpenOptions::default())).expect_err("not a member");
    assert_eq!((error.kind(), error.errno()), (OpenErrorKind::Permission, Errno::PERM.raw_os_error()));
    assert!(error.to_string().contains("\"daemon\""), "{error}");
    assert!(!place.dir().exists());
}

#[test]
fn c_32_default_path_is_the_users() {
    as_user(NOBODY, &[], || {
        // There is one such path for all runs of this test on the machine.
        let mut owner = None;
        until("the path is free", || {
            owner = vdeplug::open("bonding://", &OpenOptions::default()).ok();
            owner.is_some()
        });
        assert_eq!(mode(Path::new("/tmp/vdenode_nobody")), 0o2700);
    });
    let nameless = 0x4000_0000 + std::process::id();
    as_user(nameless, &[], || {
        let dir = format!("/tmp/vdenode_u{nameless}");
        let owner = open("multi://");
        assert_eq!(mode(&Path::new(&dir).join("ctl")), 0o600);
        drop(owner);
        assert!(!Path::new(&dir).exists());
    });
}

#[test]
fn c_33_vde_plug_joins_and_leaves() {
    for scheme in ["multi", "hub", "switch", "bonding"] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let mut plug = Plug::join(&place, &*owner, 1);
        let listed = names(&place.dir());
        let number = listed.iter().find_map(|name| name.strip_prefix("fd")).expect("a data socket");
        number.parse::<u32>().expect("a number");
        assert!(owner.stats().peers[0].0.starts_with("vdeplug: user="), "{:?}", owner.stats());
        plug.kill();
        until("the node forgets vde_plug", || names(&place.dir()) == ["ctl"]);
        until_peers(&*owner, 0);
    }
}

#[test]
fn c_34_multi_owner_reaches_all_and_peers_reach_the_owner() {
    let place = Place::new();
    let owner = place.serve("multi");
    let mut plugs: Vec<_> = (1..4).map(|count| Plug::join(&place, &*owner, count)).collect();
    // All hear each welcome: one, two and three frames, of which each peer has read one.
    for (plug, later) in plugs.iter_mut().zip([5, 4, 2]) {
        (0..later).for_each(|_| assert_eq!(plug.receive(), broadcast(99, 99)));
    }
    plugs[0].send(&broadcast(1, 60));
    assert_eq!(receive(&*owner), broadcast(1, 60));
    plugs[1].send(&unicast(1, 2, 100));
    assert_eq!(receive(&*owner), unicast(1, 2, 100));
    send(&*owner, &broadcast(9, 1514));
    send(&*owner, &unicast(1, 9, 14));
    for plug in &mut plugs {
        // First and next, so exactly once, and nothing of what the peers sent.
        assert_eq!(plug.receive(), broadcast(9, 1514));
        assert_eq!(plug.receive(), unicast(1, 9, 14));
    }
}

#[test]
fn c_35_hub_repeats_to_all_others() {
    let place = Place::new();
    let owner = place.serve("hub");
    let mut plug = Plug::join(&place, &*owner, 1);
    let (a, b) = (place.join(), place.join());
    plug.send(&unicast(2, 1, 60));
    for link in [&owner, &a, &b] {
        assert_eq!(receive(&**link), unicast(2, 1, 60));
    }
    send(&*a, &broadcast(2, 60));
    for link in [&owner, &b] {
        assert_eq!(receive(&**link), broadcast(2, 60));
    }
    send(&*owner, &broadcast(3, 60));
    for link in [&a, &b] {
        assert_eq!(receive(&**link), broadcast(3, 60));
    }
    assert_eq!(plug.receive(), broadcast(2, 60));
    assert_eq!(plug.receive(), broadcast(3, 60));
}

#[test]
fn c_35_switch_sends_to_whom_it_is_for() {
    let place = Place::new();
    let owner = place.serve("switch");
    let (a, b, c) = (place.join(), place.join(), place.join());
    let everyone = [&owner, &a, &b, &c];
    for (from, link) in (1..).zip([&owner, &a, &b, &c]) {
        send(&**link, &broadcast(from, 60));
        for (to, link) in (1..).zip(&everyone).filter(|(to, _)| *to != from) {
            assert_eq!(receive(&***link), broadcast(from, 60), "from {from} to {to}");
        }
    }
    // Each of the others hears the broadcast next, so did not hear what was not for it.
    for (from, link) in (1..).zip(&everyone) {
        for (to, _) in (1..).zip(&everyone).filter(|(to, _)| *to != from) {
            send(&***link, &unicast(to, from, 100));
        }
        send(&***link, &unicast(from, from, 100));
        send(&***link, &broadcast(from, 200));
        for (to, link) in (1..).zip(&everyone).filter(|(to, _)| *to != from) {
            assert_eq!(receive(&***link), unicast(to, from, 100));
            assert_eq!(receive(&***link), broadcast(from, 200));
        }
    }
    // Who left is not remembered.
    drop(b);
    until_peers(&*owner, 2);
    send(&*a, &unicast(3, 2, 60));
    for link in [&owner, &c] {
        assert_eq!(receive(&**link), unicast(3, 2, 60));
    }
}

#[test]
fn c_35_bonding_alternates() {
    let place = Place::new();
    let owner = place.serve("bonding");
    let (a, b) = (place.join(), place.join());
    for round in 0..4 {
        send(&*owner, &broadcast(round, 60));
    }
    let frames: Vec<_> = (4..8).map(|round| broadcast(round, 60)).collect();
    let bufs: Vec<_> = frames.iter().map(|frame| [TxBuf::new(frame)]).collect();
    let batch: Vec<_> = bufs.iter().map(|bufs| TxFrame::new(bufs)).collect();
    assert_eq!(owner.send(&batch).expect("alive").taken, 4);
    for round in (0..8).step_by(2) {
        assert_eq!(receive(&*a), broadcast(round, 60));
        assert_eq!(receive(&*b), broadcast(round + 1, 60));
    }
    send(&*b, &broadcast(9, 60));
    assert_eq!(receive(&*owner), broadcast(9, 60));
    assert!(drain(&*a).is_empty());
}

#[test]
fn c_36_two_nodes_are_joined_by_vde_plug() {
    let (one, two) = (Place::new(), Place::new());
    let (first, second) = (one.serve("multi"), two.serve("multi"));
    let (dir_one, dir_two) = (one.dir(), two.dir());
    let join = || Plug::start(&[dir_one.to_str().expect("ASCII"), dir_two.to_str().expect("ASCII")]);
    let mut cable = join();
    until_peers(&*first, 1);
    until_peers(&*second, 1);
    send(&*first, &broadcast(1, 60));
    assert_eq!(receive(&*second), broadcast(1, 60));
    let _other = join();
    until_peers(&*first, 2);
    until_peers(&*second, 2);
    send(&*second, &broadcast(2, 60));
    assert_eq!((receive(&*first), receive(&*first)), (broadcast(2, 60), broadcast(2, 60)));
    cable.kill();
    until_peers(&*first, 1);
    send(&*first, &broadcast(3, 60));
    assert_eq!(receive(&*second), broadcast(3, 60));
    send(&*first, &broadcast(4, 60));
    assert_eq!(receive(&*second), broadcast(4, 60));
}

#[test]
fn c_36_original_node_is_joined_to_ours() {
    // Theirs in one process, ours in this one, and their cable between.
    let (one, two) = (Place::new(), Place::new());
    let mut theirs = Plug::serve(&one, &[]);
    let ours = two.serve("switch");
    let _cable = Plug::start(&[one.dir().to_str().expect("ASCII"), two.dir().to_str().expect("ASCII")]);
    until_peers(&*ours, 1);
    theirs.send(&broadcast(1, 300));
    assert_eq!(receive(&*ours), broadcast(1, 300));
    send(&*ours, &unicast(1, 2, 300));
    assert_eq!(theirs.receive(), unicast(1, 2, 300));
}

#[test]
fn runts_hold_up_nobody_who_receives_one_frame() {
    let place = Place::new();
    let owner = place.serve("multi");
    let peer = Raw::join(&place.ctl(), &place.home.path().join("peer"));
    for _ in 0..100 {
        peer.data.send(&[0; 13]).expect("send");
    }
    peer.data.send(&broadcast(1, 60)).expect("send");
    let mut room = [0; 60];
    assert_eq!(owner.recv_one(&mut room).expect("alive"), None, "so many runts end the call");
    assert_eq!(owner.recv_one(&mut room).expect("alive"), Some(60));
    assert_eq!(room[..], broadcast(1, 60));
}

#[test]
fn c_37_runts_are_dropped_and_long_frames_are_whole() {
    for scheme in ["multi", "hub", "switch", "bonding"] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let peer = Raw::join(&place.ctl(), &place.home.path().join("peer"));
        let other = Raw::join(&place.ctl(), &place.home.path().join("other"));
        for len in [13, 0, 14, 9018, 20_000, 65_000] {
            peer.data.send(&broadcast(1, len.max(14))[..len]).expect("send");
        }
        let mut got = Vec::new();
        until("the frames come", || {
            got.extend(drain(&*owner));
            got.contains(&65_000)
        });
        got.retain(|len| *len >= 14);
        assert_eq!(got, [14, 9018, 20_000, 65_000], "{scheme}");
        assert_eq!(owner.stats().peers[0].1.rx_dropped, 2, "{scheme}");
        let mut room = vec![0; 70_000];
        if matches!(scheme, "hub" | "switch") {
            for len in [14, 9018, 20_000, 65_000] {
                assert_eq!(other.data.recv(&mut room).expect("a frame"), len);
                assert_eq!(room[..len], broadcast(1, len));
            }
        }
        let short = broadcast(2, 14);
        let dropped = owner.send(&[TxFrame::new(&[TxBuf::new(&short[..13])])]).expect("alive");
        assert_eq!((dropped.taken, dropped.dropped), (1, 1));
        for len in [14, 9018, 20_000] {
            send(&*owner, &broadcast(2, len));
        }
        let mut next = [&peer, &other].into_iter().cycle();
        for len in [14, 9018, 20_000] {
            let to = if scheme == "bonding" { next.next().expect("endless") } else { &peer };
            assert_eq!(to.data.recv(&mut room).expect("a frame"), len, "{scheme}");
            assert_eq!(room[..len], broadcast(2, len));
        }
    }
}

#[test]
fn c_38_close_removes_everything_and_ends_peers() {
    for scheme in ["multi", "hub", "switch", "bonding"] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let mut plug = Plug::join(&place, &*owner, 1);
        let ours = place.join();
        // A client that died at a bad moment left its name.
        dead_datagram(place.dir().join(".00042-00000"));
        drop(owner);
        assert!(!place.dir().exists(), "{scheme}");
        assert!(readable(ours.control_fd().expect("vde has one")));
        ours.check_control().expect_err("the end");
        assert_eq!(plug.wait(), Some(0), "{scheme}");
    }
}

const OWNER: &str = "VDEPLUG_TEST_OWNER";

#[test]
fn c_39_path_of_a_killed_owner_is_taken_over() {
    if let Some(locator) = std::env::var_os(OWNER) {
        // The process that the test below kills.
        let owner = open(locator.to_str().expect("ASCII"));
        loop {
            readable(owner.data_fd());
        }
    }
    let place = Place::new();
    for scheme in ["multi", "switch"] {
        let mut dead = Command::new(this_program())
            .args(["--exact", "node::c_39_path_of_a_killed_owner_is_taken_over"])
            .env(OWNER, place.at(scheme, "[mode=0666]"))
            .stdout(Stdio::null())
            .spawn()
            .expect("run the test program");
        until("the node is served", || UnixStream::connect(place.ctl()).is_ok());
        let _peer = place.join();
        assert_eq!(names(&place.dir()).len(), 2);
        dead.kill().expect("kill");
        dead.wait().expect("wait");
        assert_eq!(names(&place.dir()).len(), 2, "nothing was cleaned up");
        let owner = place.serve(scheme);
        assert_eq!((mode(&place.dir()), mode(&place.ctl())), (0o2700, 0o600));
        assert_eq!(names(&place.dir()), ["ctl"]);
        let peer = place.join();
        send(&*owner, &broadcast(1, 60));
        assert_eq!(receive(&*peer), broadcast(1, 60));
        drop(owner);
        assert!(!place.dir().exists());
    }
    let mut original = Plug::serve(&place, &["null://"]);
    let mut plug = Plug::start(&[place.dir().to_str().expect("ASCII")]);
    until("vde_plug joins", || names(&place.dir()).len() > 1);
    original.kill();
    plug.wait();
    let _owner = place.serve("hub");
    assert_eq!(names(&place.dir()), ["ctl"]);
}

#[test]
fn c_39_two_takers_do_not_meet() {
    // In a process of its own: one that another test starts would have the dead sockets open for a moment.
    in_child(
        "node::c_39_two_takers_do_not_meet",
        |command| command,
        || {
            let place = Place::new();
            for _ in 0..50 {
                fs::create_dir(place.dir()).expect("mkdir");
                drop(UnixListener::bind(place.ctl()).expect("bind"));
                let take = || vdeplug::open(&place.at("multi", ""), &OpenOptions::default());
                let results: Vec<_> = std::thread::scope(|scope| {
                    let takers: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
                    takers.into_iter().map(|taker| taker.join().expect("no panic")).collect()
                });
                let owners: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
                assert_eq!(owners.len(), 1, "{results:?}");
                let peer = place.join();
                send(&*peer, &broadcast(1, 60));
                assert_eq!(receive(&**owners[0]), broadcast(1, 60));
            }
        },
    );
}

/// Fails because a network is there.
fn served(locator: &str) -> OpenError {
    let error = vdeplug::open(locator, &OpenOptions::default()).expect_err("served already");
    assert!(matches!(error, OpenError::Node(NodeError::Served { .. })), "{error:?}");
    assert_eq!((error.kind(), error.errno()), (OpenErrorKind::Refused, Errno::EXIST.raw_os_error()));
    error
}

#[test]
fn c_40_second_open_of_a_live_path_fails() {
    let place = Place::new();
    let owner = place.serve("multi");
    let peer = place.join();
    for scheme in ["multi", "hub", "switch", "bonding"] {
        let text = served(&place.at(scheme, "")).to_string();
        assert!(text.contains("is served already; join it by the locator vde:///"), "{text}");
    }
    send(&*peer, &broadcast(1, 60));
    assert_eq!(receive(&*owner), broadcast(1, 60));
    // A switch on the path of a node only probes it, and gives up.
    let mut switch = Command::new("vde_switch");
    switch.arg("-s").arg(place.dir()).args(["-m", "0777"]).stdin(Stdio::piped()).stderr(Stdio::null());
    let mut switch = switch.spawn().expect("vde_switch has to be installed");
    until("vde_switch gives up", || switch.try_wait().expect("wait").is_some());
    send(&*owner, &broadcast(2, 60));
    assert_eq!(receive(&*peer), broadcast(2, 60));
}

#[test]
fn c_40_live_networks_of_others_are_left_alone() {
    let switch = RealSwitch::start();
    let before = mode(&switch.dir);
    served(&format!("multi://{}", switch.dir.display()));
    assert_eq!(mode(&switch.dir), before);
    let _plug = open(switch.at(""));

    let place = Place::new();
    let mut original = Plug::serve(&place, &[]);
    let peer = place.join();
    let before = mode(&place.dir());
    let cpu = cpu_ticks(original.child.id());
    served(&place.at("multi", ""));
    assert_eq!(mode(&place.dir()), before);
    original.send(&broadcast(1, 60));
    assert_eq!(receive(&*peer), broadcast(1, 60));
    // A probe by connecting would make it spin.
    assert!(!readable_within(&*peer, Duration::from_millis(300)));
    assert!(cpu_ticks(original.child.id()) - cpu < 10, "it spins");
}

/// Time that a process worked, in hundredths of a second.
fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("/proc");
    let fields: Vec<_> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

fn readable_within(link: &dyn Link, time: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec::try_from(time).expect("fits");
    poll(&mut [PollFd::from_borrowed_fd(link.data_fd(), PollFlags::IN)], Some(&limit)).expect("poll") > 0
}

#[test]
fn c_41_probes_cost_nothing() {
    in_child(
        "node::c_41_probes_cost_nothing",
        |command| command,
        || {
            for scheme in ["multi", "switch"] {
                let place = Place::new();
                let owner = place.serve(scheme);
                let peer = place.join();
                let descriptors = || fs::read_dir("/proc/self/fd").expect("/proc").count();
                let before = descriptors();
                for _ in 0..3 {
                    let status = Command::new("socat")
                        .args(["-u", "OPEN:/dev/null"])
                        .arg(format!("UNIX-CONNECT:{}", place.ctl().display()))
                        .status()
                        .expect("socat has to be installed");
                    assert!(status.success());
                    drop(connect(&place.ctl()));
                    let mut refused = request(b"/nowhere", "x");
                    refused[8] = 1;
                    let mut stream = connect(&place.ctl());
                    std::io::Write::write_all(&mut stream, &refused).expect("write");
                }
                until("the node has closed them", || descriptors() == before);
                let cpu = cpu_ticks(std::process::id());
                assert!(!readable_within(&*owner, Duration::from_millis(500)));
                assert!(cpu_ticks(std::process::id()) - cpu < 5, "the node spins");
                send(&*peer, &broadcast(1, 60));
                assert_eq!(receive(&*owner), broadcast(1, 60));
            }
        },
    );
}

#[test]
fn c_42_peer_that_does_not_read_slows_nobody() {
    for scheme in ["multi", "hub", "switch", "bonding"] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let mute = Raw::join(&place.ctl(), &place.home.path().join("mute"));
        let reader = place.join();
        let start = Instant::now();
        let frame = broadcast(1, 1000);
        let bufs = [TxBuf::new(&frame)];
        let batch = [TxFrame::new(&bufs); 50];
        let mut got = 0;
        for _ in 0..200 {
            assert_eq!(owner.send(&batch).expect("alive").taken, 50);
            got += drain(&*reader).len();
        }
        assert_eq!(got, if scheme == "bonding" { 5_000 } else { 10_000 }, "{scheme}");
        assert!(start.elapsed() < LONG, "{scheme}: {:?}", start.elapsed());
        let stats = owner.stats();
        let (name, lost) = &stats.peers[0];
        assert!(name == "raw" && lost.tx_dropped > 0 && lost.tx_frames > 93, "{stats:?}");
        assert_eq!(stats.peers[1].1.tx_dropped, 0, "{stats:?}");
        assert_eq!(stats.total.tx_frames, 10_000);
        assert_eq!(mute.data.recv(&mut [0; 2000]).expect("the first"), 1000);
    }
}

#[test]
fn c_43_refused_requests_are_closed_at_once() {
    let place = Place::new();
    let owner = place.serve("multi");
    let good = request(b"/nowhere/peer", "x");
    let with = |at: usize, byte: u8| {
        let mut request = good.clone();
        request[at] = byte;
        request
    };
    let mut v1 = good[..4].to_vec();
    v1.resize(124, 0);
    let start = Instant::now();
    for (what, bytes) in [
        ("kind 1", with(8, 1)),
        ("kind 255", with(8, 255)),
        ("version 1", v1),
        ("version 2", with(4, 2)),
        ("magic", with(0, 0)),
        ("magic alone", b"GET ".to_vec()),
        ("another family", with(12, 2)),
        ("no such data socket", good.clone()),
        ("all zero name", request(&[], "x")),
        ("relative name", request(b"peer", "x")),
        ("name without end", request(&[b'/'; 108], "x")),
        ("long", request(b"/nowhere", &"x".repeat(129))),
        ("huge", vec![0xff; 100_000]),
    ] {
        let mut stream = connect(&place.ctl());
        // The node may close before it has all.
        let _ = std::io::Write::write_all(&mut stream, &bytes);
        assert!(is_closed(stream), "{what}");
    }
    assert!(start.elapsed() < Duration::from_secs(4), "one of them was only timed out");
    assert_eq!((owner.stats().peers.len(), names(&place.dir())), (0, vec!["ctl".to_owned()]));
}

#[test]
fn c_44_abstract_client_address_is_accepted() {
    use std::os::linux::net::SocketAddrExt;
    let place = Place::new();
    let owner = place.serve("multi");
    let mut name = format!("vdeplug-test-{}", std::process::id()).into_bytes();
    name.resize(107, 0);
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).expect("a name");
    let data = std::os::unix::net::UnixDatagram::bind_addr(&address).expect("bind");
    let named = [&[0][..], &name].concat();
    let raw = Raw::join_with(&place.ctl(), data, &request(&named, "abstract"));
    raw.data.send(&broadcast(1, 60)).expect("send");
    assert_eq!(receive_long(&*owner), broadcast(1, 60));
    send(&*owner, &broadcast(2, 60));
    assert_eq!(raw.data.recv(&mut [0; 100]).expect("a frame"), 60);
    assert_eq!(owner.stats().peers[0].0, "abstract");
}
