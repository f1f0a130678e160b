//! To which flow a frame belongs.

use vdeplug::TxFrame;

/// Bytes that are looked at: Ethernet with two VLAN tags, the longest IPv4 header, and ports.
const HEAD: usize = 14 + 2 * 4 + 60 + 4;

const TYPE_AT: usize = 12;
const VLAN_TAG: usize = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A number for the flow of a frame, the same for both directions; `None`: it is no IP.
///
/// A flow is two addresses, with two ports if every frame of it says them: fragments do not.
pub fn hash(frame: &TxFrame<'_>) -> Option<u32> {
    let mut room = [0; HEAD];
    let count = frame.read_at(0, &mut room);
    hash_head(room.get(..count)?)
}

fn hash_head(head: &[u8]) -> Option<u32> {
    let mut at = TYPE_AT;
    for _ in 0..2 {
        if let 0x8100 | 0x88a8 = word(head, at)? {
            at += VLAN_TAG;
        }
    }
    let l3 = at + 2;
    match word(head, at)? {
        0x0800 => {
            let addresses = fold(head.get(l3 + 12..l3 + 20)?);
            let l4 = l3 + usize::from(*head.get(l3)? & 0xf) * 4;
            let fragment = word(head, l3 + 6)? & 0x3fff != 0;
            let ports = if fragment { None } else { ports(head, *head.get(l3 + 9)?, l4) };
            Some(mix(addresses ^ ports.unwrap_or(0)))
        }
        0x86dd => {
            let addresses = fold(head.get(l3 + 8..l3 + 40)?);
            Some(mix(addresses ^ ports(head, *head.get(l3 + 6)?, l3 + 40).unwrap_or(0)))
        }
        _ => None,
    }
}

/// Both ports, in no order.
fn ports(head: &[u8], protocol: u8, l4: usize) -> Option<u32> {
    if !matches!(protocol, TCP | UDP) {
        return None;
    }
    let (one, other) = (u32::from(word(head, l4)?), u32::from(word(head, l4 + 2)?));
    Some((one ^ other) << 16 | (one.wrapping_add(other) & 0xffff))
}

/// Two addresses in one number, in no order.
fn fold(addresses: &[u8]) -> u32 {
    let words = addresses.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word));
    words.fold(0, u32::wrapping_add)
}

/// Spreads what differs in a few bits over all of them (the finalizer of MurmurHash3).
fn mix(mut hash: u32) -> u32 {
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

fn word(head: &[u8], at: usize) -> Option<u16> {
    head.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TCP between two ports over IPv4 or IPv6, with so many VLAN tags.
    fn frame(v6: bool, tags: usize, from: (u8, u16), to: (u8, u16)) -> Vec<u8> {
        let mut frame = vec![2; 12];
        (0..tags).for_each(|_| frame.extend([0x81, 0, 0, 7]));
        if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, TCP, 64]);
            frame.extend([[from.0; 16], [to.0; 16]].concat());
        } else {
            frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0]);
            frame.extend([10, 0, 0, from.0, 10, 0, 0, to.0]);
        }
        frame.extend([from.1.to_be_bytes(), to.1.to_be_bytes()].concat());
        frame.extend([0; 16]);
        frame
    }

    #[test]
    fn both_directions_of_a_flow_have_one_hash_and_others_another() {
        for v6 in [false, true] {
            for tags in 0..3 {
                let there = hash_head(&frame(v6, tags, (1, 1000), (2, 80)));
                assert!(there.is_some());
                assert_eq!(there, hash_head(&frame(v6, tags, (2, 80), (1, 1000))));
                assert_ne!(there, hash_head(&frame(v6, tags, (1, 1001), (2, 80))));
                assert_ne!(there, hash_head(&frame(v6, tags, (1, 1000), (3, 80))));
            }
        }
    }

    #[test]
    fn flows_spread_evenly() {
        let mut counts = [0; 4];
        for port in 40_000..40_400 {
            let hash = hash_head(&frame(false, 0, (1, port), (2, 5201))).unwrap();
            counts[hash as usize % 4] += 1;
        }
        assert!(counts.iter().all(|count| (60..140).contains(count)), "{counts:?}");
    }

    #[test]
    fn fragments_of_a_packet_have_one_hash() {
        let mut first = frame(false, 0, (1, 1000), (2, 80));
        first[20] = 0x20;
        let mut second = frame(false, 0, (1, 3), (2, 4));
        second[21] = 0x10;
        second[20] = 0;
        assert_eq!(hash_head(&first), hash_head(&second));
    }

    #[test]
    fn what_is_cut_or_no_ip_has_none_and_nothing_panics() {
        for v6 in [false, true] {
            let whole = frame(v6, 2, (1, 1000), (2, 80));
            for end in 0..whole.len() {
                let _ = hash_head(&whole[..end]);
            }
            assert_eq!(hash_head(&whole[..40]), None);
        }
        let mut arp = frame(false, 0, (1, 1), (2, 2));
        arp[13] = 6;
        assert_eq!(hash_head(&arp), None);
    }
}
