//! `vdectl link`: the cables of a NIC.
//!
//! Carrier is QEMU's business (`set_link`); which networks a NIC is plugged into is the back end's, which is told by control socket.
//! The members of a legacy `vlan=` with several NICs are on a hub that the back end has made for them; the networks of
//! that are plugged into the hub by joins, so it is a join whose links are changed, by the same words.

use registry::Maker;
use vde_control::{Join, Link as Cable, Nic as Served};

use crate::back_end::{BackEnd, sentence};
use crate::cli::{Change, Link};
use crate::libvirt;
use crate::libvirt::cables::{Cables, Member, Written};
use crate::locator::absolute;
use crate::nics::{Nic, Nics};
use crate::vm::{PATIENCE, Vm};
use crate::{Failure, Status, report};

/// Carries it out, and says what has become of it in a line.
pub fn run(args: &Link) -> Result<(), Failure> {
    if args.config && matches!(args.change, Change::Down | Change::Up) {
        let sentence = "--config goes with add, remove and replace; nobody keeps a carrier".into();
        return Err(Failure { status: Status::Usage, sentence });
    }
    let vm = Vm::find(&args.vm)?;
    let line = match &args.change {
        Change::Down => set_carrier(&vm, &args.nic, false)?,
        Change::Up => set_carrier(&vm, &args.nic, true)?,
        Change::Add { locator } => Holder::to_change(&vm, args)?.add(locator)?,
        Change::Remove { link } => Holder::to_change(&vm, args)?.remove(link)?,
        Change::Replace { link, locator } => Holder::to_change(&vm, args)?.replace(link, locator)?,
    };
    report(&format!("{}: {line}", args.nic))
}

fn set_carrier(vm: &Vm, word: &str, up: bool) -> Result<String, Failure> {
    let state = if up { "up" } else { "down" };
    if let Some(record) =
        vm.without_monitor().filter(|record| matches!(record.made_by, Maker::Libvirt | Maker::Passt))
    {
        return libvirt::carrier::set(record, word, up).map(|()| state.into());
    }
    let mut monitor = vm.monitor()?;
    let nics = Nics::of(&mut monitor)?;
    let nic = nics.find(word)?;
    // Under the netdev's name QEMU changes both ends, under the device's that of the guest only: who pulled the cable at
    // the other one might have plugged it in here in vain. A netdev that a guest's NIC shares with nobody is the whole cable.
    let name = nic.netdev.as_deref().or(nic.id.as_deref()).ok_or_else(|| {
        Failure::new(format!("QEMU has no name for the cable of {nic}: it has neither an id nor a netdev"))
    })?;
    monitor.set_link(name, up).map_err(|error| {
        Failure::new(format!("QEMU does not change the carrier of {nic}: {}", sentence(&error)))
    })?;
    Ok(state.into())
}

/// What holds the links in question, a NIC or a join, in the back end that serves it.
pub struct Holder {
    /// The back end.
    pub back_end: BackEnd,
    /// What it calls the NIC or join.
    pub id: String,
    links: Vec<Cable>,
    /// The guest's address; none for a join.
    mac: Option<String>,
    /// Its place among the joins, if it is one.
    join: Option<usize>,
    /// Where its networks are, if it is on a hub with others.
    advice: Option<String>,
    /// Who plugs it in again later, if its links are to be changed.
    keeper: Keeper,
}

/// Who plugs the cables of a NIC in again when its back end is another one.
enum Keeper {
    Nobody,
    /// The hook, for a domain of libvirt.
    Hook(Box<Cables>),
    /// libvirt itself, through the passt door.
    Door,
}

/// The back ends of a VM.
fn connect(vm: &Vm) -> Result<Vec<BackEnd>, Failure> {
    let back_ends = vm.back_ends(PATIENCE)?;
    match back_ends.is_empty() {
        false => Ok(back_ends),
        true => Err(Failure::new(format!(
            "nobody of ours serves '{}': only what vdeq or vdectl has plugged in has links",
            vm.name
        ))),
    }
}

impl Holder {
    fn new(back_end: BackEnd, id: String, links: Vec<Cable>) -> Self {
        Self { back_end, id, links, mac: None, join: None, advice: None, keeper: Keeper::Nobody }
    }

    /// That of a NIC whose address nobody needs to know: QEMU, whose monitor may be somebody else's for long, is asked only if
    /// the word is not what the back end calls it.
    pub fn serving(vm: &Vm, word: &str) -> Result<Self, Failure> {
        for mut back_end in connect(vm)? {
            if let Some(served) = back_end.query_nics()?.into_iter().find(|served| served.id == word) {
                return Ok(Self::new(back_end, served.id, served.links));
            }
        }
        Self::find(vm, word)
    }

