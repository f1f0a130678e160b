//! Cables of domains, which stay where `vdectl link` has put them.
//!
//! The hook plugs a NIC in where the domain's metadata says, and it does so more than once in a domain's life: when the domain is
//! restored, comes from another host, or has lost its back end. So what `vdectl link` changes is written into the metadata, and
//! what the hook would refuse then is refused at once, by the same plan. The metadata comes first: it can be put back without a
//! trace, which a cable cannot.
//!
//! A libvirt that does not answer is no reason to leave a cable in a broken switch. It is moved all the same, and the person
//! told; unless it is asked for the next start as well, which nobody but libvirt can see to.

use std::rc::Rc;

use registry::{Entry, Lock};
use vde_libvirt::domain::{Domain, Nics};
use vde_libvirt::plan::{self, Plan};
use vde_libvirt::policy::Policy;

use super::base;
use super::target::Target;
use super::virsh::{Scope, Virsh};
use crate::Failure;

/// In place of the last link of a NIC: the hook takes no NIC without any.
const NOWHERE: &str = "null://";

/// Whose links are changed.
#[derive(Clone, Copy, Debug)]
pub enum Member<'a> {
    /// A NIC, by its alias and its address.
    Nic(&'a str, Option<&'a str>),
    /// A join, by its place among all.
    Join(usize),
}

/// A domain that nobody else changes.
pub struct Cables {
    policy: Policy,
    /// What libvirt has of it, or why that cannot be told.
    known: Result<Known, Failure>,
    _lock: Lock,
}

/// A domain's descriptions, and who changes them.
struct Known {
    virsh: Rc<Virsh>,
    target: Target,
}

/// What has been written.
#[derive(Default)]
pub struct Written {
    /// What was there before, and who puts it back.
    before: Vec<(Rc<Virsh>, Scope, Domain)>,
    /// What a person has to know of it.
    note: String,
}

impl Cables {
    /// Those of the domain with this entry; with `config`, also when it is started the next time.
    pub fn of(entry: &Entry, config: bool) -> Result<Self, Failure> {
        let lock = Lock::of_domains()?;
        match Known::find(entry, config) {
            Err(failure) if config => Err(failure),
            known => Ok(Self { policy: Policy::of_user()?, known, _lock: lock }),
        }
    }

    /// A network as the hook would have it opened, if it would.
    pub fn grant(&self, locator: &str) -> Result<String, Failure> {
        Ok(self.policy.grant(locator)?.locator)
    }

    /// Writes that these are the links of a member from now on. `is_more`: there is one that was not there before.
    pub fn write(&self, member: Member<'_>, links: &[String], is_more: bool) -> Result<Written, Failure> {
        let known = match &self.known {
            Ok(known) => known,
            Err(failure) => return Ok(Written::nothing(&untold(failure))),
        };
        let changed = known.target.each().map(|(scope, domain)| {
            let changed = with_links(domain, member, links).and_then(|changed| {
                if is_more {
                    Plan::new(&changed, &base()?, &self.policy)?;
                }
                Ok(changed.nics)
            });
            let when = if scope == Scope::Config { " at its next start" } else { "" };
            changed.map_err(|failure| {
                Failure::new(format!("domain '{}'{when}: {}", domain.name, failure.sentence))
            })
        });
        let changed: Vec<Option<Nics>> = changed.collect::<Result<_, _>>()?;
        let mut written = Written::default();
        for ((scope, domain), nics) in known.target.each().zip(&changed) {
            match known.virsh.set_metadata(domain, scope, nics.as_ref()) {
                Ok(()) => written.before.push((Rc::clone(&known.virsh), scope, domain.clone())),
                Err(failure) if known.target.next.is_none() => written.note = untold(&failure),
                Err(failure) => return Err(written.undo(failure)),
            }
        }
        Ok(written)
    }
}

impl Known {
    fn find(entry: &Entry, config: bool) -> Result<Self, Failure> {
        let virsh = Virsh::of_user()?;
        let target = Target::find(&virsh, entry.record.name.as_deref().unwrap_or_default(), config)?;
        let base = base()?;
        let directories = target.live.as_ref().map(|live| plan::directories(&base, live)).transpose()?;
        if !directories.is_some_and(|directories| directories.contains(&entry.directory)) {
            return Err(Failure::new(format!("libvirt's domain '{}' is another one", target.name())));
        }
        Ok(Self { virsh: Rc::new(virsh), target })
    }
}

