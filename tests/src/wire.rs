//! The few headers that a station reads and writes, by hand: frames come from guests under test and must not be judged
//! by code that the programs under test share.

use std::net::{Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ETHERNET: usize = 14;
const IPV6_HEADER: usize = 40;

/// Who a station is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
}

/// The EtherType of a frame, if it is long enough to have one.
pub fn ether_type(frame: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(array(frame, 12)?))
}

/// The answer that a host of this identity gives to a frame: to ARP, ping and neighbour solicitation.
pub fn answer(who: &Identity, frame: &[u8]) -> Option<Vec<u8>> {
    let to: Mac = array(frame, 0)?;
    if to != who.mac && to[0] & 1 == 0 {
        return None;
    }
    match ether_type(frame)? {
        ARP => answer_arp(who, frame),
        IPV4 => answer_ping(who, frame),
        IPV6 => answer_ipv6(who, frame),
        _ => None,
    }
}

fn answer_arp(who: &Identity, frame: &[u8]) -> Option<Vec<u8>> {
    let request = frame.get(ETHERNET..ETHERNET + 28)?;
    let asked_for: [u8; 4] = array(request, 24)?;
    if request[6..8] != [0, 1] || asked_for != who.ipv4.octets() {
        return None;
    }
    let mut reply = header(frame, who);
    reply.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, 2]);
    reply.extend_from_slice(&who.mac);
    reply.extend_from_slice(&who.ipv4.octets());
    reply.extend_from_slice(&request[8..18]);
    Some(reply)
}

fn answer_ping(who: &Identity, frame: &[u8]) -> Option<Vec<u8>> {
    let packet = frame.get(ETHERNET..)?;
    let header_size = usize::from(packet.first()? & 15) * 4;
    let size = usize::from(u16::from_be_bytes(array(packet, 2)?));
    let fragment = u16::from_be_bytes(array(packet, 6)?) & 0x3fff;
    let to: [u8; 4] = array(packet, 16)?;
    // Fragments are for those who reassemble.
    if to != who.ipv4.octets() || packet.get(9) != Some(&ICMP) || fragment != 0 {
        return None;
    }
    let message = packet.get(header_size..size)?;
    if message.first() != Some(&8) {
        return None;
    }
    let mut ip = packet[..header_size].to_vec();
    let source: [u8; 4] = array(packet, 12)?;
    ip[8] = 64;
    ip[12..16].copy_from_slice(&to);
    ip[16..20].copy_from_slice(&source);
    seal(&mut ip, 10, &[]);
    let mut icmp = message.to_vec();
    icmp[0] = 0;
    seal(&mut icmp, 2, &[]);
    Some([header(frame, who), ip, icmp].concat())
}

fn answer_ipv6(who: &Identity, frame: &[u8]) -> Option<Vec<u8>> {
    let packet = frame.get(ETHERNET..)?;
    let size = usize::from(u16::from_be_bytes(array(packet, 4)?));
    let message = packet.get(IPV6_HEADER..IPV6_HEADER + size)?;
    if packet.get(6) != Some(&ICMPV6) {
        return None;
    }
    let source: [u8; 16] = array(packet, 8)?;
    let to: [u8; 16] = array(packet, 24)?;
    let own = who.ipv6.octets();
    let body = match *message.first()? {
        128 if to == own => [&[129, 0, 0, 0], message.get(4..)?].concat(),
        NEIGHBOUR_SOLICITATION if array::<16>(message, 8)? == own && source != [0; 16] => {
            // Solicited and override, then the target and the option "target link-layer address".
            [&[NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0x60, 0, 0, 0][..], &own, &[2, 1], &who.mac].concat()
        }
        _ => return None,
    };
    let length = u16::try_from(body.len()).ok()?.to_be_bytes();
    let ip = [&[0x60, 0, 0, 0][..], &length, &[ICMPV6, 255], &own, &source].concat();
    let pseudo = [&own[..], &source, &[0, 0], &length, &[0, 0, 0, ICMPV6]].concat();
    let mut body = body;
    seal(&mut body, 2, &pseudo);
    Some([header(frame, who), ip, body].concat())
}

/// The Ethernet header of an answer to `frame`.
fn header(frame: &[u8], who: &Identity) -> Vec<u8> {
    [&frame[6..12], &who.mac[..], &frame[12..14]].concat()
}

/// Writes the Internet checksum over `pseudo` and `bytes` at `at`.
fn seal(bytes: &mut [u8], at: usize, pseudo: &[u8]) {
    bytes[at..at + 2].fill(0);
    let sum = checksum(&[pseudo, bytes].concat());
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("it was folded into 16 bits")
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: Identity = Identity {
        mac: [2, 0, 0, 0, 0, 9],
        ipv4: Ipv4Addr::new(10, 0, 0, 9),
        ipv6: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9),
    };

    #[test]
    fn checksum_example_of_rfc_1071_is_matched() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn answer_arp_for_us_names_our_mac() {
        let mut request = vec![0xff; 6];
        request.extend_from_slice(&[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        request.extend_from_slice(&[2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 9]);
        let reply = answer(&WHO, &request).unwrap();
        assert_eq!(&reply[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9]);
        assert_eq!(&reply[20..32], [0, 2, 2, 0, 0, 0, 0, 9, 10, 0, 0, 9]);
        assert_eq!(&reply[32..42], [2, 0, 0, 0, 0, 1, 10, 0, 0, 1]);
        request[41] = 8;
        assert_eq!(answer(&WHO, &request), None);
    }

    #[test]
    fn answer_every_prefix_of_a_frame_does_not_panic() {
        let mut ping =
            vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 30, 0, 0, 0, 0, 64, 1, 0, 0];
        ping.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 9, 8, 0, 0, 0, 0, 1, 0, 1, 7, 7]);
        for end in 0..ping.len() {
            assert_eq!(answer(&WHO, &ping[..end]), None, "{end} bytes");
        }
        let reply = answer(&WHO, &ping).unwrap();
        assert_eq!(checksum(&reply[14..34]), 0);
        assert_eq!(checksum(&reply[34..]), 0);
        assert_eq!(reply[34], 0);
    }
}
