//! What [`Layout`] finds, held against two other implementations.

use etherparse::{LaxSlicedPacket, TransportSlice};
use proptest::prelude::*;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket};

use super::*;

/// A frame of TCP or UDP with IPv6 extension headers or IPv4 options, complete but for its checksums.
fn frame(tags: usize, v6: bool, udp: bool, extras: &[u8], options: usize, payload: usize) -> Vec<u8> {
    let tcp_len = u8::try_from((20 + 4 * options) << 2).unwrap();
    let mut l4 = match udp {
        true => [&[0, 7, 0, 9][..], &u16::try_from(8 + payload).unwrap().to_be_bytes(), &[0, 0]].concat(),
        false => [&[0, 7, 0, 9, 0, 0, 0, 1, 0, 0, 0, 2, tcp_len, 0x10][..], &[0; 6], &vec![1; 4 * options]]
            .concat(),
    };
    l4.resize(l4.len() + payload, 0x5a);
    let protocol = if udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
    let mut out = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2].to_vec();
    out.extend([0x81, 0, 0, 7, 0x88, 0xa8, 0, 8].iter().take(4 * tags));
    if v6 {
        out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        out.extend(u16::try_from(8 * extras.len() + l4.len()).unwrap().to_be_bytes());
        out.extend([extras.first().copied().unwrap_or(protocol), 64]);
        out.extend([9; 32]);
        for next in extras.iter().skip(1).chain([&protocol]).take(extras.len()) {
            out.extend([*next, 0, 1, 0, 0, 0, 0, 0]);
        }
    } else {
        let len = 20 + 4 * extras.len();
        out.extend([8, 0, 0x40 | u8::try_from(len / 4).unwrap(), 0]);
        out.extend(u16::try_from(len + l4.len()).unwrap().to_be_bytes());
        out.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        out.extend(vec![1; 4 * extras.len()]);
    }
    out.append(&mut l4);
    out
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let extras = prop::collection::vec(prop::sample::select(vec![ROUTING, DESTINATION_OPTIONS]), 0..3);
    let extras = (any::<bool>(), extras)
        .prop_map(|(first, rest)| first.then_some(HOP_BY_HOP).into_iter().chain(rest).collect::<Vec<_>>());
    (0..3usize, any::<bool>(), any::<bool>(), extras, 0..=10usize, 0..100usize)
        .prop_map(|(tags, v6, udp, extras, options, payload)| frame(tags, v6, udp, &extras, options, payload))
}

/// What smoltcp, which knows no tags and no extension headers, makes of the packet at `l3`: where the transport layer
/// begins, where its payload does, and where that ends.
fn by_smoltcp(frame: &[u8], l3: usize) -> Option<[usize; 3]> {
    let packet = &frame[l3..];
    let (protocol, l4, end) = match u16::from_be_bytes([frame[l3 - 2], frame[l3 - 1]]) {
        TYPE_IPV4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            let len = usize::from(ip.header_len());
            let whole = ip.version() == 4 && len >= 20 && !ip.more_frags() && ip.frag_offset() == 0;
            whole.then_some((ip.next_header(), l3 + len, l3 + usize::from(ip.total_len())))?
        }
        TYPE_IPV6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            let plain = ip.version() == 6 && ip.payload_len() > 0;
            plain.then_some((ip.next_header(), l3 + IPV6, l3 + ip.total_len()))?
        }
        _ => return None,
    };
    match protocol {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(&frame[l4..end]).ok()?;
            Some([l4, l4 + usize::from(tcp.header_len()), end])
        }
        IpProtocol::Udp => (l4 + UDP <= end).then_some([l4, l4 + UDP, end]),
        _ => None,
    }
}

/// Where etherparse, which knows all of these headers, finds that of TCP or UDP.
fn by_etherparse(frame: &[u8]) -> Option<usize> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let header = match packet.transport? {
        TransportSlice::Tcp(tcp) => tcp.slice().as_ptr().addr(),
        TransportSlice::Udp(udp) => udp.slice().as_ptr().addr(),
        _ => return None,
    };
    Some(header - frame.as_ptr().addr())
}

/// Where the IP header begins, if there is room for one.
fn behind_tags(frame: &[u8]) -> Option<usize> {
    let kind = |at: usize| Some(u16::from_be_bytes([*frame.get(at - 2)?, *frame.get(at - 1)?]));
    let mut l3 = ETHERNET;
    while l3 < 22 && matches!(kind(l3)?, TYPE_VLAN | TYPE_SERVICE_VLAN) {
        l3 += 4;
    }
    kind(l3)?;
    Some(l3)
}

fn compare(frame: &[u8]) -> Result<(), TestCaseError> {
    let Some(l3) = behind_tags(frame) else {
        prop_assert!(Layout::parse(frame, frame.len()).is_err());
        return Ok(());
    };
    let found = Layout::parse(frame, frame.len());
    let plain = by_smoltcp(frame, l3);
    if let Some(places) = plain {
        let layout = found.map(|found| (found.l3, [found.l4, found.payload, found.end]));
        prop_assert_eq!(layout, Ok((l3, places)));
    }
    let Ok(layout) = found else { return Ok(()) };
    let len_at = l3 + if layout.network == Network::V4 { 2 } else { 4 };
    // The length is left to the NIC: the others wait for more, or take it for what it says.
    if frame[len_at..len_at + 2] == [0, 0] {
        return Ok(());
    }
    prop_assert_eq!(by_etherparse(frame), Some(layout.l4));
    let extended = layout.network == Network::V6 && layout.l4 != l3 + IPV6;
    prop_assert!(extended || plain.is_some(), "smoltcp finds nothing where this found {:?}", layout);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn good_frames_are_laid_out_as_others_do(frame in frames()) {
        prop_assert!(Layout::parse(&frame, frame.len()).is_ok());
        compare(&frame)?;
    }

    #[test]
    fn damaged_frames_are_laid_out_as_others_do(
        mut frame in frames(),
        edits in prop::collection::vec((0..110usize, any::<u8>()), 1..4),
        cut in prop::option::of(0..250usize),
        padding in prop::option::of(1..40usize),
    ) {
        for (at, byte) in edits {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        frame.truncate(cut.unwrap_or(usize::MAX));
        frame.resize(frame.len() + padding.unwrap_or(0), 0);
        compare(&frame)?;
    }

    #[test]
    fn noise_is_laid_out_as_others_do(
        kind in prop::sample::select(vec![TYPE_IPV4, TYPE_IPV6, TYPE_VLAN]),
        first in prop::sample::select(vec![0x45u8, 0x46, 0x60]),
        noise in prop::collection::vec(any::<u8>(), 15..120),
    ) {
        let mut frame = noise;
        frame[12..14].copy_from_slice(&kind.to_be_bytes());
        frame[14] = first;
        compare(&frame)?;
    }
}
