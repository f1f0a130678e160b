//! `cargo xtask bench`: how fast frames pass, ours beside what else there is.
//!
//! | area | module | what stands side by side |
//! |---|---|---|
//! | `guest` | `guest.rs` | pairs of QEMU guests, and a guest and a namespace |
//! | `virtio-user` | `virtio_user.rs` | DPDK's virtio driver in front of our back end, of DPDK's and of Open vSwitch |
//! | `cost` | `cost.rs`, `start.rs` | CPU, wake-ups and memory of a back end, and what a start costs |
//! | `micro` | `micro.rs` | offloads and rings by themselves, instructions for a frame |
//! | `plug` | `plug.rs` | our VDE library and Debian's |
//!
//! A *line* of the table (`line.rs`) is one load, carried by several *sides*. All sides of a line stand there at the same
//! time, asleep, and take turns in short rounds, because a machine that grows warmer or busier meanwhile must not
//! favour one of them. What is compared is the rounds. `docs/bench.md` says how each line is measured and how to
//! read it.
//!
//! What was measured lies in `target/bench` afterwards, as Markdown and as JSON with every round. A figure never fails
//! the command: what is below what we want is marked, and a person judges. A side that could not be measured does.

mod back_end;
mod cost;
mod end;
mod facts;
mod guest;
mod line;
mod micro;
mod plot;
mod plug;
mod report;
mod start;
mod usage;
mod virtio_user;

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{deps, image, interrupt, programs, step};
use line::Line;
use report::Report;

/// Options of `cargo xtask bench`.
#[derive(clap::Args, Clone)]
#[group(skip)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    area: Option<Area>,
    #[command(flatten)]
    options: Options,
}

/// One part of the table; without one, all.
#[derive(clap::Subcommand, Clone)]
enum Area {
    /// Guest to guest, and guest to namespace: TCP, UDP, round trips, pktgen
    Guest(Options),
    /// Back ends behind DPDK's virtio driver
    VirtioUser(Options),
    /// CPU, wake-ups and memory of a back end, what it loses, and what a start costs
    Cost(Options),
    /// Offloads and rings by themselves, and instructions for a frame
    Micro(Options),
    /// The VDE library: client, nodes and pairs, beside Debian's
    Plug(Options),
}

impl Area {
    fn all(options: &Options) -> Vec<Self> {
        [Self::Guest, Self::VirtioUser, Self::Cost, Self::Micro, Self::Plug]
            .map(|area| area(options.clone()))
            .to_vec()
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::Guest(_) => "guest",
            Self::VirtioUser(_) => "virtio-user",
            Self::Cost(_) => "cost",
            Self::Micro(_) => "micro",
            Self::Plug(_) => "plug",
        }
    }

    const fn options(&self) -> &Options {
        match self {
            Self::Guest(options)
            | Self::VirtioUser(options)
            | Self::Cost(options)
            | Self::Micro(options)
            | Self::Plug(options) => options,
        }
    }

    /// The names of its lines.
    fn lines(&self) -> Vec<String> {
        match self {
            Self::Guest(_) => guest::names(),
            Self::VirtioUser(_) => virtio_user::names(),
            Self::Cost(_) => cost::names(),
            Self::Micro(_) => micro::names(),
            Self::Plug(_) => plug::names(),
        }
    }

    fn measure(&self, bench: &mut Bench) -> Result<()> {
        match self {
            Self::Guest(_) => guest::run(bench),
            Self::VirtioUser(_) => virtio_user::run(bench),
            Self::Cost(_) => cost::run(bench),
            Self::Micro(_) => micro::run(bench),
            Self::Plug(_) => plug::run(bench),
        }
    }
}

#[derive(clap::Args, Clone)]
struct Options {
    /// Few and short rounds: to see that it works, not to quote
    #[arg(long)]
    quick: bool,
    /// Only the lines whose names contain this; --list shows them
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Show the names of the lines, and measure nothing
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    deps: deps::Args,
}

/// What the areas share: what was asked for, and what came out so far.
struct Bench {
    options: Options,
    report: Report,
    /// Sides that could not be measured.
    troubles: usize,
}

impl Bench {
    /// Whether this line was asked for.
    fn wants(&self, name: &str) -> bool {
        self.options.only.as_ref().is_none_or(|text| name.contains(text.as_str()))
    }

    /// How many rounds there are.
    fn rounds(&self, usual: usize) -> usize {
        if self.options.quick { usual.min(2) } else { usual }
    }

    /// How long one is.
    fn seconds(&self, usual: u64) -> Duration {
        Duration::from_secs(if self.options.quick { usual.min(2) } else { usual })
    }

    /// Takes a line that was measured, and shows it.
    fn add(&mut self, line: Line) -> Result<()> {
        println!("{line}");
        self.troubles += line.sides.iter().filter(|side| side.trouble.is_some()).count();
        self.report.lines.push(line);
        // What is there already is not lost when something later fails.
        self.report.write()
    }
}

/// Runs what was asked for.
pub fn run(args: &Args) -> Result<()> {
    let areas = args.area.as_ref().map_or_else(|| Area::all(&args.options), |area| vec![area.clone()]);
    let name = args.area.as_ref().map_or("all", Area::name);
    let options = args.area.as_ref().map_or(&args.options, Area::options);
    let chosen = |line: &String| options.only.as_ref().is_none_or(|text| line.contains(text.as_str()));
    let is_chosen = |area: &Area| area.lines().iter().any(chosen);
    let areas: Vec<Area> = areas.into_iter().filter(is_chosen).collect();
    if areas.is_empty() {
        bail!("no line has this name; see them all with: cargo xtask bench --list");
    }
    if options.list {
        let mut out = std::io::stdout().lock();
        // Whoever reads them may have read enough.
        let _ =
            areas.iter().flat_map(Area::lines).filter(chosen).try_for_each(|line| writeln!(out, "{line}"));
        return Ok(());
    }
    step::timed("packages", || deps::run_for_bench(&options.deps))?;
    interrupt::watch()?;
    step::timed("our programs", programs::build)?;
    step::timed("test guests", || image::run(&image::Args::default()))?;
    let report = Report::new(name, options.quick)?;
    println!("\n{}", report.facts);
    let mut bench = Bench { options: options.clone(), report, troubles: 0 };
    for area in &areas {
        interrupt::check()?;
        area.measure(&mut bench).with_context(|| format!("measuring {}", area.name()))?;
    }
    let files = bench.report.finish()?;
    println!("{files}");
    match bench.troubles {
        0 => Ok(()),
        count => bail!("{count} sides could not be measured; the table says why"),
    }
}
