//! A domain's back end, and the NICs that it serves while the domain runs.
//!
//! A NIC of it consists of a socket, which is made here because the back end's user may not, of what the back end serves there,
//! and of its place in the registry's record. Whatever of these is there already, or has gone, is no mistake: `vdectl`, back end
//! and domain can be killed at any moment, and what is half there is made whole or taken away by the next command.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use registry::{CONTROL, Entry};
use vde_control::NicAdd;
use vde_libvirt::domain::Domain;
use vde_libvirt::plan::Plan;
use vde_libvirt::{back_end, owner};

use crate::back_end::BackEnd;
use crate::{Failure, Status};

/// The registry's entry of a domain whose back end lives.
pub fn entry(directories: &[PathBuf; 2]) -> Option<Entry> {
    registry::entries().into_iter().find(|entry| directories.contains(&entry.directory))
}

/// Connects to the back end of an entry.
pub fn connect(entry: &Entry) -> Result<BackEnd, Failure> {
    match &entry.record.control {
        Some(control) => BackEnd::connect(control),
        None => {
            Err(Failure::new(format!("the back end in {} has no control socket", entry.directory.display())))
        }
    }
}

/// Starts the back end of a running domain.
pub fn start(plan: &Plan, domain: &Domain) -> Result<(), Failure> {
    Ok(back_end::start(plan, domain, owner::of_back_end(domain)?)?)
}

/// Has a back end serve one NIC more.
pub fn add(mut entry: Entry, domain: &Domain, nic: &NicAdd, known: registry::Nic) -> Result<(), Failure> {
    let identity = owner::of_back_end(domain)?;
    let path = nic.socket_path.as_path();
    let socket = back_end::make_socket_of(path, identity.as_ref())?;
    connect(&entry)?.nic_add_on(nic, socket.as_fd())?;
    entry.record.nics.push(known);
    Ok(entry.update()?)
}

/// Has a back end serve a NIC no longer; one without NICs ends.
pub fn remove(directories: &[PathBuf; 2], id: &str, socket: Option<&Path>) -> Result<(), Failure> {
    if let Some(mut entry) = entry(directories) {
        let mut back_end = connect(&entry)?;
        if back_end.query_nics()?.iter().all(|nic| nic.id == id) {
            drop(back_end);
            return Ok(back_end::end(&entry.directory)?);
        }
        match back_end.nic_del(id) {
            Err(failure) if failure.status != Status::NotFound => return Err(failure),
            _ => {}
        }
        entry.record.nics.retain(|known| known.id != id);
        entry.update()?;
    }
    let is_ours = |path: &&Path| directories.iter().any(|ours| path.parent() == Some(ours));
    socket.filter(is_ours).map_or(Ok(()), remove_socket)
}

/// It was made for the back end, which removes only what it made itself.
fn remove_socket(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Failure::new(format!("{} cannot be removed: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// What a `vdectl` has left that was killed before it had told libvirt of a NIC.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// NICs of the back end that no interface and no metadata mean: their ids and sockets.
    pub nics: Vec<(String, Option<PathBuf>)>,
    /// Sockets without anybody behind them.
    pub sockets: Vec<PathBuf>,
}

impl Leftovers {
    /// Looks for them. Nobody else may be changing the domain.
    pub fn find(directories: &[PathBuf; 2], domain: &Domain) -> Result<Self, Failure> {
        let Some(entry) = entry(directories) else { return Ok(Self::default()) };
        let mut back_end = connect(&entry)?;
        let mac = |id: &str| Some(entry.record.nics.iter().find(|known| known.id == id)?.mac.as_str());
        let is_meant = |id: &str| {
            let mac = mac(id);
            let ours = domain.nics.iter().flat_map(|nics| &nics.nics);
            let mut ours = ours.map(|nic| (nic.alias.as_deref(), nic.mac.as_deref()));
            let mut interfaces = domain.interfaces.iter().map(|of| (of.alias.as_deref(), Some(&*of.mac)));
            let fits =
                |(alias, of): (Option<&str>, Option<&str>)| alias == Some(id) || of.is_some() && of == mac;
            ours.any(fits) || interfaces.any(fits)
        };
        let nics = back_end.query_nics()?.into_iter().filter(|nic| !nic.connected && !is_meant(&nic.id));
        let nics = nics.map(|nic| (nic.id, nic.socket_path)).collect();
        Ok(Self { nics, sockets: dead_sockets(&entry.directory, &bound_sockets()) })
    }

    /// Removes them.
    pub fn remove(&self, directories: &[PathBuf; 2]) -> Result<(), Failure> {
        for (id, socket) in &self.nics {
            remove(directories, id, socket.as_deref())?;
        }
        self.sockets.iter().try_for_each(|socket| remove_socket(socket))
    }
}

/// The names of all Unix sockets that are there. Asking one by a connection would end a back end that follows its front end.
fn bound_sockets() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    text.lines().filter_map(|line| Some(PathBuf::from(line.get(line.find(" /")? + 1..)?))).collect()
}

/// The sockets in a directory that have no name there any more. Where the live control socket is not to be seen either, nothing
/// can be told.
fn dead_sockets(directory: &Path, bound: &[PathBuf]) -> Vec<PathBuf> {
    if !bound.contains(&directory.join(CONTROL)) {
        return Vec::new();
    }
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    let sockets = files.filter(|file| file.file_type().is_ok_and(|kind| kind.is_socket()));
    sockets.map(|file| file.path()).filter(|path| !bound.contains(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn dead_sockets_are_those_that_nobody_has() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        let bind = |name| UnixListener::bind(path(name)).unwrap();
        fs::write(path("vm.json"), "").unwrap();
        let (_live, control) = (bind("live 0.sock"), bind(CONTROL));
        // What was closed here may be open for a moment in a child of another test.
        let until = |dead: &[PathBuf]| {
            let begin = std::time::Instant::now();
            while dead_sockets(scratch.path(), &bound_sockets()) != dead {
                assert!(begin.elapsed().as_secs() < 60, "not {dead:?}");
                std::thread::yield_now();
            }
        };
        drop(bind("dead.sock"));
        until(&[path("dead.sock")]);
        drop(control);
        until(&[]);
    }
}
