//! The parts of a ring as accessors of one field each (virtio 1.2 § 2.7, § 2.8).
//!
//! Invariants, checked in [`SplitParts::new`] and [`PackedParts::new`] and kept by construction:
//! - R1: `size` is a power of two up to 32768; every index is below it, masked where the guest chose it;
//! - R2: each part lies wholly in mapped guest memory for its full length, event words included, and that memory
//!   outlives the ring (its owner holds the [`Memory`]);
//! - R3: each part is aligned as virtio asks (descriptors to 16, all else to 2 or 4), so each field access is aligned.
//!
//! All fields are little endian. The guest may change any of them at any time: accesses are atomic, so that neither
//! tearing nor a second read by the compiler can happen.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::mem::Memory;
use crate::ring::{Layout, RingError};

/// Size in bytes of a descriptor, in either ring and in indirect tables.
pub const DESC_SIZE: u64 = 16;

/// A descriptor as it was at one moment (virtio 1.2 § 2.7.5, § 2.8.13).
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    /// Split: the next descriptor's index. Packed: the buffer's id.
    pub link: u16,
}

impl Desc {
    #[inline]
    fn split(addr: u64, rest: u64) -> Self {
        let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_le_bytes();
        let (flags, link) = (u16::from_le_bytes([f0, f1]), u16::from_le_bytes([n0, n1]));
        Self { addr, len: u32::from_le_bytes([l0, l1, l2, l3]), flags, link }
    }

    #[inline]
    fn packed(addr: u64, rest: u64) -> Self {
        let Self { len, flags: id, link: flags, .. } = Self::split(addr, rest);
        Self { addr, len, flags, link: id }
    }
}

/// What the guest shares with us as a part of a ring: host pointer, guest address and length.
#[derive(Clone, Copy)]
struct Part {
    base: *mut u8,
    guest: u64,
    len: u64,
}

impl Part {
    fn new(
        memory: &Memory,
        name: &'static str,
        addr: u64,
        len: u64,
        align: usize,
    ) -> Result<Self, RingError> {
        let (base, guest) = memory.user_range(addr, len).ok_or(RingError::Address { part: name, addr })?;
        if base.align_offset(align) != 0 {
            return Err(RingError::Alignment { part: name, addr });
        }
        Ok(Self { base, guest, len })
    }

    /// A 16-bit field. Every caller's offset is even and inside the part (R1).
    #[inline]
    fn word(&self, offset: usize) -> &AtomicU16 {
        // SAFETY: R2 and R3: the field is mapped and aligned for as long as the ring lives.
        unsafe { &*self.base.wrapping_add(offset).cast::<AtomicU16>() }
    }

    /// A 32-bit field; as [`Part::word`], of a part that is aligned to 4.
    #[inline]
    fn double(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { &*self.base.wrapping_add(offset).cast::<AtomicU32>() }
    }

    /// A 64-bit field; as [`Part::word`], of a part that is aligned to 16.
    #[inline]
    fn quad(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as above.
        unsafe { &*self.base.wrapping_add(offset).cast::<AtomicU64>() }
    }
}

/// A table of descriptors: the split ring's own or an indirect one. Invariant T: `count` descriptors from `base` lie in
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

    /// The descriptor at `index` of a split ring's table, or `None` beyond its end.
    #[inline]
    pub fn get(&self, index: u16) -> Option<Desc> {
        self.words(index).map(|(addr, rest)| Desc::split(addr, rest))
    }

    /// The same of a packed ring's table.
    #[inline]
    pub fn get_packed(&self, index: u16) -> Option<Desc> {
        self.words(index).map(|(addr, rest)| Desc::packed(addr, rest))
    }

    #[inline]
    fn words(&self, index: u16) -> Option<(u64, u64)> {
        if index >= self.count {
            return None;
        }
        let at = self.base.wrapping_add(usize::from(index) * 16).cast::<AtomicU64>();
        // SAFETY: by T and the check above both words of the descriptor are mapped and aligned.
        let first = unsafe { &*at };
        // SAFETY: as above; the second word follows the first.
        let second = unsafe { &*at.wrapping_add(1) };
        let addr = u64::from_le(first.load(Ordering::Relaxed));
        let rest = u64::from_le(second.load(Ordering::Relaxed));
        Some((addr, rest))
    }
}

/// Checks a ring's size and gives it as a number of descriptors.
fn checked_size(size: u16) -> Result<u64, RingError> {
    if size.is_power_of_two() && size <= 32768 { Ok(u64::from(size)) } else { Err(RingError::Size(size)) }
}

/// Pointers to a running split ring.
pub struct SplitParts {
    desc: Part,
    avail: Part,
    used: Part,
    size: u16,
}

// SAFETY: the pointers are into shared mappings that are the same in every thread (R2); all access is atomic.
unsafe impl Send for SplitParts {}

impl SplitParts {
    /// Translates and checks the ring's parts.
    pub fn new(memory: &Memory, layout: &Layout) -> Result<Self, RingError> {
        let count = checked_size(layout.size)?;
        let event = if layout.event_idx { 2 } else { 0 };
        Ok(Self {
            desc: Part::new(memory, "descriptor table", layout.desc, count * DESC_SIZE, 16)?,
            avail: Part::new(memory, "available ring", layout.avail, 4 + 2 * count + event, 2)?,
            used: Part::new(memory, "used ring", layout.used, 4 + 8 * count + event, 4)?,
            size: layout.size,
        })
    }

