//! `vdectl libvirt check`: what a domain lacks, a line for each thing, with what mends it.

mod daemon;
mod host;
mod modules;
mod networks;
mod ways;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use registry::Lock;
use vde_libvirt::domain::{Domain, NAMESPACE, Nic, Nics};
use vde_libvirt::owner;
use vde_libvirt::plan::{self, Plan};
use vde_libvirt::policy::Policy;

use super::serving::{Leftovers, connect, entry};
use super::virsh::{Scope, State, Virsh};
use super::{base, is_ours, orphans};
use crate::{Failure, print};
use host::Machine;
use modules::Way;
use networks::Trial;

/// What `detach` is told of a domain that does not run.
const CONFIG: &str = " --config";

/// Carries it out.
pub fn run(virsh: &Virsh, word: &str) -> Result<(), Failure> {
    // What somebody is about to do is not missing.
    let _lock = Lock::of_domains()?;
    if let Some(name) = virsh.starting(word)? {
        return tell(&name, &of_start(virsh, &name)?);
    }
    let domain = virsh.domain(word, Scope::Live)?;
    print(&ways::shown(&domain).iter().map(|line| line_of(line)).collect::<String>())?;
    let state = virsh.state(&domain)?;
    let mut missing = Vec::new();
    let machine = Machine::of(&domain, &mut missing);
    missing.extend(ways::missing(&domain, &machine, state.runs)?);
    let directories = plan::directories(&base()?, &domain)?;
    // One that has no network at all may be about to get one.
    if asks(&domain, &directories) || ways::through_door(&domain).is_empty() && !ways::is_vdeq(&domain) {
        missing.extend(of_domain(virsh, &domain, state, &machine, &directories)?);
    }
    // Two ways may lack the same.
    let mut said = HashSet::new();
    missing.retain(|line| said.insert(line.clone()));
    tell(&domain.name, &missing)
}

/// Whether a domain has a NIC for the hook.
fn asks(domain: &Domain, directories: &[PathBuf; 2]) -> bool {
    domain.nics.is_some() || domain.interfaces.iter().any(|interface| is_ours(interface, directories))
}

/// What a domain lacks that has its networks by the hook.
fn of_domain(
    virsh: &Virsh,
    domain: &Domain,
    state: State,
    machine: &Machine,
    directories: &[PathBuf; 2],
) -> Result<Vec<String>, Failure> {
    let mut missing = of_xml(domain, if state.runs { "" } else { CONFIG })?;
    let next = match state.runs && state.persists {
        true => Some(virsh.domain(&domain.uuid, Scope::Config)?),
        false => None,
    };
    // It may have come by its networks while it ran, for that time alone.
    let next = next.filter(|next| asks(next, directories));
    let of_next = next.as_ref().map_or(Ok(Vec::new()), |next| of_xml(next, CONFIG))?;
    let of_next = of_next.into_iter().filter(|line| !missing.contains(line)).map(next_start);
    missing.extend(of_next.collect::<Vec<_>>());
    let trial = of_host(virsh, machine, &mut missing)?;
    let served = match state.runs {
        true => of_life(domain, directories, &mut missing)?,
        false => Vec::new(),
    };
    if let Some(trial) = trial {
        let (policy, links) = (Policy::of_user()?, networks::links(domain));
        // Those that a back end is on it knows better.
        let known = if served.is_empty() { &[] } else { &*links };
        missing.extend(trial.of(links.iter().copied().filter(|link| !known.contains(link)), &policy));
        let of_next = next.iter().flat_map(networks::links).filter(|link| !links.contains(link));
        missing.extend(trial.of(of_next, &policy).into_iter().map(next_start));
    }
    Ok(missing)
}

fn next_start(line: String) -> String {
    format!("next start: {line}")
}

/// As it is printed: names in it were chosen by others.
fn line_of(text: &str) -> String {
    format!("{}\n", Failure::new(text))
}

/// Says what is missing.
fn tell(name: &str, missing: &[String]) -> Result<(), Failure> {
    if missing.is_empty() {
        return print(&format!("{name}: nothing is missing\n"));
    }
    print(&missing.iter().map(|line| line_of(line)).collect::<String>())?;
    let count = match missing.len() {
        1 => "one thing is".to_owned(),
        count => format!("{count} things are"),
    };
    Err(Failure::new(format!("{count} missing for the VDE networks of '{name}'")))
}

