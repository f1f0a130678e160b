//! What is offered to the guest, and what the driver's choice means for the queues.
//!
//! Offered is what does not depend on the links: the guest must not learn what it is plugged into, so that a cable can be
//! moved. What a link lacks is done in software.

use offload::Header;
use offload::header::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};
use virtio_bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Feature bits offered to a NIC with `pairs` queue pairs (virtio 1.2 § 5.1.3, § 6); without `offloads` each side gives the
/// other complete frames. UDP fragmentation (UFO) is not among
/// them: Linux dropped it, and no network of ours carries it. Nor is the reset of single rings: QEMU 10 would offer it to the guest and
/// then not tell us of one.
pub fn offered(pairs: u16, offloads: bool) -> u64 {
    let always = [
        VIRTIO_F_VERSION_1,
        VIRTIO_F_RING_PACKED,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_MTU,
    ];
    let left_to_others = [
        VIRTIO_NET_F_CSUM,
        VIRTIO_NET_F_HOST_TSO4,
        VIRTIO_NET_F_HOST_TSO6,
        VIRTIO_NET_F_HOST_ECN,
        VIRTIO_NET_F_HOST_USO,
        VIRTIO_NET_F_GUEST_CSUM,
        VIRTIO_NET_F_GUEST_TSO4,
        VIRTIO_NET_F_GUEST_TSO6,
        VIRTIO_NET_F_GUEST_ECN,
        VIRTIO_NET_F_GUEST_USO4,
        VIRTIO_NET_F_GUEST_USO6,
    ];
    let bits = always.iter().chain(left_to_others.iter().filter(|_| offloads));
    let bits = bits.fold(0, |bits, bit| bits | 1 << bit);
    if pairs > 1 { bits | 1 << VIRTIO_NET_F_MQ } else { bits }
}

/// What the sender of a frame may leave to its receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums.
    pub csum: bool,
    /// Segmentation of TCP over IPv4.
    pub tso4: bool,
    /// Segmentation of TCP over IPv6.
    pub tso6: bool,
    /// Segmentation of TCP with CWR in its first segment.
    pub ecn: bool,
    /// Segmentation of UDP.
    pub uso: bool,
}

impl Offloads {
    /// Whether nothing is asked for but what may be.
    pub fn allow(&self, header: &Header) -> bool {
        let kind = match header.gso_type & !GSO_ECN {
            GSO_NONE => true,
            GSO_TCPV4 => self.tso4,
            GSO_TCPV6 => self.tso6,
            GSO_UDP_L4 => self.uso,
            _ => false,
        };
        let csum = self.csum || header.flags & NEEDS_CSUM == 0;
        let ecn = self.ecn || header.gso_type & GSO_ECN == 0;
        kind && csum && ecn
    }
}

/// What the driver accepted, as far as the queues care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Bytes before each frame in a chain: 12 with the buffer count, 10 for a legacy driver without mergeable buffers
    /// (virtio 1.2 § 5.1.6.1).
    pub header_len: usize,
    /// A received frame may be spread over several chains.
    pub mergeable: bool,
    /// What the driver may leave to us.
    pub tx: Offloads,
    /// What we may leave to the driver.
    pub rx: Offloads,
}

impl Accepted {
    /// Reads the driver's feature bits.
    pub fn new(features: u64) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        let mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
        let header_len = if mergeable || has(VIRTIO_F_VERSION_1) { 12 } else { 10 };
        let tx = Offloads {
            csum: has(VIRTIO_NET_F_CSUM),
            tso4: has(VIRTIO_NET_F_HOST_TSO4),
            tso6: has(VIRTIO_NET_F_HOST_TSO6),
            ecn: has(VIRTIO_NET_F_HOST_ECN),
            uso: has(VIRTIO_NET_F_HOST_USO),
        };
        let rx = Offloads {
            csum: has(VIRTIO_NET_F_GUEST_CSUM),
            tso4: has(VIRTIO_NET_F_GUEST_TSO4),
            tso6: has(VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(VIRTIO_NET_F_GUEST_ECN),
            // Drivers take both or none.
            uso: has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6),
        };
        Self { header_len, mergeable, tx, rx }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_short_only_for_plain_legacy() {
        let len = |bits: &[u32]| Accepted::new(bits.iter().fold(0, |b, bit| b | 1 << bit)).header_len;
        assert_eq!(len(&[]), 10);
        assert_eq!(len(&[VIRTIO_NET_F_CSUM]), 10);
        assert_eq!(len(&[VIRTIO_NET_F_MRG_RXBUF]), 12);
        assert_eq!(len(&[VIRTIO_F_VERSION_1]), 12);
    }

    #[test]
    fn several_pairs_are_offered_only_where_there_are_several() {
        assert_eq!(offered(1, true) & 1 << VIRTIO_NET_F_MQ, 0);
        assert_ne!(offered(2, true) & 1 << VIRTIO_NET_F_MQ, 0);
    }

    #[test]
    fn without_offloads_nothing_is_left_to_others() {
        let all = Offloads { csum: true, tso4: true, tso6: true, ecn: true, uso: true };
        let with = Accepted::new(offered(1, true));
        assert_eq!((with.tx, with.rx), (all, all));
        let without = Accepted::new(offered(1, false));
        assert_eq!((without.tx, without.rx), (Offloads::default(), Offloads::default()));
        assert!(without.mergeable && without.header_len == 12);
    }

    #[test]
    fn allow_knows_each_kind() {
        let bits = |bits: &[u32]| Accepted::new(bits.iter().fold(0, |b, bit| b | 1 << bit));
        let header = |gso_type| Header { flags: NEEDS_CSUM, gso_type, ..Header::NONE };
        let (none, csum) = (bits(&[]).tx, bits(&[VIRTIO_NET_F_CSUM]).tx);
        assert!(none.allow(&Header::NONE) && !none.allow(&header(GSO_NONE)));
        assert!(csum.allow(&header(GSO_NONE)) && !csum.allow(&header(GSO_TCPV4)));
        let kinds = [
            (VIRTIO_NET_F_GUEST_TSO4, GSO_TCPV4),
            (VIRTIO_NET_F_GUEST_TSO6, GSO_TCPV6),
            (VIRTIO_NET_F_GUEST_USO6, GSO_UDP_L4),
        ];
        for (bit, kind) in kinds {
            let rx = bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_USO4, bit]).rx;
            assert!(rx.allow(&header(kind)) && !rx.allow(&header(kind | GSO_ECN)));
            assert!(kinds.iter().all(|(_, other)| *other == kind || !rx.allow(&header(*other))));
            let ecn = bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, bit]).rx;
            assert_eq!(ecn.allow(&header(kind | GSO_ECN)), kind != GSO_UDP_L4);
        }
        assert!(!bits(&[VIRTIO_NET_F_GUEST_TSO4]).rx.allow(&header(GSO_TCPV4)), "its checksum");
        assert!(!Offloads { csum: true, tso4: true, tso6: true, ecn: true, uso: true }.allow(&header(3)));
    }
}
