//! Nodes under load: nothing is lost that there was room for, and no readiness is missed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vdeplug::{Link, TxBuf, TxFrame};

use crate::harness::{LONG, broadcast, open, receive, until};
use crate::node_peers::{Place, drain, until_peers};

/// Receives as the back end does, only when an edge-triggered epoll set says so, until that many frames came.
fn receive_on_edges(link: &dyn Link, count: usize) {
    let epoll = epoll::create(CreateFlags::CLOEXEC).expect("epoll");
    epoll::add(&epoll, link.data_fd(), EventData::new_u64(0), EventFlags::IN | EventFlags::ET).expect("add");
    let (start, mut got) = (Instant::now(), 0);
    while got < count {
        let mut events = Vec::with_capacity(1);
        let limit = Timespec { tv_sec: 5, tv_nsec: 0 };
        let edges = epoll::wait(&epoll, spare_capacity(&mut events), Some(&limit)).expect("wait");
        assert!(edges > 0 && start.elapsed() < LONG, "an edge was missed: {got} of {count} frames came");
        got += drain(link).len();
    }
    assert_eq!(got, count);
}

/// Sends frames of three sizes until that many went, waiting while the link is full.
fn send_all(link: &dyn Link, from: u8, count: usize) {
    let frames = [broadcast(from, 60), broadcast(from, 300), broadcast(from, 1514)];
    let bufs = frames.each_ref().map(|frame| [TxBuf::new(frame)]);
    let batch: Vec<_> = bufs.iter().cycle().take(30).map(|bufs| TxFrame::new(bufs)).collect();
    let mut sent = 0;
    until("all is sent", || {
        sent += link.send(&batch[..batch.len().min(count - sent)]).expect("alive").taken;
        sent == count
    });
}

#[test]
fn owner_misses_no_edge() {
    const PEERS: u8 = 3;
    const FRAMES: usize = 2000;
    for scheme in ["multi", "bonding", "hub", "switch"] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let peers: Vec<_> = (0..PEERS).map(|_| place.join()).collect();
        std::thread::scope(|scope| {
            for (from, peer) in (0..PEERS).zip(&peers) {
                scope.spawn(move || send_all(&**peer, from, FRAMES));
            }
            receive_on_edges(&*owner, usize::from(PEERS) * FRAMES);
        });
        assert_eq!(owner.stats().total.rx_dropped, 0, "{scheme}");
    }
}

#[test]
fn batches_of_a_peer_stay_in_order() {
    // Two threads carry them. No more than fits the receiver's queue, so all of them arrive.
    let lens: Vec<usize> = (60..1400).collect();
    let bytes = broadcast(1, 1400);
    let bufs: Vec<_> = lens.iter().map(|len| [TxBuf::new(&bytes[..*len])]).collect();
    let frames: Vec<_> = bufs.iter().map(|bufs| TxFrame::new(bufs)).collect();
    for scheme in ["hub", "switch"] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let (from, to) = (place.join(), place.join());
        for round in 0..20 {
            let (mut sent, mut got, mut heard) = (0, Vec::new(), Vec::new());
            until("all arrive", || {
                sent += from.send(&frames[sent..]).expect("alive").taken;
                got.extend(drain(&*to));
                heard.extend(drain(&*owner));
                got.len() == lens.len() && heard.len() == lens.len()
            });
            assert_eq!((&got, &heard), (&lens, &lens), "{scheme}, round {round}");
        }
    }
}

#[test]
fn what_peers_sent_before_they_left_arrives() {
    // Frames of 64 peers that left wait for the owner, whatever else it does meanwhile; those of more need not.
    const PEERS: usize = 60;
    // One at a time where peers hear each other: what is sent to a socket that is gone makes the kernel throw away
    // what came from there.
    for (scheme, threads) in [("multi", 4), ("hub", 1), ("switch", 1)] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let (place, running) = (&place, &AtomicUsize::new(threads.into()));
        std::thread::scope(|scope| {
            for from in 0..threads {
                scope.spawn(move || {
                    for _ in 0..PEERS / usize::from(threads) {
                        let peer = place.join();
                        send_all(&*peer, from, 3);
                    }
                    running.fetch_sub(1, Ordering::Relaxed);
                });
            }
            receive_on_edges(&*owner, PEERS * 3);
        });
        assert_eq!(running.load(Ordering::Relaxed), 0);
        until_peers(&*owner, 0);
    }
}

