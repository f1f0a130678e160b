//! Chains that were taken from a ring and not given back yet, in the order in which they were taken.
//!
//! Both layouts put what they read into a window: a chain is begun, its descriptors are translated into pieces of memory
//! one by one, and it is closed under the name by which the driver knows it. A chain that breaks the rules keeps its
//! place, with no bytes.
//!
//! Chains leave at the front. Moving the rest up each time would cost more than taking them did, so what left is only
//! skipped, and removed when the window is empty or when it is at least as much as what stays.

use std::sync::Arc;

use crate::buf::GuestBuf;
use crate::headed::Headed;
use crate::log::DirtyLog;
use crate::mem::Memory;
use crate::raw::{DESC_SIZE, Desc, DescTable};
use crate::ring::Direction;

pub const DESC_F_NEXT: u16 = 1;
pub const DESC_F_WRITE: u16 = 2;
pub const DESC_F_INDIRECT: u16 = 4;

/// Longest chain in descriptors, and in pieces once translated: what one `sendmsg` or `recvmsg` can take (IOV_MAX).
pub const MAX_CHAIN: usize = 1024;

/// A chain as the window keeps it.
pub struct Chain {
    /// Index behind its last piece in `Window::bufs`; its first is where the chain before ends.
    end: usize,
    /// Bytes in all pieces.
    len: u32,
    /// Split: the head's index. Packed: the buffer's id.
    pub id: u16,
    /// Descriptors that it takes up in a packed ring.
    pub slots: u16,
}

/// A chain that is being taken.
pub struct Building {
    start: usize,
    len: u32,
}

/// Chains, their pieces, and the memory that these lie in.
pub struct Window {
    memory: Arc<Memory>,
    direction: Direction,
    /// `first` of these have left.
    chains: Vec<Chain>,
    first: usize,
    bufs: Vec<GuestBuf>,
    region_hint: usize,
    bad_chains: u64,
}

