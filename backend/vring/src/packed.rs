//! The packed virtqueue (virtio 1.2 § 2.8), device side.
//!
//! # Theory of operation
//! One ring of descriptors serves both sides. The driver writes a chain into consecutive slots and makes it available by the flags of
//! the first; we read it, and later overwrite its slots, from the first on, with one used descriptor, leaving the rest as
//! they are. Each side knows by a *wrap counter*, which changes each time that it passes the ring's end, whether the flags in a slot
//! are of this lap or of the last.
//!
//! A chain takes up as many slots as it has descriptors, and its used descriptor stands for all of them. Used descriptors may come
//! in another order than the chains did, but a publish always uses up exactly the first chains of the window. So after each
//! publish our position for using is that of the first chain in the window; the two are never told apart to the front end, and
//! going on elsewhere needs one number: the slot, with the wrap counter in bit 15.
//!
//! Nobody looks at a used descriptor before the one in front of it is used. The first of a publish is therefore written last; that one
//! store shows all of them.

use std::sync::atomic::{Ordering, fence};

use crate::mem::Memory;
use crate::raw::{Desc, PackedParts};
use crate::ring::{Broken, Layout, RingError};
use crate::split::crossed;
use crate::window::{Building, Chain, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Window};

const DESC_F_AVAIL: u16 = 1 << 7;
const DESC_F_USED: u16 = 1 << 15;
/// Flags of an event suppression structure (virtio 1.2 § 2.8.14).
const EVENT_ENABLE: u16 = 0;
const EVENT_DISABLE: u16 = 1;
const EVENT_DESC: u16 = 2;
/// In a position and in a descriptor event: the wrap counter.
const WRAP: u16 = 1 << 15;

/// A slot and the wrap counter that belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    slot: u16,
    wrap: bool,
}

impl Position {
    /// As the front end tells it. The driver's own first position is slot 0 with a wrap counter of 1.
    fn from_base(base: u16, size: u16) -> Result<Self, RingError> {
        let slot = base & !WRAP;
        if slot >= size {
            return Err(RingError::Base { base, size });
        }
        Ok(Self { slot, wrap: base & WRAP != 0 })
    }

    fn base(self) -> u16 {
        self.slot | if self.wrap { WRAP } else { 0 }
    }

    /// The position `count` slots on; `count` <= `size` <= 32768.
    fn forward(self, count: u16, size: u16) -> Self {
        let slot = self.slot.wrapping_add(count);
        if slot < size { Self { slot, ..self } } else { Self { slot: slot - size, wrap: !self.wrap } }
    }

    /// Do these flags make a descriptor here available?
    fn is_available(self, flags: u16) -> bool {
        (flags & DESC_F_AVAIL != 0) == self.wrap && (flags & DESC_F_USED != 0) != self.wrap
    }
}

/// A used descriptor that is held back.
struct First {
    slot: u16,
    id: u16,
    len: u32,
    flags: u16,
}

/// Where a packed ring is.
pub struct Packed {
    raw: PackedParts,
    event_idx: bool,
    /// The first slot not taken yet.
    next: Position,
    /// The first slot of the window: what was used up to the last publish.
    used: Position,
    /// Slots that the window's chains take up.
    taken: u16,
    /// Where the next used descriptor goes; ahead of `used` between a completion and its publish.
    writing: Position,
    first: Option<First>,
    /// Slots of the chains that were completed and not published.
    pending: u16,
    /// Slots used since the last look at the driver's wish for a call; `None`: there was none.
    since_call: Option<u16>,
}

impl Packed {
    pub fn new(memory: &Memory, layout: &Layout) -> Result<Self, RingError> {
        let raw = PackedParts::new(memory, layout)?;
        let at = Position::from_base(layout.next_avail, raw.size())?;
        Ok(Self {
            raw,
            event_idx: layout.event_idx,
            next: at,
            used: at,
            taken: 0,
            writing: at,
            first: None,
            pending: 0,
            since_call: None,
        })
    }

    pub fn next_avail(&self) -> u16 {
        self.used.base()
    }

    pub fn size(&self) -> u16 {
        self.raw.size()
    }

    /// A driver makes slots available one after the other, so the first one that is not is found by halving: a ring of
    /// 32768 takes 15 looks. For a driver that does otherwise the answer is any number up to the ring's size.
    pub fn waiting(&self) -> u16 {
        let (mut below, mut above) = (0, self.raw.size());
        while below < above {
            let middle = below + (above - below) / 2;
            let at = self.used.forward(middle, self.raw.size());
            match at.is_available(self.raw.flags(at.slot)) {
                true => below = middle + 1,
                false => above = middle,
            }
        }
        below
    }

