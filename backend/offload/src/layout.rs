//! Where the headers of a TCP or UDP frame begin and end.
//!
//! Ethernet with up to two VLAN tags, IPv4 or IPv6, TCP or UDP: what segmentation offloads are defined for. A tunnel is
//! seen as the UDP that carries it, or is refused. Lengths in the frame are believed as far as the frame's own length
//! bears them out.

use crate::check::Misfit;

/// The longest headers, in bytes, that a frame may have and be segmented: 22 of Ethernet and two tags, 40 of IPv6, 60 of
/// TCP, and more than a hundred of IPv6 extension headers.
pub const HEAD_MAX: usize = 256;

const ETHERNET: usize = 14;
const VLAN_TAG: usize = 4;
const VLAN_TAGS_MAX: usize = 2;
pub(crate) const IPV6: usize = 40;
const UDP: usize = 8;

const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
const TYPE_VLAN: u16 = 0x8100;
const TYPE_SERVICE_VLAN: u16 = 0x88a8;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
/// IPv6 extension headers that every segment can simply repeat (RFC 8200 § 4.3, 4.4, 4.6), the first only directly behind
/// the IPv6 header.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;

/// Option that fills one byte, and has no length.
const PAD1: u8 = 0;
/// Option with the sender's true address (RFC 6275 § 6.3).
const HOME_ADDRESS: u8 = 201;

/// The network layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    V4,
    V6,
}

/// The transport layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// Number in an IP header.
    pub(crate) const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => PROTOCOL_TCP,
            Self::Udp => PROTOCOL_UDP,
        }
    }

    /// Where in its header the checksum stands.
    pub(crate) const fn checksum_at(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }
}

/// The places of a frame's headers, all within [`HEAD_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub network: Network,
    pub transport: Transport,
    /// First byte of the IP header.
    pub l3: usize,
    /// First byte of the TCP or UDP header.
    pub l4: usize,
    /// First byte behind it.
    pub payload: usize,
    /// First byte behind the payload: the frame's end, or where padding begins.
    pub end: usize,
}

impl Layout {
    /// Finds the headers of a frame of `frame_len` bytes, of which `head` is the beginning.
    pub(crate) fn parse(head: &[u8], frame_len: usize) -> Result<Self, Misfit> {
        let head = head.get(..head.len().min(HEAD_MAX).min(frame_len)).unwrap_or_default();
        let mut l3 = ETHERNET;
        let mut kind = word(head, l3 - 2)?;
        for _ in 0..VLAN_TAGS_MAX {
            if kind == TYPE_VLAN || kind == TYPE_SERVICE_VLAN {
                l3 += VLAN_TAG;
                kind = word(head, l3 - 2)?;
            }
        }
        let (network, protocol, l4, end) = match kind {
            TYPE_IPV4 => ipv4(head, l3, frame_len)?,
            TYPE_IPV6 => ipv6(head, l3, frame_len)?,
            _ => return Err(Misfit::Protocol),
        };
        let (transport, len) = match protocol {
            PROTOCOL_TCP => (Transport::Tcp, usize::from(byte(head, l4 + 12)? >> 4) * 4),
            PROTOCOL_UDP => (Transport::Udp, UDP),
            _ => return Err(Misfit::Protocol),
        };
        let payload = l4 + len;
        if transport == Transport::Tcp && len < 20 {
            return Err(Misfit::Protocol);
        }
        if payload > head.len() || payload > end {
            return Err(Misfit::Head);
        }
        Ok(Self { network, transport, l3, l4, payload, end })
    }
}

type Found = (Network, u8, usize, usize);

fn ipv4(head: &[u8], l3: usize, frame_len: usize) -> Result<Found, Misfit> {
    let first = byte(head, l3)?;
    let len = usize::from(first & 0xf) * 4;
    // More fragments, or not the first one.
    let fragment = word(head, l3 + 6)? & 0x3fff != 0;
    if first >> 4 != 4 || len < 20 || fragment {
        return Err(Misfit::Protocol);
    }
    let end = end(frame_len, l3, 0, word(head, l3 + 2)?)?;
    Ok((Network::V4, byte(head, l3 + 9)?, l3 + len, end))
}

fn ipv6(head: &[u8], l3: usize, frame_len: usize) -> Result<Found, Misfit> {
    if byte(head, l3)? >> 4 != 6 {
        return Err(Misfit::Protocol);
    }
    let end = end(frame_len, l3, IPV6, word(head, l3 + 4)?)?;
    let mut next = byte(head, l3 + 6)?;
    let mut at = l3 + IPV6;
    // Each takes 8 bytes at least, so the head's end ends this.
    while matches!(next, ROUTING | DESTINATION_OPTIONS) || next == HOP_BY_HOP && at == l3 + IPV6 {
        // With a way still to go, the checksum is over another address than the one in the IPv6 header.
        if next == ROUTING && byte(head, at + 3)? != 0 {
            return Err(Misfit::Protocol);
        }
        let end = at + 8 + 8 * usize::from(byte(head, at + 1)?);
        if next == DESTINATION_OPTIONS && names_home(head.get(at + 2..end).ok_or(Misfit::Head)?) {
            return Err(Misfit::Protocol);
        }
        next = byte(head, at)?;
        at = end;
    }
    Ok((Network::V6, next, at, end))
}

/// Whether one of these options holds the address that the checksum is over, in place of the IPv6 header's.
fn names_home(mut options: &[u8]) -> bool {
    while let Some((kind, rest)) = options.split_first() {
        options = match (*kind, rest.split_first()) {
            (PAD1, _) => rest,
            (HOME_ADDRESS, _) => return true,
            (_, Some((len, rest))) => rest.get(usize::from(*len)..).unwrap_or_default(),
            (_, None) => &[],
        };
    }
    false
}

/// Where the packet ends by its length field, which counts from `fixed` bytes into its header on. 0 is what stands there
/// when the length is left to the NIC, or is more than the field can say.
fn end(frame_len: usize, l3: usize, fixed: usize, field: u16) -> Result<usize, Misfit> {
    match usize::from(field) {
        0 => Ok(frame_len),
        len if l3 + fixed + len <= frame_len => Ok(l3 + fixed + len),
        _ => Err(Misfit::Length),
    }
}

/// The byte at `at`; none means that the headers do not end within the head.
fn byte(head: &[u8], at: usize) -> Result<u8, Misfit> {
    head.get(at).copied().ok_or(Misfit::Head)
}

/// The 16 bits at `at`.
fn word(head: &[u8], at: usize) -> Result<u16, Misfit> {
    let bytes = head.get(at..).and_then(|rest| rest.first_chunk()).ok_or(Misfit::Head)?;
    Ok(u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests;
