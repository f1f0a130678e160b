//! Where frames that are for a port of this process wait until they are received.
//!
//! Theory of operation. Frames are put one behind the other into one byte vector and taken out of another; the taker swaps
//! the two when its own is empty. So each side works alone for a batch at a time, and the memory that is touched is no
//! more than the frames need. What does not fit the bound is dropped.
//!
//! An eventfd is readable exactly while something is there: it is written when the first frame comes into an empty vector,
//! and read, under the same lock, when the last one was taken.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use offload::{HEAD_MAX, Header, Plan};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::link::{Meter, RxFrame, TxFrame};

/// Bytes that may wait: the frames of about three milliseconds at 10 Gbit/s. As many again may be half taken.
const LIMIT: usize = 4 << 20;

/// A length and a header stand before each frame.
const MARK_LEN: usize = 4 + Header::LEN;

/// Frames on their way to the owner.
#[derive(Debug)]
pub(super) struct Inbox {
    fresh: Mutex<Vec<u8>>,
    taken: Mutex<Taken>,
    ready: OwnedFd,
    /// The owner takes frames that are not done.
    big: bool,
}

#[derive(Debug, Default)]
struct Taken {
    bytes: Vec<u8>,
    at: usize,
}

impl Inbox {
    pub(super) fn new(big: bool) -> Result<Self, Errno> {
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { fresh: Mutex::default(), taken: Mutex::default(), ready, big })
    }

    /// Readable while something is there.
    pub(super) fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// Whether frames that are not done may wait here.
    pub(super) fn is_big(&self) -> bool {
        self.big
    }

    /// Leaves frames, with their checked headers; what there is no room for is counted as dropped.
    pub(super) fn put(&self, frames: &[TxFrame<'_>], meter: &Meter) {
        let mut bytes = lock(&self.fresh);
        let was_empty = bytes.is_empty();
        let mut dropped = 0;
        for frame in frames {
            // Segments of one frame have as many headers more, which are bounded with the frame.
            if bytes.len() + MARK_LEN + frame.len() > LIMIT || !self.put_one(&mut bytes, frame) {
                dropped += 1;
            }
        }
        meter.received(0, 0, dropped);
        if was_empty && !bytes.is_empty() {
            // It cannot fail: the count is at most that of the swaps since it was read.
            let _ = rustix::io::write(&self.ready, &1_u64.to_ne_bytes());
        }
    }

    /// Leaves one frame, in the form in which the port takes it.
    fn put_one(&self, bytes: &mut Vec<u8>, frame: &TxFrame<'_>) -> bool {
        let start = bytes.len();
        append_from(bytes, frame);
        if self.big || frame.header.is_done() {
            return true;
        }
        // Only now is it in memory that nobody writes meanwhile.
        let copy = bytes.get_mut(start + MARK_LEN..).unwrap_or_default();
        if frame.header.gso_type == offload::header::GSO_NONE {
            let completed = offload::complete(&frame.header, copy).is_ok();
            match bytes.get_mut(start + 4..).and_then(|rest| rest.first_chunk_mut()) {
                Some(header) if completed => *header = Header::NONE.encode(0),
                _ => bytes.truncate(start),
            }
            return completed;
        }
        let plan = Plan::new(&frame.header, copy, copy.len());
        let whole = bytes.split_off(start);
        let (Ok(plan), Some(whole)) = (plan, whole.get(MARK_LEN..)) else { return false };
        let mut room = [0; HEAD_MAX];
        for index in 0..plan.segments() {
            let (head, payload) = plan.segment(index, whole, &mut room);
            append(bytes, &[head, payload]);
        }
        true
    }

    /// Takes frames; fewer than there is room for means that no more are there.
    pub(super) fn take(&self, frames: &mut [RxFrame<'_>], meter: &Meter) -> usize {
        let mut taken = lock(&self.taken);
        let (mut count, mut total) = (0, 0);
        while let Some(frame) = frames.get_mut(count) {
            if taken.is_empty() && !self.refill(&mut taken) {
                break;
            }
            if let Some((header, bytes)) = taken.next() {
                frame.fill(header, bytes);
                total += bytes.len();
                count += 1;
            }
        }
        if taken.is_empty() {
            self.settle();
        }
        meter.received(count, total, 0);
        count
    }

    /// Swaps the vectors, unless nothing is in either.
    fn refill(&self, taken: &mut Taken) -> bool {
        taken.at = 0;
        taken.bytes.clear();
        std::mem::swap(&mut *lock(&self.fresh), &mut taken.bytes);
        !taken.bytes.is_empty()
    }

    /// All was taken: unless more has come since, there is nothing to be told of.
    fn settle(&self) {
        let fresh = lock(&self.fresh);
        if fresh.is_empty() {
            // It fails when it was not readable.
            let _ = rustix::io::read(&self.ready, &mut [0; 8]);
        }
    }
}

impl Taken {
    fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn next(&mut self) -> Option<(Header, &[u8])> {
        let (len, rest) = self.bytes.get(self.at..)?.split_first_chunk::<4>()?;
        let (header, rest) = rest.split_first_chunk()?;
        let len = u32::from_ne_bytes(*len) as usize;
        self.at += MARK_LEN + len;
        Some((Header::decode(header), rest.get(..len)?))
    }
}

/// Appends a frame as it is.
fn append_from(bytes: &mut Vec<u8>, frame: &TxFrame<'_>) {
    mark(bytes, frame.len(), frame.header);
    frame.append_to(bytes);
}

/// Appends a complete frame in pieces.
fn append(bytes: &mut Vec<u8>, pieces: &[&[u8]]) {
    mark(bytes, pieces.iter().map(|piece| piece.len()).sum(), Header::NONE);
    for piece in pieces {
        bytes.extend_from_slice(piece);
    }
}

/// Appends what stands before a frame.
fn mark(bytes: &mut Vec<u8>, len: usize, header: Header) {
    // Who lets frames in here bounds their length.
    bytes.extend_from_slice(&u32::try_from(len).unwrap_or(0).to_ne_bytes());
    bytes.extend_from_slice(&header.encode(0));
}

/// A panic in one thread leaves nothing half done that the other could stumble over.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;
    use crate::link::{RxBuf, TxBuf};

    fn is_ready(inbox: &Inbox) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(inbox.ready(), PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll") > 0
    }

    /// Takes at most so many frames.
    fn take(inbox: &Inbox, count: usize) -> Vec<Vec<u8>> {
        let mut rooms = vec![[0; 2000]; count];
        let bufs: Vec<_> = rooms.iter_mut().map(|room| [RxBuf::new(room)]).collect();
        let mut frames: Vec<_> = bufs.iter().map(|bufs| RxFrame::new(bufs)).collect();
        let got = inbox.take(&mut frames, &Meter::default());
        let lens: Vec<_> = frames.iter().take(got).map(|frame| frame.len).collect();
        lens.iter().zip(rooms).map(|(len, room)| room[..*len].to_vec()).collect()
    }

    fn put(inbox: &Inbox, frames: &[&[u8]]) -> u64 {
        let meter = Meter::default();
        for frame in frames {
            inbox.put(&[TxFrame::new(&[TxBuf::new(frame)])], &meter);
        }
        meter.read().rx_dropped
    }

    #[test]
    fn ready_while_something_is_there() {
        let inbox = Inbox::new(false).expect("eventfd");
        assert!(!is_ready(&inbox));
        assert_eq!(take(&inbox, 2), Vec::<Vec<u8>>::new());
        put(&inbox, &[&[1; 60], &[2; 14], &[3; 1514]]);
        assert!(is_ready(&inbox));
        assert_eq!(take(&inbox, 1), [[1; 60]]);
        put(&inbox, &[&[4; 20]]);
        assert_eq!(take(&inbox, 2), [&[2; 14][..], &[3; 1514]]);
        assert!(is_ready(&inbox));
        assert_eq!(take(&inbox, 1), [[4; 20]]);
        assert!(!is_ready(&inbox));
        put(&inbox, &[&[5; 20]]);
        assert!(is_ready(&inbox));
    }

    #[test]
    fn put_drops_what_does_not_fit() {
        let inbox = Inbox::new(false).expect("eventfd");
        let frame = [7; 1000];
        let room = LIMIT / (1000 + MARK_LEN);
        for _ in 0..room {
            assert_eq!(put(&inbox, &[&frame]), 0);
        }
        assert_eq!(put(&inbox, &[&frame, &frame]), 2);
        assert!(lock(&inbox.fresh).capacity() <= 2 * LIMIT);
        let mut got = 0;
        while !take(&inbox, 100).is_empty() {
            got += 1;
        }
        assert_eq!(got, room.div_ceil(100));
        assert_eq!(put(&inbox, &[&frame]), 0);
    }

    #[test]
    fn put_finishes_what_the_owner_cannot() {
        let mut frame = vec![0; 60];
        frame[14..20].copy_from_slice(&[0x12, 0x34, 0xab, 0xcd, 0x01, 0x00]);
        let header =
            Header { flags: offload::header::NEEDS_CSUM, csum_start: 14, csum_offset: 2, ..Header::NONE };
        let mut completed = frame.clone();
        offload::complete(&header, &mut completed).expect("a checksum");
        assert_ne!(completed, frame);
        let bufs = [TxBuf::new(&frame)];
        let leave = |inbox: &Inbox, header| {
            inbox.put(&[TxFrame { header, ..TxFrame::new(&bufs) }], &Meter::default());
        };
        let plain = Inbox::new(false).expect("eventfd");
        leave(&plain, header);
        assert_eq!(take(&plain, 2), [completed]);
        let big = Inbox::new(true).expect("eventfd");
        leave(&big, header);
        assert_eq!(take(&big, 2), [&*frame]);
        // One that cannot be done leaves nothing.
        leave(&plain, Header { gso_type: offload::header::GSO_TCPV4, gso_size: 9, ..header });
        leave(&plain, Header { csum_start: 100, ..header });
        assert!(!is_ready(&plain));
    }
}
