//! The descriptors of a connection whose link has others than a program expects.
//!
//! Programs know two descriptors: one that is readable when `vde_recv` has something to do, and one that is silent until the
//! connection has ended (any sign of life on it ends `vde_plug`). A link has two as well, but its control descriptor is
//! readable whenever the link has something to settle, and both may have to be non-blocking for the link's sake. So such a
//! connection shows an epoll descriptor in which both are collected, whose `O_NONBLOCK` is the program's own, and an
//! eventfd that is set at the end.
//!
//! At the end the collection is emptied: most programs do nothing with the 0 that `vde_recv` returns then, and would
//! be told of the same end for ever.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::event::{EventfdFlags, epoll, eventfd};
use vdeplug::Link;

/// Both descriptors.
#[derive(Debug)]
pub(crate) struct Watch {
    work: OwnedFd,
    end: OwnedFd,
    ended: AtomicBool,
}

/// The link's own descriptors.
fn sources(link: &dyn Link) -> impl Iterator<Item = BorrowedFd<'_>> {
    [Some(link.data_fd()), link.control_fd()].into_iter().flatten()
}

impl Watch {
    /// Watches a link.
    pub(crate) fn new(link: &dyn Link) -> rustix::io::Result<Self> {
        let work = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for source in sources(link) {
            epoll::add(&work, source, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        }
        let end = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { work, end, ended: AtomicBool::new(false) })
    }

    /// Readable when the link has a frame, or something to settle.
    pub(crate) fn work_fd(&self) -> RawFd {
        self.work.as_raw_fd()
    }

    /// Readable when the connection has ended.
    pub(crate) fn end_fd(&self) -> RawFd {
        self.end.as_raw_fd()
    }

    /// Whether [`Watch::end`] was called.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// Shows that the connection has ended.
    pub(crate) fn end(&self, link: &dyn Link) {
        if self.ended.swap(true, Relaxed) {
            return;
        }
        for source in sources(link) {
            // A descriptor that the link has closed is not in it any more.
            let _ = epoll::delete(&self.work, source);
        }
        // A counter that is 0 takes 1.
        let _ = rustix::io::write(self.end.as_fd(), &1_u64.to_ne_bytes());
    }
}
