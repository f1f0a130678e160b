//! Large frames: segmented on the way to networks that know none, whole or in segments on the way into guests, by what
//! the guest negotiated.

use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use vdeplug::Header;

use crate::driver::{
    CSUM, Driver, EVENT_IDX, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, HOST_ECN, HOST_TSO4, HOST_TSO6,
    HOST_USO, INDIRECT, MRG_RXBUF, Queue, VERSION_1, WRITE,
};
use crate::world::{Backend, LIMIT, Station, Switch};

pub const TX: u64 = VERSION_1 | EVENT_IDX | INDIRECT | CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;
pub const RX: u64 = VERSION_1 | EVENT_IDX | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
const QUIET: Duration = Duration::from_millis(150);

pub const TCPV4: u8 = 1;
pub const TCPV6: u8 = 4;
const UDP: u8 = 5;

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 256).to_le_bytes()[0]).collect()
}

/// A frame with this payload and the header by which it is to be segmented.
pub fn frame(kind: u8, payload: &[u8], size: u16) -> (Header, Vec<u8>) {
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6]);
    let mut frame = Vec::new();
    let v4 = ([10, 0, 0, 1], [10, 0, 0, 2]);
    match kind {
        TCPV4 => ethernet.ipv4(v4.0, v4.1, 64).tcp(1, 2, 1000, 99).psh().ack(5).write(&mut frame, payload),
        TCPV6 => {
            ethernet.ipv6([9; 16], [8; 16], 64).tcp(1, 2, 1000, 99).psh().ack(5).write(&mut frame, payload)
        }
        _ => ethernet.ipv4(v4.0, v4.1, 64).udp(1, 2).write(&mut frame, payload),
    }
    .unwrap();
    let (csum_start, csum_offset) = (if kind == TCPV6 { 54 } else { 34 }, if kind == UDP { 6 } else { 16 });
    let hdr_len = csum_start + if kind == UDP { 8 } else { 20 };
    (Header { flags: 1, gso_type: kind, hdr_len, gso_size: size, csum_start, csum_offset }, frame)
}

/// The payload of a segment, whose checksums are right, and the flag that only the last one has.
fn dissect(segment: &[u8]) -> (Vec<u8>, bool) {
    let sliced = SlicedPacket::from_ethernet(segment).unwrap();
    let net = sliced.net.unwrap();
    if let NetSlice::Ipv4(ip) = &net {
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
    }
    match (sliced.transport.unwrap(), net) {
        (TransportSlice::Tcp(tcp), NetSlice::Ipv4(ip)) => {
            let (from, to) = (ip.header().source(), ip.header().destination());
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(from, to).unwrap());
            (tcp.payload().to_vec(), tcp.psh())
        }
        (TransportSlice::Tcp(tcp), NetSlice::Ipv6(ip)) => {
            let (from, to) = (ip.header().source(), ip.header().destination());
            assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(from, to).unwrap());
            (tcp.payload().to_vec(), tcp.psh())
        }
        (TransportSlice::Udp(udp), NetSlice::Ipv4(ip)) => {
            let (from, to, header) = (ip.header().source(), ip.header().destination(), udp.to_header());
            let expected = header.calc_checksum_ipv4_raw(from, to, udp.payload()).unwrap();
            assert_eq!(header.checksum, expected);
            (udp.payload().to_vec(), false)
        }
        other => panic!("{other:?}"),
    }
}

/// Checks that these are the segments of a frame with that payload, in order.
pub fn assert_segments(segments: &[Vec<u8>], payload: &[u8], size: usize) {
    let mut whole = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let (part, psh) = dissect(segment);
        let last = index + 1 == segments.len();
        assert!(last || part.len() == size, "segment {index} has {}", part.len());
        assert!(last || !psh, "segment {index}");
        whole.extend(part);
    }
    assert_eq!(segments.len(), payload.len().div_ceil(size));
    assert!(whole == payload, "the payload is another one");
}

/// A back end that says at its end what it counted.
fn backend(link: &Path, socket: &Path) -> Backend {
    let [socket_path, link] = [socket, link].map(|path| path.to_str().unwrap());
    Backend::start(&["--log-level", "info", "--socket-path", socket_path, "--link", link], socket)
}

