//! A virtqueue, device side, in whichever layout the driver chose.
//!
//! # Theory of operation
//! [`Ring::fill`] takes chains that the driver made available into a *window*, in the order in which it made them
//! available, translated into pieces of memory. The owner uses any number of them from the front, says for each how many bytes it
//! wrote ([`Ring::complete`]), and then makes all of them visible by one store ([`Ring::publish`]).
//! A frame spread over several mergeable buffers is therefore never seen in part. What was not used stays in the window
//! for the next round. Since the window is always used up from its front, there is at any time one place in the ring
//! from which another device (or this one after a restart) can go on: nothing is lost or repeated by a stop. What was
//! completed must be published before the ring is stopped or rewound.
//!
//! A chain that breaks the rules (loop, address outside memory, wrong direction, no bytes, too long, nested indirect table)
//! takes its place in the window with no bytes at all and is counted; its owner gives it back like any other. A driver that makes
//! more available than the ring holds, or less than before, is beyond help: the ring is [`Broken`] until the driver resets it.
//!
//! Notifications: the driver's kicks are off while the owner works and switched on before it sleeps
//! ([`Ring::enable_kicks`], which tells of work that slipped in between). Calls follow the driver's event index, or its
//! flag without it; the full fence between publishing and reading the driver's wish stands in each layout's `wants_call`.
//!
//! With a dirty log ([`Ring::with_log`]) each completion marks what was written of the chain, and whatever writes to the
//! ring marks the whole of the ring's written part: a few pages that the next publish would dirty anyway.

use std::sync::Arc;

use crate::buf::GuestBuf;
use crate::headed::Headed;
use crate::log::DirtyLog;
use crate::mem::Memory;
use crate::packed::Packed;
use crate::split::Split;
use crate::window::Window;

/// Where a ring lies and where it goes on, as the front end says. Addresses are the front end's own.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// `VIRTIO_F_RING_PACKED` was negotiated.
    pub packed: bool,
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Descriptor table; packed: descriptor ring.
    pub desc: u64,
    /// Available ring; packed: the driver's event suppression structure.
    pub avail: u64,
    /// Used ring; packed: the device's event suppression structure.
    pub used: u64,
    /// First available entry that was not processed yet; packed: first slot, with the wrap counter in bit 15.
    pub next_avail: u16,
    /// `VIRTIO_F_EVENT_IDX` was negotiated.
    pub event_idx: bool,
}

/// Why a ring cannot start. The front end is at fault.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// Not a power of two up to 32768.
    #[error("ring size {0} is not a power of two up to 32768")]
    Size(u16),
    /// A slot beyond the end of a packed ring.
    #[error("slot {} is not one of a packed ring of {size}", base & 0x7fff)]
    Base {
        /// Slot and wrap counter.
        base: u16,
        /// Slots that there are.
        size: u16,
    },
    /// Not, or not wholly, in guest memory.
    #[error("{part} at {addr:#x} is not inside guest memory")]
    Address {
        /// Which of the three.
        part: &'static str,
        /// The front end's address.
        addr: u64,
    },
    /// Not aligned as virtio asks.
    #[error("{part} at {addr:#x} is not aligned")]
    Alignment {
        /// Which of the three.
        part: &'static str,
        /// The front end's address.
        addr: u64,
    },
}

/// The driver made more available than the ring holds, or took some back; the ring is dead until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the driver made more available than the ring holds, or took some back, at {at:#x}")]
pub struct Broken {
    /// Split: the available index. Packed: slot and wrap counter of the chain that does not end.
    pub(crate) at: u16,
}

/// Which way the data of a queue's chains goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Out of the guest: every descriptor is device-readable.
    Tx,
    /// Into the guest: every descriptor is device-writable.
    Rx,
}

enum Kind {
    Split(Split),
    Packed(Packed),
}

struct Logging {
    log: Arc<DirtyLog>,
    /// Also what is written to the ring itself.
    used: bool,
}

/// A running virtqueue.
pub struct Ring {
    kind: Kind,
    window: Window,
    logging: Option<Logging>,
    broken: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let layout = if matches!(self.kind, Kind::Packed(_)) { "packed" } else { "split" };
        f.debug_struct("Ring")
            .field("layout", &layout)
            .field("direction", &self.window.direction())
            .field("next_avail", &self.next_avail())
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Checks the layout and takes the ring over.
    pub fn new(memory: Arc<Memory>, layout: &Layout, direction: Direction) -> Result<Self, RingError> {
        let kind = if layout.packed {
            Kind::Packed(Packed::new(&memory, layout)?)
        } else {
            Kind::Split(Split::new(&memory, layout)?)
        };
        Ok(Self { kind, window: Window::new(memory, direction), logging: None, broken: false })
    }

    /// Marks in `log` what is written to guest memory from now on: to buffers, and if `used` to the ring.
    #[must_use]
    pub fn with_log(mut self, log: Arc<DirtyLog>, used: bool) -> Self {
        self.logging = Some(Logging { log, used });
        self
    }

    /// Where to go on after a stop: the first chain that was not published, in the terms of [`Layout::next_avail`].
    pub fn next_avail(&self) -> u16 {
        match &self.kind {
            Kind::Split(split) => split.next_avail(&self.window),
            Kind::Packed(packed) => packed.next_avail(),
        }
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        match &self.kind {
            Kind::Split(split) => split.size(),
            Kind::Packed(packed) => packed.size(),
        }
    }

