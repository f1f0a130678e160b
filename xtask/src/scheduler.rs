//! How the processor is shared while the tests run.
//!
//! Linux shares it among sessions first, and among the processes of each after that (`man 7 sched`, autogroup). Switches, back ends
//! and daemons are sessions of their own, guests are not; and kernel 6.18 was seen to let a session that had little to do wait for
//! more than fifteen seconds while another one was busy. Networks that are all right then stand still. So while the tests run all
//! processes are equal, if we may say so, and afterwards all is as it was.

use std::path::{Path, PathBuf};

const SETTING: &str = "/proc/sys/kernel/sched_autogroup_enabled";

/// All processes are equal until this is dropped.
pub struct Equal(Option<PathBuf>);

impl Equal {
    /// From now on, unless it was so before, or we may not.
    pub fn start() -> Self {
        Self::with(Path::new(SETTING))
    }

    fn with(setting: &Path) -> Self {
        let groups = std::fs::read_to_string(setting).is_ok_and(|value| value.trim() == "1");
        let is_ours = groups && std::fs::write(setting, "0\n").is_ok();
        if is_ours {
            eprintln!("== until the end of the tests: kernel.sched_autogroup_enabled=0");
        }
        Self(is_ours.then(|| setting.into()))
    }
}

impl Drop for Equal {
    fn drop(&mut self) {
        if let Some(setting) = &self.0
            && let Err(error) = std::fs::write(setting, "1\n")
        {
            eprintln!("cargo xtask: {} stays 0: {error}", setting.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_changed_back() {
        let folder = tempfile::tempdir().unwrap();
        let setting = folder.path().join("setting");
        let value = || std::fs::read_to_string(&setting).unwrap();
        for before in ["1\n", "0\n"] {
            std::fs::write(&setting, before).unwrap();
            let equal = Equal::with(&setting);
            assert_eq!(value(), "0\n");
            drop(equal);
            assert_eq!(value(), before);
        }
        drop(Equal::with(&folder.path().join("none")));
    }
}