    #[inline]
    pub fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    pub fn table(&self) -> DescTable {
        DescTable { base: self.desc.base, count: self.size }
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    pub fn avail_flags(&self) -> u16 {
        u16::from_le(self.avail.word(0).load(Ordering::Relaxed))
    }

    /// Acquire: entries and descriptors that the driver wrote before this index are visible after it.
    #[inline]
    pub fn avail_idx(&self) -> u16 {
        u16::from_le(self.avail.word(2).load(Ordering::Acquire))
    }

    #[inline]
    pub fn avail_entry(&self, index: u16) -> u16 {
        u16::from_le(self.avail.word(4 + 2 * self.slot(index)).load(Ordering::Relaxed))
    }

    /// Only with `VIRTIO_F_EVENT_IDX`.
    pub fn used_event(&self) -> u16 {
        u16::from_le(self.avail.word(4 + 2 * usize::from(self.size)).load(Ordering::Relaxed))
    }

    pub fn set_used_flags(&self, flags: u16) {
        self.used.word(0).store(flags.to_le(), Ordering::Relaxed);
    }

    pub fn used_idx(&self) -> u16 {
        u16::from_le(self.used.word(2).load(Ordering::Relaxed))
    }

    /// Release: used entries and buffers written before are visible to a driver that sees this index.
    pub fn set_used_idx(&self, index: u16) {
        self.used.word(2).store(index.to_le(), Ordering::Release);
    }

    #[inline]
    pub fn set_used_entry(&self, index: u16, head: u16, len: u32) {
        let at = 4 + 8 * self.slot(index);
        self.used.double(at).store(u32::from(head).to_le(), Ordering::Relaxed);
        self.used.double(at + 4).store(len.to_le(), Ordering::Relaxed);
    }

    /// Only with `VIRTIO_F_EVENT_IDX`.
    pub fn set_avail_event(&self, index: u16) {
        self.used.word(4 + 8 * usize::from(self.size)).store(index.to_le(), Ordering::Relaxed);
    }

    /// The guest addresses and lengths of what we write to.
    pub fn written(&self) -> [(u64, u64); 1] {
        [(self.used.guest, self.used.len)]
    }
}

/// Pointers to a running packed ring.
pub struct PackedParts {
    desc: Part,
    driver: Part,
    device: Part,
    size: u16,
}

// SAFETY: as for `SplitParts`.
unsafe impl Send for PackedParts {}

impl PackedParts {
    /// Translates and checks the ring's parts. Where a split ring has its available and used rings, a packed one has the
    /// event suppression structures of driver and device.
    pub fn new(memory: &Memory, layout: &Layout) -> Result<Self, RingError> {
        let count = checked_size(layout.size)?;
        Ok(Self {
            desc: Part::new(memory, "descriptor ring", layout.desc, count * DESC_SIZE, 16)?,
            driver: Part::new(memory, "driver event suppression", layout.avail, 4, 4)?,
            device: Part::new(memory, "device event suppression", layout.used, 4, 4)?,
            size: layout.size,
        })
    }

    #[inline]
    pub fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    fn slot(&self, index: u16) -> usize {
        16 * usize::from(index & (self.size - 1))
    }

    /// The descriptor at `index`. Acquire: if its flags say that it is available, then what the driver wrote before them
    /// is visible after this. Length, id and flags are one load, so the former two are no older than the flags.
    #[inline]
    pub fn desc(&self, index: u16) -> Desc {
        let at = self.slot(index);
        let rest = u64::from_le(self.desc.quad(at + 8).load(Ordering::Acquire));
        Desc::packed(u64::from_le(self.desc.quad(at).load(Ordering::Relaxed)), rest)
    }

    /// Flags of the descriptor at `index`, as a hint.
    pub fn flags(&self, index: u16) -> u16 {
        u16::from_le(self.desc.word(self.slot(index) + 14).load(Ordering::Acquire))
    }

    /// Writes a used descriptor. Release: buffers and used descriptors written before are visible to a driver that sees this one.
    #[inline]
    pub fn set_used(&self, index: u16, id: u16, len: u32, flags: u16) {
        let word = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
        self.desc.quad(self.slot(index) + 8).store(word.to_le(), Ordering::Release);
    }

    /// The driver's wish for calls: descriptor event and flags.
    pub fn driver_event(&self) -> (u16, u16) {
        let word = u32::from_le(self.driver.double(0).load(Ordering::Relaxed)).to_le_bytes();
        let [d0, d1, f0, f1] = word;
        (u16::from_le_bytes([d0, d1]), u16::from_le_bytes([f0, f1]))
    }

    /// Our wish for kicks, as one store, so that the driver never sees flags with another event.
    pub fn set_device_event(&self, event: u16, flags: u16) {
        let word = u32::from(event) | u32::from(flags) << 16;
        self.device.double(0).store(word.to_le(), Ordering::Relaxed);
    }

    /// The guest addresses and lengths of what we write to.
    pub fn written(&self) -> [(u64, u64); 2] {
        [(self.desc.guest, self.desc.len), (self.device.guest, self.device.len)]
    }
}
