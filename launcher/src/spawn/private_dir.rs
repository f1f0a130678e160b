//! The directory of one VM's sockets.
//!
//! It lies below a directory that only we may enter: `/run/vdeq` for root, `$XDG_RUNTIME_DIR/vdeq`
//! for others, else `/tmp/vdeq-UID`, which is looked at closely because anybody may have made it.
//!
//! A QEMU that becomes another user connects again as that one. Then both directories may be passed
//! through, though not read or changed, and the sockets belong to that user: no other gets anywhere.

use std::env;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::Error;
use crate::plan::NicPlan;

/// What `--vde-print-plan` shows instead.
pub const STAND_IN: &str = "/run/vdeq/PID";

/// Longest name in a socket address, its final NUL excepted.
const LONGEST_SOCKET: usize = 107;

/// A back end has put its sockets into its directory by then, or never will.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A private directory; removed when this value is dropped, unless handed over.
#[derive(Debug)]
pub struct PrivateDir {
    /// Its path.
    pub path: String,
    exists: bool,
}

impl PrivateDir {
    /// Makes sure of the parent directory and picks a free name in it.
    pub fn choose() -> Result<Self, Error> {
        let mut problem = None;
        for base in bases() {
            match make_base(&base) {
                Ok(()) => {
                    sweep(&base);
                    return Ok(Self { path: free_name(&base)?, exists: false });
                }
                // Somebody's trap is not to be walked around in silence.
                Err(error @ Error::PrivateDirUnsafe { .. }) => return Err(error),
                Err(error) => problem = problem.or(Some(error)),
            }
        }
        Err(problem.unwrap_or_else(|| cannot_make(Path::new("/tmp"), io::ErrorKind::NotFound.into())))
    }

    /// Makes the directory. `passable`: other users may use what is theirs in it.
    pub fn create(mut self, nics: &[NicPlan], passable: bool) -> Result<Self, Error> {
        if let Some(nic) = nics.iter().find(|nic| nic.socket.len() > LONGEST_SOCKET) {
            return Err(Error::SocketPath((&nic.socket).into()));
        }
        let made = DirBuilder::new().mode(0o700).create(&self.path);
        made.map_err(|source| cannot_make(Path::new(&self.path), source))?;
        self.exists = true;
        if passable {
            let path = Path::new(&self.path);
            for directory in [path].into_iter().chain(path.parent()) {
                fs::set_permissions(directory, Permissions::from_mode(0o711))
                    .map_err(|source| cannot_make(directory, source))?;
            }
        }
        Ok(self)
    }

    /// Leaves the removal to the back end.
    pub fn hand_over(mut self) {
        self.exists = false;
    }
}

impl Drop for PrivateDir {
    fn drop(&mut self) {
        if self.exists {
            // The back end that failed may be removing it at this moment.
            fs::remove_dir_all(&self.path).ok();
        }
    }
}

/// Where private directories may be, the best place first.
fn bases() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid();
    let best = match uid.is_root() {
        true => Some(PathBuf::from("/run/vdeq")),
        false => env::var_os("XDG_RUNTIME_DIR").and_then(|dir| below_runtime_dir(Path::new(&dir))),
    };
    best.into_iter().chain([PathBuf::from(format!("/tmp/vdeq-{}", uid.as_raw()))]).collect()
}

/// A relative directory counts as none: QEMU connects again by this name when it has gone elsewhere.
fn below_runtime_dir(runtime_dir: &Path) -> Option<PathBuf> {
    runtime_dir.is_absolute().then(|| runtime_dir.join("vdeq"))
}

/// Makes the parent directory, or checks that the one that is there is ours alone.
fn make_base(base: &Path) -> Result<(), Error> {
    let failed = |source| cannot_make(base, source);
    let made = DirBuilder::new().mode(0o700).create(base);
    if made.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
        return made.map_err(failed);
    }
    let found = fs::symlink_metadata(base).map_err(failed)?;
    let problem = if !found.is_dir() {
        "is not a directory"
    } else if found.uid() != rustix::process::geteuid().as_raw() {
        "belongs to another user"
    } else if found.mode() & 0o066 != 0 {
        "is open to other users"
    } else {
        return Ok(());
    };
    Err(not_ours(base, problem, rustix::process::geteuid().is_root()))
}

fn cannot_make(path: &Path, source: io::Error) -> Error {
    // Root's place is fixed: XDG_RUNTIME_DIR does not move it.
    let remedy = match rustix::process::geteuid().is_root() {
        true => "make room for it and let root write there",
        false => "set XDG_RUNTIME_DIR to a directory of your own",
    };
    Error::PrivateDir { path: path.to_owned(), remedy, source }
}

