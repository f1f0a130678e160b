//! Guest memory as buffers that a link hands to the kernel, and such buffers copied to guest memory: the one place where
//! the two types meet.

#![allow(unsafe_code)]

use vdeplug::TxBuf;
use vring::GuestBuf;

// Both have the layout of `struct iovec`.
const _: () =
    assert!(size_of::<GuestBuf>() == size_of::<TxBuf>() && align_of::<GuestBuf>() == align_of::<TxBuf>());

/// Pieces of guest memory as pieces to send.
#[inline]
pub fn tx(bufs: &[GuestBuf]) -> &[TxBuf<'_>] {
    // SAFETY: both types have the layout of `struct iovec`, as their documentation says. A `GuestBuf` is valid for as long
    // as it can be borrowed (vring, invariant B), and so is the piece; concurrent writes by the guest are allowed.
    unsafe { std::slice::from_raw_parts(bufs.as_ptr().cast(), bufs.len()) }
}

/// The bytes of a frame, wherever they lie, on their way into a guest.
pub struct Source<'a> {
    head: &'a [u8],
    pieces: &'a [TxBuf<'a>],
    /// How much of the first piece is not meant.
    offset: usize,
}

impl<'a> Source<'a> {
    /// A frame whose first bytes were copied: that copy, then the frame from there on.
    pub fn new(head: &'a [u8], mut pieces: &'a [TxBuf<'a>]) -> Self {
        let mut offset = head.len();
        while let [piece, rest @ ..] = pieces
            && offset >= piece.len()
        {
            offset -= piece.len();
            pieces = rest;
        }
        Self { head, pieces, offset }
    }

    /// Bytes with other bytes before them.
    pub fn joined(head: &'a [u8], pieces: &'a [TxBuf<'a>]) -> Self {
        Self { head, pieces, offset: 0 }
    }

    /// Copies the bytes that come next into a chain behind its first `skip` bytes, until either is at its end.
    pub fn pour(&mut self, bufs: &[GuestBuf], skip: usize) {
        each(bufs, skip, |base, len| self.fill(base, len));
    }

    /// Copies to guest memory of `len` bytes.
    fn fill(&mut self, mut to: *mut u8, mut len: usize) {
        while len > 0 {
            let (from, left) = match (self.head, self.pieces) {
                ([], []) => return,
                ([], [piece, ..]) => (piece.as_ptr().wrapping_add(self.offset), piece.len() - self.offset),
                (head, _) => (head.as_ptr(), head.len()),
            };
            let count = left.min(len);
            // SAFETY: `left` bytes from `from` are readable, as a slice or as whoever made the piece promised; `len` bytes
            // from `to` lie in a `GuestBuf` (vring, invariant B). Both may be one guest's memory and overlap; writers on
            // the other side of a mapping make the copy hold any bytes and nothing worse.
            unsafe { std::ptr::copy(from, to, count) };
            (to, len) = (to.wrapping_add(count), len - count);
            match (self.head, self.pieces) {
                ([], [_, rest @ ..]) if count == left => (self.pieces, self.offset) = (rest, 0),
                ([], _) => self.offset += count,
                (head, _) => self.head = head.get(count..).unwrap_or_default(),
            }
        }
    }
}

/// Copies a header and a piece behind it to guest memory. False: there is not so much room, and nothing was done.
#[inline]
pub fn copy<const N: usize>(header: &[u8; N], piece: &TxBuf<'_>, room: &GuestBuf) -> bool {
    if room.len().checked_sub(N).is_none_or(|behind| behind < piece.len()) {
        return false;
    }
    room.write_first(header);
    let to = room.as_ptr().wrapping_add(N);
    // SAFETY: the piece is readable, as whoever made it promised; behind `N` bytes there is room for it by the check (vring,
    // invariant B). Both may overlap and be written by others, as in `Source::fill`.
    unsafe { std::ptr::copy(piece.as_ptr(), to, piece.len()) };
    true
}

/// An empty vector that reuses the allocation of another: the collect happens in place.
pub fn recycle<A, B>(mut pieces: Vec<A>) -> Vec<B> {
    pieces.clear();
    pieces.into_iter().map(|_| unreachable!("it was emptied")).collect()
}

/// Calls `piece` with address and length of each piece behind the first `skip` bytes.
fn each(bufs: &[GuestBuf], mut skip: usize, mut piece: impl FnMut(*mut u8, usize)) {
    for buf in bufs {
        match buf.len().checked_sub(skip) {
            Some(len) if len > 0 => {
                piece(buf.as_ptr().wrapping_add(skip), len);
                skip = 0;
            }
            _ => skip -= buf.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vring::{Direction, Layout, Memory, RegionSpec, Ring};

    use super::*;

    /// A chain of three pieces of 10, 20 and 30 bytes, in a ring made by hand.
    fn ring(direction: Direction) -> Ring {
        let write = if direction == Direction::Rx { 2 } else { 0 };
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x10000).unwrap();
        for (index, (addr, len)) in [(0x4000u64, 10u32), (0x5000, 20), (0x6000, 30)].iter().enumerate() {
            let next = u16::try_from(index).unwrap() + 1;
            let (flags, next) = if index < 2 { (1u16 | write, next) } else { (write, 0) };
            let desc =
                [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()]
                    .concat();
            file.write_all_at(&desc, 16 * index as u64).unwrap();
        }
        file.write_all_at(&[0, 0, 1, 0, 0, 0], 0x1000).unwrap();
        let spec = RegionSpec { guest_addr: 0, size: 0x10000, user_addr: 0x1_0000, offset: 0, file };
        let memory = Arc::new(Memory::new(vec![spec]).unwrap());
        let layout = Layout {
            packed: false,
            size: 8,
            desc: 0x1_0000,
            avail: 0x1_1000,
            used: 0x1_2000,
            next_avail: 0,
            event_idx: false,
        };
        let mut ring = Ring::new(memory, &layout, direction).unwrap();
        assert_eq!(ring.fill(1), Ok(1));
        ring
    }

    #[test]
    fn tx_lends_the_very_pieces() {
        let ring = ring(Direction::Tx);
        let lent: Vec<_> = tx(ring.bufs(0)).iter().map(|piece| (piece.as_ptr(), piece.len())).collect();
        let own: Vec<_> =
            ring.bufs(0).iter().map(|piece| (piece.as_ptr().cast_const(), piece.len())).collect();
        assert_eq!((lent, own.len()), (own.clone(), 3));
    }

    #[test]
    fn copy_takes_a_piece_that_fits() {
        let ring = ring(Direction::Rx);
        let [small, room, _] = ring.bufs(0) else { panic!("three pieces") };
        let bytes: Vec<u8> = (1..=18).collect();
        let back = |room: &GuestBuf| {
            let mut back = [0; 20];
            let count = room.read_at(0, &mut back);
            back[..count].to_vec()
        };
        assert!(!copy(&[7; 2], &TxBuf::new(&bytes[..9]), small) && !copy(&[7; 11], &TxBuf::EMPTY, small));
        assert_eq!(back(small), [0; 10], "nothing was done");
        assert!(copy(&[7; 10], &TxBuf::EMPTY, small) && copy(&[8; 2], &TxBuf::new(&bytes), room));
        assert_eq!((back(small), back(room)), (vec![7; 10], [&[8; 2][..], &bytes].concat()));
    }

    #[test]
    fn source_pours_pieces_of_any_length_into_chains() {
        let ring = ring(Direction::Rx);
        let bytes: Vec<u8> = (1..=60).collect();
        for cut in [1, 7, 10, 59, 60] {
            for head in [0, 1, 9, 10, 33, 60] {
                let pieces: Vec<_> = bytes.chunks(cut).map(TxBuf::new).collect();
                let copied = bytes[..head].iter().map(|byte| byte + 100).collect::<Vec<_>>();
                let mut source = Source::new(&copied, &pieces);
                source.pour(ring.bufs(0), 50);
                source.pour(ring.bufs(0), 10);
                let mut back = [0; 60];
                vring::buf::read_chain(ring.bufs(0), 0, &mut back);
                let expected: Vec<u8> = copied.iter().chain(&bytes[head..]).copied().collect();
                // The first ten bytes were poured behind fifty, and then fifty behind ten.
                assert_eq!(back[10..], expected[10..], "pieces of {cut}, {head} copied");
            }
        }
        let mut source = Source::joined(&[200, 201], &[]);
        source.pour(ring.bufs(0), 0);
        let mut back = [0; 3];
        vring::buf::read_chain(ring.bufs(0), 0, &mut back);
        assert_eq!(back[..2], [200, 201]);
    }
}