/// What can be told of a domain of which libvirt tells nothing, since it is starting it.
fn of_start(virsh: &Virsh, name: &str) -> Result<Vec<String>, Failure> {
    let mut missing = Vec::new();
    let domain = Domain { name: name.to_owned(), ..Domain::default() };
    let machine = Machine::of(&domain, &mut missing);
    of_host(virsh, &machine, &mut missing)?;
    missing.push(format!(
        "start: libvirt is starting the domain; if that does not end, QEMU waits for a socket at which nobody serves: \
         virsh destroy {name}"
    ));
    Ok(missing)
}

/// What this machine lacks for the hook. Gives who can join networks as the back end does, if there is anybody.
fn of_host(virsh: &Virsh, machine: &Machine, missing: &mut Vec<String>) -> Result<Option<Trial>, Failure> {
    let (daemon, user) = (machine.daemon.as_ref(), machine.user());
    let hook = host::hook(Path::new(host::HOOKS), daemon).map_err(|line| missing.push(line)).ok();
    let program = match &hook {
        Some(hook) => {
            missing.extend(host::version(&virsh.version()?, hook));
            host::program(hook, daemon, user)
        }
        None => Ok(None),
    };
    missing.extend(machine.lacks(Way::Hook, hook.as_deref()));
    Ok(machine.trial(program.map_err(|line| missing.push(line)).ok()))
}

/// What can be told from its XML: each NIC by itself, so that one mistake does not hide another.
fn of_xml(domain: &Domain, config: &str) -> Result<Vec<String>, Failure> {
    let (base, policy) = (base()?, Policy::of_user()?);
    let mut missing = Vec::new();
    if !domain.shared_memory {
        missing.push(format!("memory: it is not shared; {}", domain.remedy_of_memory()));
    }
    let Some(nics) = domain.nics.as_ref().filter(|nics| !nics.nics.is_empty()) else {
        missing.push(format!(
            "metadata: there is no <vde:nic> in <vde:nics xmlns:vde='{NAMESPACE}'>; vdectl libvirt xml prints one"
        ));
        return Ok(missing);
    };
    let before = missing.len();
    let orphans: Vec<&str> = orphans(domain).collect();
    missing.extend(orphans.iter().map(|mac| {
        format!(
            "NIC {mac}: there is no <interface> for it: vdectl libvirt detach {} {mac}{config}",
            domain.name
        )
    }));
    let is_orphan = |nic: &&Nic| nic.mac.as_deref().is_some_and(|mac| orphans.contains(&mac));
    for nic in nics.nics.iter().filter(|nic| !is_orphan(nic)) {
        match Plan::new(&alone(domain, nics, nic), &base, &policy) {
            Ok(plan) => missing.extend(plan.into_iter().flat_map(|plan| plan.remarks)),
            Err(failure) => missing.push(failure.to_string()),
        }
    }
    if missing.len() == before {
        let whole = Domain { shared_memory: true, ..domain.clone() };
        missing.extend(Plan::new(&whole, &base, &policy).err().map(|failure| failure.to_string()));
    }
    Ok(missing)
}

/// The domain as if it had this NIC of ours and no other.
fn alone(domain: &Domain, nics: &Nics, nic: &Nic) -> Domain {
    let own = found(nic, domain);
    let all = nics.nics.iter().filter_map(|nic| found(nic, domain));
    let others: Vec<usize> = all.filter(|index| Some(*index) != own).collect();
    let mut domain = Domain { shared_memory: true, ..domain.clone() };
    for (index, interface) in domain.interfaces.iter_mut().enumerate() {
        if others.contains(&index) {
            interface.path = None;
        }
    }
    domain.nics = Some(Nics { settings: nics.settings.clone(), nics: vec![nic.clone()], joins: Vec::new() });
    domain
}

/// The number of a NIC's interface, where it has one.
fn found(nic: &Nic, domain: &Domain) -> Option<usize> {
    plan::find(nic, &domain.interfaces).ok().flatten()
}

