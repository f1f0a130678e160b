//! What is known of all VMs: the latest answer of each back end, and the rates since the one before.
//!
//! Pure: time comes in as a duration since the start, answers come in as values. What a back end says replaces all that it said before,
//! so a NIC that it does not name any more is gone, and one that is new has no rates until it is named again.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use vde_control::{Join, Link, Nic, Ring};

use super::rate::{self, Counters, Flow, LinkRate};
use crate::counters::{Kind, kind};

/// How many rates a curve has at most.
pub const HISTORY: usize = 120;

/// What one back end answered.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// `query-nics`
    pub nics: Vec<Nic>,
    /// `query-joins`
    pub joins: Vec<Join>,
}

/// A VM.
#[derive(Debug, Default)]
pub struct Vm {
    /// What people call it.
    pub name: String,
    /// When its back end answered last; before it did, when it was found.
    pub answered: Duration,
    /// Why it did not answer after that.
    pub trouble: Option<String>,
    /// Its NICs and joins by name.
    pub ports: BTreeMap<String, Port>,
}

/// A NIC, or a join of two networks.
#[derive(Debug)]
pub struct Port {
    /// What only a NIC has; none for a join.
    pub nic: Option<Nic>,
    /// Its links.
    pub links: Vec<Link>,
    /// The rates of its links, by their places above.
    pub link_rates: Vec<Option<LinkRate>>,
    /// Its counters.
    pub counters: Counters,
    /// Their rates, if there was a reading before and the counters went on.
    pub rates: Option<BTreeMap<String, f64>>,
    /// Bits per second in both directions, oldest first.
    pub history: VecDeque<f64>,
    read: Duration,
}

impl Port {
    fn new(nic: Option<Nic>, links: Vec<Link>, counters: Counters, read: Duration) -> Self {
        let link_rates = vec![None; links.len()];
        Self { nic, links, link_rates, counters, rates: None, history: VecDeque::new(), read }
    }

    /// Fills in the rates since `before`.
    fn follow(&mut self, before: Self) {
        self.history = before.history;
        let Some(seconds) = rate::seconds(before.read, self.read) else {
            // Two readings at one time: the first of them stays the one to compare with.
            (self.read, self.counters, self.links) = (before.read, before.counters, before.links);
            (self.rates, self.link_rates) = (before.rates, before.link_rates);
            return;
        };
        self.rates = rate::of_counters(&before.counters, &self.counters, seconds);
        let rate = |link: &Link| {
            let same = |old: &&Link| old.id == link.id && old.locator == link.locator;
            let old = before.links.iter().find(same)?;
            rate::of_link(&old.traffic, &link.traffic, seconds)
        };
        self.link_rates = self.links.iter().map(rate).collect();
        let bits = |flow: Option<Flow>| flow.map_or(0.0, |flow| flow.bits);
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(bits(self.tx()) + bits(self.rx()));
    }

    fn rate(&self, name: &str) -> Option<f64> {
        self.rates.as_ref()?.get(name).copied()
    }

    fn sum_of_links(&self, of: fn(&LinkRate) -> f64) -> Option<f64> {
        let known: Vec<f64> = self.link_rates.iter().flatten().map(of).collect();
        (!known.is_empty()).then(|| known.iter().sum())
    }

    fn flow(&self, frames: &str, bytes: &str, of: fn(&LinkRate) -> Flow) -> Option<Flow> {
        if self.nic.is_some() {
            return Some(Flow { frames: self.rate(frames)?, bits: self.rate(bytes)? * 8.0 });
        }
        self.link_rates
            .iter()
            .flatten()
            .map(of)
            .reduce(|a, b| Flow { frames: a.frames + b.frames, bits: a.bits + b.bits })
    }

    /// What leaves the guest; of a join, what it sends to its networks.
    pub fn tx(&self) -> Option<Flow> {
        self.flow("tx_frames", "tx_bytes", |link| link.tx)
    }

    /// What enters the guest; of a join, what it gets from its networks.
    pub fn rx(&self) -> Option<Flow> {
        self.flow("rx_frames", "rx_bytes", |link| link.rx)
    }

