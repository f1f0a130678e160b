//! Start-up order and exit status; see the library's first page for the rest.

use std::process::ExitCode;

use clap::Parser;
use vhost_user_vde::cli::{Cli, Config, print_capabilities};
use vhost_user_vde::{Failure, Inherited, Readiness, Status, run};

fn main() -> ExitCode {
    // The conventions for vhost-user programs: whatever else was said is ignored.
    if std::env::args_os().any(|arg| arg == "--print-capabilities") {
        return print_capabilities();
    }
    let cli = Cli::parse();
    env_logger::Builder::new()
        .filter_level(cli.log_level)
        .format(|out, record| {
            use std::io::Write;
            writeln!(out, "vhost-user-vde: {}", record.args())
        })
        .init();
    // SAFETY: nothing was opened before.
    let mut inherited = unsafe { Inherited::claim(&cli.descriptors()) };
    let mut ready = match Readiness::new(cli.ready_fd, &mut inherited) {
        Ok(ready) => ready,
        Err(failure) => return fail(&failure),
    };
    match Config::try_from(cli).and_then(|config| run(config, inherited, &mut ready)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if ready.tell_failure(&failure) => status(failure.status),
        Err(failure) => fail(&failure),
    }
}

fn fail(failure: &Failure) -> ExitCode {
    eprintln!("vhost-user-vde: {}", failure.sentence);
    status(failure.status)
}

fn status(status: Status) -> ExitCode {
    ExitCode::from(status as u8)
}
