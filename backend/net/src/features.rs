//! What is offered to the guest, and what the driver's choice means for the queues.
//!
//! Offered is what does not depend on the links: the guest must not learn what it is plugged into, so that a cable can be
//! moved. What a link lacks is done in software.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CSUM, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Feature bits offered to a NIC with `pairs` queue pairs (virtio 1.2 § 5.1.3, § 6).
pub fn offered(pairs: u16) -> u64 {
    let always = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_NET_F_MRG_RXBUF,
        VIRTIO_NET_F_CSUM,
    ];
    let bits = always.iter().fold(0, |bits, bit| bits | 1 << bit);
    if pairs > 1 { bits | 1 << VIRTIO_NET_F_MQ } else { bits }
}

/// What the driver accepted, as far as the queues care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Bytes before each frame in a chain: 12 with the buffer count, 10 for a legacy driver without mergeable buffers
    /// (virtio 1.2 § 5.1.6.1).
    pub header_len: usize,
    /// A received frame may be spread over several chains.
    pub mergeable: bool,
    /// The driver may leave a checksum to us.
    pub csum: bool,
}

impl Accepted {
    /// Reads the driver's feature bits.
    pub fn new(features: u64) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        let mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
        let header_len = if mergeable || has(VIRTIO_F_VERSION_1) { 12 } else { 10 };
        Self { header_len, mergeable, csum: has(VIRTIO_NET_F_CSUM) }
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
        assert_eq!(offered(1) & 1 << VIRTIO_NET_F_MQ, 0);
        assert_ne!(offered(2) & 1 << VIRTIO_NET_F_MQ, 0);
    }
}