impl Written {
    /// Nothing, with what a person has to know of that.
    pub fn nothing(note: &str) -> Self {
        Self { before: Vec::new(), note: note.into() }
    }

    /// Puts it back if the cable could not be moved; else gives the note with what came of it.
    pub fn settle<T>(self, moved: Result<T, Failure>) -> Result<(T, String), Failure> {
        match moved {
            Ok(moved) => Ok((moved, self.note)),
            Err(failure) => Err(self.undo(failure)),
        }
    }

    fn undo(self, failure: Failure) -> Failure {
        let mut sentence = failure.sentence;
        for (virsh, scope, domain) in self.before {
            if let Err(failure) = virsh.set_metadata(&domain, scope, domain.nics.as_ref()) {
                sentence.push_str(&format!("; the metadata could not be put back: {}", failure.sentence));
            }
        }
        Failure { sentence, ..failure }
    }
}

fn untold(failure: &Failure) -> String {
    format!(
        "; libvirt does not know of it ({}), so that this holds until the domain is restored or gets another back end",
        failure.sentence
    )
}

/// The domain with other links of a member.
fn with_links(domain: &Domain, member: Member<'_>, links: &[String]) -> Result<Domain, Failure> {
    let mut domain = domain.clone();
    let nics = domain.nics.get_or_insert_default();
    let (place, what) = match member {
        Member::Nic(id, mac) => {
            let is_it = |nic: &&mut vde_libvirt::domain::Nic| {
                nic.alias.as_deref() == Some(id) || mac.is_some() && nic.mac.as_deref() == mac
            };
            (nics.nics.iter_mut().find(is_it).map(|nic| &mut nic.links), format!("<vde:nic> for {id}"))
        }
        Member::Join(number) => (nics.joins.get_mut(number), format!("<vde:join> number {number}")),
    };
    let place = place.ok_or_else(|| Failure::new(format!("its metadata has no {what}")))?;
    *place = if links.is_empty() { vec![NOWHERE.into()] } else { links.to_vec() };
    Ok(domain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vde_libvirt::domain::Nic;

    fn domain() -> Domain {
        let nic = |mac: Option<&str>, alias: Option<&str>| Nic {
            mac: mac.map(str::to_owned),
            alias: alias.map(str::to_owned),
            links: vec!["/a".into(), "/b".into()],
        };
        let nics = vec![nic(Some("52:54:00:00:00:01"), None), nic(None, Some("ua-x"))];
        let nics = Nics { nics, joins: vec![vec!["/c".into(), "/d".into()]], ..Nics::default() };
        Domain { nics: Some(nics), ..Domain::default() }
    }

    fn links(member: Member<'_>, links: &[&str]) -> Result<Vec<Vec<String>>, Failure> {
        let links: Vec<String> = links.iter().map(|link| (*link).to_owned()).collect();
        let nics = with_links(&domain(), member, &links)?.nics.unwrap_or_default();
        Ok(nics.nics.into_iter().map(|nic| nic.links).chain(nics.joins).collect())
    }

    #[test]
    fn with_links_changes_one_member_and_leaves_no_nic_without_any() {
        let mac = Some("52:54:00:00:00:01");
        assert_eq!(
            links(Member::Nic("net0", mac), &["/e"]).unwrap(),
            [vec!["/e"], vec!["/a", "/b"], vec!["/c", "/d"]]
        );
        let alias = links(Member::Nic("ua-x", Some("52:54:00:00:00:02")), &[]).unwrap();
        assert_eq!(alias, [vec!["/a", "/b"], vec!["null://"], vec!["/c", "/d"]]);
        let join = links(Member::Join(0), &["/c", "/e"]).unwrap();
        assert_eq!(join, [vec!["/a", "/b"], vec!["/a", "/b"], vec!["/c", "/e"]]);
        for (member, word) in [(Member::Nic("net1", None), "for net1"), (Member::Join(1), "number 1")] {
            assert!(links(member, &[]).unwrap_err().sentence.contains(word));
        }
    }
}
