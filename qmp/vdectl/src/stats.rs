//! `vdectl stats`: what the back ends have counted, as a table or for Prometheus.
//!
//! A file is replaced by its successor at once: who reads it sees either. It is written beside the old one first, so that a full
//! disk leaves that as it was.

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::cli::Stats;
use crate::exposition;
use crate::scrape::serve;
use crate::snapshot::{self, Snapshot};
use crate::table::Table;
use crate::vm::Vm;
use crate::{Failure, complain};

/// Carries it out.
pub fn run(args: &Stats) -> Result<(), Failure> {
    if !args.prometheus {
        return show(&snapshot::take(&vms(&args.vms)?));
    }
    // VMs come and go: those that are not named are looked for anew each time.
    let text = || Ok(exposition::text(&snapshot::take(&vms(&args.vms)?)));
    match (&args.output, &args.listen) {
        (Some(file), _) => {
            let failed = |error| Failure::new(format!("cannot write {}: {error}", file.display()));
            replace(file, &text()?).map_err(failed)
        }
        (None, Some(path)) => serve(path, text),
        (None, None) => crate::print(&text()?),
    }
}

/// The VMs of these names, or all that have a back end. No two have the same name then: what is counted of them would be one.
fn vms(words: &[String]) -> Result<Vec<Vm>, Failure> {
    let mut vms = match words {
        [] => Vm::all().into_iter().filter(|vm| !vm.controls.is_empty()).collect(),
        words => words.iter().map(|word| Vm::find(word)).collect::<Result<Vec<_>, _>>()?,
    };
    let mut known = HashSet::new();
    vms.retain(|vm| known.insert((vm.name.clone(), vm.controls.clone())));
    let mut counts = HashMap::new();
    vms.iter().for_each(|vm| *counts.entry(vm.name.clone()).or_insert(0) += 1);
    for vm in vms.iter_mut().filter(|vm| counts.get(&vm.name).is_some_and(|count| *count > 1)) {
        let directory = vm.entry.as_ref().and_then(|entry| entry.directory.file_name());
        let behind = directory.map(|name| name.to_string_lossy().into_owned()).unwrap_or(vm.qmp.to_string());
        vm.name = format!("{} ({behind})", vm.name);
    }
    Ok(vms)
}

/// A line for each counter that is not zero. Fails if a VM does not tell, once what the others tell was shown.
fn show(snapshots: &[Snapshot]) -> Result<(), Failure> {
    let mut silent = None;
    let mut table = Table::new(&["VM", "NIC", "LINK", "COUNTER", "VALUE"]);
    for Snapshot { vm, seen } in snapshots {
        let holders = match seen {
            Ok(holders) => holders,
            Err(failure) => {
                if let Some(before) = silent.replace(failure.clone()) {
                    complain(before);
                }
                continue;
            }
        };
        for holder in holders {
            let mut counted = |link: &str, name: &str, value: u64| {
                if value > 0 {
                    table.row([vm, &holder.id, link, name, &value.to_string()]);
                }
            };
            holder.counters.iter().for_each(|(name, value)| counted("", name, *value));
            for link in &holder.links {
                for (name, value) in traffic(link) {
                    counted(&link.id, &name.replace('-', "_"), value);
                }
            }
        }
    }
    crate::print(&table.to_string())?;
    silent.map_or(Ok(()), Err)
}

/// What passed through a link, by the names of the control socket.
fn traffic(link: &vde_control::Link) -> Vec<(String, u64)> {
    let named: Map<String, Value> = json!(link.traffic).as_object().cloned().unwrap_or_default();
    named.into_iter().filter_map(|(name, value)| Some((name, value.as_u64()?))).collect()
}

/// Puts a text into a file that everybody may read, in place of the one that is there.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    // What a symbolic link points to is replaced, not the link.
    let file = match fs::canonicalize(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => file.to_owned(),
        found => found?,
    };
    if fs::metadata(&file).is_ok_and(|present| !present.is_file()) {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it exists and is not a file"));
    }
    let fresh = beside(&file)?;
    let written = write(&fresh, text).and_then(|()| fs::rename(&fresh, &file));
    if written.is_err() {
        fs::remove_file(&fresh).ok();
    }
    written
}

/// A name in the same directory that is nobody else's. Who collects `*.prom` does not take it for one of these.
fn beside(file: &Path) -> io::Result<PathBuf> {
    let name = file.file_name().ok_or(ErrorKind::InvalidInput)?;
    let mut fresh = std::ffi::OsString::from(".");
    fresh.push(name);
    fresh.push(format!(".{}.new", std::process::id()));
    Ok(file.with_file_name(fresh))
}

fn write(fresh: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(fresh) {
        // Somebody who had our process id before was killed here.
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(fresh)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    // Some file systems find out late that they are full.
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("vde.prom");
        replace(&file, "one\n").unwrap();
        let alias = directory.path().join("alias");
        std::os::unix::fs::symlink(&file, &alias).unwrap();
        replace(&alias, "two\n").unwrap();
        assert!(fs::symlink_metadata(&alias).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "two\n");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
        assert!(replace(directory.path(), "three\n").is_err());
        assert!(replace(Path::new("/dev/null"), "three\n").is_err());
        assert!(replace(&directory.path().join("nowhere/vde.prom"), "three\n").is_err());
        // Nothing else is left there.
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
