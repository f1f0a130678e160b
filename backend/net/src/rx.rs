//! Frames from a link to the receive queues.
//!
//! # Theory of operation
//! A batch is received by one call into *rooms* of private memory. Consecutive segments of a flow in it are joined, as far
//! as the guest takes that, and the result is delivered from there ([`Inlets::deliver`]). Receiving straight into the
//! guest's buffers would save a copy of bytes that the kernel has just put into the cache, which is little beside what the
//! kernel takes for a frame; and it would need buffers before there is a frame, of which nobody knows yet how long it is, to
//! which queue it goes, and whether it is a part of a larger one.
//!
//! All rooms of a thread lie in one piece of memory, whose pages are touched only by frames as long as that. Many are of
//! the longest complete frame for a link without offloads, few are of the longest frame of all for a link with them.
//! Frames of the latter are not joined: who knows of large frames sends them.

use offload::coalesce::{Coalescer, Joined, Take};
use offload::header::DATA_VALID;
use vdeplug::link::{BIG_FRAME_MAX, FRAME_MAX};
use vdeplug::{Header, Link, LinkError, Receiver, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::counters::Counters;
use crate::lend;
use crate::steer::Inlets;

/// Frames per batch: what the kernel takes in one call.
const BATCH: usize = 64;

/// Distance of rooms for complete frames: an odd number of cache lines, so that the beginnings of frames do not compete for
/// the same few places of a cache.
const ROOM: usize = FRAME_MAX.next_multiple_of(64) | 64;

/// The same for frames of any kind.
const BIG_ROOM: usize = BIG_FRAME_MAX.next_multiple_of(64) | 64;

/// How many of these are in the memory of the others.
const BIG_BATCH: usize = BATCH * ROOM / BIG_ROOM;

/// What a batch did.
#[derive(Debug, PartialEq, Eq)]
pub struct Round {
    /// Frames taken from the link.
    pub moved: usize,
    /// The link has no more frames for now.
    pub drained: bool,
}

/// Reads links.
#[derive(Default)]
pub struct Reader {
    /// The rooms; none before the first batch.
    memory: Vec<u8>,
    coalescer: Coalescer,
    pieces: Vec<TxBuf<'static>>,
}

impl Reader {
    /// Receives one batch from a link and delivers it.
    pub fn round(
        &mut self,
        link: &dyn Link,
        inlets: &Inlets,
        counters: &Counters,
    ) -> Result<Round, LinkError> {
        if self.memory.is_empty() {
            // Zeroes that the kernel gives, not ones that we write: no page is touched by this.
            self.memory = vec![0; BATCH * ROOM];
        }
        let big = link.offloads();
        let small = !big && link.max_frame() <= FRAME_MAX;
        let (count, distance) = if small { (BATCH, ROOM) } else { (BIG_BATCH, BIG_ROOM) };
        let mut received = [(Header::NONE, 0); BATCH];
        let received = received.get_mut(..count).unwrap_or_default();
        let got = receive(link, &mut self.memory, distance, received)?;
        let received = received.get(..got).unwrap_or_default();
        let takes = inlets.takes();
        // A link on which another program came meanwhile may have changed its mind.
        let undone = received.iter().any(|(header, _)| !header.is_done());
        if big || undone || !takes.csum {
            deliver(&self.memory, distance, received, inlets, counters);
        } else {
            let take =
                Take { csum: true, tcp4: takes.tso4, tcp6: takes.tso6, ecn: takes.ecn, udp: takes.uso };
            self.join(distance, received, take, inlets, counters);
        }
        Ok(Round { moved: got, drained: got < count })
    }

    /// Delivers what lies in rooms, joined.
    fn join(
        &mut self,
        distance: usize,
        received: &[(Header, usize)],
        take: Take,
        inlets: &Inlets,
        counters: &Counters,
    ) {
        let mut frames: [&[u8]; BATCH] = [&[]; BATCH];
        let rooms = self.memory.chunks_exact(distance).zip(received);
        let whole = rooms.filter_map(|(room, (_, len))| room.get(..*len));
        let count = frames.iter_mut().zip(whole).map(|(slot, frame)| *slot = frame).count();
        counters.rx_too_long.add((received.len() - count) as u64);
        let frames = frames.get(..count).unwrap_or_default();
        self.coalescer.join(frames, take);
        let mut pieces = lend::recycle(std::mem::take(&mut self.pieces));
        let mut whole = [(Header::NONE, 0); BATCH];
        let mut joined_count = 0;
        for (slot, joined) in whole.iter_mut().zip(self.coalescer.frames()) {
            let Joined { header, head, parts, .. } = joined;
            if !head.is_empty() {
                pieces.push(TxBuf::new(head));
            }
            let bytes = |part: &offload::coalesce::Part| frames.get(part.frame)?.get(part.range.clone());
            pieces.extend(parts.iter().filter_map(bytes).map(TxBuf::new));
            *slot = (header, pieces.len());
            joined_count += 1;
        }
        counters.rx_joined.add((count - joined_count) as u64);
        let mut start = 0;
        let frames: [TxFrame<'_>; BATCH] = std::array::from_fn(|index| {
            let (header, end) = whole.get(index).copied().unwrap_or_default();
            let bufs = pieces.get(start..end).unwrap_or_default();
            start = end;
            TxFrame { bufs, header, segments: 0 }
        });
        inlets.deliver(frames.get(..joined_count).unwrap_or_default());
        self.pieces = lend::recycle(pieces);
    }
}

/// Receives into rooms; notes the header and the length of each frame, and returns how many there were.
fn receive(
    link: &dyn Link,
    memory: &mut [u8],
    distance: usize,
    received: &mut [(Header, usize)],
) -> Result<usize, LinkError> {
    let mut rooms = memory.chunks_exact_mut(distance);
    let rooms: [RxBuf<'_>; BATCH] = std::array::from_fn(|_| RxBuf::new(rooms.next().unwrap_or_default()));
    let mut frames: [RxFrame<'_>; BATCH] =
        std::array::from_fn(|index| RxFrame::new(rooms.get(index..=index).unwrap_or_default()));
    let got = link.recv(frames.get_mut(..received.len()).unwrap_or_default())?;
    for (note, frame) in received.iter_mut().zip(&frames).take(got) {
        *note = (frame.header, frame.len);
    }
    Ok(got)
}

/// Delivers what lies in rooms, as it is.
fn deliver(
    memory: &[u8],
    distance: usize,
    received: &[(Header, usize)],
    inlets: &Inlets,
    counters: &Counters,
) {
    let mut pieces = [TxBuf::EMPTY; BATCH];
    let mut headers = [Header::NONE; BATCH];
    let mut count = 0;
    for (room, (header, len)) in memory.chunks_exact(distance).zip(received) {
        match (room.get(..*len), pieces.get_mut(count), headers.get_mut(count)) {
            (Some(bytes), Some(piece), Some(note)) => {
                // That its checksums are right is the network's word, and not enough.
                (*piece, *note) =
                    (TxBuf::new(bytes), Header { flags: header.flags & !DATA_VALID, ..*header });
                count += 1;
            }
            _ => counters.rx_too_long.add(1),
        }
    }
    let frames: [TxFrame<'_>; BATCH] = std::array::from_fn(|index| TxFrame {
        bufs: pieces.get(index..=index).unwrap_or_default(),
        header: headers.get(index).copied().unwrap_or_default(),
        segments: 0,
    });
    inlets.deliver(frames.get(..count).unwrap_or_default());
}
