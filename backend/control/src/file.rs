//! The file of a capture, as both sides open it.

use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// What does not wait for the reader of a pipe, and means nothing to a file.
const NONBLOCK: i32 = OFlags::NONBLOCK.bits().cast_signed();
/// How long the reader of a pipe may take to begin, who was perhaps started together with us.
const READER_LIMIT: Duration = Duration::from_secs(10);
/// Time between two looks for it.
const PAUSE: Duration = Duration::from_millis(20);

/// Makes an empty file, or empties one; only its owner may read what a guest says. Waits for the reader of a pipe.
pub fn create(path: &Path) -> Result<File> {
    empty(path, &mut OpenOptions::new())
}

/// The same for who is ended by nothing meanwhile: a pipe that nobody comes to read is refused.
pub fn create_soon(path: &Path) -> Result<File> {
    create_within(path, READER_LIMIT)
}

fn create_within(path: &Path, limit: Duration) -> Result<File> {
    let deadline = Instant::now() + limit;
    let is_pipe = || path.metadata().is_ok_and(|found| found.file_type().is_fifo());
    loop {
        match empty(path, OpenOptions::new().custom_flags(NONBLOCK)) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) && is_pipe() => {
                if Instant::now() >= deadline {
                    return Err(Error::other(format!("nobody came to read this pipe within {limit:?}")));
                }
                sleep(PAUSE);
            }
            created => return created,
        }
    }
}

fn empty(path: &Path, options: &mut OpenOptions) -> Result<File> {
    // Not emptied before it is known to be ours: two writers would leave nothing that can be read.
    let file = open(path, options.write(true).create(true).truncate(false))?;
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Opens one that somebody was writing when he died, to go on at its end; it can be read as well, if it is a file. Does not
/// wait for the reader of a pipe.
pub fn resume(path: &Path) -> Result<File> {
    let is_file = path.metadata().map_or(true, |found| found.is_file());
    open(path, OpenOptions::new().read(is_file).append(true).create(is_file).custom_flags(NONBLOCK))
}

fn open(path: &Path, options: &mut OpenOptions) -> Result<File> {
    let file = options.mode(0o600).open(path)?;
    // One that cannot be locked can be written to all the same.
    if let Err(Errno::WOULDBLOCK) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        return Err(Error::other("another capture is being written to it"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reader_of_a_pipe_is_waited_for_and_not_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        let error = create_within(&path, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.to_string(), "nobody came to read this pipe within 50ms");
        std::thread::scope(|scope| {
            let created = scope.spawn(|| create_within(&path, Duration::from_secs(60)));
            let _reader = File::open(&path).unwrap();
            created.join().unwrap().unwrap();
        });
        create_within(&dir.path().join("file"), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_file_has_one_writer() {
        use std::io::Write;
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let mut first = create(&path).unwrap();
        assert_eq!(first.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        first.write_all(b"frames").unwrap();
        let error = create(&path).unwrap_err();
        assert_eq!(error.to_string(), "another capture is being written to it");
        assert_eq!(std::fs::read(&path).unwrap(), b"frames");
        assert!(resume(&path).is_err());
        drop(first);
        resume(&path).unwrap().write_all(b" again").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"frames again");
        create(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }
}
