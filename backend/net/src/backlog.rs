//! Frames that wait until the guest has buffers.
//!
//! # Theory of operation
//! Their bytes lie one behind the other in one piece of private memory, in the order in which they came, each whole and
//! with its header, so that 64 KiB of small frames take 64 KiB. What was taken from the front is given up when everything
//! was taken, or when more than half of the memory is such bytes: a byte is moved once at most, on average.
//!
//! There are two bounds. Past [`FULL`] nobody reads a link any more; what was read by then, one batch per reader, still
//! finds room, up to [`MOST`].

use std::collections::VecDeque;

use vdeplug::{Header, TxFrame};

/// So many bytes, and no link is read any more: about 680 full frames, seven times what a port of `vde_switch` holds.
pub const FULL: usize = 1 << 20;

/// So many bytes, and frames are lost: room for a batch more of the longest frames.
pub const MOST: usize = FULL + (640 << 10);

/// Bytes that are kept for the next time.
const KEPT: usize = 64 << 10;

/// What a frame takes beside its bytes.
const ENTRY: usize = size_of::<Entry>();

/// A frame that waits.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub header: Header,
    pub len: usize,
    /// How many of its segments the guest has already.
    pub segments: usize,
}

/// The frames that wait, oldest first.
#[derive(Debug, Default)]
pub struct Backlog {
    entries: VecDeque<Entry>,
    bytes: Vec<u8>,
    /// Where the oldest begins.
    start: usize,
}

impl Backlog {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Frames.
    pub fn count(&self) -> usize {
        self.entries.len()
    }

    /// Bytes, of the frames and of what is known of them.
    pub fn used(&self) -> usize {
        self.bytes.len() - self.start + self.entries.len() * ENTRY
    }

    /// Copies a frame behind the others; false: there is no room for it.
    pub fn push(&mut self, frame: &TxFrame<'_>, segments: usize) -> bool {
        let len = frame.len();
        if self.used().saturating_add(len + ENTRY) > MOST {
            return false;
        }
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        frame.append_to(&mut self.bytes);
        self.entries.push_back(Entry { header: frame.header, len, segments });
        true
    }

    /// The oldest and its bytes.
    pub fn front(&self) -> Option<(Entry, &[u8])> {
        let entry = *self.entries.front()?;
        Some((entry, self.bytes.get(self.start..self.start + entry.len).unwrap_or_default()))
    }

    /// Notes how far the oldest has come.
    pub fn set_segments(&mut self, segments: usize) {
        if let Some(entry) = self.entries.front_mut() {
            entry.segments = segments;
        }
    }

    /// Forgets the oldest.
    pub fn pop(&mut self) {
        self.start += self.entries.pop_front().map_or(0, |entry| entry.len);
        if self.entries.is_empty() {
            self.bytes.clear();
            self.start = 0;
        }
    }

    /// Forgets all, and returns how many they were.
    pub fn clear(&mut self) -> usize {
        let count = self.count();
        *self = Self::default();
        count
    }

    /// Gives memory back that was needed once, if nothing waits.
    pub fn shrink(&mut self) {
        if self.is_empty() && self.bytes.capacity() > KEPT {
            self.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use vdeplug::TxBuf;

    use super::*;

    fn push(backlog: &mut Backlog, bytes: &[u8], segments: usize) -> bool {
        let (head, tail) = bytes.split_at(bytes.len() / 3);
        let pieces = [TxBuf::new(head), TxBuf::new(tail)];
        let header = Header { gso_size: 7, ..Header::NONE };
        backlog.push(&TxFrame { header, ..TxFrame::new(&pieces) }, segments)
    }

    #[test]
    fn frames_come_out_as_they_went_in() {
        let mut backlog = Backlog::default();
        let frame = |number: usize| vec![number.to_le_bytes()[0]; 14 + number * 7 % 1500];
        let mut next = 0;
        for number in 0..5000 {
            assert!(push(&mut backlog, &frame(number), number));
            // Two in, one out, until there is a lot; then the other way round.
            while backlog.count() > 500 || number % 2 == 1 && next + 1 < number {
                let (entry, bytes) = backlog.front().unwrap();
                assert_eq!((entry.segments, entry.header.gso_size), (next, 7));
                assert!(bytes == frame(next));
                backlog.pop();
                next += 1;
                if backlog.count() < 400 {
                    break;
                }
            }
            assert!(backlog.bytes.len() <= 4 * backlog.used() + 3000, "what was taken is given up");
        }
        backlog.set_segments(3);
        assert_eq!(backlog.front().unwrap().0.segments, 3);
        assert!(backlog.clear() > 0 && backlog.front().is_none());
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let mut backlog = Backlog::default();
        for len in [14, 9000, 65_000] {
            while push(&mut backlog, &vec![1; len], 0) {}
            assert!((FULL..=MOST).contains(&backlog.used()) && backlog.used() + len + ENTRY > MOST);
            while !backlog.is_empty() {
                backlog.pop();
            }
            assert_eq!(backlog.used(), 0);
            backlog.shrink();
            assert!(backlog.bytes.capacity() <= KEPT && backlog.entries.capacity() == 0);
        }
    }
}
