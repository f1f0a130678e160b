//! One batch out of the guest.
//!
//! # Theory of operation
//! Up to [`BATCH`] chains are taken, their headers copied and checked, and each frame becomes a list of pieces: what lies
//! in guest memory is lent as it is; where the driver left the checksum to us, the bytes up to the checksum are copied,
//! the checksum is completed there, and only the rest is lent. Then each link gets the whole batch in one call, and all
//! chains are published together.
//!
//! With a single link, a link that is full stops the queue: what it did not take goes back to the ring, in order, and the
//! guest waits. With several, a full link must not stop the others, so it loses the frames.

use std::sync::Arc;

use offload::csum::Sum;
use vdeplug::link::{FRAME_MAX, FRAME_MIN};
use vdeplug::{Link, LinkError, TxBuf};
use vring::buf::read_chain;

use crate::counters::{Counter, Counters};
use crate::header::{self, Partial};
use crate::lend;
use crate::queue::Queue;

/// Chains per batch. Past 8 a larger batch gains nothing in the kernel, whose cost is per frame; it does save calls to
/// the guest and looks at the ring.
pub const BATCH: usize = 32;
/// Room for the copied head of a frame whose checksum we complete: Ethernet, VLAN tags, IPv6 with extension headers, TCP.
const HEAD: usize = 256;

/// Buffers of the TX side that are kept from batch to batch.
pub struct Scratch {
    heads: Vec<[u8; HEAD]>,
    pieces: Vec<TxBuf<'static>>,
}

impl Scratch {
    pub fn new() -> Self {
        Self { heads: vec![[0; HEAD]; BATCH], pieces: Vec::new() }
    }
}

/// What a batch did.
pub struct Round {
    /// Chains used up; 0: there was nothing to do, or nothing could be done.
    pub used: usize,
    /// The only link is full: its index.
    pub blocked: Option<usize>,
    /// Links found dead.
    pub lost: Vec<(usize, LinkError)>,
}

/// A frame to be sent: which chain, and what is copied of it.
#[derive(Clone, Copy)]
struct Frame {
    chain: usize,
    /// Bytes at its front that come from `Scratch::heads` instead of guest memory.
    head: usize,
    len: usize,
}

/// Sends one batch. `links` are those that are up, with their indices.
pub fn round(
    queue: &mut Queue,
    links: &[(usize, Arc<dyn Link>)],
    scratch: &mut Scratch,
    counters: &Counters,
    name: &str,
) -> Round {
    let mut round = Round { used: 0, blocked: None, lost: Vec::new() };
    let available = queue.fill(BATCH, counters, name);
    let mut frames = [Frame { chain: 0, head: 0, len: 0 }; BATCH];
    let mut dropped = [None; BATCH];
    let mut count = 0;
    for ((chain, head), drop) in (0..available).zip(&mut scratch.heads).zip(&mut dropped) {
        match check(queue, chain, head, counters) {
            Err(counter) => *drop = Some(counter),
            Ok(frame) => {
                if let Some(slot) = frames.get_mut(count) {
                    *slot = frame;
                    count += 1;
                }
            }
        }
    }
    let frames = frames.get(..count).unwrap_or_default();
    let taken = send(queue, frames, links, scratch, counters, &mut round);
    // Chains up to the first frame that was not taken are used up, those of dropped frames among them.
    round.used = frames.get(taken).map_or(available, |f| f.chain);
    for (chain, drop) in (0..round.used).zip(dropped) {
        queue.ring.complete(chain, 0);
        drop.inspect(|counter| counter.add(1));
    }
    queue.publish(round.used);
    queue.ring.rewind();
    round
}

/// Checks a chain's header and prepares the copied part of the frame; the error is the counter of why it is dropped.
fn check<'c>(
    queue: &Queue,
    chain: usize,
    head: &mut [u8; HEAD],
    counters: &'c Counters,
) -> Result<Frame, &'c Counter> {
    if !queue.enabled {
        return Err(&counters.tx_disabled);
    }
    let accepted = queue.accepted;
    let len = queue.ring.chain_len(chain).checked_sub(accepted.header_len).ok_or(&counters.tx_bad_header)?;
    if len < FRAME_MIN {
        return Err(&counters.tx_runt);
    }
    // Before anything is done with the bytes: a chain may claim gigabytes.
    if len > FRAME_MAX {
        return Err(&counters.tx_too_long);
    }
    let mut bytes = [0; header::MAX_LEN];
    read_chain(queue.ring.bufs(chain), 0, bytes.get_mut(..accepted.header_len).unwrap_or_default());
    let copied = match header::parse_tx(&bytes, accepted) {
        Some(None) => Some(0),
        Some(Some(partial)) => complete(queue, chain, partial, len, head),
        None => None,
    };
    Ok(Frame { chain, head: copied.ok_or(&counters.tx_bad_header)?, len })
}

