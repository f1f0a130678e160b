//! What an interface leaves to be done by whoever it hands its frames to, as far as that has to be less than it offers:
//! ethtool's features, by generic netlink.
//!
//! The header of virtio-net can say that TCP or UDP is to be segmented and that an Internet checksum is missing. A
//! veth leaves more than that undone: segments inside of tunnels, those of SCTP and IPsec, and SCTP's
//! checksum, which is of another kind. The header then says something that is not so, or the frame is lost. With these
//! features off, the kernel does that work before the frame comes to us.

use std::io;

use rustix::io::Errno;
use rustix::system::uname;

use super::netlink::{self, ACK, ASK, Netlink, Request, attribute};

/// What no header can say.
const UNSAID: [&str; 12] = [
    "tx-gre-segmentation",
    "tx-gre-csum-segmentation",
    "tx-ipxip4-segmentation",
    "tx-ipxip6-segmentation",
    "tx-udp_tnl-segmentation",
    "tx-udp_tnl-csum-segmentation",
    "tx-tunnel-remcsum-segmentation",
    "tx-gso-partial",
    "tx-gso-list",
    "tx-esp-segmentation",
    "tx-sctp-segmentation",
    "tx-checksum-sctp",
];

/// What headers cannot say before Linux 6.2.
const UNSAID_BEFORE: (u32, u32) = (6, 2);
const UNSAID_ONCE: &str = "tx-udp-segmentation";

/// `GENL_ID_CTRL`, the family that knows the others, and what it is asked (`linux/genetlink.h`).
const CONTROL: u16 = 16;
const GET_FAMILY: [u8; 4] = [3, 1, 0, 0];
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// `ETHTOOL_MSG_FEATURES_SET` and its attributes (`linux/ethtool_netlink.h`).
const SET_FEATURES: [u8; 4] = [12, 1, 0, 0];
const HEADER: u16 = 1;
const HEADER_NAME: u16 = 2;
const HEADER_FLAGS: u16 = 3;
const NO_REPLY: u32 = 2;
const WANTED: u16 = 3;
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;

/// Switches off, on an interface of this thread's namespace, what headers cannot say.
pub(super) fn limit(interface: &str) -> io::Result<()> {
    let ethtool = Netlink::generic()?;
    let mut request = Request::new(CONTROL, ASK, &GET_FAMILY);
    request.put_text(FAMILY_NAME, "ethtool");
    let answer = ethtool.ask(&request)?;
    let family = attribute(answer.get(GET_FAMILY.len()..).unwrap_or_default(), FAMILY_ID);
    let family = family.and_then(|value| netlink::number16(value, 0)).ok_or(io::ErrorKind::InvalidData)?;
    let once = is_before(&uname().release().to_string_lossy(), UNSAID_BEFORE).then_some(&UNSAID_ONCE);
    for feature in UNSAID.iter().chain(once) {
        match ethtool.ask(&switch_off(family, interface, feature)) {
            // A kernel that does not know it does not do it.
            Err(error) if Errno::from_io_error(&error) != Some(Errno::OPNOTSUPP) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn switch_off(family: u16, interface: &str, feature: &str) -> Request {
    let mut request = Request::new(family, ACK, &SET_FEATURES);
    request.nest(HEADER, |header| {
        header.put_text(HEADER_NAME, interface);
        header.put(HEADER_FLAGS, &NO_REPLY.to_ne_bytes());
    });
    // A bit that is named and not said to be set is to be cleared.
    request.nest(WANTED, |set| set.nest(BITS, |bits| bits.nest(BIT, |bit| bit.put_text(BIT_NAME, feature))));
    request
}

/// Whether a kernel's release, such as `6.1.0-18-amd64`, is older than a version.
fn is_before(release: &str, version: (u32, u32)) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|word| word.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next()) < version
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_before_compares_numbers() {
        for (release, before) in [
            ("6.1.0-18-amd64", true),
            ("5.15.0", true),
            ("6.2.0", false),
            ("6.18.4-x", false),
            ("6.10", false),
            ("7", false),
        ] {
            assert_eq!(is_before(release, UNSAID_BEFORE), before, "{release}");
        }
    }
}
