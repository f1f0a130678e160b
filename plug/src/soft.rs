//! What a network without offloads cannot do, done here: checksums are completed and frames segmented as they are sent.
//!
//! # Theory of operation
//! Frames become datagrams, each a *head* in a private arena and the rest of it lent out of the frame's own pieces: the
//! payload, which may lie in a guest's memory, is read once for its checksum and never copied to stay. The datagrams of
//! consecutive frames are gathered until there are enough for one call. How far that call came is said exactly, in
//! frames and in segments of the next one, so that a full socket neither loses nor repeats a segment.
//!
//! A batch is made in two steps, since the arena must not move any more once its bytes are lent.

use std::ops::Range;
use std::os::fd::BorrowedFd;

use offload::csum::Sum;
use offload::header::GSO_NONE;
use offload::{HEAD_MAX, Partial, Plan};

use crate::datagram::Failure;
use crate::link::{Place, TxBuf, TxFrame};
use crate::sys;

/// How much of a frame is copied at once to be summed: the payload of a segment on most networks.
const SUM_PIECE: usize = 2048;

/// How far a batch came: what is sent, and stays so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Frames from the front that went whole.
    pub frames: usize,
    /// Segments of the next one that went.
    pub segments: usize,
}

/// A datagram to be sent.
struct Datagram<'a> {
    frame: &'a TxFrame<'a>,
    /// Its beginning, in the arena.
    head: Range<usize>,
    /// The rest of it, in the frame.
    body: Range<usize>,
    /// How far we are once it went.
    reached: Reached,
}

/// Datagrams in the making.
#[derive(Default)]
struct Batch<'a> {
    arena: Vec<u8>,
    datagrams: Vec<Datagram<'a>>,
}

/// Does what the headers of frames ask for and sends as many datagrams as go by one call, each behind the bytes of
/// `prefix`. `segments` of the first frame went before. Says how far it came, and whether all that it made went.
pub(crate) fn send<'a>(
    fd: BorrowedFd<'_>,
    prefix: &'a [u8],
    frames: impl Iterator<Item = &'a TxFrame<'a>>,
    segments: usize,
    max_frame: usize,
) -> Result<(Reached, bool), Failure> {
    let mut batch = Batch::default();
    for (index, frame) in frames.enumerate() {
        let from = if index == 0 { segments } else { frame.segments };
        // One that cannot be done is for the next call, in which it is the first.
        if batch.datagrams.len() >= sys::BATCH || batch.add(index, frame, from, max_frame).is_none() {
            break;
        }
    }
    if batch.datagrams.is_empty() {
        return Err(Failure::Frame);
    }
    let mut pieces = Vec::with_capacity(4 * batch.datagrams.len());
    let mut ends = Vec::with_capacity(batch.datagrams.len());
    let (mut current, mut place) = (None::<&TxFrame<'_>>, Place::default());
    for Datagram { frame, head, body, .. } in &batch.datagrams {
        if !current.is_some_and(|current| std::ptr::eq(current, *frame)) {
            (current, place) = (Some(*frame), Place::default());
        }
        let start = pieces.len();
        if !prefix.is_empty() {
            pieces.push(TxBuf::new(prefix));
        }
        if let Some(head) = batch.arena.get(head.clone()).filter(|head| !head.is_empty()) {
            pieces.push(TxBuf::new(head));
        }
        frame.pieces_near(&mut place, body.clone(), &mut pieces);
        ends.push(start..pieces.len());
    }
    let datagrams = ends.iter().map(|range| pieces.get(range.clone()).unwrap_or_default());
    let sent = sys::send_batch(fd, datagrams)?;
    let last = sent.checked_sub(1).and_then(|last| batch.datagrams.get(last));
    let all = sent == batch.datagrams.len();
    last.map(|datagram| (datagram.reached, all)).ok_or(Failure::Again)
}

impl<'a> Batch<'a> {
    /// Adds the datagrams of a frame, from segment number `from` on, as far as there is room for them. `None`: the frame
    /// cannot be sent.
    fn add(&mut self, index: usize, frame: &'a TxFrame<'a>, from: usize, max_frame: usize) -> Option<()> {
        let whole = Reached { frames: index + 1, segments: 0 };
        let len = frame.len();
        if frame.header.gso_type == GSO_NONE {
            if len > max_frame {
                return None;
            }
            let start = self.arena.len();
            if let Some(partial) = frame.header.partial() {
                complete(frame, partial, &mut self.arena)?;
            }
            let head = start..self.arena.len();
            let body = head.len()..len;
            self.datagrams.push(Datagram { frame, head, body, reached: whole });
            return Some(());
        }
        let mut first = [0; HEAD_MAX];
        let got = frame.read_at(0, &mut first);
        let plan = Plan::new(&frame.header, first.get(..got)?, len).ok()?;
        // The frame's owner may have rewritten it since its first segments went.
        if plan.longest() > max_frame || from >= plan.segments() {
            return None;
        }
        let room = sys::BATCH.saturating_sub(self.datagrams.len());
        let (mut place, mut piece) = (Place::default(), [0; SUM_PIECE]);
        for segment in (from..plan.segments()).take(room) {
            let body = plan.payload(segment);
            let sum = sum(frame, &mut place, body.clone(), &mut piece);
            let head = plan.write_head(segment, sum, &mut first);
            let start = self.arena.len();
            self.arena.extend_from_slice(head);
            let last = segment + 1 == plan.segments();
            let reached = if last { whole } else { Reached { frames: index, segments: segment + 1 } };
            self.datagrams.push(Datagram { frame, head: start..self.arena.len(), body, reached });
        }
        Some(())
    }
}

/// Copies the frame up to its checksum into the arena and completes the checksum there.
fn complete(frame: &TxFrame<'_>, partial: Partial, arena: &mut Vec<u8>) -> Option<()> {
    let (len, end) = (frame.len(), partial.at + 2);
    let mut head = [0; HEAD_MAX];
    let head = head.get_mut(..end).filter(|_| end <= len)?;
    frame.read_at(0, head);
    let mut whole = Sum::default();
    whole.add(head.get(partial.start..)?);
    whole.join(sum(frame, &mut Place::default(), end..len, &mut [0; SUM_PIECE]));
    head.get_mut(partial.at..)?.copy_from_slice(&whole.finish());
    arena.extend_from_slice(head);
    Some(())
}

/// Sums bytes of a frame, through a small copy: the memory may be a guest's, which is not read through references, and a
/// copy in `piece`, which stays in the first-level cache, costs next to nothing beside the sum.
fn sum(frame: &TxFrame<'_>, place: &mut Place, range: Range<usize>, piece: &mut [u8; SUM_PIECE]) -> Sum {
    let mut sum = Sum::default();
    let mut offset = range.start;
    while let Some(room) = piece.get_mut(..range.end.saturating_sub(offset).min(SUM_PIECE)) {
        let got = frame.read_near(place, offset, room);
        sum.add(room.get(..got).unwrap_or_default());
        offset += got;
        if got == 0 {
            break;
        }
    }
    sum
}

#[cfg(test)]
mod tests;