#[test]
fn peers_that_leave_wake_the_owner_for_frames_only() {
    for scheme in ["multi", "bonding", "hub", "switch"] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("epoll");
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, owner.data_fd(), EventData::new_u64(0), flags).expect("add");
        let wakes = || {
            let mut events = Vec::with_capacity(1);
            epoll::wait(&epoll, spare_capacity(&mut events), Some(&Timespec::default())).expect("wait")
        };
        for count in [1, 2, 1] {
            let peers: Vec<_> = (0..count).map(|_| place.join()).collect();
            drop(peers);
            until_peers(&*owner, 0);
            assert_eq!(wakes(), 0, "{scheme}: {count} peers that said nothing");
        }
        send_all(&*place.join(), 7, 1);
        until_peers(&*owner, 0);
        assert_eq!((wakes(), receive(&*owner)), (1, broadcast(7, 60)), "{scheme}");
        let mut fds = [PollFd::from_borrowed_fd(owner.data_fd(), PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&Timespec::default())).expect("poll"), 0, "{scheme}");
    }
}

#[test]
fn peers_that_leave_unheard_are_forgotten_in_the_end() {
    // An owner that only sends would otherwise keep them for ever.
    let place = Place::new();
    let owner = place.serve("multi");
    let before = std::fs::read_dir("/proc/self/fd").expect("/proc").count();
    for from in 0..100 {
        send_all(&*place.join(), from, 1);
    }
    until_peers(&*owner, 0);
    let got = drain(&*owner).len();
    assert!((60..=64).contains(&got), "{got} frames of 100 peers");
    assert!(before > 0);
}

#[test]
fn owners_threads_send_while_peers_come_and_go() {
    for scheme in ["switch", "multi", "bonding"] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let stays = place.join();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for from in 0..2 {
                let (owner, done) = (&owner, &done);
                scope.spawn(move || {
                    // Not for ever: the scope waits for its threads, also when what is below fails.
                    let start = Instant::now();
                    while !done.load(Ordering::Relaxed) && start.elapsed() < LONG {
                        send_all(&**owner, from, 30);
                    }
                });
            }
            for _ in 0..50 {
                drop(place.join());
                drain(&*stays);
            }
            // The threads may not have had their turn yet.
            until("frames are sent", || owner.stats().total.tx_frames > 0);
            done.store(true, Ordering::Relaxed);
        });
        until_peers(&*owner, 1);
        let stats = owner.stats();
        let (_, to_peer) = &stats.peers[0];
        if scheme != "bonding" {
            assert_eq!(to_peer.tx_frames + to_peer.tx_dropped, stats.total.tx_frames, "{scheme}: {stats:?}");
        }
        assert!(to_peer.tx_frames > 0, "{scheme}: {stats:?}");
    }
}

#[test]
fn switch_forgets_in_time_and_takes_the_options() {
    let place = Place::new();
    let owner = open(place.at("switch", "[hashsize=3/hashseed=7/expiretime=1]"));
    let (a, b, c) = (place.join(), place.join(), place.join());
    let to_a = crate::node_peers::unicast(1, 2, 60);
    let start = Instant::now();
    send_all(&*a, 1, 1);
    for link in [&owner, &b, &c] {
        until("the broadcast comes", || !drain(&**link).is_empty());
    }
    // Until the switch has forgotten the first station, only that hears what is for it.
    let mut heard = 0;
    until("the switch forgets", || {
        crate::harness::send(&*b, &to_a);
        until("the frame comes", || {
            heard += drain(&*a).len();
            heard > 0
        });
        heard = 0;
        !drain(&*c).is_empty()
    });
    assert!(start.elapsed().as_millis() > 500, "{:?}", start.elapsed());
}
