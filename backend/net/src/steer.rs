//! All receive queues of a NIC, and which of them a frame enters.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vdeplug::TxFrame;

use crate::features::Offloads;
use crate::inlet::Inlet;

/// The receive side of a NIC: one [`Inlet`] per queue pair.
#[derive(Debug)]
pub struct Inlets(Box<[Inlet]>);

impl Inlets {
    /// Those of a NIC with so many queue pairs, none of which runs yet.
    pub fn new(name: &str, pairs: u16) -> Self {
        Self((0..pairs).map(|pair| Inlet::new(format!("{name}.{pair}"))).collect())
    }

    /// The inlet of a queue pair.
    pub fn get(&self, pair: usize) -> Option<&Inlet> {
        self.0.get(pair)
    }

    /// The inlets, in the order of their queue pairs.
    pub fn iter(&self) -> impl Iterator<Item = &Inlet> {
        self.0.iter()
    }

    /// Delivers frames, in order.
    pub fn deliver(&self, frames: &[TxFrame<'_>]) {
        let live = self.0.iter().find(|inlet| inlet.is_live());
        if let Some(inlet) = live.or(self.0.first()) {
            inlet.deliver(frames.iter());
        }
    }

    /// Whether frames may be delivered without being lost. If not, `asker` is written when it is worth asking again.
    pub fn are_ready(&self, asker: &Arc<OwnedFd>) -> bool {
        let mut live = self.0.iter().filter(|inlet| inlet.is_live()).peekable();
        if live.peek().is_some() {
            return live.all(|inlet| inlet.is_ready(asker));
        }
        // Whichever starts first.
        self.0.iter().any(|inlet| inlet.is_ready(asker))
    }

    /// What the guest's driver takes undone.
    pub fn takes(&self) -> Offloads {
        self.0.iter().find(|inlet| inlet.is_live()).map(Inlet::takes).unwrap_or_default()
    }
}
