//! Peers of a node that do what they should not, and what of it is left behind: the rows of section 6.3 of the VDE facts
//! that no line of the checklist stands for.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vdeplug::{NodeError, OpenError, OpenErrorKind, OpenOptions, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::harness::{
    NOBODY, as_user, broadcast, dead_listener, in_child, names, need_root, open, readable, receive, send,
    until,
};
use crate::node_peers::{Place, Raw, connect, drain, is_closed, name_in, request, unicast, until_peers};

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc").count()
}

#[test]
fn answer_is_zeroed_behind_the_name() {
    let place = Place::new();
    let _owner = place.serve("multi");
    let raw = Raw::join(&place.ctl(), &place.home.path().join("peer"));
    let name = raw.peer_name();
    let len = name.as_os_str().len();
    assert_eq!((raw.answer.len(), &raw.answer[..2]), (110, &1_u16.to_ne_bytes()[..]));
    assert!(raw.answer[2 + len..].iter().all(|&byte| byte == 0));
    assert_eq!(name.parent(), Some(place.dir().as_path()));
}

#[test]
fn request_in_two_parts_is_a_request() {
    let place = Place::new();
    let owner = place.serve("hub");
    let name = place.home.path().join("peer");
    let data = UnixDatagram::bind(&name).expect("bind");
    let request = request(name.as_os_str().as_encoded_bytes(), "slow");
    let mut stream = connect(&place.ctl());
    stream.write_all(&request[..50]).expect("a part");
    // By then the node has seen the first part.
    let _other = place.join();
    stream.write_all(&request[50..]).expect("the rest");
    stream.read_exact(&mut [0; 110]).expect("an answer");
    until_peers(&*owner, 2);
    send(&*owner, &broadcast(1, 60));
    assert_eq!(data.recv(&mut [0; 100]).expect("a frame"), 60);
}

#[test]
fn peers_may_ask_in_another_order_than_they_came() {
    for scheme in ["multi", "switch"] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let name = place.home.path().join("first");
        let data = UnixDatagram::bind(&name).expect("bind");
        let mut first = connect(&place.ctl());
        let others = [place.join(), place.join()];
        first.write_all(&request(name.as_os_str().as_encoded_bytes(), "first")).expect("a request");
        let mut answer = [0; 110];
        first.read_exact(&mut answer).expect("an answer");
        data.connect(name_in(&answer)).expect("the node's end");
        data.send(&broadcast(1, 60)).expect("send");
        assert_eq!(receive(&*owner), broadcast(1, 60), "{scheme}");
        for other in &others {
            send(&**other, &broadcast(2, 60));
            assert_eq!(receive(&*owner), broadcast(2, 60), "{scheme}");
        }
        send(&*owner, &unicast(1, 3, 60));
        assert_eq!(data.recv(&mut [0; 100]).expect("a frame"), 60);
    }
}

#[test]
fn peer_that_talks_is_sent_away() {
    let place = Place::new();
    let owner = place.serve("multi");
    let mut raw = Raw::join(&place.ctl(), &place.home.path().join("peer"));
    raw.stream.write_all(b"more").expect("write");
    assert!(is_closed(raw.stream));
    until_peers(&*owner, 0);
    assert_eq!(names(&place.dir()), ["ctl"]);
}

#[test]
fn mute_connections_keep_nobody_out() {
    in_child(
        "node_faults::mute_connections_keep_nobody_out",
        |command| command,
        || {
            let place = Place::new();
            let owner = place.serve("multi");
            let before = descriptors();
            let mut mute: Vec<_> = (0..300).map(|_| connect(&place.ctl())).collect();
            let peer = place.join();
            send(&*peer, &broadcast(1, 60));
            assert_eq!(receive(&*owner), broadcast(1, 60));
            // The oldest had to go.
            assert!(is_closed(mute.remove(0)));
            let of_node = descriptors() - before - mute.len();
            assert!(of_node <= 64 + 4, "{of_node} descriptors");
            // The newest is closed when its time is over.
            let start = Instant::now();
            assert!(is_closed(mute.pop().expect("many")));
            assert!(start.elapsed() > Duration::from_secs(2));
            // The end of the node is the end of those too (defect M-12).
            mute.push(connect(&place.ctl()));
            drop((owner, peer));
            assert!(mute.into_iter().all(is_closed));
            assert!(descriptors() < before);
        },
    );
}

