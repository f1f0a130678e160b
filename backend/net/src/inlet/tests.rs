use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use offload::header::{GSO_NONE, GSO_TCPV4, NEEDS_CSUM};
use offload::{HEAD_MAX, Plan};
use proptest::prelude::*;
use vdeplug::Header;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4};

use super::*;
use crate::guest::{Guest, MERGEABLE, event, was_written};

const CSUM: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM;
const TSO: u64 = 1 << VIRTIO_NET_F_GUEST_TSO4;

fn started(guest: &Guest, features: u64) -> Inlet {
    let inlet = Inlet::new("test".into());
    inlet.start(Queue::new(guest.start(features, 0)));
    inlet
}

fn deliver(inlet: &Inlet, header: Header, bytes: &[u8]) {
    let pieces: Vec<_> = bytes.chunks(301).map(TxBuf::new).collect();
    inlet.deliver(std::iter::once(&TxFrame { header, ..TxFrame::new(&pieces) }));
}

fn plain(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + seed).to_le_bytes()[0]).collect()
}

fn count(inlet: &Inlet, name: &str) -> u64 {
    inlet.counters().list().into_iter().find(|(known, _)| *known == name).unwrap().1
}

/// TCP over IPv4 with so much payload, to be cut into segments of 1000 bytes or only to be summed up.
fn tcp(seed: usize, payload: usize, gso_type: u8) -> (Header, Vec<u8>) {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(u16::try_from(40 + payload).unwrap().to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.extend(plain(seed, payload));
    let gso_size = if gso_type == GSO_NONE { 0 } else { 1000 };
    let hdr_len = if gso_type == GSO_NONE { 0 } else { 54 };
    (Header { flags: NEEDS_CSUM, gso_type, hdr_len, gso_size, csum_start: 34, csum_offset: 16 }, frame)
}

/// What goes over a network in the end.
fn on_the_wire(header: &Header, frame: &[u8]) -> Vec<Vec<u8>> {
    if header.gso_type == GSO_NONE {
        let mut frame = frame.to_vec();
        offload::complete(header, &mut frame).unwrap();
        return vec![frame];
    }
    let plan = Plan::new(header, frame, frame.len()).unwrap();
    let mut room = [0; HEAD_MAX];
    let cut = |index| {
        let (head, payload) = plan.segment(index, frame, &mut room);
        [head, payload].concat()
    };
    (0..plan.segments()).map(cut).collect()
}

#[test]
fn deliver_without_a_queue_is_counted() {
    let inlet = Inlet::new("test".into());
    deliver(&inlet, Header::NONE, &plain(0, 60));
    assert_eq!(count(&inlet, "rx_no_queue"), 1);
    assert!(!inlet.is_live() && inlet.takes() == Offloads::default());
}

#[test]
fn disabled_and_broken_queues_are_as_good_as_none() {
    let mut guest = Guest::new();
    let inlet = started(&guest, MERGEABLE);
    deliver(&inlet, Header::NONE, &plain(0, 60));
    assert_eq!(count(&inlet, "rx_waited"), 1);
    inlet.change(|queue| queue.enabled = false);
    assert!(!inlet.is_live());
    deliver(&inlet, Header::NONE, &plain(1, 60));
    assert_eq!(count(&inlet, "rx_no_queue"), 2, "what waited, and what came");
    let asker = Arc::new(event());
    assert!(!inlet.is_ready(&asker) && !was_written(&asker));
    guest.post(4, 2000);
    inlet.change(|queue| queue.enabled = true);
    assert!(was_written(&asker) && inlet.is_ready(&asker));
    deliver(&inlet, Header::NONE, &plain(2, 60));
    assert_eq!(guest.take(), [(Header::NONE, plain(2, 60))]);
    guest.break_ring();
    for seed in 0..5 {
        deliver(&inlet, Header::NONE, &plain(seed, 60));
    }
    assert!(!inlet.is_live());
    assert_eq!((count(&inlet, "broken_rings"), count(&inlet, "rx_no_queue")), (1, 7));
    assert!(inlet.stop().is_some());
}

#[test]
fn endless_chains_are_the_own_workers_to_walk() {
    let mut guest = Guest::new();
    let inlet = started(&guest, MERGEABLE);
    guest.post_endless();
    deliver(&inlet, Header::NONE, &plain(0, 60));
    let met = guest.used_idx();
    assert!((1..64).contains(&met), "one delivery met {met} of them");
    deliver(&inlet, Header::NONE, &plain(1, 60));
    assert_eq!(guest.used_idx(), met, "the next one leaves them alone");
    assert_eq!((count(&inlet, "rx_waited"), count(&inlet, "rx_frames")), (2, 0));
    // The worker goes on by itself until they are all gone, a few at a time.
    while was_written(&guest.kick) {
        let before = guest.used_idx();
        inlet.kicked();
        assert!((1..64).contains(&(guest.used_idx() - before)));
    }
    guest.discard();
    guest.post(4, 2000);
    inlet.kicked();
    assert_eq!(guest.take(), [(Header::NONE, plain(0, 60)), (Header::NONE, plain(1, 60))]);
    deliver(&inlet, Header::NONE, &plain(2, 60));
    assert_eq!(guest.take(), [(Header::NONE, plain(2, 60))], "all is as before");
}

#[test]
fn starved_guest_gets_everything_in_order() {
    let mut guest = Guest::new();
    let inlet = started(&guest, MERGEABLE | CSUM | TSO);
    let frames: Vec<_> = (0..600).map(|seed| plain(seed, 60 + seed % 1454)).collect();
    frames.iter().for_each(|frame| deliver(&inlet, Header::NONE, frame));
    assert_eq!((count(&inlet, "rx_waited"), count(&inlet, "rx_overrun")), (600, 0));
    let mut got = Vec::new();
    while got.len() < frames.len() {
        assert!(guest.post(7, 900) > 0);
        inlet.kicked();
        let new = guest.take();
        assert!(!new.is_empty());
        got.extend(new.into_iter().map(|(_, frame)| frame));
    }
    assert!(got == frames);
    assert_eq!(count(&inlet, "rx_frames"), 600);
    inlet.rest();
    assert_eq!(inlet.lock().backlog.used(), 0);
}

#[test]
fn readers_are_stopped_before_anything_is_lost_and_woken_again() {
    let mut guest = Guest::new();
    let inlet = started(&guest, MERGEABLE);
    let asker = Arc::new(event());
    let mut sent = 0;
    while inlet.is_ready(&asker) {
        deliver(&inlet, Header::NONE, &plain(sent, 1514));
        sent += 1;
    }
    assert!((600..700).contains(&sent), "{sent}");
    // Who has read already can still deliver; in the end it is lost.
    for _ in 0..64 {
        deliver(&inlet, Header::NONE, &plain(sent, 9000));
        sent += 1;
    }
    assert_eq!(count(&inlet, "rx_overrun"), 0);
    for _ in 0..100 {
        deliver(&inlet, Header::NONE, &plain(sent, 1514));
    }
    assert!(count(&inlet, "rx_overrun") > 0);
    let mut got = 0;
    while !was_written(&asker) {
        assert!(!inlet.is_ready(&asker));
        guest.post(100, 10_000);
        inlet.kicked();
        for (_, frame) in guest.take() {
            assert!(frame == plain(got, frame.len()));
            got += 1;
        }
    }
    assert!(inlet.is_ready(&asker) && got > 500, "{got}");
}

#[test]
fn kicks_are_asked_for_only_while_something_waits() {
    let mut guest = Guest::new();
    let inlet = started(&guest, MERGEABLE & !(1 << 29));
    let no_kicks = |guest: &Guest| guest.used_flags() == 1;
    guest.post(1, 2000);
    deliver(&inlet, Header::NONE, &plain(0, 60));
    assert!(no_kicks(&guest));
    deliver(&inlet, Header::NONE, &plain(1, 60));
    assert!(!no_kicks(&guest));
    guest.post(1, 2000);
    inlet.kicked();
    assert!(no_kicks(&guest));
    assert_eq!(guest.take().len(), 2);
}

#[test]
fn forged_headers_are_dropped() {
    let mut guest = Guest::new();
    let inlet = started(&guest, MERGEABLE | CSUM | TSO);
    guest.post(100, 2000);
    let (good, bytes) = tcp(0, 5000, GSO_TCPV4);
    for header in [
        Header { flags: 4, ..Header::NONE },
        Header { gso_type: 3, ..good },
        Header { gso_size: 0, ..good },
        Header { csum_start: 6000, gso_type: GSO_NONE, ..good },
    ] {
        deliver(&inlet, header, &bytes);
    }
    deliver(&inlet, Header::NONE, &bytes[..13]);
    deliver(&inlet, Header::NONE, &vec![0; 70_000]);
    deliver(&inlet, good, &bytes);
    assert!(guest.take() == [(good, bytes)]);
    let counts = ["rx_bad_header", "rx_runt", "rx_too_long"].map(|name| count(&inlet, name));
    assert_eq!(counts, [4, 1, 1]);
}

#[test]
fn stopped_queue_is_touched_no_more() {
    let mut guest = Guest::new();
    let inlet = Arc::new(Inlet::new("test".into()));
    let over = Arc::new(AtomicBool::new(false));
    let deliverers = [0, 1].map(|_| {
        let (inlet, over) = (inlet.clone(), over.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                deliver(&inlet, Header::NONE, &plain(3, 600));
            }
        })
    });
    let (mut next, mut total) = (0, 0);
    for _ in 0..200 {
        inlet.start(Queue::new(guest.start(MERGEABLE, next)));
        guest.post(20, 300);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while guest.used_idx() == next && std::time::Instant::now() < deadline {
            inlet.kicked();
        }
        next = inlet.stop().unwrap().ring.next_avail();
        assert_eq!(guest.used_idx(), next, "what was taken was given back");
        for (_, frame) in guest.take() {
            assert!(frame == plain(3, 600));
            total += 1;
        }
        assert_eq!(guest.used_idx(), next);
    }
    over.store(true, Ordering::Relaxed);
    deliverers.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(total >= 200);
    assert_eq!(count(&inlet, "rx_frames"), total);
}