/// Copies the frame up to its checksum into `head`, completes the checksum there and returns how much was copied.
fn complete(
    queue: &Queue,
    chain: usize,
    partial: Partial,
    len: usize,
    head: &mut [u8; HEAD],
) -> Option<usize> {
    let end = partial.at + 2;
    if end > len {
        return None;
    }
    let bufs = queue.ring.bufs(chain);
    let header_len = queue.accepted.header_len;
    let head = head.get_mut(..end)?;
    read_chain(bufs, header_len, head);
    let mut sum = Sum::default();
    sum.add(head.get(partial.start..)?);
    // The rest is summed through a small copy: guest memory is not read through references, and a copy that stays
    // in the first-level cache costs next to nothing beside the sum.
    let (mut piece, mut offset) = ([0u8; 2048], end);
    while offset < len {
        let room = piece.get_mut(..(len - offset).min(2048))?;
        let got = read_chain(bufs, header_len + offset, room);
        sum.add(room.get(..got)?);
        offset += got.max(1);
    }
    head.get_mut(partial.at..)?.copy_from_slice(&sum.finish());
    Some(end)
}

/// Makes the frames' lists of pieces, sends them, and returns how many, from the front, are done with.
fn send(
    queue: &Queue,
    frames: &[Frame],
    links: &[(usize, Arc<dyn Link>)],
    scratch: &mut Scratch,
    counters: &Counters,
    round: &mut Round,
) -> usize {
    if frames.is_empty() {
        return 0;
    }
    if links.is_empty() {
        counters.tx_no_link.add(frames.len() as u64);
        return frames.len();
    }
    let mut pieces = lend::recycle(std::mem::take(&mut scratch.pieces));
    let mut ends = [0; BATCH];
    for (frame, end) in frames.iter().zip(&mut ends) {
        if let Some(head) = scratch.heads.get(frame.chain).and_then(|h| h.get(..frame.head))
            && !head.is_empty()
        {
            pieces.push(TxBuf::new(head));
        }
        lend::tx(queue.ring.bufs(frame.chain), queue.accepted.header_len + frame.head, &mut pieces);
        *end = pieces.len();
    }
    let mut batch: [&[TxBuf<'_>]; BATCH] = [&[]; BATCH];
    let mut start = 0;
    for (slot, end) in batch.iter_mut().zip(ends).take(frames.len()) {
        *slot = pieces.get(start..end).unwrap_or_default();
        start = end;
    }
    let batch = batch.get(..frames.len()).unwrap_or_default();
    let done = offer(batch, links, counters, round);
    if round.lost.len() == links.len() {
        counters.tx_no_link.add(batch.len() as u64);
    } else {
        let passed = frames.get(..done).unwrap_or_default();
        counters.tx_frames.add(passed.len() as u64);
        counters.tx_bytes.add(passed.iter().map(|f| f.len as u64).sum());
    }
    scratch.pieces = lend::recycle(pieces);
    done
}

/// Gives every link the whole batch and returns how many frames, from the front, are done with.
fn offer(
    batch: &[&[TxBuf<'_>]],
    links: &[(usize, Arc<dyn Link>)],
    counters: &Counters,
    round: &mut Round,
) -> usize {
    let mut done = 0;
    for (index, link) in links {
        match link.send(batch) {
            Ok(sent) => {
                counters.tx_refused.add(sent.dropped as u64);
                if sent.taken < batch.len() && links.len() == 1 {
                    round.blocked = Some(*index);
                    done = sent.taken;
                } else {
                    counters.tx_link_full.add((batch.len() - sent.taken) as u64);
                    done = batch.len();
                }
            }
            Err(error) => {
                round.lost.push((*index, error));
                done = batch.len();
            }
        }
    }
    done
}