    fn find(vm: &Vm, word: &str) -> Result<Self, Failure> {
        let mut back_ends = connect(vm)?;
        let mut place = 0;
        if back_ends.len() > 1 {
            // The NICs of a domain of the passt door have no other names.
            let mut nics = back_ends.iter_mut().map(BackEnd::query_nics);
            let has_it =
                |nics: Result<Vec<Served>, _>| nics.is_ok_and(|nics| nics.iter().any(|nic| nic.id == word));
            place = nics.position(has_it).unwrap_or_default();
        }
        let mut back_end = back_ends.swap_remove(place);
        let (served, joins) = (back_end.query_nics()?, back_end.query_joins()?);
        if let Some((number, join)) = joins.iter().enumerate().find(|(_, join)| join.id == word) {
            return Ok(Self {
                join: Some(number),
                ..Self::new(back_end, join.id.clone(), join.links.clone())
            });
        }
        let (nics, _) = Nics::of_vm(vm)?;
        let (nic, served) = match nics.find(word) {
            Ok(nic) => (Some(nic), nics.served(nic, &served).ok_or_else(|| foreign(&nics, nic))?),
            // One that no device uses, as the network in a hub of QEMU's.
            Err(failure) => (None, served.iter().find(|served| served.id == word).ok_or(failure)?),
        };
        let advice = hub_advice(served, &joins);
        let mac = nic.map(|nic| nic.mac.clone()).filter(|mac| !mac.is_empty());
        Ok(Self { mac, advice, ..Self::new(back_end, served.id.clone(), served.links.clone()) })
    }

    /// The same for who is going to change its links. Those of a domain of libvirt stay changed.
    fn to_change(vm: &Vm, args: &Link) -> Result<Self, Failure> {
        let keeper = match vm.entry.as_ref().map(|entry| (entry, entry.record.made_by)) {
            Some((entry, Maker::Libvirt)) => Keeper::Hook(Box::new(Cables::of(entry, args.config)?)),
            _ if args.config => {
                return Err(Failure::new(format!(
                    "'{}' is no domain that the hook of libvirt starts: --config means nothing to it",
                    vm.name
                )));
            }
            Some((_, Maker::Passt)) => Keeper::Door,
            _ => Keeper::Nobody,
        };
        Ok(Self { keeper, ..Self::find(vm, &args.nic)? })
    }

    fn add(mut self, locator: &str) -> Result<String, Failure> {
        let locator = self.network(locator)?;
        let written = self.remember(self.locators().chain([locator.clone()]).collect(), true)?;
        let (id, note) = written.settle(self.back_end.link_add(&self.id, &locator))?;
        let others = if self.advice.is_some() { "; the others on its hub do not hear that" } else { "" };
        Ok(format!("{id} {locator}{others}{note}"))
    }

    fn remove(mut self, link: &str) -> Result<String, Failure> {
        let Cable { id, locator, .. } = self.link(link)?;
        let others = self.links.iter().filter(|link| link.id != id).map(|link| link.locator.clone());
        let written = self.remember(others.collect(), false)?;
        let ((), note) = written.settle(self.back_end.link_remove(&self.id, &id))?;
        let rest = if self.links.len() == 1 { "; no link is left" } else { "" };
        Ok(format!("{id} {locator} removed{rest}{note}"))
    }

    fn replace(mut self, link: &str, locator: &str) -> Result<String, Failure> {
        let (old, locator) = (self.link(link)?, self.network(locator)?);
        let now = |link: &Cable| if link.id == old.id { locator.clone() } else { link.locator.clone() };
        let written = self.remember(self.links.iter().map(now).collect(), true)?;
        let replaced = self.back_end.link_replace(&self.id, &old.id, &locator, self.mac.as_deref());
        let (new, note) = written.settle(replaced)?;
        Ok(format!("{new} {locator} in place of {} {}{note}", old.id, old.locator))
    }

    fn locators(&self) -> impl Iterator<Item = String> {
        self.links.iter().map(|link| link.locator.clone())
    }

    /// A network that it may be plugged into, by its full name.
    fn network(&self, locator: &str) -> Result<String, Failure> {
        let locator = absolute(locator)?;
        match &self.keeper {
            Keeper::Hook(cables) => cables.grant(&locator),
            Keeper::Door | Keeper::Nobody => Ok(locator),
        }
    }