    pub fn fill(&mut self, max: usize, window: &mut Window) -> Result<(), Broken> {
        while window.len() < max {
            // Every slot is in the window: what lies in the next is a chain that is there already.
            if self.taken >= self.raw.size() {
                break;
            }
            let head = self.raw.desc(self.next.slot);
            if !self.next.is_available(head.flags) {
                break;
            }
            self.take(head, window)?;
        }
        Ok(())
    }

    /// Takes the chain that begins with `head` in the next slot. It is followed to its end even when it broke the
    /// rules, because only the end tells its id and how many slots it takes up.
    fn take(&mut self, head: Desc, window: &mut Window) -> Result<(), Broken> {
        let mut chain = window.begin();
        // A chain of one, as most are.
        if head.flags & (DESC_F_NEXT | DESC_F_INDIRECT) == 0 {
            let good = window.add(&mut chain, &head).is_some();
            self.close(chain, good, head.link, 1, window);
            return Ok(());
        }
        let room = self.raw.size() - self.taken;
        let (mut desc, mut slots, mut good) = (head, 1, true);
        loop {
            good = good && self.add(&desc, &mut chain, window).is_some();
            if desc.flags & DESC_F_NEXT == 0 {
                break;
            }
            if slots >= room {
                // It runs into chains that the driver gave us before, or into itself.
                window.cancel(&chain);
                return Err(Broken { at: self.next.base() });
            }
            desc = self.raw.desc(self.next.forward(slots, self.raw.size()).slot);
            slots += 1;
        }
        self.close(chain, good, desc.link, slots, window);
        Ok(())
    }

    /// Ends a chain that takes up so many slots.
    #[inline]
    fn close(&mut self, chain: Building, good: bool, id: u16, slots: u16, window: &mut Window) {
        window.close(chain, good, id, slots);
        self.next = self.next.forward(slots, self.raw.size());
        self.taken += slots;
    }

    /// Adds a descriptor, or the table that it names; `None`: it breaks the rules.
    fn add(&self, desc: &Desc, chain: &mut Building, window: &mut Window) -> Option<()> {
        if desc.flags & DESC_F_INDIRECT == 0 {
            return window.add(chain, desc);
        }
        let (table, count) = window.indirect(desc)?;
        if count > self.raw.size() {
            return None;
        }
        // All of a table is the chain; of its flags only the direction counts (virtio 1.2 § 2.8.7).
        (0..count).try_for_each(|index| window.add(chain, &table.get_packed(index)?))
    }

    #[inline]
    pub fn complete(&mut self, chain: &Chain, written: u32) {
        let wrap = if self.writing.wrap { DESC_F_AVAIL | DESC_F_USED } else { 0 };
        // Without this flag the driver does not look at the length.
        let flags = wrap | if written > 0 { DESC_F_WRITE } else { 0 };
        let used = First { slot: self.writing.slot, id: chain.id, len: written, flags };
        match self.first {
            None => self.first = Some(used),
            Some(_) => self.raw.set_used(used.slot, used.id, used.len, used.flags),
        }
        self.writing = self.writing.forward(chain.slots, self.raw.size());
        self.pending += chain.slots;
    }

    pub fn publish(&mut self) -> bool {
        let Some(First { slot, id, len, flags }) = self.first.take() else { return false };
        self.raw.set_used(slot, id, len, flags);
        self.used = self.writing;
        let slots = std::mem::take(&mut self.pending);
        self.taken -= slots;
        self.since_call = self.since_call.map(|since| since.saturating_add(slots));
        true
    }

    pub fn rewind(&mut self) {
        self.next = self.used;
        self.taken = 0;
    }

    pub fn wants_call(&mut self) -> bool {
        // The driver writes its wish, then looks at the descriptors; we the other way round.
        fence(Ordering::SeqCst);
        let since = self.since_call.replace(0);
        let (event, flags) = self.raw.driver_event();
        let Some(since) = since.filter(|since| *since < self.raw.size()) else {
            return flags != EVENT_DISABLE;
        };
        match flags {
            EVENT_DISABLE => false,
            EVENT_DESC if self.event_idx => {
                // An event of another lap lies a whole ring behind the position that it names in this one.
                let lap = if (event & WRAP != 0) == self.used.wrap { 0 } else { self.raw.size() };
                let event = (event & !WRAP).wrapping_sub(lap);
                crossed(event, self.used.slot, self.used.slot.wrapping_sub(since))
            }
            _ => true,
        }
    }

    pub fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.raw.set_device_event(self.next.base(), EVENT_DESC);
        } else {
            self.raw.set_device_event(0, EVENT_ENABLE);
        }
        // The driver makes a chain available, then looks at our wish; we the other way round.
        fence(Ordering::SeqCst);
        self.taken < self.raw.size() && self.next.is_available(self.raw.flags(self.next.slot))
    }

    pub fn disable_kicks(&mut self) {
        self.raw.set_device_event(0, EVENT_DISABLE);
    }

    pub fn written(&self) -> [(u64, u64); 2] {
        self.raw.written()
    }
}

#[cfg(test)]
mod tests;
