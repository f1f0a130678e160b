//! What rtnetlink knows and does about interfaces.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::Mac;
use super::netlink::{self, ACK, Message, Netlink, Request, attribute};

/// Length of `struct ifinfomsg`, with which all messages about interfaces begin.
const BODY: usize = 16;
/// The other end, in the data of a veth: `VETH_INFO_PEER` of `linux/veth.h`.
const VETH_PEER: u16 = 1;
/// How an interface makes its addresses: `IFLA_INET6_ADDR_GEN_MODE`, and not at all: `IN6_ADDR_GEN_MODE_NONE`.
const ADDRESS_MODE: (u16, u8) = (8, 1);
/// The namespace whose number is asked for, by descriptor: `NETNSA_FD`.
const NAMESPACE_FD: u16 = 3;
/// That number: `NETNSA_NSID`.
const NAMESPACE_NUMBER: u16 = 1;
/// `struct rtgenmsg`, padded.
const GENERAL: [u8; 4] = [0; 4];

const UP: u32 = libc::IFF_UP.cast_unsigned();
const NO_ARP: u32 = libc::IFF_NOARP.cast_unsigned();

/// An interface, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: u32,
    pub(super) is_ethernet: bool,
    /// A note that somebody left.
    pub(super) alias: Option<String>,
    /// What the driver calls its kind; empty for hardware.
    kind: String,
    /// The interface that this one hangs on, and the namespace it is in, if that is another, by the number that the
    /// namespace has here. For a veth it is the other end.
    link: Option<(u32, Option<i32>)>,
}

/// What is to be set on an interface.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settings {
    pub(super) mtu: Option<u32>,
    pub(super) mac: Option<Mac>,
    pub(super) up: bool,
}

/// The other end of a pair.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer<'a> {
    pub(super) name: &'a str,
    /// The namespace that it is in, if not in ours.
    pub(super) netns: Option<BorrowedFd<'a>>,
}

impl Interface {
    /// Reads what rtnetlink tells of an interface.
    pub(super) fn read(body: &[u8]) -> Option<Self> {
        let rest = body.get(BODY..)?;
        let info = attribute(rest, libc::IFLA_LINKINFO).unwrap_or_default();
        let number = |kind| attribute(rest, kind).and_then(|value| netlink::number32(value, 0));
        let netns = number(libc::IFLA_LINK_NETNSID).map(u32::cast_signed);
        Some(Self {
            index: netlink::number32(body, 4)?,
            name: attribute(rest, libc::IFLA_IFNAME).map(netlink::text)?,
            mtu: number(libc::IFLA_MTU)?,
            is_ethernet: netlink::number16(body, 2)? == libc::ARPHRD_ETHER,
            alias: attribute(rest, libc::IFLA_IFALIAS).map(netlink::text),
            kind: attribute(info, libc::IFLA_INFO_KIND).map(netlink::text).unwrap_or_default(),
            link: number(libc::IFLA_LINK).map(|index| (index, netns)),
        })
    }

    /// Reads what a message tells of an interface, if it is about one that is there.
    pub(super) fn told(message: &Message<'_>) -> Option<Self> {
        if message.kind == libc::RTM_NEWLINK { Self::read(message.body) } else { None }
    }

    /// Finds one by its name.
    pub(super) fn find(route: &Netlink, name: &str) -> io::Result<Option<Self>> {
        let mut request = Request::new(libc::RTM_GETLINK, netlink::ASK, &body(0, 0, 0));
        request.put_text(libc::IFLA_IFNAME, name);
        Self::ask(route, &request)
    }

