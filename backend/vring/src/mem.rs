//! Guest RAM: the regions that the front end shares, mapped here.
//!
//! A region is mapped from the start of its file up to its own end, not from its own offset: hugetlbfs wants offsets
//! and lengths in whole huge pages, which the pieces of RAM around a hole are not. The file must be as long as the
//! mapping, else touching the end would raise SIGBUS (a front end that shrinks the file later can still do that; it is
//! trusted with memory, and the back end is a process of its own).

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use vm_memory::{FileOffset, MmapRegion};

use crate::buf::GuestBuf;

/// How many regions a front end may share. QEMU's own limit for vhost-user with memory slots is 509.
pub const MAX_REGIONS: usize = 509;

/// One region as the front end describes it (vhost-user, "Memory region description").
#[derive(Debug)]
pub struct RegionSpec {
    /// Where the guest sees it.
    pub guest_addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// Where the front end has it mapped; ring addresses are given in these terms.
    pub user_addr: u64,
    /// Where in the file it begins.
    pub offset: u64,
    /// What to map.
    pub file: File,
}

/// Why guest memory could not be taken over. The front end is at fault.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Size 0, or an end beyond the address space.
    #[error("memory region at guest address {0:#x} has an impossible size")]
    Size(u64),
    /// Two regions claim one guest address.
    #[error("memory region at guest address {0:#x} overlaps another")]
    Overlap(u64),
    /// More than [`MAX_REGIONS`].
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// No such region to remove.
    #[error("no memory region at guest address {0:#x}")]
    Unknown(u64),
    /// The descriptor cannot be mapped, or its file is too short.
    #[error("memory region at guest address {guest_addr:#x} cannot be mapped")]
    Map {
        /// Guest address of the region.
        guest_addr: u64,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

struct Region {
    guest: u64,
    user: u64,
    len: u64,
    /// First byte of the region in this process. Invariant M: `len` bytes from here are mapped while `_map` lives.
    host: *mut u8,
    _map: MmapRegion,
}

// SAFETY: the pointer is into a shared file mapping that `_map` owns and that is the same in every thread; it is only
// used through copies and atomics.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// All of guest RAM that was shared with us. Cheap to clone with one region more or less, for memory hot-plug.
#[derive(Clone, Default)]
pub struct Memory {
    /// Sorted by guest address, no two overlap.
    regions: Vec<Arc<Region>>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.regions.iter().map(|r| (r.guest, r.len))).finish()
    }
}

impl Memory {
    /// Maps all regions, in any order.
    pub fn new(specs: Vec<RegionSpec>) -> Result<Self, MemoryError> {
        specs.into_iter().try_fold(Self::default(), Self::with_region)
    }

