//! The ways to a VDE network that need no hook: the passt door, through which single NICs go, and `vdeq` as the emulator.

use std::path::{Path, PathBuf};

use registry::Maker;
use vde_libvirt::domain::{Domain, Interface};
use vde_libvirt::policy::Policy;

use super::host::{self, Machine};
use super::modules::{self, Way};
use crate::Failure;
use crate::back_end::BackEnd;

/// What libvirt looks for on its daemon's PATH.
const PASST: &str = "passt";
/// What is to be found there, which has its own name in it.
const DOOR: &str = "vde-passt";

/// A NIC that goes through the passt door.
#[derive(Clone, Copy, Debug)]
pub struct Passing<'a> {
    interface: &'a Interface,
    network: &'a String,
}

/// The NICs that go through the passt door: what has no slash in it is the name of an interface, and passt's own.
pub fn through_door(domain: &Domain) -> Vec<Passing<'_>> {
    let passing = domain.interfaces.iter().filter(|interface| interface.backend.as_deref() == Some(PASST));
    let passing =
        passing.filter_map(|interface| Some(Passing { interface, network: interface.dev.as_ref()? }));
    passing.filter(|passing| passing.network.contains('/')).collect()
}

/// Whether `vdeq` is the emulator, by a link that is called `vde` and QEMU's name.
pub fn is_vdeq(domain: &Domain) -> bool {
    let name = Path::new(&domain.emulator).file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with("vde"))
}

/// A line for each NIC of these ways, which `check` is otherwise not about.
pub fn shown(domain: &Domain) -> Vec<String> {
    let through = through_door(domain);
    let lines = through.iter().map(|Passing { interface, network }| {
        format!("NIC {} goes through the passt door to {network}", interface.mac)
    });
    let of_vdeq = format!(
        "the emulator is {}, and the NICs of its command line are vdeq's own affair",
        domain.emulator
    );
    lines.chain(is_vdeq(domain).then_some(of_vdeq)).collect()
}

/// What they lack.
pub fn missing(domain: &Domain, machine: &Machine, runs: bool) -> Result<Vec<String>, Failure> {
    let mut missing = Vec::new();
    if is_vdeq(domain) {
        let emulator = Path::new(&domain.emulator);
        let (daemon, user) = (machine.daemon.as_ref(), machine.user());
        missing.extend(host::forbidden(emulator, user));
        missing.extend(host::program(emulator, daemon, user).err());
        missing.extend(machine.lacks(Way::Emulator, Some(emulator)));
    }
    let through = through_door(domain);
    if through.is_empty() {
        return Ok(missing);
    }
    let program = door(machine).and_then(|door| match door {
        Some(door) => host::program(&door, machine.daemon.as_ref(), machine.user()),
        None => Ok(None),
    });
    let program = program.map_err(|line| missing.push(line)).ok();
    missing.extend(machine.lacks(Way::Door, None));
    if runs {
        missing.extend(of_life(domain, &through));
        return Ok(missing);
    }
    missing.extend(unstartable(machine, &through));
    if let Some(trial) = machine.trial(program) {
        let policy = Policy::of_user()?;
        // A file that names another network is the door's to read.
        let is_file = |link: &str| !link.contains("://") && Path::new(link).is_file();
        let links = through.iter().map(|passing| passing.network).filter(|link| !is_file(link));
        missing.extend(trial.of(links, &policy));
    }
    Ok(missing)
}

/// The NICs with which libvirt does not start a domain that AppArmor confines: what makes the profile asks for the path of a
/// socket, which those of the door do not have yet (`<interface type='vhostuser'>`, libvirt 11.3).
fn unstartable(machine: &Machine, through: &[Passing<'_>]) -> Vec<String> {
    let confines = |name| modules::apparmor_confines(Path::new("/"), name);
    let is_confined = machine.daemon.as_ref().is_some_and(|daemon| confines(daemon.name));
    let bad = through.iter().filter(|passing| is_confined && passing.interface.kind == "vhostuser");
    bad.map(|passing| {
        format!(
            "NIC {}: libvirt 11.3 makes no AppArmor profile for a domain with <interface type='vhostuser'> and \
             <backend type='passt'/>: write <interface type='user'>, or take the hook",
            passing.interface.mac
        )
    })
    .collect()
}

/// The door, if libvirt comes to it; none if that cannot be told.
fn door(machine: &Machine) -> Result<Option<PathBuf>, String> {
    let Some(daemon) = &machine.daemon else { return Ok(None) };
    let mut all = daemon.path.iter().map(|folder| folder.join(PASST));
    let install = format!("ln -s {DOOR} /usr/local/bin/{PASST}, where {DOOR} is");
    match all.find(|file| host::is_executable(file)) {
        None => Err(format!("passt door: there is no {PASST} on the daemon's PATH: {install}")),
        Some(found) if !host::contents(&found).is_some_and(|bytes| host::has(&bytes, DOOR)) => Err(format!(
            "passt door: {} comes first on the daemon's PATH, and is not {DOOR}: {install}, or change the PATH",
            found.display()
        )),
        Some(found) => host::forbidden(&found, machine.user()).map_or(Ok(Some(found)), Err),
    }
}

/// What the NICs of a running domain lack. Each has a back end of its own.
fn of_life(domain: &Domain, through: &[Passing<'_>]) -> Vec<String> {
    let is_it = |name: &str| name.strip_suffix("/passt").unwrap_or(name) == domain.name;
    let mut entries = registry::entries().into_iter().filter(|entry| entry.record.made_by == Maker::Passt);
    let entry = entries.find(|entry| entry.record.name.as_deref().is_some_and(is_it));
    let served = entry.as_ref().map(|entry| &*entry.record.nics).unwrap_or_default();
    let is_served =
        |interface: &Interface| served.iter().any(|nic| interface.alias.as_ref() == Some(&nic.id));
    let dead = through.iter().filter(|passing| !is_served(passing.interface));
    let mut missing: Vec<String> = dead
        .map(|passing| {
            format!(
                "NIC {}: its back end does not run; unplug it with virsh detach-device, and plug it in again",
                passing.interface.mac
            )
        })
        .collect();
    for control in entry.iter().flat_map(|entry| &entry.controls) {
        match BackEnd::connect(control).and_then(|mut back_end| back_end.query_nics()) {
            Ok(nics) => missing.extend(nics.iter().flat_map(super::links_down)),
            Err(failure) => missing.push(failure.sentence),
        }
    }
    missing
}