    /// Entries of the ring that the driver made available and that were not used yet, those in the window among them:
    /// chains of a split ring, descriptors of a packed one. At most the ring's size, whatever the driver wrote; 0 of a
    /// ring that is broken.
    pub fn waiting(&self) -> u16 {
        match &self.kind {
            _ if self.broken => 0,
            Kind::Split(split) => split.waiting(&self.window),
            Kind::Packed(packed) => packed.waiting(),
        }
    }

    /// Takes available chains until the window holds `max` of them; returns how many it holds. Chains that break the
    /// rules are among them, with length 0.
    pub fn fill(&mut self, max: usize) -> Result<usize, Broken> {
        if self.broken {
            return Ok(0);
        }
        let result = match &mut self.kind {
            Kind::Split(split) => split.fill(max, &mut self.window),
            Kind::Packed(packed) => packed.fill(max, &mut self.window),
        };
        self.broken = result.is_err();
        result.map(|()| self.window.len())
    }

    /// Pieces of the window's `index`-th chain; none beyond the window's end.
    #[inline]
    pub fn bufs(&self, index: usize) -> &[GuestBuf] {
        self.window.bufs(index)
    }

    /// Bytes in the window's `index`-th chain; 0 if it broke the rules, and beyond the window's end.
    #[inline]
    pub fn chain_len(&self, index: usize) -> usize {
        self.window.chain_len(index)
    }

    /// The window's chains in their order, each with a copy of its first `N` bytes and split behind its first `split` ones;
    /// `None` for a chain that has fewer than these. What was split off is no longer part of the window: to be called once
    /// for a chain that is then completed, or taken anew after a rewind.
    #[inline]
    pub fn split_heads<const N: usize>(
        &mut self,
        split: usize,
    ) -> impl Iterator<Item = Option<Headed<'_, N>>> {
        self.window.split_heads(split)
    }

    /// Completes the window's first `count` chains, as ones of which nothing was written.
    #[inline]
    pub fn complete_front(&mut self, count: usize) {
        let chains = self.window.front(count).iter();
        match &mut self.kind {
            Kind::Split(split) => chains.for_each(|chain| split.complete(chain, 0)),
            Kind::Packed(packed) => chains.for_each(|chain| packed.complete(chain, 0)),
        }
    }

    /// Writes the used entry of the window's `index`-th chain, of which the first `written` bytes were written. The
    /// driver sees it after [`Ring::publish`]; entries appear in the order of these calls.
    #[inline]
    pub fn complete(&mut self, index: usize, written: u32) {
        if let Some(Logging { log, .. }) = &self.logging {
            self.window.log(log, index, written);
        }
        let Some(chain) = self.window.chain(index) else { return };
        match &mut self.kind {
            Kind::Split(split) => split.complete(chain, written),
            Kind::Packed(packed) => packed.complete(chain, written),
        }
    }

    /// Shows the driver all completed chains by one store, and removes the first `count` chains from the window: exactly
    /// those that were completed. True: something became visible.
    pub fn publish(&mut self, count: usize) -> bool {
        let shown = match &mut self.kind {
            Kind::Split(split) => split.publish(),
            Kind::Packed(packed) => packed.publish(),
        };
        self.window.remove(count);
        if shown {
            self.log_ring();
        }
        shown
    }

    /// Gives the window back, to be taken anew.
    pub fn rewind(&mut self) {
        match &mut self.kind {
            Kind::Split(split) => split.rewind(&self.window),
            Kind::Packed(packed) => packed.rewind(),
        }
        self.window.clear();
    }

    /// After a publish: does the driver want to be told (virtio 1.2 § 2.7.7.2, § 2.8.9)?
    pub fn wants_call(&mut self) -> bool {
        match &mut self.kind {
            Kind::Split(split) => split.wants_call(),
            Kind::Packed(packed) => packed.wants_call(),
        }
    }

    /// Asks the driver to kick when it adds chains. True: there are some already, do not sleep.
    pub fn enable_kicks(&mut self) -> bool {
        if self.broken {
            return false;
        }
        let slipped_in = match &mut self.kind {
            Kind::Split(split) => split.enable_kicks(),
            Kind::Packed(packed) => packed.enable_kicks(),
        };
        self.log_ring();
        slipped_in
    }

    /// Asks the driver not to kick.
    pub fn disable_kicks(&mut self) {
        match &mut self.kind {
            Kind::Split(split) => split.disable_kicks(),
            Kind::Packed(packed) => packed.disable_kicks(),
        }
        self.log_ring();
    }

    /// Chains that broke the rules, since the last call.
    pub fn take_bad_chains(&mut self) -> u64 {
        self.window.take_bad_chains()
    }

    fn log_ring(&self) {
        let Some(Logging { log, used: true }) = &self.logging else { return };
        let mark = |parts: &[(u64, u64)]| parts.iter().for_each(|(addr, len)| log.mark(*addr, *len));
        match &self.kind {
            Kind::Split(split) => mark(&split.written()),
            Kind::Packed(packed) => mark(&packed.written()),
        }
    }
}

#[cfg(test)]
mod tests;
