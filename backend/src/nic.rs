//! One NIC: the vhost-user device in front of its workers, one per queue pair.
//!
//! Ring 2n is the receive queue of pair n, ring 2n+1 its transmit queue (virtio 1.2 § 5.1.2).

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use vdeplug::Link;
use vhost_user::{Device, StartedRing};
use virtio_net::{LinkLost, Side, Start, Worker, features};
use vring::Direction;

/// What the front end of one NIC drives.
#[derive(Debug)]
pub struct Nic {
    workers: Vec<Worker>,
    pairs: u16,
}

impl Nic {
    /// Starts the workers. `poll`: how long each goes on looking for frames after the last one; `lost` makes each one's
    /// callback for dead links.
    pub fn new(name: &str, pairs: u16, poll: Duration, lost: impl Fn() -> LinkLost) -> std::io::Result<Self> {
        let spawn = |pair| Worker::spawn(&format!("{name}.{pair}"), pair == 0, poll, lost());
        let workers = (0..pairs).map(spawn).collect::<Result<_, _>>()?;
        Ok(Self { workers, pairs })
    }

    /// Plugs a link into all queue pairs.
    pub fn set_link(&self, index: usize, link: &Arc<dyn Link>) {
        for worker in &self.workers {
            worker.set_link(index, link.clone());
        }
    }

    /// The counters, summed over the queue pairs.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut sums: Vec<(&str, u64)> = Vec::new();
        for (name, value) in self.workers.iter().flat_map(|w| w.counters().list()) {
            match sums.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += value,
                None => sums.push((name, value)),
            }
        }
        sums
    }

    fn worker(&self, ring: u16) -> Option<(&Worker, Side)> {
        let side = if ring.is_multiple_of(2) { Side::Rx } else { Side::Tx };
        Some((self.workers.get(usize::from(ring / 2))?, side))
    }
}

impl Device for Nic {
    fn features(&self) -> u64 {
        features::offered(self.pairs)
    }

    fn ring_count(&self) -> u16 {
        2 * self.pairs
    }

    fn queue_num(&self) -> u16 {
        self.pairs
    }

    fn direction(&self, ring: u16) -> Direction {
        if ring.is_multiple_of(2) { Direction::Rx } else { Direction::Tx }
    }

    fn start_ring(&mut self, ring: u16, started: StartedRing) {
        if let Some((worker, side)) = self.worker(ring) {
            let StartedRing { ring, kick, call, enabled, features } = started;
            worker.start(side, Start { ring, kick, call, enabled, features });
        }
    }

    fn stop_ring(&mut self, ring: u16) -> u16 {
        self.worker(ring).map_or(0, |(worker, side)| worker.stop(side))
    }

    fn set_call(&mut self, ring: u16, call: Option<OwnedFd>) {
        if let Some((worker, side)) = self.worker(ring) {
            worker.set_call(side, call);
        }
    }

    fn enable_ring(&mut self, ring: u16, enabled: bool) {
        if let Some((worker, side)) = self.worker(ring) {
            worker.enable(side, enabled);
        }
    }
}
