//! The directory that all VMs of a user are below.
//!
//! Only its owner may enter it: `/run/vdeq` is root's, `$XDG_RUNTIME_DIR/vdeq` that of others, else `/tmp/vdeq-UID`, which is
//! looked at closely because anybody may have made it. A program that libvirt starts for a user is not told XDG_RUNTIME_DIR;
//! where that is not set, it is what `/run/user` has for the user.
//!
//! The directories of libvirt's domains are one level below, in `libvirt`: their names are chosen by people, not by us.

use std::env;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::{Uid, geteuid};

use crate::Error;

/// Name of the directory that the directories of libvirt's domains are in.
pub const DOMAINS: &str = "libvirt";

/// Where the directory may be, the best place first.
pub fn places() -> Vec<PathBuf> {
    let uid = geteuid();
    let best = match uid.is_root() {
        true => Some(PathBuf::from("/run/vdeq")),
        false => match env::var_os("XDG_RUNTIME_DIR") {
            Some(dir) => below_runtime_dir(Path::new(&dir)),
            None => below_login_dir(uid),
        },
    };
    best.into_iter().chain([PathBuf::from(format!("/tmp/vdeq-{}", uid.as_raw()))]).collect()
}

/// A relative directory counts as none: QEMU connects again by this name when it has gone elsewhere.
fn below_runtime_dir(runtime_dir: &Path) -> Option<PathBuf> {
    runtime_dir.is_absolute().then(|| runtime_dir.join("vdeq"))
}

/// The runtime directory that a login makes.
fn below_login_dir(uid: Uid) -> Option<PathBuf> {
    let dir = PathBuf::from(format!("/run/user/{}", uid.as_raw()));
    let ours = fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir() && found.uid() == uid.as_raw());
    ours.then(|| dir.join("vdeq"))
}

/// The directory that all domains of libvirt have theirs in, below the best place.
pub fn domains() -> Option<PathBuf> {
    places().into_iter().next().map(|place| place.join(DOMAINS))
}

/// Makes sure of it. No other place will do: the XML of domains names this one.
pub fn make_domains() -> Result<PathBuf, Error> {
    let place = places().into_iter().next().unwrap_or_default();
    let domains = place.join(DOMAINS);
    [place, domains.clone()].iter().try_for_each(|directory| make_at(directory))?;
    Ok(domains)
}

/// Makes sure of the first place that can be had.
pub fn make() -> Result<PathBuf, Error> {
    let mut problem = None;
    for place in places() {
        match make_at(&place) {
            Ok(()) => return Ok(place),
            // Somebody's trap is not to be walked around in silence.
            Err(error @ Error::Unsafe { .. }) => return Err(error),
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    Err(problem.unwrap_or_else(|| cannot_make(Path::new("/tmp"), io::ErrorKind::NotFound.into())))
}

/// Makes the directory, or checks that the one that is there is ours alone.
fn make_at(place: &Path) -> Result<(), Error> {
    let made = DirBuilder::new().mode(0o700).create(place);
    if made.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::AlreadyExists) {
        return made.map_err(|source| cannot_make(place, source));
    }
    check(place)
}

/// Checks that the directory is ours alone.
pub fn check(place: &Path) -> Result<(), Error> {
    let found = fs::symlink_metadata(place).map_err(|source| cannot_make(place, source))?;
    let problem = if !found.is_dir() {
        "is not a directory"
    } else if found.uid() != geteuid().as_raw() {
        "belongs to another user"
    } else if found.mode() & 0o066 != 0 {
        "is open to other users"
    } else {
        return Ok(());
    };
    Err(not_ours(place, problem))
}

/// The error, with what our user can do about it.
pub fn cannot_make(path: &Path, source: io::Error) -> Error {
    // Root's place is fixed: XDG_RUNTIME_DIR does not move it.
    let remedy = match geteuid().is_root() {
        true => "make room for it and let root write there",
        false => "set XDG_RUNTIME_DIR to a directory of your own",
    };
    Error::Make { path: path.to_owned(), remedy, source }
}

/// The error, with what our user can do about it.
pub fn not_ours(path: &Path, problem: &'static str) -> Error {
    let remedy = remedy(geteuid().is_root());
    Error::Unsafe { path: path.to_owned(), problem, remedy }
}

fn remedy(is_root: bool) -> &'static str {
    match is_root {
        true => "remove it or move it away",
        false => "remove it, or set XDG_RUNTIME_DIR to a directory of your own",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn below_runtime_dir_takes_no_relative_one() {
        assert_eq!(below_runtime_dir(Path::new("/run/user/5")), Some("/run/user/5/vdeq".into()));
        assert_eq!(["", ".", "run/user"].map(|dir| below_runtime_dir(Path::new(dir))), [None, None, None]);
    }

    #[test]
    fn make_at_refuses_what_others_may_use() {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().join("vdeq");
        make_at(&place).unwrap();
        make_at(&place).unwrap();
        assert_eq!(fs::metadata(&place).unwrap().mode() & 0o777, 0o700);

        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(make_at(&place).unwrap_err().to_string().contains("open to other users"));
        let link = scratch.path().join("link");
        symlink(scratch.path(), &link).unwrap();
        assert!(make_at(&link).unwrap_err().to_string().contains("is not a directory"));
        assert!(matches!(make_at(&scratch.path().join("no/vdeq")), Err(Error::Make { .. })));
    }

    #[test]
    fn remedy_is_one_that_works() {
        assert!(!remedy(true).contains("XDG_RUNTIME_DIR") && remedy(true).contains("remove it"));
        assert!(remedy(false).contains("set XDG_RUNTIME_DIR"));
    }
}
