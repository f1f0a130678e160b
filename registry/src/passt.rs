//! Domains of libvirt whose NICs come through the passt door (`vde-passt`): each NIC has a back end of its own.
//!
//! ```text
//!  NAME.xml                         in libvirt's directory: a domain of this name runs
//!  passt/ID-SHORT-ALIAS.control     the control socket of one of its NICs; SHORT is NAME up to its 20th character
//! ```
//!
//! These names are the record: the door is QEMU's user, who cannot write where root looks for records. What that user has
//! made is looked at, and nothing more: what is no socket of the directory's owner is passed over, and who connects finds out
//! whether it is still this user who listens.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::process::geteuid;

use crate::entry::Entry;
use crate::process::listener;
use crate::record::{Maker, Nic, Record};

/// How much of a domain's name is in the names of its sockets.
const SHORT_MAX: usize = 20;
/// Most domains and sockets that are looked at.
const NAMES_MAX: usize = 4096;
/// Who has made a socket listens on it by then.
const START_LIMIT: Duration = Duration::from_secs(60);

/// The domains of the libvirt of our user.
pub fn entries() -> Vec<Entry> {
    state_directory().map(|state| entries_in(&state)).unwrap_or_default()
}

/// The names of all domains that the libvirt of our user runs, with a network of ours or without.
pub fn running_domains() -> Vec<String> {
    state_directory().map(|state| names(&state, ".xml")).unwrap_or_default()
}

/// Where libvirt has what belongs to running domains.
fn state_directory() -> Option<PathBuf> {
    match geteuid().is_root() {
        true => Some("/run/libvirt/qemu".into()),
        false => {
            let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
            let login = || PathBuf::from(format!("/run/user/{}", geteuid().as_raw()));
            Some(runtime.unwrap_or_else(login).join("libvirt/qemu/run"))
        }
    }
}

fn entries_in(state: &Path) -> Vec<Entry> {
    let directory = state.join("passt");
    let (running, sockets) = (names(state, ".xml"), sockets(&directory));
    let mut found: BTreeMap<(&str, &str), Entry> = BTreeMap::new();
    for (stem, since) in &sockets {
        let Some((id, name, alias)) = domain_of(stem, &running) else { continue };
        let path = directory.join(format!("{stem}{CONTROL_END}"));
        if listener(&path).is_none() {
            continue;
        }
        let fresh = || Entry::of_sockets(&directory, name, *since);
        let entry = found.entry((id, name)).or_insert_with(fresh);
        entry.record.nics.push(Nic { id: alias.into(), mac: String::new(), model: String::new() });
        entry.record.control.get_or_insert_with(|| path.clone());
        entry.controls.push(path);
    }
    found.into_values().collect()
}

impl Entry {
    /// A domain of which there are sockets only.
    fn of_sockets(directory: &Path, name: &str, since: u64) -> Self {
        let record = Record {
            name: Some(name.into()),
            program: String::new(),
            process: None,
            qmp: None,
            control: None,
            nics: Vec::new(),
            made_by: Maker::Passt,
            since,
        };
        Self { directory: directory.into(), record, controls: Vec::new(), pid: None }
    }
}

/// How the names of control sockets end.
const CONTROL_END: &str = ".control";

/// What the names in a directory begin with, of those that end so.
fn names(directory: &Path, end: &str) -> Vec<String> {
    let names = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = names
        .take(NAMES_MAX)
        .filter_map(|found| Some(found.file_name().to_str()?.strip_suffix(end)?.to_owned()));
    names.collect()
}

/// The control sockets of the directory's owner, and since when they are there.
fn sockets(directory: &Path) -> Vec<(String, u64)> {
    let Ok(own) = fs::symlink_metadata(directory) else { return Vec::new() };
    let mut stems = names(directory, CONTROL_END);
    stems.sort();
    let is_theirs = |stem: String| {
        let found = fs::symlink_metadata(directory.join(format!("{stem}{CONTROL_END}"))).ok()?;
        let since = found.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_secs();
        (own.is_dir() && found.file_type().is_socket() && found.uid() == own.uid()).then_some((stem, since))
    };
    stems.into_iter().filter_map(is_theirs).collect()
}

