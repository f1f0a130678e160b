//! `cargo xtask bench plug`: our VDE library beside Debian's.
//!
//! Each side of a line (`plug/plan.rs`) is a network of its own with a process for each end (`plug/stage.rs`; the process is
//! `vde-load`, or `load-c` over a C library, both in `tests/bench/`).

mod plan;
mod stage;

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::line::{self, Comparison, Spread, Wanted};
use super::{Bench, end};
use crate::{interrupt, places, programs, step};
use plan::Line;
use stage::{Programs, Run, Stage};

/// The names of all lines.
pub fn names() -> Vec<String> {
    plan::lines().into_iter().map(|line| line.name).collect()
}

/// Measures the lines that were asked for.
pub fn run(bench: &mut Bench) -> Result<()> {
    let mut programs = Programs::default();
    step::timed("ends of networks", || {
        programs = build()?;
        Ok(())
    })?;
    let (rounds, time) = if bench.options.quick { (3, 300) } else { (15, 400) };
    for line in plan::lines() {
        if bench.wants(&line.name) {
            let result = measure(&programs, &line, rounds, Duration::from_millis(time))
                .with_context(|| format!("line \"{}\"", line.name))?;
            bench.add(result)?;
        }
    }
    Ok(())
}

/// Builds what the ends of the networks are.
fn build() -> Result<Programs> {
    let over_crate = end::build()?;
    step::run(&mut programs::cargo(&["build", "--profile", "capi", "--locked", "-p", "vdeplug-capi"]))?;
    let our_library = places::target("capi/libvdeplug_capi.so").display().to_string();
    let folder = places::target("bench");
    std::fs::create_dir_all(&folder)?;
    let over_c = folder.join("load-c");
    let source = places::root().join("tests/bench/load.c");
    step::run(
        Command::new("cc").args(["-O2", "-Wall", "-Wextra", "-o"]).arg(&over_c).arg(source).arg("-ldl"),
    )?;
    Ok(Programs { over_crate, over_c, our_library })
}

/// Lets the sides of a line take turns.
fn measure(programs: &Programs, line: &Line, rounds: usize, time: Duration) -> Result<line::Line> {
    let mut stages = Vec::new();
    for side in &line.sides {
        interrupt::check()?;
        let stage = Stage::start(programs, line, side).with_context(|| format!("side \"{}\"", side.title))?;
        stages.push((stage, Vec::new()));
    }
    let count = stages.len();
    for round in 0..rounds {
        for turn in 0..count {
            interrupt::check()?;
            // Each side comes first in some round: whoever does may find the machine still busy with the others.
            let number = (round + turn) % count;
            let (stage, runs) = &mut stages[number];
            let run = stage.run(time).with_context(|| format!("side \"{}\"", line.sides[number].title))?;
            runs.push(run);
        }
    }
    let sides = line.sides.iter().zip(&stages).map(|(side, (_, runs))| side_of(side.title, runs));
    // Bytes are compared, because sides may differ in the length of their frames.
    let comparison = |(number, side): (usize, &plan::Side)| Comparison {
        of: 0,
        with: number,
        wanted: side.wanted.map(Wanted::AtLeast),
    };
    Ok(line::Line {
        name: line.name.clone(),
        unit: "Mbit/s",
        sides: sides.collect::<Result<_>>()?,
        comparisons: line.sides.iter().enumerate().skip(1).map(comparison).collect(),
    })
}

fn side_of(title: &str, runs: &[Run]) -> Result<line::Side> {
    let median = |figure: fn(&Run) -> f64| Spread::of(runs.iter().map(figure).collect()).median;
    let note = format!(
        " {:.0} frames/s, {:.1} % lost, CPU ns per frame: network {:.0}, ends {:.0}",
        median(|run| run.frames_per_second),
        median(|run| run.lost) * 100.0,
        median(|run| run.network_nanoseconds),
        median(|run| run.end_nanoseconds),
    );
    let mut side = line::Side { note, ..line::Side::new(title) };
    side.rounds = runs.iter().map(|run| run.bytes_per_second * 8.0 / 1e6).collect();
    side.details = runs.iter().map(serde_json::to_value).collect::<serde_json::Result<_>>()?;
    Ok(side)
}
