//! `cargo xtask bench plug`: how fast frames pass, ours beside Debian's.
//!
//! A *line* of the table is one load (`plan.rs`), which is carried by several *sides*: ours first, then what it is
//! compared with. Each side is a network of its own with a process for each end (`stage.rs`; the process is
//! `vde-load`, or `load-c` over a C library, both in `tests/bench/`). All sides of a line stand there at the same time,
//! asleep, and take turns in short rounds, because a machine that grows warmer or busier meanwhile must not favour one of them.
//! What is compared is the rounds: the ratio is the median of the ratios of rounds that followed each other
//! (`figures.rs`). `docs/bench.md` says how to read it.
//!
//! Of Debian's packages it wants what `cargo xtask deps` installs, and a C compiler; what is missing is named.
//!
//! A figure never fails the command: what is below what we want is marked, and a person judges.

mod facts;
mod figures;
mod plan;
mod stage;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{interrupt, places, programs, step};
use figures::{LineResult, Report};
use plan::Line;
use stage::{Programs, Stage};

/// Options of `cargo xtask bench`.
#[derive(clap::Args, Clone)]
#[group(skip)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Clone)]
enum What {
    /// The VDE library: client, nodes and pairs, beside Debian's
    Plug(PlugArgs),
}

#[derive(clap::Args, Clone)]
struct PlugArgs {
    /// Three rounds instead of fifteen: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    /// Only the lines whose names contain this; --list shows them
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Show the names of the lines, and measure nothing
    #[arg(long)]
    list: bool,
    /// Also write all figures of all rounds to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs what was asked for.
pub fn run(args: &Args) -> Result<()> {
    let What::Plug(args) = &args.what;
    let wanted = |line: &Line| args.only.as_ref().is_none_or(|text| line.name.contains(text.as_str()));
    let lines: Vec<Line> = plan::lines().into_iter().filter(wanted).collect();
    if lines.is_empty() {
        bail!("no line has this name; see them all with: cargo xtask bench plug --list");
    }
    if args.list {
        lines.iter().for_each(|line| println!("{}", line.name));
        return Ok(());
    }
    interrupt::watch()?;
    let mut programs = Programs::default();
    step::timed("our programs", || {
        programs = build()?;
        Ok(())
    })?;
    let (rounds, time) = if args.quick { (3, 300) } else { (15, 400) };
    let mut report = Report { facts: facts::read()?, lines: Vec::new(), load_average_after: String::new() };
    println!("\n{}\n{}", report.facts, figures::HEADING);
    for line in &lines {
        let result = measure(&programs, line, rounds, Duration::from_millis(time))
            .with_context(|| format!("line \"{}\"", line.name))?;
        println!("{result}");
        report.lines.push(result);
    }
    report.load_average_after = facts::load_average()?;
    // Part of it is our own, the ends that want to run: what matters is how it compares with a run on an idle machine.
    println!("load average at the end: {}", report.load_average_after);
    if let Some(file) = &args.json {
        std::fs::write(file, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("{} cannot be written", file.display()))?;
    }
    Ok(())
}

/// Builds what the ends of the networks are.
fn build() -> Result<Programs> {
    step::run(&mut programs::cargo(&["build", "--release", "--locked", "-p", "vde-bench"]))?;
    step::run(&mut programs::cargo(&["build", "--profile", "capi", "--locked", "-p", "vdeplug-capi"]))?;
    let our_library = places::target("capi/libvdeplug_capi.so").display().to_string();
    let folder = places::target("bench");
    std::fs::create_dir_all(&folder)?;
    let over_c = folder.join("load-c");
    let source = places::root().join("tests/bench/load.c");
    step::run(
        Command::new("cc").args(["-O2", "-Wall", "-Wextra", "-o"]).arg(&over_c).arg(source).arg("-ldl"),
    )?;
    Ok(Programs { over_crate: places::target("release/vde-load"), over_c, our_library })
}

/// Lets the sides of a line take turns.
fn measure(programs: &Programs, line: &Line, rounds: usize, time: Duration) -> Result<LineResult> {
    let mut stages = Vec::new();
    for side in &line.sides {
        interrupt::check()?;
        let stage = Stage::start(programs, line, side).with_context(|| format!("side \"{}\"", side.title))?;
        stages.push(stage);
    }
    let mut result = LineResult::new(line);
    for round in 0..rounds {
        for turn in 0..stages.len() {
            interrupt::check()?;
            // Each side comes first in some round: whoever does may find the machine still busy with the others.
            let number = (round + turn) % stages.len();
            let side = &mut result.sides[number];
            let run = stages[number].run(time).with_context(|| format!("side \"{}\"", side.title))?;
            side.rounds.push(run);
        }
    }
    Ok(result)
}
