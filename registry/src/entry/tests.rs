//! Directories of VMs in all states that somebody who was killed can leave them in.

use super::*;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::time::SystemTime;

use crate::process::end;
use crate::record::Maker;

/// No process has a number as high as these (PID_MAX_LIMIT is 4194304).
const DEAD: u32 = 99_999_999;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A directory with a record of this process.
    fn vm(&self, name: &str, process: Option<Process>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        let record = Record {
            name: Some(name.into()),
            program: "/usr/bin/qemu".into(),
            process,
            qmp: Some(format!("unix:{}", path.join(MONITOR).display())),
            control: Some(path.join(CONTROL)),
            nics: Vec::new(),
            made_by: Maker::Vdeq,
            since: 1,
        };
        directory::write(&path, RECORD, &record.to_json()).unwrap();
        path
    }

    fn age(&self, name: &str) {
        let old = SystemTime::now() - 2 * START_LIMIT;
        fs::File::open(self.path(name)).unwrap().set_modified(old).unwrap();
    }

    fn names(&self) -> Vec<(String, Option<u32>)> {
        let entries = entries_at(self.0.path()).into_iter();
        let mut names: Vec<_> = entries.map(|entry| (entry.record.name.unwrap(), entry.pid)).collect();
        names.sort();
        names
    }
}

#[test]
fn a_vm_is_alive_by_its_process_its_monitor_or_its_back_end() {
    let place = Place::new();
    let own = std::process::id();
    let dead = Some(Process { pid: DEAD, start_time: 1 });
    // The number is another process's now.
    let successor = Process::own().map(|own| Process { start_time: own.start_time + 1, ..own });
    place.vm("1", Process::own());
    let monitor = UnixListener::bind(place.vm("2", dead).join(MONITOR)).unwrap();
    let back_end = UnixListener::bind(place.vm("3", successor).join(CONTROL)).unwrap();
    place.vm("4", dead);
    for name in ["1", "2", "3", "4"] {
        place.age(name);
    }
    let expected = [("1", Some(own)), ("2", Some(own)), ("3", None)];
    assert_eq!(place.names(), expected.map(|(name, pid)| (name.to_owned(), pid)));
    assert!(!place.path("4").exists());
    [monitor, back_end].into_iter().for_each(end);
    for name in ["2", "3"] {
        place.age(name);
    }
    assert_eq!(place.names(), [("1".to_owned(), Some(own))]);
    assert!(!place.path("2").exists() && !place.path("3").exists());
}

#[test]
fn what_is_young_is_not_listed_and_not_removed() {
    let place = Place::new();
    place.vm("1", Some(Process { pid: DEAD, start_time: 1 }));
    assert_eq!(place.names(), []);
    assert!(place.path("1").exists());
}

#[test]
fn garbage_is_removed_once_nobody_answers() {
    let place = Place::new();
    for (name, text) in [("1", "garbage"), ("2", ""), ("3", "{\"program\": 1}")] {
        fs::create_dir(place.path(name)).unwrap();
        fs::write(place.path(name).join(RECORD), text).unwrap();
    }
    let back_end = UnixListener::bind(place.path("3").join(CONTROL)).unwrap();
    for name in ["1", "2", "3"] {
        place.age(name);
    }
    assert_eq!(place.names(), []);
    assert_eq!(["1", "2", "3"].map(|name| place.path(name).exists()), [false, false, true]);
    drop(back_end);
}

#[test]
fn sweep_removes_only_old_directories_of_the_dead_without_sockets() {
    let place = Place::new();
    let (dead, used, unseen, begun) = ("99999999", "99999998-1", "99999997", "99999996");
    let ours = std::process::id().to_string();
    for name in [dead, used, unseen, begun, &ours, "other"] {
        fs::create_dir(place.path(name)).unwrap();
    }
    let _socket = UnixListener::bind(place.path(used).join("0.sock")).unwrap();
    // By a vdeq that was killed as it made its files.
    fs::write(place.path(begun).join("monitor.conf.new"), "").unwrap();
    for name in [dead, used, begun, &ours, "other"] {
        place.age(name);
    }
    sweep(place.0.path());
    assert!(!place.path(dead).exists() && !place.path(begun).exists());
    for name in [used, unseen, &ours, "other"] {
        assert!(place.path(name).exists(), "{name}");
    }
}

#[test]
fn strangers_stay() {
    let place = Place::new();
    let dead = Some(Process { pid: DEAD, start_time: 1 });
    // A link to a dead VM, a file, a name that is no number, somebody else's directory, and a stranger beside a record.
    let elsewhere = Place::new();
    elsewhere.vm("1", dead);
    elsewhere.age("1");
    symlink(elsewhere.path("1"), place.path("1")).unwrap();
    fs::write(place.path("2"), "").unwrap();
    place.vm("notes", dead);
    std::os::unix::fs::chown(place.vm("3", dead), Some(65534), None).expect("chown: run the tests as root");
    fs::write(place.vm("4", dead).join("notes"), "").unwrap();
    for name in ["notes", "3", "4"] {
        place.age(name);
    }
    assert_eq!(place.names(), []);
    assert!(elsewhere.path("1").join(RECORD).exists());
    for name in ["2", "notes/vm.json", "3/vm.json", "4/notes"] {
        assert!(place.path(name).exists(), "{name}");
    }
}

#[test]
fn domains_of_libvirt_are_vms_by_any_name() {
    let place = Place::new();
    let mode = |mode| {
        fs::set_permissions(place.path(DOMAINS), std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    fs::create_dir(place.path(DOMAINS)).unwrap();
    mode(0o711);
    place.vm("web", Process::own());
    assert_eq!(place.names(), []);
    place.vm("libvirt/web", Process::own());
    place.vm("libvirt/old", None);
    place.age("libvirt/old");
    assert_eq!(place.names(), [("libvirt/web".into(), Some(std::process::id()))]);
    assert!(place.path("libvirt/web").exists() && !place.path("libvirt/old").exists());
    // Not where others may have written.
    mode(0o777);
    assert_eq!(place.names(), []);
}
