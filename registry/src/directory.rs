//! One VM's directory: its sockets, its record, the configuration of its monitor.
//!
//! Its name is the PID of who made it, with a number behind it if that is taken. A QEMU that becomes another user connects to
//! its back end again as that one. Then the directory and its place may be passed through, though not read or changed, and the
//! sockets belong to that user: no other gets anywhere.

use std::ffi::{CStr, CString};
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, fstat, openat, renameat, statat, unlinkat};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::Error;
use crate::entry::sweep;
use crate::lock::Lock;
use crate::place::{self, cannot_make, not_ours};
use crate::record::{RECORD, Record};

/// Name of the back end's control socket in a VM's directory.
pub const CONTROL: &str = "control.sock";
/// Name of the socket of a private monitor in a VM's directory.
pub const MONITOR: &str = "qmp.sock";
/// Name of the file in a VM's directory that gives QEMU a private monitor.
pub const MONITOR_CONFIG: &str = "monitor.conf";
/// Longest name in a socket address, its final NUL excepted.
pub const LONGEST_SOCKET: usize = 107;

/// A VM's directory; removed when this value is dropped, unless handed over.
#[derive(Debug)]
pub struct Directory {
    path: String,
    exists: bool,
    /// How many directories above it are ours, too.
    above: usize,
}

impl Directory {
    /// Makes sure of the place, cleans up in it, and picks a free name there.
    ///
    /// # Errors
    /// The place cannot be made, or is not safe.
    pub fn choose() -> Result<Self, Error> {
        let place = place::make()?;
        sweep(&place);
        Ok(Self { path: free_name(&place)?, exists: false, above: 1 })
    }

    /// The same for a domain of libvirt, whose directory is named by its XML; what is left of an earlier one is removed.
    ///
    /// # Errors
    /// The place cannot be made, is not safe, or has something else of this name.
    pub fn of_domain(name: &str) -> Result<Self, Error> {
        let path = place::make_domains()?.join(name);
        remove(&path).map_err(|source| cannot_make(&path, source))?;
        let problem = "has a name that is not text";
        let path = path.into_os_string().into_string().map_err(|path| not_ours(Path::new(&path), problem))?;
        Ok(Self { path, exists: false, above: 2 })
    }

    /// Its path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Makes it. `passable`: other users may use what is theirs in it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn create(mut self, passable: bool) -> Result<Self, Error> {
        let path = PathBuf::from(&self.path);
        let path = path.as_path();
        let made = DirBuilder::new().mode(0o700).create(path);
        made.map_err(|source| cannot_make(path, source))?;
        self.exists = true;
        if passable {
            for directory in path.ancestors().take(1 + self.above) {
                fs::set_permissions(directory, Permissions::from_mode(0o711))
                    .map_err(|source| cannot_make(directory, source))?;
            }
        }
        Ok(self)
    }

    /// Writes a file of one of the [known names](remove) into it.
    ///
    /// # Errors
    /// Those of the system.
    pub fn write(&self, name: &str, text: &str) -> Result<(), Error> {
        let path = Path::new(&self.path);
        let failed = |source| Error::Write { path: path.join(name), source };
        write(path, name, text).map_err(failed)
    }

    /// Says who the VM is.
    ///
    /// # Errors
    /// Those of the system.
    pub fn record(&self, record: &Record) -> Result<(), Error> {
        self.write(RECORD, &record.to_json())
    }

    /// Keeps others from changing the VM from its beginning on.
    ///
    /// # Errors
    /// [`Error::Busy`] after ten seconds, [`Error::Gone`] if somebody has removed it.
    pub fn lock(&self) -> Result<Lock, Error> {
        Lock::take(Path::new(&self.path))
    }

    /// Leaves the removal to the back end.
    pub fn hand_over(mut self) {
        self.exists = false;
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.exists {
            // The back end that failed may be removing it at this moment.
            remove(Path::new(&self.path)).ok();
        }
    }
}

