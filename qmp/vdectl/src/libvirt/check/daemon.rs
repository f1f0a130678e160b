//! libvirt's daemon, as far as can be told by those who may not ask it: it has written its number down, and `/proc` has the rest.

use std::env;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use registry::Process;
use rustix::process::geteuid;
use rustix::time::{ClockId, clock_gettime};

/// That of QEMU's driver alone, and that of all drivers.
const NAMES: [&str; 2] = ["virtqemud", "libvirtd"];
/// Clock ticks of `/proc` in a second (USER_HZ), on all machines that QEMU virtualizes.
const TICKS: u64 = 100;

/// A daemon that runs.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// Its program.
    pub name: &'static str,
    /// Where it finds programs.
    pub path: Vec<PathBuf>,
    /// When it was started.
    started: SystemTime,
}

impl Daemon {
    /// The one that is our user's.
    pub fn find() -> Option<Self> {
        let folder = match geteuid().is_root() {
            true => PathBuf::from("/run"),
            false => {
                let of_login = || PathBuf::from(format!("/run/user/{}", geteuid().as_raw()));
                env::var_os("XDG_RUNTIME_DIR").map_or_else(of_login, PathBuf::from).join("libvirt")
            }
        };
        NAMES.into_iter().find_map(|name| Self::read(&folder, name))
    }

    fn read(folder: &Path, name: &'static str) -> Option<Self> {
        let pid: u32 = fs::read_to_string(folder.join(format!("{name}.pid"))).ok()?.trim().parse().ok()?;
        // The file may be older than this process.
        let process = Process::of(pid)?;
        let is_it = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim() == name;
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let path = variables.find_map(|variable| variable.strip_prefix(b"PATH="))?;
        let path = env::split_paths(std::ffi::OsStr::from_bytes(path)).collect();
        let up = clock_gettime(ClockId::Boottime);
        let up = Duration::new(up.tv_sec.try_into().ok()?, up.tv_nsec.try_into().ok()?);
        let since_boot = Duration::from_millis(process.start_time.checked_mul(1000)? / TICKS);
        let started = SystemTime::now().checked_sub(up)?.checked_add(since_boot)?;
        is_it.then_some(Self { name, path, started })
    }

    /// Whether it was started after something was done, by the seconds and nanoseconds of the latter.
    pub fn is_younger_than(&self, (seconds, nanoseconds): (i64, i64)) -> bool {
        let since = |seconds, nanoseconds| {
            Some(Duration::new(u64::try_from(seconds).ok()?, u32::try_from(nanoseconds).ok()?))
        };
        since(seconds, nanoseconds).is_some_and(|since| self.started >= UNIX_EPOCH + since)
    }

    /// One that was started at a time, and finds programs in one folder.
    #[cfg(test)]
    pub fn started_at(started: SystemTime, folder: &Path) -> Self {
        Self { name: "libvirtd", path: vec![folder.into()], started }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_knows_when_a_process_was_started() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(Daemon::read(scratch.path(), "sleep").is_none());
        let before = SystemTime::now() - Duration::from_millis(20);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        fs::write(scratch.path().join("sleep.pid"), format!("{}\n", child.id())).unwrap();
        fs::write(scratch.path().join("other.pid"), format!("{}\n", child.id())).unwrap();
        // First it has our environment, then none, then its own.
        let [comm, environ] = ["comm", "environ"].map(|name| format!("/proc/{}/{name}", child.id()));
        while fs::read_to_string(&comm).unwrap().trim() != "sleep" || fs::read(&environ).unwrap().is_empty() {
            std::thread::yield_now();
        }
        let daemon = Daemon::read(scratch.path(), "sleep").unwrap();
        assert!(daemon.started >= before && daemon.started <= SystemTime::now(), "{:?}", daemon.started);
        assert!(!daemon.path.is_empty());
        assert!(daemon.is_younger_than((1, 0)) && !daemon.is_younger_than((i64::MAX, 0)));
        assert!(Daemon::read(scratch.path(), "other").is_none(), "another program by now");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Daemon::read(scratch.path(), "sleep").is_none());
    }
}
