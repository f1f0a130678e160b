//! The networks of a domain: whether its back end could join them. Each is joined for a moment, and left.

use std::path::PathBuf;

use vde_libvirt::domain::Domain;
use vde_libvirt::policy::Policy;
use vde_libvirt::sys::Identity;
use vde_libvirt::trial;

use crate::locator::is_relative;

/// Who joins them.
#[derive(Debug)]
pub struct Trial {
    /// The back end's program.
    pub program: PathBuf,
    /// Whom it runs as, if not as us.
    pub user: Option<Identity>,
}

impl Trial {
    /// A line for each that cannot be joined. What may not be named is another's to say.
    pub fn of<'a>(&self, links: impl IntoIterator<Item = &'a String>, policy: &Policy) -> Vec<String> {
        let mut missing = Vec::new();
        for link in links {
            let Ok(granted) = policy.grant(link) else { continue };
            if let Err(failure) = trial::join(&self.program, &granted, self.user.clone()) {
                let hint = if is_relative(link) { "; its path has to begin with /" } else { "" };
                missing.push(format!("network {link}: {failure}{hint}"));
            }
        }
        missing
    }
}

/// The networks of a domain, each once.
pub fn links(domain: &Domain) -> Vec<&String> {
    let ours = domain.nics.iter();
    let all = ours.flat_map(|nics| nics.nics.iter().map(|nic| &nic.links).chain(&nics.joins)).flatten();
    all.fold(Vec::new(), |mut links, link| {
        if !links.contains(&link) {
            links.push(link);
        }
        links
    })
}
