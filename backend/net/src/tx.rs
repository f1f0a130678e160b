//! One batch out of the guest.
//!
//! # Theory of operation
//! Up to [`BATCH`] chains are taken, their headers copied and checked against what was negotiated and against their
//! frames, and each frame becomes a list of pieces of guest memory, lent as it lies there. Then each link gets the whole
//! batch in one call (what the headers ask for and the network cannot do, the link does), and all chains are published
//! together.
//!
//! With a single link, a link that is full stops the queue: what it did not take goes back to the ring, in order, and the
//! guest waits. With several, a full link must not stop the others, so it loses the frames; so does a single one that was
//! full for so long that the worker made it *lossy*.

use std::sync::Arc;

use offload::HEAD_MAX;
use offload::header::NEEDS_CSUM;
use vdeplug::link::{BIG_FRAME_MAX, FRAME_MIN};
use vdeplug::{Header, Link, LinkError, Sent, TxBuf, TxFrame};
use vring::buf::read_chain;

use crate::counters::{Counter, Counters};
use crate::lend;
use crate::queue::Queue;
use crate::steer::Inlets;

/// Chains per batch. Past 8 a larger batch gains nothing in the kernel, whose cost is per frame; it does save calls to
/// the guest and looks at the ring.
pub const BATCH: usize = 32;

/// Buffers of the TX side that are kept from batch to batch.
#[derive(Default)]
pub struct Scratch {
    pieces: Vec<TxBuf<'static>>,
}

/// Where the frames go.
pub struct Links<'a> {
    /// Those that are up, with their indices.
    pub up: &'a [(usize, Arc<dyn Link>)],
    /// A single one does not stop the queue when it is full.
    pub lossy: bool,
}

/// Who sends: a queue pair of a NIC, which is where answers are best received.
pub struct Sender<'a> {
    pub inlets: &'a Inlets,
    pub pair: usize,
}

/// What a batch did.
#[derive(Debug, Default)]
pub struct Round {
    /// Chains used up; 0: there was nothing to do, or nothing could be done.
    pub used: usize,
    /// The only link is full: its index.
    pub blocked: Option<usize>,
    /// A link took some of it.
    pub carried: bool,
    /// Links found dead.
    pub lost: Vec<(usize, LinkError)>,
}

/// A frame to be sent: which chain, and what its header asks for.
#[derive(Clone, Copy)]
struct Frame {
    chain: usize,
    header: Header,
    len: usize,
}

/// Sends one batch.
pub fn round(
    queue: &mut Queue,
    sender: &Sender<'_>,
    links: &Links<'_>,
    scratch: &mut Scratch,
    counters: &Counters,
    name: &str,
) -> Round {
    let mut round = Round::default();
    let available = queue.fill(BATCH, counters, name);
    let mut frames = [Frame { chain: 0, header: Header::NONE, len: 0 }; BATCH];
    let mut dropped = [None; BATCH];
    let mut count = 0;
    for (chain, drop) in (0..available).zip(&mut dropped) {
        match check(queue, chain, counters) {
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
    let sent = send(queue, frames, sender, links, scratch, counters, &mut round);
    // Chains up to the first frame that was not taken are used up, those of dropped frames among them.
    round.used = frames.get(sent.taken).map_or(available, |f| f.chain);
    for (chain, drop) in (0..round.used).zip(dropped) {
        queue.ring.complete(chain, 0);
        drop.inspect(|counter| counter.add(1));
    }
    queue.publish(round.used);
    queue.ring.rewind();
    // What was not taken is at the front of the ring the next time.
    queue.segments_sent = sent.segments;
    round
}

/// Checks a chain's header and length; the error is the counter of why it is dropped.
fn check<'c>(queue: &Queue, chain: usize, counters: &'c Counters) -> Result<Frame, &'c Counter> {
    if !queue.enabled {
        return Err(&counters.tx_disabled);
    }
    let accepted = queue.accepted;
    let len = queue.ring.chain_len(chain).checked_sub(accepted.header_len).ok_or(&counters.tx_bad_header)?;
    if len < FRAME_MIN {
        return Err(&counters.tx_runt);
    }
    let bufs = queue.ring.bufs(chain);
    let mut bytes = [0; Header::LEN];
    read_chain(bufs, 0, bytes.get_mut(..accepted.header_len).unwrap_or_default());
    let mut header = Header::decode(&bytes);
    // A chain may claim gigabytes. What of less is too long for a link, that link knows.
    if len > BIG_FRAME_MAX {
        return Err(&counters.tx_too_long);
    }
    // Flags that have no meaning here are to be ignored (virtio 1.2 § 5.1.6.2.2).
    header.flags &= NEEDS_CSUM;
    if header.is_done() {
        return Ok(Frame { chain, header: Header::NONE, len });
    }
    if !accepted.tx.allow(&header) {
        return Err(&counters.tx_bad_header);
    }
    let mut head = [0; HEAD_MAX];
    let got = read_chain(bufs, accepted.header_len, &mut head);
    let header = offload::check(&header, head.get(..got).unwrap_or_default(), len);
    header.map(|header| Frame { chain, header, len }).map_err(|_| &counters.tx_bad_header)
}

