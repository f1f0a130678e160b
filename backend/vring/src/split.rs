//! The split virtqueue (virtio 1.2 § 2.7), device side.
//!
//! # Theory of operation
//! [`Ring::fill`] takes chains that the driver made available into a *window*, in the order of the available ring,
//! translated into pieces of memory. The owner uses any number of them from the front, says for each how many bytes it
//! wrote ([`Ring::complete`]), and then makes all of them visible by one store of the used index ([`Ring::publish`]).
//! A frame spread over several mergeable buffers is therefore never seen in part. What was not used stays in the window
//! for the next round. Since the window is always used up from its front, `next_avail - window` is at any time an index
//! from which another device (or this one after a restart) can go on: nothing is lost or repeated by a stop.
//!
//! A chain that breaks the rules (loop, address outside memory, wrong direction, too long, nested indirect table) takes its
//! place in the window with no bytes at all and is counted; its owner gives it back like any other. An available index
//! that runs ahead of the ring's size is beyond repair: the ring is [`Broken`] until the driver resets it.
//!
//! Notifications: the driver's kicks are off while the owner works and switched on before it sleeps
//! ([`Ring::enable_kicks`], which tells of work that slipped in between). Calls follow the event index, or the driver's
//! flag without it; the full fence between publishing and reading the driver's wish stands in [`Ring::wants_call`].

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::buf::GuestBuf;
use crate::mem::Memory;
use crate::raw::{DESC_SIZE, DescTable, RawRing};

const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;
const DESC_F_INDIRECT: u16 = 4;
const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// Longest chain in descriptors, and in pieces once translated: what one `sendmsg` or `recvmsg` can take (IOV_MAX).
pub const MAX_CHAIN: usize = 1024;

/// Where a ring lies and where it goes on, as the front end says. Addresses are the front end's own.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
    /// First available entry that was not processed yet.
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

/// The driver's available index ran ahead of the ring's size; the ring is dead until it is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("available index {avail} is more than a ring ahead of {next}")]
pub struct Broken {
    avail: u16,
    next: u16,
}

/// Which way the data of a queue's chains goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Out of the guest: every descriptor is device-readable.
    Tx,
    /// Into the guest: every descriptor is device-writable.
    Rx,
}

struct Chain {
    head: u16,
    /// Index behind its last piece in `Ring::bufs`; its first is where the chain before ends.
    end: usize,
    /// Bytes in all pieces.
    len: usize,
}

/// A running split virtqueue.
pub struct Ring {
    raw: RawRing,
    memory: Arc<Memory>,
    direction: Direction,
    event_idx: bool,
    next_avail: u16,
    /// Newest available index seen.
    avail: u16,
    next_used: u16,
    /// Used entries written behind `next_used` and not visible yet.
    pending: u16,
    /// Used index at the last look at the driver's wish for a call.
    signalled: Option<u16>,
    window: Vec<Chain>,
    bufs: Vec<GuestBuf>,
    region_hint: usize,
    bad_chains: u64,
    broken: bool,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("direction", &self.direction)
            .field("next_avail", &self.next_avail)
            .field("next_used", &self.next_used)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Checks the layout and takes the ring over. The used index is the driver's memory's own: whoever served the ring
    /// before left it there.
    pub fn new(memory: Arc<Memory>, layout: &Layout, direction: Direction) -> Result<Self, RingError> {
        let raw = RawRing::new(&memory, layout)?;
        let next_used = raw.used_idx();
        Ok(Self {
            raw,
            memory,
            direction,
            event_idx: layout.event_idx,
            next_avail: layout.next_avail,
            avail: layout.next_avail,
            next_used,
            pending: 0,
            signalled: None,
            window: Vec::new(),
            bufs: Vec::new(),
            region_hint: 0,
            bad_chains: 0,
            broken: false,
        })
    }

    /// The available entry to go on from after a stop: the first whose chain was not published.
    pub fn next_avail(&self) -> u16 {
        #[expect(clippy::cast_possible_truncation, reason = "the window never exceeds the ring's size")]
        self.next_avail.wrapping_sub(self.window.len() as u16)
    }

    /// Takes available chains until the window holds `max` of them; returns how many it holds. Chains that break the
    /// rules are among them, with length 0.
    pub fn fill(&mut self, max: usize) -> Result<usize, Broken> {
        if self.broken {
            return Ok(0);
        }
        while self.window.len() < max {
            if self.next_avail == self.avail && !self.refresh()? {
                break;
            }
            let head = self.raw.avail_entry(self.next_avail);
            self.next_avail = self.next_avail.wrapping_add(1);
            self.take(head);
        }
        Ok(self.window.len())
    }

    /// Reads the available index anew; false: nothing came.
    fn refresh(&mut self) -> Result<bool, Broken> {
        let avail = self.raw.avail_idx();
        if avail.wrapping_sub(self.next_avail()) > self.raw.size() {
            self.broken = true;
            return Err(Broken { avail, next: self.next_avail });
        }
        self.avail = avail;
        Ok(avail != self.next_avail)
    }

    fn take(&mut self, head: u16) {
        let start = self.bufs.len();
        let len = self.walk(head).unwrap_or_else(|| {
            self.bufs.truncate(start);
            self.bad_chains += 1;
            0
        });
        self.window.push(Chain { head, end: self.bufs.len(), len });
    }

