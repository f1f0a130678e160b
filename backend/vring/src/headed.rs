//! A chain whose first bytes say what the others are: a header that was copied, and the pieces behind it.
//!
//! The pieces stay where they are, in the window; the one that the header ends in loses its first bytes there. So whoever
//! sends what follows the header lends these very pieces, and nobody makes a list of them for each chain.

use crate::buf::{GuestBuf, read_chain};

/// A chain that was split behind its header.
#[derive(Debug)]
pub struct Headed<'r, const N: usize> {
    /// A copy of the chain's first bytes, which may go on behind the split; zeroes where it has fewer.
    pub head: [u8; N],
    /// The pieces behind the split.
    pub bufs: &'r [GuestBuf],
    /// Bytes in them.
    pub len: usize,
}

impl<'r, const N: usize> Headed<'r, N> {
    /// Splits a chain of `len` bytes behind its first `split`; `None`: it has fewer.
    #[inline]
    pub fn new(bufs: &'r mut [GuestBuf], len: usize, split: usize) -> Option<Self> {
        let len = len.checked_sub(split)?;
        // Nearly always all of the header is in the first piece, with some of what follows.
        if let Some(first) = bufs.first_mut().filter(|first| split < first.len())
            && let Some(head) = first.first_chunk()
        {
            first.skip(split);
            return Some(Self { head, bufs, len });
        }
        Some(Self::of_pieces(bufs, len, split))
    }

    /// [`Headed::new`], wherever the pieces end.
    #[inline(never)]
    fn of_pieces(bufs: &'r mut [GuestBuf], len: usize, mut split: usize) -> Self {
        let mut head = [0; N];
        read_chain(bufs, 0, &mut head);
        let mut passed = 0;
        for piece in bufs.iter_mut() {
            if split < piece.len() {
                piece.skip(split);
                break;
            }
            split -= piece.len();
            passed += 1;
        }
        Self { head, bufs: bufs.get(passed..).unwrap_or_default(), len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_splits_wherever_pieces_end() {
        let mut memory: [u8; 24] = std::array::from_fn(|index| u8::try_from(index).unwrap() + 1);
        let bytes = memory;
        for lens in [vec![24], vec![12, 12], vec![4, 8, 1, 11], vec![13, 11], vec![1; 24], vec![3, 2, 19]] {
            for (split, len) in (0..26).flat_map(|split| [(split, 24), (split, split)]) {
                let mut at = 0;
                let mut bufs: Vec<GuestBuf> = lens
                    .iter()
                    .map(|len| {
                        at += len;
                        // SAFETY: the lengths add up to that of `memory`, which outlives the pieces.
                        unsafe { GuestBuf::new(memory.as_mut_ptr().wrapping_add(at - len), *len) }
                    })
                    .collect();
                let Some(headed) = Headed::<12>::new(&mut bufs, len, split) else {
                    assert!(len < split, "{lens:?} {split}");
                    continue;
                };
                assert_eq!((headed.len, headed.head), (len - split, bytes[..12].try_into().unwrap()));
                let mut behind = [0; 24];
                let count = read_chain(headed.bufs, 0, &mut behind);
                assert_eq!(behind[..count], bytes[split.min(24)..], "{lens:?} {split}");
                assert!(headed.bufs.iter().all(|piece| piece.len() > 0));
            }
        }
        let mut short = [5, 6];
        // SAFETY: the piece is all of `short`.
        let mut bufs = [unsafe { GuestBuf::new(short.as_mut_ptr(), 2) }];
        let headed = Headed::<4>::new(&mut bufs, 2, 1).unwrap();
        assert_eq!((headed.head, headed.len, headed.bufs[0].len()), ([5, 6, 0, 0], 1, 1));
        assert!(Headed::<4>::new(&mut [], 0, 1).is_none());
        assert!(Headed::<4>::new(&mut [], 0, 0).is_some_and(|none| none.bufs.is_empty()));
    }
}