fn not_ours(path: &Path, problem: &'static str, is_root: bool) -> Error {
    let remedy = match is_root {
        true => "remove it or move it away",
        false => "remove it, or set XDG_RUNTIME_DIR to a directory of your own",
    };
    Error::PrivateDirUnsafe { path: path.to_owned(), problem, remedy }
}

/// Removes the empty directories of processes that are gone: of a `vdeq` that was killed before its
/// back end could take its directory over. One that is in use has sockets in it, and stays. One that was
/// made just now may be that of a process that we do not see, in another PID namespace or without `/proc`.
fn sweep(base: &Path) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.split('-').next()?.parse::<u32>().ok());
        let is_old = || entry.metadata().ok()?.modified().ok()?.elapsed().ok().map(|age| age > START_LIMIT);
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
            && is_old().unwrap_or(false)
        {
            fs::remove_dir(entry.path()).ok();
        }
    }
}

/// A name with our PID that is not taken: a QEMU that went to the background still uses the name of a
/// process that is gone, and PIDs come round.
fn free_name(base: &Path) -> Result<String, Error> {
    let pid = std::process::id().to_string();
    let names = std::iter::once(pid.clone()).chain((1..1000).map(|n| format!("{pid}-{n}")));
    let mut paths = names.map(|name| base.join(name));
    let free = paths.find(|path| fs::symlink_metadata(path).is_err());
    // The path becomes part of options, which are text.
    let text = free.and_then(|path| path.into_os_string().into_string().ok());
    let problem = "is full or has a name that is not text";
    text.ok_or_else(|| not_ours(base, problem, rustix::process::geteuid().is_root()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn sweep_removes_only_old_empty_directories_of_the_dead() {
        let base = tempfile::tempdir().unwrap();
        let path = |name: &str| base.path().join(name);
        // No process has a number as high as these (PID_MAX_LIMIT is 4194304).
        let (dead, used, unseen) = ("99999999", "99999998-1", "99999997");
        let ours = std::process::id().to_string();
        for name in [dead, used, unseen, &ours, "other"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path(used).join("0.sock"), "").unwrap();
        let old = std::time::SystemTime::now() - 2 * START_LIMIT;
        for name in [dead, used, &ours, "other"] {
            fs::File::open(path(name)).unwrap().set_modified(old).unwrap();
        }
        sweep(base.path());
        assert!(!path(dead).exists());
        for name in [used, unseen, &ours, "other"] {
            assert!(path(name).exists(), "{name}");
        }
    }

    #[test]
    fn below_runtime_dir_takes_no_relative_one() {
        assert_eq!(below_runtime_dir(Path::new("/run/user/5")), Some("/run/user/5/vdeq".into()));
        assert_eq!(["", ".", "run/user"].map(|dir| below_runtime_dir(Path::new(dir))), [None, None, None]);
    }

    #[test]
    fn make_base_refuses_what_others_may_use() {
        let scratch = tempfile::tempdir().expect("scratch");
        let base = scratch.path().join("vdeq");
        make_base(&base).expect("made");
        make_base(&base).expect("found again");
        assert_eq!(fs::metadata(&base).expect("stat").mode() & 0o777, 0o700);

        fs::set_permissions(&base, fs::Permissions::from_mode(0o755)).expect("chmod");
        assert!(make_base(&base).expect_err("open").to_string().contains("open to other users"));
        let link = scratch.path().join("link");
        symlink(scratch.path(), &link).expect("link");
        assert!(make_base(&link).expect_err("link").to_string().contains("is not a directory"));
        assert!(matches!(make_base(&scratch.path().join("no/vdeq")), Err(Error::PrivateDir { .. })));
    }

    #[test]
    fn not_ours_names_a_remedy_that_works() {
        let sentence = |is_root| not_ours(Path::new("/run/vdeq"), "is not a directory", is_root).to_string();
        assert!(!sentence(true).contains("XDG_RUNTIME_DIR") && sentence(true).contains("remove it"));
        assert!(sentence(false).contains("set XDG_RUNTIME_DIR"));
    }

    #[test]
    fn free_name_passes_by_what_is_taken() {
        let scratch = tempfile::tempdir().expect("scratch");
        let first = free_name(scratch.path()).expect("free");
        fs::create_dir(&first).expect("mkdir");
        assert_eq!(free_name(scratch.path()).expect("free"), format!("{first}-1"));
    }
}
