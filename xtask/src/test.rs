//! `cargo xtask test`: brings what the tests need, then runs all of them.
//!
//! The end-to-end tests use the programs in `target/release`, so those are built first. Cargo runs one test program
//! after the other, and the tests of one in parallel; how many guests boot at a time is the harness's affair
//! (`tests/src/boot_slot.rs`). One failure does not hide the next: all tests run.

use anyhow::Result;

use crate::{deps, image, interrupt, programs, scheduler, step};

/// Options of `cargo xtask test`.
#[derive(clap::Args, Clone)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    deps: deps::Args,
    /// What follows goes to `cargo test`: `-p PACKAGE`, the name of a test, `-- --nocapture`
    #[arg(last = true)]
    cargo: Vec<String>,
}

/// Runs the phases.
pub fn run(args: &Args) -> Result<()> {
    step::timed("packages", || deps::run(&args.deps))?;
    interrupt::watch()?;
    step::timed("our programs", programs::build)?;
    step::timed("test guests", || image::run(&image::Args::default()))?;
    let mut words = vec!["test", "--locked", "--no-fail-fast"];
    if args.cargo.is_empty() {
        words.push("--workspace");
    }
    words.extend(args.cargo.iter().map(String::as_str));
    let _equal = scheduler::Equal::start();
    step::timed("tests", || step::run(&mut programs::cargo(&words)))
}
