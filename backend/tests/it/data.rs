//! Frames between hand-driven virtqueues and a real switch.

use std::time::{Duration, Instant};

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};

use crate::driver::{CSUM, Driver, EVENT_IDX, INDIRECT, MQ, MRG_RXBUF, NEXT, VERSION_1, WRITE};
use crate::world::{Backend, LIMIT, Switch, wait_for};

const MODERN: u64 = VERSION_1 | EVENT_IDX | INDIRECT | MRG_RXBUF | CSUM;
const QUIET: Duration = Duration::from_millis(150);

struct Net {
    switch: Switch,
    backend: Backend,
    driver: Driver,
    dir: tempfile::TempDir,
}

fn net(features: u64) -> Net {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let backend = Backend::on(&switch, &socket);
    let driver = Driver::connect(&socket, features, 1);
    Net { switch, backend, driver, dir }
}

/// An Ethernet broadcast of `len` bytes with a pattern that depends on `seed`.
fn frame(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xff; 6];
    bytes.extend([0x52, 0x54, 0, 0, 0, seed, 0x88, 0xb5]);
    let pattern = (0u8..=255).cycle().map(|b| b.wrapping_mul(31).wrapping_add(seed));
    bytes.extend(pattern.take(len - 14));
    bytes
}

#[test]
fn tx_frames_arrive_however_they_are_cut() {
    for (features, header) in [(MODERN, 12), (0, 10), (MRG_RXBUF, 12), (VERSION_1, 12)] {
        let mut net = net(features);
        let station = net.switch.station();
        for (seed, piece) in [(1, 2000), (2, header), (3, 100), (4, 7)] {
            let sent = frame(seed, 1514);
            net.driver.tx().send(&vec![0; header], &sent, piece);
            assert_eq!(net.driver.tx().used(), (0, 0));
            assert_eq!(station.receive(LIMIT).unwrap(), sent, "features {features:#x}, pieces of {piece}");
        }
    }
}

#[test]
fn tx_indirect_tables_are_followed() {
    let mut net = net(MODERN);
    let station = net.switch.station();
    let sent = frame(9, 60);
    let tx = net.driver.tx();
    tx.send(&[0; 12], &sent, 200); // leaves header and frame in the first buffer
    tx.used();
    station.receive(LIMIT).unwrap();
    let first = tx.buffer(0) - 80;
    let table = tx.buffer(32);
    tx.descriptor(Some(table), 0, first, 12, NEXT, 1);
    tx.descriptor(Some(table), 1, first + 12, 60, 0, 0);
    tx.descriptor(None, 5, table, 32, 4, 0);
    tx.offer(5);
    tx.kick();
    assert_eq!(tx.used(), (5, 0));
    assert_eq!(station.receive(LIMIT).unwrap(), sent);
}

#[test]
fn tx_checksums_are_completed() {
    let mut net = net(MODERN);
    let station = net.switch.station();
    for piece in [2000, 5, 61] {
        let payload: Vec<u8> = (0..999u32).map(|i| (i * 13).to_le_bytes()[0]).collect();
        let mut packet = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1, 2)
            .write(&mut packet, &payload)
            .unwrap();
        let whole = packet.clone();
        // What a driver leaves: the pseudo header's sum, not complemented, in the checksum field.
        let mut pseudo = u32::from(17u8) + u32::try_from(packet.len() - 34).unwrap();
        pseudo += packet[26..34].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
        let folded = u16::try_from((pseudo & 0xffff) + (pseudo >> 16)).unwrap();
        packet[40..42].copy_from_slice(&folded.to_be_bytes());
        net.driver.tx().send(&[1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0], &packet, piece);
        net.driver.tx().used();
        let got = station.receive(LIMIT).unwrap();
        assert_eq!(got, whole);
        let sliced = SlicedPacket::from_ethernet(&got).unwrap();
        assert!(matches!(sliced.transport, Some(TransportSlice::Udp(_))));
    }
}

