use etherparse::{IpNumber, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice, VlanId};
use proptest::prelude::*;

use super::*;
use crate::check::{check, complete};

/// What a frame is made of.
#[derive(Clone, Debug)]
struct Made {
    tags: usize,
    v6: bool,
    udp: bool,
    /// 4-byte words of TCP options.
    options: usize,
    payload: Vec<u8>,
}

const TCP: Made = Made { tags: 0, v6: false, udp: false, options: 0, payload: Vec::new() };

impl Made {
    /// Lengths of the link, network and transport headers.
    fn lens(&self) -> [usize; 3] {
        let l4 = if self.udp { 8 } else { 20 + 4 * self.options };
        [14 + 4 * self.tags, if self.v6 { 40 } else { 20 }, l4]
    }

    fn frame(&self) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let id = |n: u16| VlanId::try_new(n).unwrap();
        let mut tcp = TcpHeader::new(5001, 80, 0xffff_ff00, 4321);
        (tcp.ack, tcp.fin, tcp.psh, tcp.cwr, tcp.ece) = (true, true, true, true, true);
        tcp.acknowledgment_number = 99;
        // A timestamp (10 bytes) or so, whatever it means: it has to be in each segment.
        let options: Vec<u8> = (0..4 * self.options).map(|at| if at % 4 == 3 { 0 } else { 1 }).collect();
        tcp.set_options_raw(&options).unwrap();
        let mut out = Vec::new();
        macro_rules! finish {
            ($link:expr) => {{
                let ip = match self.v6 {
                    false => $link.ip(etherparse::IpHeaders::Ipv4(
                        etherparse::Ipv4Header {
                            identification: 0xfffe,
                            dont_fragment: true,
                            ..etherparse::Ipv4Header::new(0, 64, IpNumber::TCP, [10, 0, 0, 1], [10, 0, 0, 2])
                                .unwrap()
                        },
                        Default::default(),
                    )),
                    true => $link.ipv6([0x20; 16], [0xfe; 16], 64),
                };
                match self.udp {
                    true => ip.udp(5001, 80).write(&mut out, &self.payload).unwrap(),
                    false => ip.tcp_header(tcp).write(&mut out, &self.payload).unwrap(),
                }
            }};
        }
        match self.tags {
            0 => finish!(ethernet),
            1 => finish!(ethernet.single_vlan(id(7))),
            _ => finish!(ethernet.double_vlan(id(7), id(8))),
        }
        out
    }

    fn header(&self, size: u16) -> Header {
        let [l2, l3, _] = self.lens();
        let gso_type = match (self.udp, self.v6) {
            (true, _) => header::GSO_UDP_L4,
            (false, false) => header::GSO_TCPV4 | header::GSO_ECN,
            (false, true) => header::GSO_TCPV6,
        };
        Header {
            flags: header::NEEDS_CSUM,
            gso_type,
            hdr_len: 1,
            gso_size: size,
            csum_start: u16::try_from(l2 + l3).unwrap(),
            csum_offset: if self.udp { 6 } else { 16 },
        }
    }

    fn plan(&self, size: u16) -> Result<Plan, Misfit> {
        let frame = self.frame();
        Plan::new(&self.header(size), &frame[..frame.len().min(HEAD_MAX)], frame.len())
    }
}

fn segments(plan: &Plan, frame: &[u8]) -> Vec<Vec<u8>> {
    let cut = |index| {
        let mut head = [0; HEAD_MAX];
        let (head, payload) = plan.segment(index, frame, &mut head);
        [head, payload].concat()
    };
    (0..plan.segments()).map(cut).collect()
}

