//! An open connection and the way of single frames through it.
//!
//! A `VDECONN` promises what a link does not: calls that wait, unless the program says by `O_NONBLOCK` on the data
//! descriptor that they shall not. So there are two kinds:
//!
//! - The frames of a [plain socket](Link::plain_socket) are received and sent on it directly. It is made blocking when it
//!   is opened, as the original's is, and each call is one system call that waits or not as the program wishes.
//! - On any other link the waiting is done here, before the link is asked for a frame and after it did not take
//!   one. Asking without a look first would not do: a link that has settled something, and has no frame, is not to be
//!   told from one that has nothing to do, and a program that has polled wants to be back then, not to wait.

use std::ffi::c_void;
use std::fmt;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use rustix::io::ioctl_fionbio;
use vdeplug::link::FRAME_MIN;
use vdeplug::{Link, LinkError, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::border::{Errno, fail, uninterrupted};
use crate::sys;
use crate::watch::Watch;

/// What [`Conn::recv`] returns when it has no frame but should be called again.
const NO_FRAME: isize = 1;

/// How often a frame is offered to a link that says it is ready and then is not, before the frame is given up. A full
/// network device does that: it has no memory left, and cannot be waited for.
const OFFERS: usize = 16;

/// What a `VDECONN *` points to.
pub struct Conn {
    /// What the program polls.
    data: RawFd,
    /// `None` if the link is a plain socket, `data`.
    watch: Option<Watch>,
    link: Arc<dyn Link>,
    /// The forks that there had been when it was opened.
    opened: sys::Forks,
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("link", &self.link).finish_non_exhaustive()
    }
}

impl Conn {
    /// Takes a link over.
    pub(crate) fn new(link: Arc<dyn Link>) -> Result<Self, Errno> {
        let number = |errno: rustix::io::Errno| errno.raw_os_error();
        let (data, watch) = match link.plain_socket() {
            Some(socket) => {
                ioctl_fionbio(socket, false).map_err(number)?;
                (socket.as_raw_fd(), None)
            }
            None => {
                let watch = Watch::new(&*link).map_err(number)?;
                (watch.work_fd(), Some(watch))
            }
        };
        Ok(Self { data, watch, link, opened: sys::forks() })
    }

    pub(crate) fn data_fd(&self) -> RawFd {
        self.data
    }

    pub(crate) fn control_fd(&self) -> RawFd {
        match &self.watch {
            Some(watch) => watch.end_fd(),
            None => self.link.control_fd().map_or(-1, |fd| fd.as_raw_fd()),
        }
    }

    /// `vde_recv`.
    ///
    /// # Safety
    /// `len` bytes from `buf` are writable.
    #[inline]
    pub(crate) unsafe fn recv(&self, buf: *mut c_void, len: usize) -> isize {
        if let Some(watch) = &self.watch {
            // SAFETY: as promised by the caller.
            return unsafe { self.recv_watched(watch, buf, len) };
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
        if self.watch.is_some() {
            // SAFETY: as promised by the caller.
            return unsafe { self.send_by_link(buf, len) };
        }
        // SAFETY: as promised by the caller.
        unsafe { sys::transmit(self.data, buf, len) }
    }

    /// # Safety
    /// `len` bytes from `buf` are writable.
    #[inline(never)]
    unsafe fn recv_watched(&self, watch: &Watch, buf: *mut c_void, len: usize) -> isize {
        if buf.is_null() {
            return fail(libc::EFAULT);
        }
        if watch.has_ended() {
            return 0;
        }
        match sys::wait(self.data, libc::POLLIN, Some(0)) {
            Ok(true) => {}
            Ok(false) if sys::is_nonblocking(self.data) => return fail(libc::EAGAIN),
            Ok(false) => {
                if let Err(errno) = sys::wait(self.data, libc::POLLIN, None) {
                    return fail(errno);
                }
            }
            Err(errno) => return fail(errno),
        }
        let got = uninterrupted(|| {
            // More than memory can have is refused by the kernel where there are several pieces.
            let room = len.min(isize::MAX.cast_unsigned());
            // SAFETY: as promised by the caller, and no reference into the buffer is held.
            let bufs = [unsafe { RxBuf::from_raw(buf.cast(), room) }];
            let mut frames = [RxFrame::new(&bufs)];
            let got = self.link.recv(&mut frames).and_then(|count| {
                if count == 0 {
                    self.link.check_control()?;
                }
                Ok(count)
            });
            let [frame] = frames;
            match got {
                Ok(count) => Ok(Some(frame.len).filter(|len| count > 0 && *len >= FRAME_MIN)),
                Err(error) => {
                    watch.end(&*self.link);
                    if matches!(error, LinkError::Closed) { Err(0) } else { Err(error.errno()) }
                }
            }
        });
        match got {
            Ok(Some(frame_len)) => frame_len.min(len).cast_signed(),
            // SAFETY: as promised by the caller.
            Ok(None) => unsafe { no_frame(buf, len) },
            // An end is no error.
            Err(0) => 0,
            Err(errno) => fail(errno),
        }
    }

    /// # Safety
    /// `len` bytes from `buf` are readable.
    #[inline(never)]
    unsafe fn send_by_link(&self, buf: *const c_void, len: usize) -> isize {
        if buf.is_null() {
            return fail(libc::EFAULT);
        }
        // What is returned could not say so many.
        if isize::try_from(len).is_err() {
            return fail(libc::EMSGSIZE);
        }
        for _ in 0..OFFERS {
            let sent = uninterrupted(|| {
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
            if let Err(errno) = sys::wait(self.link.data_fd().as_raw_fd(), libc::POLLOUT, None) {
                return fail(errno);
            }
        }
        fail(libc::ENOBUFS)
    }

    /// `vde_close`.
    ///
    /// A link's own end is one for all: it tells the other side, and waits for its answer. That is wrong when a fork has made
    /// the connection two processes' own. In a child only its descriptors are closed, whatever the link is; in a
    /// parent so are those of a switch's port, where the last one to close ends it. A network that is served here
    /// ends with its thread, which no child has.
    pub(crate) fn close(self) {
        let forks = sys::forks();
        let is_child = forks.as_child != self.opened.as_child;
        if !is_child && (self.watch.is_some() || forks == self.opened) {
            return;
        }
        let link_control = self.link.control_fd().map_or(-1, |fd| fd.as_raw_fd());
        let numbers = [self.data, self.control_fd(), self.link.data_fd().as_raw_fd(), link_control];
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