    /// This memory and one region more.
    pub fn with_region(mut self, spec: RegionSpec) -> Result<Self, MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let region = Region::map(spec)?;
        if self.overlaps(region.guest, region.len) {
            return Err(MemoryError::Overlap(region.guest));
        }
        let at = self.regions.partition_point(|r| r.guest < region.guest);
        self.regions.insert(at, Arc::new(region));
        Ok(self)
    }

    /// Whether it has the region that the front end describes so.
    pub fn has_region(&self, guest_addr: u64, user_addr: u64, size: u64) -> bool {
        self.position(guest_addr, user_addr, size).is_some()
    }

    /// Whether any of it lies there.
    pub fn overlaps(&self, guest_addr: u64, size: u64) -> bool {
        let end = guest_addr.saturating_add(size);
        let after = self.regions.partition_point(|region| region.guest < end);
        let last = after.checked_sub(1).and_then(|at| self.regions.get(at));
        last.is_some_and(|region| region.guest + region.len > guest_addr)
    }

    fn position(&self, guest_addr: u64, user_addr: u64, size: u64) -> Option<usize> {
        self.regions.iter().position(|r| (r.guest, r.user, r.len) == (guest_addr, user_addr, size))
    }

    /// This memory without the region that the front end describes so.
    pub fn without_region(mut self, guest_addr: u64, user_addr: u64, size: u64) -> Result<Self, MemoryError> {
        let found = self.position(guest_addr, user_addr, size);
        self.regions.remove(found.ok_or(MemoryError::Unknown(guest_addr))?);
        Ok(self)
    }

    /// Appends the pieces that hold `len` bytes, of which there are some, at guest address `addr`: one, or several where
    /// regions adjoin. `hint` remembers the region that was hit last. False: some of it is not guest memory; `out` is
    /// then as before.
    #[inline]
    pub(crate) fn pieces(&self, addr: u64, len: u32, hint: &mut usize, out: &mut Vec<GuestBuf>) -> bool {
        // Nearly always it is all in the region of the time before.
        if let Some(region) = self.regions.get(*hint) {
            let offset = addr.wrapping_sub(region.guest);
            if offset < region.len && region.len - offset >= u64::from(len) {
                // SAFETY: `len` bytes from there lie in the region, mapped while this memory lives (M).
                out.push(unsafe { GuestBuf::new(region.at(offset), len as usize) });
                return true;
            }
        }
        self.pieces_of_many(addr, len, hint, out)
    }

    /// [`Memory::pieces`], wherever they lie.
    #[cold]
    fn pieces_of_many(&self, addr: u64, len: u32, hint: &mut usize, out: &mut Vec<GuestBuf>) -> bool {
        let before = out.len();
        let (mut addr, mut left) = (addr, u64::from(len));
        while left > 0 {
            let Some((base, room)) = self.find(addr, hint) else {
                out.truncate(before);
                return false;
            };
            let count = room.min(left);
            let Ok(piece_len) = usize::try_from(count) else {
                out.truncate(before);
                return false;
            };
            // SAFETY: `find` gave `room` >= `piece_len` bytes in one region, mapped while this memory lives (M).
            out.push(unsafe { GuestBuf::new(base, piece_len) });
            left -= count;
            // A region never reaches the end of the address space, so this wraps only where nothing is mapped.
            addr = addr.wrapping_add(count);
        }
        true
    }

    /// Host pointer to `len` bytes at guest address `addr` that lie in one region.
    pub(crate) fn contiguous(&self, addr: u64, len: u64, hint: &mut usize) -> Option<*mut u8> {
        let (base, room) = self.find(addr, hint)?;
        (room >= len).then_some(base)
    }

    /// Host pointer to `len` bytes at the front end's address `addr` that lie in one region, and their guest address.
    pub(crate) fn user_range(&self, addr: u64, len: u64) -> Option<(*mut u8, u64)> {
        let region = self.regions.iter().find(|r| addr >= r.user && addr - r.user < r.len)?;
        let offset = addr - region.user;
        (region.len - offset >= len).then(|| (region.at(offset), region.guest + offset))
    }

    /// The guest address of a piece of this memory. Slow: only who keeps a dirty log asks for it.
    pub(crate) fn guest_addr(&self, piece: &GuestBuf) -> Option<u64> {
        let at = piece.as_ptr().addr() as u64;
        self.regions.iter().find_map(|region| {
            let offset = at.checked_sub(region.host.addr() as u64).filter(|offset| *offset < region.len)?;
            Some(region.guest + offset)
        })
    }

    /// Host pointer for a guest address, and how many bytes follow in its region.
    fn find(&self, addr: u64, hint: &mut usize) -> Option<(*mut u8, u64)> {
        let hit = |r: &Arc<Region>| addr >= r.guest && addr - r.guest < r.len;
        let region = match self.regions.get(*hint) {
            Some(region) if hit(region) => region,
            _ => {
                let after = self.regions.partition_point(|r| r.guest <= addr);
                let index = after.checked_sub(1)?;
                let region = self.regions.get(index).filter(|r| hit(r))?;
                *hint = index;
                region
            }
        };
        let offset = addr - region.guest;
        Some((region.at(offset), region.len - offset))
    }
}

impl Region {
    fn map(spec: RegionSpec) -> Result<Self, MemoryError> {
        let RegionSpec { guest_addr, size, user_addr, offset, file } = spec;
        let bad_size = || MemoryError::Size(guest_addr);
        if size == 0 || guest_addr.checked_add(size).is_none() || user_addr.checked_add(size).is_none() {
            return Err(bad_size());
        }
        let end = offset.checked_add(size).ok_or_else(bad_size)?;
        let map_err = |source| MemoryError::Map { guest_addr, source };
        let meta = file.metadata().map_err(|e| map_err(e.into()))?;
        if meta.size() < end {
            return Err(map_err(format!("its file has {} bytes, {end} are needed", meta.size()).into()));
        }
        // Unmapping part of a huge page fails, so map whole ones; hugetlbfs tells its page size as block size.
        let whole = end.checked_next_multiple_of(meta.blksize().max(1)).ok_or_else(bad_size)?;
        let mapped = if whole <= meta.size() { whole } else { end };
        let mapped = usize::try_from(mapped).map_err(|_| bad_size())?;
        let start = usize::try_from(offset).map_err(|_| bad_size())?;
        let map = MmapRegion::from_file(FileOffset::new(file, 0), mapped).map_err(|e| map_err(e.into()))?;
        let host = map.as_ptr().wrapping_add(start);
        Ok(Self { guest: guest_addr, user: user_addr, len: size, host, _map: map })
    }