/// Checks a segment's lengths and checksums by another implementation and returns its TCP header, if it has one, and
/// its payload.
fn dissect(segment: &[u8]) -> (Option<TcpHeader>, Vec<u8>) {
    let sliced = SlicedPacket::from_ethernet(segment).unwrap();
    let (v4, v6) = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert!(same(header.header_checksum, header.calc_header_checksum()));
            assert_eq!(usize::from(header.total_len), segment.len() - segment_l3(segment));
            (Some((header.source, header.destination)), None)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert_eq!(usize::from(header.payload_length), segment.len() - segment_l3(segment) - 40);
            (None, Some((header.source, header.destination)))
        }
        NetSlice::Arp(_) => unreachable!(),
    };
    match sliced.transport.unwrap() {
        TransportSlice::Tcp(tcp) => {
            let expected = match (v4, v6) {
                (Some((from, to)), _) => tcp.calc_checksum_ipv4(from, to).unwrap(),
                (_, Some((from, to))) => tcp.calc_checksum_ipv6(from, to).unwrap(),
                _ => unreachable!(),
            };
            assert!(same(tcp.checksum(), expected));
            (Some(tcp.to_header()), tcp.payload().to_vec())
        }
        TransportSlice::Udp(udp) => {
            let (header, payload) = (udp.to_header(), udp.payload());
            assert_eq!(usize::from(header.length), 8 + payload.len());
            let expected = match (v4, v6) {
                (Some((from, to)), _) => header.calc_checksum_ipv4_raw(from, to, payload).unwrap(),
                (_, Some((from, to))) => header.calc_checksum_ipv6_raw(from, to, payload).unwrap(),
                _ => unreachable!(),
            };
            assert!(same(header.checksum, expected));
            (None, payload.to_vec())
        }
        other => panic!("{other:?}"),
    }
}

/// Where the IP header begins.
fn segment_l3(segment: &[u8]) -> usize {
    let mut at = 14;
    while matches!(segment[at - 2..at], [0x81, 0] | [0x88, 0xa8]) {
        at += 4;
    }
    at
}

/// Both forms of zero are one number.
fn same(a: u16, b: u16) -> bool {
    a == b || (a ^ b) == 0xffff && (a == 0 || b == 0)
}

fn made() -> impl Strategy<Value = Made> {
    let payload = prop::collection::vec(any::<u8>(), 0..6000);
    (0..3usize, any::<bool>(), any::<bool>(), 0..=10usize, payload)
        .prop_map(|(tags, v6, udp, options, payload)| Made { tags, v6, udp, options, payload })
}

