//! Peers of a node that mean harm: what they can make it do, and what of it others feel.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use vdeplug::{Header, Link, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::harness::{NOBODY, as_user, broadcast, in_child, names, open, receive, send, until};
use crate::node_peers::{Place, Raw, connect, is_closed, request, until_peers};

/// Takes what is there, but no more than a batch: whoever goes on sending does not keep this going. The lengths.
fn take(link: &dyn Link) -> Vec<usize> {
    let mut rooms = vec![[0; 128]; 100];
    let bufs: Vec<_> = rooms.iter_mut().map(|room| [RxBuf::new(room)]).collect();
    let mut frames: Vec<_> = bufs.iter().map(|bufs| RxFrame::new(bufs)).collect();
    let got = link.recv(&mut frames).expect("a living link");
    frames.iter().take(got).map(|frame| frame.len).collect()
}

#[test]
fn peer_that_leaves_and_goes_on_sending_holds_nobody_up() {
    for scheme in ["multi", "hub", "switch"] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let good = place.join();
        let Raw { stream, data, .. } = Raw::join(&place.ctl(), &place.home.path().join("bad"));
        until_peers(&*owner, 2);
        let over = AtomicBool::new(false);
        let frame = broadcast(1, 60);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| while data.send(&frame).is_ok() && !over.load(Ordering::Relaxed) {});
            }
            until("its frames come", || !take(&*owner).is_empty());
            // Its plug ends, but not what it sends.
            drop(stream);
            let start = Instant::now();
            while owner.stats().peers.len() > 1 && start.elapsed() < Duration::from_secs(10) {
                take(&*owner);
            }
            over.store(true, Ordering::Relaxed);
            assert_eq!(owner.stats().peers.len(), 1, "{scheme}");
        });
        send(&*good, &broadcast(2, 61));
        until("the good one's frame comes", || take(&*owner).contains(&61));
        send(&*owner, &broadcast(3, 62));
        until("the good one hears", || receive(&*good) == broadcast(3, 62));
    }
}

/// A TCP frame with one byte of payload for each of so many segments.
fn crumbs(count: u16) -> (Header, Vec<u8>) {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00, 0x45, 0];
    frame.extend_from_slice(&(40 + count).to_be_bytes());
    frame.extend_from_slice(&[0, 7, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend_from_slice(&[0x30, 0x39, 0, 80, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    frame.resize(54 + usize::from(count), 7);
    (Header { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1, csum_start: 34, csum_offset: 16 }, frame)
}

#[test]
fn peer_whose_frames_are_all_crumbs_slows_nobody() {
    let place = Place::new();
    let owner = place.serve("hub");
    let bad = place.join_big();
    let (a, b) = (place.join(), place.join());
    let over = AtomicBool::new(false);
    let (header, frame) = crumbs(128);
    let mut times = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let bufs = [TxBuf::new(&frame)];
            let batch = [TxFrame { bufs: &bufs, header, segments: 0 }; 64];
            while !over.load(Ordering::Relaxed) {
                bad.send(&batch).expect("alive");
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                take(&*owner);
            }
        });
        for round in 0..20 {
            let (begun, len, mut heard) = (Instant::now(), 200 + round, false);
            while !heard && begun.elapsed() < Duration::from_secs(10) {
                // Again and soon, as one that comes when the other's queue is full of crumbs is lost, which is no delay.
                send(&*a, &broadcast(1, len));
                let sent = Instant::now();
                while !heard && sent.elapsed() < Duration::from_millis(5) {
                    heard = take(&*b).contains(&len);
                }
            }
            times.push(begun.elapsed());
            if !heard {
                // Too few are a failure.
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    times.sort();
    // Most of them: who has not this machine for itself is late now and then for other reasons. Crumbs without a bound
    // made it more than a second.
    let usual = times[times.len() / 2];
    assert!(times.len() == 20 && usual < Duration::from_millis(500), "frames of another peer took {times:?}");
}

#[test]
fn directory_that_is_swapped_takes_nothing_elsewhere() {
    // The node is root's, the directory around it another user's, who has it mean another place.
    let place = Place::new();
    let victim = crate::harness::open_dir();
    let moved = place.home.path().join("moved");
    chown(place.home.path(), Some(NOBODY), None).expect("this test needs root, to chown");
    let owner = open(place.at("hub", "[mode=0666]"));
    as_user(NOBODY, &[], || {
        fs::rename(place.dir(), &moved).expect("rename");
        symlink(victim.path(), place.dir()).expect("link");
    });
    let name = place.home.path().join("peer");
    let _data = UnixDatagram::bind(&name).expect("bind");
    let mut stream = connect(&moved.join("ctl"));
    stream.write_all(&request(name.as_os_str().as_encoded_bytes(), "x")).expect("a request");
    until("the node has answered or refused", || {
        let joined = owner.stats().peers.len() == 1;
        joined || is_closed(stream.try_clone().expect("descriptor"))
    });
    assert!(names(victim.path()).is_empty(), "{:?}", names(victim.path()));
    drop(owner);
    assert!(names(&moved).is_empty() && names(victim.path()).is_empty());
}

/// Has this process, a child, so many descriptors at most while it does something.
fn with_descriptors<T>(most: u64, work: impl FnOnce() -> T) -> T {
    let old = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..old }).expect("a lower limit");
    let result = work();
    setrlimit(Resource::Nofile, old).expect("the limit that was");
    result
}

#[test]
fn peers_that_left_unheard_take_no_seat() {
    in_child(
        "node_hostile::peers_that_left_unheard_take_no_seat",
        |command| command,
        || {
            let place = Place::new();
            let owner = with_descriptors(64, || place.serve("multi"));
            for n in 0..40 {
                let peer = Raw::join(&place.ctl(), &place.home.path().join(n.to_string()));
                peer.data.send(&broadcast(n, 60)).expect("send");
                drop(peer);
                until_peers(&*owner, 0);
            }
            let seated: Vec<_> = (0..16).map(|_| place.join()).collect();
            assert_eq!(owner.stats().peers.len(), seated.len());
            send(&*seated[0], &broadcast(50, 61));
            // What the last ones said was kept as long as there was room.
            until("a frame of one with a seat comes", || take(&*owner).contains(&61));
        },
    );
}

#[test]
fn mute_connections_leave_descriptors_to_a_small_process() {
    in_child(
        "node_hostile::mute_connections_leave_descriptors_to_a_small_process",
        |command| command,
        || {
            let place = Place::new();
            let owner = with_descriptors(64, || place.serve("hub"));
            let descriptors = || fs::read_dir("/proc/self/fd").expect("/proc").count();
            let before = descriptors();
            let mute: Vec<_> = (0..100).map(|_| connect(&place.ctl())).collect();
            drop(place.join());
            let taken = descriptors() - before - mute.len();
            assert!(taken <= 16 + 2, "{taken} of 64 descriptors");
            drop(owner);
        },
    );
}
