//! VDE networks in the syntax of present QEMU: all `-netdev vde` and `-nic vde` of a command line.
//!
//! A QEMU that is too old for a stream netdev keeps those that would need one: they are served by its
//! own VDE client then. What stands in a file that QEMU reads by itself, or is changed by `-set`, is
//! never rewritten, and the user is told so.

use crate::argv::Token;
use crate::cli::Request;
use crate::error::Error;
use crate::machine::Machine;
use crate::model::Protocol;
use crate::netdev::{self, Netdev};
use crate::nic_option::{self, NicOption};
use crate::plan::NicPlan;
use crate::rewrite::Edits;
use crate::version::QemuVersion;
use crate::wiring::Wiring;

/// All of them.
#[derive(Debug, Default)]
pub struct Modern {
    netdevs: Vec<Netdev>,
    nics: Vec<NicOption>,
    /// What QEMU is left with, for messages.
    left: Vec<String>,
}

impl Modern {
    /// Reads a command line.
    pub fn read(tokens: &[Token], machine: &Machine, request: &Request) -> Result<Self, Error> {
        Ok(Self {
            netdevs: netdev::read(tokens, machine, request)?,
            nics: nic_option::read(tokens, machine, request)?,
            left: tokens.iter().filter_map(left_to_qemu).collect(),
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.netdevs.is_empty() && self.nics.is_empty()
    }

    /// Puts netdevs of the back end in their places, and adds what the back end shall serve to `nics`.
    pub fn wire(&self, wiring: &Wiring<'_>, nics: &mut Vec<NicPlan>, edits: &mut Edits) {
        let old =
            |protocol| protocol == Protocol::Stream && wiring.facts.version < QemuVersion::OLDEST_WITH_STREAM;
        for netdev in &self.netdevs {
            match old(netdev.protocol()) {
                true => edits.notice(native(&netdev.name(), wiring.facts.version)),
                false => nics.push(netdev.wire(wiring, nics.len(), edits)),
            }
        }
        for nic in &self.nics {
            match old(nic.protocol()) {
                true => edits.notice(native(&nic.name(), wiring.facts.version)),
                false => nics.push(nic.wire(wiring, nics.len(), edits)),
            }
        }
        self.left.iter().for_each(|text| edits.notice(text.clone()));
    }
}

fn native(name: &str, version: QemuVersion) -> String {
    format!(
        "{name} is left to the VDE client of QEMU itself, because {version} has no -netdev stream; 7.2 has"
    )
}

/// What is to be said of an option in which VDE may hide.
fn left_to_qemu(token: &Token) -> Option<String> {
    let text = token.text()?;
    let group = text.split('.').next().unwrap_or("");
    match token.name()? {
        "readconfig" => {
            Some(format!("-readconfig {text} is read by QEMU alone; VDE networks in it are QEMU's own"))
        }
        // A device's other properties do not decide how its network is served.
        "set"
            if matches!(group, "netdev" | "nic" | "net")
                || (group == "device" && text.contains(".netdev=")) =>
        {
            Some(format!("-set {text} is not rewritten; write it in -{group} itself if it concerns VDE"))
        }
        _ => None,
    }
}