/// What a back end says when its front end has gone.
pub fn counters(driver: Driver, mut backend: Backend) -> String {
    drop(driver);
    backend.terminate();
    backend.stderr()
}

struct Net {
    driver: Driver,
    backend: Backend,
    _switch: Switch,
    _dir: tempfile::TempDir,
}

fn net(features: u64) -> (Net, Station) {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let backend = backend(&switch.path, &socket);
    let driver = Driver::connect(&socket, features, 1);
    let station = switch.station();
    (Net { driver, backend, _switch: switch, _dir: dir }, station)
}

#[test]
fn tx_frame_of_64_kib_arrives_in_segments() {
    for (kind, len, size) in [(TCPV4, 65_495, 1460), (TCPV6, 65_515, 1440), (UDP, 65_507, 1472)] {
        for piece in [70_000, 4096, 401] {
            let (mut net, station) = net(TX);
            let payload = pattern(len);
            let (header, frame) = frame(kind, &payload, size);
            net.driver.tx().send(&header.encode(0), &frame, piece);
            let segments: Vec<_> = (0..len.div_ceil(size.into()))
                .map(|index| station.receive(LIMIT).unwrap_or_else(|| panic!("segment {index} is missing")))
                .collect();
            assert_eq!(segments[0].len(), 1514, "kind {kind}, pieces of {piece}");
            assert_segments(&segments, &payload, size.into());
            assert_eq!(net.driver.tx().used(), (0, 0));
            assert_eq!(station.receive(Duration::ZERO), None);
        }
    }
}

#[test]
fn tx_header_that_does_not_fit_its_frame_is_dropped() {
    let (mut net, station) = net(TX);
    let (good, bytes) = frame(TCPV4, &pattern(5000), 1000);
    let tx = net.driver.tx();
    let bad = [
        Header { gso_type: 3, ..good },
        Header { gso_type: TCPV6, ..good },
        Header { gso_type: UDP, ..good },
        Header { gso_type: 0x80, ..good },
        Header { gso_size: 0, ..good },
        Header { gso_size: 4, ..good },
        Header { flags: 0, ..good },
        Header { csum_start: 60, ..good },
        Header { csum_start: 5053, gso_type: 0, ..good },
    ];
    for header in bad {
        tx.send(&header.encode(0), &bytes, 3000);
        assert_eq!(tx.used(), (0, 0), "{header:?}");
    }
    tx.send(&good.encode(0), &vec![0x45; 70_000], 70_012);
    assert_eq!(tx.used(), (0, 0));
    // Segments that no link can carry, but nothing else is wrong.
    tx.send(&Header { gso_size: 20_000, ..good }.encode(0), &frame(TCPV4, &pattern(50_000), 1).1, 60_000);
    assert_eq!(tx.used(), (0, 0));
    tx.send(&Header { hdr_len: u16::MAX, flags: 0xff, ..good }.encode(7), &bytes, 3000);
    assert_eq!(tx.used(), (0, 0));
    let segments: Vec<_> = (0..5).map(|_| station.receive(LIMIT).unwrap()).collect();
    assert_segments(&segments, &pattern(5000), 1000);
    assert_eq!(station.receive(QUIET), None, "nothing else came through");
    let log = counters(net.driver, net.backend);
    for counter in ["tx_bad_header=9", "tx_too_long=1", "tx_refused=1"] {
        assert!(log.contains(counter), "{counter}: {log}");
    }
}

#[test]
fn tx_needs_what_was_negotiated() {
    let (mut net, station) = net(TX & !HOST_TSO4);
    let tx = net.driver.tx();
    let (header, bytes) = frame(TCPV4, &pattern(3000), 1000);
    tx.send(&header.encode(0), &bytes, 70_000);
    assert_eq!(tx.used(), (0, 0));
    let (header, bytes) = frame(TCPV6, &pattern(3000), 1000);
    tx.send(&header.encode(0), &bytes, 70_000);
    assert_segments(&[(); 3].map(|()| station.receive(LIMIT).unwrap()), &pattern(3000), 1000);
}

