//! `vdectl capture`: the frames of a NIC in a file, or in a pipe to a program that shows them.
//!
//! The back end writes: it gets the descriptor, and goes on until a limit or as long as this connection lives. So whatever
//! becomes of us, the file is whole. A signal asks for the end; a second one does not wait for it.

use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use qmp::{Client, Error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Deserialize;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use vde_control::{CaptureEnd, CaptureEnded, CaptureStart, create_capture_file};

use crate::back_end::sentence;
use crate::cli::Capture;
use crate::link::Holder;
use crate::vm::Vm;
use crate::{Failure, Status, complain};

/// How long the back end may take for the end of the file, once we have asked for it: a reader that sleeps is waited
/// for by the back end itself.
const ENDING: Duration = Duration::from_secs(5);

/// Carries it out.
pub fn run(args: &Capture) -> Result<(), Failure> {
    let vm = Vm::find(&args.vm)?;
    let mut holder = Holder::serving(&vm, &args.nic)?;
    if holder.back_end.query_nics()?.iter().any(|nic| nic.id == holder.id && nic.capturing) {
        return Err(Failure::new(format!("{} is being captured already", args.nic)));
    }
    let link = args.link.as_deref().map(|word| holder.link(word)).transpose()?.map(|link| link.id);
    let order =
        CaptureStart { nic: holder.id, link, max_bytes: args.max_bytes, max_seconds: args.max_seconds };
    // Not before all else is known to be right: this empties a file.
    let file = open(&args.file)?;
    // A pipe is open once somebody reads it; until then a signal ends us as any other program.
    let signals = signals().map_err(|error| Failure::new(format!("cannot wait for signals: {error}")))?;
    holder.back_end.capture_start(&order, file.as_fd())?;
    drop(file);
    complain(format_args!("capturing {}, Ctrl-C ends it", args.nic));
    let client = holder.back_end.client();
    client.forget_events();
    report(wait(client, &order.nic, signals)?, &args.file)
}

/// What the frames are written to.
fn open(path: &Path) -> Result<OwnedFd, Failure> {
    if path == Path::new("-") {
        let output = io::stdout();
        if output.is_terminal() {
            let sentence = "standard output is a terminal, which cannot show frames: name a file, or pipe it to \
                'tshark -r -' or 'tcpdump -r -'";
            return Err(Failure { status: Status::Usage, sentence: sentence.into() });
        }
        let failed = |error| Failure::new(format!("standard output is of no use: {error}"));
        return output.as_fd().try_clone_to_owned().map_err(failed);
    }
    let failed = |error| Failure::new(format!("cannot write to {}: {error}", path.display()));
    create_capture_file(path).map(OwnedFd::from).map_err(failed)
}

/// Readable when somebody wants us to end.
fn signals() -> io::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// Waits for the end of the capture.
fn wait(client: &mut Client, nic: &str, mut signals: UnixStream) -> Result<CaptureEnded, Failure> {
    let lost = |error| match error {
        Error::Closed => Failure::new("the back end has ended, and the capture with it"),
        error => Failure::new(format!("the back end is lost, and the capture with it: {}", sentence(&error))),
    };
    let mut asked = false;
    loop {
        while let Some(event) = client.next_event(Duration::ZERO).map_err(lost)? {
            let ended = (event.name == "CAPTURE_ENDED").then(|| CaptureEnded::deserialize(event.data).ok());
            if let Some(ended) = ended.flatten().filter(|ended| ended.nic == nic) {
                return Ok(ended);
            }
        }
        let limit = Timespec::try_from(ENDING).ok().filter(|_| asked);
        let mut fds = [PollFd::new(client, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match poll(&mut fds, limit.as_ref()) {
            Ok(0) => return Err(Failure::new("the back end does not end the capture")),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::new(format!("cannot wait for the back end: {errno}"))),
        }
        if signals.read(&mut [0; 16]).is_ok() {
            if asked {
                return Err(Failure::new("not waited for; the back end ends the capture by itself"));
            }
            asked = true;
            match client.execute("capture-stop", serde_json::json!({ "nic": nic })) {
                // It had ended by itself, and says so next.
                Ok(_) | Err(Error::Command { .. }) => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }
}

/// Says what there is now. Who has stopped reading knows.
fn report(ended: CaptureEnded, path: &Path) -> Result<(), Failure> {
    let CaptureEnded { reason, error, frames, lost, .. } = ended;
    let counts = format!("{frames} frames captured, {lost} lost");
    match reason {
        CaptureEnd::ReaderGone => {}
        CaptureEnd::Failed => {
            let name = if path == Path::new("-") { "standard output".into() } else { path.to_string_lossy() };
            let error = error.unwrap_or_default();
            return Err(Failure::new(format!("{name} takes no more ({error}): {counts}")));
        }
        CaptureEnd::NicDeleted => complain(format_args!("{counts}; the NIC was taken out")),
        CaptureEnd::Stopped | CaptureEnd::MaxBytes | CaptureEnd::MaxSeconds => complain(counts),
    }
    Ok(())
}
