//! An open connection and the way of single frames through it.
//!
//! A `VDECONN` promises what a link does not: calls that wait, and a data descriptor on which the program says by `O_NONBLOCK`
//! that they shall not. So there are two kinds:
//!
//! - The frames of a [plain socket](Link::plain_socket) are received and sent on it directly. It is made blocking when it
//!   is opened, as the original's is, and each call is one system call that waits or not as the program wishes.
//! - Any other link is asked first and waited for then. Where the link itself depends on its descriptor being
//!   non-blocking, the program gets an epoll descriptor in its place that shows the same readiness and has an `O_NONBLOCK` of
//!   its own (the original hands out epoll descriptors too, VDE fact 4.4).

use std::ffi::c_void;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::event::epoll;
use rustix::io::ioctl_fionbio;
use vdeplug::link::FRAME_MIN;
use vdeplug::{Link, LinkError, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::border::{Errno, fail, guarded};
use crate::sys;

/// What [`Conn::recv`] returns when it has no frame but should be called again.
const NO_FRAME: isize = 1;

/// How often a frame is offered to a link that says it is ready and then is not, before the frame is given up. A full
/// network device does that: it has no memory left, and cannot be waited for.
const OFFERS: usize = 16;

/// What a `VDECONN *` points to.
pub struct Conn {
    /// What the program polls; owned by the link or by `_watch`.
    data: RawFd,
    /// Whether `data` is the link's plain socket.
    plain: bool,
    link: Arc<dyn Link>,
    /// Keeps `data` open if that is not the link's own.
    _watch: Option<OwnedFd>,
    /// The process that opened it.
    opener: u32,
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Conn {
    /// Takes a link over.
    pub(crate) fn new(link: Arc<dyn Link>) -> Result<Self, Errno> {
        let (data, plain, watch) = match link.plain_socket() {
            Some(socket) => {
                ioctl_fionbio(socket, false).map_err(number)?;
                (socket.as_raw_fd(), true, None)
            }
            None if sys::is_nonblocking(link.data_fd().as_raw_fd()) => {
                let watch = watch(link.data_fd()).map_err(number)?;
                (watch.as_raw_fd(), false, Some(watch))
            }
            None => (link.data_fd().as_raw_fd(), false, None),
        };
        Ok(Self { data, plain, link, _watch: watch, opener: std::process::id() })
    }

    pub(crate) fn data_fd(&self) -> RawFd {
        self.data
    }

    pub(crate) fn control_fd(&self) -> RawFd {
        self.link.control_fd().map_or(-1, |fd| fd.as_raw_fd())
    }

    /// `vde_recv`.
    ///
    /// # Safety
    /// `len` bytes from `buf` are writable.
    #[inline]
    pub(crate) unsafe fn recv(&self, buf: *mut c_void, len: usize) -> isize {
        if !self.plain {
            // SAFETY: as promised by the caller.
            return unsafe { self.recv_by_link(buf, len) };
        }
        // SAFETY: as promised by the caller.
        let got = unsafe { sys::receive(self.data, buf, len) };
        match usize::try_from(got) {
            Ok(got) if got >= FRAME_MIN => got.min(len).cast_signed(),
            // Less is no frame, and nothing at all must not look like the end of the connection.
            // SAFETY: as promised by the caller.
            Ok(_) => unsafe { no_frame(buf, len) },
            Err(_) => got,
        }
    }

    /// `vde_send`.
    ///
    /// # Safety
    /// `len` bytes from `buf` are readable.
    #[inline]
    pub(crate) unsafe fn send(&self, buf: *const c_void, len: usize) -> isize {
        if len < FRAME_MIN {
            // The original sends it and the switch drops it.
            return len.cast_signed();
        }
        if !self.plain {
            // SAFETY: as promised by the caller.
            return unsafe { self.send_by_link(buf, len) };
        }
        // SAFETY: as promised by the caller.
        unsafe { sys::transmit(self.data, buf, len) }
    }

    /// # Safety
    /// `len` bytes from `buf` are writable.
    unsafe fn recv_by_link(&self, buf: *mut c_void, len: usize) -> isize {
        if buf.is_null() {
            return fail(libc::EFAULT);
        }
        let mut woken = false;
        loop {
            let got = guarded(|| {
                // SAFETY: as promised by the caller, and no reference into the buffer is held.
                let bufs = [unsafe { RxBuf::from_raw(buf.cast(), len) }];
                let mut frames = [RxFrame::new(&bufs)];
                match self.link.recv(&mut frames) {
                    Ok(count) => Ok(Some((count, frames.first().map_or(0, |frame| frame.len)))),
                    Err(LinkError::Closed) => Ok(None),
                    Err(error) => Err(error.errno()),
                }
            });
            match got {
                Ok(Some((1.., frame_len))) if frame_len >= FRAME_MIN => {
                    return frame_len.min(len).cast_signed();
                }
                Ok(Some((0, _))) if !woken => {}
                // SAFETY: as promised by the caller.
                Ok(Some(_)) => return unsafe { no_frame(buf, len) },
                Ok(None) => return 0,
                Err(errno) => return fail(errno),
            }
            if sys::is_nonblocking(self.data) {
                return fail(libc::EAGAIN);
            }
            if let Err(errno) = sys::wait(self.data, libc::POLLIN) {
                return fail(errno);
            }
            woken = true;
        }
    }

    /// # Safety
    /// `len` bytes from `buf` are readable.
    unsafe fn send_by_link(&self, buf: *const c_void, len: usize) -> isize {
        if buf.is_null() {
            return fail(libc::EFAULT);
        }
        for _ in 0..OFFERS {
            let sent = guarded(|| {
                // SAFETY: as promised by the caller.
                let bufs = [unsafe { TxBuf::from_raw(buf.cast(), len) }];
                self.link.send(&[TxFrame::new(&bufs)]).map_err(|error| error.errno())
            });
            match sent {
                Ok(sent) if sent.dropped > 0 && len > self.link.max_frame() => return fail(libc::EMSGSIZE),
                Ok(sent) if sent.taken > 0 => return len.cast_signed(),
                Ok(_) if sys::is_nonblocking(self.data) => return fail(libc::EAGAIN),
                Ok(_) => {}
                Err(errno) => return fail(errno),
            }
            // Not `data`: an epoll descriptor is never writable.
            if let Err(errno) = sys::wait(self.link.data_fd().as_raw_fd(), libc::POLLOUT) {
                return fail(errno);
            }
        }
        fail(libc::ENOBUFS)
    }

    /// `vde_close`.
    pub(crate) fn close(self) {
        if self.opener == std::process::id() {
            return;
        }
        // A child that inherited the connection gives up its descriptors and does nothing that the other end, or
        // the file system, would see: it is its parent's connection too.
        let numbers = [self.data, self.link.data_fd().as_raw_fd(), self.control_fd()];
        std::mem::forget(self);
        for (at, &fd) in numbers.iter().enumerate() {
            if fd >= 0 && !numbers[..at].contains(&fd) {
                // SAFETY: the owners of the descriptors were forgotten, and each number is met once.
                unsafe { sys::close(fd) };
            }
        }
    }
}

/// # Safety
/// `len` bytes from `buf` are writable.
unsafe fn no_frame(buf: *mut c_void, len: usize) -> isize {
    if len > 0 && !buf.is_null() {
        // SAFETY: there is at least one byte. A program that takes 1 for a length finds no byte of its own memory there
        // (VDE fact M-5).
        unsafe { buf.cast::<u8>().write(0) };
    }
    NO_FRAME
}

/// An epoll descriptor that is readable when `fd` is.
fn watch(fd: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&watch, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    Ok(watch)
}

fn number(errno: rustix::io::Errno) -> Errno {
    errno.raw_os_error()
}