proptest! {
    #[test]
    fn segments_make_up_the_frame(made in made(), size in 48..3000u16) {
        let (frame, plan) = (made.frame(), made.plan(size).unwrap());
        let [l2, l3, l4] = made.lens();
        prop_assert_eq!(plan.head_len(), l2 + l3 + l4);
        let segments = segments(&plan, &frame);
        prop_assert_eq!(segments.len(), made.payload.len().div_ceil(usize::from(size)).max(1));
        let mut whole = Vec::new();
        for (index, segment) in segments.iter().enumerate() {
            prop_assert!(segment.len() <= plan.longest());
            prop_assert_eq!(&segment[..l2], &frame[..l2], "addresses and tags");
            let (tcp, payload) = dissect(segment);
            prop_assert_eq!(tcp.is_none(), made.udp);
            if !made.v6 {
                let id = u16::from_be_bytes([segment[l2 + 4], segment[l2 + 5]]);
                prop_assert_eq!(id, 0xfffeu16.wrapping_add(u16::try_from(index).unwrap()));
            }
            if let Some(tcp) = tcp {
                let last = index + 1 == segments.len();
                let at = u32::try_from(whole.len()).unwrap();
                prop_assert_eq!(tcp.sequence_number, 0xffff_ff00u32.wrapping_add(at));
                prop_assert_eq!((tcp.fin, tcp.psh, tcp.cwr), (last, last, index == 0));
                prop_assert_eq!((tcp.ack, tcp.ece, tcp.acknowledgment_number), (true, true, 99));
                prop_assert_eq!(&segment[l2 + l3 + 20..l2 + l3 + l4], &frame[l2 + l3 + 20..l2 + l3 + l4]);
            }
            whole.extend(payload);
        }
        prop_assert_eq!(whole, made.payload);
    }

    #[test]
    fn whatever_the_bytes_are_nothing_leaves_the_frame(
        made in made(),
        edits in prop::collection::vec((0..120usize, any::<u8>()), 0..6),
        size in any::<u16>(),
        noise in prop::collection::vec(any::<u8>(), 12),
        keep in any::<u16>(),
        cut in 0..7000usize,
    ) {
        let mut frame = made.frame();
        for (at, byte) in edits {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        frame.truncate(cut);
        // A header that fits, with some bytes of noise in it.
        let mut bytes = made.header(size).encode(0);
        for (bit, (byte, noise)) in bytes.iter_mut().zip(noise).enumerate() {
            if keep >> bit & 3 == 3 {
                *byte = noise;
            }
        }
        let header = Header::decode(&bytes);
        let head = &frame[..frame.len().min(HEAD_MAX)];
        let Ok(checked) = check(&header, head, frame.len()) else { return Ok(()) };
        prop_assert_eq!(check(&checked, head, frame.len()), Ok(checked), "checked once, it stays");
        if checked.gso_type == header::GSO_NONE {
            complete(&checked, &mut frame).unwrap();
            return Ok(());
        }
        let plan = Plan::new(&checked, head, frame.len()).unwrap();
        prop_assert!((1..=SEGMENTS_MAX).contains(&plan.segments()));
        let mut end = plan.head_len();
        for index in 0..plan.segments() {
            let payload = plan.payload(index);
            prop_assert_eq!(payload.start, end);
            end = payload.end;
        }
        prop_assert!(end <= frame.len());
        for segment in segments(&plan, &frame) {
            prop_assert!(segment.len() <= plan.longest());
        }
        prop_assert!(plan.payload(usize::MAX).is_empty());
    }

    #[test]
    fn noise_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..400),
        header in prop::array::uniform12(any::<u8>()),
        kind in prop::sample::select(vec![1u8, 4, 5, 0x81, 0x84]),
    ) {
        let header = Header { gso_type: kind, ..Header::decode(&header) };
        let _ = Plan::new(&header, &bytes, bytes.len());
        let _ = check(&header, &bytes, bytes.len());
        let _ = complete(&header, &mut bytes.clone());
    }
}

#[test]
fn no_payload_is_one_segment() {
    let plan = TCP.plan(1000).unwrap();
    let frame = TCP.frame();
    assert_eq!((plan.segments(), plan.payload(0), plan.payload(1)), (1, 54..54, 54..54));
    let (tcp, payload) = dissect(&segments(&plan, &frame)[0]);
    assert!(payload.is_empty() && tcp.is_some_and(|tcp| tcp.fin && tcp.psh && tcp.cwr));
}

#[test]
fn cwr_is_on_the_first_segment_and_told_where_it_is_said() {
    let made = Made { payload: vec![5; 300], ..TCP };
    let (frame, with) = (made.frame(), made.header(100));
    let without = Header { gso_type: header::GSO_TCPV4, ..with };
    for header in [with, without] {
        let plan = Plan::new(&header, &frame, frame.len()).unwrap();
        let said = segments(&plan, &frame).iter().map(|segment| segment[47] & CWR != 0).collect::<Vec<_>>();
        assert_eq!(said, [true, false, false]);
        assert_eq!(check(&header, &frame, frame.len()).unwrap().gso_type, with.gso_type);
    }
    let mut silent = frame.clone();
    silent[47] &= !CWR;
    assert_eq!(check(&with, &silent, silent.len()).unwrap().gso_type, header::GSO_TCPV4);
}