    /// Writes down, where somebody asks for it later, what its links are from now on.
    fn remember(&self, links: Vec<String>, is_more: bool) -> Result<Written, Failure> {
        let member = match self.join {
            Some(number) => Member::Join(number),
            None => Member::Nic(&self.id, self.mac.as_deref()),
        };
        match &self.keeper {
            Keeper::Hook(cables) => cables.write(member, &links, is_more),
            Keeper::Door => {
                Ok(Written::nothing("; libvirt plugs it in again where its <source dev='...'/> says"))
            }
            Keeper::Nobody => Ok(Written::nothing("")),
        }
    }

    /// The link of this name or locator. Of several to the same network it is the first, which cannot be told from the others.
    pub fn link(&self, word: &str) -> Result<Cable, Failure> {
        let full = absolute(word)?;
        let by_id = self.links.iter().find(|link| link.id == word);
        let by_locator = || self.links.iter().find(|link| is_same(&link.locator, &full));
        by_id.or_else(by_locator).cloned().ok_or_else(|| {
            let links: Vec<String> =
                self.links.iter().map(|link| format!("{} {}", link.id, link.locator)).collect();
            let id = &self.id;
            Failure::not_found(match (&self.advice, links.is_empty()) {
                (Some(advice), _) => format!("there is no link '{word}' here: {advice}"),
                (None, true) => format!("there is no link '{word}': {id} has none"),
                (None, false) => format!("there is no link '{word}'; {id} has {}", links.join(", ")),
            })
        })
    }
}

/// A locator without a scheme is one of scheme `vde`.
fn is_same(one: &str, other: &str) -> bool {
    one.strip_prefix("vde://").unwrap_or(one) == other.strip_prefix("vde://").unwrap_or(other)
}

fn foreign(nics: &Nics, nic: &Nic) -> Failure {
    let netdev = nic.netdev.as_deref();
    Failure::new(match netdev.and_then(|id| nics.netdev(id)) {
        Some(netdev) => format!(
            "{nic} has no links that could be changed: it is on QEMU's netdev {} of type {}",
            netdev.id, netdev.kind
        ),
        None => format!("{nic} has no netdev, and so no links"),
    })
}

/// Where the networks are of a NIC on a hub that the back end has made for several.
fn hub_advice(nic: &Served, joins: &[Join]) -> Option<String> {
    let leads_to = |join: &Join, locator: &str| join.links.iter().any(|link| is_same(&link.locator, locator));
    let is_joined = |link: &Cable| joins.iter().any(|join| leads_to(join, &link.locator));
    let is_hub = |link: &&Cable| link.locator.starts_with("hub://") && is_joined(link);
    let hub = &nic.links.iter().find(is_hub)?.locator;
    let networks = joins.iter().filter(|join| leads_to(join, hub)).flat_map(|join| {
        let others = join.links.iter().filter(|link| !is_same(&link.locator, hub));
        others.map(|link| format!("{} of {}", link.locator, join.id))
    });
    let networks = networks.collect::<Vec<_>>().join(", ");
    Some(format!(
        "{} is on a hub with others, the networks of which are {networks}; to move one, name its join in place of the NIC",
        nic.id
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cable(id: &str, locator: &str) -> Cable {
        Cable { id: id.into(), locator: locator.into(), up: true, reason: None, traffic: Default::default() }
    }

    fn join(id: &str, one: &str, other: &str) -> Join {
        let links = vec![cable("link0", one), cable("link1", other)];
        Join { id: id.into(), links, counters: Default::default() }
    }

    fn nic(locator: &str) -> Served {
        Served {
            id: "net0".into(),
            socket_path: None,
            protocol: Default::default(),
            queues: 1,
            connected: false,
            pid: None,
            features: 0,
            rings: Vec::new(),
            links: vec![cable("link0", locator)],
            counters: Default::default(),
            capturing: false,
        }
    }

    #[test]
    fn a_nic_on_a_hub_is_told_of_its_joins() {
        let joins = [join("join0", "hub:///r/h2", "/tmp/a"), join("join1", "hub:///r/h2", "vde:///tmp/b")];
        let advice = hub_advice(&nic("hub:///r/h2"), &joins).unwrap();
        assert!(advice.contains("which are /tmp/a of join0, vde:///tmp/b of join1;"), "{advice}");
        assert_eq!(hub_advice(&nic("/tmp/c"), &joins), None);
    }

    #[test]
    fn a_locator_means_the_same_with_and_without_its_scheme() {
        assert!(is_same("vde:///tmp/a", "/tmp/a") && is_same("/tmp/a", "/tmp/a"));
        assert!(!is_same("hub:///tmp/a", "/tmp/a"));
    }
}
