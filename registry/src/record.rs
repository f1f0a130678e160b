//! What `vm.json` says of a VM.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use serde::{Deserialize, Serialize};

use crate::process::Process;

/// Its name.
pub const RECORD: &str = "vm.json";
/// The most of it that is read; names and paths are short.
const LENGTH_MAX: u64 = 64 << 10;

/// Who made the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Maker {
    /// `vdeq`, which has become the VM.
    Vdeq,
    /// `vdectl`, for a VM that somebody else started.
    Vdectl,
    /// The hook of libvirt, for a domain.
    Libvirt,
    /// Nobody: what there is of a domain of the passt door was found.
    Passt,
}

/// A NIC of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Nic {
    /// What the back end calls it.
    pub id: String,
    /// Its address.
    pub mac: String,
    /// Its model.
    pub model: String,
}

/// Who a VM is. Fields that are not known are passed over, so that the programs of two versions get along.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    /// What it is called, by QEMU's `-name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Path of the emulator.
    pub program: String,
    /// Its process; one that goes to the background has another one later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// Address of a monitor that speaks QMP, as QEMU writes it: `unix:PATH`, `tcp:HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<String>,
    /// Control socket of the back end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<PathBuf>,
    /// Its NICs, where no monitor tells them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
    /// Who made this.
    pub made_by: Maker,
    /// When, in seconds since 1970.
    pub since: u64,
}

impl Record {
    /// The time now, as `since` has it.
    pub fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
    }

    pub(crate) fn to_json(&self) -> String {
        // It cannot fail: there are no maps with odd keys in it.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    /// Reads the record in a directory that is open.
    pub(crate) fn read(directory: &rustix::fd::OwnedFd) -> io::Result<Self> {
        // A pipe in its place does not hold us.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(directory, RECORD, flags, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut text = String::new();
        File::from(file).take(LENGTH_MAX).read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The Unix socket of its monitor.
    pub(crate) fn monitor(&self) -> Option<PathBuf> {
        self.qmp.as_deref()?.strip_prefix("unix:").map(PathBuf::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory;

    #[test]
    fn a_record_of_another_version_can_be_read() {
        let text = r#"{"program": "/q", "made-by": "vdectl", "since": 5, "colour": "green"}"#;
        let record: Record = serde_json::from_str(text).unwrap();
        assert_eq!((record.since, record.made_by, record.name), (5, Maker::Vdectl, None));
    }

    #[test]
    fn what_is_no_record_is_not_read() {
        let scratch = tempfile::tempdir().unwrap();
        let open = || directory::open(scratch.path()).unwrap();
        let path = scratch.path().join(RECORD);
        Record::read(&open()).unwrap_err();
        for text in ["", "{", "{}", "null", "\u{0}", &"x".repeat(1 << 20)] {
            std::fs::write(&path, text).unwrap();
            Record::read(&open()).unwrap_err();
        }
        std::fs::write(&path, b"\xff\xfe").unwrap();
        Record::read(&open()).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RWXU, 0).unwrap();
        Record::read(&open()).unwrap_err();
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/proc/self/status", &path).unwrap();
        Record::read(&open()).unwrap_err();
    }
}
