//! Ends in the kernel: `tap://` and `veth://`, for networks that the kernel itself makes of them (an address, a
//! bridge, a VXLAN, a network namespace).
//!
//! Theory of operation. Both carry whole frames with the header of virtio-net before each, so that what a guest
//! leaves to be done (a checksum, 64 KiB of TCP to be cut) passes as it is, and comes back as it is to whoever opened
//! the link with [`OpenOptions::offloads`](crate::OpenOptions::offloads).
//!
//! A tap (module `tap`) is an interface whose cable is a descriptor: it is gone with the last descriptor of it, however
//! the process ends. A veth (module `veth`) is a pair of interfaces, of which the far one is in somebody's namespace
//! and ours is read and written by a packet socket (module `packet`), as any interface that exists already can be.
//! A pair outlives a process that was killed; how it is found again stands there.
//!
//! Interfaces are made, asked for and changed by netlink (modules `netlink`, `interface` and `features`): each call is
//! one message and its answer, which the kernel gives before the message's `send` returns.

mod error;
mod features;
mod interface;
mod netlink;
mod netns;
mod packet;
mod sys;
mod tap;
mod veth;

use std::os::unix::ffi::OsStrExt;

use crate::locator::LocatorProblem;

pub use error::KernelError;
pub(crate) use packet::{HEADER_LEN as PACKET_HEADER_LEN, recv_frames as packet_recv};
pub(crate) use tap::TapLink;
pub(crate) use veth::VethLink;

/// A hardware address.
type Mac = [u8; 6];

/// Takes what can be an interface's name: the kernel's own rule, and no `%`, by which it would choose a number.
fn interface_name(name: &std::ffi::OsStr) -> Result<&str, KernelError> {
    let bad = |byte: &u8| matches!(byte, b'/' | b':' | b'%' | 0) || byte.is_ascii_whitespace();
    let bytes = name.as_bytes();
    let good =
        (1..libc::IFNAMSIZ).contains(&bytes.len()) && !bytes.iter().any(bad) && name != "." && name != "..";
    name.to_str().filter(|_| good).ok_or_else(|| KernelError::BadName { name: name.into() })
}

/// Reads the value of `mtu=`.
fn parse_mtu(word: &str) -> Result<u32, LocatorProblem> {
    let mtu = word.parse().ok().filter(|mtu| (68..=65535).contains(mtu));
    mtu.ok_or_else(|| bad_value("mtu", word, "a number of bytes from 68 to 65535, such as mtu=9000"))
}

/// Reads the value of `mac=`.
fn parse_mac(word: &str) -> Result<Mac, LocatorProblem> {
    let right = "six pairs of hexadecimal digits whose first is even, such as mac=52:54:00:12:34:56";
    let problem = || bad_value("mac", word, right);
    let mut mac = Mac::default();
    let mut pairs = word.split(':');
    for byte in &mut mac {
        let pair =
            pairs.next().filter(|pair| pair.len() == 2 && !pair.starts_with('+')).ok_or_else(problem)?;
        *byte = u8::from_str_radix(pair, 16).map_err(|_| problem())?;
    }
    let [first, ..] = mac;
    if pairs.next().is_some() || first & 1 == 1 || mac == Mac::default() { Err(problem()) } else { Ok(mac) }
}

/// Reads an option that is there or not.
fn parse_flag(key: &'static str, word: &str) -> Result<bool, LocatorProblem> {
    if word.is_empty() { Ok(true) } else { Err(bad_value(key, word, "the word alone, without '='")) }
}

fn bad_value(key: &'static str, word: &str, right: &'static str) -> LocatorProblem {
    LocatorProblem::BadValue { key, word: word.into(), right }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_name_takes_what_the_kernel_takes() {
        for good in ["a", "vde0", "br-0.5", "fifteen-letters", "schön"] {
            assert_eq!(interface_name(good.as_ref()).expect(good), good);
        }
        for bad in ["", ".", "..", "a/b", "a b", "tap%d", "a:1", "sixteen-letters-"] {
            assert!(matches!(interface_name(bad.as_ref()), Err(KernelError::BadName { .. })), "{bad}");
        }
    }

    #[test]
    fn parse_values_and_refuse_others() {
        assert_eq!(parse_mtu("9000"), Ok(9000));
        assert_eq!(parse_mac("52:54:00:12:34:5f"), Ok([0x52, 0x54, 0, 0x12, 0x34, 0x5f]));
        assert_eq!(parse_flag("up", ""), Ok(true));
        for bad in ["", "67", "65536", "-1", "many"] {
            assert!(parse_mtu(bad).is_err(), "{bad}");
        }
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "53:54:00:12:34:56",
            "5:54:00:12:34:56",
            "+2:54:00:12:34:56",
            "00:00:00:00:00:00",
        ] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
        assert!(parse_flag("up", "no").is_err());
    }
}
