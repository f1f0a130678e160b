//! `cargo xtask fuzz`: the fuzz targets of `tests/fuzz`, for a while each.
//!
//! libFuzzer wants its counters compiled in; the flags for that are those of cargo-fuzz, which need no nightly
//! compiler as long as no sanitizer is asked for (there is little for one to find: of what the targets call only the ring has
//! unsafe code). A C++ compiler builds libFuzzer itself.
//!
//! The corpus in the source tree is what each run begins with. What is found beside it stays under `target/fuzz`, until
//! `--keep` adds those inputs that reach code which no other one reaches.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{interrupt, places, programs, step};

/// What cargo-fuzz passes with `--sanitizer none`.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// Longer inputs make a run slower and find nothing: every length that matters is written in the input.
const INPUT_MAX: &str = "-max_len=1024";

/// Options of `cargo xtask fuzz`.
#[derive(clap::Args, Clone)]
#[group(skip)]
pub struct Args {
    /// Only this target: the name of a file in tests/fuzz/targets
    target: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Then add to the corpus in the source tree what reached new code
    #[arg(long)]
    keep: bool,
}

/// Builds the targets and runs them one after the other; stops at the first that fails.
pub fn run(args: &Args) -> Result<()> {
    let targets = targets(args.target.as_deref())?;
    interrupt::watch()?;
    // Named so that the flags go to the targets and not to what is run while building.
    let triple = step::output(Command::new("rustc").args(["--print", "host-tuple"]))?.trim().to_owned();
    step::timed("fuzz targets", || {
        let mut build = programs::cargo(&["build", "--release", "--locked", "--target", &triple]);
        build.current_dir(places::root().join("tests/fuzz")).env("CARGO_TARGET_DIR", places::target("fuzz"));
        step::run(build.env("RUSTFLAGS", FLAGS))
    })?;
    for target in targets {
        interrupt::check()?;
        let program = places::target("fuzz").join(&triple).join("release").join(&target);
        step::timed(&target, || fuzz(&program, &target, args))?;
    }
    Ok(())
}

/// The targets that there are, or the one that was asked for.
fn targets(only: Option<&str>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for file in places::root().join("tests/fuzz/targets").read_dir()? {
        names.extend(file?.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort_unstable();
    if let Some(only) = only {
        if !names.iter().any(|name| name == only) {
            bail!("there is no fuzz target {only}; there are {}", names.join(", "));
        }
        names.retain(|name| name == only);
    }
    Ok(names)
}

fn fuzz(program: &Path, target: &str, args: &Args) -> Result<()> {
    let kept = places::root().join("tests/fuzz/corpus").join(target);
    let found = folder("corpus", target)?;
    let crashes = folder("crashes", target)?;
    let flags = [
        INPUT_MAX.to_owned(),
        format!("-artifact_prefix={}/", crashes.display()),
        format!("-max_total_time={}", args.seconds),
        // Inputs take microseconds; a process that has to wait for a busy machine must not look like a find.
        "-timeout=20".to_owned(),
    ];
    std::fs::create_dir_all(&kept)?;
    quietly(Command::new(program).args(flags).arg(&found).arg(&kept), target)
        .with_context(|| format!("an input that should be a unit test is in {}", crashes.display()))?;
    if args.keep {
        // Without counters an input counts as new for the code it reaches, not for how often: a few dozen are kept.
        let flags = ["-merge=1", "-use_counters=0", INPUT_MAX];
        quietly(Command::new(program).args(flags).arg(&kept).arg(&found), &format!("{target}.merge"))?;
    }
    Ok(())
}

/// Runs a target with a log for what it says, which is much.
fn quietly(command: &mut Command, name: &str) -> Result<()> {
    let log = folder("logs", "")?.join(name);
    let file = File::create(&log).with_context(|| format!("{} cannot be written", log.display()))?;
    step::run(command.stdout(file.try_clone()?).stderr(file))
        .with_context(|| format!("read {} to see why", log.display()))
}

/// A folder under `target/fuzz`.
fn folder(kind: &str, target: &str) -> Result<PathBuf> {
    let folder = places::target("fuzz").join(kind).join(target);
    std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    Ok(folder)
}
