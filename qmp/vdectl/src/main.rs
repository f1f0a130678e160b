//! Exit status; see the library's first page for the rest.

use std::process::ExitCode;

use clap::Parser;
use vdectl::cli::Cli;

fn main() -> ExitCode {
    match vdectl::run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            vdectl::complain(&failure);
            ExitCode::from(failure.status as u8)
        }
    }
}
