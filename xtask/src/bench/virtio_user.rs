//! `cargo xtask bench virtio-user`: back ends behind DPDK's virtio driver, which never sleeps and costs next to nothing.
//!
//! What is measured is the back end: with a guest in front of it, the guest would be.

pub mod network;
mod ovs;
pub mod testpmd;

use anyhow::Result;

use super::line::{Comparison, Line, Side, Wanted};
use super::{Bench, end};
use crate::{interrupt, step};
use network::{Back, Load, Ring, Standing, Way};

const ROUNDS: usize = 5;

/// A load, with the back ends that carry it: ours, then what it is compared with.
struct Case {
    load: Load,
    backs: &'static [Back],
    wanted: Option<Wanted>,
}

/// All cases, in the order of the table.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (way, wanted) in [(Way::Null, 0.6), (Way::Source, 0.6)] {
        for ring in [Ring::Split, Ring::Packed] {
            for (size, queues) in [(64, 1), (1514, 1), (64, 2), (1514, 2)] {
                let wanted = (size == 64).then_some(Wanted::AtLeast(wanted));
                let load = Load { way, size, ring, queues };
                cases.push(Case { load, backs: &[Back::Ours, Back::Dpdk], wanted });
            }
        }
    }
    let plain = |way, size| Load { way, size, ring: Ring::Split, queues: 1 };
    for size in [64, 1514] {
        let wanted = Some(Wanted::AtLeast(1.5));
        let load = plain(Way::Crossed, size);
        cases.push(Case { load, backs: &[Back::Ours, Back::Ovs, Back::Dpdk], wanted });
    }
    for way in [Way::SocketOut, Way::SocketIn] {
        for size in [64, 1514] {
            let wanted = Some(Wanted::AtMost(1.1));
            cases.push(Case { load: plain(way, size), backs: &[Back::Ours, Back::Bare], wanted });
        }
    }
    for size in [64, 1514] {
        cases.push(Case { load: plain(Way::Tap, size), backs: &[Back::Ours, Back::Dpdk], wanted: None });
    }
    cases
}

impl Case {
    fn name(&self) -> String {
        let Load { way, size, ring, queues } = self.load;
        let way = match way {
            Way::Null => "to null://",
            Way::Source => "from a generator",
            Way::Crossed => "two NICs, sum of both ways",
            Way::Tap => "to a tap",
            Way::SocketOut => "to a VDE socket",
            Way::SocketIn => "from a VDE socket",
        };
        let ring = match ring {
            Ring::Split => "split",
            Ring::Packed => "packed",
        };
        let plural = if queues == 1 { "" } else { "s" };
        format!("{way}, {size} B, {ring}, {queues} queue{plural}")
    }

    const fn unit(&self) -> &'static str {
        match self.load.way {
            Way::SocketOut | Way::SocketIn => "ns CPU per frame",
            _ => "M frames/s",
        }
    }

    fn title(&self, back: Back) -> &'static str {
        match (back, self.load.way) {
            (Back::Ours, Way::Crossed) => "ours, switch://",
            (Back::Ours, _) => "ours",
            (Back::Dpdk, Way::Crossed) => "testpmd, ports crossed",
            (Back::Dpdk, Way::Tap) => "DPDK vhost and tap drivers",
            (Back::Dpdk, _) => "DPDK vhost driver",
            (Back::Ovs, _) => "Open vSwitch, DPDK",
            (Back::Bare, _) => "bare loop of system calls",
        }
    }
}

/// The names of all lines.
pub fn names() -> Vec<String> {
    cases().iter().map(Case::name).collect()
}

/// Measures the lines that were asked for.
pub fn run(bench: &mut Bench) -> Result<()> {
    step::timed("ends and sources of frames", end::build)?;
    for case in cases() {
        if bench.wants(&case.name()) {
            let line = measure(bench, &case)?;
            bench.add(line)?;
        }
    }
    Ok(())
}

fn measure(bench: &Bench, case: &Case) -> Result<Line> {
    let mut sides: Vec<Side> = case.backs.iter().map(|back| Side::new(case.title(*back))).collect();
    let mut networks = Vec::new();
    for (number, back) in case.backs.iter().enumerate() {
        interrupt::check()?;
        let network = Standing::start(case.load, *back, number);
        networks.push(network.map_err(|error| sides[number].trouble = Some(format!("{error:#}"))).ok());
    }
    for round in 0..bench.rounds(ROUNDS) {
        for turn in 0..networks.len() {
            interrupt::check()?;
            let number = (round + turn) % networks.len();
            let Some(network) = &mut networks[number] else { continue };
            match network.run(bench.seconds(1)) {
                Ok(figure) => sides[number].rounds.push(figure),
                Err(error) => sides[number].trouble = Some(format!("{error:#}")),
            }
        }
    }
    interrupt::check()?;
    let comparison = |with| Comparison { of: 0, with, wanted: case.wanted.filter(|_| with == 1) };
    let comparisons = (1..sides.len()).map(comparison).collect();
    Ok(Line { name: case.name(), unit: case.unit(), sides, comparisons })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_all_different_and_ours_comes_first() {
        let mut names = names();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(cases().iter().all(|case| case.backs[0] == Back::Ours && case.backs.len() > 1));
    }
}
