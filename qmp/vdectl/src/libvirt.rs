//! `vdectl libvirt`: NICs of libvirt's domains, plugged in and out while these run.
//!
//! libvirt runs no hook for that. So what the hook does at a start is done here, with its own code (crate `vde-libvirt`): the
//! domain's back end, in the same directory and of the same user, gets one more NIC, or is started if there is none. The
//! domain's metadata then says of the NIC what the hook has to know of it when the domain is restored. All else is libvirt's: `virsh`
//! is asked to plug the interface in.

mod attach;
pub mod cables;
mod call;
pub mod carrier;
mod check;
mod detach;
mod serving;
mod target;
mod virsh;

use std::path::{Path, PathBuf};

use vde_libvirt::domain::{Domain, Interface, Nic, Nics};
use vde_libvirt::fragment::{MEMORY, Served};
use vde_libvirt::plan::{self, Plan};
use vde_libvirt::policy::{Allowed, Policy};

use crate::cli::{Domains, Libvirt, Part, Xml};
use crate::interrupt::Interrupt;
use crate::locator::absolute;
use crate::{Failure, Status, complain, names, nics, print};
use virsh::Virsh;

impl From<vde_libvirt::Failure> for Failure {
    fn from(failure: vde_libvirt::Failure) -> Self {
        Self::new(failure.to_string())
    }
}

impl From<registry::Error> for Failure {
    fn from(error: registry::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Carries it out.
pub fn run(args: &Libvirt) -> Result<(), Failure> {
    // virsh may hang from the first call on, and must not be left to itself.
    let virsh = || Virsh::new(args.connect.as_deref(), Interrupt::watch()?);
    match &args.command {
        Domains::Attach(args) => attach::run(&virsh()?, args),
        Domains::Detach(args) => detach::run(&virsh()?, args),
        Domains::Xml(xml_args) => {
            args.connect.as_deref().map_or(Ok(()), virsh::is_reachable)?;
            xml(xml_args)
        }
        Domains::Check { domain } => check::run(&virsh()?, domain),
    }
}

/// Where the directories of domains are.
fn base() -> Result<PathBuf, Failure> {
    registry::domains().ok_or_else(|| Failure::new("there is no place for sockets"))
}

/// Whether an interface has its socket in one of the domain's directories.
fn is_ours(interface: &Interface, directories: &[PathBuf; 2]) -> bool {
    let directory = interface.path.as_deref().and_then(|path| Path::new(path).parent());
    directory.is_some_and(|directory| directories.iter().any(|ours| ours == directory))
}

/// NICs in the metadata that no interface is for: whoever changed the domain was killed half-way.
fn orphans(domain: &Domain) -> impl Iterator<Item = &str> {
    let macs = domain.nics.iter().flat_map(|nics| &nics.nics).filter_map(|nic| nic.mac.as_deref());
    macs.filter(|mac| !domain.interfaces.iter().any(|interface| interface.mac == *mac))
}

/// A MAC address that no interface has.
fn free_mac<'a>(
    asked: Option<&str>,
    interfaces: impl Iterator<Item = &'a Interface>,
) -> Result<String, Failure> {
    let known = |interface: &Interface| registry::Nic {
        id: interface.alias.clone().unwrap_or_else(|| interface.mac.clone()),
        mac: interface.mac.clone(),
        model: interface.model.clone().unwrap_or_default(),
    };
    names::mac(asked, &nics::Nics::known(interfaces.map(known)))
}

/// The name of a NIC, as it is in its alias and in its socket's name.
fn plain_id(asked: &str) -> Result<&str, Failure> {
    let name = asked.strip_prefix("ua-").unwrap_or(asked);
    match !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        true => Ok(name),
        false => Err(Failure {
            status: Status::Usage,
            sentence: format!("--id {asked}: it has letters, digits and '-', and no others"),
        }),
    }
}

/// A domain with one NIC more.
fn with(domain: &Domain, served: &Served, nic: &Nic) -> Domain {
    let mut domain = domain.clone();
    domain.interfaces.push(Interface {
        kind: "vhostuser".into(),
        mac: served.mac.clone(),
        alias: served.alias.clone(),
        model: Some("virtio".into()),
        path: Some(served.path.clone()),
        mode: Some("client".into()),
        queues: Some(served.queues.to_string()),
        reconnects: true,
        ..Interface::default()
    });
    domain.nics.get_or_insert_default().nics.push(nic.clone());
    domain
}

/// Prints what people write into XML by hand, if the hook will take it.
fn xml(args: &Xml) -> Result<(), Failure> {
    let mac = free_mac(args.mac.as_deref(), [].into_iter())?;
    let links = args.locators.iter().map(|locator| absolute(locator)).collect::<Result<_, _>>()?;
    let (name, base) = (args.domain.clone(), base()?);
    let domain = Domain { uuid: name.clone(), name, shared_memory: true, ..Domain::default() };
    let id = args.id.as_deref().map(plain_id).transpose()?;
    let [directory, _] = plan::directories(&base, &domain)?;
    let path = directory.join(format!("{}.sock", id.unwrap_or("0"))).to_string_lossy().into_owned();
    let nic = Nic { mac: Some(mac.clone()), alias: None, links };
    let served = Served { mac, path, alias: id.map(|id| format!("ua-{id}")), queues: args.queues };
    let policy = Policy::of_user()?;
    Plan::new(&with(&domain, &served, &nic), &base, &policy)?;
    if policy == Policy::Session {
        warn_of_system(&nic.links);
    }
    let nics = Nics { nics: vec![nic], ..Nics::default() };
    print(&match args.part {
        Some(Part::Metadata) => nics.to_plain_xml(),
        Some(Part::Memory) => MEMORY.into(),
        Some(Part::Interface) => served.to_xml(),
        None => format!(
            "<!-- in <domain>; a domain that has them already needs the <vde:nic> or the lines alone -->\n<metadata>\n{}</metadata>\n\
             {MEMORY}\n<!-- in <devices>; the name of the socket is another for each NIC -->\n{}",
            nics.to_xml(),
            served.to_xml()
        ),
    })
}

/// What a user may do for a domain of the own session is not all done for one of the system.
fn warn_of_system(links: &[String]) {
    // What the administrator allows may be nobody's to read.
    let system = Policy::system().unwrap_or_else(|_| Policy::System(Allowed::default()));
    for failure in links.iter().filter_map(|link| system.grant(link).err()) {
        complain(format_args!("for domains of qemu:///session only: {failure}"));
    }
}