#[test]
fn a_whole_64_kib_frame_is_cut_as_a_mtu_of_1500_asks() {
    let made = Made { payload: (0..65_495u32).map(|at| at.to_le_bytes()[1]).collect(), ..TCP };
    let (plan, frame) = (made.plan(1460).unwrap(), made.frame());
    let segments = segments(&plan, &frame);
    assert_eq!((segments.len(), segments[0].len(), segments[44].len()), (45, 1514, 54 + 65_495 - 44 * 1460));
    assert_eq!(segments.iter().flat_map(|segment| dissect(segment).1).collect::<Vec<_>>(), made.payload);
}

#[test]
fn amplification_has_an_end() {
    for (size, count) in [(1, 128), (47, 128), (48, 1024), (60, 1024)] {
        let len = usize::from(size) * count;
        let made = Made { payload: vec![0; len], ..TCP };
        assert_eq!(made.plan(size).unwrap().segments(), count);
        let made = Made { payload: vec![0; len + 1], ..TCP };
        assert_eq!(made.plan(size).unwrap_err(), Misfit::SegmentCount { size, len: 54 + len + 1 });
    }
    assert_eq!(TCP.plan(0).unwrap_err(), Misfit::SegmentCount { size: 0, len: 54 });
}

#[test]
fn lengths_in_the_frame_are_believed_as_far_as_they_can_be_true() {
    let made = Made { payload: vec![5; 100], ..TCP };
    let frame = made.frame();
    let plan = |total: u16, pad: usize| {
        let mut frame = [&frame[..], &vec![0; pad]].concat();
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        Plan::new(&made.header(60), &frame, frame.len()).map(|plan| plan.payload(1))
    };
    assert_eq!(plan(140, 0), Ok(114..154));
    assert_eq!(plan(140, 20), Ok(114..154), "padding is not payload");
    assert_eq!(plan(0, 0), Ok(114..154), "left to the NIC");
    assert_eq!(plan(141, 0), Err(Misfit::Length));
    assert_eq!(plan(39, 0), Err(Misfit::Head), "the end is before the TCP header's");
}

