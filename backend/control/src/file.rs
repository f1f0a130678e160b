//! The file of a capture, as both sides open it.

use std::fs::{File, OpenOptions};
use std::io::{Error, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

/// Makes an empty file, or empties one; only its owner may read what a guest says.
pub fn create(path: &Path) -> Result<File> {
    // Not emptied before it is known to be ours: two writers would leave nothing that can be read.
    let file = open(path, OpenOptions::new().write(true).create(true).truncate(false))?;
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Opens one that somebody was writing when he died, to go on at its end; it can be read as well, if it is a file. Does not
/// wait for the reader of a pipe.
pub fn resume(path: &Path) -> Result<File> {
    let is_file = path.metadata().map_or(true, |found| found.is_file());
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    open(path, OpenOptions::new().read(is_file).append(true).create(is_file).custom_flags(nonblocking))
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
