//! One direction of a queue pair: a ring with its two notification descriptors.

use std::os::fd::OwnedFd;

use vring::Ring;

use crate::counters::Counters;
use crate::features::Accepted;

/// A ring handed to a worker, ready to run.
#[derive(Debug)]
pub struct Start {
    /// The ring.
    pub ring: Ring,
    /// The driver's notifications. Non-blocking.
    pub kick: OwnedFd,
    /// Ours; `None`: the driver polls. Non-blocking.
    pub call: Option<OwnedFd>,
    /// A disabled ring receives nothing, and what is sent through it is discarded.
    pub enabled: bool,
    /// Feature bits that the driver accepted.
    pub features: u64,
}

/// A ring that runs in a worker.
#[derive(Debug)]
pub struct Queue {
    pub ring: Ring,
    pub kick: OwnedFd,
    pub call: Option<OwnedFd>,
    pub enabled: bool,
    pub accepted: Accepted,
    /// The ring broke beyond repair.
    pub broken: bool,
    /// TX: segments of the frame at the front of the ring that its link took already.
    pub segments_sent: usize,
    /// RX: the most bytes of buffers that the guest was seen to have at once, as far as any frame asked for it.
    pub most_room: usize,
}

/// How full a ring is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// Its descriptors; 0: it does not run.
    pub size: u16,
    /// The driver wants frames to pass.
    pub enabled: bool,
    /// What the driver made available and we have not used yet ([`Ring::waiting`]).
    pub waiting: u16,
}

impl Queue {
    pub fn new(start: Start) -> Self {
        let Start { ring, kick, call, enabled, features } = start;
        Self {
            ring,
            kick,
            call,
            enabled,
            accepted: Accepted::new(features),
            segments_sent: 0,
            broken: false,
            most_room: 0,
        }
    }

    /// How full its ring is now.
    pub fn level(&self) -> Level {
        Level { size: self.ring.size(), enabled: self.enabled, waiting: self.ring.waiting() }
    }

    /// Takes chains into the window; a broken ring counts as an empty one. The guest can break it as often as it resets the
    /// device, so the log's default level does not show it.
    pub fn fill(&mut self, max: usize, counters: &Counters, name: &str) -> usize {
        let filled = self.ring.fill(max);
        counters.bad_chains.add(self.ring.take_bad_chains());
        filled.unwrap_or_else(|broken| {
            counters.broken_rings.add(1);
            self.broken = true;
            log::info!("{name}: {broken}; the ring rests until the guest resets it");
            0
        })
    }

    /// Gives the first `count` chains of the window back, as ones to which nothing was written.
    pub fn give_back(&mut self, count: usize) {
        self.ring.complete_front(count);
        self.publish(count);
    }

    /// Shows the driver what was completed, the first `count` chains of the window, and tells it if it wants to be told.
    pub fn publish(&mut self, count: usize) {
        if self.ring.publish(count) && self.ring.wants_call() {
            self.tell();
        }
    }

    /// Writes the call descriptor.
    pub fn tell(&self) {
        if let Some(call) = &self.call {
            // Full means that a notification is pending already; any other failure is the front end's own loss.
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }

    /// Takes a kick off its descriptor, whatever that is.
    pub fn clear_kick(&self) {
        let _ = rustix::io::read(&self.kick, &mut [0u8; 8]);
    }
}
