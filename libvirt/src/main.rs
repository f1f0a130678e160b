//! What libvirt runs; see the library's first page.
//!
//! Only a `prepare` may fail: libvirt then does not start the domain, and shows what we said. At any other time the domain
//! runs or has run, and a failure would make libvirt kill it.

use std::io::{IsTerminal, Write, stderr, stdin, stdout};
use std::process::ExitCode;

use vde_libvirt::{Operation, run};

const USAGE: &str = "\
vde-libvirt-hook is run by libvirt: vde-libvirt-hook DOMAIN OPERATION begin|end EXTRA <XML

Install it as a file of hooks, and restart libvirt:
  ln -s /usr/local/bin/vde-libvirt-hook /etc/libvirt/hooks/qemu.d/vde

OPERATION is prepare (starts the back end of the domain's VDE networks), reconnect (starts it again if it is gone) or release
(ends it); nothing is done for others, nor for domains without metadata of urn:vde:libvirt:1. See man vde-libvirt-hook.";

/// Run by hand, with what libvirt would not say.
const MISUSED: u8 = 2;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let (operation, part) = match words.as_slice() {
        [_, _, operation, part, ..] => (operation, part),
        [_, word] if matches!(word.as_str(), "--help" | "-h") => {
            return told(USAGE);
        }
        [_, word] if matches!(word.as_str(), "--version" | "-V") => {
            return told(concat!("vde-libvirt-hook ", env!("CARGO_PKG_VERSION")));
        }
        _ => return misused("DOMAIN, OPERATION and begin or end are missing"),
    };
    if stdin().is_terminal() {
        return misused("the domain's XML has to come on standard input, which is a terminal");
    }
    let operation = Operation::of(operation, part);
    match run(operation, stdin()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            complain(&failure.to_string());
            ExitCode::from(u8::from(operation == Some(Operation::Prepare)))
        }
    }
}

fn told(text: &str) -> ExitCode {
    ExitCode::from(u8::from(writeln!(stdout(), "{text}").is_err()))
}

fn misused(sentence: &str) -> ExitCode {
    complain(&format!("{sentence}; libvirt runs it, see vde-libvirt-hook --help"));
    ExitCode::from(MISUSED)
}

/// If nobody hears it, the exit status still counts.
fn complain(sentence: &str) {
    let _ = writeln!(stderr(), "vde-libvirt-hook: {sentence}");
}