/// Opens a directory itself, never what a link in its place points to.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// Writes a file, readable for its owner, which is there as a whole or not at all.
pub fn write(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let directory = open(directory)?;
    let fresh = format!("{name}{FRESH}");
    // What is left of somebody who was killed here.
    match unlinkat(&directory, &fresh, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(&directory, &fresh, flags, Mode::from_raw_mode(0o600))?;
    File::from(file).write_all(text.as_bytes())?;
    Ok(renameat(&directory, &fresh, &directory, name)?)
}

/// What is behind the name of a file that is not complete yet.
const FRESH: &str = ".new";

/// Removes a VM's directory and what is known in it: its record, the configuration of its monitor, sockets, and the hubs that
/// its back end made. If there is anything else in it, that stays, and so does the directory.
///
/// # Errors
/// Those of the system. That it is gone already is none.
pub fn remove(path: &Path) -> io::Result<()> {
    let directory = match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    if fstat(&directory)?.st_uid != geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    for (name, kind) in names(&directory)? {
        let text = name.to_string_lossy();
        match kind {
            // Whatever stands there by that name: it is not opened.
            kind if kind != FileType::Directory && is_file_of_ours(&text) => {
                gone(unlinkat(&directory, &name, AtFlags::empty()))?
            }
            FileType::Socket if text.ends_with(".sock") => {
                gone(unlinkat(&directory, &name, AtFlags::empty()))?
            }
            FileType::Directory if is_hub(&text) => remove_hub(&directory, &name)?,
            _ => {}
        }
    }
    match rustix::fs::rmdir(path) {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

fn is_file_of_ours(name: &str) -> bool {
    matches!(name.strip_suffix(FRESH).unwrap_or(name), RECORD | MONITOR_CONFIG)
}

/// A hub for the NICs of segment N.
fn is_hub(name: &str) -> bool {
    name.strip_prefix("hub").is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Removes a hub's directory with the sockets that are in it.
fn remove_hub(directory: &OwnedFd, name: &CStr) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let hub = openat(directory, name, flags, Mode::empty())?;
    for (socket, _) in names(&hub)?.into_iter().filter(|(_, kind)| *kind == FileType::Socket) {
        gone(unlinkat(&hub, &socket, AtFlags::empty()))?;
    }
    gone(unlinkat(directory, name, AtFlags::REMOVEDIR))
}

/// What is in a directory, with its type.
fn names(directory: &OwnedFd) -> io::Result<Vec<(CString, FileType)>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        match statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => names.push((name, FileType::from_raw_mode(found.st_mode))),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(names)
}

/// Others may be removing the same.
fn gone(removed: Result<(), Errno>) -> io::Result<()> {
    match removed {
        Err(Errno::NOENT) => Ok(()),
        removed => Ok(removed?),
    }
}

/// A name with our PID that is not taken: a QEMU that went to the background still uses the name of a
/// process that is gone, and PIDs come round.
fn free_name(place: &Path) -> Result<String, Error> {
    let pid = std::process::id().to_string();
    let names = std::iter::once(pid.clone()).chain((1..1000).map(|n| format!("{pid}-{n}")));
    let mut paths = names.map(|name| place.join(name));
    let free: Option<PathBuf> = paths.find(|path| fs::symlink_metadata(path).is_err());
    // The path becomes part of options, which are text.
    let text = free.and_then(|path| path.into_os_string().into_string().ok());
    text.ok_or_else(|| not_ours(place, "is full or has a name that is not text"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn remove_takes_what_is_known_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("1");
        fs::create_dir_all(path.join("hub0")).unwrap();
        for name in [CONTROL, "0.sock", "hub0/ctl", "hub0/fd1"] {
            UnixListener::bind(path.join(name)).unwrap();
        }
        for name in [RECORD, MONITOR_CONFIG] {
            write(&path, name, "x").unwrap();
        }
        fs::write(path.join("vm.json.new"), "half").unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
        remove(&path).unwrap();
        // Not even a record that is none keeps it.
        fs::create_dir(&path).unwrap();
        symlink("/nowhere", path.join(RECORD)).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path.join(MONITOR_CONFIG), FileType::Fifo, Mode::RUSR, 0)
            .unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());

        // Strangers, by name or by type.
        let precious = scratch.path().join("precious");
        fs::create_dir(&precious).unwrap();
        UnixListener::bind(precious.join("a.sock")).unwrap();
        fs::create_dir_all(path.join("hub1/sub")).unwrap();
        fs::create_dir(path.join("vm.json")).unwrap();
        fs::write(path.join("notes"), "").unwrap();
        fs::write(path.join("1.sock"), "").unwrap();
        symlink(&precious, path.join("hub2")).unwrap();
        symlink(precious.join("a.sock"), path.join("2.sock")).unwrap();
        remove(&path).unwrap_err();
        for name in ["hub1/sub", "vm.json", "notes", "1.sock", "hub2/a.sock", "2.sock"] {
            assert!(path.join(name).exists(), "{name}");
        }
        let link = scratch.path().join("link");
        symlink(&precious, &link).unwrap();
        remove(&link).unwrap_err();
        assert!(precious.join("a.sock").exists());
    }

    #[test]
    fn remove_spares_the_directories_of_others() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join(RECORD), "").unwrap();
        std::os::unix::fs::chown(scratch.path(), Some(65534), None).expect("chown: run the tests as root");
        assert_eq!(remove(scratch.path()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        assert!(scratch.path().join(RECORD).exists());
    }

    #[test]
    fn write_replaces_as_a_whole_and_follows_no_link() {
        let scratch = tempfile::tempdir().unwrap();
        let (file, precious) = (scratch.path().join(RECORD), scratch.path().join("precious"));
        fs::write(&precious, "precious").unwrap();
        symlink(&precious, &file).unwrap();
        symlink(&precious, scratch.path().join("vm.json.new")).unwrap();
        write(scratch.path(), RECORD, "new").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
    }

    #[test]
    fn create_lets_others_pass_as_far_as_is_ours() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("libvirt/web");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let before = mode(scratch.path());
        let directory = Directory { path: path.to_str().unwrap().into(), exists: false, above: 1 };
        let directory = directory.create(true).unwrap();
        assert_eq!([mode(&path), mode(path.parent().unwrap()), mode(scratch.path())], [0o711, 0o711, before]);
        drop(directory);
        assert!(!path.exists());
    }

    #[test]
    fn free_name_passes_by_what_is_taken() {
        let scratch = tempfile::tempdir().unwrap();
        let first = free_name(scratch.path()).unwrap();
        fs::create_dir(&first).unwrap();
        assert_eq!(free_name(scratch.path()).unwrap(), format!("{first}-1"));
    }
}
