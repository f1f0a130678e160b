//! Drivers whose features are drawn at random, two of them and a plain member on one network: what one sends arrives at the
//! others whole, in the form that each of them takes.

use std::path::Path;

use etherparse::PacketBuilder;
use fastrand::Rng;
use vdeplug::Header;

use crate::driver::{
    CSUM, Driver, EVENT_IDX, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, GUEST_USO4, GUEST_USO6, HOST_ECN,
    HOST_TSO4, HOST_TSO6, HOST_USO, INDIRECT, MRG_RXBUF, VERSION_1,
};
use crate::world::{Backend, LIMIT, Station, wait_for};

const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
const UDP: u8 = 5;
const NEEDS_CSUM: u8 = 1;

/// A set of features that a driver may accept: each but for those that it needs.
fn draw_features(draw: &mut Rng) -> u64 {
    let mut some = |bits: &[u64]| bits.iter().fold(0, |all, bit| if draw.bool() { all | bit } else { all });
    let mut features = some(&[VERSION_1, EVENT_IDX, INDIRECT, MRG_RXBUF, CSUM, GUEST_CSUM]);
    if features & CSUM != 0 {
        features |= some(&[HOST_TSO4, HOST_TSO6, HOST_USO]);
    }
    if features & (HOST_TSO4 | HOST_TSO6) != 0 {
        features |= some(&[HOST_ECN]);
    }
    if features & GUEST_CSUM != 0 {
        features |= some(&[GUEST_TSO4, GUEST_TSO6, GUEST_USO4 | GUEST_USO6]);
    }
    if features & (GUEST_TSO4 | GUEST_TSO6) != 0 {
        features |= some(&[GUEST_ECN]);
    }
    features
}

/// A driver, and the receive buffers that it has.
struct Guest {
    driver: Driver,
    features: u64,
    buffers: Vec<u64>,
}

impl Guest {
    fn connect(socket: &Path, features: u64) -> Self {
        let mut driver = Driver::connect(socket, features, 1);
        // Whoever cannot merge needs room for all of a frame.
        let (count, room) = if features & MRG_RXBUF == 0 { (5, 66_000) } else { (64, 2048) };
        let buffers = driver.rx().post(count, room);
        driver.rx().kick();
        Self { driver, features, buffers }
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn header_len(&self) -> usize {
        if self.has(VERSION_1 | MRG_RXBUF) { 12 } else { 10 }
    }

    fn send(&mut self, header: &Header, frame: &[u8], piece: usize) {
        let bytes = header.encode(0);
        let len = self.header_len();
        self.driver.tx().send(&bytes[..len], frame, piece);
        assert_eq!(self.driver.tx().used().1, 0);
    }

    /// The next frame that it has, whose buffers are offered again.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        let (header_len, mergeable) = (self.header_len(), self.has(MRG_RXBUF));
        let rx = self.driver.rx();
        let (mut all, mut count, mut index) = (Vec::new(), 1, 0);
        while index < count {
            let (head, len) = rx.used();
            all.extend(rx.bytes(self.buffers[usize::from(head)], usize::try_from(len).unwrap()));
            rx.offer(head);
            if index == 0 && mergeable {
                count = u16::from_le_bytes([all[10], all[11]]);
            }
            index += 1;
        }
        rx.kick();
        let frame = all.split_off(header_len);
        all.resize(Header::LEN, 0);
        (Header::decode(all.first_chunk().unwrap()), frame)
    }
}

/// What one sends: how it is handed over, and what it is.
#[derive(Debug)]
struct Sample {
    header: Header,
    frame: Vec<u8>,
    /// With its checksum; of a frame to be segmented all but the checksum.
    complete: Vec<u8>,
    /// First byte of the payload.
    head: usize,
}

