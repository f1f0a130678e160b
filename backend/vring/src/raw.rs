//! The three parts of a split virtqueue as one accessor per field (virtio 1.2 § 2.7).
//!
//! Invariants, checked in [`RawRing::new`] and kept by construction:
//! - R1: `size` is a power of two, so `index & mask` is always inside the tables;
//! - R2: each part lies wholly in mapped guest memory for its full length, event words included, and that memory
//!   outlives the ring (its owner holds the [`Memory`]);
//! - R3: each part is aligned as § 2.7 asks (16, 2, 4), so each field access is aligned.
//!
//! All fields are little endian. The guest may change any of them at any time: accesses are atomic, so that neither
//! tearing nor a second read by the compiler can happen.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::mem::Memory;
use crate::split::{Layout, RingError};

/// Size in bytes of a descriptor, in the ring and in indirect tables.
pub const DESC_SIZE: u64 = 16;

/// A descriptor as it was at one moment (virtio 1.2 § 2.7.5).
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

/// A table of descriptors: the ring's own or an indirect one. Invariant T: `count` descriptors from `base` lie in
/// mapped guest memory, and `base` is aligned to 8 bytes.
#[derive(Clone, Copy)]
pub struct DescTable {
    base: *const u8,
    count: u16,
}

impl DescTable {
    /// An indirect table at a guest address. `None`: not all of it is memory, or it is not aligned.
    pub fn indirect(memory: &Memory, addr: u64, count: u16, hint: &mut usize) -> Option<Self> {
        let base = memory.contiguous(addr, u64::from(count) * DESC_SIZE, hint)?;
        base.cast::<u64>().is_aligned().then_some(Self { base, count })
    }

    /// The descriptor at `index`, or `None` beyond the table's end.
    pub fn get(&self, index: u16) -> Option<Desc> {
        if index >= self.count {
            return None;
        }
        let at = self.base.wrapping_add(usize::from(index) * 16).cast::<AtomicU64>();
        // SAFETY: by T and the check above both words of the descriptor are mapped and aligned.
        let first = unsafe { &*at };
        // SAFETY: as above; the second word follows the first.
        let second = unsafe { &*at.wrapping_add(1) };
        let addr = u64::from_le(first.load(Ordering::Relaxed));
        let rest = u64::from_le(second.load(Ordering::Relaxed)).to_le_bytes();
        let [l0, l1, l2, l3, f0, f1, n0, n1] = rest;
        Some(Desc {
            addr,
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        })
    }
}

/// Pointers to a running ring.
pub struct RawRing {
    desc: *const u8,
    avail: *const u8,
    used: *const u8,
    size: u16,
}

// SAFETY: the pointers are into shared mappings that are the same in every thread (R2); all access is atomic.
unsafe impl Send for RawRing {}

impl RawRing {
    /// Translates and checks the ring's parts.
    pub fn new(memory: &Memory, layout: &Layout) -> Result<Self, RingError> {
        let size = layout.size;
        if !size.is_power_of_two() || size > 32768 {
            return Err(RingError::Size(size));
        }
        let count = u64::from(size);
        let part = |name, addr, len, align| {
            let base = memory.user_range(addr, len).ok_or(RingError::Address { part: name, addr })?;
            if base.align_offset(align) != 0 {
                return Err(RingError::Alignment { part: name, addr });
            }
            Ok(base.cast_const())
        };
        let event = if layout.event_idx { 2 } else { 0 };
        Ok(Self {
            desc: part("descriptor table", layout.desc, count * DESC_SIZE, 16)?,
            avail: part("available ring", layout.avail, 4 + 2 * count + event, 2)?,
            used: part("used ring", layout.used, 4 + 8 * count + event, 4)?,
            size,
        })
    }

    pub fn size(&self) -> u16 {
        self.size
    }

    pub fn table(&self) -> DescTable {
        DescTable { base: self.desc, count: self.size }
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    /// A 16-bit field; `base` is `avail` or `used`, and every caller's offset is an even one inside that part.
    fn word(&self, base: *const u8, offset: usize) -> &AtomicU16 {
        // SAFETY: R2 and R3: the field is mapped and aligned for as long as the ring lives.
        unsafe { &*base.wrapping_add(offset).cast::<AtomicU16>() }
    }

    pub fn avail_flags(&self) -> u16 {
        u16::from_le(self.word(self.avail, 0).load(Ordering::Relaxed))
    }

    /// Acquire: entries and descriptors that the driver wrote before this index are visible after it.
    pub fn avail_idx(&self) -> u16 {
        u16::from_le(self.word(self.avail, 2).load(Ordering::Acquire))
    }

    pub fn avail_entry(&self, index: u16) -> u16 {
        u16::from_le(self.word(self.avail, 4 + 2 * self.slot(index)).load(Ordering::Relaxed))
    }

    /// Only with `VIRTIO_F_EVENT_IDX`.
    pub fn used_event(&self) -> u16 {
        u16::from_le(self.word(self.avail, 4 + 2 * usize::from(self.size)).load(Ordering::Relaxed))
    }

    pub fn set_used_flags(&self, flags: u16) {
        self.word(self.used, 0).store(flags.to_le(), Ordering::Relaxed);
    }

    pub fn used_idx(&self) -> u16 {
        u16::from_le(self.word(self.used, 2).load(Ordering::Relaxed))
    }

    /// Release: used entries and buffers written before are visible to a driver that sees this index.
    pub fn set_used_idx(&self, index: u16) {
        self.word(self.used, 2).store(index.to_le(), Ordering::Release);
    }

    pub fn set_used_entry(&self, index: u16, head: u16, len: u32) {
        let at = self.used.wrapping_add(4 + 8 * self.slot(index)).cast::<AtomicU32>();
        // SAFETY: R2 and R3: both words of the entry are mapped and aligned.
        let id = unsafe { &*at };
        // SAFETY: as above; the length follows the id.
        let length = unsafe { &*at.wrapping_add(1) };
        id.store(u32::from(head).to_le(), Ordering::Relaxed);
        length.store(len.to_le(), Ordering::Relaxed);
    }

    /// Only with `VIRTIO_F_EVENT_IDX`.
    pub fn set_avail_event(&self, index: u16) {
        self.word(self.used, 4 + 8 * usize::from(self.size)).store(index.to_le(), Ordering::Relaxed);
    }
}
