//! Guest memory as buffers that a link hands to the kernel: the one place where the two types meet.

#![allow(unsafe_code)]

use vdeplug::{RxBuf, TxBuf};
use vring::GuestBuf;

/// Appends a chain's bytes, from `skip` on, as pieces to send.
pub fn tx<'a>(bufs: &'a [GuestBuf], skip: usize, out: &mut Vec<TxBuf<'a>>) {
    each(bufs, skip, |base, len| {
        // SAFETY: the piece lies in a `GuestBuf`, which is valid for as long as it can be borrowed (vring, invariant
        // B), here for 'a. Concurrent writes by the guest are allowed.
        out.push(unsafe { TxBuf::from_raw(base, len) });
    });
}

/// Appends a chain's bytes, from `skip` on, as room to receive into.
pub fn rx<'a>(bufs: &'a [GuestBuf], skip: usize, out: &mut Vec<RxBuf<'a>>) {
    each(bufs, skip, |base, len| {
        // SAFETY: as above; guest memory is never a Rust reference, so writing to it aliases none.
        out.push(unsafe { RxBuf::from_raw(base, len) });
    });
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
    fn ring() -> Ring {
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x10000).unwrap();
        for (index, (addr, len)) in [(0x4000u64, 10u32), (0x5000, 20), (0x6000, 30)].iter().enumerate() {
            let (flags, next) = if index < 2 { (1u16, u16::try_from(index).unwrap() + 1) } else { (0, 0) };
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
        let mut ring = Ring::new(memory, &layout, Direction::Tx).unwrap();
        assert_eq!(ring.fill(1), Ok(1));
        ring
    }

    #[test]
    fn skipped_bytes_are_not_lent() {
        let ring = ring();
        let cases: [(usize, &[usize]); 6] =
            [(0, &[10, 20, 30]), (9, &[1, 20, 30]), (10, &[20, 30]), (12, &[18, 30]), (59, &[1]), (60, &[])];
        for (skip, lens) in cases {
            let mut out = Vec::new();
            tx(ring.bufs(0), skip, &mut out);
            assert_eq!(out.iter().map(TxBuf::len).collect::<Vec<_>>(), lens, "skipping {skip}");
        }
    }
}
