//! What joining has to keep, whatever the frames are: nothing is lost, nothing overtakes, nothing is invented. Found out by
//! the RFCs alone, and by segmenting again. The fuzz target uses this file as well.

use offload::header::{DATA_VALID, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};
use offload::{Coalescer, HEAD_MAX, Header, Plan, Take, check};

/// What an independent look at a frame shows: a TCP segment or UDP datagram to one station, directly behind its IP header.
struct Plain {
    v6: bool,
    udp: bool,
    l3: usize,
    l4: usize,
    end: usize,
}

/// Joins a batch and holds the result against it.
pub fn join_and_verify(coalescer: &mut Coalescer, frames: &[&[u8]], take: Take) {
    coalescer.join(frames, take);
    let mut places = vec![None; frames.len()];
    for (place, joined) in coalescer.frames().enumerate() {
        let parts = joined.parts.iter().map(|part| &frames[part.frame][part.range.clone()]);
        let bytes = [joined.head].into_iter().chain(parts).collect::<Vec<_>>().concat();
        assert_eq!(bytes.len(), joined.len);
        assert!(joined.parts.is_sorted_by_key(|part| part.frame));
        for part in joined.parts {
            assert_eq!(places[part.frame].replace(place), None, "delivered twice");
        }
        if let [only] = joined.parts {
            assert!(bytes == frames[only.frame], "changed");
            assert!([0, DATA_VALID].contains(&joined.header.flags));
            assert_eq!(Header { flags: 0, ..joined.header }, Header::NONE);
            assert!(joined.header.flags == 0 || take.csum && is_whole(&bytes), "told to be right");
        } else {
            assert!(is_allowed(&joined.header, take));
            let originals: Vec<&[u8]> = joined.parts.iter().map(|part| frames[part.frame]).collect();
            verify_joined(&joined.header, &bytes, &originals);
        }
    }
    let places: Vec<usize> = places.into_iter().map(|place| place.expect("delivered")).collect();
    verify_order(frames, &places);
}

fn is_allowed(header: &Header, take: Take) -> bool {
    let kind = match header.gso_type & !GSO_ECN {
        GSO_TCPV4 => take.tcp4,
        GSO_TCPV6 => take.tcp6,
        GSO_UDP_L4 => take.udp,
        _ => false,
    };
    take.csum && kind && (take.ecn || header.gso_type & GSO_ECN == 0)
}

/// A joined frame is good, and segments to what it was joined from.
fn verify_joined(header: &Header, bytes: &[u8], originals: &[&[u8]]) {
    let head = &bytes[..bytes.len().min(HEAD_MAX)];
    assert_eq!(header.flags, NEEDS_CSUM);
    assert_eq!(check(header, head, bytes.len()), Ok(*header));
    let plan = Plan::new(header, head, bytes.len()).expect("it was just checked");
    assert_eq!(plan.segments(), originals.len());
    let mut room = [0; HEAD_MAX];
    for (index, original) in originals.iter().enumerate() {
        assert!(is_whole(original), "damage is sealed in");
        let (head, payload) = plan.segment(index, bytes, &mut room);
        let mut segment = [head, payload].concat();
        // An identification without a meaning (RFC 6864) counts up here, whether or not it did there.
        let l3 = plain(original).expect("a segment").l3;
        if original[l3] >> 4 == 4 && original[l3 + 6] == 0x40 && fixed(originals, l3) {
            segment[l3 + 4..l3 + 6].copy_from_slice(&original[l3 + 4..l3 + 6]);
            segment[l3 + 10..l3 + 12].copy_from_slice(&original[l3 + 10..l3 + 12]);
        }
        assert!(segment == *original, "segment {index} differs");
    }
}

fn fixed(originals: &[&[u8]], l3: usize) -> bool {
    originals.iter().all(|frame| frame[l3 + 4..l3 + 6] == originals[0][l3 + 4..l3 + 6])
}

/// Frames of a flow stay in order, and nothing passes a frame of which no flow is known.
fn verify_order(frames: &[&[u8]], places: &[usize]) {
    let flows: Vec<Option<Vec<u8>>> = frames.iter().map(|frame| flow(frame)).collect();
    for (later, flow) in flows.iter().enumerate() {
        for earlier in 0..later {
            if flow.is_none() || flows[earlier].is_none() || *flow == flows[earlier] {
                assert!(places[earlier] <= places[later], "frame {later} was delivered before {earlier}");
            }
        }
    }
}

fn flow(frame: &[u8]) -> Option<Vec<u8>> {
    let Plain { v6, udp, l3, l4, .. } = plain(frame)?;
    let addresses = l3 + if v6 { 8 } else { 12 };
    Some([&frame[..l3], &[u8::from(udp)], &frame[addresses..l4 + 4]].concat())
}

fn word(frame: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?])))
}

fn plain(frame: &[u8]) -> Option<Plain> {
    let mut l3 = 14;
    while l3 < 22 && [0x8100, 0x88a8].contains(&word(frame, l3 - 2)?) {
        l3 += 4;
    }
    let v6 = match word(frame, l3 - 2)? {
        0x0800 => false,
        0x86dd => true,
        _ => return None,
    };
    let l4 = l3 + if v6 { 40 } else { 20 };
    let (protocol, end) = if v6 {
        (*frame.get(l3 + 6)?, l4 + word(frame, l3 + 4)?)
    } else {
        (*frame.get(l3 + 9)?, l3 + word(frame, l3 + 2)?)
    };
    let first = if v6 { frame[l3] & 0xf0 } else { frame[l3] };
    let fragment = !v6 && word(frame, l3 + 6)? & 0x3fff != 0;
    let udp = protocol == 17;
    let known = first == if v6 { 0x60 } else { 0x45 } && (udp || protocol == 6) && !fragment;
    let whole = end <= frame.len() && l4 + if udp { 8 } else { 20 } <= end;
    (known && whole && frame[0] & 1 == 0).then_some(Plain { v6, udp, l3, l4, end })
}

/// Whether the checksums of a frame are right, word by word. Those of a frame to a group are as good.
fn is_whole(frame: &[u8]) -> bool {
    let mut unicast = frame.to_vec();
    unicast.iter_mut().take(1).for_each(|first| *first &= 0xfe);
    let Some(Plain { v6, udp, l3, l4, end }) = plain(&unicast) else { return false };
    let protocol = if udp { 17 } else { 6 };
    let len = u16::try_from(end - l4).expect("a packet of 16 bits of length").to_be_bytes();
    let addresses = l3 + if v6 { 8 } else { 12 };
    let unsummed = udp && word(frame, l4 + 6) == Some(0);
    let ip = v6 || sum(&frame[l3..l4]) == 0xffff;
    ip && !unsummed && sum(&[&[0, protocol], &len[..], &frame[addresses..end]].concat()) == 0xffff
}

fn sum(bytes: &[u8]) -> u32 {
    let pair = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
    bytes.chunks(2).map(pair).fold(0, |sum, word| ((sum + word) & 0xffff) + ((sum + word) >> 16))
}