/// One end of a cable that knows all about big frames, or nothing: what stands for a node, and does as it is told.
pub struct Node {
    pub data: UnixDatagram,
    _control: UnixStream,
}

impl Node {
    /// Serves one client, which may come later.
    fn start(dir: &Path, name: &'static str) -> std::thread::JoinHandle<Self> {
        let listener = UnixListener::bind(dir.join("ctl")).unwrap();
        let dir = dir.to_path_buf();
        std::thread::spawn(move || Self::accept(&listener, &dir.join(name)))
    }

    fn accept(listener: &UnixListener, name: &Path) -> Self {
        use std::io::{Read, Write};
        let (mut control, _) = listener.accept().unwrap();
        let mut request = [0; 400];
        let got = control.read(&mut request).unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.split(|b| *b == 0).next().unwrap().into()).unwrap();
        assert!(text(&request[122..got]).ends_with(" gso=1"), "the back end says that it takes big frames");
        let data = UnixDatagram::bind(name).unwrap();
        data.connect(PathBuf::from(text(&request[14..122]))).unwrap();
        data.set_read_timeout(Some(LIMIT)).unwrap();
        data.set_write_timeout(Some(LIMIT)).unwrap();
        let mut answer = [&1u16.to_ne_bytes(), name.as_os_str().as_encoded_bytes()].concat();
        answer.resize(110, 0);
        control.write_all(&answer).unwrap();
        Self { data, _control: control }
    }

    fn send(&self, header: Header, frame: &[u8]) {
        self.data.send(&[&header.encode(0), frame].concat()).unwrap();
    }

    fn receive(&self) -> Vec<u8> {
        let mut room = vec![0; 100_000];
        let got = self.data.recv(&mut room).unwrap();
        room.truncate(got);
        room
    }
}

/// A driver's NIC on such a cable, whose data socket has that name.
pub fn cable(features: u64, name: &'static str) -> (Driver, Node, Backend, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), name);
    let socket = dir.path().join("n0");
    let backend = backend(dir.path(), &socket);
    let node = node.join().unwrap();
    (Driver::connect(&socket, features, 1), node, backend, dir)
}

#[test]
fn tx_goes_on_at_the_segment_at_which_the_link_was_full() {
    let (mut driver, node, _backend, _dir) = cable(TX, "plain");
    let payloads: Vec<_> = (0..5).map(|round| pattern(65_000 - round)).collect();
    let tx = driver.tx();
    for (head, payload) in (0u16..).zip(&payloads) {
        let (header, frame) = frame(TCPV4, payload, 1000);
        let at = tx.buffer(65_100);
        tx.send_at(at, &[&header.encode(0), &frame[..]].concat(), head);
    }
    tx.kick();
    for (index, payload) in payloads.iter().enumerate() {
        let segments: Vec<_> = (0..65).map(|_| node.receive()).collect();
        assert_segments(&segments, payload, 1000);
        assert_eq!(tx.used().1, 0, "frame {index}");
    }
}

#[test]
fn tx_big_frame_goes_whole_to_who_takes_it_whole() {
    let (mut driver, node, _backend, _dir) = cable(TX, "big+gso");
    let (header, bytes) = frame(TCPV6, &pattern(65_515), 1440);
    driver.tx().send(&Header { hdr_len: 1, flags: 0xff, ..header }.encode(9), &bytes, 4096);
    let got = node.receive();
    assert_eq!(got[..12], header.encode(0), "with a header that can be believed");
    assert!(got[12..] == bytes);
    assert_eq!(driver.tx().used(), (0, 0));
}

/// The next frame that the driver has: its header and its bytes. `buffers` are those posted, by head.
pub fn take(rx: &mut Queue, buffers: &[u64]) -> (Header, Vec<u8>) {
    let (mut all, mut count, mut index) = (Vec::new(), 1, 0);
    while index < count {
        let (head, len) = rx.used();
        all.extend(rx.bytes(buffers[usize::from(head)], usize::try_from(len).unwrap()));
        if index == 0 {
            count = u16::from_le_bytes([all[10], all[11]]);
        }
        index += 1;
    }
    let frame = all.split_off(12);
    (Header::decode(all.first_chunk().unwrap()), frame)
}