/// Makes the frames' lists of pieces, sends them, and returns how many, from the front, are done with.
fn send(
    queue: &Queue,
    frames: &[Frame],
    sender: &Sender<'_>,
    links: &Links<'_>,
    scratch: &mut Scratch,
    counters: &Counters,
    round: &mut Round,
) -> Sent {
    let all = Sent { taken: frames.len(), ..Sent::default() };
    if frames.is_empty() {
        return all;
    }
    if links.up.is_empty() {
        counters.tx_no_link.add(frames.len() as u64);
        return all;
    }
    let mut pieces = lend::recycle(std::mem::take(&mut scratch.pieces));
    let mut ends = [0; BATCH];
    for (frame, end) in frames.iter().zip(&mut ends) {
        lend::tx(queue.ring.bufs(frame.chain), queue.accepted.header_len, &mut pieces);
        *end = pieces.len();
    }
    let mut batch = [TxFrame::new(&[]); BATCH];
    let mut start = 0;
    for ((slot, frame), end) in batch.iter_mut().zip(frames).zip(ends) {
        // Only the very frame that a link took a part of goes on where it stopped.
        let segments = if frame.chain == 0 { queue.segments_sent } else { 0 };
        *slot = TxFrame { bufs: pieces.get(start..end).unwrap_or_default(), header: frame.header, segments };
        start = end;
    }
    let batch = batch.get(..frames.len()).unwrap_or_default();
    sender.inlets.sent(sender.pair, batch);
    let (sent, passed) = offer(batch, links, counters, round);
    if round.lost.len() == links.up.len() {
        counters.tx_no_link.add(batch.len() as u64);
    }
    counters.tx_frames.add(passed as u64);
    counters.tx_bytes.add(frames.iter().take(passed).map(|f| f.len as u64).sum());
    scratch.pieces = lend::recycle(pieces);
    sent
}

/// Gives every link the whole batch and returns how many frames, from the front, are done with, and what of the next; and
/// how many of them the link took that took most.
pub fn offer(
    batch: &[TxFrame<'_>],
    links: &Links<'_>,
    counters: &Counters,
    round: &mut Round,
) -> (Sent, usize) {
    let mut done = Sent::default();
    let mut passed = 0;
    let before = batch.first().map_or(0, |frame| frame.segments);
    for (index, link) in links.up {
        match link.send(batch) {
            Ok(sent) => {
                counters.tx_refused.add(sent.dropped as u64);
                passed = passed.max(sent.taken);
                round.carried |= sent.taken > 0 || sent.segments > before;
                if sent.taken < batch.len() && links.up.len() == 1 && !links.lossy {
                    round.blocked = Some(*index);
                    done = sent;
                } else {
                    counters.tx_link_full.add((batch.len() - sent.taken) as u64);
                    done.taken = batch.len();
                }
            }
            Err(error) => {
                round.lost.push((*index, error));
                done.taken = batch.len();
            }
        }
    }
    (done, passed)
}