#[test]
fn descriptors_that_run_out_stop_nobody_else() {
    in_child(
        "node_faults::descriptors_that_run_out_stop_nobody_else",
        |command| command,
        || {
            let place = Place::new();
            let limit = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some(256), maximum: limit.maximum })
                .expect("limit");
            let owner = place.serve("switch");
            let first = place.join();
            // Each peer has two descriptors here and two there, so the limit is reached with about 60 of them.
            let mut peers = Vec::new();
            let failed = loop {
                match vdeplug::open(&place.at("vde", ""), &OpenOptions::default()) {
                    Ok(peer) => peers.push(peer),
                    Err(error) => break error,
                }
                assert!(peers.len() < 100);
            };
            assert!(peers.len() > 20, "{} peers, then: {failed}", peers.len());
            let held: Vec<_> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
            drop(peers.pop());
            // Nothing can be accepted for want of descriptors; what is there works, and nothing spins.
            send(&*first, &broadcast(1, 60));
            assert_eq!(receive(&*owner), broadcast(1, 60));
            drop((held, peers));
            until("there is room again", || {
                vdeplug::open(&place.at("vde", ""), &OpenOptions::default()).is_ok()
            });
        },
    );
}

#[test]
fn flood_of_peers_is_bounded_and_leaves_nothing() {
    in_child(
        "node_faults::flood_of_peers_is_bounded_and_leaves_nothing",
        |command| command,
        || {
            let place = Place::new();
            let limit = getrlimit(Resource::Nofile);
            setrlimit(Resource::Nofile, Rlimit { current: Some(400), maximum: limit.maximum })
                .expect("limit");
            let owner = place.serve("hub");
            // The node was told 400, this side may have more.
            setrlimit(Resource::Nofile, Rlimit { current: Some(2000), maximum: limit.maximum })
                .expect("limit");
            let before = descriptors();
            let mut peers = Vec::new();
            let refused = loop {
                match vdeplug::open(&place.at("vde", ""), &OpenOptions::default()) {
                    Ok(peer) => peers.push(peer),
                    Err(error) => break error,
                }
            };
            assert_eq!((peers.len(), refused.kind()), (100, OpenErrorKind::Refused), "{refused}");
            assert_eq!(owner.stats().peers.len(), 100);
            for (at, peer) in peers.iter().enumerate() {
                let from = u8::try_from(at).expect("few");
                send(&**peer, &broadcast(from, 60));
            }
            for peer in &peers {
                until("all hear all", || readable(peer.data_fd()));
            }
            drop(peers);
            until_peers(&*owner, 0);
            assert_eq!(names(&place.dir()), ["ctl"]);
            until("all is closed", || descriptors() == before);
            drop(place.join());
        },
    );
}

#[test]
fn peer_that_dies_with_frames_unread_is_no_error() {
    for scheme in ["multi", "bonding", "hub", "switch"] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let dying = Raw::join(&place.ctl(), &place.home.path().join("dying"));
        let other = Raw::join(&place.ctl(), &place.home.path().join("other"));
        for _ in 0..10 {
            send(&*owner, &broadcast(1, 60));
        }
        for from in 0..100 {
            dying.data.send(&broadcast(from, 60)).expect("send");
        }
        // It leaves, and its data socket goes with frames for it in there.
        drop(dying);
        until_peers(&*owner, 1);
        assert_eq!(drain(&*owner).len(), 100, "{scheme}: what it said is not lost");
        assert!(drain(&*owner).is_empty());
        other.data.send(&broadcast(7, 60)).expect("send");
        assert_eq!(receive(&*owner), broadcast(7, 60));
        let data_fd = owner.data_fd();
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(data_fd, rustix::event::PollFlags::IN)];
        assert_eq!(
            rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).expect("poll"),
            0
        );
    }
}