/// The domain that `ID-SHORT-ALIAS` is of: its number, its name, and the alias.
fn domain_of<'a>(stem: &'a str, running: &'a [String]) -> Option<(&'a str, &'a str, &'a str)> {
    let (id, rest) = stem.split_once('-').filter(|(id, _)| id.parse::<u32>().is_ok())?;
    let alias = |name: &'a String| {
        let short = name.char_indices().nth(SHORT_MAX).and_then(|(end, _)| name.get(..end)).unwrap_or(name);
        let alias = rest.strip_prefix(short)?.strip_prefix('-')?;
        (alias.starts_with("net") || alias.starts_with("ua-")).then_some((id, name.as_str(), alias))
    };
    // One name may be the beginning of another one.
    running.iter().filter_map(alias).max_by_key(|(_, name, _)| name.len())
}

/// Removes the control sockets in a directory of ours behind which nobody listens any more: nobody else knows of them.
pub fn sweep(directory: &Path) {
    if !fs::symlink_metadata(directory).is_ok_and(|found| found.uid() == geteuid().as_raw()) {
        return;
    }
    let now = Record::now();
    let is_old = |since: u64| now.saturating_sub(since) > START_LIMIT.as_secs();
    for (stem, _) in sockets(directory).into_iter().filter(|(_, since)| is_old(*since)) {
        let path = directory.join(format!("{stem}{CONTROL_END}"));
        if listener(&path).is_none() {
            // What cannot be removed is no less there.
            fs::remove_file(path).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::time::SystemTime;

    use crate::process::end;

    #[test]
    fn a_name_is_that_of_a_domain_that_runs() {
        let running = ["a", "a-net0", "a-very-long-name-of-a-domain-ü"].map(str::to_owned);
        for (stem, expected) in [
            ("1-a-net0", Some(("1", "a", "net0"))),
            ("2-a-net0-ua-x", Some(("2", "a-net0", "ua-x"))),
            ("3-a-very-long-name-of--ua-my-nic", Some(("3", "a-very-long-name-of-a-domain-ü", "ua-my-nic"))),
            ("3-a-very-long-name-net0", None),
            ("4-b-net0", None),
            ("x-a-net0", None),
            ("5-a-x", None),
            ("6-a", None),
            ("", None),
        ] {
            assert_eq!(domain_of(stem, &running), expected, "{stem}");
        }
    }

    #[test]
    fn domains_are_those_whose_back_ends_listen() {
        let state = tempfile::tempdir().unwrap();
        let directory = state.path().join("passt");
        assert!(entries_in(state.path()).is_empty());
        fs::create_dir(&directory).unwrap();
        let at = |name: &str| directory.join(name);
        let listen = |name: &str| UnixListener::bind(at(name)).unwrap();
        let _alive =
            [listen("1-desk-net0.control"), listen("1-desk-net1.control"), listen("7-other-net0.control")];
        end(listen("1-desk-net2.control"));
        symlink(at("1-desk-net0.control"), at("1-desk-net3.control")).unwrap();
        fs::write(at("1-desk-net4.control"), "").unwrap();
        fs::write(state.path().join("desk.xml"), "").unwrap();

        let found = entries_in(state.path());
        assert_eq!(found.len(), 1, "{found:?}");
        let ids: Vec<&str> = found[0].record.nics.iter().map(|nic| nic.id.as_str()).collect();
        assert_eq!((found[0].record.name.as_deref(), &*ids), (Some("desk"), &["net0", "net1"][..]));
        assert_eq!(found[0].controls, [at("1-desk-net0.control"), at("1-desk-net1.control")]);

        // A young one may be about to listen.
        sweep(&directory);
        assert!(at("1-desk-net2.control").exists());
        let old = SystemTime::now() - 2 * START_LIMIT;
        let old = rustix::fs::Timespec {
            tv_sec: i64::try_from(old.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap(),
            tv_nsec: 0,
        };
        let times = rustix::fs::Timestamps { last_access: old, last_modification: old };
        for name in ["1-desk-net0.control", "1-desk-net2.control"] {
            rustix::fs::utimensat(rustix::fs::CWD, at(name), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                .unwrap();
        }
        sweep(&directory);
        assert!(at("1-desk-net0.control").exists() && !at("1-desk-net2.control").exists());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 5);
    }
}
