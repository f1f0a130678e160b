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