#[test]
fn rx_big_frame_fills_as_many_buffers_as_it_needs() {
    for (kind, len, size) in [(TCPV4, 65_495, 1460), (TCPV6, 65_515, 1440)] {
        for (count, room) in [(60, 1600), (20, 4096), (2, 70_000)] {
            let (mut driver, node, _backend, _dir) = cable(RX | MRG_RXBUF, "big+gso");
            let (header, bytes) = frame(kind, &pattern(len), size);
            let buffers = driver.rx().post(count, room);
            driver.rx().kick();
            node.send(Header { hdr_len: 5, flags: 3, ..header }, &bytes);
            let (got, frame) = take(driver.rx(), &buffers);
            assert_eq!(got, header, "with a length and flags that can be believed");
            assert!(frame == bytes, "buffers of {room}");
            let needed = (12 + bytes.len()).div_ceil(usize::try_from(room).unwrap());
            assert_eq!(usize::from(driver.rx().seen), needed);
        }
    }
}

#[test]
fn rx_frames_of_all_sizes_keep_their_order() {
    let (mut driver, node, _backend, _dir) = cable(RX | MRG_RXBUF, "big+gso");
    let sizes = [100, 20_000, 60, 9000, 30_000, 1400];
    let frames = sizes.map(|len| frame(TCPV4, &pattern(len), 1460));
    let buffers = driver.rx().post(200, 1600);
    driver.rx().kick();
    for (header, bytes) in &frames {
        node.send(*header, bytes);
        node.send(Header::NONE, bytes);
    }
    for (header, bytes) in &frames {
        assert!(take(driver.rx(), &buffers) == (*header, bytes.clone()));
        assert!(take(driver.rx(), &buffers) == (Header::NONE, bytes.clone()));
    }
}

#[test]
fn rx_guest_without_segmentation_gets_segments() {
    for (features, room) in
        [(VERSION_1, 1600), (VERSION_1 | MRG_RXBUF, 1600), (VERSION_1 | MRG_RXBUF | GUEST_CSUM, 700)]
    {
        for (kind, len, size) in [(TCPV4, 65_495, 1460), (UDP, 65_507, 1472)] {
            let (mut driver, node, _backend, _dir) = cable(features, "big+gso");
            let payload = pattern(len);
            let (header, bytes) = frame(kind, &payload, size);
            let buffers = driver.rx().post(200, room);
            driver.rx().kick();
            node.send(header, &bytes);
            node.send(Header::NONE, &bytes[..60]);
            let count = len.div_ceil(size.into());
            let segments: Vec<_> = (0..count).map(|_| take_any(driver.rx(), &buffers, features)).collect();
            assert_segments(&segments, &payload, size.into());
            assert_eq!(take_any(driver.rx(), &buffers, features), bytes[..60]);
        }
    }
}

