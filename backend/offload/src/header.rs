//! `struct virtio_net_hdr` (virtio 1.2 § 5.1.6): what a frame still wants done to it.
//!
//! It stands before frames in a guest's rings, on tap and packet sockets, and before frames that VDE programs of
//! this project exchange. In bytes, little endian:
//!
//! | at | field | | at | field |
//! |---|---|---|---|---|
//! | 0 | flags | | 6 | csum_start |
//! | 1 | gso_type | | 8 | csum_offset |
//! | 2 | hdr_len | | 10 | num_buffers, in a guest's receive ring only |
//! | 4 | gso_size | | | |

/// A checksum is left to be completed: flag `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
pub const NEEDS_CSUM: u8 = 1;
/// The checksums were verified: flag `VIRTIO_NET_HDR_F_DATA_VALID`.
pub const DATA_VALID: u8 = 2;

/// The frame is one frame: `VIRTIO_NET_HDR_GSO_NONE`.
pub const GSO_NONE: u8 = 0;
/// To be cut into TCP segments over IPv4: `VIRTIO_NET_HDR_GSO_TCPV4`.
pub const GSO_TCPV4: u8 = 1;
/// To be cut into TCP segments over IPv6: `VIRTIO_NET_HDR_GSO_TCPV6`.
pub const GSO_TCPV6: u8 = 4;
/// To be cut into UDP datagrams: `VIRTIO_NET_HDR_GSO_UDP_L4`.
pub const GSO_UDP_L4: u8 = 5;
/// The first segment carries CWR: `VIRTIO_NET_HDR_GSO_ECN`, a bit beside the type.
pub const GSO_ECN: u8 = 0x80;

/// What a frame still wants done to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// One of the `GSO_` types.
    pub gso_type: u8,
    /// Length in bytes of all headers of the frame. A hint, never to be trusted.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// First byte of the frame that the checksum covers.
    pub csum_start: u16,
    /// Where the checksum goes, from `csum_start` on; the pseudo header's sum is there already.
    pub csum_offset: u16,
}

/// A checksum that is to be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// First byte of the frame that is summed.
    pub start: usize,
    /// Where in the frame the result goes.
    pub at: usize,
}

impl Header {
    /// Length in bytes, with `num_buffers`.
    pub const LEN: usize = 12;

    /// Of a frame that is complete.
    pub const NONE: Self =
        Self { flags: 0, gso_type: GSO_NONE, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 };

    /// Whether nothing is left to be done to the frame.
    pub const fn is_done(&self) -> bool {
        self.flags & NEEDS_CSUM == 0 && self.gso_type == GSO_NONE
    }

    /// The checksum that is to be completed.
    pub fn partial(&self) -> Option<Partial> {
        let start = usize::from(self.csum_start);
        (self.flags & NEEDS_CSUM != 0).then(|| Partial { start, at: start + usize::from(self.csum_offset) })
    }

    /// Reads the fields; any bytes are a header.
    pub const fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let [flags, gso_type, l0, l1, g0, g1, s0, s1, o0, o1, _, _] = *bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([l0, l1]),
            gso_size: u16::from_le_bytes([g0, g1]),
            csum_start: u16::from_le_bytes([s0, s1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
        }
    }

    /// Writes the fields; `buffers` is `num_buffers`, 0 where nobody reads it.
    pub const fn encode(&self, buffers: u16) -> [u8; Self::LEN] {
        let [l0, l1] = self.hdr_len.to_le_bytes();
        let [g0, g1] = self.gso_size.to_le_bytes();
        let [s0, s1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [b0, b1] = buffers.to_le_bytes();
        [self.flags, self.gso_type, l0, l1, g0, g1, s0, s1, o0, o1, b0, b1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_undoes_encode() {
        let header = Header {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV6 | GSO_ECN,
            hdr_len: 0x0102,
            gso_size: 0x0304,
            csum_start: 0x0506,
            csum_offset: 0x0708,
        };
        let bytes = header.encode(0x090a);
        assert_eq!(bytes, [1, 0x84, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9]);
        assert_eq!(Header::decode(&bytes), header);
        assert_eq!(header.partial(), Some(Partial { start: 0x0506, at: 0x0c0e }));
        assert!(!header.is_done() && Header::NONE.is_done());
    }
}
