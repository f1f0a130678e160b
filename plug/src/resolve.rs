//! From the text a user gave to the one network it means: scheme, default file, locator file (VDE fact 3.1).

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::error::OpenError;
use crate::locator::{VdeLocator, split_scheme};

/// Longest first line of a locator file; a path has at most 4096 bytes and options few more.
const LINE_MAX: u64 = 8192;

/// What a locator was found to mean.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `null://`.
    Null,
    /// `vde://`, or no scheme.
    Vde(VdeLocator),
}

/// Follows the default of an empty locator and a locator that is a file. `home` is `$HOME`.
pub(crate) fn resolve(text: &str, home: Option<&OsStr>) -> Result<Target, OpenError> {
    if text.contains("://") {
        return by_scheme(text);
    }
    if !text.is_empty() {
        return match first_line(Path::new(text))? {
            Some(line) => by_scheme(&line),
            None => by_scheme(text),
        };
    }
    for name in [".vdeplug/default", ".vde2/default.switch"] {
        let Some(path) = home.map(|home| Path::new(home).join(name)) else { break };
        if fs::symlink_metadata(&path).is_ok() {
            // The name is a path and nothing else: a home directory with `[` in it is no matter.
            return match first_line(&path)? {
                Some(line) => by_scheme(&line),
                None => Ok(Target::Vde(VdeLocator::new(path))),
            };
        }
    }
    by_scheme("")
}

fn by_scheme(text: &str) -> Result<Target, OpenError> {
    match split_scheme(text) {
        (None | Some("vde"), argument) => Ok(Target::Vde(VdeLocator::parse(argument)?)),
        (Some("null"), _) => Ok(Target::Null),
        (Some(scheme), _) => {
            Err(OpenError::UnsupportedScheme { locator: text.into(), scheme: scheme.into() })
        }
    }
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
    use crate::locator::Port;

    fn vde(path: impl AsRef<Path>, port: Port) -> Target {
        Target::Vde(VdeLocator { port, ..VdeLocator::new(path.as_ref()) })
    }

    #[test]
    fn resolve_by_scheme() {
        let resolve = |text| resolve(text, None);
        assert_eq!(resolve("null://").expect("known"), Target::Null);
        assert_eq!(resolve("").expect("known"), vde("", Port::Any));
        assert_eq!(resolve("vde:///nowhere/sw[3]").expect("known"), vde("/nowhere/sw", Port::Number(3)));
        let error = resolve("vxlan://239.0.0.1").expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "\"vxlan://239.0.0.1\" has the scheme \"vxlan\", which is not supported; use vde://PATH[PORT] or null://"
        );
    }

    #[test]
    fn resolve_reads_one_level_of_file() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (inner, outer) = (dir.path().join("inner"), dir.path().join("outer"));
        fs::write(&inner, "null://").expect("write");
        fs::write(&outer, format!("{}\nnull://\n", inner.display())).expect("write");
        let resolve = |path: &Path| resolve(path.to_str().expect("ASCII"), None);
        assert_eq!(resolve(&inner).expect("a scheme in a file"), Target::Null);
        assert_eq!(resolve(&outer).expect("a path in a file"), vde(&inner, Port::Any));
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
        assert_eq!(resolve("", Some(dir.path().as_os_str())).expect("good"), vde(&default, Port::Any));
    }
}
