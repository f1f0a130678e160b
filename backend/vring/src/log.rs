//! The dirty log: which pages of guest memory we wrote to, for live migration (vhost-user, "Migration").
//!
//! One bit per page of 4 KiB of guest-physical memory, in a file that the front end shares and empties while we fill
//! it. A bit is set after the bytes are written: the front end clears it before it copies the page, so a page whose bit
//! came too early would be copied without the bytes. Pages beyond the log's end are not the front end's to migrate.
//!
//! The log is set up once and outlives changes of the memory table, whose rings it is handed to anew.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{FileOffset, MmapRegion};

/// Bytes of guest memory per bit (`VHOST_LOG_PAGE`).
const PAGE: u64 = 4096;

/// Why a log could not be taken over. The front end is at fault.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Size 0, or an end beyond the address space.
    #[error("a dirty log of {size} bytes at offset {offset} is impossible")]
    Size {
        /// Length that the front end told.
        size: u64,
        /// Where in its file.
        offset: u64,
    },
    /// The file is shorter than was told; touching the end would raise SIGBUS.
    #[error("the dirty log's file has {have} bytes, {need} are needed")]
    Short {
        /// Length of the file.
        have: u64,
        /// Length that the front end told, offset included.
        need: u64,
    },
    /// The descriptor cannot be mapped.
    #[error("the dirty log cannot be mapped")]
    Map(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A mapped dirty log.
pub struct DirtyLog {
    /// First byte of the log in this process. Invariant L: `len` bytes from here are mapped while `_map` lives.
    base: *const u8,
    len: u64,
    _map: MmapRegion,
}

// SAFETY: the pointer is into a shared file mapping that `_map` owns and that is the same in every thread; it is only
// used through atomics.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl std::fmt::Debug for DirtyLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DirtyLog").field("len", &self.len).finish_non_exhaustive()
    }
}

impl DirtyLog {
    /// Maps `size` bytes of `file` from `offset` on.
    pub fn new(file: File, size: u64, offset: u64) -> Result<Self, LogError> {
        let bad_size = || LogError::Size { size, offset };
        let need = offset.checked_add(size).filter(|_| size > 0).ok_or_else(bad_size)?;
        let have = file.metadata().map_err(|e| LogError::Map(e.into()))?.size();
        if have < need {
            return Err(LogError::Short { have, need });
        }
        let mapped = usize::try_from(need).map_err(|_| bad_size())?;
        let start = usize::try_from(offset).map_err(|_| bad_size())?;
        // From the file's start: an offset need not be a multiple of the page size.
        let map =
            MmapRegion::from_file(FileOffset::new(file, 0), mapped).map_err(|e| LogError::Map(e.into()))?;
        let base = map.as_ptr().wrapping_add(start).cast_const();
        Ok(Self { base, len: size, _map: map })
    }

    /// Marks the pages of `len` bytes at guest address `addr`.
    pub fn mark(&self, addr: u64, len: u64) {
        let Some(last) = len.checked_sub(1).map(|more| addr.saturating_add(more) / PAGE) else { return };
        let end = self.len.saturating_mul(8);
        for page in addr / PAGE..=last {
            if page >= end {
                return;
            }
            self.set(page);
        }
    }

    /// Sets the bit of a page that the log knows.
    fn set(&self, page: u64) {
        let at = self.base.wrapping_add((page / 8) as usize).cast::<AtomicU8>();
        // SAFETY: page / 8 < len by the caller's check, so the byte is mapped (L); bytes are always aligned.
        let byte = unsafe { &*at };
        // Sequentially consistent, hence after the bytes that were written before, for whoever empties the log.
        byte.fetch_or(1 << (page % 8), Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn bytes<const N: usize>(file: &File, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    #[test]
    fn new_rejects_what_cannot_be() {
        assert!(matches!(DirtyLog::new(file(10), 0, 0), Err(LogError::Size { .. })));
        assert!(matches!(DirtyLog::new(file(10), u64::MAX, 2), Err(LogError::Size { .. })));
        assert!(matches!(DirtyLog::new(file(10), 8, 3), Err(LogError::Short { have: 10, need: 11 })));
    }

    #[test]
    fn mark_sets_each_page_that_was_touched_and_no_other() {
        let file = file(12);
        let log = DirtyLog::new(file.try_clone().unwrap(), 4, 3).unwrap();
        log.mark(0x1000, 0);
        assert_eq!(bytes(&file, 0), [0; 12]);
        log.mark(0x1fff, 2);
        log.mark(0x9000, 0x1000);
        assert_eq!(bytes(&file, 3), [0b110, 0b10, 0, 0]);
        log.mark(0x1_f000, u64::MAX);
        log.mark(u64::MAX, 1);
        assert_eq!(
            bytes(&file, 0),
            [0, 0, 0, 0b110, 0b10, 0, 0x80, 0, 0, 0, 0, 0],
            "it ends where it was told"
        );
    }
}