#[test]
fn tx_nonsense_is_returned_and_the_queue_goes_on() {
    let mut net = net(MODERN & !CSUM);
    let station = net.switch.station();
    let good = frame(1, 100);
    let tx = net.driver.tx();
    tx.send(&[0; 5], &[], 2000); // shorter than a header
    tx.send(&[0; 12], &good[..13], 2000); // shorter than Ethernet
    tx.send(&[1, 0, 0, 0, 0, 0, 14, 0, 2, 0, 0, 0], &good, 2000); // a checksum that was not negotiated
    tx.send(&[0, 1, 0, 0, 100, 0, 14, 0, 2, 0, 0, 0], &good, 2000); // a segmentation that was not offered
    for _ in 0..4 {
        assert_eq!(tx.used().1, 0);
    }
    tx.send(&[1, 0, 0, 0, 0, 0, 14, 0, 2, 0, 0, 0], &frame(1, 10_000), 2000); // longer than any link carries
    assert_eq!(tx.used(), (0, 0));
    for head in 20..28u16 {
        // Eight descriptors over all of memory: 32 MiB that must not be summed.
        let (flags, next) = if head < 27 { (NEXT, head + 1) } else { (0, 0) };
        tx.descriptor(None, head, 0, 4 << 20, flags, next);
    }
    tx.offer(20);
    tx.kick();
    assert_eq!(tx.used(), (20, 0));
    tx.descriptor(None, 7, 0xffff_ffff_0000, 100, 0, 0); // outside memory
    tx.offer(7);
    tx.descriptor(None, 8, 0, 100, NEXT, 8); // a loop
    tx.offer(8);
    tx.descriptor(None, 9, 0, 100, WRITE, 0); // not ours to read
    tx.offer(9);
    tx.kick();
    assert_eq!([tx.used(), tx.used(), tx.used()], [(7, 0), (8, 0), (9, 0)]);
    tx.send(&[0; 12], &good, 2000);
    tx.used();
    assert_eq!(station.receive(LIMIT).unwrap(), good);
    assert_eq!(station.receive(QUIET), None, "nothing else came through");
}

#[test]
fn tx_waits_for_a_stopped_switch_and_loses_nothing() {
    let mut net = net(MODERN);
    let station = net.switch.station();
    net.switch.signal(rustix::process::Signal::STOP);
    let count = 220u16;
    let tx = net.driver.tx();
    for number in 0..count {
        let at = tx.buffer(1012);
        let mut bytes = vec![0; 12];
        bytes.extend(frame(number.to_le_bytes()[0], 1000));
        tx.send_at(at, &bytes, number);
    }
    let since = Instant::now();
    tx.kick();
    let taken = wait_for("a full switch", || (tx.used_idx() > 50).then(|| tx.used_idx()));
    // After a second that is dropped for which there is no room.
    let is_late = since.elapsed() > Duration::from_millis(900);
    assert!(taken < count || is_late, "a switch that stands still cannot have taken {taken}");
    net.switch.signal(rustix::process::Signal::CONT);
    wait_for("all to be taken", || (tx.used_idx() == count).then_some(()));
    // The switch itself may lose what comes too fast for the receiver's queue, but never the order.
    let mut numbers = Vec::new();
    while let Some(got) = station.receive(QUIET) {
        numbers.push(got[11]);
        assert_eq!(got, frame(got[11], 1000));
    }
    assert!(numbers.len() > 50 && numbers.is_sorted(), "{numbers:?}");
}

#[test]
fn rx_fills_buffers_and_tells() {
    for (features, header) in [(MODERN, 12usize), (0, 10), (VERSION_1, 12)] {
        let mut net = net(features);
        let station = net.switch.station();
        let buffers = net.driver.rx().post(8, 1600);
        net.driver.rx().kick();
        for (seed, len) in [(1, 60), (2, 1514), (3, 14)] {
            let sent = frame(seed, len);
            net.driver.rx().want_call();
            station.send(&sent);
            let rx = net.driver.rx();
            let (head, used) = rx.used();
            assert_eq!(usize::try_from(used).unwrap(), header + len);
            let got = rx.bytes(buffers[usize::from(head)], header + len);
            assert_eq!(got[header..], sent);
            let count: &[u8] = if header == 12 { &[1, 0] } else { &[] };
            assert_eq!(got[..header], [&[0; 10], count].concat());
            wait_for("the call", || rx.call.read().ok());
        }
    }
}

#[test]
fn rx_mergeable_frame_appears_all_at_once() {
    let mut net = net(MODERN);
    let station = net.switch.station();
    let buffers = net.driver.rx().post(200, 256);
    net.driver.rx().kick();
    let rx = net.driver.rx();
    for round in 0..20u8 {
        let sent = frame(round, 1500);
        station.send(&sent);
        // 1512 bytes in pieces of 256 are 6 chains; no other number may ever be seen.
        let before = rx.seen;
        let count = wait_for("the frame", || Some(rx.used_idx().wrapping_sub(before)).filter(|n| *n > 0));
        assert_eq!(count, 6);
        let mut got = Vec::new();
        for _ in 0..6 {
            let (head, len) = rx.used();
            got.extend(rx.bytes(buffers[usize::from(head)], usize::try_from(len).unwrap()));
        }
        assert_eq!(got[10..12], [6, 0]);
        assert_eq!(got[12..], sent);
    }
}