#[test]
fn what_is_not_understood_is_refused() {
    let made = Made { payload: vec![5; 100], ..TCP };
    let frame = made.frame();
    let refused = |edit: &dyn Fn(&mut Vec<u8>, &mut Header)| {
        let (mut frame, mut header) = (frame.clone(), made.header(60));
        edit(&mut frame, &mut header);
        let result = Plan::new(&header, &frame[..frame.len().min(HEAD_MAX)], frame.len());
        result.err().map(|misfit| misfit.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(&|_, _| ()), "");
    assert!(refused(&|_, header| header.gso_type = 3).contains("unknown"), "UFO");
    assert!(refused(&|_, header| header.gso_type = 0x85).contains("unknown"), "UDP has no ECN flag");
    assert!(refused(&|_, header| header.gso_type = 4).contains("protocol"), "IPv4 is not IPv6");
    assert!(refused(&|_, header| header.gso_type = 5).contains("protocol"), "TCP is not UDP");
    assert!(refused(&|_, header| header.flags = 0).contains("checksum"));
    assert!(refused(&|_, header| header.csum_start += 50).contains("checksum"), "an inner packet's");
    assert!(refused(&|_, header| header.csum_offset = 6).contains("checksum"));
    assert!(refused(&|frame, _| frame[12] = 0x86).contains("protocol"));
    assert!(refused(&|frame, _| frame[20] = 0x20).contains("protocol"), "a fragment");
    assert!(refused(&|frame, _| frame[21] = 1).contains("protocol"), "another fragment");
    assert!(refused(&|frame, _| frame[23] = 47).contains("protocol"), "GRE");
    assert!(refused(&|frame, _| frame[14] = 0x44).contains("protocol"), "a short IPv4 header");
    assert!(refused(&|frame, _| frame[46] = 0x40).contains("protocol"), "a short TCP header");
    assert!(refused(&|frame, _| frame.truncate(50)).contains("longer than its frame"));
    let long = Made { payload: vec![0; 65_495], ..TCP };
    assert_eq!(long.plan(u16::MAX).unwrap().segments(), 1);
    let mut frame = long.frame();
    frame[16..18].fill(0);
    frame.push(0);
    let misfit = Plan::new(&long.header(u16::MAX), &frame, frame.len()).unwrap_err();
    assert_eq!(misfit, Misfit::SegmentLength(u16::MAX));
}

/// A TCP frame over IPv6 with extension headers between.
fn extended(headers: &[&[u8]], first: u8) -> (Vec<u8>, Header) {
    let made = Made { v6: true, payload: vec![9; 100], ..TCP };
    let (mut frame, mut header) = (made.frame(), made.header(60));
    let extra = headers.concat();
    frame[20] = first;
    frame.splice(54..54, extra.iter().copied());
    let len = u16::try_from(frame.len() - 54).unwrap();
    frame[18..20].copy_from_slice(&len.to_be_bytes());
    header.csum_start += u16::try_from(extra.len()).unwrap();
    (frame, header)
}

#[test]
fn ipv6_extension_headers_are_repeated() {
    let options = [&[60, 0, 1, 4, 0, 0, 0, 0][..], &[43, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]];
    let routing: &[u8] = &[6, 0, 3, 0, 0, 0, 0, 0];
    let (frame, header) = extended(&[options[0], options[1], routing], 0);
    let plan = Plan::new(&header, &frame, frame.len()).unwrap();
    assert_eq!((plan.head_len(), plan.segments()), (14 + 40 + 32 + 20, 2));
    for segment in segments(&plan, &frame) {
        assert_eq!(segment[54..86], frame[54..86]);
        assert_eq!(dissect(&segment).0.unwrap().acknowledgment_number, 99);
    }
}

#[test]
fn ipv6_headers_that_change_the_packet_are_refused() {
    let refused = |headers: &[&[u8]], first| {
        let (frame, header) = extended(headers, first);
        Plan::new(&header, &frame, frame.len()).err()
    };
    assert_eq!(refused(&[&[6, 0, 3, 1, 0, 0, 0, 0]], 43), Some(Misfit::Protocol), "not there yet");
    assert_eq!(refused(&[&[6, 0, 0, 1, 0, 0, 0, 0]], 44), Some(Misfit::Protocol), "a fragment");
    assert_eq!(refused(&[&[60, 0, 0, 0, 0, 0, 0, 0][..]; 30], 60), Some(Misfit::Head), "more than is read");
    assert_eq!(refused(&[&[0; 8], &[6, 0, 0, 0, 0, 0, 0, 0]], 0), Some(Misfit::Protocol), "not the first");
    let home = |before: &[u8], next| {
        [&[next, 2][..], before, &[201, 16], &[9; 16], &[1, 2, 0, 0]].concat()[..24].to_vec()
    };
    for before in [&[][..], &[0], &[0, 0, 0], &[1, 0], &[1, 2, 201, 201]] {
        assert_eq!(
            refused(&[&home(before, 6)], 60),
            Some(Misfit::Protocol),
            "a home address behind {before:?}"
        );
    }
    assert_eq!(refused(&[&[6, 0, 1, 4, 201, 16, 201, 16]], 60), None, "padding that looks like it");
    assert_eq!(refused(&[&[6, 0, 5, 255, 201, 0, 0, 0]], 60), None, "an option's length leads outside");
    assert_eq!(refused(&[&[60, 0, 1, 4, 0, 0, 0, 0], &home(&[], 6)], 0), Some(Misfit::Protocol));
    assert_eq!(refused(&[&home(&[], 6)], 0), None, "no destination's option");
    assert_eq!(refused(&[&[6, 255, 0, 0, 0, 0, 0, 0]], 60), Some(Misfit::Head), "its length leads outside");
}