impl Sample {
    fn draw(draw: &mut Rng, sender: &Guest) -> Self {
        let kinds = [(HOST_TSO4, TCPV4), (HOST_TSO6, TCPV6), (HOST_USO, UDP)];
        let (need, kind) = kinds[draw.usize(..3)];
        let segmented = sender.has(need) && draw.bool();
        let size = 500 + draw.usize(..900);
        let len = if segmented { 2 * size + draw.usize(..60_000) } else { draw.usize(..60_000) };
        let seed = draw.usize(..256);
        let payload: Vec<u8> = (0..len).map(|at| (at * 7 + at / 251 + seed).to_le_bytes()[0]).collect();
        let (v4, csum_start, csum_offset) =
            (kind != TCPV6, if kind == TCPV6 { 54 } else { 34 }, if kind == UDP { 6 } else { 16 });
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [0xff; 6]);
        let mut complete = Vec::new();
        match (kind, v4) {
            (UDP, _) => {
                ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2).write(&mut complete, &payload)
            }
            (_, true) => {
                let tcp = ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).tcp(1, 2, 1000, 99).ack(5);
                tcp.write(&mut complete, &payload)
            }
            (_, false) => {
                let tcp = ethernet.ipv6([9; 16], [8; 16], 64).tcp(1, 2, 1000, 99).ack(5);
                tcp.write(&mut complete, &payload)
            }
        }
        .unwrap();
        let head = csum_start + if kind == UDP { 8 } else { 20 };
        let mut sample = Self { header: Header::NONE, frame: complete.clone(), complete, head };
        if segmented || sender.has(CSUM) && draw.bool() {
            let pseudo = pseudo_sum(&sample.complete, csum_start, if kind == UDP { 17 } else { 6 });
            sample.frame[csum_start + csum_offset..][..2].copy_from_slice(&pseudo.to_be_bytes());
            let short = |len: usize| u16::try_from(len).unwrap();
            sample.header.flags = NEEDS_CSUM;
            sample.header.csum_start = short(csum_start);
            sample.header.csum_offset = short(csum_offset);
            if segmented {
                (sample.header.gso_type, sample.header.gso_size) = (kind, short(size));
                sample.header.hdr_len = short(head);
            }
        }
        sample
    }

    fn is_segmented(&self) -> bool {
        self.header.gso_type != 0
    }

    /// Holds what arrived against it; true: that was the last of it. `payload` is what came before.
    fn arrives(&self, header: &Header, frame: &[u8], payload: &mut Vec<u8>) -> bool {
        if !self.is_segmented() {
            if header.flags & NEEDS_CSUM == 0 {
                assert!(frame == self.complete, "{} bytes of {}", frame.len(), self.complete.len());
            } else {
                assert!(frame == self.frame && header == &self.header, "{header:?}");
            }
            return true;
        }
        if header.gso_type != 0 {
            assert!(payload.is_empty() && frame == self.frame && header == &self.header, "{header:?}");
            return true;
        }
        if header.flags & NEEDS_CSUM == 0 {
            let start = usize::from(self.header.csum_start);
            let protocol = if self.header.gso_type == UDP { 17 } else { 6 };
            let sum = fold(u32::from(pseudo_sum(frame, start, protocol)) + words(&frame[start..]));
            assert_eq!(sum, 0xffff, "the checksum of a segment");
        }
        payload.extend_from_slice(&frame[self.head..]);
        assert!(self.complete[self.head..].starts_with(payload), "another payload");
        self.head + payload.len() == self.complete.len()
    }
}

/// The sum over the pseudo header of a frame whose transport begins at `l4`.
fn pseudo_sum(frame: &[u8], l4: usize, protocol: u32) -> u16 {
    let addresses = if l4 == 54 { &frame[22..54] } else { &frame[26..34] };
    fold(words(addresses) + protocol + u32::try_from(frame.len() - l4).unwrap())
}

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)]))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// Two guests with these features and a plain member on one switch, and some frames from either guest.
fn exchange(draw: &mut Rng, features: [u64; 2]) {
    let dir = tempfile::tempdir().unwrap();
    let net = dir.path().join("net");
    let sockets = ["n0", "n1"].map(|name| dir.path().join(name));
    let nics = sockets
        .each_ref()
        .map(|socket| format!("socket-path={},link=switch://{}", socket.display(), net.display()));
    let _backend = Backend::start(&["--nic", &nics[0], "--nic", &nics[1]], &sockets[1]);
    let [first, second] = [0, 1].map(|index| Guest::connect(&sockets[index], features[index]));
    let mut guests = [first, second];
    let station = Station::on(&net);
    for _ in 0..12 {
        guests.reverse();
        let [sender, receiver] = &mut guests;
        let sample = Sample::draw(draw, sender);
        sender.send(&sample.header, &sample.frame, 60 + draw.usize(..70_000));
        let mut payload = Vec::new();
        wait_for("the frame at the guest", || {
            let (header, frame) = receiver.receive();
            let wanted = match header.gso_type {
                0 => header.flags & NEEDS_CSUM == 0 || receiver.has(GUEST_CSUM),
                TCPV4 => receiver.has(GUEST_TSO4),
                TCPV6 => receiver.has(GUEST_TSO6),
                _ => receiver.has(GUEST_USO4),
            };
            assert!(wanted, "it did not accept {header:?}");
            sample.arrives(&header, &frame, &mut payload).then_some(())
        });
        let mut payload = Vec::new();
        wait_for("the frame at the station", || {
            let frame = station.receive(LIMIT).expect("a frame");
            sample.arrives(&Header::NONE, &frame, &mut payload).then_some(())
        });
    }
}

#[test]
fn any_features_carry_any_frame() {
    for seed in 0..40 {
        let mut draw = Rng::with_seed(seed);
        let features = [draw_features(&mut draw), draw_features(&mut draw)];
        println!("seed {seed}: {features:x?}");
        exchange(&mut draw, features);
    }
}
