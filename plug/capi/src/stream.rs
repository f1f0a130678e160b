//! `vdestream_*`: frames in a stream of bytes, each behind its length in two bytes, the highest first (VDE fact 3.8).
//!
//! Theory of operation. What was read is taken apart in steps ([`Decoder::next`]), each of which leaves the decoder in order
//! before the program is told what was found. So the program may do in its callback what it likes: send on the
//! same converter, leave by `longjmp` or an exception, even feed it again. A frame that came in one piece is delivered
//! where it lies, which the program may write to; a cut one is put together in memory of ours.
//!
//! Other than the original, a first byte of a length that ends a read is kept (V-1), and after a length that no
//! frame has that many bytes are skipped, so that the next frame is found again.

use std::cell::UnsafeCell;
use std::ffi::{c_char, c_int, c_void};

use crate::border::fail;
use crate::sys;

/// The longest frame in a stream: what vdeplug exchanges, and two bytes that its stream always had more.
const FRAME_MAX: usize = vdeplug::link::FRAME_MAX + 2;
/// Bytes of a length.
const HEAD: usize = 2;
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
        Self { opaque, fdout, frame_call, error_call, decoder: UnsafeCell::default() }
    }

    /// `vdestream_recv`.
    ///
    /// # Safety
    /// `len` bytes from `buf` are ours to read and the program's callback's to write; one thread feeds at a time.
    pub(crate) unsafe fn feed(&self, buf: *mut u8, len: usize) {
        let mut rest = Rest { at: buf, len };
        // SAFETY: one thread feeds at a time, and the borrow ends with the step.
        while let Some(event) = unsafe { &mut *self.decoder.get() }.next(&mut rest) {
            match (event, self.frame_call, self.error_call) {
                (Event::Frame(at, len), Some(call), _) => {
                    // SAFETY: the program gave the function to be called like this, and the memory is writable.
                    unsafe { call(self.opaque, at.cast(), len) };
                }
                (Event::TooLong { announced, there }, _, Some(call)) => {
                    let format = c"size %d expected size %d".as_ptr();
                    // SAFETY: the program gave the function to be called like this; the format asks for two ints.
                    unsafe { call(self.opaque, PACKET_LENGTH_ERROR, format, there, announced) };
                }
                _ => {}
            }
        }
    }

    /// `vdestream_send`.
    ///
    /// # Safety
    /// `len` bytes from `buf` are readable.
    pub(crate) unsafe fn send(&self, buf: *const c_void, len: usize) -> isize {
        let Some(head) = u16::try_from(len).ok().filter(|_| len <= FRAME_MAX) else { return 0 };
        let head = head.to_be_bytes();
        let mut pieces = [piece(head.as_ptr().cast(), HEAD), piece(buf, len)];
        let whole = HEAD + len;
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
                    libc::EAGAIN => match sys::wait(self.fdout, libc::POLLOUT) {
                        Ok(()) | Err(libc::EINTR) => {}
                        Err(errno) => return fail(errno),
                    },
                    errno => return fail(errno),
                },
            }
            if done >= whole {
                return whole.cast_signed();
            }
            let (head_done, body_done) = (done.min(HEAD), done.saturating_sub(HEAD));
            pieces = [
                piece(head.as_ptr().wrapping_add(head_done).cast(), HEAD - head_done),
                piece(buf.wrapping_byte_add(body_done), len - body_done),
            ];
        }
    }
}

const fn piece(at: *const c_void, len: usize) -> libc::iovec {
    libc::iovec { iov_base: at.cast_mut(), iov_len: len }
}

/// Bytes that were read and not yet looked at.
struct Rest {
    at: *mut u8,
    len: usize,
}

impl Rest {
    /// Goes on by so many bytes, at most all, and returns where it was and how many they were.
    fn take(&mut self, count: usize) -> (*mut u8, usize) {
        let (at, count) = (self.at, count.min(self.len));
        self.at = at.wrapping_add(count);
        self.len -= count;
        (at, count)
    }
}

/// What a step found.
enum Event {
    /// A frame, there and so long.
    Frame(*mut u8, usize),
    /// A length that no frame has, and how many bytes were there of it: both small, as they are told to a program as int.
    TooLong { announced: c_int, there: c_int },
}

/// Where in the stream we are.
#[derive(Debug)]
struct Decoder {
    state: State,
    /// The begun frame.
    frame: Box<[u8; FRAME_MAX]>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before a length.
    Length,
    /// Between the two bytes of a length, of which this is the first.
    SecondByte(u8),
    /// In a frame of `len` bytes, of which `have` are there.
    Frame { len: usize, have: usize },
    /// In a frame that is too long: so many bytes are still to be thrown away.
    Skip(usize),
}

impl Default for Decoder {
    fn default() -> Self {
        Self { state: State::Length, frame: Box::new([0; FRAME_MAX]) }
    }
}

impl Decoder {
    /// Takes bytes up to the next event; `None` when all are taken.
    fn next(&mut self, rest: &mut Rest) -> Option<Event> {
        while rest.len > 0 {
            match self.state {
                State::Length => {
                    let (at, _) = rest.take(1);
                    // SAFETY: there was at least one byte.
                    self.state = State::SecondByte(unsafe { at.read() });
                }
                State::SecondByte(first) => {
                    let (at, _) = rest.take(1);
                    // SAFETY: there was at least one byte.
                    let second = unsafe { at.read() };
                    if let event @ Some(_) = self.begin(u16::from_be_bytes([first, second]), rest) {
                        return event;
                    }
                }
                State::Frame { len, have } => {
                    let (at, count) = rest.take(len - have);
                    let to = self.frame.as_mut_ptr().wrapping_add(have);
                    // SAFETY: `have + count <= len <= FRAME_MAX`, the size of the frame; the program's buffer is not ours.
                    unsafe { std::ptr::copy_nonoverlapping(at, to, count) };
                    if have + count == len {
                        self.state = State::Length;
                        return Some(Event::Frame(self.frame.as_mut_ptr(), len));
                    }
                    self.state = State::Frame { len, have: have + count };
                }
                State::Skip(left) => {
                    let (_, count) = rest.take(left);
                    self.state = if count == left { State::Length } else { State::Skip(left - count) };
                }
            }
        }
        None
    }

    /// A frame of this length begins.
    fn begin(&mut self, announced: u16, rest: &mut Rest) -> Option<Event> {
        let len = usize::from(announced);
        self.state = State::Length;
        if len > FRAME_MAX {
            self.state = State::Skip(len);
            let there = u16::try_from(rest.len).unwrap_or(u16::MAX);
            return Some(Event::TooLong { announced: announced.into(), there: there.into() });
        }
        if len > rest.len {
            self.state = State::Frame { len, have: 0 };
            return None;
        }
        (len > 0).then(|| Event::Frame(rest.take(len).0, len))
    }
}
