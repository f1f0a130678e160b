//! Networks without an option of QEMU's: those of the wrapper's own `-sock`, and the default switch.
//!
//! The old wrapper looked at `-sock` only when there was no `-net vde`, and put the VM on the default
//! switch when there was neither. All these links met in segment 0, with one NIC for all of them.
//!
//! Here the default switch is joined only by a command line that has no word of networks, and only if
//! there is such a switch. Without one, `vdeq` in the place of the emulator changes nothing.

use crate::argv::Token;
use crate::cli::Request;
use crate::legacy::{Nic, Segments};
use crate::locator::Link;

/// Adds them to the segments; gives what is to be said about it.
pub fn add(segments: &mut Segments, tokens: &[Token], request: &Request) -> Option<String> {
    let has_vde = segments.values().any(|segment| !segment.links.is_empty());
    let default = [String::new()];
    let (list, notice) = match &request.sock {
        Some(_) if has_vde => {
            return Some("-sock is ignored beside -net vde; write its networks as -net vde,sock= too".into());
        }
        Some(list) => (list.as_slice(), None),
        None if request.default_switch && !tokens.iter().any(speaks_of_networks) => (
            &default[..],
            Some("without any network this VM is on the default switch; -nic none or -nic user would change it".into()),
        ),
        None => return None,
    };
    let segment = segments.entry(0).or_default();
    for sock in list {
        let link = Link { sock: sock.clone(), mode: request.mode.clone(), ..Link::default() };
        segment.links.push((None, link));
    }
    if segment.nics.is_empty() {
        segment.nics.push(Nic::default());
    }
    notice
}

/// Whether QEMU would add no network of its own because of this, or might get one elsewhere.
fn speaks_of_networks(token: &Token) -> bool {
    matches!(token.name(), Some("net" | "netdev" | "nic" | "nodefaults" | "readconfig"))
}