/// What can be told of a running domain: its back end, its links and its sockets. Gives the NICs that are served.
fn of_life(
    domain: &Domain,
    directories: &[PathBuf; 2],
    missing: &mut Vec<String>,
) -> Result<Vec<vde_control::Nic>, Failure> {
    let owner = owner::of_back_end(domain)?.map_or(rustix::process::geteuid().as_raw(), |owner| owner.uid);
    let nics = domain.nics.iter().flat_map(|nics| &nics.nics);
    let meant: Vec<usize> = nics.filter_map(|nic| found(nic, domain)).collect();
    for (index, interface) in domain.interfaces.iter().enumerate() {
        let Some(path) = interface.path.as_deref().filter(|_| is_ours(interface, directories)) else {
            continue;
        };
        if !meant.contains(&index) {
            missing.push(format!(
                "NIC {0}: its interface has no network: put <vde:nic mac='{0}' link='LOCATOR'/> into <vde:nics>",
                interface.mac
            ));
        }
        missing.extend(of_socket(path, owner));
    }
    let has_nics = domain.nics.as_ref().is_some_and(|nics| !nics.nics.is_empty());
    let entry = entry(directories);
    let Some(entry) = &entry else {
        if has_nics {
            missing.push("back end: it does not run; restart libvirt, which runs the hook then".into());
        }
        return Ok(Vec::new());
    };
    let nics = connect(entry)?.query_nics()?;
    let left = Leftovers::find(directories, domain)?;
    let (meant, left_over): (Vec<_>, Vec<_>) =
        nics.into_iter().partition(|nic| left.nics.iter().all(|(id, _)| *id != nic.id));
    for nic in left_over {
        missing.push(format!(
            "NIC {0}: the back end serves it, and the domain has none like it: vdectl libvirt detach {1} {0}",
            nic.id, domain.name
        ));
    }
    for nic in &meant {
        if !nic.connected {
            missing.push(format!(
                "NIC {0}: QEMU is not connected: vdectl libvirt detach {1} {0}, and attach it again",
                nic.id, domain.name
            ));
        }
        missing.extend(links_down(nic));
    }
    Ok(meant)
}

/// The links of a NIC that is served that do not work.
fn links_down(nic: &vde_control::Nic) -> impl Iterator<Item = String> {
    nic.links.iter().filter(|link| !link.up).map(|link| {
        let reason = link.reason.as_deref().unwrap_or("it is down");
        format!("NIC {}: {}: {reason}", nic.id, link.locator)
    })
}

/// A socket that QEMU's user, and no other, may connect to.
fn of_socket(path: &str, owner: u32) -> Option<String> {
    match fs::symlink_metadata(path) {
        Err(error) => Some(format!("socket {path}: {error}")),
        Ok(found) if !found.file_type().is_socket() => Some(format!("socket {path}: it is no socket")),
        Ok(found) if found.uid() != owner => Some(format!(
            "socket {path}: it is user {}'s, and QEMU is user {owner}: chown {owner} {path}",
            found.uid()
        )),
        Ok(found) if found.mode() & 0o777 != 0o600 => {
            Some(format!("socket {path}: its mode is {:o}: chmod 600 {path}", found.mode() & 0o777))
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use vde_libvirt::domain::Interface;

    #[test]
    fn a_nic_is_looked_at_without_the_others() {
        let interface = |name: &str| Interface {
            mac: format!("mac-{name}"),
            alias: Some(name.into()),
            path: Some(format!("/{name}")),
            ..Interface::default()
        };
        let by_alias = |name: &str| Nic { alias: Some(name.into()), ..Nic::default() };
        let by_mac = Nic { mac: Some("mac-c".into()), ..Nic::default() };
        let domain = Domain { interfaces: ["a", "b", "c", "d"].map(interface).into(), ..Domain::default() };
        let nics = Nics { nics: vec![by_alias("a"), by_alias("b"), by_mac], ..Nics::default() };
        for (nic, left) in nics.nics.iter().zip([["/a", "/d"], ["/b", "/d"], ["/c", "/d"]]) {
            let alone = alone(&domain, &nics, nic);
            let paths: Vec<&str> =
                alone.interfaces.iter().filter_map(|found| found.path.as_deref()).collect();
            assert_eq!(paths, left);
        }
    }

    #[test]
    fn a_socket_is_its_users_alone() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("s").to_string_lossy().into_owned();
        let ours = rustix::process::geteuid().as_raw();
        assert!(of_socket(&path, ours).unwrap().contains("No such file"));
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o666);
        assert!(of_socket(&path, ours).unwrap().contains("its mode is 666"));
        mode(0o600);
        assert_eq!(of_socket(&path, ours), None);
        assert!(of_socket(&path, ours + 1).unwrap().contains("QEMU is user"));
    }
}
