//! `vdectl libvirt detach`.
//!
//! The guest lets go of the interface first; only then is what serves it taken away. Who calls it again finishes what was
//! left undone, also when the guest has let go meanwhile, or the interface was unplugged by `virsh` alone.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use registry::Lock;
use vde_libvirt::domain::{Domain, Interface, Nic};
use vde_libvirt::fragment::Served;
use vde_libvirt::plan;

use super::serving::{self, Leftovers};
use super::target::Target;
use super::virsh::{Scope, Virsh};
use super::{base, is_ours};
use crate::cli::DetachDomain;
use crate::interrupt::Interrupt;
use crate::{Failure, Status, print};

/// Time between two looks at a domain.
const PAUSE: Duration = Duration::from_millis(200);

/// Carries it out.
pub fn run(virsh: &Virsh, args: &DetachDomain) -> Result<(), Failure> {
    let mut lock = Lock::of_domains()?;
    let target = Target::find(virsh, &args.domain, args.config)?;
    let (_, any) = target.each().next().ok_or_else(|| Failure::new("there is no domain"))?;
    let directories = plan::directories(&base()?, any)?;
    let is_out = format!("{} is out of the domain\n", args.nic);
    if let Some(domain) = &target.live {
        let left = Leftovers::find(&directories, domain)?;
        left.remove(&directories)?;
        if left.nics.iter().any(|(id, _)| *id == args.nic) {
            return print(&is_out);
        }
    }
    let whole = Whole::find(&args.nic, &target, directories)?;
    if let (Some(domain), Some(interface)) = (&target.live, &whole.live) {
        virsh.interrupt().check()?;
        let asked = virsh.detach_device(domain, Scope::Live, &xml(interface));
        // A guest that was asked before may have let go at this moment.
        if asked.is_err() && has_interface(virsh, domain, &whole.mac)? {
            return asked;
        }
        // It may take its time, which is no reason to keep others from their domains.
        drop(lock);
        wait_gone(virsh, domain, &whole.mac, Duration::from_secs(args.wait), virsh.interrupt())?;
        lock = Lock::of_domains()?;
        if has_interface(virsh, domain, &whole.mac)? {
            return Err(Failure::new(format!("the NIC {} was plugged in again meanwhile", whole.mac)));
        }
    }
    let finished = whole.finish(virsh, &target);
    drop(lock);
    finished.map_err(|failure| {
        let sentence = format!("{}; the rest of {} is left, call vdectl again", failure.sentence, whole.mac);
        Failure { sentence, ..failure }
    })?;
    print(&is_out)
}

/// What a NIC consists of, as far as it is there.
struct Whole {
    mac: String,
    live: Option<Interface>,
    next: Option<Interface>,
    /// What the back end calls it.
    id: Option<String>,
    directories: [PathBuf; 2],
}

impl Whole {
    fn find(word: &str, target: &Target, directories: [PathBuf; 2]) -> Result<Self, Failure> {
        let called = |interface: &&Interface| {
            interface.alias.as_deref() == Some(word) || interface.mac.eq_ignore_ascii_case(word)
        };
        let find = |domain: &Option<Domain>| domain.as_ref()?.interfaces.iter().find(called).cloned();
        let (live, next) = (find(&target.live), find(&target.next));
        let name = target.name();
        if let Some(other) = live.iter().chain(&next).find(|interface| !is_ours(interface, &directories)) {
            return Err(Failure::new(format!(
                "the interface {} of '{name}' has no socket of ours; virsh detach-device takes it out",
                other.mac
            )));
        }
        let known = serving::entry(&directories).map(|entry| entry.record.nics).unwrap_or_default();
        let served = known.into_iter().find(|nic| nic.id == word || nic.mac.eq_ignore_ascii_case(word));
        let of_metadata = || {
            let ours = target.each().flat_map(|(_, domain)| &domain.nics).flat_map(|nics| &nics.nics);
            let mut macs = ours.filter_map(|nic| nic.mac.as_ref());
            macs.find(|mac| mac.eq_ignore_ascii_case(word)).cloned()
        };
        let mac = live.as_ref().or(next.as_ref()).map(|interface| interface.mac.clone());
        let mac = mac.or_else(|| served.as_ref().map(|nic| nic.mac.clone())).or_else(of_metadata);
        match mac {
            Some(mac) => Ok(Self { mac, live, next, id: served.map(|nic| nic.id), directories }),
            None => {
                let all: Vec<&str> =
                    target.interfaces().map(|found| found.alias.as_deref().unwrap_or(&found.mac)).collect();
                let all = if all.is_empty() { "none".into() } else { all.join(", ") };
                Err(Failure::not_found(format!("there is no NIC '{word}' in '{name}'; it has {all}")))
            }
        }
    }