#[test]
fn peer_that_turns_its_data_socket_away_harms_nobody() {
    let place = Place::new();
    let owner = place.serve("multi");
    let odd = Raw::join(&place.ctl(), &place.home.path().join("odd"));
    let good = place.join();
    let elsewhere = UnixDatagram::bind(place.home.path().join("elsewhere")).expect("bind");
    odd.data.send(&broadcast(1, 60)).expect("send");
    odd.data.connect(place.home.path().join("elsewhere")).expect("connect");
    elsewhere.connect(place.home.path().join("odd")).expect("connect");
    send(&*owner, &broadcast(2, 60));
    assert_eq!(receive(&*good), broadcast(2, 60));
    send(&*good, &broadcast(3, 60));
    let mut got = Vec::new();
    until("the good one's frame comes", || {
        got.extend(drain(&*owner));
        !got.is_empty()
    });
    let stats = owner.stats();
    assert_eq!((stats.peers[0].1.tx_dropped, stats.peers[1].1.tx_frames), (1, 1), "{stats:?}");
}

#[test]
fn others_cannot_send_into_the_data_socket() {
    let place = Place::new();
    let _owner = place.serve("multi");
    let raw = Raw::join(&place.ctl(), &place.home.path().join("peer"));
    let stranger = UnixDatagram::unbound().expect("socket");
    let error = stranger.send_to(&broadcast(1, 60), raw.peer_name()).expect_err("a stranger");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn sockets_of_others_are_not_sent_to() {
    need_root("to become another user");
    let place = Place::new();
    let owner = open(place.at("hub", "[mode=0666]"));
    let victim = place.home.path().join("victim");
    let receiver = UnixDatagram::bind(&victim).expect("bind");
    receiver.set_nonblocking(true).expect("non-blocking");
    let link = place.home.path().join("link");
    std::os::unix::fs::symlink(&victim, &link).expect("link");
    for name in [&victim, &link] {
        as_user(NOBODY, &[], || {
            let mut stream = connect(&place.ctl());
            stream.write_all(&request(name.as_os_str().as_encoded_bytes(), "x")).expect("a request");
            assert!(is_closed(stream), "{name:?}");
        });
    }
    send(&*owner, &broadcast(1, 60));
    assert_eq!(receiver.recv(&mut [0; 100]).expect_err("nothing").kind(), std::io::ErrorKind::WouldBlock);
    // An honest client of another user joins.
    let locator = place.at("vde", "");
    let peer = as_user(NOBODY, &[], || open(&locator));
    send(&*owner, &broadcast(2, 60));
    assert_eq!(receive(&*peer), broadcast(2, 60));
}

#[test]
fn name_that_is_taken_is_taken_back() {
    // A directory that others may write to, in which one guesses the names to come.
    let place = Place::new();
    let _owner = place.serve("multi");
    let first = Raw::join(&place.ctl(), &place.home.path().join("first"));
    let name = first.peer_name();
    drop(first);
    until("its name goes", || !name.exists());
    for number in 0..300 {
        fs::write(place.dir().join(format!("fd{number}")), "").expect("write");
    }
    let second = Raw::join(&place.ctl(), &place.home.path().join("second"));
    assert!(std::os::unix::fs::FileTypeExt::is_socket(
        &fs::metadata(second.peer_name()).expect("a socket").file_type()
    ));
}

#[test]
fn what_is_no_networks_directory_is_left_alone() {
    let place = Place::new();
    let dir = place.dir();
    let fails = |scheme: &str| match vdeplug::open(&place.at(scheme, ""), &OpenOptions::default()) {
        Err(OpenError::Node(error)) => error,
        other => panic!("{other:?}"),
    };
    fs::create_dir(&dir).expect("mkdir");
    dead_listener(place.ctl());
    fs::write(dir.join("notes"), "mine").expect("write");
    let error = fails("multi");
    assert!(matches!(&error, NodeError::Occupied { name, .. } if name == "notes"), "{error:?}");
    assert!(error.to_string().contains("it holds \"notes\""), "{error}");
    assert_eq!(names(&dir), ["ctl", "notes"]);
    fs::remove_file(dir.join("notes")).expect("remove");
    // A socket's name, but no socket.
    fs::write(dir.join("fd5"), "mine").expect("write");
    assert!(matches!(fails("hub"), NodeError::Occupied { name, .. } if name == "fd5"));
    fs::remove_file(dir.join("fd5")).expect("remove");
    // What another user left could be changed under our hands.
    chown(&dir, Some(NOBODY), None).expect("this test needs root, to chown");
    assert!(matches!(fails("switch"), NodeError::Foreign { .. }));
    fs::remove_dir_all(&dir).expect("remove");
    std::os::unix::fs::symlink(place.home.path(), &dir).expect("link");
    assert!(matches!(fails("multi"), NodeError::NotADirectory { .. }));
    fs::remove_file(&dir).expect("remove");
    fs::write(&dir, "a file").expect("write");
    let error = fails("multi");
    assert!(matches!(error, NodeError::NotADirectory { .. }), "{error:?}");
    assert_eq!(error.kind(), OpenErrorKind::NotFound);
    assert_eq!(fs::read_to_string(&dir).expect("left alone"), "a file");
}

#[test]
fn paths_that_cannot_be() {
    let place = Place::new();
    let fails = |locator: &str| vdeplug::open(locator, &OpenOptions::default()).expect_err(locator);
    let error = fails("multi:///nowhere/at/all");
    assert!(matches!(error, OpenError::Node(NodeError::NoParent { .. })), "{error:?}");
    let long = format!("multi://{}/{}", place.home.path().display(), "x".repeat(100));
    let error = fails(&long);
    assert!(matches!(error, OpenError::Node(NodeError::NameTooLong { max: 92, .. })), "{error:?}");
    assert_eq!(error.kind(), OpenErrorKind::Usage);
    assert!(matches!(fails("multi:///"), OpenError::Node(NodeError::Occupied { .. })));
    let locator = place.at("multi", "");
    let error = as_user(NOBODY, &[], || fails(&locator));
    assert_eq!(error.kind(), OpenErrorKind::Permission, "{error}");
    assert!(names(place.home.path()).is_empty());
    // One that just fits, with a slash at its end.
    let used = place.home.path().as_os_str().len() + 1;
    let dir = place.home.path().join("y".repeat(92 - used));
    let owner = open(format!("multi://{}/", dir.display()));
    let peer = open(dir.to_str().expect("ASCII"));
    send(&*owner, &broadcast(1, 60));
    assert_eq!(receive(&*peer), broadcast(1, 60));
    drop(owner);
    assert!(!dir.exists());
}

#[test]
fn children_inherit_nothing() {
    in_child(
        "node_faults::children_inherit_nothing",
        |command| command,
        || {
            let inherited = || {
                let output = Command::new("ls").arg("/proc/self/fd").output().expect("ls");
                String::from_utf8(output.stdout).expect("numbers")
            };
            let before = inherited();
            let place = Place::new();
            let owner = place.serve("switch");
            let peer = place.join();
            assert_eq!(inherited(), before);
            drop((owner, peer));
        },
    );
}

#[test]
fn a_hundred_nodes_leave_nothing() {
    in_child(
        "node_faults::a_hundred_nodes_leave_nothing",
        |command| command,
        || {
            let place = Place::new();
            let threads = || fs::read_dir("/proc/self/task").expect("/proc").count();
            let before = (descriptors(), threads());
            for round in 0..100 {
                let owner = place.serve(["multi", "hub", "switch", "bonding"][round % 4]);
                let peer = place.join();
                send(&*peer, &broadcast(1, 60));
                assert_eq!(receive(&*owner), broadcast(1, 60));
                // The owner may go in any thread, with peers or without.
                if round % 2 == 0 {
                    drop(peer);
                }
                std::thread::spawn(move || drop(owner)).join().expect("no panic");
                assert!(!place.dir().exists());
            }
            // A thread that has ended is seen for a moment.
            until("nothing is left", || (descriptors(), threads()) == before);
        },
    );
}

#[test]
fn idle_node_never_wakes_up() {
    in_child(
        "node_faults::idle_node_never_wakes_up",
        |command| command,
        || {
            let place = Place::new();
            let owner = place.serve("switch");
            let _peer = place.join();
            let lines = |begin: &str| {
                let tasks = fs::read_dir("/proc/self/task").expect("/proc").flatten().map(|task| task.path());
                let statuses = tasks.map(|task| fs::read_to_string(task.join("status")).expect("/proc"));
                let nodes = statuses.filter(|status| status.starts_with("Name:\tnode\n"));
                let line =
                    |status: String| status.lines().find(|line| line.starts_with(begin)).map(str::to_owned);
                nodes.map(|status| line(status).expect("a line")).collect::<Vec<_>>()
            };
            // After the peer's handshake the threads go to sleep once.
            until("the threads sleep", || {
                let states = lines("State:");
                states.len() == 2 && states.iter().all(|state| state.contains("sleeping"))
            });
            let switches = || lines("voluntary_ctxt_switches");
            let last = switches();
            let mut fds =
                [rustix::event::PollFd::from_borrowed_fd(owner.data_fd(), rustix::event::PollFlags::IN)];
            let limit = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            assert_eq!(rustix::event::poll(&mut fds, Some(&limit)).expect("poll"), 0);
            assert_eq!(switches(), last);
        },
    );
}

#[test]
fn signals_are_not_for_the_thread() {
    let place = Place::new();
    let _owner = place.serve("multi");
    let masks = || {
        let tasks = fs::read_dir("/proc/self/task").expect("/proc").flatten();
        let read = |file: PathBuf| fs::read_to_string(file).unwrap_or_default();
        let nodes = tasks.map(|task| task.path()).filter(|task| read(task.join("comm")).trim() == "node");
        let mask = |status: String| status.lines().find(|line| line.starts_with("SigBlk")).map(str::to_owned);
        nodes.filter_map(|task| mask(read(task.join("status")))).collect::<Vec<_>>()
    };
    // The thread names itself.
    until("the thread runs", || !masks().is_empty());
    for mask in masks() {
        // All but those that cannot be blocked, and the two that the C library keeps for itself.
        assert!(mask.to_ascii_lowercase().ends_with("fffffffe7ffbfeff"), "{mask}");
    }
}

#[test]
fn owner_receives_fairly_and_to_the_end() {
    let place = Place::new();
    let owner = place.serve("multi");
    let peers: Vec<_> =
        (0..3).map(|n| Raw::join(&place.ctl(), &place.home.path().join(n.to_string()))).collect();
    for (from, peer) in (0..).zip(&peers) {
        for _ in 0..60 {
            peer.data.send(&broadcast(from, 60)).expect("send");
        }
    }
    let mut rooms = vec![[0; 60]; 30];
    let bufs: Vec<_> = rooms.iter_mut().map(|room| [RxBuf::new(room)]).collect();
    let mut frames: Vec<_> = bufs.iter().map(|bufs| RxFrame::new(bufs)).collect();
    assert_eq!(owner.recv(&mut frames).expect("alive"), 30);
    let from = |n: u8| rooms.iter().filter(|room| room[11] == n).count();
    assert_eq!([from(0), from(1), from(2)], [10, 10, 10]);
    assert_eq!(drain(&*owner).len(), 150);
    assert!(drain(&*owner).is_empty());
    assert_eq!(owner.stats().total.rx_frames, 180);
    let both = owner.stats().peers.iter().map(|(_, traffic)| traffic.rx_bytes).sum::<u64>();
    assert_eq!(both, 180 * 60);
}

#[test]
fn stats_of_peers_that_left_are_gone() {
    let place = Place::new();
    let owner = place.serve("multi");
    let (a, b) = (place.join(), place.join());
    let frame = broadcast(1, 60);
    owner.send(&[TxFrame::new(&[TxBuf::new(&frame)])]).expect("alive");
    assert_eq!((receive(&*a), receive(&*b)), (frame.clone(), frame));
    drop(a);
    until_peers(&*owner, 1);
    let stats = owner.stats();
    assert_eq!((stats.total.tx_frames, stats.total.tx_bytes, stats.peers[0].1.tx_frames), (1, 60, 1));
}

#[test]
fn stolen_path_is_not_removed() {
    // Alone: what is closed here may stay open for a moment in a child of another test.
    in_child(
        "node_faults::stolen_path_is_not_removed",
        |command| command,
        || {
            let place = Place::new();
            let owner = place.serve("multi");
            fs::remove_file(place.ctl()).expect("remove");
            let thief = UnixListener::bind(place.ctl()).expect("bind");
            drop(owner);
            assert!(place.ctl().exists(), "what is another's stays");
            drop(thief);
            let moved = place.home.path().join("moved");
            let owner = place.serve("multi");
            fs::rename(place.dir(), &moved).expect("rename");
            fs::create_dir(place.dir()).expect("mkdir");
            drop(owner);
            assert!(place.dir().exists() && names(&moved).is_empty());
            assert_eq!(fs::metadata(Path::new(&moved)).expect("there").permissions().mode() & 0o777, 0o700);
        },
    );
}