    fn ask(route: &Netlink, request: &Request) -> io::Result<Option<Self>> {
        match route.ask(request) {
            Ok(answer) => Self::read(&answer).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether it is the other end of this peer.
    pub(super) fn is_end_of(&self, route: &Netlink, peer: &Peer<'_>) -> io::Result<bool> {
        let Some((index, netns)) = self.link.filter(|_| self.kind == "veth") else { return Ok(false) };
        let is_there = match (peer.netns, netns) {
            (None, netns) => netns.is_none(),
            (Some(asked), None) => super::netns::is_ours(asked)?,
            (Some(asked), Some(netns)) => namespace_number(route, asked)? == Some(netns),
        };
        if !is_there {
            return Ok(false);
        }
        let mut request = Request::new(libc::RTM_GETLINK, netlink::ASK, &body(index, 0, 0));
        if let Some(netns) = netns {
            request.put(libc::IFLA_TARGET_NETNSID, &netns.to_ne_bytes());
        }
        Ok(Self::ask(route, &request)?.is_some_and(|other| other.name == peer.name))
    }
}

/// The number that a namespace has in ours, if it has one.
fn namespace_number(route: &Netlink, netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut request = Request::new(libc::RTM_GETNSID, netlink::ASK, &GENERAL);
    request.put(NAMESPACE_FD, &netns.as_raw_fd().to_ne_bytes());
    let answer = route.ask(&request)?;
    let number = attribute(answer.get(GENERAL.len()..).unwrap_or_default(), NAMESPACE_NUMBER);
    // Without a number the answer is -1.
    let number = number.and_then(|value| netlink::number32(value, 0)).map(u32::cast_signed);
    Ok(number.filter(|number| *number >= 0))
}

/// Makes a pair of veth of which the peer is in its namespace from the beginning, so that nobody sees it come and go
/// in ours. Our end is not up yet: see [`raise_bare`].
pub(super) fn make_pair(route: &Netlink, name: &str, peer: &Peer<'_>, settings: &Settings) -> io::Result<()> {
    let mut request = Request::new(libc::RTM_NEWLINK, ACK | netlink::CREATE, &body(0, 0, 0));
    request.put_text(libc::IFLA_IFNAME, name);
    if let Some(mtu) = settings.mtu {
        request.put(libc::IFLA_MTU, &mtu.to_ne_bytes());
    }
    request.nest(libc::IFLA_LINKINFO, |info| {
        info.put_text(libc::IFLA_INFO_KIND, "veth");
        info.nest(libc::IFLA_INFO_DATA, |data| {
            data.nest(VETH_PEER, |far| {
                // It cannot be brought up by this message: the kernel tries before it ties the two ends.
                far.put_raw(&body(0, 0, 0));
                far.put_text(libc::IFLA_IFNAME, peer.name);
                if let Some(netns) = peer.netns {
                    far.put(libc::IFLA_NET_NS_FD, &netns.as_raw_fd().to_ne_bytes());
                }
                if let Some(mtu) = settings.mtu {
                    far.put(libc::IFLA_MTU, &mtu.to_ne_bytes());
                }
                if let Some(mac) = settings.mac {
                    far.put(libc::IFLA_ADDRESS, &mac);
                }
            });
        });
    });
    route.ask(&request).map(drop)
}

/// Brings up an interface that is nothing but the end of a cable: this machine neither answers the
/// other end's questions for its own addresses (ARP) nor takes an address there (IPv6).
pub(super) fn raise_bare(route: &Netlink, index: u32) -> io::Result<()> {
    let mut request = Request::new(libc::RTM_SETLINK, ACK, &body(index, 0, 0));
    request.nest(libc::IFLA_AF_SPEC, |families| {
        let inet6 = u16::try_from(libc::AF_INET6).unwrap_or_default();
        families.nest(inet6, |inet6| inet6.put(ADDRESS_MODE.0, &[ADDRESS_MODE.1]));
    });
    match route.ask(&request) {
        // A machine without IPv6 has nothing to be switched off.
        Err(error) if error.raw_os_error() != Some(libc::EAFNOSUPPORT) => return Err(error),
        _ => {}
    }
    let flags = UP | NO_ARP;
    route.ask(&Request::new(libc::RTM_NEWLINK, ACK, &body(index, flags, flags))).map(drop)
}

/// Changes an interface.
pub(super) fn change(route: &Netlink, index: u32, settings: &Settings) -> io::Result<()> {
    let flags = if settings.up { UP } else { 0 };
    let mut request = Request::new(libc::RTM_NEWLINK, ACK, &body(index, flags, flags));
    if let Some(mtu) = settings.mtu {
        request.put(libc::IFLA_MTU, &mtu.to_ne_bytes());
    }
    if let Some(mac) = settings.mac {
        request.put(libc::IFLA_ADDRESS, &mac);
    }
    route.ask(&request).map(drop)
}

/// Leaves a note on an interface, for those who list it.
pub(super) fn set_alias(route: &Netlink, index: u32, alias: &str) -> io::Result<()> {
    let mut request = Request::new(libc::RTM_SETLINK, ACK, &body(index, 0, 0));
    request.put(libc::IFLA_IFALIAS, alias.as_bytes());
    route.ask(&request).map(drop)
}

/// Removes an interface; of a pair, both.
pub(super) fn remove(route: &Netlink, index: u32) -> io::Result<()> {
    route.ask(&Request::new(libc::RTM_DELLINK, ACK, &body(index, 0, 0))).map(drop)
}

/// `struct ifinfomsg`: no family, no kind, the index, and the flags, of which those in `change` are meant.
fn body(index: u32, flags: u32, change: u32) -> [u8; BODY] {
    let mut body = [0; BODY];
    for (field, value) in body.chunks_exact_mut(4).skip(1).zip([index, flags, change]) {
        field.copy_from_slice(&value.to_ne_bytes());
    }
    body
}
