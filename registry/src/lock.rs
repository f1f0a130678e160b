//! One at a time changes a VM: `flock` on its directory.
//!
//! A directory needs no file in it to be locked, the kernel lets go of it however the holder ends, and it knows who that is.
//! A VM that has no directory of ours has one of the kernel's: that of its process's descriptors, which others may not open.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, fstat, major, minor};
use rustix::io::Errno;

use crate::{Error, directory};

/// How long the one before may take. Plugging in a NIC waits for a network, and takes less.
const LIMIT: Duration = Duration::from_secs(10);
/// `flock` has no time limit of its own, so it is asked again and again.
const PAUSE: Duration = Duration::from_millis(20);

/// Others wait, for as long as this value lives.
#[derive(Debug)]
pub struct Lock {
    _directory: OwnedFd,
}

impl Lock {
    /// Keeps others from changing any domain of libvirt, whether it has an entry or not.
    ///
    /// # Errors
    /// [`Error::Busy`] after ten seconds, or the place cannot be made.
    pub fn of_domains() -> Result<Self, Error> {
        Self::take(&crate::place::make_domains()?)
    }

    /// Keeps others from changing a VM that has no entry yet. `None`: there is no such process that our user may look into.
    ///
    /// # Errors
    /// [`Error::Busy`] after ten seconds.
    pub fn of_process(pid: u32) -> Result<Option<Self>, Error> {
        match Self::take(Path::new(&format!("/proc/{pid}/fd"))) {
            Err(error @ Error::Busy { .. }) => Err(error),
            taken => Ok(taken.ok()),
        }
    }

    pub(crate) fn take(path: &Path) -> Result<Self, Error> {
        Self::take_within(path, LIMIT)
    }

    fn take_within(path: &Path, limit: Duration) -> Result<Self, Error> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => Error::Gone,
            _ => Error::Lock { path: path.into(), source },
        };
        let directory = directory::open(path).map_err(failed)?;
        let deadline = Instant::now() + limit;
        loop {
            match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => sleep(PAUSE),
                Err(Errno::WOULDBLOCK) => return Err(Error::Busy { holder: holder(&directory), limit }),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
        // It may have been removed while we waited, and even made again.
        let (ours, now) =
            (fstat(&directory).map_err(|error| failed(error.into()))?, fs::symlink_metadata(path));
        match now.is_ok_and(|now| (now.dev(), now.ino()) == (ours.st_dev, ours.st_ino)) {
            true => Ok(Self { _directory: directory }),
            false => Err(Error::Gone),
        }
    }
}

/// Who has locked a directory, in words.
fn holder(directory: &OwnedFd) -> String {
    let pid = fstat(directory).ok().and_then(|stat| {
        let file = format!("{:02x}:{:02x}:{}", major(stat.st_dev), minor(stat.st_dev), stat.st_ino);
        holder_in(&locks().ok()?, &file)
    });
    match pid {
        Some(pid) => format!("process {pid}"),
        None => "another process".into(),
    }
}

/// What the kernel says in `/proc/locks`, in reads of a page each: that is how much it says at once. Between two reads it
/// only counts how far it has come, so when a lock of another file goes meanwhile, the next one is passed over.
fn locks() -> io::Result<String> {
    let mut file = File::open("/proc/locks")?;
    let mut page = [0; 4096];
    let mut all = Vec::new();
    loop {
        match file.read(&mut page)? {
            0 => return Ok(String::from_utf8_lossy(&all).into_owned()),
            read => all.extend_from_slice(page.get(..read).unwrap_or_default()),
        }
    }
}

/// The process that `/proc/locks` names for a file.
fn holder_in(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 1234 00:19:56 0 EOF; who waits has an arrow in its line.
        let mut words = line.split_whitespace().skip(1);
        let kind = words.next()?;
        let pid = words.nth(2)?.parse().ok()?;
        (kind == "FLOCK" && words.next()? == file).then_some(pid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("1");
        assert!(matches!(Lock::take(&path), Err(Error::Gone)));
        fs::create_dir(&path).unwrap();
        let first = Lock::take(&path).unwrap();
        let error = Lock::take_within(&path, Duration::from_millis(50)).unwrap_err().to_string();
        let holder = format!("process {} has been changing this VM", std::process::id());
        assert!(error.starts_with(&holder), "{error}");
        drop(first);
        Lock::take(&path).unwrap();
    }

    #[test]
    fn a_process_is_locked_as_long_as_it_is_there() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let first = Lock::of_process(pid).unwrap().unwrap();
        let path = format!("/proc/{pid}/fd");
        let error = Lock::take_within(Path::new(&path), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().starts_with(&format!("process {} has", std::process::id())), "{error}");
        drop(first);
        let again = Lock::of_process(pid).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(again.is_some() && Lock::of_process(pid).unwrap().is_none());
    }

    #[test]
    fn the_holder_is_found_while_other_locks_come_and_go() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("held");
        fs::create_dir(&path).unwrap();
        let _held = Lock::take(&path).unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for other in 0..4 {
                let path = scratch.path().join(format!("{other}"));
                fs::create_dir(&path).unwrap();
                let over = &over;
                scope.spawn(move || {
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        drop(Lock::take(&path));
                    }
                });
            }
            let named = format!("process {}", std::process::id());
            let directory = directory::open(&path).unwrap();
            let missed = (0..500).filter(|_| holder(&directory) != named).count();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(missed, 0);
        });
    }

    #[test]
    fn who_waited_for_a_vm_that_ended_is_told() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("1");
        fs::create_dir(&path).unwrap();
        let first = Lock::take(&path).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| Lock::take(&path));
            fs::remove_dir(&path).unwrap();
            // The name is another VM's now.
            fs::create_dir(&path).unwrap();
            drop(first);
            // It may have come after that.
            assert!(matches!(second.join().unwrap(), Err(Error::Gone) | Ok(_)));
        });
    }

    #[test]
    fn holder_in_reads_what_the_kernel_writes() {
        let locks = "1: POSIX  ADVISORY  WRITE 7 00:19:56 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 8 00:19:56 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 9 00:19:56 0 EOF\n3:\n";
        assert_eq!(holder_in(locks, "00:19:56"), Some(9));
        assert_eq!(holder_in(locks, "00:19:57"), None);
    }
}
