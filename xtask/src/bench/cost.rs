//! `cargo xtask bench cost`: what a back end uses of the machine.
//!
//! Guests stand as in `guest.rs`; what is looked at is the process that moves their frames: ours, and of QEMU with its own
//! `-netdev vde` the main thread, which does it there. Where there have to be many NICs, or one that is faster than an
//! emulated guest, DPDK's virtio-user is in front of the back end (`virtio_user.rs`). What a start costs is in `start.rs`.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vde_tests::{Switch, places};

use super::back_end::{BackEnd, Nic};
use super::end::{self, End};
use super::guest::load::tcp;
use super::guest::network::{Kind, Standing};
use super::line::{Comparison, Line, Side, Wanted};
use super::virtio_user::network::{FRONT_CORE, PINNED};
use super::virtio_user::testpmd::{Options, Testpmd, virtio_user};
use super::{Bench, start, usage};
use crate::{interrupt, step};

const CPU: &str = "CPU of guest TCP through one vde_switch";
const IDLE: &str = "wake-ups of an idle back end";

const MEMORY: &str = "private memory of each further NIC";
const LOSS: &str = "loss towards the guest at 0.25 M frames/s through vde_switch";

/// Frames in a second, and how long.
const RATE: u64 = 250_000;

/// A front end of DPDK has at most so many NICs.
const PORTS: usize = 32;

/// What a back end counts of frames that it did not drop.
const NOT_DROPPED: [&str; 4] = ["rx_frames", "rx_bytes", "rx_joined", "rx_waited"];

const MEBIBYTE: f64 = 1024.0 * 1024.0;

/// How long an idle back end is watched.
const WATCH: Duration = Duration::from_secs(10);

/// After so long, nothing that came before is on its way any more.
const SETTLED: Duration = Duration::from_secs(2);

/// The names of all lines.
pub fn names() -> Vec<String> {
    [CPU, IDLE, MEMORY, LOSS, start::NAME].map(str::to_owned).to_vec()
}

/// Measures the lines that were asked for.
pub fn run(bench: &mut Bench) -> Result<()> {
    if bench.wants(start::NAME) {
        start::run(bench)?;
    }
    if bench.wants(MEMORY) {
        memory(bench)?;
    }
    if bench.wants(LOSS) {
        loss(bench)?;
    }
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

/// Private memory of a back end with so many NICs that all had frames in both directions.
fn private_memory(count: usize) -> Result<f64> {
    let folder = tempfile::Builder::new().prefix("vdec").tempdir_in("/tmp")?;
    let socket = |nic: usize| folder.path().join(format!("s{nic}"));
    let nic = |nic: usize| Nic { socket: socket(nic), link: "source://1514".into(), queues: 1 };
    let nics: Vec<Nic> = (0..count).map(nic).collect();
    let back_end = BackEnd::start(&places::made("release/vde-source")?, &PINNED, &nics)?;
    let numbers: Vec<usize> = (0..count).collect();
    let mut fronts = Vec::new();
    for (front, numbers) in numbers.chunks(PORTS).enumerate() {
        let devices = numbers.iter().enumerate().map(|(port, nic)| virtio_user(port, &socket(*nic), 1));
        fronts.push(start_front(&format!("memory{front}"), devices.collect(), "io")?);
    }
    for front in &mut fronts {
        front.begin(1)?;
        let before = front.counts()?;
        std::thread::sleep(SETTLED);
        let (rx, tx) = front.counts()?.rates(before);
        ensure!(rx > 0.0 && tx > 0.0, "frames go in one direction only");
        front.end()?;
    }
    Ok(usage::private_bytes(back_end.pid())? as f64)
}

fn start_front(name: &str, devices: Vec<String>, mode: &str) -> Result<Testpmd> {
    let options =
        Options { launcher: &[], core: FRONT_CORE, devices, mode, queues: 1, size: 64, starts: false };
    let mut front = Testpmd::start(name, &options)?;
    front.wait_ready()?;
    Ok(front)
}

fn memory(bench: &mut Bench) -> Result<()> {
    step::timed("sources of frames", end::build)?;
    let counts: &[usize] = if bench.options.quick { &[16] } else { &[16, 64] };
    let mut sides: Vec<Side> = counts
        .iter()
        .map(|count| Side {
            limit: Some(Wanted::AtMost(2.0)),
            ..Side::new(format!("{count} NICs in one process"))
        })
        .collect();
    for _ in 0..bench.rounds(3) {
        let one = private_memory(1)?;
        for (side, count) in sides.iter_mut().zip(counts) {
            interrupt::check()?;
            let many = private_memory(*count)?;
            side.rounds.push((many - one) / (count - 1) as f64 / MEBIBYTE);
            side.note = format!(" the first NIC: {:.1} MiB with the program", one / MEBIBYTE);
        }
    }
    bench.add(Line { name: MEMORY.into(), unit: "MiB", sides, comparisons: Vec::new() })
}

/// A front end that polls, behind a switch that gets frames at a rate that it can forward.
fn loss(bench: &mut Bench) -> Result<()> {
    let load = step::timed("a sender", end::build)?;
    let mut side = Side { limit: Some(Wanted::AtMost(0.0)), ..Side::new("dropped by our back end") };
    let mut switched = Side::new("not delivered, by the switch's doing");
    for _ in 0..bench.rounds(3) {
        interrupt::check()?;
        let switch = Switch::start()?;
        let folder = tempfile::Builder::new().prefix("vdec").tempdir_in("/tmp")?;
        let socket = folder.path().join("s0");
        let nic = Nic { socket: socket.clone(), link: switch.path().display().to_string(), queues: 1 };
        let back_end = BackEnd::start(&places::own_program("vhost-user-vde")?, &[], &[nic])?;
        let mut front = start_front("loss", vec![virtio_user(0, &socket, 1)], "rxonly")?;
        let mut command = Command::new(&load);
        // To everybody: the front end never says where it is.
        let mut sender = End::start(command.arg("plug").arg(switch.path()).args(["64", "1", "0"]))?;
        front.begin(0)?;
        let time = bench.seconds(4);
        sender.tell(&format!("send {} {RATE}", time.as_millis()))?;
        let sent = sender.answer("send", time + end::LIMIT)?.frames as f64;
        front.end()?;
        drop(front);
        let counters = back_end.wait_counters()?;
        let sum = |wanted: &dyn Fn(&str) -> bool| {
            counters.iter().filter(|(name, _)| wanted(name)).map(|(_, count)| *count).sum::<u64>() as f64
        };
        let arrived = sum(&|name| name == "rx_frames");
        let dropped = sum(&|name| name.starts_with("rx_") && !NOT_DROPPED.contains(&name));
        side.rounds.push(dropped / sent * 100.0);
        switched.rounds.push((sent - arrived - dropped) / sent * 100.0);
    }
    bench.add(Line { name: LOSS.into(), unit: "%", sides: vec![side, switched], comparisons: Vec::new() })
}
