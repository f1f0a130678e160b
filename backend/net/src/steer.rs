//! All receive queues of a NIC, and which of them a frame enters.
//!
//! # Theory of operation
//! With several queue pairs, the guest handles each on a CPU of its own. A flow is best received where its sender runs,
//! and must stay on one queue, or its frames overtake each other. So what the guest sends is looked at: a table remembers,
//! for the hash of each flow, the pair that sent last. What arrives goes to that pair, or, if none sent, to one that the
//! hash chooses among those that are live. The hash is the same for both directions of a flow. What is no IP goes to the
//! first pair that is live.
//!
//! The table is small and holds no flows, only pairs: two flows that share a place share a queue, which is never wrong.

mod flow;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vdeplug::{Receiver, TxFrame};

use crate::features::Offloads;
use crate::inlet::Inlet;

/// Places in the table. A guest of 16 CPUs has some hundred busy flows at most.
const PLACES: usize = 1024;

/// Frames that are placed together.
const BATCH: usize = 64;

/// The receive side of a NIC: one [`Inlet`] per queue pair.
#[derive(Debug)]
pub struct Inlets {
    inlets: Box<[Inlet]>,
    /// One more than the pair that sent the flows of this hash; 0 is nobody.
    senders: Box<[AtomicU8]>,
}

impl Inlets {
    /// Those of a NIC with so many queue pairs, none of which runs yet.
    pub fn new(name: &str, pairs: u16) -> Self {
        let places = if pairs > 1 { PLACES } else { 0 };
        Self {
            inlets: (0..pairs).map(|pair| Inlet::new(format!("{name}.{pair}"))).collect(),
            senders: (0..places).map(|_| AtomicU8::new(0)).collect(),
        }
    }

    /// The inlet of a queue pair.
    pub fn get(&self, pair: usize) -> Option<&Inlet> {
        self.inlets.get(pair)
    }

    /// The inlets, in the order of their queue pairs.
    pub fn iter(&self) -> impl Iterator<Item = &Inlet> {
        self.inlets.iter()
    }

    /// Delivers a batch to several queues.
    fn spread(&self, batch: &[TxFrame<'_>]) {
        let live = || self.inlets.iter().enumerate().filter(|(_, inlet)| inlet.is_live());
        let mut pairs = [usize::MAX; BATCH];
        let live_count = live().count();
        let choose = |hash: u32| {
            let sender = self.senders.get(place(hash)).map_or(0, |sender| sender.load(Ordering::Relaxed));
            let known = usize::from(sender).checked_sub(1);
            let known = known.filter(|pair| self.get(*pair).is_some_and(Inlet::is_live));
            let chosen = || live().nth(hash as usize % live_count.max(1)).map(|(pair, _)| pair);
            known.or_else(chosen)
        };
        for (slot, frame) in pairs.iter_mut().zip(batch) {
            let pair = flow::hash(frame).map_or_else(|| live().next().map(|(pair, _)| pair), choose);
            // One that stopped meanwhile counts what it loses.
            *slot = pair.unwrap_or(0);
        }
        for (pair, inlet) in self.inlets.iter().enumerate() {
            let mut mine = batch.iter().zip(&pairs).filter(|(_, to)| **to == pair).map(|(frame, _)| frame);
            if let Some(first) = mine.next() {
                inlet.deliver(std::iter::once(first).chain(mine));
            }
        }
    }

    /// Remembers that the guest sent these frames through this pair.
    pub(crate) fn sent(&self, pair: usize, frames: &[TxFrame<'_>]) {
        if self.inlets.iter().filter(|inlet| inlet.is_live()).nth(1).is_none() {
            return;
        }
        let sender = u8::try_from(pair + 1).unwrap_or(0);
        for hash in frames.iter().filter_map(flow::hash) {
            if let Some(slot) = self.senders.get(place(hash))
                && slot.load(Ordering::Relaxed) != sender
            {
                slot.store(sender, Ordering::Relaxed);
            }
        }
    }

    /// Whether frames may be delivered without being lost. If not, `asker` is written when it is worth asking again.
    pub fn are_ready(&self, asker: &Arc<OwnedFd>) -> bool {
        let mut live = self.inlets.iter().filter(|inlet| inlet.is_live()).peekable();
        if live.peek().is_some() {
            return live.all(|inlet| inlet.is_ready(asker));
        }
        // Whichever starts first.
        self.inlets.iter().any(|inlet| inlet.is_ready(asker))
    }

    /// What the guest's driver takes undone.
    pub fn takes(&self) -> Offloads {
        self.inlets.iter().find(|inlet| inlet.is_live()).map(Inlet::takes).unwrap_or_default()
    }
}

impl Receiver for Inlets {
    /// Delivers frames, those of a flow in order. To a guest that has no live queue they are lost, and counted.
    fn deliver(&self, frames: &[TxFrame<'_>]) {
        let mut live = self.inlets.iter().filter(|inlet| inlet.is_live());
        match (live.next(), live.next()) {
            (Some(_), Some(_)) => frames.chunks(BATCH).for_each(|batch| self.spread(batch)),
            (only, _) => {
                if let Some(inlet) = only.or(self.inlets.first()) {
                    inlet.deliver(frames.iter());
                }
            }
        }
    }
}

/// The place of a flow in the table.
fn place(hash: u32) -> usize {
    hash as usize % PLACES
}

#[cfg(test)]
mod tests;
