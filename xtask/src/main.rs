//! `cargo xtask`: everything around the programs that is more than one command of Cargo.
//!
//! | command | what it does |
//! |---|---|
//! | `demo` | two guests on a switch through `vdeq`, next to QEMU's own `-netdev vde` |
//! | `test` | everything: packages, programs, guests, all tests |
//! | `bench` | how fast frames pass, ours beside Debian's (`bench/`, `docs/bench.md`) |
//! | `fuzz` | the fuzz targets, for a while each (`fuzz.rs`, `tests/fuzz`) |
//! | `deps` | installs what the demo and the tests need (`deps/`) |
//! | `image` | builds the test guests from Debian packages (`image/`, recipe in `images/`) |
//!
//! Everything that is made lies under `target/`; nothing is changed on the machine but the Debian packages
//! that `deps` names before it installs them, and how the processor is shared while the tests run (`scheduler.rs`).

#![forbid(unsafe_code)]

mod bench;
mod demo;
mod deps;
mod fuzz;
mod image;
mod interrupt;
mod places;
mod programs;
mod scheduler;
mod step;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Demo, tests, figures, test guests and what they need.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show two guests talking over a VDE network, with figures
    Demo(demo::Args),
    /// Run all tests
    Test(test::Args),
    /// Measure, and show the figures side by side
    Bench(bench::Args),
    /// Run the fuzz targets
    Fuzz(fuzz::Args),
    /// Install the Debian packages that demo and tests need, and unpack QEMU 7.2 and libvirt under target/
    Deps(deps::Args),
    /// Build the test guests: target/image/6.1, 6.12 and 6.1-full
    Image(image::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Deps(args) => step::timed("packages", || deps::run(&args)),
        Command::Image(args) => step::timed("test guests", || image::run(&args)),
    };
    match (result, interrupt::seen()) {
        (Ok(()), _) => ExitCode::SUCCESS,
        (Err(_), Some(signal)) => ExitCode::from(128 + signal),
        (Err(error), None) => {
            eprintln!("cargo xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn cli_all_commands_are_consistent() {
        super::Cli::command().debug_assert();
    }
}
