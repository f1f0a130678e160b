//! Ctrl-C and SIGTERM: everything that was started ends, and its traces are removed, before we do.
//!
//! The command at work holds guests, switches and their folders as values that clean up when they are dropped, and it is most
//! likely waiting for one of its children. So a thread takes the signal, notes it, and ends our children again and
//! again: the wait fails at once, the error travels up, the values are dropped, and `main` exits with 130 or 143.
//!
//! Not while packages are installed: there the default holds, which ends us and leaves apt to its own handling of Ctrl-C.

use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static SEEN: AtomicI32 = AtomicI32::new(0);

/// Starts the thread.
pub fn watch() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            SEEN.store(signal, Ordering::Relaxed);
            eprintln!("\ninterrupted, cleaning up");
            loop {
                end_children();
                // A child may have been started just after the list was read.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    });
    Ok(())
}

/// The signal that came, if one did.
pub fn seen() -> Option<u8> {
    u8::try_from(SEEN.load(Ordering::Relaxed)).ok().filter(|signal| *signal != 0)
}

/// Fails once a signal came: asked between two steps that have no child to wait for.
pub fn check() -> Result<()> {
    match seen() {
        None => Ok(()),
        Some(signal) => bail!("interrupted by signal {signal}"),
    }
}

/// Sends SIGTERM to each child of each of our threads.
fn end_children() {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return };
    for thread in threads.flatten() {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for pid in children.split_whitespace().filter_map(|word| Pid::from_raw(word.parse().ok()?)) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}
