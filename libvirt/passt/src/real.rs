//! The real passt: the next program of that name on `PATH`.
//!
//! "Next" is counted from the last directory in which this program is found, so that nothing before it, such as a script that
//! calls us, is ever called back. A program further on that comes back to us all the same finds a variable in the environment,
//! and that is the end of it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Access, access};

/// What the real one is called.
const NAME: &str = "passt";
/// Searched when PATH is not set.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// Set for the program that is taken for the real one.
const HANDED_ON: &str = "VDE_PASST_HANDED_ON";

/// Becomes the real passt, under the name and with the words that we were given; tells why that is not possible.
pub fn exec(name: &OsStr, words: &[OsString]) -> String {
    if let Some(path) = env::var_os(HANDED_ON) {
        return format!("{} is not the real passt: it calls this program again", path.display());
    }
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    let Some(program) = next(&path) else {
        return "these are words for the real passt, of which there is none behind this program on PATH; install passt, \
                or name a VDE network in <source dev='...'/>, such as vde:///run/sw"
            .into();
    };
    let error = Command::new(&program).arg0(name).args(words).env(HANDED_ON, &program).exec();
    format!("cannot run {}: {error}", program.display())
}

/// The first passt on `path` behind ourselves.
fn next(path: &OsStr) -> Option<PathBuf> {
    let file = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    let ours = env::current_exe().ok().and_then(|path| file(&path));
    let all: Vec<PathBuf> = env::split_paths(path).map(|folder| folder.join(NAME)).collect();
    let is_ours = |program: &PathBuf| ours.is_some() && file(program) == ours;
    let behind = all.iter().rposition(is_ours).map_or(0, |index| index + 1);
    all.into_iter().skip(behind).find(|program| program.is_file() && access(program, Access::EXEC_OK).is_ok())
}
