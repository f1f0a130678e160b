//! Whether there is a default switch, as libvdeplug looks for one: in the files of the user, then at two places.
//!
//! In `/tmp` anybody can make one, so that one counts only if it is root's or our own: it is asked about for VMs that
//! say nothing of networks, and these are not to be joined to a stranger's. Who names it joins it all the same.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Whether an empty locator leads somewhere.
pub fn exists() -> bool {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let files = [".vdeplug/default", ".vde2/default.switch"];
    let of_user = home.iter().flat_map(|home| files.map(|file| home.join(file)));
    let mut of_us = of_user.chain([PathBuf::from("/var/run/vde.ctl/ctl")]);
    of_us.any(|path| path.exists()) || is_trusted(Path::new("/tmp/vde.ctl/ctl"))
}

/// Whether it is there, and nobody but root and we could have made it or its directory, which may be links.
fn is_trusted(path: &Path) -> bool {
    let ours = rustix::process::geteuid().as_raw();
    let of_us = |path: &Path| path.symlink_metadata().is_ok_and(|found| [0, ours].contains(&found.uid()));
    of_us(path) && path.parent().is_some_and(of_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_trusted_not_a_strangers() {
        let scratch = tempfile::tempdir().expect("scratch");
        let ctl = scratch.path().join("ctl");
        assert!(!is_trusted(&ctl));
        std::fs::write(&ctl, "").expect("file");
        assert!(is_trusted(&ctl));
        for path in [scratch.path(), &ctl] {
            std::os::unix::fs::chown(path, Some(65534), None).expect("chown: run the tests as root");
            assert!(!is_trusted(&ctl), "{}", path.display());
            std::os::unix::fs::chown(path, Some(0), None).expect("chown");
        }
    }
}
