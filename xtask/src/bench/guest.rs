//! `cargo xtask bench guest`: what guests see.
//!
//! A *group* is a set of networks (`guest/network.rs`), each with its guests, that stand at the same time: guests that
//! nobody talks to sleep, and an emulated guest that sleeps costs next to nothing. A *load* (`guest/load.rs`) is run on each of them
//! in turn, and each load of a group is one line of the table.

pub mod load;
pub mod network;

use anyhow::{Context, Result};

use super::line::{Comparison, Line, Side, Wanted};
use super::{Bench, end, plot};
use crate::{interrupt, step};
use load::Load;
use network::{Kind, Standing};

/// Networks that carry the same loads.
struct Group {
    name: &'static str,
    kinds: &'static [Kind],
    loads: &'static [(Load, Option<Wanted>)],
    /// What the others are compared with; a number in `kinds`.
    reference: usize,
}

/// Rounds of a load whose figure was promised, and of any other.
const ROUNDS: usize = 9;
const FEWER_ROUNDS: usize = 5;

const GROUPS: &[Group] = &[
    Group {
        name: "one vde_switch",
        kinds: &[Kind::VdeSwitch, Kind::QemuVde],
        loads: &[
            (Load::Tcp { streams: 1, reverse: false }, Some(Wanted::AtLeast(4.0))),
            (Load::Tcp { streams: 1, reverse: true }, Some(Wanted::AtLeast(4.0))),
            (Load::Tcp { streams: 4, reverse: false }, None),
            (Load::Tcp { streams: 4, reverse: true }, None),
            (Load::Udp, None),
            (Load::Ping, Some(Wanted::AtMost(0.85))),
            (Load::TcpRoundTrip, Some(Wanted::AtMost(0.85))),
            (Load::PktgenOut, Some(Wanted::AtLeast(4.0))),
            (Load::PktgenIn, Some(Wanted::AtLeast(1.8))),
        ],
        reference: 1,
    },
    Group {
        name: "no switch",
        kinds: &[
            Kind::Node("switch"),
            Kind::Node("multi"),
            Kind::Ptp,
            Kind::TwoNics,
            Kind::Bridge,
            Kind::QemuStream,
            Kind::QemuDgram,
        ],
        loads: &[
            (Load::Tcp { streams: 1, reverse: false }, Some(Wanted::AtLeast(1.1))),
            (Load::Tcp { streams: 1, reverse: true }, None),
            (Load::Tcp { streams: 4, reverse: false }, None),
            (Load::Tcp { streams: 4, reverse: true }, None),
            (Load::Udp, None),
            (Load::Ping, None),
            (Load::TcpRoundTrip, None),
        ],
        reference: 4,
    },
    Group {
        name: "guest and namespace",
        kinds: &[Kind::Tap, Kind::Veth, Kind::QemuTap],
        loads: &[
            (Load::Tcp { streams: 1, reverse: false }, Some(Wanted::AtLeast(1.0))),
            (Load::Tcp { streams: 1, reverse: true }, Some(Wanted::AtLeast(1.0))),
            (Load::Tcp { streams: 4, reverse: false }, None),
            (Load::Tcp { streams: 4, reverse: true }, None),
            (Load::Ping, None),
            (Load::TcpRoundTrip, None),
        ],
        reference: 2,
    },
];

impl Group {
    fn line(&self, load: Load) -> String {
        format!("{}: {}", self.name, load.name())
    }
}

/// The names of all lines.
pub fn names() -> Vec<String> {
    GROUPS.iter().flat_map(|group| group.loads.iter().map(|(load, _)| group.line(*load))).collect()
}

/// Measures the lines that were asked for.
pub fn run(bench: &mut Bench) -> Result<()> {
    let first = bench.report.lines.len();
    step::timed("a station on the switch", end::build)?;
    for group in GROUPS {
        let loads: Vec<_> =
            group.loads.iter().filter(|(load, _)| bench.wants(&group.line(*load))).copied().collect();
        if !loads.is_empty() {
            measure(bench, group, &loads).with_context(|| group.name)?;
            plot::draw(&bench.report.lines[first..], bench.options.quick)?;
        }
    }
    Ok(())
}

fn measure(bench: &mut Bench, group: &Group, loads: &[(Load, Option<Wanted>)]) -> Result<()> {
    let mut networks: Vec<Result<Standing, String>> = Vec::new();
    step::timed(&format!("guests boot: {}", group.name), || {
        for (number, kind) in group.kinds.iter().enumerate() {
            interrupt::check()?;
            networks.push(Standing::start(*kind, number).map_err(|error| first_line(&error)));
        }
        Ok(())
    })?;
    for (load, wanted) in loads {
        let rounds = bench.rounds(if wanted.is_some() { ROUNDS } else { FEWER_ROUNDS });
        let time = bench.seconds(if wanted.is_some() { 4 } else { 2 });
        let mut line = empty_line(group, *load, *wanted);
        for round in 0..rounds {
            for turn in 0..networks.len() {
                interrupt::check()?;
                // Each one comes first in some round: whoever does may find the machine still busy with the others.
                let number = (round + turn) % networks.len();
                let side = &mut line.sides[number];
                let figure = match &mut networks[number] {
                    Ok(network) => load.run(network, time).map_err(|error| first_line(&error)),
                    Err(reason) => Err(reason.clone()),
                };
                match figure {
                    Ok(figure) => side.rounds.push(figure),
                    Err(reason) => side.trouble = Some(reason),
                }
            }
        }
        interrupt::check()?;
        bench.add(line)?;
    }
    Ok(())
}

fn empty_line(group: &Group, load: Load, wanted: Option<Wanted>) -> Line {
    let others = (0..group.kinds.len()).filter(|number| *number != group.reference);
    let comparison = |of: usize| {
        let wanted = wanted.filter(|_| group.kinds[of].is_ours());
        Comparison { of, with: group.reference, wanted }
    };
    Line {
        name: group.line(load),
        unit: load.unit(),
        sides: group.kinds.iter().map(|kind| Side::new(kind.title())).collect(),
        comparisons: others.map(comparison).collect(),
    }
}

/// Errors of guests carry the ends of their logs, which do not belong into a table.
fn first_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    eprintln!("   {text}");
    text.lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_compare_with_what_is_not_ours() {
        for group in GROUPS {
            assert!(!group.kinds[group.reference].is_ours(), "{}", group.name);
        }
    }

    #[test]
    fn names_are_all_different() {
        let mut names = names();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
