//! `cargo xtask bench cost`: what a back end uses of the machine.
//!
//! Guests stand as in `guest.rs`; what is looked at is the process that moves their frames: ours, and of QEMU with its own
//! `-netdev vde` the main thread, which does it there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::guest::load::tcp;
use super::guest::network::{Kind, Standing};
use super::line::{Comparison, Line, Side, Wanted};
use super::{Bench, usage};
use crate::{interrupt, step};

const CPU: &str = "CPU of guest TCP through one vde_switch";
const IDLE: &str = "wake-ups of an idle back end";

/// How long an idle back end is watched.
const WATCH: Duration = Duration::from_secs(10);

/// After so long, nothing that came before is on its way any more.
const SETTLED: Duration = Duration::from_secs(2);

/// The names of all lines.
pub fn names() -> Vec<String> {
    [CPU, IDLE].map(str::to_owned).to_vec()
}

/// Measures the lines that were asked for.
pub fn run(bench: &mut Bench) -> Result<()> {
    if !bench.wants(CPU) && !bench.wants(IDLE) {
        return Ok(());
    }
    let mut networks = step::timed("guests boot", || {
        Ok([Standing::start(Kind::VdeSwitch, 0)?, Standing::start(Kind::QemuVde, 1)?])
    })?;
    if bench.wants(CPU) {
        cpu(bench, &mut networks)?;
    }
    if bench.wants(IDLE) {
        idle(bench, &networks[0])?;
    }
    Ok(())
}

/// Nanoseconds of CPU so far: of our back ends, and of the main threads of the QEMUs.
struct Used {
    back_ends: u64,
    main_threads: u64,
}

fn used(network: &Standing) -> Result<Used> {
    let mut used = Used { back_ends: 0, main_threads: 0 };
    for back_end in &network.back_ends {
        used.back_ends += usage::cpu_nanoseconds(back_end.pid())?;
    }
    for guest in &network.guests {
        used.main_threads += usage::main_thread_nanoseconds(guest.pid())?;
    }
    Ok(used)
}

fn cpu(bench: &mut Bench, networks: &mut [Standing; 2]) -> Result<()> {
    let (rounds, time) = (bench.rounds(9), bench.seconds(4));
    let titles = ["our back ends", "our back ends and QEMU's main threads", "QEMU -netdev vde, main threads"];
    let mut sides = titles.map(Side::new);
    for round in 0..rounds {
        for turn in 0..networks.len() {
            interrupt::check()?;
            let number = (round + turn) % networks.len();
            let network = &mut networks[number];
            let before = used(network)?;
            let carried = tcp(network, 1, false, time)?;
            let after = used(network)?;
            ensure!(carried.bytes > 0.0, "no byte arrived");
            let per_gib = |nanoseconds: u64| nanoseconds as f64 / 1e9 / carried.bytes * f64::from(1 << 30);
            let main_threads = after.main_threads - before.main_threads;
            if number == 0 {
                let back_ends = after.back_ends - before.back_ends;
                sides[0].rounds.push(per_gib(back_ends));
                sides[1].rounds.push(per_gib(back_ends + main_threads));
            } else {
                sides[2].rounds.push(per_gib(main_threads));
            }
        }
    }
    let comparisons = vec![
        Comparison { of: 0, with: 2, wanted: Some(Wanted::AtMost(0.5)) },
        Comparison { of: 1, with: 2, wanted: None },
    ];
    bench.add(Line { name: CPU.into(), unit: "s/GiB", sides: sides.into(), comparisons })
}

/// Nobody talks; whoever wakes up anyway does so for nothing.
fn idle(bench: &mut Bench, network: &Standing) -> Result<()> {
    let back_end = network.back_ends.first().context("a back end")?;
    let mut side = Side { limit: Some(Wanted::AtMost(0.0)), ..Side::new("our back end, its guest idle") };
    std::thread::sleep(SETTLED);
    for _ in 0..bench.rounds(3) {
        let before = usage::wake_ups(back_end.pid())?;
        std::thread::sleep(WATCH);
        interrupt::check()?;
        let after = usage::wake_ups(back_end.pid())?;
        side.rounds.push((after - before) as f64 / WATCH.as_secs_f64());
    }
    bench.add(Line { name: IDLE.into(), unit: "per second", sides: vec![side], comparisons: Vec::new() })
}