/// The next frame of a driver to which nothing may be left.
fn take_any(rx: &mut Queue, buffers: &[u64], features: u64) -> Vec<u8> {
    if features & MRG_RXBUF != 0 {
        let (header, frame) = take(rx, buffers);
        assert_eq!(header, Header::NONE);
        return frame;
    }
    let (head, len) = rx.used();
    let mut all = rx.bytes(buffers[usize::from(head)], usize::try_from(len).unwrap());
    let frame = all.split_off(12);
    assert_eq!(all, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    frame
}

#[test]
fn rx_checksum_is_completed_for_a_guest_that_takes_none() {
    let (whole_header, whole) = frame(UDP, &pattern(999), 0);
    let mut partial = whole.clone();
    let pseudo = [&whole[26..34], &[0, 17], &whole[38..40]].concat();
    let sum: u32 = pseudo.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    partial[40..42].copy_from_slice(&folded.to_be_bytes());
    let header = Header { gso_type: 0, hdr_len: 0, ..whole_header };
    for (features, expected) in [
        (VERSION_1 | MRG_RXBUF, (Header::NONE, &whole)),
        (VERSION_1 | MRG_RXBUF | GUEST_CSUM, (header, &partial)),
        (RX | MRG_RXBUF, (header, &partial)),
    ] {
        let (mut driver, node, _backend, _dir) = cable(features, "big+gso");
        let buffers = driver.rx().post(100, 1600);
        driver.rx().kick();
        node.send(header, &partial);
        let (got, frame) = take(driver.rx(), &buffers);
        assert_eq!((got, &frame), expected, "features {features:#x}");
    }
}

#[test]
fn rx_checksum_at_an_odd_place_is_completed_before_the_guest_looks() {
    // Left open, it would be put there when the guest passes the frame on: over an address that it had let through.
    let (_, udp) = frame(UDP, &pattern(99), 0);
    for (start, offset) in [(14, 16), (34, 2), (0, 12), (60, 6)] {
        let header = Header { flags: 1, csum_start: start, csum_offset: offset, ..Header::NONE };
        let mut expected = udp.clone();
        let words = udp[usize::from(start)..].chunks(2);
        let sum: u32 = words.map(|w| u32::from(u16::from_be_bytes([w[0], *w.get(1).unwrap_or(&0)]))).sum();
        let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        let at = usize::from(start + offset);
        expected[at..at + 2].copy_from_slice(&(!sum).to_be_bytes());
        assert_ne!(expected, udp);
        for count in [100, 3] {
            let (mut driver, node, _backend, _dir) = cable(RX | MRG_RXBUF, "big+gso");
            let buffers = driver.rx().post(count, 1600);
            driver.rx().kick();
            node.send(header, &udp);
            assert!(take(driver.rx(), &buffers) == (Header::NONE, expected.clone()), "{start} {offset}");
        }
    }
}

#[test]
fn rx_without_mergeable_buffers_a_frame_is_in_one() {
    let (mut driver, node, _backend, _dir) = cable(RX, "big+gso");
    let (header, bytes) = frame(TCPV4, &pattern(65_495), 1460);
    let buffers = driver.rx().post(3, 70_000);
    driver.rx().kick();
    node.send(header, &bytes);
    node.send(Header::NONE, &bytes[..1000]);
    assert!(take(driver.rx(), &buffers) == (header, bytes.clone()));
    assert!(take(driver.rx(), &buffers) == (Header::NONE, bytes[..1000].to_vec()));
}

#[test]
fn rx_guest_that_never_has_room_gets_segments() {
    let (mut driver, node, _backend, _dir) = cable(RX | MRG_RXBUF, "big+gso");
    let payload = pattern(20_000);
    let (header, bytes) = frame(TCPV4, &payload, 1460);
    let buffers = driver.rx().post(12, 1600);
    driver.rx().kick();
    node.send(header, &bytes);
    let mut segments: Vec<_> = (0..12).map(|_| take(driver.rx(), &buffers).1).collect();
    let buffers = driver.rx().post(12, 1600);
    driver.rx().kick();
    segments.extend((12..14).map(|_| take(driver.rx(), &buffers).1));
    assert_segments(&segments, &payload, 1460);
    node.send(Header::NONE, &bytes);
    node.send(Header::NONE, &bytes[..100]);
    assert!(take(driver.rx(), &buffers).1 == bytes[..100], "what fits nowhere is dropped");
}

#[test]
fn rx_frame_waits_for_buffers_of_a_guest_that_had_them() {
    let (mut driver, node, _backend, _dir) = cable(RX | MRG_RXBUF, "big+gso");
    let frames = [40_000, 41_000, 42_000].map(|len| frame(TCPV4, &pattern(len), 1460));
    let mut buffers = driver.rx().post(50, 1600);
    driver.rx().kick();
    for (header, bytes) in &frames {
        node.send(*header, bytes);
    }
    let rx = driver.rx();
    assert!(take(rx, &buffers) == frames[0], "it takes 26 of the 50");
    let mut free = 0;
    for (header, bytes) in &frames[1..] {
        // Not enough yet: 24 chains are left, and 26 or 27 are needed.
        assert_eq!(rx.used_idx(), rx.seen);
        for _ in 0..26 {
            let head = free % 50;
            free += 1;
            let at = rx.buffer(1600);
            buffers[usize::from(head)] = at;
            rx.descriptor(None, head, at, 1600, WRITE, 0);
            rx.offer(head);
            rx.kick();
        }
        assert!(take(rx, &buffers) == (*header, bytes.clone()));
    }
}

#[test]
fn rx_header_that_does_not_fit_its_frame_is_dropped() {
    let (mut driver, node, backend, _dir) = cable(RX | MRG_RXBUF, "big+gso");
    let (good, bytes) = frame(TCPV4, &pattern(5000), 1000);
    let buffers = driver.rx().post(100, 1600);
    driver.rx().kick();
    let bad = [
        Header { flags: 4, ..Header::NONE },
        Header { gso_type: 3, ..good },
        Header { gso_type: TCPV6, ..good },
        Header { gso_size: 0, ..good },
        Header { gso_size: 1, ..good },
        Header { csum_start: 5054, gso_type: 0, ..good },
        Header { csum_offset: u16::MAX, gso_type: 0, ..good },
    ];
    bad.into_iter().for_each(|header| node.send(header, &bytes));
    node.send(Header::NONE, &bytes[..13]);
    node.data.send(&bytes[..7]).unwrap();
    node.send(Header::NONE, &vec![0; 70_000]);
    node.send(good, &bytes);
    assert!(take(driver.rx(), &buffers) == (good, bytes));
    assert_eq!(driver.rx().seen, 4, "no buffer was spent on what was dropped");
    let log = counters(driver, backend);
    for counter in ["rx_bad_header=7", "rx_runt=2", "rx_too_long=1"] {
        assert!(log.contains(counter), "{counter}: {log}");
    }
}

#[test]
fn rx_odd_buffers_are_given_back_between_the_good_ones() {
    let (mut driver, node, _backend, _dir) = cable(RX | MRG_RXBUF, "big+gso");
    let (header, bytes) = frame(TCPV4, &pattern(3000), 1000);
    let rx = driver.rx();
    let lens = [5, 12, 1600, 300, 40];
    let mut buffers = Vec::new();
    for (head, len) in (0u16..).zip(lens.into_iter().chain([1600; 50])) {
        let at = rx.buffer(len);
        buffers.push(at);
        // Number 3 is not ours to write.
        rx.descriptor(None, head, at, len, if head == 3 { 0 } else { WRITE }, 0);
        rx.offer(head);
    }
    rx.kick();
    node.send(header, &bytes);
    assert_eq!([rx.used(), rx.used(), rx.used()], [(0, 0), (1, 0), (3, 0)]);
    assert!(take(rx, &buffers) == (header, bytes));
    assert_eq!(rx.seen, 6, "1600, 40 and 1600 bytes hold it");
}

#[test]
fn big_frames_pass_from_guest_to_guest_over_our_own_switch() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sw");
    let _switch =
        vdeplug::open(&format!("switch://{}", path.display()), &vdeplug::OpenOptions::default()).unwrap();
    let nic = |name, features| {
        let socket = dir.path().join(name);
        let backend = backend(&path, &socket);
        (Driver::connect(&socket, features, 1), backend)
    };
    let (mut sender, _first) = nic("n0", TX);
    let (mut modern, _second) = nic("n1", RX | MRG_RXBUF);
    let (mut plain, _third) = nic("n2", VERSION_1 | MRG_RXBUF);
    let station = Station::on(&path);
    let payload = pattern(65_495);
    let (header, bytes) = frame(TCPV4, &payload, 1460);
    let room = [&mut modern, &mut plain].map(|driver| {
        let buffers = driver.rx().post(100, 1600);
        driver.rx().kick();
        buffers
    });
    sender.tx().send(&header.encode(0), &bytes, 4096);
    assert!(take(modern.rx(), &room[0]) == (header, bytes), "whole for who takes it whole");
    let segments: Vec<_> = (0..45).map(|_| take(plain.rx(), &room[1]).1).collect();
    assert_segments(&segments, &payload, 1460);
    let segments: Vec<_> = (0..45).map(|_| station.receive(LIMIT).unwrap()).collect();
    assert_segments(&segments, &payload, 1460);
}