    /// Appends the chain's pieces to `bufs` and returns its length in bytes; `None`: it breaks the rules.
    fn walk(&mut self, head: u16) -> Option<usize> {
        let mut table = self.raw.table();
        let mut indirect = false;
        let (mut index, mut total, start) = (head, 0usize, self.bufs.len());
        // More descriptors than that are a loop, or a chain that no system call takes. An indirect descriptor itself is
        // not counted, hence the extra round.
        for _ in 0..=MAX_CHAIN.min(usize::from(self.raw.size())) {
            let desc = table.get(index)?;
            if desc.flags & DESC_F_INDIRECT != 0 {
                let count = u16::try_from(u64::from(desc.len) / DESC_SIZE).ok()?;
                let whole = u64::from(desc.len) % DESC_SIZE == 0 && count > 0;
                if indirect || !whole || desc.flags & DESC_F_NEXT != 0 {
                    return None;
                }
                table = DescTable::indirect(&self.memory, desc.addr, count, &mut self.region_hint)?;
                (indirect, index) = (true, 0);
                continue;
            }
            let writable = desc.flags & DESC_F_WRITE != 0;
            if writable != (self.direction == Direction::Rx) {
                return None;
            }
            if !self.memory.pieces(desc.addr, desc.len, &mut self.region_hint, &mut self.bufs)
                || self.bufs.len() - start > MAX_CHAIN
            {
                return None;
            }
            total = total.checked_add(usize::try_from(desc.len).ok()?)?;
            if desc.flags & DESC_F_NEXT == 0 {
                // Used lengths are 32 bits wide.
                return (u32::try_from(total).is_ok()).then_some(total);
            }
            index = desc.next;
        }
        None
    }

    /// Pieces of the window's `index`-th chain; none beyond the window's end.
    pub fn bufs(&self, index: usize) -> &[GuestBuf] {
        let start = match index.checked_sub(1) {
            None => 0,
            Some(before) => self.window.get(before).map_or(self.bufs.len(), |c| c.end),
        };
        self.window.get(index).and_then(|c| self.bufs.get(start..c.end)).unwrap_or_default()
    }

    /// Bytes in the window's `index`-th chain; 0 if it broke the rules, and beyond the window's end.
    pub fn chain_len(&self, index: usize) -> usize {
        self.window.get(index).map_or(0, |c| c.len)
    }

    /// Writes the used entry of the window's `index`-th chain, of which `written` bytes were written. The driver sees
    /// it after [`Ring::publish`]; entries appear in the order of these calls.
    pub fn complete(&mut self, index: usize, written: u32) {
        if let Some(head) = self.window.get(index).map(|c| c.head) {
            self.write_used(head, written);
        }
    }

    fn write_used(&mut self, head: u16, written: u32) {
        // An entry outside the table names no chain that the driver could take back.
        if head >= self.raw.size() {
            return;
        }
        self.raw.set_used_entry(self.next_used.wrapping_add(self.pending), head, written);
        self.pending = self.pending.wrapping_add(1);
    }

    /// Shows the driver all completed chains by one store, and removes the first `count` chains from the window: exactly
    /// those that were completed. True: something became visible.
    pub fn publish(&mut self, count: usize) -> bool {
        let count = count.min(self.window.len());
        if count > 0 {
            let end = self.window.get(count - 1).map_or(0, |c| c.end);
            self.window.drain(..count);
            self.bufs.drain(..end);
            self.window.iter_mut().for_each(|c| c.end -= end);
        }
        if self.pending == 0 {
            return false;
        }
        self.next_used = self.next_used.wrapping_add(self.pending);
        self.pending = 0;
        self.raw.set_used_idx(self.next_used);
        true
    }

    /// Gives the window back, to be taken anew.
    pub fn rewind(&mut self) {
        self.next_avail = self.next_avail();
        self.window.clear();
        self.bufs.clear();
    }

    /// After a publish: does the driver want to be told (virtio 1.2 § 2.7.7.2)?
    pub fn wants_call(&mut self) -> bool {
        // The driver writes its event index (or flag), then looks at the used index; we the other way round.
        fence(Ordering::SeqCst);
        let old = self.signalled.replace(self.next_used);
        if !self.event_idx {
            return self.raw.avail_flags() & AVAIL_F_NO_INTERRUPT == 0;
        }
        match old {
            None => true,
            Some(old) => crossed(self.raw.used_event(), self.next_used, old),
        }
    }

    /// Asks the driver to kick when it adds chains. True: there are some already, do not sleep.
    pub fn enable_kicks(&mut self) -> bool {
        if self.broken {
            return false;
        }
        if self.event_idx {
            self.raw.set_avail_event(self.next_avail);
        } else {
            self.raw.set_used_flags(0);
        }
        // The driver writes its index, then looks at our wish; we the other way round.
        fence(Ordering::SeqCst);
        self.raw.avail_idx() != self.next_avail
    }

    /// Asks the driver not to kick. With the event index nothing needs to be written: the index asked for last is
    /// behind the driver by now.
    pub fn disable_kicks(&mut self) {
        if !self.event_idx {
            self.raw.set_used_flags(USED_F_NO_NOTIFY);
        }
    }

    /// Chains that broke the rules, since the last call.
    pub fn take_bad_chains(&mut self) -> u64 {
        std::mem::take(&mut self.bad_chains)
    }
}

/// Was `event` passed when an index went from `old` to `new` (virtio 1.2 § 2.7.7.1, `vring_need_event`)?
fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests;
