//! Any header before any frame. Input: the 12 bytes of a header, two bytes (low one first) by which zeros
//! lengthen the frame, the frame.
//!
//! What is accepted becomes segments whose payloads are the frame's, whose lengths and checksums are right, and
//! of which there are no more than allowed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use offload::csum::Sum;
use offload::segment::SEGMENTS_MAX;
use offload::{HEAD_MAX, Header, Plan, check, complete};

fuzz_target!(|input: &[u8]| {
    let Some((header, rest)) = input.split_first_chunk() else { return };
    let Some((more, frame)) = rest.split_first_chunk() else { return };
    let header = Header::decode(header);
    let mut frame = frame.to_vec();
    frame.resize(frame.len() + usize::from(u16::from_le_bytes(*more)), 0);
    let head = &frame[..frame.len().min(HEAD_MAX)];

    match check(&header, head, frame.len()) {
        Ok(good) => {
            assert_eq!(check(&good, head, frame.len()), Ok(good), "what was found good stays so");
            if good.gso_type == 0 {
                complete(&good, &mut frame).expect("what was found good can be completed");
            } else {
                cut(&Plan::new(&good, head, frame.len()).expect("as it was checked"), &frame);
            }
        }
        Err(misfit) => assert!(!misfit.to_string().is_empty()),
    }
});

fn cut(plan: &Plan, frame: &[u8]) {
    assert!((1..=SEGMENTS_MAX).contains(&plan.segments()));
    let mut at = plan.head_len();
    let mut room = [0; HEAD_MAX];
    for index in 0..plan.segments() {
        let range = plan.payload(index);
        assert_eq!(range.start, at, "nothing is left out or sent twice");
        assert!(!range.is_empty() || plan.segments() == 1);
        at = range.end;
        let (head, payload) = plan.segment(index, frame, &mut room);
        assert_eq!(head.len(), plan.head_len());
        assert_eq!(payload, &frame[range]);
        assert!(head.len() + payload.len() <= plan.longest());
        assert_eq!(head[..12], frame[..12], "addresses stay");
        check_ip(head, payload);
    }
    assert!(at <= frame.len());
    assert!(plan.payload(plan.segments()).is_empty());
}

/// Finds the headers of a segment once more, by the RFCs alone, and verifies lengths and checksums.
fn check_ip(head: &[u8], payload: &[u8]) {
    let mut l3 = 14;
    while matches!(head[l3 - 2..l3], [0x81, 0x00] | [0x88, 0xa8]) {
        l3 += 4;
    }
    let word = |at: usize| usize::from(u16::from_be_bytes([head[at], head[at + 1]]));
    let (protocol, l4, addresses) = if head[l3] >> 4 == 4 {
        let l4 = l3 + 4 * usize::from(head[l3] & 0xf);
        assert_eq!(word(l3 + 2), head.len() - l3 + payload.len());
        assert_eq!(folded(&[&head[l3..l4]]), 0xffff, "checksum of the IP header");
        (head[l3 + 9], l4, &head[l3 + 12..l3 + 20])
    } else {
        assert_eq!(word(l3 + 4), head.len() - l3 - 40 + payload.len());
        let (mut next, mut l4) = (head[l3 + 6], l3 + 40);
        while matches!(next, 0 | 43 | 60) {
            (next, l4) = (head[l4], l4 + 8 + 8 * usize::from(head[l4 + 1]));
        }
        (next, l4, &head[l3 + 8..l3 + 40])
    };
    let len = head.len() - l4 + payload.len();
    if protocol == 17 {
        assert_eq!(word(l4 + 4), len, "length of the datagram");
    }
    let len = u16::try_from(len).expect("a segment's length fits");
    let parts: [&[u8]; 5] = [addresses, &[0, protocol], &len.to_be_bytes(), &head[l4..], payload];
    assert_eq!(folded(&parts), 0xffff, "checksum of TCP or UDP");
}

/// The sum of all words, as a receiver does it.
fn folded(parts: &[&[u8]]) -> u16 {
    let mut sum = Sum::default();
    parts.iter().for_each(|part| sum.add(part));
    // `finish` gives the complement, and 0xffff for 0.
    match !u16::from_ne_bytes(sum.finish()) {
        0 => 0xffff,
        sum => sum,
    }
}