    /// Pointer to a byte of the region; `offset` < `len`, so the sum stays in the mapping (M).
    fn at(&self, offset: u64) -> *mut u8 {
        #[expect(clippy::cast_possible_truncation, reason = "offset < len, and len bytes are mapped")]
        self.host.wrapping_add(offset as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(guest_addr: u64, size: u64, offset: u64, file_len: u64) -> RegionSpec {
        let file = tempfile::tempfile().unwrap();
        file.set_len(file_len).unwrap();
        RegionSpec { guest_addr, size, user_addr: guest_addr.wrapping_add(0x7000_0000), offset, file }
    }

    #[test]
    fn new_rejects_what_cannot_be() {
        let end = u64::MAX - 0xfff;
        assert!(matches!(Memory::new(vec![spec(0, 0, 0, 4096)]), Err(MemoryError::Size(0))));
        assert!(matches!(Memory::new(vec![spec(end, 0x2000, 0, 0x2000)]), Err(MemoryError::Size(_))));
        assert!(matches!(Memory::new(vec![spec(0, 4096, u64::MAX, 4096)]), Err(MemoryError::Size(_))));
        assert!(matches!(Memory::new(vec![spec(0, 8192, 0, 4096)]), Err(MemoryError::Map { .. })));
        let overlapping = vec![spec(0x1000, 0x2000, 0, 0x2000), spec(0x2000, 0x1000, 0, 0x1000)];
        assert!(matches!(Memory::new(overlapping), Err(MemoryError::Overlap(0x2000))));
        let same = vec![spec(0x1000, 0x1000, 0, 0x1000), spec(0x1000, 0x1000, 0, 0x1000)];
        assert!(matches!(Memory::new(same), Err(MemoryError::Overlap(0x1000))));
    }

    #[test]
    fn pieces_join_adjoining_regions_and_stop_at_holes() {
        let memory = Memory::new(vec![
            spec(0x2000, 0x1000, 0, 0x1000),
            spec(0x1000, 0x1000, 0x1000, 0x2000),
            spec(0x8000, 0x1000, 0, 0x1000),
        ])
        .unwrap();
        let (mut hint, mut out) = (0, Vec::new());
        assert!(memory.pieces(0x1ff0, 0x20, &mut hint, &mut out));
        assert_eq!(out.iter().map(GuestBuf::len).collect::<Vec<_>>(), [0x10, 0x10]);
        assert!(!memory.pieces(0x2ff0, 0x20, &mut hint, &mut out), "runs into the hole");
        assert_eq!(out.len(), 2);
        assert!(!memory.pieces(0, 1, &mut hint, &mut out));
        assert!(!memory.pieces(u64::MAX, 2, &mut hint, &mut out));
        assert!(memory.contiguous(0x8000, 0x1000, &mut hint).is_some());
        assert!(memory.contiguous(0x8000, 0x1001, &mut hint).is_none());
        assert!(memory.user_range(0x7000_1fff, 2).is_none(), "a ring must lie in one region");
    }

    #[test]
    fn without_region_forgets_exactly_that_one() {
        let memory = Memory::new(vec![spec(0, 0x1000, 0, 0x1000), spec(0x4000, 0x1000, 0, 0x1000)]).unwrap();
        assert!(matches!(memory.clone().without_region(0, 0, 0x1000), Err(MemoryError::Unknown(0))));
        let less = memory.clone().without_region(0, 0x7000_0000, 0x1000).unwrap();
        let mut hint = 0;
        assert!(less.contiguous(0, 1, &mut hint).is_none());
        assert!(memory.contiguous(0, 1, &mut hint).is_some(), "others that hold the old table keep it");
    }
}
