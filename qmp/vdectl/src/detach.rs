//! `vdectl detach`.
//!
//! The guest has to let go of its device first; only then are netdev, chardev and the back end's NIC taken away, in this order.
//! A netdev that is removed under a device leaves the guest a NIC that can never work again. A guest that does not answer keeps
//! its NIC, alive, and the same command finishes later; also when the device has gone by then, by a reset or because the
//! guest unplugged it by itself, and only the rest is left.

use std::io::{IsTerminal, stderr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use qmp::commands::Removal;
use qmp::{Client, Error};
use registry::{Entry, Maker};

use crate::back_end::{BackEnd, sentence};
use crate::cli::Detach;
use crate::hold::Held;
use crate::interrupt::Interrupt;
use crate::names::Names;
use crate::nics::{Nic, Nics};
use crate::{Failure, Status, complain, report};

/// Time between two looks at signals, and whether the device has gone without a word.
const LOOK: Duration = Duration::from_millis(500);
/// Time between two words to a person who waits.
const PROGRESS: Duration = Duration::from_secs(3);

/// How long a back end without NICs may take to end.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Time between two questions whether it has.
const PAUSE: Duration = Duration::from_millis(5);

/// Carries it out.
pub fn run(args: &Detach) -> Result<(), Failure> {
    let mut held = Held::take(&args.vm)?;
    // Until here there is nothing to be undone.
    let interrupt = Interrupt::watch()?;
    // One that has died is no reason to keep what is left of its NICs.
    let (mut back_end, dead) = match held.vm.back_end() {
        Ok(back_end) => (back_end, None),
        Err(failure) => (None, Some(failure)),
    };
    let nics = Nics::of(&mut held.monitor)?;
    let served = back_end.as_mut().map_or_else(|| Ok(Vec::new()), BackEnd::query_nics)?;
    let directory = held.vm.control().and_then(|control| control.parent());
    let whole = Whole::find(&args.nic, &nics, &served, directory).map_err(|failure| match dead {
        Some(dead) => Failure::new(format!("{}; {}", failure.sentence, dead.sentence)),
        None => failure,
    })?;
    if let Some(device) = &whole.device {
        let wait = Duration::from_secs(args.wait);
        match remove(&mut held.monitor, device, wait, &interrupt)? {
            Removal::Done => {}
            kept => {
                let mut failure = still_there(&mut held.monitor, device, kept, args, &interrupt);
                if args.force {
                    failure.sentence.push_str(whole.cut(&mut held.monitor, back_end.as_mut())?);
                }
                return Err(failure);
            }
        }
    }
    whole.clean(&mut held.monitor, back_end.as_mut())?;
    let is_last = served.iter().all(|nic| Some(&nic.id) == whole.served.as_ref()) && whole.served.is_some();
    if let Some(entry) =
        held.vm.entry.as_ref().filter(|entry| is_last && entry.record.made_by == Maker::Vdectl)
    {
        wait_for_end(entry)?;
    }
    report(&match &whole.device {
        Some(_) => format!("{} is out of the VM", whole.name),
        None => format!("{} had left the VM already; the rest of it is removed", whole.name),
    })
}

/// A back end that was started for a running VM ends with its last NIC. Who comes next must not find it half gone.
fn wait_for_end(entry: &Entry) -> Result<(), Failure> {
    let deadline = Instant::now() + END_LIMIT;
    while entry.directory.exists() {
        if Instant::now() >= deadline {
            let problem =
                format!("the back end in {} does not end, though it has no NIC", entry.directory.display());
            return Err(Failure::new(problem));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// A NIC with all that belongs to it, as far as it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Whole {
    name: String,
    device: Option<Nic>,
    netdev: Option<String>,
    chardev: Option<String>,
    /// Its name in the back end.
    served: Option<String>,
    links: Vec<String>,
}

impl Whole {
    /// What a person means by a word, if it is ours.
    fn find(
        word: &str,
        nics: &Nics,
        served: &[vde_control::Nic],
        directory: Option<&Path>,
    ) -> Result<Self, Failure> {
        let device = match nics.find(word) {
            Ok(nic) => Some(nic),
            Err(failure) => match rest_of(word, nics, served) {
                None => return Err(failure),
                Some(_) => None,
            },
        };
        let name = device.map_or_else(|| word.to_owned(), ToString::to_string);
        let netdev = match device {
            Some(nic) => nic.netdev.clone(),
            None => rest_of(word, nics, served),
        };
        let back_end = match (device, &netdev) {
            (Some(nic), _) => nics.served(nic, served),
            (None, Some(netdev)) => served.iter().find(|nic| nic.id == *netdev),
            (None, None) => None,
        };
        let chardev = match netdev.as_deref().and_then(|netdev| nics.netdev(netdev)) {
            Some(netdev) => netdev.chardev().map(str::to_owned),
            None => rest_of_chardev(word, nics),
        };
        let of_chardev =
            || nics.chardevs.iter().find(|(label, _)| chardev.as_ref() == Some(label))?.1.as_deref();
        let socket = netdev.as_deref().and_then(|netdev| nics.socket(netdev)).or_else(of_chardev);
        let is_ours = back_end.is_some()
            || socket.is_some_and(|socket| {
                socket.parent() == directory && directory.is_some()
                    || socket
                        .file_stem()
                        .is_some_and(|stem| netdev == Some(Names::of(&stem.to_string_lossy()).netdev))
            });
        if !is_ours {
            let what = match netdev.as_deref().and_then(|netdev| nics.netdev(netdev)) {
                Some(netdev) => format!("its netdev {} is of type {}", netdev.id, netdev.kind),
                None => "it has no netdev".into(),
            };
            return Err(Failure::new(format!(
                "{name} is no NIC of a VDE back end ({what}); it is removed with QEMU's own device_del"
            )));
        }
        let in_qemu = netdev.filter(|netdev| nics.netdev(netdev).is_some());
        // Through a hub it serves others too.
        let own = back_end.filter(|nic| {
            Some(&nic.id) == in_qemu.as_ref() || nic.socket_path.as_deref() == socket || device.is_none()
        });
        Ok(Self {
            served: own.map(|nic| nic.id.clone()),
            links: own.map(|nic| nic.links.iter().map(|link| link.id.clone()).collect()).unwrap_or_default(),
            name,
            device: device.cloned(),
            netdev: in_qemu,
            chardev,
        })
    }

    /// Takes away what the guest cannot use any more. What has gone already is fine.
    fn clean(&self, monitor: &mut Client, back_end: Option<&mut BackEnd>) -> Result<(), Failure> {
        let left = |what: &str, reason: String| {
            Failure::new(format!("{} is out of the VM, but {what} is left: {reason}", self.name))
        };
        let absent = |result: Result<(), Error>| match result {
            Err(error) if !error.is_not_found() => Err(sentence(&error)),
            _ => Ok(()),
        };
        if let Some(netdev) = &self.netdev {
            absent(monitor.netdev_del(netdev))
                .map_err(|reason| left(&format!("its netdev {netdev}"), reason))?;
        }
        if let Some(chardev) = &self.chardev {
            absent(monitor.chardev_remove(chardev))
                .map_err(|reason| left(&format!("its chardev {chardev}"), reason))?;
        }
        match (&self.served, back_end) {
            (Some(nic), Some(back_end)) => match back_end.nic_del(nic) {
                Err(failure) if failure.status != Status::NotFound => {
                    Err(left(&format!("the NIC {nic} of its back end"), failure.sentence))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Pulls the cable: the guest sees no carrier, and no frame comes or goes.
    fn cut(&self, monitor: &mut Client, back_end: Option<&mut BackEnd>) -> Result<&'static str, Failure> {
        let cannot = |reason| Failure::new(format!("the cable of {} cannot be pulled: {reason}", self.name));
        if let Some(netdev) = &self.netdev {
            monitor.set_link(netdev, false).map_err(|error| cannot(sentence(&error)))?;
        }
        if let (Some(nic), Some(back_end)) = (&self.served, back_end) {
            for link in &self.links {
                match back_end.link_remove(nic, link) {
                    Err(failure) if failure.status != Status::NotFound => {
                        return Err(cannot(failure.sentence));
                    }
                    _ => {}
                }
            }
        }
        Ok("; its cable is pulled, which vdectl link add and up undo")
    }
}

/// The netdev of a NIC whose device has gone: QEMU still has it, or the back end still serves it.
fn rest_of(word: &str, nics: &Nics, served: &[vde_control::Nic]) -> Option<String> {
    let own = Names::of(word).netdev;
    let is_there = |id: &String| {
        nics.netdev(id).is_some()
            || served.iter().any(|nic| nic.id == *id)
            || *id == own && rest_of_chardev(word, nics).is_some()
    };
    let is_used = |id: &String| nics.nics.iter().any(|nic| nic.netdev.as_ref() == Some(id));
    [word.to_owned(), own.clone()].into_iter().find(|id| is_there(id) && !is_used(id))
}

/// The chardev of a NIC of ours whose device and netdev have gone, or were never there.
fn rest_of_chardev(word: &str, nics: &Nics) -> Option<String> {
    let own = Names::of(word).chardev;
    let leads_to_us = |socket: &Option<PathBuf>| {
        socket.as_deref().and_then(Path::file_stem).is_some_and(|stem| stem == word)
    };
    nics.chardevs.iter().any(|(label, socket)| *label == own && leads_to_us(socket)).then_some(own)
}

/// Asks the guest to let go of a device, and waits until it has.
fn remove(
    monitor: &mut Client,
    nic: &Nic,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<Removal, Failure> {
    let failed =
        |error: Error| Failure::new(format!("{nic} cannot be taken out of the VM: {}", sentence(&error)));
    let (begin, mut told, mut is_asked) = (Instant::now(), Instant::now(), false);
    loop {
        if !is_asked {
            is_asked = match monitor.device_del(nic.handle()) {
                Err(error) if error.is_not_found() => return Ok(Removal::Done),
                // Asked before.
                Err(Error::Command { desc, .. }) if desc.contains("in the process of unplug") => true,
                // Its slot has it plugged in or taken out at the moment.
                Err(Error::Command { desc, .. }) if desc.contains("power indicator blinking") => false,
                asked => asked.map(|()| true).map_err(failed)?,
            };
        }
        let left = limit.saturating_sub(begin.elapsed());
        // The event of its back part has a path of its own, and comes first. Those without an id have no other name.
        let event = monitor.wait_for_event(left.min(LOOK), |event| {
            matches!(event.name.as_str(), "DEVICE_DELETED" | "DEVICE_UNPLUG_GUEST_ERROR")
                && event.text("path") == Some(&nic.path)
        });
        match event.map_err(failed)? {
            Some(event) if event.name == "DEVICE_DELETED" => return Ok(Removal::Done),
            Some(_) => return Ok(Removal::Refused),
            None => {}
        }
        // It may have gone between our first look and the request.
        match monitor.qom_get(&nic.path, "type") {
            Err(Error::Command { .. }) => return Ok(Removal::Done),
            known => known.map_err(failed)?,
        };
        if left.is_zero() || interrupt.has_come() {
            return Ok(Removal::Pending);
        }
        if told.elapsed() >= PROGRESS && stderr().is_terminal() {
            told = Instant::now();
            complain(format_args!(
                "waiting for the guest to let go of {nic}: {} of {} s",
                begin.elapsed().as_secs(),
                limit.as_secs()
            ));
        }
    }
}

/// Why the device is still there.
fn still_there(
    monitor: &mut Client,
    nic: &Nic,
    kept: Removal,
    args: &Detach,
    interrupt: &Interrupt,
) -> Failure {
    let status = monitor.query_status().unwrap_or_default();
    let again = format!("{nic} stays as it is, and the same command finishes later");
    let sentence = match (kept, status.as_str()) {
        (Removal::Refused, _) => format!("the guest refuses to let go of {nic}"),
        _ if interrupt.has_come() => {
            format!("interrupted while the guest was asked to let go of {nic}; {again}")
        }
        (_, "running" | "") => format!(
            "the guest has not let go of {nic} within {} s: it may have no system that takes NICs out, or be busy; {again}",
            args.wait
        ),
        (_, status) => format!("the guest cannot let go of {nic}, because the VM is {status}; {again}"),
    };
    Failure { status: Status::Pending, sentence }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(chardev: (&str, &str)) -> Result<Whole, Failure> {
        let nics = Nics { chardevs: vec![(chardev.0.into(), Some(chardev.1.into()))], ..Nics::default() };
        Whole::find("vde0", &nics, &[], None)
    }

    #[test]
    fn a_chardev_is_all_that_is_left() {
        let found = whole(("vde0c", "/run/vdeq/7/vde0.sock")).unwrap();
        assert_eq!((found.chardev.as_deref(), &found.device, &found.netdev), (Some("vde0c"), &None, &None));
        // Others have chardevs too.
        for stranger in [("vde0c", "/tmp/other.sock"), ("vde1c", "/run/vdeq/7/vde0.sock")] {
            assert_eq!(whole(stranger).unwrap_err().status, Status::NotFound);
        }
    }
}
