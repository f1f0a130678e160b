//! Files that become guest memory, one VM each.
//!
//! QEMU maps a file of `-mem-path` for itself, unless it is told to share it, and so two VMs can begin with the same one.
//! A VDE NIC needs it shared. So such a file is locked, by a descriptor that QEMU inherits and that is open as long as the
//! VM is there. One that we make is nobody else's to read, since the guest's memory stays in it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::Error;
use crate::spawn::sys;

/// The files that were locked; those that were made go again when this is dropped, which a process that becomes QEMU
/// never does.
#[derive(Debug, Default)]
pub struct MemoryFiles {
    locked: Vec<File>,
    made: Vec<PathBuf>,
}

impl MemoryFiles {
    /// Locks all of them; those that are no plain files have no need of it.
    pub fn lock(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut files = Self::default();
        for (at, path) in paths.iter().enumerate() {
            let found = fs::metadata(path);
            // One that stands there twice is shared within the VM.
            if paths[..at].contains(path) || found.as_ref().is_ok_and(|found| !found.is_file()) {
                continue;
            }
            let failed = |source| Error::MemoryPath { path: path.display().to_string(), source };
            let open =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
            let file = open.map_err(failed)?;
            if found.is_err() {
                files.made.push(path.clone());
            }
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => files.locked.push(file),
                Err(Errno::WOULDBLOCK) => return Err(files.taken(path)),
                Err(errno) => return Err(failed(io::Error::from(errno))),
            }
        }
        Ok(files)
    }

    fn taken(&mut self, path: &Path) -> Error {
        // Whoever has the lock has made it in this very moment.
        self.made.retain(|made| made != path);
        Error::MemoryTaken { path: path.display().to_string() }
    }

    /// Lets QEMU inherit the locks.
    pub fn keep_through_exec(&self) -> Result<(), Error> {
        self.locked.iter().try_for_each(sys::keep_through_exec)
    }
}

impl Drop for MemoryFiles {
    fn drop(&mut self) {
        for path in &self.made {
            fs::remove_file(path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_file_is_one_vms_and_goes_with_a_start_that_fails() {
        let dir = tempfile::tempdir().unwrap();
        let (path, directory) = (dir.path().join("ram"), dir.path().to_owned());
        let paths = [path.clone(), directory, path.clone()];
        let first = MemoryFiles::lock(&paths).unwrap();
        assert_eq!((first.locked.len(), fs::metadata(&path).unwrap().mode() & 0o777), (1, 0o600));
        let refused = MemoryFiles::lock(&paths).unwrap_err().to_string();
        assert!(refused.contains("ram is the memory of another VM"), "{refused}");
        assert!(path.exists(), "it is the other's");
        first.keep_through_exec().unwrap();
        drop(first);
        assert!(!path.exists(), "there was no exec");
        fs::write(&path, "precious").unwrap();
        drop(MemoryFiles::lock(&paths).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"precious", "it was there before");
        assert!(matches!(MemoryFiles::lock(&[dir.path().join("no/ram")]), Err(Error::MemoryPath { .. })));
    }
}
