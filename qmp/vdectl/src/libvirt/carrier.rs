//! What guests of domains see of their cables, which is libvirt's to tell and to change: it has the monitor.
//!
//! libvirt pulls the cable of an interface that QEMU serves frame by frame (type `user`, by the passt door). That of a `vhostuser`
//! interface it refuses to pull, up to 11.3 at least; should another one do it, it is asked all the same.

use registry::Record;
use vde_libvirt::domain::{Domain, Interface};

use super::virsh::{Scope, Virsh};
use crate::Failure;
use crate::nics::{Nic, Nics};

/// The NICs of a domain of the passt door: the record has their names alone. Where libvirt does not tell more, they are there
/// all the same.
pub fn nics_of_door(record: &Record) -> Nics {
    let mut nics = Nics::known(record.nics.iter().cloned());
    let told = Virsh::of_user().and_then(|virsh| domain(&virsh, record));
    let interfaces = told.map(|domain| domain.interfaces).unwrap_or_default();
    for nic in &mut nics.nics {
        if let Some(found) = interfaces.iter().find(|interface| interface.alias == nic.id) {
            tell(nic, found);
        }
    }
    nics
}

fn tell(nic: &mut Nic, interface: &Interface) {
    nic.mac.clone_from(&interface.mac);
    nic.model = interface.model.clone().unwrap_or_default();
    // Of others the back end sees more: whether the guest's driver is there.
    nic.carrier = (interface.kind == "user").then_some(!interface.pulled);
}

/// Has the guest see that a cable is pulled, or plugged in.
pub fn set(record: &Record, word: &str, up: bool) -> Result<(), Failure> {
    let virsh = Virsh::of_user()?;
    let domain = domain(&virsh, record)?;
    let name = &domain.name;
    let is_meant = |interface: &&Interface| {
        interface.alias.as_deref() == Some(word) || interface.mac.eq_ignore_ascii_case(word)
    };
    let interface = domain.interfaces.iter().find(is_meant);
    let interface =
        interface.ok_or_else(|| Failure::not_found(format!("there is no NIC '{word}' in '{name}'")))?;
    virsh.set_carrier(&domain, &interface.mac, up).map_err(|failure| {
        match failure.sentence.contains("unable to change config") {
            true => Failure::new(refusal(name, interface.alias.as_deref().unwrap_or(word), up)),
            false => failure,
        }
    })
}

fn refusal(name: &str, nic: &str, up: bool) -> String {
    let state = if up { "on" } else { "off" };
    format!(
        "libvirt does not change what a guest sees of the cable of a vhostuser interface; take its link away, which the guest \
         is not told, with: vdectl link {name} {nic} remove LINK; or taint the domain with: virsh qemu-monitor-command --hmp \
         {name} 'set_link {nic} {state}'"
    )
}

fn domain(virsh: &Virsh, record: &Record) -> Result<Domain, Failure> {
    let name = record.name.as_deref().unwrap_or_default();
    // As the registry calls one that has NICs by the hook, too.
    virsh.domain(name.strip_suffix("/passt").unwrap_or(name), Scope::Live)
}
