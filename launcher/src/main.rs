//! The program `vdeq`: hands the process's own argument list to the library and ends with its status.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(vdeq::spawn::run(std::env::args_os()))
}
