//! One piece of guest memory that a descriptor names.
//!
//! Invariant B: a `GuestBuf` lies wholly inside one mapped region of the [`crate::Memory`] that made it. It can
//! be neither copied nor constructed outside this crate and is only ever handed out as a borrow of the ring that
//! keeps that memory mapped, so its pointer is valid wherever safe code can name it.
//!
//! The bytes are copied as `vm-memory` copies them: by the plain copy of raw pointers, which a guest that writes
//! meanwhile can make return any bytes, and nothing else.

/// A piece of guest memory: address and length. Layout of `struct iovec`.
#[repr(C)]
#[derive(Debug)]
pub struct GuestBuf {
    base: *mut u8,
    len: usize,
}

// SAFETY: by invariant B the pointer is into a shared mapping, which is the same in every thread; the buffer has no
// other state.
unsafe impl Send for GuestBuf {}

impl GuestBuf {
    /// # Safety
    /// Invariant B.
    pub(crate) unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len }
    }

    /// Address in this process.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base
    }

    /// Length in bytes; never 0 in a chain.
    #[expect(clippy::len_without_is_empty, reason = "a piece is never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// A copy of the first bytes; `None` if there are not so many.
    #[inline]
    pub(crate) fn first_chunk<const N: usize>(&self) -> Option<[u8; N]> {
        // SAFETY: `N` bytes lie in the piece by the check (B), and any bytes at any address are such an array.
        (self.len >= N).then(|| unsafe { self.base.cast::<[u8; N]>().read_unaligned() })
    }

    /// Writes the first bytes, unless there are not so many.
    #[inline]
    pub fn write_first<const N: usize>(&self, from: &[u8; N]) {
        if self.len >= N {
            // SAFETY: as in `first_chunk`.
            unsafe { self.base.cast::<[u8; N]>().write_unaligned(*from) };
        }
    }

    /// Leaves out the first `count` bytes, or all if there are fewer.
    #[inline]
    pub(crate) fn skip(&mut self, count: usize) {
        // What is left is a part of the piece (B).
        let count = count.min(self.len);
        self.base = self.base.wrapping_add(count);
        self.len -= count;
    }

    /// Copies bytes from `offset` on into `to`; returns how many there were.
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> usize {
        let count = self.len.saturating_sub(offset).min(to.len());
        if count > 0 {
            // SAFETY: offset < len by the line above, so the result stays in the piece (B).
            let from = unsafe { self.base.add(offset) };
            // SAFETY: `count` bytes are in bounds on both sides (B, min); private memory never overlaps a mapping of
            // guest memory.
            unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), count) };
        }
        count
    }

    /// Copies `from` to `offset` on; returns how many bytes there was room for.
    pub fn write_at(&self, offset: usize, from: &[u8]) -> usize {
        let count = self.len.saturating_sub(offset).min(from.len());
        if count > 0 {
            // SAFETY: offset < len by the line above, so the result stays in the piece (B).
            let to = unsafe { self.base.add(offset) };
            // SAFETY: as in `read_at`, the other way round.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, count) };
        }
        count
    }
}

/// Copies from a chain's bytes, `offset` on, into `to`; returns how many there were.
pub fn read_chain(bufs: &[GuestBuf], mut offset: usize, to: &mut [u8]) -> usize {
    let mut done = 0;
    for buf in bufs {
        if offset >= buf.len() {
            offset -= buf.len();
            continue;
        }
        let Some(rest) = to.get_mut(done..) else { break };
        done += buf.read_at(offset, rest);
        offset = 0;
        if done == to.len() {
            break;
        }
    }
    done
}

/// Copies `from` into a chain's bytes, `offset` on; returns how many bytes there was room for.
pub fn write_chain(bufs: &[GuestBuf], mut offset: usize, from: &[u8]) -> usize {
    let mut done = 0;
    for buf in bufs {
        if offset >= buf.len() {
            offset -= buf.len();
            continue;
        }
        let Some(rest) = from.get(done..) else { break };
        done += buf.write_at(offset, rest);
        offset = 0;
        if done == from.len() {
            break;
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_copies_cross_pieces_and_stop_at_the_end() {
        let mut memory = [0u8; 10];
        let base = memory.as_mut_ptr();
        // SAFETY: both lie in `memory`, which outlives them.
        let first = unsafe { GuestBuf::new(base, 3) };
        // SAFETY: as above.
        let second = unsafe { GuestBuf::new(base.wrapping_add(3), 5) };
        let bufs = [first, second];
        assert_eq!(write_chain(&bufs, 2, &[1, 2, 3, 4]), 4);
        assert_eq!(write_chain(&bufs, 6, &[9, 9, 9]), 2);
        let mut back = [0u8; 16];
        assert_eq!(read_chain(&bufs, 0, &mut back), 8);
        assert_eq!(back[..8], [0, 0, 1, 2, 3, 4, 9, 9]);
        assert_eq!(read_chain(&bufs, 8, &mut back), 0);
        assert_eq!(memory[8..], [0, 0], "nothing is written past the last piece");
    }
}