    /// Frames dropped per second.
    pub fn drops(&self) -> Option<f64> {
        if self.nic.is_some() {
            return Some(dropped(self.rates.as_ref()?).map(|(_, rate)| rate).sum());
        }
        self.sum_of_links(|link| link.dropped)
    }

    /// The share of frames that pass its links unsegmented.
    pub fn big(&self) -> Option<f64> {
        let all = self.sum_of_links(|link| link.tx.frames + link.rx.frames)?;
        rate::share(self.sum_of_links(|link| link.big)?, all)
    }

    /// The share of received segments that enter the guest as a part of a larger frame.
    pub fn joined(&self) -> Option<f64> {
        let joined = self.rate("rx_joined")?;
        rate::share(joined, joined + self.rate("rx_frames")?)
    }

    /// The rings that run, of one direction.
    fn rings(&self, transmit: bool) -> impl Iterator<Item = &Ring> {
        let rings = self.nic.iter().flat_map(|nic| nic.rings.iter().enumerate());
        rings
            .filter(move |(number, ring)| (number % 2 == 1) == transmit && ring.size > 0)
            .map(|(_, ring)| ring)
    }

    /// How full the receive queues are with the guest's empty buffers: that of the emptiest one.
    pub fn rx_fill(&self) -> Option<f64> {
        self.rings(false).map(fill).reduce(f64::min)
    }

    /// How full the transmit queues are with frames that wait: that of the fullest one.
    pub fn tx_fill(&self) -> Option<f64> {
        self.rings(true).map(fill).reduce(f64::max)
    }
}

/// Those of a NIC's numbers that are of dropped frames, by reason.
pub fn dropped<T>(numbers: &BTreeMap<String, T>) -> impl Iterator<Item = (&str, &T)> {
    let numbers = numbers.iter().map(|(name, number)| (name.as_str(), number));
    numbers.filter(|(name, _)| matches!(kind(name), Kind::Drop(..)))
}

fn fill(ring: &Ring) -> f64 {
    (f64::from(ring.waiting) / f64::from(ring.size)).min(1.0)
}

/// All VMs, by a name of their own: where their back end listens.
#[derive(Debug, Default)]
pub struct Model {
    /// The VMs.
    pub vms: BTreeMap<String, Vm>,
}

impl Model {
    /// These VMs run now, and no others: key and name.
    pub fn running(&mut self, now: Duration, vms: &[(String, String)]) {
        self.vms.retain(|key, _| vms.iter().any(|(running, _)| running == key));
        for (key, name) in vms {
            let found = || Vm { answered: now, ..Vm::default() };
            name.clone_into(&mut self.vms.entry(key.clone()).or_insert_with(found).name);
        }
    }

    /// What the back end of a VM answered at a time, or why it did not. One that does not run any more is not heard.
    pub fn heard(&mut self, key: &str, at: Duration, answer: Result<Answer, String>) {
        let Some(vm) = self.vms.get_mut(key) else { return };
        let answer = match answer {
            Ok(answer) => answer,
            Err(trouble) => {
                vm.trouble = Some(trouble);
                return;
            }
        };
        let mut before = std::mem::take(&mut vm.ports);
        let joins = answer.joins.into_iter().map(|join| (join.id, None, join.links, join.counters));
        let nics = answer.nics.into_iter().map(|mut nic| {
            let (links, counters) = (std::mem::take(&mut nic.links), std::mem::take(&mut nic.counters));
            (nic.id.clone(), Some(nic), links, counters)
        });
        for (id, nic, links, counters) in joins.chain(nics) {
            let mut port = Port::new(nic, links, counters, at);
            if let Some(old) = before.remove(&id).filter(|old| old.nic.is_some() == port.nic.is_some()) {
                port.follow(old);
            }
            vm.ports.insert(id, port);
        }
        (vm.answered, vm.trouble) = (vm.answered.max(at), None);
    }
}

#[cfg(test)]
mod tests;
