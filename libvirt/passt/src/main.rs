//! `vde-passt`: a VDE network where libvirt knows passt only.
//!
//! libvirt starts a program that it finds under the name `passt` for each `<interface>` with `<backend type='passt'/>`, and
//! hands over the text of `<source dev='...'/>` unread. Installed under that name in a directory that comes first on the
//! daemon's `PATH`, this program looks at that text:
//!
//! ```text
//!  --interface names a VDE network ── request ── vhost-user-vde serves the socket; exit 0 once it does
//!  anything else                   ── real ───── becomes the next `passt` on PATH, words untouched
//! ```
//!
//! The back end is a process of its own then. It keeps the PID file that libvirt asks for, in order to end the process with
//! the domain, and ends by itself when QEMU closes the socket, as it does at hot-unplug: libvirt asks that with `--one-off`.

#![forbid(unsafe_code)]

mod real;
mod request;

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use request::Request;

/// A switch that does not answer is given up earlier by the back end.
const LIMIT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let name = words.next().unwrap_or_else(|| "passt".into());
    let words: Vec<OsString> = words.collect();
    let outcome = match request::parse(&words) {
        Ok(Some(request)) => serve(&request),
        Ok(None) => Err(real::exec(&name, &words)),
        Err(sentence) => Err(sentence),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("vde-passt: {sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the back end, and leaves once it serves.
fn serve(request: &Request) -> Result<(), String> {
    let program = vde_start::find().map_err(|error| sentence(&error))?;
    // What back ends that were killed have left there; libvirt removes its own.
    request.directory().map(registry::passt::sweep);
    vde_start::start(request.command(&program)?, LIMIT).map(drop).map_err(|error| sentence(&error))
}

/// An error with its causes.
fn sentence(error: &dyn Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {}", sentence(source)),
    }
}
