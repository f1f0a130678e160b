//! The counters on a Unix socket: everyone who connects gets the text and the end of the connection.
//!
//! # Theory of operation
//! Connections are taken one after the other. For each the text is made anew; it is written by a thread of its own, so that one
//! that does not read holds up nobody, and for [`SLOW`] at most. Of such there may be [`WRITERS`]; while there are, who
//! connects is turned away with nothing. The socket is for its owner and his group (mode 0660). A left-over one, behind which
//! nobody listens, is replaced; SIGINT, SIGTERM and SIGHUP remove it.

use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::process::umask;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::{Failure, complain};

/// How long a text may take on its way.
const SLOW: Duration = Duration::from_secs(5);
/// How much is written at once.
const PIECE: usize = 4096;
/// How many texts may be on their way.
const WRITERS: usize = 16;

/// Serves until a signal ends it.
pub fn serve(path: &Path, text: impl Fn() -> Result<String, Failure>) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new(format!("cannot listen on {}: {error}", path.display()));
    // Before there is anything to be removed.
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(failed)?;
    let listener = listen(path).map_err(failed)?;
    let made = inode(path).map_err(failed)?;
    let own = path.to_owned();
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            if inode(&own).is_ok_and(|now| now == made) {
                fs::remove_file(&own).ok();
            }
            std::process::exit(0);
        }
    });
    let writers = Arc::new(());
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            // Who hung up while waiting.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        if Arc::strong_count(&writers) > WRITERS {
            continue;
        }
        match text() {
            Ok(text) => {
                let writer = writers.clone();
                thread::spawn(move || {
                    // Who does not read to the end does not want it.
                    write(stream, text.as_bytes(), SLOW).ok();
                    drop(writer);
                });
            }
            Err(failure) => complain(failure),
        }
    }
    Ok(())
}

/// Writes all of it within the limit, however slowly the other end reads.
fn write(mut stream: UnixStream, mut text: &[u8], limit: Duration) -> io::Result<()> {
    let deadline = Instant::now() + limit;
    while !text.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        // The limit is one for each piece that the kernel makes of a long text.
        let count = stream.write(text.get(..PIECE).unwrap_or(text))?;
        text = text.get(count..).unwrap_or_default();
    }
    Ok(())
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let busy = |words: &'static str| Err(io::Error::new(ErrorKind::AddrInUse, words));
    match fs::symlink_metadata(path) {
        Ok(present) if !present.file_type().is_socket() => return busy("it exists and is not a socket"),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path)?,
            Err(error) => return Err(error),
            Ok(_) => return busy("another process listens there"),
        },
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Nobody else may connect even for a moment. No other thread makes files now.
    let before = umask(Mode::from_raw_mode(0o117));
    let listener = UnixListener::bind(path);
    umask(before);
    listener
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_left_over_socket_is_replaced_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sock");
        // Not only closed: a child that another test is starting has it, too, until it is a program.
        let left = UnixListener::bind(&path).unwrap();
        rustix::net::shutdown(&left, rustix::net::Shutdown::Both).unwrap();
        let listener = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(listen(&path).unwrap_err().to_string(), "another process listens there");
        drop(listener);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert_eq!(listen(&path).unwrap_err().to_string(), "it exists and is not a socket");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn who_reads_slowly_is_left_behind() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let text = vec![b'x'; 16 << 20];
        let limit = Duration::from_millis(200);
        let reader = thread::spawn(move || {
            let mut byte = [0];
            // A byte now and then keeps it going no longer.
            while theirs.read(&mut byte).unwrap() > 0 {
                thread::yield_now();
            }
        });
        let start = Instant::now();
        assert!(write(ours, &text, limit).is_err());
        assert!(start.elapsed() >= limit);
        reader.join().unwrap();
    }
}
