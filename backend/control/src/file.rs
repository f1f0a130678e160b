//! The file of a capture, as both sides open it.

use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// What does not wait for the reader of a pipe, and means nothing to a file.
const NONBLOCK: i32 = OFlags::NONBLOCK.bits().cast_signed();

/// Makes an empty file, or empties one; only its owner may read what a guest says. Waits for the reader of a pipe.
pub fn create(path: &Path) -> Result<File> {
    empty(path, &mut OpenOptions::new())
}

/// The same for who must not wait: a pipe that nobody reads is refused.
pub fn create_at_once(path: &Path) -> Result<File> {
    let created = empty(path, OpenOptions::new().custom_flags(NONBLOCK));
    let is_pipe = || path.metadata().is_ok_and(|found| found.file_type().is_fifo());
    created.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NXIO) if is_pipe() => Error::other("nobody reads this pipe yet; start its reader first"),
        _ => error,
    })
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
    fn who_must_not_wait_does_not_wait_for_the_reader_of_a_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0)
            .unwrap();
        let error = create_at_once(&path).unwrap_err();
        assert_eq!(error.to_string(), "nobody reads this pipe yet; start its reader first");
        let _reader = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(&path).unwrap();
        create_at_once(&path).unwrap();
        create_at_once(&dir.path().join("file")).unwrap();
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
