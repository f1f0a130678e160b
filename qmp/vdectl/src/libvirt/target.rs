//! The descriptions of a domain that a command is about: that of the running one, that of the next start, or both.

use vde_libvirt::domain::{Domain, Interface};

use super::virsh::{Scope, Virsh};
use crate::Failure;

/// A domain, as it is to be changed.
#[derive(Debug)]
pub struct Target {
    /// What runs, if it does.
    pub live: Option<Domain>,
    /// What is started the next time, if that is asked for.
    pub next: Option<Domain>,
    name: String,
}

impl Target {
    /// Finds what a word and `--config` mean.
    pub fn find(virsh: &Virsh, word: &str, config: bool) -> Result<Self, Failure> {
        let domain = virsh.domain(word, Scope::Live)?;
        let (state, name) = (virsh.state(&domain)?, domain.name.clone());
        let next = match (state.runs, state.persists, config) {
            (false, _, false) => {
                return Err(Failure::new(format!(
                    "domain '{name}' does not run; with --config it is done for its next start"
                )));
            }
            (_, false, true) => {
                return Err(Failure::new(format!(
                    "domain '{name}' is transient and has no next start; leave out --config"
                )));
            }
            (_, true, true) => Some(virsh.domain(&domain.uuid, Scope::Config)?),
            (true, _, false) => None,
        };
        Ok(Self { live: state.runs.then_some(domain), next, name })
    }

    /// The domain's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Each of the descriptions, with what it describes.
    pub fn each(&self) -> impl Iterator<Item = (Scope, &Domain)> {
        let live = self.live.iter().map(|domain| (Scope::Live, domain));
        live.chain(self.next.iter().map(|domain| (Scope::Config, domain)))
    }

    /// The interfaces of all descriptions.
    pub fn interfaces(&self) -> impl Iterator<Item = &Interface> {
        self.each().flat_map(|(_, domain)| &domain.interfaces)
    }
}
