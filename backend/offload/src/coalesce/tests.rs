use proptest::prelude::*;

use super::*;
use crate::check::check;
use crate::header::{DATA_VALID, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};
use crate::{HEAD_MAX, Plan};

const ALL: Take = Take { csum: true, tcp4: true, tcp6: true, ecn: true, udp: true };
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const FIN: u8 = 0x01;
const CWR: u8 = 0x80;
const ECE: u8 = 0x40;

/// A frame to be sent; the fields stand for themselves.
#[derive(Clone, Debug)]
struct Made {
    ethernet: Vec<u8>,
    v6: bool,
    udp: bool,
    tos: u8,
    ttl: u8,
    id: u16,
    fragment: u16,
    label: u8,
    port: u16,
    sequence: u32,
    acknowledged: u32,
    window: u16,
    flags: u8,
    urgent: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

fn tcp() -> Made {
    Made {
        ethernet: vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2],
        v6: false,
        udp: false,
        tos: 2,
        ttl: 64,
        id: 0xfffe,
        fragment: 0x4000,
        label: 5,
        port: 5001,
        sequence: 0xffff_ff00,
        acknowledged: 77,
        window: 502,
        flags: ACK,
        urgent: 0,
        options: Vec::new(),
        payload: payload(100),
    }
}

/// What it is, and how it is done to a segment.
type Edit = (&'static str, &'static dyn Fn(&mut Made));

fn udp() -> Made {
    Made { udp: true, ..tcp() }
}

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7).to_le_bytes()[0]).collect()
}

fn word(value: usize) -> [u8; 2] {
    u16::try_from(value).unwrap().to_be_bytes()
}

impl Made {
    /// The next one of its flow.
    fn next(&self, count: usize) -> Self {
        let at = u32::try_from(count * self.payload.len()).unwrap();
        let id = self.id.wrapping_add(u16::try_from(count).unwrap());
        Self { id, sequence: self.sequence.wrapping_add(at), ..self.clone() }
    }

