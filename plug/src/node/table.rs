//! Which port an address is behind: the memory of a `switch://`.
//!
//! Theory of operation. The key is a MAC address with the 12 bits of its frame's VLAN. The table has a fixed number of
//! slots in sets of eight; a key may stand in any slot of one set, which a keyed hash chooses. An entry that was not
//! refreshed in time counts as free; nothing ever sweeps.
//!
//! A port that pours out invented addresses must neither grow the table nor make the switch forget the others, for
//! what is forgotten is flooded and so shown to all. Therefore a new address in a full set takes the place of the
//! oldest one of the port that has most there, and only if that port is left with no less than the newcomer then has.
//! Otherwise it is not remembered. By that rule a flood ends up replacing its own entries, and a port that comes later
//! still gets its share.

use std::time::Duration;

use crate::link::FRAME_MIN;

/// Slots of a set: three cache lines.
const WAYS: usize = 8;

/// How much of a frame is looked at: addresses, type, and the tag's word.
pub(super) const LOOK: usize = FRAME_MIN + 2;

/// A port of a node, a peer's or one of this process, by a number that is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port(pub(super) u64);

impl Port {
    /// That of who opened the node.
    pub(super) const OWNER: Self = Self(0);
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// To every port but the one it came from.
    All,
    /// To this one.
    One(Port),
    /// Nowhere: who it is for sits on the port it came from, and heard it.
    Nobody,
}

/// What a switch may be told about its table.
#[derive(Clone, Debug)]
pub(super) struct TableSettings {
    /// How many addresses it remembers, rounded up to a power of two that is at least eight.
    pub(super) slots: usize,
    /// What its hash is keyed with; random if not given.
    pub(super) seed: Option<u64>,
    /// How long an address is remembered that is not seen again.
    pub(super) expire: Duration,
}

impl Default for TableSettings {
    fn default() -> Self {
        Self { slots: 256, seed: None, expire: Duration::from_secs(120) }
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: u64,
    /// `None` is a free slot.
    port: Option<Port>,
    /// Seen last then.
    at: Duration,
}

/// The table.
#[derive(Debug)]
pub(super) struct Table {
    entries: Vec<Entry>,
    seed: u64,
    expire: Duration,
}

impl Table {
    pub(super) fn new(settings: &TableSettings) -> Self {
        use std::hash::{BuildHasher, RandomState};
        let slots = settings.slots.next_power_of_two().max(WAYS);
        let empty = Entry { key: 0, port: None, at: Duration::ZERO };
        let seed = settings.seed.unwrap_or_else(|| RandomState::new().hash_one(0));
        Self { entries: vec![empty; slots], seed, expire: settings.expire }
    }

    /// Learns from the first bytes of a frame that came from a port, and says where it goes. `now` is a time that only
    /// grows.
    pub(super) fn pass(&mut self, from: Port, frame: &[u8; LOOK], frame_len: usize, now: Duration) -> To {
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1, v0, v1] = *frame;
        let vlan = match [t0, t1] {
            [0x81, 0x00] if frame_len >= LOOK => u16::from_be_bytes([v0, v1]) & 0xfff,
            _ => 0,
        };
        let [vlan_high, vlan_low] = vlan.to_be_bytes();
        let key = |[a, b, c, d, e, f]: [u8; 6]| u64::from_be_bytes([vlan_high, vlan_low, a, b, c, d, e, f]);
        if s0 & 1 == 0 {
            self.learn(key([s0, s1, s2, s3, s4, s5]), from, now);
        }
        if d0 & 1 != 0 {
            return To::All;
        }
        match self.find(key([d0, d1, d2, d3, d4, d5]), now) {
            None => To::All,
            Some(port) if port == from => To::Nobody,
            Some(port) => To::One(port),
        }
    }

    /// Forgets a port.
    pub(super) fn forget(&mut self, port: Port) {
        for entry in self.entries.iter_mut().filter(|entry| entry.port == Some(port)) {
            entry.port = None;
        }
    }

    fn find(&mut self, key: u64, now: Duration) -> Option<Port> {
        let expire = self.expire;
        let entry = self.set(key).iter().find(|entry| entry.key == key && entry.port.is_some())?;
        entry.port.filter(|_| lives(entry, expire, now))
    }

    fn learn(&mut self, key: u64, port: Port, now: Duration) {
        let expire = self.expire;
        let set = self.set(key);
        let new = Entry { key, port: Some(port), at: now };
        if let Some(known) = set.iter_mut().find(|entry| entry.key == key && entry.port.is_some()) {
            *known = new;
            return;
        }
        if let Some(free) = set.iter_mut().find(|entry| !lives(entry, expire, now)) {
            *free = new;
            return;
        }
        let count = |of: Option<Port>| set.iter().filter(|entry| entry.port == of).count();
        let Some(richest) = set.iter().map(|entry| entry.port).max_by_key(|of| count(*of)) else { return };
        let (own, most) = (count(Some(port)), count(richest));
        // Its own oldest address, unless another port has so many that both have no less afterwards.
        let poorer = if most > own + 1 { richest } else { Some(port) };
        let oldest = set.iter_mut().filter(|entry| entry.port == poorer).min_by_key(|entry| entry.at);
        if let Some(oldest) = oldest {
            *oldest = new;
        }
    }

    /// The set that a key stands in.
    fn set(&mut self, key: u64) -> &mut [Entry] {
        // The finaliser of splitmix64.
        let mut hash = key ^ self.seed;
        hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
        let sets = (self.entries.len() / WAYS).max(1);
        let start = usize::try_from(hash % sets as u64).unwrap_or(0) * WAYS;
        self.entries.get_mut(start..start + WAYS).unwrap_or_default()
    }
}

