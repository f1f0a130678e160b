//! `cargo xtask bench micro`: parts of the data path by themselves.
//!
//! Two kinds of figures: times, from the criterion benches that crates have under `benches/`, and instructions of the whole back end
//! for a frame, counted by valgrind. Instructions hardly differ from run to run, on whatever machine: they show a
//! change of one in a hundred, which times do not.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use vde_tests::places as made;

use super::Bench;
use super::back_end::{BackEnd, Nic};
use super::end;
use super::line::{Line, Side};
use super::virtio_user::network::FRONT_CORE;
use super::virtio_user::testpmd::{Options, Testpmd, virtio_user};
use crate::{interrupt, places, programs, step};

/// Crates whose benches are run.
const CRATES: [&str; 2] = ["backend/offload", "backend/vring"];

/// What is counted: a name, the program, the link, what the front end does, and the counter of its frames.
const COUNTED: [(&str, &str, &str, &str, &str); 2] = [
    ("instructions, to null://, 64 B", "vhost-user-vde", "null://", "txonly", "tx_frames"),
    ("instructions, from a generator, 64 B", "vde-source", "source://64", "rxonly", "rx_frames"),
];

/// How long frames are counted.
const COUNT_TIME: Duration = Duration::from_secs(3);

/// The benches there are: the file's stem.
fn benches() -> Vec<String> {
    let folders =
        CRATES.iter().filter_map(|room| std::fs::read_dir(places::root().join(room).join("benches")).ok());
    let files = folders.flatten().flatten().map(|entry| entry.path());
    let mut stems: Vec<String> = files
        .filter(|file| file.extension().is_some_and(|end| end == "rs"))
        .filter_map(|file| Some(file.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    stems.sort();
    stems
}

fn bench_name(stem: &str) -> String {
    format!("benches of {stem}")
}

/// The names of all lines; of benches, what the names of their lines begin with.
pub fn names() -> Vec<String> {
    let counted = COUNTED.iter().map(|(name, ..)| (*name).to_owned());
    benches().iter().map(|stem| bench_name(stem)).chain(counted).collect()
}

/// Measures the lines that were asked for.
pub fn run(bench: &mut Bench) -> Result<()> {
    for stem in benches() {
        if bench.wants(&bench_name(&stem)) {
            criterion(bench, &stem)?;
        }
    }
    for counted in COUNTED {
        if bench.wants(counted.0) {
            instructions(bench, counted)?;
        }
    }
    Ok(())
}

fn criterion(bench: &mut Bench, stem: &str) -> Result<()> {
    let start = SystemTime::now();
    let mut words = vec!["bench", "--locked", "-q", "--bench", stem, "--", "--noplot"];
    if bench.options.quick {
        words.extend(["--warm-up-time", "0.2", "--measurement-time", "0.5"]);
    }
    step::timed(&bench_name(stem), || step::output(&mut programs::cargo(&words)))?;
    let mut results = Vec::new();
    find_results(&places::target("criterion"), start, &mut results)?;
    results.sort();
    ensure!(!results.is_empty(), "the benches of {stem} left no results");
    for folder in results {
        let line = result_line(stem, &folder)?;
        bench.add(line)?;
    }
    Ok(())
}

/// Folders of results that are newer than `start`.
fn find_results(folder: &Path, start: SystemTime, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let path = entry?.path();
        let is_new =
            |file: &Path| file.metadata().and_then(|meta| meta.modified()).is_ok_and(|time| time >= start);
        if path.is_dir() && path.ends_with("new") && is_new(&path.join("estimates.json")) {
            found.push(path);
        } else if path.is_dir() {
            find_results(&path, start, found)?;
        }
    }
    Ok(())
}

/// What criterion found, as nanoseconds, or as GB/s where it knows the bytes.
fn result_line(stem: &str, folder: &Path) -> Result<Line> {
    let read = |name: &str| -> Result<Value> {
        Ok(serde_json::from_str(&std::fs::read_to_string(folder.join(name))?)?)
    };
    let (about, estimates) = (read("benchmark.json")?, read("estimates.json")?);
    let name = about["full_id"].as_str().context("a result of criterion without a name")?;
    let time =
        estimates["median"]["point_estimate"].as_f64().context("a result of criterion without a median")?;
    let (figure, unit) = per(time, &about["throughput"]);
    let side = Side { rounds: vec![figure], ..Side::new(name) };
    Ok(Line {
        name: format!("{}: {name}", bench_name(stem)),
        unit,
        sides: vec![side],
        comparisons: Vec::new(),
    })
}

/// Nanoseconds of one iteration, as criterion's note of what it moves says to show them.
fn per(nanoseconds: f64, throughput: &Value) -> (f64, &'static str) {
    let number = |key: &str| throughput[key].as_f64();
    match (number("Bytes").or_else(|| number("BytesDecimal")), number("Elements")) {
        (Some(bytes), _) => (bytes / nanoseconds, "GB/s"),
        (None, Some(elements)) => (nanoseconds / elements, "ns each"),
        (None, None) => (nanoseconds, "ns"),
    }
}

fn instructions(bench: &mut Bench, counted: (&str, &str, &str, &str, &str)) -> Result<()> {
    let (name, program, link, mode, counter) = counted;
    step::timed("sources of frames", end::build)?;
    let mut side = Side::new("vhost-user-vde");
    for _ in 0..bench.rounds(3) {
        interrupt::check()?;
        let (idle, _) = count(program, link, None)?;
        let (busy, counters) = count(program, link, Some(mode))?;
        let frames = counters.iter().find(|(known, _)| known == counter).map_or(0, |(_, count)| *count);
        ensure!(frames > 0, "no frame passed");
        side.rounds.push(busy.saturating_sub(idle) as f64 / frames as f64);
        side.note = format!(" {frames} frames");
    }
    bench.add(Line { name: name.into(), unit: "per frame", sides: vec![side], comparisons: Vec::new() })
}

/// Instructions of a back end from its start to its end, with a front end meanwhile or without, and its counters.
fn count(program: &str, link: &str, mode: Option<&str>) -> Result<(u64, Vec<(String, u64)>)> {
    let folder = tempfile::Builder::new().prefix("vdem").tempdir_in("/tmp")?;
    let (socket, out) = (folder.path().join("s0"), folder.path().join("callgrind"));
    let file = format!("--callgrind-out-file={}", out.display());
    let launcher = ["taskset", "-c", "1", "valgrind", "--quiet", "--tool=callgrind", &file];
    let nic = Nic { socket: socket.clone(), link: link.into(), queues: 1 };
    let mut back_end = BackEnd::start(&made::made(&format!("release/{program}"))?, &launcher, &[nic])?;
    let mut counters = Vec::new();
    if let Some(mode) = mode {
        let devices = vec![virtio_user(0, &socket, 1)];
        let options =
            Options { launcher: &[], core: FRONT_CORE, devices, mode, queues: 1, size: 64, starts: false };
        let mut front = Testpmd::start("count", &options)?;
        front.wait_ready()?;
        front.begin(0)?;
        std::thread::sleep(COUNT_TIME);
        front.end()?;
        drop(front);
        counters = back_end.wait_counters()?;
    }
    back_end.stop()?;
    let text = std::fs::read_to_string(&out).context("valgrind left no counts")?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")));
    let total = total.and_then(|number| number.trim().parse().ok()).context("valgrind counted nothing")?;
    Ok((total, counters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn per_follows_what_an_iteration_moves() {
        let json = |text| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(per(100.0, &json("null")), (100.0, "ns"));
        assert_eq!(per(100.0, &json(r#"{"Bytes":1000}"#)), (10.0, "GB/s"));
        assert_eq!(per(100.0, &json(r#"{"Elements":4}"#)), (25.0, "ns each"));
    }
}
