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
    /// Header and length of each frame that was received into them.
    received: Vec<(Header, usize)>,
    coalescer: Coalescer,
    delivery: Delivery,
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
        receive(link, &mut self.memory, distance, count, &mut self.received)?;
        let takes = inlets.takes();
        // A link on which another program came meanwhile may have changed its mind.
        let undone = self.received.iter().any(|(header, _)| !header.is_done());
        if big || undone || !takes.csum {
            self.deliver(distance, inlets, counters);
        } else {
            let take =
                Take { csum: true, tcp4: takes.tso4, tcp6: takes.tso6, ecn: takes.ecn, udp: takes.uso };
            self.join(distance, take, inlets, counters);
        }
        let moved = self.received.len();
        Ok(Round { moved, drained: moved < count })
    }

    /// Delivers what lies in rooms, joined.
    fn join(&mut self, distance: usize, take: Take, inlets: &Inlets, counters: &Counters) {
        let mut frames: [&[u8]; BATCH] = [&[]; BATCH];
        let rooms = self.memory.chunks_exact(distance).zip(&self.received);
        let whole = rooms.filter_map(|(room, (_, len))| room.get(..*len));
        let count = frames.iter_mut().zip(whole).map(|(slot, frame)| *slot = frame).count();
        counters.rx_too_long.add((self.received.len() - count) as u64);
        let frames = frames.get(..count).unwrap_or_default();
        self.coalescer.join(frames, take);
        let mut pieces = self.delivery.begin();
        for joined in self.coalescer.frames() {
            let Joined { header, head, parts, .. } = joined;
            if !head.is_empty() {
                pieces.push(TxBuf::new(head));
            }
            let bytes = |part: &offload::coalesce::Part| frames.get(part.frame)?.get(part.range.clone());
            pieces.extend(parts.iter().filter_map(bytes).map(TxBuf::new));
            self.delivery.frames.push((header, pieces.len()));
        }
        counters.rx_joined.add((count - self.delivery.frames.len()) as u64);
        self.delivery.end(pieces, inlets);
    }

    /// Delivers what lies in rooms, as it is.
    fn deliver(&mut self, distance: usize, inlets: &Inlets, counters: &Counters) {
        let mut pieces = self.delivery.begin();
        for (room, (header, len)) in self.memory.chunks_exact(distance).zip(&self.received) {
            if let Some(bytes) = room.get(..*len) {
                pieces.push(TxBuf::new(bytes));
                // That its checksums are right is the network's word, and not enough.
                let header = Header { flags: header.flags & !DATA_VALID, ..*header };
                self.delivery.frames.push((header, pieces.len()));
            }
        }
        counters.rx_too_long.add((self.received.len() - pieces.len()) as u64);
        self.delivery.end(pieces, inlets);
    }
}

/// Receives up to `count` frames into rooms; notes the header and the length of each.
fn receive(
    link: &dyn Link,
    memory: &mut [u8],
    distance: usize,
    count: usize,
    received: &mut Vec<(Header, usize)>,
) -> Result<(), LinkError> {
    let mut rooms = memory.chunks_exact_mut(distance);
    let rooms: [RxBuf<'_>; BATCH] = std::array::from_fn(|_| RxBuf::new(rooms.next().unwrap_or_default()));
    let mut rooms = rooms.chunks_exact(1);
    let mut frames: [RxFrame<'_>; BATCH] =
        std::array::from_fn(|_| RxFrame::new(rooms.next().unwrap_or_default()));
    received.clear();
    let got = link.recv(frames.get_mut(..count).unwrap_or_default())?;
    received.extend(frames.iter().take(got).map(|frame| (frame.header, frame.len)));
    Ok(())
}

/// Frames as they are made of pieces and delivered. Its memory is kept from batch to batch.
#[derive(Default)]
struct Delivery {
    /// The header of each frame, and where in the list of all pieces its own end.
    frames: Vec<(Header, usize)>,
    pieces: Vec<TxBuf<'static>>,
    whole: Vec<TxFrame<'static>>,
}

impl Delivery {
    /// Begins a list of pieces.
    fn begin<'a>(&mut self) -> Vec<TxBuf<'a>> {
        self.frames.clear();
        lend::recycle(std::mem::take(&mut self.pieces))
    }

    /// Delivers the frames.
    fn end(&mut self, pieces: Vec<TxBuf<'_>>, inlets: &Inlets) {
        let mut whole = lend::recycle(std::mem::take(&mut self.whole));
        let mut start = 0;
        for (header, end) in &self.frames {
            let bufs = pieces.get(start..*end).unwrap_or_default();
            whole.push(TxFrame { header: *header, ..TxFrame::new(bufs) });
            start = *end;
        }
        inlets.deliver(&whole);
        self.whole = lend::recycle(whole);
        self.pieces = lend::recycle(pieces);
    }
}