    /// Takes away what the guest cannot use any more. What it is known by goes last.
    fn finish(&self, virsh: &Virsh, target: &Target) -> Result<(), Failure> {
        for (scope, domain) in target.each() {
            self.forget(virsh, domain, scope)?;
        }
        if let (Some(next), Some(interface)) = (&target.next, &self.next) {
            virsh.detach_device(next, Scope::Config, &xml(interface))?;
        }
        let Some(id) = &self.id else { return Ok(()) };
        serving::remove(&self.directories, id, self.socket(id).as_deref())
    }

    /// One that was plugged in here has its socket named for it.
    fn socket(&self, id: &str) -> Option<PathBuf> {
        let of_interface = || self.live.as_ref()?.path.as_deref().map(Path::new).map(Path::to_owned);
        let of_name = || {
            let entry = serving::entry(&self.directories)?;
            Some(entry.directory.join(format!("{}.sock", id.strip_prefix("ua-")?)))
        };
        of_interface().or_else(of_name)
    }

    /// Takes it out of the metadata.
    fn forget(&self, virsh: &Virsh, domain: &Domain, scope: Scope) -> Result<(), Failure> {
        let Some(mut nics) = domain.nics.clone() else { return Ok(()) };
        let alias = self.live.as_ref().or(self.next.as_ref()).and_then(|interface| interface.alias.as_ref());
        let is_it = |nic: &Nic| {
            nic.mac.as_ref() == Some(&self.mac) || nic.alias.is_some() && nic.alias.as_ref() == alias
        };
        let before = nics.nics.len();
        nics.nics.retain(|nic| !is_it(nic));
        let forgotten = match (nics.nics.len(), nics.nics.is_empty()) {
            (now, _) if now == before => Ok(()),
            // The hook takes none for a mistake.
            (_, true) => virsh.set_metadata(domain, scope, None),
            (_, false) => virsh.set_metadata(domain, scope, Some(&nics)),
        };
        match forgotten {
            // With the domain goes what was said of it.
            Err(_) if scope == Scope::Live && virsh.has_ended(domain)? => Ok(()),
            forgotten => forgotten,
        }
    }
}

/// As much of an interface as libvirt needs to know it again.
fn xml(interface: &Interface) -> String {
    let Interface { mac, path, alias, .. } = interface.clone();
    Served { mac, path: path.unwrap_or_default(), alias, queues: 1 }.to_xml()
}

/// Whether a running domain has this interface now. One that has ended has none.
fn has_interface(virsh: &Virsh, domain: &Domain, mac: &str) -> Result<bool, Failure> {
    let now = match virsh.domain(&domain.uuid, Scope::Live) {
        Err(failure) if failure.status == Status::NotFound => return Ok(false),
        now => now?,
    };
    // Of a domain that has ended this is what it is started with the next time.
    Ok(now.interfaces.iter().any(|interface| interface.mac == mac) && !virsh.has_ended(domain)?)
}

/// Waits until a running domain has no such interface any more.
pub fn wait_gone(
    virsh: &Virsh,
    domain: &Domain,
    mac: &str,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    loop {
        if !has_interface(virsh, domain, mac)? {
            return Ok(());
        }
        let pending = |why: String| {
            let sentence =
                format!("{why}; the NIC {mac} stays until the guest lets go, call vdectl again then");
            Err(Failure { status: Status::Pending, sentence })
        };
        if interrupt.has_come() {
            return pending("interrupted".into());
        }
        if Instant::now() >= deadline {
            return pending(format!("the guest has not let go within {} s", limit.as_secs()));
        }
        std::thread::sleep(PAUSE);
    }
}
