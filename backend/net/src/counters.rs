//! What happened to frames, counted per queue pair.
//!
//! Several threads may write one: what enters a guest may come from any of them. So an update is one atomic addition, made
//! once per batch for what is counted per frame.

use std::sync::atomic::{AtomicU64, Ordering};

/// One number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds.
    pub fn add(&self, count: u64) {
        if count > 0 {
            self.0.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// All counters of one queue pair. Frames are counted once, however many links they go to.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: Counter,)*
        }

        impl Counters {
            /// Name and value of each, in a fixed order.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Frames that left the guest for at least one link.
    tx_frames,
    /// Their bytes.
    tx_bytes,
    /// Frames that entered the guest.
    rx_frames,
    /// Their bytes.
    rx_bytes,
    /// Dropped: header of the wrong size, asking for what was not negotiated, or not fitting its frame.
    tx_bad_header,
    /// Dropped: shorter than an Ethernet header.
    tx_runt,
    /// Dropped: longer than any link carries.
    tx_too_long,
    /// Dropped: the queue is disabled.
    tx_disabled,
    /// Dropped: no link is up.
    tx_no_link,
    /// Dropped by a link, counted once per link: too long for it.
    tx_refused,
    /// Dropped because a link was full, counted once per link: one of several, a single one that did not read for long, or
    /// that was still full when the guest's NIC went.
    tx_link_full,
    /// Frames that entered the guest as a part of another, which `rx_frames` counts once.
    rx_joined,
    /// Dropped: the header that the network gave it does not fit it.
    rx_bad_header,
    /// Dropped: shorter than an Ethernet header.
    rx_runt,
    /// Dropped: longer than the guest's buffer, or than any frame can be.
    rx_too_long,
    /// Dropped: the guest had too few buffers for a long frame.
    rx_no_buffer,
    /// Not dropped: had to wait for buffers.
    rx_waited,
    /// Dropped: as much as may wait for buffers did already.
    rx_overrun,
    /// Dropped: the queue is stopped, disabled or broken.
    rx_no_queue,
    /// Buffers given back because they do not even hold the header.
    rx_small_buffer,
    /// Chains that broke the rules of the ring, given back empty. One that is met again after a full link counts again.
    bad_chains,
    /// Rings that broke beyond repair until their driver resets them.
    broken_rings,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_names_every_counter() {
        let counters = Counters::default();
        counters.tx_frames.add(2);
        counters.tx_frames.add(3);
        assert_eq!(counters.list()[0], ("tx_frames", 5));
        assert_eq!(counters.list().len(), 22);
    }
}