    fn frame(&self) -> Vec<u8> {
        let mut l4 = [self.port.to_be_bytes(), 80u16.to_be_bytes()].concat();
        if self.udp {
            l4.extend(word(8 + self.payload.len()));
            l4.extend([0, 0]);
        } else {
            l4.extend([self.sequence.to_be_bytes(), self.acknowledged.to_be_bytes()].concat());
            l4.extend([u8::try_from((20 + self.options.len()) * 4).unwrap(), self.flags]);
            l4.extend(self.window.to_be_bytes());
            l4.extend([0, 0]);
            l4.extend(self.urgent.to_be_bytes());
            l4.extend(&self.options);
        }
        l4.extend(&self.payload);
        let protocol = if self.udp { 17 } else { 6 };
        let (mut l3, addresses) = if self.v6 {
            let mut l3 = vec![0x60 | self.tos >> 4, self.tos << 4, 0, self.label];
            l3.extend(word(l4.len()));
            l3.extend([protocol, self.ttl]);
            l3.extend([[0xfe; 16], [0x20; 16]].concat());
            (l3, 8)
        } else {
            let mut l3 = vec![0x45, self.tos];
            l3.extend([word(20 + l4.len()), self.id.to_be_bytes(), self.fragment.to_be_bytes()].concat());
            l3.extend([self.ttl, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = sum(&[&l3]).complement();
            l3[10..12].copy_from_slice(&sum);
            (l3, 12)
        };
        let sum = sum(&[&l3[addresses..], &[0, protocol], &word(l4.len()), &l4]);
        let at = if self.udp { 6 } else { 16 };
        l4[at..at + 2].copy_from_slice(&if self.udp { sum.finish() } else { sum.complement() });
        let kind: &[u8] = if self.v6 { &[0x86, 0xdd] } else { &[8, 0] };
        let mut frame = [&self.ethernet, kind].concat();
        frame.append(&mut l3);
        frame.append(&mut l4);
        frame
    }
}

fn sum(pieces: &[&[u8]]) -> crate::csum::Sum {
    let mut sum = crate::csum::Sum::default();
    pieces.iter().for_each(|piece| sum.add(piece));
    sum
}

/// A frame as it is delivered.
struct Out {
    header: Header,
    bytes: Vec<u8>,
    parts: usize,
}

fn join(coalescer: &mut Coalescer, frames: &[Vec<u8>], take: Take) -> Vec<Out> {
    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    coalescer.join(&frames, take);
    let out = coalescer.frames().map(|joined| {
        let parts = joined.parts.iter().map(|part| &frames[part.frame][part.range.clone()]);
        let bytes = [joined.head].into_iter().chain(parts).collect::<Vec<_>>().concat();
        assert_eq!(bytes.len(), joined.len);
        assert_eq!(joined.head.is_empty(), joined.parts.len() == 1);
        Out { header: joined.header, bytes, parts: joined.parts.len() }
    });
    out.collect()
}

/// How many frames went into each frame that is delivered.
fn counts(frames: &[Made], take: Take) -> Vec<usize> {
    let frames: Vec<Vec<u8>> = frames.iter().map(Made::frame).collect();
    join(&mut Coalescer::new(), &frames, take).iter().map(|out| out.parts).collect()
}

/// The frames that a delivered frame stands for.
fn again(out: &Out) -> Vec<Vec<u8>> {
    if out.header.is_done() {
        return vec![out.bytes.clone()];
    }
    let head = &out.bytes[..out.bytes.len().min(HEAD_MAX)];
    assert_eq!(check(&out.header, head, out.bytes.len()), Ok(out.header));
    let plan = Plan::new(&out.header, head, out.bytes.len()).unwrap();
    assert_eq!(plan.segments(), out.parts);
    let cut = |index| {
        let mut room = [0; HEAD_MAX];
        let (head, payload) = plan.segment(index, &out.bytes, &mut room);
        [head, payload].concat()
    };
    (0..plan.segments()).map(cut).collect()
}

#[test]
fn a_bulk_is_one_frame_with_the_headers_of_all() {
    let first = tcp();
    let last = Made { flags: ACK | PSH | FIN, payload: payload(40), ..first.next(2) };
    let frames = [first.frame(), first.next(1).frame(), last.frame()];
    let out = join(&mut Coalescer::new(), &frames, ALL);
    assert_eq!(out.len(), 1);
    let expected = Header {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 100,
        csum_start: 34,
        csum_offset: 16,
    };
    assert_eq!((out[0].header, out[0].parts, out[0].bytes.len()), (expected, 3, 54 + 240));
    let whole = Made {
        flags: ACK | PSH | FIN,
        payload: [payload(100), payload(100), payload(40)].concat(),
        ..first.clone()
    };
    let mut whole = whole.frame();
    crate::complete(&out[0].header, &mut whole.clone()).unwrap();
    let pseudo = sum(&[&whole[26..34], &[0, 6], &word(20 + 240)]).partial();
    whole[50..52].copy_from_slice(&pseudo);
    assert_eq!(out[0].bytes, whole);
    assert_eq!(again(&out[0]), frames);
}

#[test]
fn each_difference_that_matters_ends_a_run() {
    let a = tcp();
    let not_joined: &[Edit] = &[
        ("a gap", &|next| next.sequence += 1),
        ("sent again", &|next| next.sequence -= 100),
        ("other acknowledgement", &|next| next.acknowledged += 1),
        ("other window", &|next| next.window += 1),
        ("other urgent pointer", &|next| next.urgent += 1),
        ("longer", &|next| next.payload = payload(101)),
        ("no payload", &|next| next.payload.clear()),
        ("SYN", &|next| next.flags |= 2),
        ("RST", &|next| next.flags |= 4),
        ("URG", &|next| next.flags |= 0x20),
        ("no ACK", &|next| next.flags = 0),
        ("ECE", &|next| next.flags |= ECE),
        ("CWR", &|next| next.flags |= CWR),
        ("options", &|next| next.options = vec![1, 1, 1, 1]),
        ("CE", &|next| next.tos = 3),
        ("other TTL", &|next| next.ttl = 63),
        ("other id", &|next| next.id = 5),
        ("no DF", &|next| next.fragment = 0),
        ("a bit that must be 0", &|next| next.fragment = 0xc000),
        ("other port", &|next| next.port += 1),
        ("other MAC address", &|next| next.ethernet[5] += 1),
        ("a VLAN tag", &|next| next.ethernet.extend([0x81, 0, 0, 7])),
        ("IPv6", &|next| next.v6 = true),
        ("UDP", &|next| next.udp = true),
    ];
    for (what, edit) in not_joined {
        let mut next = a.next(1);
        edit(&mut next);
        assert_eq!(counts(&[a.clone(), next], ALL), [1, 1], "{what}");
    }
    let six = Made { v6: true, ..tcp() };
    let not_joined: &[Edit] = &[
        ("CE", &|next| next.tos = 3),
        ("other hop limit", &|next| next.ttl = 63),
        ("other flow label", &|next| next.label = 9),
    ];
    for (what, edit) in not_joined {
        let mut next = six.next(1);
        edit(&mut next);
        assert_eq!(counts(&[six.clone(), next], ALL), [1, 1], "{what}");
    }
}

#[test]
fn what_ends_a_run_may_be_its_last() {
    let a = tcp();
    for (what, last) in [
        ("PSH", Made { flags: ACK | PSH, ..a.next(1) }),
        ("FIN", Made { flags: ACK | FIN, ..a.next(1) }),
        ("shorter", Made { payload: payload(99), ..a.next(1) }),
    ] {
        let behind = Made {
            sequence: a.next(2).sequence.wrapping_sub(100 - u32::try_from(last.payload.len()).unwrap()),
            ..a.next(2)
        };
        assert_eq!(counts(&[a.clone(), last, behind.clone(), behind.next(1)], ALL), [2, 2], "{what}");
    }
    let pushed = Made { flags: ACK | PSH, ..a.clone() };
    assert_eq!(counts(&[pushed, a.next(1), a.next(2)], ALL), [1, 2], "PSH on the first");
}

#[test]
fn identifications_are_counted_or_stay() {
    let ids = |ids: &[u16], fragment: u16| {
        let frame = |(index, id): (usize, &u16)| Made { id: *id, fragment, ..tcp().next(index) };
        counts(&ids.iter().enumerate().map(frame).collect::<Vec<_>>(), ALL)
    };
    assert_eq!(ids(&[0xffff, 0, 1, 2], 0x4000), [4]);
    assert_eq!(ids(&[0xffff, 0, 1, 2], 0), [4]);
    assert_eq!(ids(&[0, 0, 0, 0], 0x4000), [4], "RFC 6864: it has no meaning");
    assert_eq!(ids(&[0, 0, 0, 0], 0), [1, 1, 1, 1], "here it has one");
    assert_eq!(ids(&[0, 0, 0, 3, 4], 0x4000), [3, 2]);
    assert_eq!(ids(&[7, 8, 8, 8, 8], 0x4000), [2, 3]);
    assert_eq!(ids(&[7, 6, 5], 0x4000), [1, 1, 1]);
}

#[test]
fn congestion_is_told_as_the_receiver_takes_it() {
    let reduced = Made { flags: ACK | CWR, ..tcp() };
    let rest = tcp();
    let frames = [reduced.clone(), rest.next(1), rest.next(2)];
    let out = join(&mut Coalescer::new(), &frames.each_ref().map(Made::frame), ALL);
    assert_eq!((out.len(), out[0].header.gso_type), (1, GSO_TCPV4 | GSO_ECN));
    assert_eq!(again(&out[0]), frames.each_ref().map(Made::frame));
    assert_eq!(counts(&frames, Take { ecn: false, ..ALL }), [1, 2]);
    let echo = Made { flags: ACK | ECE, ..tcp() };
    assert_eq!(counts(&[echo.clone(), echo.next(1)], Take { ecn: false, ..ALL }), [2]);
}

#[test]
fn datagrams_are_joined_for_who_takes_them() {
    for v6 in [false, true] {
        let a = Made { v6, ..udp() };
        let short = Made { payload: payload(7), ..a.next(3) };
        let frames = [a.clone(), a.next(1), a.next(2), short, a.next(4)];
        assert_eq!(counts(&frames, ALL), [4, 1]);
        assert_eq!(counts(&frames, Take { udp: false, ..ALL }), [1; 5]);
        let out = join(&mut Coalescer::new(), &frames.each_ref().map(Made::frame), ALL);
        assert_eq!((out[0].header.gso_type, out[1].header.flags), (GSO_UDP_L4, DATA_VALID));
        assert_eq!(again(&out[0]), frames.each_ref().map(Made::frame)[..4]);
    }
    let many: Vec<Made> = (0..130).map(|index| udp().next(index)).collect();
    assert_eq!(counts(&many, ALL), [64, 64, 2]);
}

#[test]
fn a_datagram_without_a_checksum_goes_as_it_came() {
    let [first, mut second, third] = [0, 1, 2].map(|index| udp().next(index).frame());
    second[40..42].fill(0);
    let out = join(&mut Coalescer::new(), &[first, second.clone(), third], ALL);
    assert_eq!(out.iter().map(|out| out.parts).collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!((out[1].header, &out[1].bytes), (Header::NONE, &second));
}

#[test]
fn what_is_damaged_goes_as_it_came_and_in_its_place() {
    let frames: Vec<Vec<u8>> = (0..5).map(|index| tcp().next(index).frame()).collect();
    // Not the MAC addresses and the Ethernet type, which no checksum covers.
    for at in 14..frames[2].len() {
        let mut frames = frames.clone();
        frames[2][at] ^= 0x10;
        let out = join(&mut Coalescer::new(), &frames, ALL);
        assert!(
            !out.iter().any(|out| out.header.flags != 0 && out.bytes == frames[2]),
            "byte {at} is told to be right"
        );
        let again: Vec<Vec<u8>> = out.iter().flat_map(again).collect();
        let ours = again.iter().position(|frame| *frame == frames[2]);
        assert!(ours.is_some(), "byte {at}");
        assert_eq!(again.len(), 5);
    }
}

#[test]
fn only_whole_frames_without_padding_are_joined() {
    let a = Made { payload: payload(2), ..tcp() };
    let padded = |made: &Made| [made.frame(), vec![0; 4]].concat();
    let frames = [padded(&a), padded(&a.next(1)), a.next(2).frame(), a.next(3).frame(), padded(&a.next(4))];
    let out = join(&mut Coalescer::new(), &frames, ALL);
    assert_eq!(out.iter().map(|out| out.parts).collect::<Vec<_>>(), [1, 1, 2, 1]);
    assert!(out[0].header.flags == DATA_VALID && out[3].header.flags == DATA_VALID);
    assert_eq!(out.iter().flat_map(again).collect::<Vec<_>>(), frames);
}

#[test]
fn who_takes_nothing_gets_what_came() {
    let frames: Vec<Vec<u8>> = (0..3).map(|index| tcp().next(index).frame()).collect();
    let out = join(&mut Coalescer::new(), &frames, Take { csum: false, ..ALL });
    assert!(out.iter().all(|out| out.header == Header::NONE));
    assert_eq!(out.into_iter().map(|out| out.bytes).collect::<Vec<_>>(), frames);
    let out = join(&mut Coalescer::new(), &frames, Take { csum: true, ..Take::default() });
    assert_eq!(out.iter().map(|out| out.header.flags).collect::<Vec<_>>(), [DATA_VALID; 3]);
    let six = Made { v6: true, ..tcp() };
    assert_eq!(counts(&[six.clone(), six.next(1)], Take { tcp6: false, ..ALL }), [1, 1]);
    let out = join(&mut Coalescer::new(), &[six.frame(), six.next(1).frame()], Take { tcp4: false, ..ALL });
    assert_eq!((out.len(), out[0].header.gso_type), (1, GSO_TCPV6));
}

#[test]
fn flows_are_held_beside_each_other_up_to_a_number() {
    let flow = |port: u16, index| Made { port, ..tcp() }.next(index);
    let two: Vec<Made> = (0..6).map(|index| flow(u16::try_from(index % 2).unwrap(), index / 2)).collect();
    assert_eq!(counts(&two, ALL), [3, 3]);
    let rounds = |flows: u16| (0..2).flat_map(move |index| (0..flows).map(move |port| flow(port, index)));
    assert_eq!(counts(&rounds(8).collect::<Vec<_>>(), ALL), [2; 8]);
    assert_eq!(counts(&rounds(9).collect::<Vec<_>>(), ALL), [1; 18], "the oldest goes when its turn comes");
}

#[test]
fn what_is_not_understood_keeps_its_place() {
    let group = Made { ethernet: [vec![0xff; 6], vec![2, 0, 0, 0, 0, 2]].concat(), port: 9, ..udp() };
    let strange = [
        [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6][..], &[0; 28]].concat(),
        vec![1, 2, 3],
        Vec::new(),
        group.frame(),
        Made { fragment: 0x2000, ..tcp().next(2) }.frame(),
    ];
    for strange in strange {
        let frames =
            [tcp().frame(), tcp().next(1).frame(), strange, tcp().next(2).frame(), tcp().next(3).frame()];
        let out = join(&mut Coalescer::new(), &frames, ALL);
        assert_eq!(out.iter().map(|out| out.parts).collect::<Vec<_>>(), [2, 1, 2]);
        assert_eq!(out.iter().flat_map(again).collect::<Vec<_>>(), frames);
    }
}

#[test]
fn a_frame_has_its_limit() {
    for (made, count) in [
        // 52 + 45 * 1448 bytes are the most below 64 KiB.
        (Made { options: vec![1; 12], payload: payload(1448), ..tcp() }, 45),
        (Made { v6: true, payload: payload(1440), ..tcp() }, 45),
        (Made { payload: payload(65_495), ..tcp() }, 1),
        (Made { payload: payload(47), ..tcp() }, 128),
        (Made { payload: payload(48), ..tcp() }, 1024),
    ] {
        let frames: Vec<Made> = (0..count + 1).map(|index| made.next(index)).collect();
        assert_eq!(counts(&frames, ALL), [count, 1], "segments of {}", made.payload.len());
    }
    let exact = Made { payload: payload(21_831), ..tcp() };
    let last = Made { payload: payload(21_833), ..exact.next(2) };
    assert_eq!(counts(&[exact.clone(), exact.next(1), last], ALL), [2, 1], "longer than the first");
    let exact = Made { payload: payload(13_099), ..tcp() };
    let frames: Vec<Made> = (0..6).map(|index| exact.next(index)).collect();
    assert_eq!(counts(&frames, ALL), [5, 1], "exactly 65535");
}

#[test]
fn nothing_of_a_batch_is_left_for_the_next() {
    let mut coalescer = Coalescer::new();
    let frames: Vec<Vec<u8>> = (0..4).map(|index| tcp().next(index).frame()).collect();
    for _ in 0..2 {
        assert_eq!(join(&mut coalescer, &frames[..2], ALL).len(), 1);
        assert_eq!(join(&mut coalescer, &frames[2..], ALL).len(), 1);
        assert!(join(&mut coalescer, &[], ALL).is_empty());
    }
}

proptest! {
    #[test]
    fn segments_of_a_frame_become_the_frame(
        v6 in any::<bool>(),
        is_udp in any::<bool>(),
        tags in 0..3usize,
        options in 0..10usize,
        flags in prop::sample::select(vec![ACK, ACK | PSH, ACK | FIN, ACK | CWR, ACK | ECE]),
        size in 48..1600u16,
        id in any::<u16>(),
        bytes in prop::collection::vec(any::<u8>(), 1..20_000),
    ) {
        let made = Made { v6, udp: is_udp, id, flags, options: vec![1; 4 * options], payload: bytes, ..tcp() };
        let mut made = made;
        made.ethernet.extend([0x81, 0, 0, 7].repeat(tags));
        let count = made.payload.len().div_ceil(usize::from(size));
        prop_assume!(count > 1 && (!is_udp || count <= 64));
        let mut frame = made.frame();
        let l3 = 14 + 4 * tags;
        let l4 = l3 + if v6 { 40 } else { 20 };
        let at = l4 + if is_udp { 6 } else { 16 };
        let addresses = if v6 { l3 + 8..l4 } else { l3 + 12..l4 };
        let protocol = if is_udp { 17 } else { 6 };
        let pseudo = sum(&[&frame[addresses], &[0, protocol], &word(frame.len() - l4)]).partial();
        frame[at..at + 2].copy_from_slice(&pseudo);
        let gso_type = match (is_udp, v6) {
            (true, _) => GSO_UDP_L4,
            (false, false) => GSO_TCPV4,
            (false, true) => GSO_TCPV6,
        };
        let ecn = if !is_udp && flags & CWR != 0 { GSO_ECN } else { 0 };
        let header = Header {
            flags: NEEDS_CSUM,
            gso_type: gso_type | ecn,
            hdr_len: u16::try_from(frame.len() - made.payload.len()).unwrap(),
            gso_size: size,
            csum_start: u16::try_from(l4).unwrap(),
            csum_offset: u16::try_from(at - l4).unwrap(),
        };
        let whole = Out { header, bytes: frame, parts: count };
        let out = join(&mut Coalescer::new(), &again(&whole), ALL);
        prop_assert_eq!(out.len(), 1);
        prop_assert_eq!(out[0].header, header);
        prop_assert!(out[0].bytes == whole.bytes);
    }
}

/// How a frame of a batch differs from the next one of its flow.
fn damage() -> impl Strategy<Value = u8> {
    prop_oneof![6 => Just(0u8), 2 => 1..22u8]
}

fn damaged(mut made: Made, kind: u8, at: usize) -> Vec<u8> {
    match kind {
        1 => made.payload.truncate(at % 90),
        2 => made.flags |= PSH,
        3 => made.flags = 1 << (at % 8),
        4 => made.sequence = made.sequence.wrapping_sub(100),
        5 => made.tos = 3,
        6 => made.ttl -= 1,
        7 => made.options = vec![1; 4 * (at % 11)],
        8 => made.options = [&[1, 1, 8, 10][..], &[at.to_le_bytes()[0]; 8]].concat(),
        9 => made.window += 1,
        10 => made.id = 0,
        11 => made.fragment = [0, 0x2000, 0x4000, 0xc000, 1][at % 5],
        12 => made.ethernet.extend([0x81, 0, 0, 7]),
        13 => made.ethernet[0] |= 1,
        14 => made.payload.extend([1, 2, 3]),
        15 => made.acknowledged += 1,
        16 => made.payload.clear(),
        _ => {}
    }
    let mut frame = made.frame();
    match kind {
        17 => frame.truncate(at % frame.len()),
        18 => frame.resize(frame.len() + at % 20, 0),
        19 | 20 => {
            let at = at % frame.len();
            frame[at] ^= 1 << (at % 8);
        }
        21 => frame[13] = 6,
        _ => {}
    }
    frame
}

proptest! {
    #[test]
    fn nothing_is_lost_and_nothing_overtakes(
        flows in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..4),
        sent in prop::collection::vec((0..4usize, damage(), any::<u16>()), 1..80),
        swaps in prop::collection::vec((0..80usize, 0..80usize), 0..2),
        take in prop::sample::select(vec![ALL, ALL, Take { ecn: false, ..ALL }, Take { udp: false, tcp6: false, ..ALL }]),
    ) {
        let mut counts = vec![0; flows.len()];
        let mut frames: Vec<Vec<u8>> = sent.iter().map(|(flow, kind, at)| {
            let flow = flow % flows.len();
            let (v6, udp, fixed) = flows[flow];
            let mut next = Made { v6, udp, port: u16::try_from(flow).unwrap(), ..tcp() }.next(counts[flow]);
            next.id = if fixed { 0 } else { next.id };
            counts[flow] += 1;
            damaged(next, *kind, usize::from(*at))
        }).collect();
        for (one, other) in swaps {
            let count = frames.len();
            frames.swap(one % count, other % count);
        }
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        oracle::join_and_verify(&mut Coalescer::new(), &frames, take);
    }
}
