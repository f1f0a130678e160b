//! Machines that lack one thing or another.

use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use super::*;

fn write(path: &Path, text: &str, mode: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_hook_is_known_by_what_is_in_it() {
    let scratch = tempfile::tempdir().unwrap();
    let hooks = scratch.path();
    let file = |name: &str| hooks.join(name);
    write(&file("qemu.d/other"), "#!/bin/sh\nexit 0\n", 0o755);
    assert!(hook(hooks, None).unwrap_err().contains("there is none of ours"));
    write(&file("qemu.d/vde"), &format!("ELF {NAMESPACE} x"), 0o644);
    assert!(hook(hooks, None).unwrap_err().contains("qemu.d/vde is not executable: chmod 755"));
    write(&file("qemu"), "#!/bin/sh\nexec vde-libvirt-hook \"$@\"\n", 0o755);
    assert_eq!(hook(hooks, None), Ok(file("qemu")));
}

#[test]
fn a_hook_has_to_be_there_before_the_daemon() {
    let scratch = tempfile::tempdir().unwrap();
    let hooks = scratch.path();
    write(&hooks.join("qemu.d/vde"), &format!("ELF {NAMESPACE} x"), 0o755);
    let at = |seconds: i64| {
        let now = SystemTime::now();
        let by = Duration::from_secs(seconds.unsigned_abs());
        Daemon::started_at(if seconds < 0 { now - by } else { now + by }, hooks)
    };
    assert!(hook(hooks, Some(&at(-60))).unwrap_err().contains("is newer than libvirtd"));
    assert_eq!(hook(hooks, Some(&at(60))), Ok(hooks.join("qemu.d/vde")));
}

#[test]
fn the_back_end_is_beside_the_hook_or_on_the_path() {
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let file = |name: &str| scratch.path().join(name);
    write(&file("bin/vde-libvirt-hook"), "ELF", 0o755);
    write(&file("path/other"), "", 0o755);
    symlink(file("bin/vde-libvirt-hook"), file("hook")).unwrap();
    let daemon = Daemon::started_at(SystemTime::now(), &file("path"));
    let stranger = Identity { uid: 3_999_999, gid: 3_999_999, groups: vec![3_999_999] };
    let said = |user: Option<&Identity>| program(&file("hook"), Some(&daemon), user);
    assert!(said(None).unwrap_err().contains("nor on the daemon's PATH"));
    assert_eq!(program(&file("hook"), None, None), Ok(None), "the PATH is not known");
    for place in ["path", "bin"] {
        write(&file(place).join(PROGRAM), "ELF", 0o755);
        let found = fs::canonicalize(file(place).join(PROGRAM)).unwrap();
        assert_eq!(said(Some(&stranger)), Ok(Some(found.clone())));
        assert_eq!(said(None), Ok(Some(found)));
        fs::set_permissions(file(place), fs::Permissions::from_mode(0o750)).unwrap();
        let closed = said(Some(&stranger)).unwrap_err();
        assert!(closed.ends_with(&format!("chmod a+rx {}", file(place).display())), "{closed}");
        fs::set_permissions(file(place), fs::Permissions::from_mode(0o755)).unwrap();
    }
    write(&file("bin").join(PROGRAM), "ELF", 0o644);
    for user in [None, Some(&stranger)] {
        assert!(said(user).unwrap_err().contains("may not be run"), "{user:?}");
    }
    // What a script finds is its own affair.
    write(&file("script"), "#!/bin/sh\nexec vde-libvirt-hook\n", 0o755);
    assert_eq!(program(&file("script"), Some(&daemon), None), Ok(None));
}

#[test]
fn an_old_libvirt_reads_one_hook_only() {
    let said = |version: &str| format!("Using library: libvirt 6.0.0\nRunning against daemon: {version}\n");
    let (single, many) = (Path::new("hooks/qemu"), Path::new("hooks/qemu.d/vde"));
    for old in ["6.4.0", "5.10.0"] {
        assert!(version(&said(old), many).unwrap().contains(old));
        assert_eq!(version(&said(old), single), None);
    }
    for new in ["6.5.0", "9.0.0", "11.3.0", "odd"] {
        assert_eq!(version(&said(new), many), None, "{new}");
    }
    assert_eq!(version("", many), None);
}
