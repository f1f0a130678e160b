//! `struct virtio_net_hdr` (virtio 1.2 § 5.1.6) as bytes; fields are little endian.
//!
//! | at | field | | at | field |
//! |---|---|---|---|---|
//! | 0 | flags | | 6 | csum_start |
//! | 1 | gso_type | | 8 | csum_offset |
//! | 2 | hdr_len | | 10 | num_buffers, not in the 10-byte legacy form |
//! | 4 | gso_size | | | |

use virtio_bindings::virtio_net::{VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE};

use crate::features::Accepted;

/// Longest form of the header, in bytes.
pub const MAX_LEN: usize = 12;

/// A checksum that the driver left to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// First byte of the frame that is summed.
    pub start: usize,
    /// Where in the frame the result goes; the pseudo header's sum is there already.
    pub at: usize,
}

/// What the header of a sent frame asks for, or `None` if it may not ask that.
pub fn parse_tx(header: &[u8; MAX_LEN], accepted: Accepted) -> Option<Option<Partial>> {
    let [flags, gso_type, _, _, _, _, s0, s1, o0, o1, ..] = *header;
    if u32::from(gso_type) != VIRTIO_NET_HDR_GSO_NONE {
        return None;
    }
    if u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
        return Some(None);
    }
    let start = usize::from(u16::from_le_bytes([s0, s1]));
    let at = start + usize::from(u16::from_le_bytes([o0, o1]));
    accepted.csum.then_some(Some(Partial { start, at }))
}

/// Header of a received frame that lies in `buffers` chains and about which nothing is known.
pub fn plain_rx(buffers: u16) -> [u8; MAX_LEN] {
    let [low, high] = buffers.to_le_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, low, high]
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Accepted = Accepted { header_len: 12, mergeable: true, csum: false };
    const CSUM: Accepted = Accepted { csum: true, ..PLAIN };

    #[test]
    fn parse_tx_accepts_what_was_negotiated_only() {
        let header = |flags, gso| [flags, gso, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
        assert_eq!(parse_tx(&header(0, 0), PLAIN), Some(None));
        assert_eq!(parse_tx(&header(1, 0), PLAIN), None);
        assert_eq!(parse_tx(&header(1, 0), CSUM), Some(Some(Partial { start: 34, at: 50 })));
        assert_eq!(parse_tx(&header(0, 1), CSUM), None, "no segmentation was offered");
        let far = [1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(parse_tx(&far, CSUM), Some(Some(Partial { start: 0xffff, at: 0x1fffe })));
    }
}
