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

    /// Writes it, over one that a dead predecessor has left.
    pub fn write(&self) -> Result<(), Failure> {
        std::fs::write(&self.path, &self.text).map_err(|error| {
            let shown = self.path.display();
            Failure::new(Status::System, format_args!("cannot write --pid-file {shown}: {error}"))
        })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if std::fs::read_to_string(&self.path).is_ok_and(|text| text == self.text)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}