#[test]
fn rx_long_frame_without_mergeable_buffers_is_discarded() {
    let mut net = net(VERSION_1);
    let station = net.switch.station();
    let buffers = net.driver.rx().post(4, 300);
    net.driver.rx().kick();
    station.send(&frame(1, 1000));
    let sent = frame(2, 100);
    station.send(&sent);
    let rx = net.driver.rx();
    assert_eq!(rx.used(), (0, 112), "no buffer was spent on what was dropped");
    assert_eq!(rx.bytes(buffers[0] + 12, 100), sent);
}

#[test]
fn rx_goes_on_after_a_frame_that_found_too_few_buffers() {
    let mut net = net(MODERN);
    let station = net.switch.station();
    net.driver.rx().post(36, 40);
    net.driver.rx().kick();
    station.send(&frame(1, 1500)); // needs 38 of them
    station.send(&frame(2, 20));
    assert_eq!(net.driver.rx().used(), (0, 32), "no buffer was spent on what was dropped");
}

#[test]
fn rx_of_a_plain_driver_after_a_mergeable_one_is_not_spread() {
    let net = net(MODERN);
    let station = net.switch.station();
    let Net { switch: _switch, backend: _backend, mut driver, dir } = net;
    driver.rx().post(4, 1600);
    driver.rx().kick();
    station.send(&frame(1, 100));
    driver.rx().used();
    drop(driver);
    let mut driver = Driver::connect(&dir.path().join("n0"), 0, 1);
    let buffers = driver.rx().post(4, 600);
    driver.rx().kick();
    station.send(&frame(2, 1000)); // dropped whole
    station.send(&frame(3, 100));
    assert_eq!(driver.rx().used(), (0, 110));
    assert_eq!(driver.rx().bytes(buffers[0] + 10, 100), frame(3, 100));
}

#[test]
fn rx_waits_for_buffers() {
    let mut net = net(MODERN);
    let station = net.switch.station();
    let sent: Vec<_> = (0..40).map(|seed| frame(seed, 200)).collect();
    sent.iter().for_each(|frame| station.send(frame));
    let rx = net.driver.rx();
    for expected in sent.chunks(10) {
        let buffers = rx.post(10, 1600);
        rx.kick();
        for frame in expected {
            let (head, _) = rx.used();
            assert_eq!(rx.bytes(buffers[usize::from(head)] + 12, 200), *frame);
        }
    }
}

#[test]
fn disabled_rings_carry_nothing() {
    use vhost::vhost_user::VhostUserFrontend;
    let mut net = net(MODERN);
    let station = net.switch.station();
    net.driver.frontend.set_vring_enable(0, false).unwrap();
    net.driver.frontend.set_vring_enable(1, false).unwrap();
    net.driver.rx().post(4, 1600);
    net.driver.rx().kick();
    net.driver.tx().send(&[0; 12], &frame(1, 100), 2000);
    assert_eq!(net.driver.tx().used(), (0, 0), "discarded");
    station.send(&frame(2, 100));
    assert_eq!(station.receive(QUIET), None);
    assert_eq!(net.driver.rx().used_idx(), 0);
    net.driver.frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(net.driver.rx().used().1, 112, "what waited in the socket arrives now");
}

#[test]
fn every_queue_pair_sends() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let nic = format!("socket-path={},link={},queues=2", socket.display(), switch.path.display());
    let _backend = Backend::start(&["--nic", &nic], &socket);
    let mut driver = Driver::connect(&socket, MODERN | MQ, 2);
    let station = switch.station();
    for queue in [3, 1, 3] {
        let sent = frame(queue, 333);
        let queue = &mut driver.queues[usize::from(queue)];
        queue.send(&[0; 12], &sent, 2000);
        queue.used();
        assert_eq!(station.receive(LIMIT).unwrap(), sent);
    }
    let buffers = driver.rx().post(2, 1600);
    driver.rx().kick();
    station.send(&frame(7, 80));
    let (head, _) = driver.rx().used();
    assert_eq!(driver.rx().bytes(buffers[usize::from(head)] + 12, 80), frame(7, 80));
}

