//! The VMs that are there, and cleaning up after those that are not.
//!
//! A VM is alive if its process is, or if its back end or its monitor takes a connection. It is asked for in this order,
//! because a connection costs the other side something, a monitor most.
//!
//! What is left of a VM that is not alive is removed once it is a minute old: who has just begun may be a process that we do
//! not see, in another PID namespace, whose sockets are not there yet. A directory without a record is removed only if it is
//! empty: whoever uses one has something in it.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::geteuid;

use crate::Error;
use crate::directory::{self, CONTROL, MONITOR, remove};
use crate::lock::Lock;
use crate::passt;
use crate::place::{self, DOMAINS};
use crate::process::{Process, listener};
use crate::record::{RECORD, Record};

/// Who starts a VM has its sockets ready by then, or never will.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A VM that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its directory.
    pub directory: PathBuf,
    /// What was said of it when it began.
    pub record: Record,
    /// The control sockets of its back ends. Only a domain of the passt door may have more than one.
    pub controls: Vec<PathBuf>,
    /// Its process, as far as it can be told.
    pub pid: Option<u32>,
}

impl Entry {
    /// Reads a directory; `None` if there is no VM behind it.
    fn read(path: &Path) -> Option<Self> {
        let record = Record::read(&directory::open(path).ok()?).ok()?;
        let process = record.process.filter(Process::is_alive).map(|process| process.pid);
        let pid = match process {
            Some(pid) => Some(pid),
            // It has gone to the background.
            None => {
                let monitor = record.monitor().and_then(|socket| listener(&socket));
                let back_end = || record.control.as_deref().and_then(listener);
                monitor.or_else(|| back_end().map(|_| None))?
            }
        };
        let controls = record.control.iter().cloned().collect();
        Some(Self { directory: path.into(), record, controls, pid })
    }

    /// Writes the record anew, after it was changed.
    ///
    /// # Errors
    /// Those of the system.
    pub fn update(&self) -> Result<(), Error> {
        let failed = |source| Error::Write { path: self.directory.join(RECORD), source };
        directory::write(&self.directory, RECORD, &self.record.to_json()).map_err(failed)
    }

    /// Keeps others from changing this VM, once those who do have finished.
    ///
    /// # Errors
    /// [`Error::Busy`] after ten seconds, [`Error::Gone`] if there is no such VM any more.
    pub fn lock(&self) -> Result<Lock, Error> {
        Lock::take(&self.directory)
    }
}

/// The VMs of this user, oldest first. What is left of others is removed.
pub fn entries() -> Vec<Entry> {
    // Where it is not safe, there is no VM of ours.
    let places = place::places().into_iter().filter(|place| place::check(place).is_ok());
    let mut entries: Vec<Entry> = places.flat_map(|place| entries_at(&place)).collect();
    let known: Vec<Option<String>> = entries.iter().map(|entry| entry.record.name.clone()).collect();
    entries.extend(passt::entries().into_iter().map(|mut entry| {
        // What QEMU's user has made is in nobody's way.
        if known.contains(&entry.record.name) {
            entry.record.name = entry.record.name.map(|name| name + "/passt");
        }
        entry
    }));
    entries.sort_by(|a, b| (a.record.since, &a.directory).cmp(&(b.record.since, &b.directory)));
    entries
}

fn entries_at(place: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    for path in directories(place) {
        match Entry::read(&path) {
            Some(entry) => entries.push(entry),
            None => clean(&path),
        }
    }
    entries
}

/// Removes what is left of VMs that are not there any more.
pub fn sweep(place: &Path) {
    directories(place).for_each(|path| clean(&path));
}

/// The directories of VMs: those named by a process, and those of libvirt's domains.
fn directories(place: &Path) -> impl Iterator<Item = PathBuf> {
    let domains = place.join(DOMAINS);
    let domains = place::check(&domains).is_ok().then(|| ours_in(&domains));
    ours_in(place).filter(|path| maker(path).is_some()).chain(domains.into_iter().flatten())
}

/// The directories in this one that are ours.
fn ours_in(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| {
        fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == geteuid().as_raw())
    })
}

/// The number of the process that made a directory.
fn maker(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.split('-').next()?.parse().ok()
}

/// Removes a directory if it is old and there is nobody behind it.
fn clean(path: &Path) {
    let age = || fs::symlink_metadata(path).ok()?.modified().ok()?.elapsed().ok();
    if age().is_none_or(|age| age <= START_LIMIT) {
        return;
    }
    if fs::symlink_metadata(path.join(RECORD)).is_err() {
        // Who uses it has sockets in it. Who died before that may have left a file.
        if maker(path).is_none_or(|pid| Process::of(pid).is_none()) && !has_sockets(path) {
            remove(path).ok();
        }
        return;
    }
    // Also where the record is no good.
    let answers = |name| listener(&path.join(name)).is_some();
    if Entry::read(path).is_none() && !answers(CONTROL) && !answers(MONITOR) {
        // What cannot be removed is no less there.
        remove(path).ok();
    }
}

fn has_sockets(path: &Path) -> bool {
    let is_socket = |entry: fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_socket());
    fs::read_dir(path).into_iter().flatten().flatten().any(is_socket)
}

#[cfg(test)]
mod tests;
