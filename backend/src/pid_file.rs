//! Our process number in a file, for whoever has to end us later.
//!
//! The file is there before anybody hears that all is up, and goes at the end: a number that stays behind is some day that of
//! another process. A file that a successor has written meanwhile is left alone.

use std::path::PathBuf;

use crate::{Failure, Status};

/// The file; removed on drop.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    text: String,
}

impl PidFile {
    /// Is to have the number of this process in it, and not that of one that it forks.
    pub fn new(path: PathBuf) -> Self {
        Self { path, text: format!("{}\n", std::process::id()) }
    }

    /// Writes it, over one that a dead predecessor has left. One that has our number stays as it is: a worker that is
    /// killed half-way through writing leaves an empty file, which nobody takes for ours and removes.
    pub fn write(&self) -> Result<(), Failure> {
        if self.is_written() {
            return Ok(());
        }
        std::fs::write(&self.path, &self.text).map_err(|error| {
            let shown = self.path.display();
            Failure::new(Status::System, format_args!("cannot write --pid-file {shown}: {error}"))
        })
    }

    fn is_written(&self) -> bool {
        std::fs::read_to_string(&self.path).is_ok_and(|text| text == self.text)
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if self.is_written()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn our_number_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        std::fs::write(&path, "1 2 3\n").unwrap();
        let file = PidFile::new(path.clone());
        file.write().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        std::fs::File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_modified(SystemTime::UNIX_EPOCH)
            .unwrap();
        file.write().unwrap();
        assert_eq!(path.metadata().unwrap().modified().unwrap(), SystemTime::UNIX_EPOCH);
        drop(file);
        assert!(!path.exists());
    }
}
