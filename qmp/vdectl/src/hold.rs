//! One `vdectl` at a time changes a VM.
//!
//! Who changes a VM has its entry in the registry locked. One that has no entry, because no back end was ever started for it, is
//! held by its process, which is the same through each of its monitors; where that cannot be told, by its monitor, which
//! serves one client at a time. Only this VM is waited for, then: one that hangs is in nobody else's way.

use qmp::commands::Chardev;
use qmp::{Address, Client};
use registry::{Entry, Lock, listener};
use rustix::net::sockopt::socket_peercred;

use crate::Failure;
use crate::nics::unix_socket;
use crate::vm::Vm;

/// A VM that nobody else changes.
#[derive(Debug)]
pub struct Held {
    /// The VM, as it was found when others had finished.
    pub vm: Vm,
    /// Its monitor.
    pub monitor: Client,
    _lock: Option<Lock>,
}

impl Held {
    /// Finds a VM, waits for those who are changing it, and connects to its monitor.
    pub fn take(word: &str) -> Result<Self, Failure> {
        loop {
            let mut monitor = None;
            let before = look(word, &mut monitor)?;
            let lock = match (&before.entry, &mut monitor) {
                (Some(entry), _) => match entry.lock() {
                    // What is left without its last NIC goes, and so does its entry.
                    Err(registry::Error::Gone) => continue,
                    lock => Some(lock?),
                },
                (None, Some(monitor)) => process_of(&before, monitor).map_or(Ok(None), Lock::of_process)?,
                (None, None) => None,
            };
            let vm = look(word, &mut monitor)?;
            let directory = |vm: &Vm| vm.entry.as_ref().map(|entry| entry.directory.clone());
            // Somebody else may have been the first to start a back end for it.
            if directory(&vm) == directory(&before) {
                let monitor = monitor.map_or_else(|| vm.monitor(), Ok)?;
                return Ok(Self { vm, monitor, _lock: lock });
            }
        }
    }
}

/// Finds a VM. One that is not known by this word is asked, through its monitor, whether it is known by another.
fn look(word: &str, monitor: &mut Option<Client>) -> Result<Vm, Failure> {
    let vm = Vm::find(word)?;
    if vm.entry.is_some() {
        return Ok(vm);
    }
    let mut client = match monitor.take() {
        Some(client) => client,
        None => vm.monitor()?,
    };
    let chardevs = client.query_chardev().unwrap_or_default();
    *monitor = Some(client);
    let sockets: Vec<_> = chardevs.iter().filter_map(|chardev| unix_socket(&chardev.filename)).collect();
    // It has a socket of the entry's: that of a NIC, or of the monitor that vdeq gave it.
    let is_it = |entry: &Entry| sockets.iter().any(|path| path.parent() == Some(&*entry.directory));
    Ok(match registry::entries().into_iter().find(is_it) {
        Some(entry) => Vm { controls: entry.controls.clone(), entry: Some(entry), ..vm },
        None => vm,
    })
}

/// The process of a QEMU, by its monitor or, where that does not tell, by another one.
fn process_of(vm: &Vm, monitor: &mut Client) -> Option<u32> {
    if let Address::Unix(_) = vm.qmp.absolute() {
        return u32::try_from(socket_peercred(&*monitor).ok()?.pid.as_raw_nonzero().get()).ok();
    }
    // Those of other uses might take us for whom they wait for.
    let is_monitor = |chardev: &Chardev| {
        chardev.label.starts_with("compat_monitor") && chardev.filename.ends_with(",server=on")
    };
    let chardevs = monitor.query_chardev().ok()?;
    let sockets = chardevs.iter().filter(|chardev| is_monitor(chardev));
    sockets.filter_map(|chardev| listener(&unix_socket(&chardev.filename)?)?).next()
}
