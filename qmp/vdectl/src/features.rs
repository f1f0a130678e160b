//! Feature bits of a virtio NIC in words: virtio 1.2 § 5.1.3 (the network device) and § 6 (all devices), with what a front
//! end may add to them over vhost-user.

/// Bits and their names; those of § 5.1.3 are `VIRTIO_NET_F_…` there, in capitals and with underscores.
const NAMES: [(u32, &str); 48] = [
    (0, "csum"),
    (1, "guest-csum"),
    (2, "ctrl-guest-offloads"),
    (3, "mtu"),
    (5, "mac"),
    // § 5.1.3.2, of drivers before 1.0.
    (6, "gso"),
    (7, "guest-tso4"),
    (8, "guest-tso6"),
    (9, "guest-ecn"),
    (10, "guest-ufo"),
    (11, "host-tso4"),
    (12, "host-tso6"),
    (13, "host-ecn"),
    (14, "host-ufo"),
    (15, "mrg-rxbuf"),
    (16, "status"),
    (17, "ctrl-vq"),
    (18, "ctrl-rx"),
    (19, "ctrl-vlan"),
    (20, "ctrl-rx-extra"),
    (21, "guest-announce"),
    (22, "mq"),
    (23, "ctrl-mac-addr"),
    // § 6.3, of drivers before 1.0.
    (24, "notify-on-empty"),
    (26, "log-all"),
    (27, "any-layout"),
    (28, "indirect-desc"),
    (29, "event-idx"),
    (30, "protocol-features"),
    (32, "version-1"),
    (33, "access-platform"),
    (34, "ring-packed"),
    (35, "in-order"),
    (36, "order-platform"),
    (37, "sr-iov"),
    (38, "notification-data"),
    (39, "notif-config-data"),
    (40, "ring-reset"),
    (53, "notf-coal"),
    (54, "guest-uso4"),
    (55, "guest-uso6"),
    (56, "host-uso"),
    (57, "hash-report"),
    (59, "guest-hdrlen"),
    (60, "rss"),
    (61, "rsc-ext"),
    (62, "standby"),
    (63, "speed-duplex"),
];

/// The features in words, lowest bit first; a bit without a name is `bit-N`.
pub fn words(features: u64) -> Vec<String> {
    let set = (0..u64::BITS).filter(|bit| features >> bit & 1 == 1);
    set.map(|bit| {
        let named = NAMES.iter().find(|(number, _)| *number == bit);
        named.map_or_else(|| format!("bit-{bit}"), |(_, name)| (*name).to_owned())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_standard() {
        assert!(words(0).is_empty());
        // What a Linux driver takes of a plain NIC.
        assert_eq!(words(1 | 1 << 15 | 1 << 32 | 1 << 4), ["csum", "bit-4", "mrg-rxbuf", "version-1"]);
        assert_eq!(words(1 << 63 | 1 << 58), ["bit-58", "speed-duplex"]);
        assert_eq!(words(u64::MAX).len(), 64);
        assert!(
            NAMES.windows(2).all(|pair| matches!(pair, [(a, _), (b, _)] if a < b)),
            "bits in order, once"
        );
    }
}
