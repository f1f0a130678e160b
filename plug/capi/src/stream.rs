//! `vdestream_*`: frames in a stream of bytes, each behind its length in two bytes, the highest first (VDE fact 3.8).
//!
//! Theory of operation. [`vdeplug::stream`] takes apart what was read, in steps, and each step leaves it in order before
//! the program is told what was found. So the program may do in its callback what it likes: send on the same
//! converter, leave by `longjmp` or an exception, even feed it again. Nothing is allocated once the converter is there.

use std::cell::UnsafeCell;
use std::ffi::{c_char, c_int, c_void};

use vdeplug::stream::{Decoder, Event, PREFIX_LEN, prefix};

use crate::border::fail;
use crate::sys;

/// Type of an error call: a length that no frame has.
const PACKET_LENGTH_ERROR: c_int = 1;

/// Takes a frame; what it returns is ignored.
pub type FrameCall = unsafe extern "C-unwind" fn(opaque: *mut c_void, buf: *mut c_void, len: usize) -> isize;
/// Takes an error: its type, and a text for printf with its arguments.
pub type ErrorCall =
    unsafe extern "C-unwind" fn(opaque: *mut c_void, kind: c_int, format: *const c_char, ...);

/// What a `VDESTREAM *` points to.
#[derive(Debug)]
pub struct Stream {
    opaque: *mut c_void,
    fdout: c_int,
    frame_call: Option<FrameCall>,
    error_call: Option<ErrorCall>,
    /// Borrowed for the length of a step, never while the program is called.
    decoder: UnsafeCell<Decoder>,
}

impl Stream {
    pub(crate) fn new(
        opaque: *mut c_void,
        fdout: c_int,
        frame_call: Option<FrameCall>,
        error_call: Option<ErrorCall>,
    ) -> Self {
        Self { opaque, fdout, frame_call, error_call, decoder: UnsafeCell::new(Decoder::preallocated()) }
    }

    /// `vdestream_recv`.
    ///
    /// # Safety
    /// `len` bytes from `buf` are readable, and the program's callback may do with them what it does; one thread feeds at a
    /// time.
    pub(crate) unsafe fn feed(&self, buf: *const u8, len: usize) {
        // SAFETY: as promised by the caller.
        let mut rest = unsafe { std::slice::from_raw_parts(buf, len) };
        // SAFETY: one thread feeds at a time, and the borrow ends before the program is called.
        while let Some(event) = unsafe { &mut *self.decoder.get() }.next(&mut rest) {
            match event {
                Event::Frame(frame) => {
                    let (at, len) = (frame.as_ptr().cast_mut(), frame.len());
                    if let Some(call) = self.frame_call {
                        // SAFETY: the program gave the function to be called like this. It may write to the frame,
                        // which lies in its own buffer or in one that is not read again.
                        unsafe { call(self.opaque, at.cast(), len) };
                    }
                }
                Event::TooLong { len, at_hand } => {
                    if let Some(call) = self.error_call {
                        let format = c"size %d expected size %d".as_ptr();
                        let (there, announced) = (int(at_hand), int(len));
                        // SAFETY: the program gave the function to be called like this; the format asks for two ints.
                        unsafe { call(self.opaque, PACKET_LENGTH_ERROR, format, there, announced) };
                    }
                }
            }
        }
    }

    /// `vdestream_send`.
    ///
    /// # Safety
    /// `len` bytes from `buf` are readable.
    pub(crate) unsafe fn send(&self, buf: *const c_void, len: usize) -> isize {
        let Some(head) = prefix(len) else { return 0 };
        let mut pieces = [piece(head.as_ptr().cast(), PREFIX_LEN), piece(buf, len)];
        let whole = PREFIX_LEN + len;
        let mut done = 0;
        loop {
            // SAFETY: the head is ours, and the rest as promised by the caller.
            let wrote = unsafe { sys::write_pieces(self.fdout, &pieces) };
            match usize::try_from(wrote) {
                Ok(wrote) => done += wrote,
                // Nothing is spoiled yet: the program may try again.
                Err(_) if done == 0 => return wrote,
                // The begun frame has to be finished, or the reader takes the middle of the next one for a length.
                Err(_) => match sys::errno() {
                    libc::EINTR => {}
                    libc::EAGAIN => match sys::wait(self.fdout, libc::POLLOUT, None) {
                        Ok(_) | Err(libc::EINTR) => {}
                        Err(errno) => return fail(errno),
                    },
                    errno => return fail(errno),
                },
            }
            if done >= whole {
                return whole.cast_signed();
            }
            let (head_done, body_done) = (done.min(PREFIX_LEN), done.saturating_sub(PREFIX_LEN));
            pieces = [
                piece(head.as_ptr().wrapping_add(head_done).cast(), PREFIX_LEN - head_done),
                piece(buf.wrapping_byte_add(body_done), len - body_done),
            ];
        }
    }
}

const fn piece(at: *const c_void, len: usize) -> libc::iovec {
    libc::iovec { iov_base: at.cast_mut(), iov_len: len }
}

/// A size as the int that a C format asks for.
fn int(size: usize) -> c_int {
    c_int::try_from(size).unwrap_or(c_int::MAX)
}
