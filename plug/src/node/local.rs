//! A port of this process on a hub or a switch: that of who opened the network, and of others who share it.
//!
//! What is for it waits in an inbox until it is received, or is given to a receiver at once, in the thread of whoever
//! sent it: between two NICs of one process no other thread and no system call stands.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use super::inbox::Inbox;
use super::table::Port;
use crate::link::{Meter, Receiver, RxFrame, TxFrame};

/// A port of this process.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) port: Port,
    inbox: Inbox,
    receiver: OnceLock<Arc<dyn Receiver>>,
    meter: Meter,
}

impl Local {
    /// `big`: it takes frames that are not done.
    pub(super) fn new(port: Port, big: bool) -> Result<Self, Errno> {
        Ok(Self { port, inbox: Inbox::new(big)?, receiver: OnceLock::new(), meter: Meter::default() })
    }

    /// What it sent and received.
    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Readable while something is to be received.
    pub(super) fn ready(&self) -> BorrowedFd<'_> {
        self.inbox.ready()
    }

    /// Whether it takes frames that are not done.
    pub(super) fn is_big(&self) -> bool {
        self.inbox.is_big()
    }

    /// Gives frames to a receiver from now on; only the first is one.
    pub(super) fn deliver_to(&self, receiver: &Arc<dyn Receiver>) -> bool {
        self.receiver.set(receiver.clone()).is_ok()
    }

    /// Gives it frames without waiting. What it does not take is lost for it, and counted here or by its receiver.
    pub(super) fn send(&self, frames: &[TxFrame<'_>]) {
        match self.receiver.get() {
            None => self.inbox.put(frames, &self.meter),
            Some(receiver) => {
                receiver.deliver(frames);
                self.meter.received(frames.len(), frames.iter().map(TxFrame::len).sum(), 0);
            }
        }
    }

    /// Receives what waits; fewer than there is room for means that no more is there.
    pub(super) fn recv(&self, frames: &mut [RxFrame<'_>]) -> usize {
        self.inbox.take(frames, &self.meter)
    }
}
