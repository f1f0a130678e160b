//! One NIC: the vhost-user device in front of its workers, one per queue pair.
//!
//! Ring 2n is the receive queue of pair n, ring 2n+1 its transmit queue (virtio 1.2 § 5.1.2).

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use vde_control::Ring;
use vdeplug::{Link, Receiver, TxBuf, TxFrame};
use vhost_user::{Device, StartedRing};
use virtio_net::{Inlets, Level, LinkLost, Side, Start, Worker, features};
use vring::Direction;

/// What the front end of one NIC drives.
#[derive(Debug)]
pub struct Nic {
    workers: Vec<Worker>,
    inlets: Arc<Inlets>,
    features: u64,
    /// With their numbers. The workers own them: one that was lost must end before another takes its place.
    links: Vec<(usize, Weak<dyn Link>)>,
}

impl Nic {
    /// Starts the workers. `offloads`: the guest may leave work to others, and take work from them; `poll`: how long each
    /// goes on looking for frames after the last one; `lost` makes each one's callback for dead links.
    pub fn new(
        name: &str,
        pairs: u16,
        offloads: bool,
        poll: Duration,
        lost: impl Fn() -> LinkLost,
    ) -> std::io::Result<Self> {
        let inlets = Arc::new(Inlets::new(name, pairs));
        let spawn =
            |pair| Worker::spawn(&format!("{name}.{pair}"), usize::from(pair), inlets.clone(), poll, lost());
        let workers = (0..pairs).map(spawn).collect::<Result<_, _>>()?;
        Ok(Self { workers, inlets, features: features::offered(pairs, offloads), links: Vec::new() })
    }

    /// Plugs a link into all queue pairs as this number, in place of one that had it.
    pub fn set_link(&mut self, number: usize, link: &Arc<dyn Link>) {
        self.note(number, link);
        for worker in &self.workers {
            worker.set_link(number, link.clone());
        }
    }

    /// Plugs a link in that takes the place of `old`: the guest sends nothing to that one any more when this returns, and
    /// gets what it brings until it is unplugged.
    pub fn hand_over(&mut self, old: usize, number: usize, link: &Arc<dyn Link>) {
        self.note(number, link);
        for worker in &self.workers {
            worker.hand_over(old, number, link);
        }
    }

    /// Pulls a link out of all queue pairs.
    pub fn unplug(&mut self, number: usize) {
        self.links.retain(|(known, _)| *known != number);
        for worker in &self.workers {
            worker.unplug(number);
        }
    }

    fn note(&mut self, number: usize, link: &Arc<dyn Link>) {
        self.links.retain(|(known, _)| *known != number);
        self.links.push((number, Arc::downgrade(link)));
        let receiver: Arc<dyn Receiver> = self.inlets.clone();
        // Whatever a link does not deliver itself, the workers fetch.
        link.deliver_to(&receiver);
    }

    /// The counters, summed over the queue pairs.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut sums: Vec<(&str, u64)> = Vec::new();
        for (name, value) in self.inlets.iter().flat_map(|inlet| inlet.counters().list()) {
            match sums.iter_mut().find(|(known, _)| *known == name) {
                Some((_, sum)) => *sum += value,
                None => sums.push((name, value)),
            }
        }
        sums
    }

    /// How full the rings are, by their numbers.
    pub fn rings(&self) -> Vec<Ring> {
        let ring = |Level { size, enabled, waiting }| Ring { size, enabled, waiting };
        self.workers.iter().flat_map(|worker| worker.levels().map(ring)).collect()
    }

    fn worker(&self, ring: u16) -> Option<(&Worker, Side)> {
        let side = if ring.is_multiple_of(2) { Side::Rx } else { Side::Tx };
        Some((self.workers.get(usize::from(ring / 2))?, side))
    }
}

impl Device for Nic {
    fn features(&self) -> u64 {
        self.features
    }

    fn ring_count(&self) -> u16 {
        2 * self.queue_num()
    }

    fn queue_num(&self) -> u16 {
        u16::try_from(self.workers.len()).unwrap_or(u16::MAX)
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

    fn announce(&mut self, mac: [u8; 6]) {
        for link in self.links.iter().filter_map(|(_, link)| link.upgrade()) {
            announce(&*link, mac);
        }
    }
}

/// Tells a network that `mac` is there now.
pub fn announce(link: &dyn Link, mac: [u8; 6]) {
    let frame = rarp(mac);
    let pieces = [TxBuf::new(&frame)];
    // Who asks for it asks several times, or the guest's own frames say it too; a link that is dead has its own remedies.
    let _ = link.send(&[TxFrame::new(&pieces)]);
}

/// A broadcast by which switches learn where `mac` is now: a reverse ARP request for itself (RFC 903), as long as Ethernet
/// asks.
fn rarp(mac: [u8; 6]) -> [u8; 60] {
    let mut frame = [0; 60];
    let parts: [&[u8]; 7] = [
        &[0xff; 6],
        &mac,
        // RARP; Ethernet, IPv4, lengths of their addresses, request.
        &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3],
        &mac,
        &[0; 4],
        &mac,
        &[0; 4],
    ];
    let bytes = parts.iter().flat_map(|part| part.iter());
    frame.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    frame
}
