//! The split virtqueue (virtio 1.2 § 2.7), device side.
//!
//! The driver puts heads of chains into the available ring and moves its index on; we do the same with the used ring. Both
//! indices run freely, modulo 65536. The available index is read once for as many chains as it shows.

use std::sync::atomic::{Ordering, fence};

use crate::mem::Memory;
use crate::raw::{Desc, DescTable, SplitParts};
use crate::ring::{Broken, Layout, RingError};
use crate::window::{Building, Chain, DESC_F_INDIRECT, DESC_F_NEXT, MAX_CHAIN, Window};

pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
pub const USED_F_NO_NOTIFY: u16 = 1;

/// Where a split ring is.
pub struct Split {
    raw: SplitParts,
    event_idx: bool,
    /// The available entry to take next.
    next_avail: u16,
    /// Newest available index seen.
    avail: u16,
    next_used: u16,
    /// Used entries written behind `next_used` and not visible yet.
    pending: u16,
    /// Used index at the last look at the driver's wish for a call.
    signalled: Option<u16>,
}

impl Split {
    /// The used index is the driver's memory's own: whoever served the ring before left it there.
    pub fn new(memory: &Memory, layout: &Layout) -> Result<Self, RingError> {
        let raw = SplitParts::new(memory, layout)?;
        let next_used = raw.used_idx();
        Ok(Self {
            raw,
            event_idx: layout.event_idx,
            next_avail: layout.next_avail,
            avail: layout.next_avail,
            next_used,
            pending: 0,
            signalled: None,
        })
    }

    pub fn next_avail(&self, window: &Window) -> u16 {
        #[expect(clippy::cast_possible_truncation, reason = "the window never exceeds the ring's size")]
        self.next_avail.wrapping_sub(window.len() as u16)
    }

    pub fn size(&self) -> u16 {
        self.raw.size()
    }

    pub fn waiting(&self, window: &Window) -> u16 {
        self.raw.avail_idx().wrapping_sub(self.next_avail(window)).min(self.raw.size())
    }

    pub fn fill(&mut self, max: usize, window: &mut Window) -> Result<(), Broken> {
        while window.len() < max {
            if self.next_avail == self.avail && !self.refresh(window)? {
                break;
            }
            let head = self.raw.avail_entry(self.next_avail);
            self.next_avail = self.next_avail.wrapping_add(1);
            let mut chain = window.begin();
            let good = match self.raw.table().get(head) {
                // A chain of one, as most are.
                Some(desc) if desc.flags & (DESC_F_NEXT | DESC_F_INDIRECT) == 0 => {
                    window.add(&mut chain, &desc)
                }
                Some(desc) => self.walk(desc, &mut chain, window),
                None => None,
            };
            window.close(chain, good.is_some(), head, 1);
        }
        Ok(())
    }

    /// Reads the available index anew; false: nothing came.
    fn refresh(&mut self, window: &Window) -> Result<bool, Broken> {
        let avail = self.raw.avail_idx();
        let ahead = avail.wrapping_sub(self.next_avail(window));
        // Behind what it showed before is as impossible as too far ahead: it cannot take back what we may be using.
        if ahead > self.raw.size() || usize::from(ahead) < window.len() {
            return Err(Broken { at: avail });
        }
        self.avail = avail;
        Ok(avail != self.next_avail)
    }

    /// Adds the descriptors of a chain, the first of which was read; `None`: it breaks the rules.
    fn walk(&self, mut desc: Desc, chain: &mut Building, window: &mut Window) -> Option<()> {
        let mut table: DescTable = self.raw.table();
        let mut indirect = false;
        // More descriptors than that are a loop, or a chain that no system call takes. An indirect descriptor itself is
        // not counted, hence the extra round.
        for _ in 0..=MAX_CHAIN.min(usize::from(self.raw.size())) {
            let index = if desc.flags & DESC_F_INDIRECT != 0 {
                if indirect {
                    return None;
                }
                table = window.indirect(&desc)?.0;
                indirect = true;
                0
            } else {
                window.add(chain, &desc)?;
                if desc.flags & DESC_F_NEXT == 0 {
                    return Some(());
                }
                desc.link
            };
            desc = table.get(index)?;
        }
        None
    }

    #[inline]
    pub fn complete(&mut self, chain: &Chain, written: u32) {
        // An entry outside the table names no chain that the driver could take back.
        if chain.id >= self.raw.size() {
            return;
        }
        self.raw.set_used_entry(self.next_used.wrapping_add(self.pending), chain.id, written);
        self.pending = self.pending.wrapping_add(1);
    }

    pub fn publish(&mut self) -> bool {
        if self.pending == 0 {
            return false;
        }
        self.next_used = self.next_used.wrapping_add(self.pending);
        self.pending = 0;
        self.raw.set_used_idx(self.next_used);
        true
    }

    pub fn rewind(&mut self, window: &Window) {
        self.next_avail = self.next_avail(window);
    }

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

    pub fn enable_kicks(&mut self) -> bool {
        if self.event_idx {
            self.raw.set_avail_event(self.next_avail);
        } else {
            self.raw.set_used_flags(0);
        }
        // The driver writes its index, then looks at our wish; we the other way round.
        fence(Ordering::SeqCst);
        self.raw.avail_idx() != self.next_avail
    }

    /// With the event index nothing needs to be written: the index asked for last is behind the driver by now.
    pub fn disable_kicks(&mut self) {
        if !self.event_idx {
            self.raw.set_used_flags(USED_F_NO_NOTIFY);
        }
    }

    pub fn written(&self) -> [(u64, u64); 1] {
        self.raw.written()
    }
}

/// Was `event` passed when an index went from `old` to `new` (virtio 1.2 § 2.7.7.1, `vring_need_event`)?
pub fn crossed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