/// Something that happens to an inlet.
#[derive(Clone, Debug)]
enum Step {
    /// A frame with so much payload, of this kind of need.
    Deliver(usize, u8),
    /// The guest posts so many buffers and kicks.
    Post(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..20_000, 0u8..3).prop_map(|(payload, kind)| Step::Deliver(payload, kind)),
        2 => (1u16..30).prop_map(Step::Post),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the guest negotiated and whenever it has buffers: what it gets is on the wire what was delivered, in order.
    #[test]
    fn guest_gets_what_was_delivered(
        steps in prop::collection::vec(step(), 1..60),
        features in prop::sample::select(vec![0, CSUM, CSUM | TSO]),
        event_idx in any::<bool>(),
        len in prop::sample::select(vec![1600u32, 4096, 0x1_1000]),
    ) {
        let mut guest = Guest::new();
        let features = features | if event_idx { MERGEABLE } else { MERGEABLE & !(1 << 29) };
        let inlet = started(&guest, features);
        let (mut sent, mut got) = (Vec::new(), Vec::new());
        for (seed, step) in steps.iter().enumerate() {
            match *step {
                Step::Deliver(payload, kind) => {
                    let payload = if kind == 2 { payload } else { payload % 1440 };
                    let gso_type = if kind == 2 { GSO_TCPV4 } else { GSO_NONE };
                    let (header, frame) = tcp(seed, payload, gso_type);
                    let header = if kind == 0 { Header::NONE } else { header };
                    deliver(&inlet, header, &frame);
                    sent.extend(on_the_wire(&header, &frame));
                }
                Step::Post(count) => {
                    guest.post(count, len);
                    inlet.kicked();
                }
            }
            got.extend(guest.take());
        }
        while !inlet.lock().backlog.is_empty() {
            prop_assert!(guest.post(200, len) > 0);
            inlet.kicked();
            got.extend(guest.take());
        }
        let accepted = crate::features::Accepted::new(features);
        let fits = |header: &Header| accepted.rx.allow(header);
        prop_assert!(got.iter().all(|(header, _)| fits(header)));
        let wire: Vec<_> = got.iter().flat_map(|(header, frame)| on_the_wire(header, frame)).collect();
        prop_assert!(wire == sent, "{} frames instead of {}", wire.len(), sent.len());
        prop_assert_eq!(count(&inlet, "rx_frames"), got.len() as u64);
    }
}

#[test]
fn level_tells_what_the_guest_offers() {
    let mut guest = Guest::new();
    let inlet = Inlet::new("test".into());
    assert_eq!(inlet.level(), Level::default());
    inlet.start(Queue::new(guest.start(MERGEABLE, 0)));
    guest.post(5, 2000);
    assert_eq!(inlet.level(), Level { size: 256, enabled: true, waiting: 5 });
    // One of the five is used, the others are in the window.
    deliver(&inlet, Header::NONE, &plain(1, 100));
    inlet.change(|queue| queue.enabled = false);
    assert_eq!(inlet.level(), Level { size: 256, enabled: false, waiting: 4 });
    inlet.stop();
    assert_eq!(inlet.level(), Level::default());
}