#[test]
fn answers_arrive_at_the_queue_pair_that_asked() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let nic = format!("socket-path={},link={},queues=4", socket.display(), switch.path.display());
    let _backend = Backend::start(&["--nic", &nic], &socket);
    let mut driver = Driver::connect(&socket, MODERN | MQ, 4);
    let station = switch.station();
    for pair in 0..4 {
        driver.queues[2 * pair].post(40, 1600);
        driver.queues[2 * pair].kick();
    }
    let datagram = |from: u16, to: u16| {
        let mut frame = Vec::new();
        let packet =
            PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 1], 64);
        packet.udp(from, to).write(&mut frame, b"knock").unwrap();
        frame
    };
    for (port, pair) in [(1000, 3), (1001, 1), (1000, 0), (1002, 2), (1000, 2)] {
        let tx = &mut driver.queues[2 * pair + 1];
        tx.send(&[0; 12], &datagram(port, 53), 2000);
        tx.used();
        assert_eq!(station.receive(LIMIT).unwrap(), datagram(port, 53));
        for _ in 0..3 {
            station.send(&datagram(53, port));
            assert_eq!(driver.queues[2 * pair].used().1, 12 + 47);
        }
    }
    for port in 2000..2100 {
        station.send(&datagram(53, port));
    }
    let seen = |driver: &Driver, pair: usize| driver.queues[2 * pair].used_idx();
    wait_for("all of a hundred flows", || {
        ((0..4).map(|pair| seen(&driver, pair)).sum::<u16>() == 115).then_some(())
    });
    assert!((0..4).all(|pair| seen(&driver, pair) > 10), "they spread over all queues");
}

#[test]
fn several_links_all_get_what_is_sent_and_all_deliver() {
    let dir = tempfile::tempdir().unwrap();
    let switches = ["a", "b"].map(|name| Switch::start(&dir.path().join(name)));
    let socket = dir.path().join("n0");
    let nic = format!(
        "socket-path={},link={},link={}",
        socket.display(),
        switches[0].path.display(),
        switches[1].path.display()
    );
    let _backend = Backend::start(&["--nic", &nic], &socket);
    let mut driver = Driver::connect(&socket, MODERN, 1);
    let stations = [switches[0].station(), switches[1].station()];
    let sent = frame(1, 100);
    driver.tx().send(&[0; 12], &sent, 2000);
    for station in &stations {
        assert_eq!(station.receive(LIMIT).unwrap(), sent);
    }
    driver.rx().post(4, 1600);
    driver.rx().kick();
    stations.iter().for_each(|station| station.send(&frame(2, 100)));
    assert_eq!([driver.rx().used().1, driver.rx().used().1], [112, 112]);
    assert_eq!(stations[0].receive(QUIET), None, "links do not hear each other");
}

#[test]
fn stopped_ring_goes_on_where_it_was() {
    use vhost::VhostBackend;
    let mut net = net(MODERN);
    let station = net.switch.station();
    net.driver.rx().post(6, 1600);
    net.driver.rx().kick();
    station.send(&frame(1, 100));
    net.driver.rx().used();
    assert_eq!(net.driver.frontend.get_vring_base(0).unwrap(), 1, "five chains were taken but not used");
    net.driver.start(0, 1);
    for seed in 2..7 {
        station.send(&frame(seed, 100));
    }
    let heads: Vec<u16> = (0..5).map(|_| net.driver.rx().used().0).collect();
    assert_eq!(heads, [1, 2, 3, 4, 5]);
}

#[test]
fn second_front_end_is_served_after_the_first() {
    let net = net(MODERN);
    let station = net.switch.station();
    let Net { switch: _switch, backend: _backend, driver, dir } = net;
    drop(driver);
    let mut driver = Driver::connect(&dir.path().join("n0"), MODERN, 1);
    let sent = frame(3, 64);
    driver.tx().send(&[0; 12], &sent, 2000);
    assert_eq!(station.receive(LIMIT).unwrap(), sent);
}

#[test]
fn lost_switch_comes_back() {
    let mut net = net(MODERN);
    let path = net.switch.path.clone();
    net.switch.signal(rustix::process::Signal::KILL);
    assert!(net.backend.stderr_line().contains("is down"));
    net.driver.tx().send(&[0; 12], &frame(1, 100), 2000);
    assert_eq!(net.driver.tx().used(), (0, 0), "the guest never hangs on a dead network");
    net.switch = Switch::start(&path);
    assert!(net.backend.stderr_line().contains("is up again"));
    let station = net.switch.station();
    let sent = frame(2, 100);
    net.driver.tx().send(&[0; 12], &sent, 2000);
    assert_eq!(station.receive(LIMIT).unwrap(), sent);
}

#[test]
fn counters_are_said_at_the_end_of_a_back_end_with_its_front_end_still_there() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("n0");
    let args = ["--log-level", "info", "--link", "null://", "--socket-path", socket.to_str().unwrap()];
    let mut backend = Backend::start(&args, &socket);
    let mut driver = Driver::connect(&socket, MODERN, 1);
    driver.tx().send(&[0; 12], &frame(1, 60), 2000);
    assert_eq!(driver.tx().used(), (0, 0));
    assert_eq!(backend.terminate(), Some(0));
    let log = backend.stderr();
    assert!(log.contains("tx_frames=1 tx_bytes=60"), "{log}");
}
