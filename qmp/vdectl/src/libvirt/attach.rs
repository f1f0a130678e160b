//! `vdectl libvirt attach`.
//!
//! Whatever the hook would refuse at the next start is refused here, before anything is changed, by the same plan. Then come
//! the [steps], and when one fails those before it are undone. What a `vdectl` has left that was killed is removed first.

mod steps;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use registry::{LONGEST_SOCKET, Lock};
use vde_control::{NicAdd, Protocol};
use vde_libvirt::domain::{Domain, Interface, Nic};
use vde_libvirt::fragment::Served;
use vde_libvirt::plan::{self, Plan};
use vde_libvirt::policy::Policy;

use super::serving::Leftovers;
use super::target::Target;
use super::virsh::Virsh;
use super::{base, free_mac, is_ours, orphans, plain_id, with};
use crate::attach::wait_for_driver;
use crate::cli::AttachDomain;
use crate::locator::absolute;
use crate::{Failure, Status, print};
use steps::Steps;

/// Carries it out.
pub fn run(virsh: &Virsh, args: &AttachDomain) -> Result<(), Failure> {
    let lock = Lock::of_domains()?;
    let target = Target::find(virsh, &args.domain, args.config)?;
    if args.wait.is_some() && target.live.is_none() {
        let sentence = format!("--wait is for a guest that runs, and '{}' does not", target.name());
        return Err(Failure { status: Status::Usage, sentence });
    }
    let wanted = Wanted::choose(args, &target)?;
    if let Some(domain) = &target.live {
        Leftovers::find(&wanted.directories, domain)?.remove(&wanted.directories)?;
    }
    let back_end = Steps::new(virsh, &target, &wanted).carry_out()?;
    let Wanted { alias, served, .. } = &wanted;
    print(&format!("{alias} {} {}\n", served.mac, served.path))?;
    // Others may have their turn while we wait for the guest.
    drop(lock);
    match (args.wait, back_end) {
        (Some(seconds), Some(back_end)) => {
            wait_for_driver(back_end, alias, alias, Duration::from_secs(seconds), virsh.interrupt())
        }
        _ => Ok(()),
    }
}

/// The NIC that is going to be there, all checked.
struct Wanted {
    served: Served,
    alias: String,
    nic: Nic,
    directories: [PathBuf; 2],
    /// The back end that the running domain needs then.
    plan: Option<Plan>,
    /// The one that it needs now.
    plan_before: Option<Plan>,
    policy: Policy,
}

impl Wanted {
    fn choose(args: &AttachDomain, target: &Target) -> Result<Self, Failure> {
        let links = args.locators.iter().map(|locator| absolute(locator)).collect::<Result<_, _>>()?;
        let base = base()?;
        let (_, any) = target.each().next().ok_or_else(|| Failure::new("there is no domain"))?;
        let directories = plan::directories(&base, any)?;
        let known: Vec<&Interface> = target.interfaces().collect();
        let mac = free_mac(args.mac.as_deref(), known.iter().copied())?;
        let (name, path) = name(args.id.as_deref(), &directories, &known)?;
        let alias = format!("ua-{name}");
        let served = Served { mac: mac.clone(), path, alias: Some(alias.clone()), queues: args.queues };
        let nic = Nic { mac: Some(mac.clone()), alias: None, links };
        let policy = Policy::of_user()?;
        let of = |when: &str, failure: vde_libvirt::Failure| {
            Failure::new(format!("domain '{}'{when}: {failure}", target.name()))
        };
        if target.each().any(|(_, domain)| orphans(domain).any(|orphan| orphan == mac)) {
            return Err(Failure::new(format!(
                "domain '{0}' has a <vde:nic mac='{mac}'> and no <interface> for it; remove it first: \
                 vdectl libvirt detach {0} {mac}{1}",
                target.name(),
                if args.config { " --config" } else { "" }
            )));
        }
        let checked = |domain: &Option<Domain>, when: &str| match domain {
            Some(domain) => {
                Plan::new(&with(domain, &served, &nic), &base, &policy).map_err(|failure| of(when, failure))
            }
            None => Ok(None),
        };
        let plan = checked(&target.live, "")?;
        checked(&target.next, " at its next start")?;
        let before = target.live.as_ref().map(|domain| Plan::new(domain, &base, &policy));
        // One that is empty now is made whole by this.
        let plan_before = before.and_then(Result::ok).flatten();
        Ok(Self { served, alias, nic, directories, plan, plan_before, policy })
    }

    /// As the registry has it.
    fn known(&self) -> registry::Nic {
        registry::Nic { id: self.alias.clone(), mac: self.served.mac.clone(), model: "virtio".into() }
    }

    fn nic_add(&self) -> Result<NicAdd, Failure> {
        let links = self.nic.links.iter().map(|link| Ok(self.policy.grant(link)?.locator));
        Ok(NicAdd {
            id: self.alias.clone(),
            socket_path: self.served.path.clone().into(),
            links: links.collect::<Result<_, Failure>>()?,
            protocol: Protocol::VhostUser,
            queues: self.served.queues,
        })
    }
}

/// The name that was asked for, or the first of vde0, vde1, ... that no interface and no file has; and the socket that goes with it.
fn name(
    asked: Option<&str>,
    directories: &[PathBuf; 2],
    known: &[&Interface],
) -> Result<(String, String), Failure> {
    let [by_name, by_uuid] = directories;
    let used = known.iter().find(|interface| is_ours(interface, directories));
    let used =
        used.and_then(|interface| Some(PathBuf::from(interface.path.as_deref()?).parent()?.to_owned()));
    let longest = asked.map_or(LONGEST_NAME, str::len);
    let fits = |directory: &PathBuf| {
        directory.as_os_str().len() + "/".len() + longest + ".sock".len() <= LONGEST_SOCKET
    };
    let directory = used.unwrap_or_else(|| if fits(by_name) { by_name } else { by_uuid }.clone());
    let path = |name: &str| directory.join(format!("{name}.sock")).to_string_lossy().into_owned();
    let is_free = |name: &str| {
        let (path, alias) = (path(name), format!("ua-{name}"));
        let is_taken = |interface: &&Interface| {
            interface.alias.as_ref() == Some(&alias) || interface.path.as_ref() == Some(&path)
        };
        !known.iter().any(is_taken) && fs::symlink_metadata(&path).is_err()
    };
    let name = match asked {
        Some(asked) => {
            let name = plain_id(asked)?;
            match is_free(name) {
                true => name.to_owned(),
                false => {
                    return Err(Failure::new(format!(
                        "the domain has a NIC 'ua-{name}' already, or a socket of this name; take another --id"
                    )));
                }
            }
        }
        None => {
            let free = (0..1000_u32).map(|number| format!("vde{number}")).find(|name| is_free(name));
            free.ok_or_else(|| Failure::new("all names from vde0 to vde999 are taken"))?
        }
    };
    let path = path(&name);
    Ok((name, path))
}

/// Of vde0, vde1, ... vde999.
const LONGEST_NAME: usize = "vde999".len();