fn lives(entry: &Entry, expire: Duration, now: Duration) -> bool {
    entry.port.is_some() && now.saturating_sub(entry.at) < expire
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Duration = Duration::from_secs(1000);

    fn table(slots: usize) -> Table {
        Table::new(&TableSettings { slots, seed: Some(1), ..TableSettings::default() })
    }

    /// A frame between two stations, with a tag of this word if there is one.
    fn frame(to: u32, from: u32, tag: Option<u16>) -> [u8; LOOK] {
        let mut frame = [0; LOOK];
        frame[0] = 2;
        frame[2..6].copy_from_slice(&to.to_be_bytes());
        frame[6] = 2;
        frame[8..12].copy_from_slice(&from.to_be_bytes());
        if let Some(tag) = tag {
            frame[12..14].copy_from_slice(&[0x81, 0]);
            frame[14..].copy_from_slice(&tag.to_be_bytes());
        }
        frame
    }

    #[test]
    fn pass_learns_and_forgets() {
        let mut table = table(256);
        let mut pass = |port, to, from, at: u64| {
            table.pass(Port(port), &frame(to, from, None), 60, START + Duration::from_secs(at))
        };
        assert_eq!(pass(1, 20, 10, 0), To::All);
        assert_eq!(pass(2, 10, 20, 1), To::One(Port(1)));
        assert_eq!(pass(1, 20, 10, 2), To::One(Port(2)));
        assert_eq!(pass(2, 20, 21, 3), To::Nobody);
        // The owner is a port like any other.
        assert_eq!(pass(0, 10, 30, 3), To::One(Port(1)));
        assert_eq!(pass(1, 30, 10, 3), To::One(Port::OWNER));
        // Station 10 moves.
        assert_eq!(pass(3, 30, 10, 4), To::One(Port::OWNER));
        assert_eq!(pass(2, 10, 20, 5), To::One(Port(3)));
        // 120 seconds after it was heard last.
        assert_eq!(pass(2, 10, 20, 123), To::One(Port(3)));
        assert_eq!(pass(2, 10, 20, 124), To::All);
        table.forget(Port(2));
        assert_eq!(table.pass(Port(1), &frame(20, 10, None), 60, START + Duration::from_secs(124)), To::All);
    }

    #[test]
    fn pass_takes_twelve_bits_of_a_tag() {
        let mut table = table(256);
        let mut pass = |port, to, from, tag, len| table.pass(Port(port), &frame(to, from, tag), len, START);
        pass(1, 0, 10, Some(5), 64);
        assert_eq!(pass(2, 10, 20, Some(5), 64), To::One(Port(1)));
        assert_eq!(pass(2, 10, 20, Some(0xe005), 64), To::One(Port(1)), "priority is no part of it");
        assert_eq!(pass(2, 10, 20, Some(5 + 1024), 64), To::All, "networks 1024 apart are two");
        assert_eq!(pass(2, 10, 20, None, 64), To::All);
        pass(1, 0, 11, None, 60);
        assert_eq!(pass(2, 11, 20, Some(0), 64), To::One(Port(1)), "a tag of priority alone is none");
        assert_eq!(pass(2, 11, 20, Some(5), 14), To::One(Port(1)), "a tag that ends at once is none");
    }

    #[test]
    fn pass_never_learns_from_a_group() {
        let mut table = table(256);
        let mut from_group = frame(20, 10, None);
        from_group[6] |= 1;
        table.pass(Port(1), &from_group, 60, START);
        assert!(table.entries.iter().all(|entry| entry.port.is_none()));
        let mut to_group = frame(10, 20, None);
        to_group[0] = 0xff;
        assert_eq!(table.pass(Port(2), &to_group, 60, START), To::All);
    }

    #[test]
    fn flood_evicts_nobody_and_leaves_room() {
        let mut table = table(64);
        let mut pass = |port, to, from| table.pass(Port(port), &frame(to, from, None), 60, START);
        for station in 0..8 {
            pass(1 + u64::from(station), 0, 100 + station);
        }
        for invented in 0..10_000 {
            pass(99, 0, 1_000_000 + invented);
        }
        for station in 0..8 {
            assert_eq!(pass(50, 100 + station, 0), To::One(Port(1 + u64::from(station))), "an old station");
        }
        for station in 0..8 {
            pass(200 + u64::from(station), 0, 200 + station);
        }
        for invented in 0..10_000 {
            pass(99, 0, 2_000_000 + invented);
        }
        for station in 0..8 {
            assert_eq!(pass(50, 200 + station, 0), To::One(Port(200 + u64::from(station))), "a new one");
        }
        assert_eq!(table.entries.len(), 64);
    }

    proptest! {
        #[test]
        fn pass_sends_to_where_an_address_was_seen_last(
            frames in prop::collection::vec((1u64..5, 0u32..40, 0u32..40), 0..300),
        ) {
            // Small enough a world for the table to hold, so it has to agree with a map.
            let mut table = table(4096);
            let mut seen = std::collections::HashMap::new();
            for (port, to, from) in frames {
                seen.insert(from, port);
                let expected = match seen.get(&to) {
                    None => To::All,
                    Some(there) if *there == port => To::Nobody,
                    Some(there) => To::One(Port(*there)),
                };
                prop_assert_eq!(table.pass(Port(port), &frame(to, from, None), 60, START), expected);
            }
        }
    }
}