impl Window {
    pub fn new(memory: Arc<Memory>, direction: Direction) -> Self {
        Self {
            memory,
            direction,
            chains: Vec::new(),
            first: 0,
            bufs: Vec::new(),
            region_hint: 0,
            bad_chains: 0,
        }
    }

    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// How many chains there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.chains.len() - self.first
    }

    /// Begins a chain.
    #[inline]
    pub fn begin(&self) -> Building {
        Building { start: self.bufs.len(), len: 0 }
    }

    /// Appends a descriptor's bytes to the chain that is being taken; `None`: it breaks the rules. One without bytes does
    /// too, as in QEMU: a chain costs no more than its bytes are worth.
    #[inline]
    pub fn add(&mut self, chain: &mut Building, desc: &Desc) -> Option<()> {
        let writable = desc.flags & DESC_F_WRITE != 0;
        if desc.len == 0
            || writable != (self.direction == Direction::Rx)
            || !self.memory.pieces(desc.addr, desc.len, &mut self.region_hint, &mut self.bufs)
            || self.bufs.len() - chain.start > MAX_CHAIN
        {
            return None;
        }
        // Used lengths are 32 bits wide.
        chain.len = chain.len.checked_add(desc.len)?;
        Some(())
    }

    /// The indirect table that a descriptor names, and how many descriptors it holds.
    pub fn indirect(&mut self, desc: &Desc) -> Option<(DescTable, u16)> {
        let count = u16::try_from(u64::from(desc.len) / DESC_SIZE).ok()?;
        let whole = u64::from(desc.len) % DESC_SIZE == 0 && count > 0;
        if !whole || desc.flags & DESC_F_NEXT != 0 {
            return None;
        }
        let table = DescTable::indirect(&self.memory, desc.addr, count, &mut self.region_hint)?;
        Some((table, count))
    }

    /// Ends a chain, with no bytes if it is not `good`.
    #[inline]
    pub fn close(&mut self, chain: Building, good: bool, id: u16, slots: u16) {
        let mut len = chain.len;
        if !good {
            self.bufs.truncate(chain.start);
            self.bad_chains += 1;
            len = 0;
        }
        self.chains.push(Chain { end: self.bufs.len(), len, id, slots });
    }

    /// Forgets a chain that was begun.
    pub fn cancel(&mut self, chain: &Building) {
        self.bufs.truncate(chain.start);
    }

    /// The `index`-th chain.
    #[inline]
    pub fn chain(&self, index: usize) -> Option<&Chain> {
        self.chains.get(self.first.checked_add(index)?)
    }

    /// Bytes in the `index`-th chain.
    #[inline]
    pub fn chain_len(&self, index: usize) -> usize {
        self.chain(index).map_or(0, |chain| chain.len as usize)
    }

    /// Pieces of the `index`-th chain.
    #[inline]
    pub fn bufs(&self, index: usize) -> &[GuestBuf] {
        let Some(chain) = self.chain(index) else { return &[] };
        // The chain before ends where this one starts, also if it has left.
        let before = (self.first + index).checked_sub(1).and_then(|before| self.chains.get(before));
        self.bufs.get(before.map_or(0, |c| c.end)..chain.end).unwrap_or_default()
    }

    /// The first `count` chains.
    #[inline]
    pub fn front(&self, count: usize) -> &[Chain] {
        let chains = self.chains.get(self.first..).unwrap_or_default();
        chains.get(..count).unwrap_or(chains)
    }

    /// The chains in their order, each split behind its first `split` bytes ([`Ring::split_heads`](crate::Ring::split_heads)).
    #[inline]
    pub fn split_heads<const N: usize>(
        &mut self,
        split: usize,
    ) -> impl Iterator<Item = Option<Headed<'_, N>>> {
        let before = self.first.checked_sub(1).and_then(|before| self.chains.get(before));
        let mut start = before.map_or(0, |chain| chain.end);
        let mut bufs = self.bufs.get_mut(start..).unwrap_or_default();
        self.chains.get(self.first..).unwrap_or_default().iter().map(move |chain| {
            let (mine, others) = std::mem::take(&mut bufs).split_at_mut_checked(chain.end - start)?;
            (bufs, start) = (others, chain.end);
            Headed::new(mine, chain.len as usize, split)
        })
    }

    /// Removes the first `count` chains.
    pub fn remove(&mut self, count: usize) {
        self.first += count.min(self.len());
        if self.len() == 0 {
            self.clear();
        } else if self.first >= self.len() {
            let end = self.first.checked_sub(1).and_then(|last| self.chains.get(last)).map_or(0, |c| c.end);
            self.chains.drain(..self.first);
            self.bufs.drain(..end);
            self.chains.iter_mut().for_each(|chain| chain.end -= end);
            self.first = 0;
        }
    }

    /// Removes all chains.
    pub fn clear(&mut self) {
        self.chains.clear();
        self.bufs.clear();
        self.first = 0;
    }

    /// Chains that broke the rules, since the last call.
    pub fn take_bad_chains(&mut self) -> u64 {
        std::mem::take(&mut self.bad_chains)
    }

    /// Marks the first `written` bytes of the `index`-th chain in the log.
    pub fn log(&self, log: &DirtyLog, index: usize, written: u32) {
        let mut left = u64::from(written);
        for piece in self.bufs(index) {
            let count = left.min(piece.len() as u64);
            if let Some(addr) = self.memory.guest_addr(piece) {
                log.mark(addr, count);
            }
            left -= count;
            if left == 0 {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_leave_at_the_front_and_the_rest_keeps_its_bytes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x10000).unwrap();
        let spec = crate::RegionSpec { guest_addr: 0, size: 0x10000, user_addr: 0, offset: 0, file };
        let memory = Arc::new(Memory::new(vec![spec]).unwrap());
        let mut window = Window::new(memory, Direction::Tx);
        let (mut next, mut front) = (0u16, 0u16);
        // More leave than come, and then none are left; each round starts at another place.
        for round in 0..50 {
            for _ in 0..3 + round % 5 {
                let mut chain = window.begin();
                for piece in 0..next % 3 {
                    let desc = Desc { addr: 64 * u64::from(piece), len: u32::from(next), flags: 0, link: 0 };
                    assert!(window.add(&mut chain, &desc).is_some());
                }
                window.close(chain, true, next, 1);
                next += 1;
            }
            window.remove(2 + round % 6);
            front = next.min(front + 2 + u16::try_from(round % 6).unwrap());
            assert_eq!(window.len(), usize::from(next - front));
            for (index, id) in (front..next).enumerate() {
                assert_eq!(window.chain(index).map(|c| c.id), Some(id));
                let lens: Vec<usize> = window.bufs(index).iter().map(GuestBuf::len).collect();
                assert_eq!(lens, vec![usize::from(id); usize::from(id % 3)]);
                assert_eq!(window.chain_len(index), usize::from(id * (id % 3)));
            }
            assert!(window.bufs(window.len()).is_empty());
        }
    }
}
