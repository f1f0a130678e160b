//! Where plug-ins are looked for (VDE fact 3.1).
//!
//! With `VDEPLUGIN_PATH` set, in its directories and nowhere else. Otherwise beside libvdeplug, in its directory
//! `vdeplug/` first; in `vdeplug/` below each directory of `LD_LIBRARY_PATH`; in fixed places; and wherever the
//! loader finds a library of that name. One of the fixed places is where Debian has the plug-ins, because libvdeplug may be
//! a library of this project that is installed elsewhere.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The fixed places.
const PLACES: [&str; 3] = ["/lib/vdeplug", "/usr/lib/vdeplug", DEBIAN];

/// Debian's place for what is of one architecture.
const DEBIAN: &str = if cfg!(target_arch = "x86_64") {
    "/usr/lib/x86_64-linux-gnu/vdeplug"
} else if cfg!(target_arch = "aarch64") {
    "/usr/lib/aarch64-linux-gnu/vdeplug"
} else {
    "/usr/lib64/vdeplug"
};

/// The directory below a library directory in which plug-ins lie.
const BELOW: &str = "vdeplug";

/// Whether a scheme can name a file and nothing but a file.
pub(super) fn is_name(scheme: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'+');
    !scheme.is_empty() && scheme.len() <= 64 && scheme.bytes().all(good)
}

/// The name of a plug-in's file.
pub(super) fn file_name(scheme: &str) -> String {
    format!("libvdeplug_{scheme}.so")
}

/// The files that may be the plug-in, in the order in which they are tried. A name without slash is for the loader to
/// find. `library` says, when it is needed, where libvdeplug lies.
pub(super) fn candidates(
    scheme: &str,
    plugin_path: Option<&OsStr>,
    library_path: Option<&OsStr>,
    library: impl FnOnce() -> Option<PathBuf>,
) -> Vec<PathBuf> {
    let file = file_name(scheme);
    if let Some(list) = plugin_path {
        return directories(list).map(|directory| directory.join(&file)).collect();
    }
    let mut found = Vec::new();
    if let Some(directory) = library() {
        found.push(directory.join(BELOW).join(&file));
        found.push(directory.join(&file));
    }
    let listed = library_path.map(directories).into_iter().flatten();
    found.extend(listed.map(|directory| directory.join(BELOW).join(&file)));
    found.extend(PLACES.iter().map(|place| Path::new(place).join(&file)));
    found.push(file.into());
    found
}

/// The directories of a list with colons. An empty one would mean wherever the program happens to be started.
fn directories(list: &OsStr) -> impl Iterator<Item = &Path> {
    list.as_bytes()
        .split(|&byte| byte == b':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| Path::new(OsStr::from_bytes(directory)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_name_takes_no_path() {
        for scheme in ["slirp", "x-y_2+"] {
            assert!(is_name(scheme), "{scheme}");
        }
        for scheme in ["", "../x", "a/b", "a.b", "a b", "é", "a\0", "%2f", &"a".repeat(65)] {
            assert!(!is_name(scheme), "{scheme}");
        }
    }

    #[test]
    fn candidates_in_order() {
        let library = || Some("/opt/lib".into());
        let list = |plugin, library_path| candidates("x", plugin, library_path, library);
        let (a, b) = (OsStr::new("/a::/b"), OsStr::new("/c:/d"));
        assert_eq!(list(Some(a), Some(b)), ["/a/libvdeplug_x.so", "/b/libvdeplug_x.so"].map(PathBuf::from));
        let expected = [
            "/opt/lib/vdeplug/libvdeplug_x.so",
            "/opt/lib/libvdeplug_x.so",
            "/c/vdeplug/libvdeplug_x.so",
            "/d/vdeplug/libvdeplug_x.so",
            "/lib/vdeplug/libvdeplug_x.so",
            "/usr/lib/vdeplug/libvdeplug_x.so",
            &format!("{DEBIAN}/libvdeplug_x.so"),
            "libvdeplug_x.so",
        ];
        assert_eq!(list(None, Some(b)), expected.map(PathBuf::from));
        assert_eq!(candidates("x", None, None, || None).len(), 4);
        assert!(list(Some(OsStr::new("")), None).is_empty());
    }
}
