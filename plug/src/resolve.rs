//! From the text a user gave to the one network it means: scheme, default file, locator file (VDE fact 3.1).

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::error::OpenError;
use crate::locator::{VdeLocator, split_scheme};

/// Longest first line of a locator file; a path has at most 4096 bytes and options few more.
const LINE_MAX: u64 = 8192;

/// What a locator was found to mean: a scheme and its argument, the text behind `://`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) scheme: String,
    pub(crate) argument: String,
    /// The file in whose first line they stood.
    pub(crate) file: Option<PathBuf>,
}

impl Target {
    /// Reads text that is no file's name and not empty by default; without a scheme it is `vde` (VDE fact 3.1).
    fn new(text: &str) -> Self {
        let (scheme, argument) = split_scheme(text);
        Self { scheme: scheme.unwrap_or("vde").into(), argument: argument.into(), file: None }
    }

    /// Reads the first line of such a file.
    fn in_file(line: &str, path: &Path) -> Self {
        Self { file: Some(path.into()), ..Self::new(line) }
    }
}

/// Follows the default of an empty locator and a locator that is a file. `home` is `$HOME`.
pub(crate) fn resolve(text: &str, home: Option<&OsStr>) -> Result<Target, OpenError> {
    if text.contains("://") {
        return Ok(Target::new(text));
    }
    if !text.is_empty() {
        return Ok(match first_line(Path::new(text))? {
            Some(line) => Target::in_file(&line, Path::new(text)),
            None => Target::new(text),
        });
    }
    for name in [".vdeplug/default", ".vde2/default.switch"] {
        let Some(path) = home.map(|home| Path::new(home).join(name)) else { break };
        if fs::symlink_metadata(&path).is_ok() {
            // The name is a path and nothing else: a home directory with `[` in it is no matter.
            return Ok(match first_line(&path)? {
                Some(line) => Target::in_file(&line, &path),
                None => Target::new(&VdeLocator::new(path).to_string()),
            });
        }
    }
    Ok(Target::new(""))
}

/// The first line of a regular file, without its end; `None` when the name is anything else or nothing.
fn first_line(path: &Path) -> Result<Option<String>, OpenError> {
    if !fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
        return Ok(None);
    }
    read_line(path).map(Some).map_err(|source| OpenError::LocatorFile { path: path.into(), source })
}

fn read_line(path: &Path) -> io::Result<String> {
    // Non-blocking, because the file may have become a FIFO since it was looked at.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut line = Vec::new();
    BufReader::new(file.take(LINE_MAX)).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    } else if line.len() as u64 == LINE_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its first line is too long for a locator"));
    }
    String::from_utf8(line)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "its first line is not UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(scheme: &str, argument: impl AsRef<Path>) -> Target {
        let argument = argument.as_ref().to_str().expect("ASCII").into();
        Target { scheme: scheme.into(), argument, file: None }
    }

    #[test]
    fn resolve_by_scheme() {
        let resolve = |text| resolve(text, None).expect("no file");
        assert_eq!(resolve("null://"), target("null", ""));
        assert_eq!(resolve(""), target("vde", ""));
        assert_eq!(resolve("vde:///nowhere/sw[3]"), target("vde", "/nowhere/sw[3]"));
        assert_eq!(resolve("/nowhere/sw[3]"), target("vde", "/nowhere/sw[3]"));
        assert_eq!(resolve("vlan://5{vde:///nowhere}"), target("vlan", "5{vde:///nowhere}"));
    }

    #[test]
    fn resolve_reads_one_level_of_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (inner, outer) = (dir.path().join("inner"), dir.path().join("outer"));
        fs::write(&inner, "null://").expect("write");
        fs::write(&outer, format!("{}\nnull://\n", inner.display())).expect("write");
        let resolve = |path: &Path| resolve(path.to_str().expect("ASCII"), None);
        let in_file = |target, path: &Path| Target { file: Some(path.into()), ..target };
        assert_eq!(resolve(&inner).expect("a scheme in a file"), in_file(target("null", ""), &inner));
        assert_eq!(resolve(&outer).expect("a path in a file"), in_file(target("vde", &inner), &outer));
        fs::write(&inner, b"\xff\n").expect("write");
        let error = resolve(&inner).expect_err("bytes in a file");
        let text = error.to_string();
        assert!(text.contains("/inner\"; make it a readable line such as vde://PATH[PORT]"), "{text}");
        fs::write(&inner, vec![b'x'; 10_000]).expect("write");
        resolve(&inner).expect_err("an endless line in a file");
    }

    #[test]
    fn resolve_home_with_brackets() {
        let dir = tempfile::Builder::new().prefix("a[b%41").tempdir().expect("temporary directory");
        let default = dir.path().join(".vdeplug/default");
        fs::create_dir_all(&default).expect("mkdir");
        let target = resolve("", Some(dir.path().as_os_str())).expect("good");
        assert_eq!(target.scheme, "vde");
        assert_eq!(VdeLocator::parse(&target.argument).expect("escaped").path, default);
    }
}
