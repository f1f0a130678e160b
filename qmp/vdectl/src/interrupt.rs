//! Ctrl-C and its like: they end what is under way between two steps, so that it can be undone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::Failure;

/// Tells whether the person has enough.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From here on those signals do not end the process.
    pub fn watch() -> Result<Self, Failure> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupt.0))
                .map_err(|error| Failure::new(format!("signals cannot be held back: {error}")))?;
        }
        Ok(interrupt)
    }

    /// A signal has come.
    pub fn has_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails if a signal has come.
    pub fn check(&self) -> Result<(), Failure> {
        match self.has_come() {
            true => Err(Failure::new("interrupted")),
            false => Ok(()),
        }
    }
}
