//! Start-up order and exit status; see the library's first page for the rest.

use std::process::ExitCode;

use clap::Parser;
use vhost_user_vde::cli::{Cli, Config, print_capabilities};
use vhost_user_vde::{Failure, Inherited, Readiness, Status, logging, run};

fn main() -> ExitCode {
    // The conventions for vhost-user programs: whatever else was said is ignored.
    if std::env::args_os().any(|arg| arg == "--print-capabilities") {
        return print_capabilities();
    }
    let cli = Cli::parse();
    logging::start(cli.log_level);
    // SAFETY: nothing was opened before, and no thread is started here.
    let mut inherited = unsafe { Inherited::claim(&cli.descriptors()) };
    if cli.follow_front_end {
        // Who started us goes on its way; what it had open, a monitor for instance, is not to stay open in us.
        // SAFETY: as above.
        unsafe { inherited.close_others() };
    }
    let mut ready = match Readiness::new(cli.ready_fd, &mut inherited) {
        Ok(ready) => ready,
        Err(failure) => return fail(&failure),
    };
    match Config::try_from(cli).and_then(|config| run(config, inherited, &mut ready)) {
        Ok(status) => status,
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
