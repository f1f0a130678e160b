//! Lets as many guests boot at a time as there are CPUs, over all test processes of one source tree.
//!
//! An emulated boot keeps a CPU busy for seconds; more of them than CPUs only make each one late, and the deadlines
//! meaningless. A slot is a file lock, so it is free again however its holder ended.

use std::fs::File;
use std::time::Duration;

use anyhow::Result;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::{places, process};

/// Held while a guest boots.
pub struct BootSlot {
    _lock: File,
}

impl BootSlot {
    /// Waits for a free slot. The limit is that of a whole test run: others may boot for long before us.
    pub fn take() -> Result<Self> {
        let folder = places::target("locks");
        std::fs::create_dir_all(&folder)?;
        let slots = std::thread::available_parallelism().map_or(1, usize::from);
        process::wait_until("a free slot to boot a guest in", Duration::from_secs(1800), || {
            for slot in 0..slots {
                let lock = File::create(folder.join(format!("boot-{slot}")))?;
                match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                    Ok(()) => return Ok(Some(Self { _lock: lock })),
                    Err(Errno::WOULDBLOCK) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(None)
        })
    }
}
