//! `null://`: a cable that ends in nothing. Takes every frame, brings none, costs nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::error::OpenError;
use crate::link::{FRAME_MAX, Link, LinkError, Meter, RxFrame, Sent, Stats, TxFrame};

/// An open `null://` link.
#[derive(Debug)]
pub(crate) struct NullLink {
    /// An eventfd that nobody writes: always writable, never readable.
    idle: OwnedFd,
    meter: Meter,
}

impl NullLink {
    pub(crate) fn open() -> Result<Self, OpenError> {
        let idle = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| OpenError::System { what: "make an eventfd", source: errno.into() })?;
        Ok(Self { idle, meter: Meter::default() })
    }
}

impl Link for NullLink {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.idle.as_fd()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn max_frame(&self) -> usize {
        FRAME_MAX
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        self.meter.sent(frames.len(), frames.iter().map(TxFrame::len).sum(), 0);
        Ok(Sent { taken: frames.len(), ..Sent::default() })
    }

    fn recv(&self, _frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        Ok(0)
    }

    fn offloads(&self) -> bool {
        false
    }

    fn stats(&self) -> Stats {
        self.meter.stats()
    }

    fn check_control(&self) -> Result<(), LinkError> {
        Ok(())
    }
}
