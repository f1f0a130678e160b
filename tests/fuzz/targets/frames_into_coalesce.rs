//! Any batch of frames. Input: a byte of what the receiver takes, then frames, each of them a byte that says how it is made
//! (the constants below) and what that takes. Frames are mostly made from others, as segments of a flow are: of noise alone,
//! no two would ever fit together.
//!
//! What is delivered is all of the batch, in order, and segments again to the same bytes.

#![no_main]

#[path = "../../../backend/offload/src/coalesce/oracle.rs"]
mod oracle;

use libfuzzer_sys::fuzz_target;
use offload::csum::Sum;
use offload::{Coalescer, Take};

const FRAMES_MAX: usize = 64;

/// From another frame (its number, counted back from here), and not from bytes (their number, the bytes).
const COPY: u8 = 1;
/// The next segment: behind the other's payload.
const NEXT: u8 = 2;
/// Another length: two bytes, high one first.
const LENGTH: u8 = 4;
/// Bytes are changed: their number (four at most), each with its place and what it becomes.
const EDIT: u8 = 8;
/// Lengths in the headers are made right.
const LENGTHS: u8 = 16;
/// Checksums are made right.
const CHECKSUMS: u8 = 32;

fuzz_target!(|input: &[u8]| {
    let mut input = input.iter().copied();
    let Some(bits) = input.next() else { return };
    let bit = |number: u8| bits >> number & 1 == 0;
    let take = Take { csum: bit(0), tcp4: bit(1), tcp6: bit(2), ecn: bit(3), udp: bit(4) };
    let mut frames: Vec<Vec<u8>> = Vec::new();
    while let Some(frame) = next(&mut input, &frames) {
        frames.push(frame);
        if frames.len() == FRAMES_MAX {
            break;
        }
    }
    let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
    let mut coalescer = Coalescer::new();
    oracle::join_and_verify(&mut coalescer, &frames, take);
    // Nothing is left over from the batch before.
    oracle::join_and_verify(&mut coalescer, &frames, take);
});

fn next(input: &mut impl Iterator<Item = u8>, frames: &[Vec<u8>]) -> Option<Vec<u8>> {
    let how = input.next()?;
    let mut frame = if how & COPY == 0 {
        let len = input.next()?;
        input.by_ref().take(usize::from(len)).collect()
    } else {
        let back = usize::from(input.next()?);
        frames.iter().rev().nth(back).cloned().unwrap_or_default()
    };
    if how & NEXT != 0 {
        go_on(&mut frame);
    }
    if how & LENGTH != 0 {
        let len = u16::from_be_bytes([input.next()?, input.next()?]);
        frame.resize(usize::from(len), 0);
    }
    if how & EDIT != 0 {
        for _ in 0..input.next()? % 5 {
            let (at, value) = (input.next()?, input.next()?);
            if let Some(byte) = frame.get_mut(usize::from(at)) {
                *byte = value;
            }
        }
    }
    if how & LENGTHS != 0 {
        set_lengths(&mut frame);
    }
    if how & CHECKSUMS != 0 {
        set_checksums(&mut frame);
    }
    Some(frame)
}

/// Where the headers of TCP or UDP over IP without options are, and whether it is IPv6 and UDP.
fn headers(frame: &[u8]) -> Option<(usize, usize, bool, bool)> {
    let mut l3 = 14;
    while matches!(frame.get(l3 - 2..l3)?, [0x81, 0x00] | [0x88, 0xa8]) {
        l3 += 4;
    }
    let v6 = frame.get(l3 - 2) == Some(&0x86);
    let l4 = l3 + if v6 { 40 } else { 20 };
    let udp = *frame.get(l3 + if v6 { 6 } else { 9 })? == 17;
    frame.get(l4..l4 + if udp { 8 } else { 20 })?;
    Some((l3, l4, v6, udp))
}

fn go_on(frame: &mut [u8]) {
    let Some((l3, l4, v6, udp)) = headers(frame) else { return };
    if !v6 {
        let id = u16::from_be_bytes([frame[l3 + 4], frame[l3 + 5]]).wrapping_add(1);
        frame[l3 + 4..l3 + 6].copy_from_slice(&id.to_be_bytes());
    }
    if !udp {
        let payload = frame.len().saturating_sub(l4 + 4 * usize::from(frame[l4 + 12] >> 4));
        let sequence = u32::from_be_bytes([frame[l4 + 4], frame[l4 + 5], frame[l4 + 6], frame[l4 + 7]]);
        let next = sequence.wrapping_add(payload as u32);
        frame[l4 + 4..l4 + 8].copy_from_slice(&next.to_be_bytes());
    }
}

fn set_lengths(frame: &mut [u8]) {
    let Some((l3, l4, v6, udp)) = headers(frame) else { return };
    let word = |len: usize| (len as u16).to_be_bytes();
    let len = frame.len();
    if v6 {
        frame[l3 + 4..l3 + 6].copy_from_slice(&word(len - l4));
    } else {
        frame[l3 + 2..l3 + 4].copy_from_slice(&word(len - l3));
    }
    if udp {
        frame[l4 + 4..l4 + 6].copy_from_slice(&word(len - l4));
    }
}

/// By the frame's own length, also where its headers tell another.
fn set_checksums(frame: &mut [u8]) {
    let Some((l3, l4, v6, udp)) = headers(frame) else { return };
    if !v6 {
        frame[l3 + 10..l3 + 12].fill(0);
        let mut sum = Sum::default();
        sum.add(&frame[l3..l4]);
        frame[l3 + 10..l3 + 12].copy_from_slice(&sum.complement());
    }
    let at = l4 + if udp { 6 } else { 16 };
    frame[at..at + 2].fill(0);
    let mut sum = Sum::default();
    sum.add(&[0, if udp { 17 } else { 6 }]);
    sum.add(&((frame.len() - l4) as u16).to_be_bytes());
    sum.add(&frame[l3 + if v6 { 8 } else { 12 }..]);
    let checksum = if udp { sum.finish() } else { sum.complement() };
    frame[at..at + 2].copy_from_slice(&checksum);
}
