//! One batch out of the guest.
//!
//! # Theory of operation
//! Up to [`BATCH`] chains are taken. Their headers are copied and checked against what was negotiated and against their
//! frames, and what follows them is lent as it lies there, in the ring's own list of pieces. Then each link gets the whole
//! batch in one call (what the headers ask for and the network cannot do, the link does), and all chains are published
//! together. A chain that is dropped ends the batch, unless it is at its front: frames and chains are counted alike, and
//! drivers do not make any.
//!
//! With a single link, a link that is full stops the queue: what it did not take goes back to the ring, in order, and the
//! guest waits. With several, a full link must not stop the others, so it loses the frames; so does a single one that was
//! full for so long that the worker made it *lossy*.

use std::sync::Arc;

use offload::HEAD_MAX;
use offload::header::NEEDS_CSUM;
use vdeplug::link::{BIG_FRAME_MAX, FRAME_MIN};
use vdeplug::{Header, Link, LinkError, Sent, TxFrame};
use vring::Headed;
use vring::buf::read_chain;

use crate::counters::{Counter, Counters};
use crate::features::Accepted;
use crate::lend;
use crate::queue::Queue;
use crate::steer::Inlets;

/// Chains per batch. Past 8 a larger batch gains nothing in the kernel, whose cost is per frame; it does save calls to
/// the guest and looks at the ring.
pub const BATCH: usize = 32;

/// Buffers of the TX side that are kept from batch to batch.
#[derive(Default)]
pub struct Scratch {
    frames: Vec<TxFrame<'static>>,
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
    // Also of a ring that broke just now, which may have chains in its window.
    if queue.fill(BATCH, counters, name) == 0 {
        queue.segments_sent = 0;
        return round;
    }
    let mut frames = lend::recycle(std::mem::take(&mut scratch.frames));
    let Queue { ring, accepted, enabled, segments_sent, .. } = queue;
    let (mut dropped, mut ended_by) = (0, None);
    for chain in ring.split_heads(accepted.header_len) {
        match check(chain, accepted, *enabled, counters) {
            Ok(frame) => frames.push(frame),
            Err(counter) if frames.is_empty() => {
                counter.add(1);
                dropped += 1;
            }
            Err(counter) => {
                ended_by = Some(counter);
                break;
            }
        }
    }
    if let Some(first) = frames.first_mut().filter(|_| dropped == 0) {
        // Only the very frame that a link took a part of goes on where it stopped.
        first.segments = *segments_sent;
    }
    let count = frames.len();
    let sent = send(&frames, sender, links, counters, &mut round);
    scratch.frames = lend::recycle(frames);
    round.used = dropped + sent.taken;
    if let Some(counter) = ended_by.filter(|_| sent.taken == count) {
        counter.add(1);
        round.used += 1;
    }
    queue.give_back(round.used);
    if sent.taken < count {
        // At the front of the ring the next time.
        queue.ring.rewind();
    }
    queue.segments_sent = sent.segments;
    round
}

/// Checks a chain's header and length; the error is the counter of why it is dropped.
#[inline]
fn check<'r, 'c>(
    chain: Option<Headed<'r, { Header::LEN }>>,
    accepted: &Accepted,
    enabled: bool,
    counters: &'c Counters,
) -> Result<TxFrame<'r>, &'c Counter> {
    if !enabled {
        return Err(&counters.tx_disabled);
    }
    let Headed { head, bufs, len } = chain.ok_or(&counters.tx_bad_header)?;
    if len < FRAME_MIN {
        return Err(&counters.tx_runt);
    }
    // A chain may claim gigabytes. What of less is too long for a link, that link knows.
    if len > BIG_FRAME_MAX {
        return Err(&counters.tx_too_long);
    }
    let mut header = Header::decode(&head);
    // Flags that have no meaning here are to be ignored (virtio 1.2 § 5.1.6.2.2).
    header.flags &= NEEDS_CSUM;
    let frame = TxFrame::new(lend::tx(bufs));
    if header.is_done() {
        return Ok(frame);
    }
    if !accepted.tx.allow(&header) {
        return Err(&counters.tx_bad_header);
    }
    let mut head = [0; HEAD_MAX];
    let got = read_chain(bufs, 0, &mut head);
    let header = offload::check(&header, head.get(..got).unwrap_or_default(), len);
    header.map(|header| TxFrame { header, ..frame }).map_err(|_| &counters.tx_bad_header)
}

/// Sends frames, and returns how many, from the front, are done with.
fn send(
    batch: &[TxFrame<'_>],
    sender: &Sender<'_>,
    links: &Links<'_>,
    counters: &Counters,
    round: &mut Round,
) -> Sent {
    let all = Sent { taken: batch.len(), ..Sent::default() };
    if batch.is_empty() {
        return all;
    }
    if links.up.is_empty() {
        counters.tx_no_link.add(batch.len() as u64);
        return all;
    }
    sender.inlets.sent(sender.pair, batch);
    let (sent, passed) = offer(batch, links, counters, round);
    if round.lost.len() == links.up.len() {
        counters.tx_no_link.add(batch.len() as u64);
    }
    counters.tx_frames.add(passed as u64);
    counters.tx_bytes.add(batch.iter().take(passed).map(|frame| frame.len() as u64).sum());
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
