//! The packed ring against a driver written here, and against a model under random schedules.

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use proptest::prelude::*;

use crate::buf;
use crate::{Broken, Direction, GuestBuf, Layout, Memory, RegionSpec, Ring, RingError};

use super::*;

const SIZE: u16 = 8;
const DESC: u64 = 0x0000;
const DRIVER: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const TABLES: u64 = 0x3000;
const DATA: u64 = 0x8000;
const USER: u64 = 0x5555_0000_0000;

/// The guest's side: plain reads and writes of the file that backs its memory.
struct Driver {
    file: std::fs::File,
    next: Position,
    used: Position,
    /// Slots that chains in flight take up, by id.
    flying: HashMap<u16, u16>,
}

/// How a chain lies in the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Direct(u16),
    Table(u16),
}

impl Driver {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x10000).unwrap();
        let start = Position { slot: 0, wrap: true };
        Self { file, next: start, used: start, flying: HashMap::new() }
    }

    fn memory(&self) -> Arc<Memory> {
        let file = self.file.try_clone().unwrap();
        let spec = RegionSpec { guest_addr: 0, size: 0x10000, user_addr: USER, offset: 0, file };
        Arc::new(Memory::new(vec![spec]).unwrap())
    }

    fn ring(&self, direction: Direction, event_idx: bool) -> Ring {
        Ring::new(self.memory(), &layout(event_idx), direction).unwrap()
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    fn desc(&self, at: u64, addr: u64, len: u32, id: u16, flags: u16) {
        let words = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &id.to_le_bytes(), &flags.to_le_bytes()];
        self.write(at, &words.concat());
    }

    /// Makes a chain of these descriptors available: address, length, flags without those of the ring.
    fn offer(&mut self, id: u16, descs: &[(u64, u32, u16)]) {
        let (start, last) = (self.next, descs.len() - 1);
        for (index, (addr, len, flags)) in descs.iter().enumerate() {
            let more = if index < last { DESC_F_NEXT } else { 0 };
            let lap = if self.next.wrap { DESC_F_AVAIL } else { DESC_F_USED };
            // The head's flags come last; until then it is what it was.
            let flags = if index == 0 { !lap & (DESC_F_AVAIL | DESC_F_USED) } else { flags | more | lap };
            self.desc(DESC + 16 * u64::from(self.next.slot), *addr, *len, id, flags);
            self.next = self.next.forward(1, SIZE);
        }
        let more = if last > 0 { DESC_F_NEXT } else { 0 };
        let lap = if start.wrap { DESC_F_AVAIL } else { DESC_F_USED };
        let flags = descs[0].2 | more | lap;
        self.write(DESC + 16 * u64::from(start.slot) + 14, &flags.to_le_bytes());
        self.flying.insert(id, u16::try_from(descs.len()).unwrap());
    }

    /// Offers a chain of buffers of 64 bytes that belong to `id`.
    fn offer_shape(&mut self, id: u16, shape: Shape) {
        let piece = |index: u16| DATA + 0x400 * u64::from(id) + 64 * u64::from(index);
        match shape {
            Shape::Direct(count) => {
                let descs: Vec<_> = (0..count).map(|i| (piece(i), 64, DESC_F_WRITE)).collect();
                self.offer(id, &descs);
            }
            Shape::Table(count) => {
                let table = TABLES + 0x100 * u64::from(id);
                for index in 0..count {
                    // NEXT means nothing in a table.
                    let flags = DESC_F_WRITE | if index % 2 == 0 { DESC_F_NEXT } else { 0 };
                    self.desc(table + 16 * u64::from(index), piece(index), 64, 0, flags);
                }
                self.offer(id, &[(table, 16 * u32::from(count), DESC_F_INDIRECT)]);
            }
        }
    }

    /// Takes the next used descriptor, if there is one: id and length.
    fn used(&mut self) -> Option<(u16, u32)> {
        let at = DESC + 16 * u64::from(self.used.slot);
        let flags = u16::from_le_bytes(self.read(at + 14));
        let (avail, used) = (flags & DESC_F_AVAIL != 0, flags & DESC_F_USED != 0);
        if avail != used || used != self.used.wrap {
            return None;
        }
        let id = u16::from_le_bytes(self.read(at + 12));
        let len = if flags & DESC_F_WRITE == 0 { 0 } else { u32::from_le_bytes(self.read(at + 8)) };
        let slots = self.flying.remove(&id).expect("an id that is in flight");
        self.used = self.used.forward(slots, SIZE);
        Some((id, len))
    }

    fn set_wish(&self, event: u16, flags: u16) {
        self.write(DRIVER, &event.to_le_bytes());
        self.write(DRIVER + 2, &flags.to_le_bytes());
    }

    fn device_wish(&self) -> (u16, u16) {
        (u16::from_le_bytes(self.read(DEVICE)), u16::from_le_bytes(self.read(DEVICE + 2)))
    }

    /// Slots that no chain in flight takes up.
    fn free(&self) -> u16 {
        SIZE - self.flying.values().sum::<u16>()
    }
}

fn layout(event_idx: bool) -> Layout {
    let (desc, avail, used) = (USER + DESC, USER + DRIVER, USER + DEVICE);
    Layout { packed: true, size: SIZE, desc, avail, used, next_avail: WRAP, event_idx }
}

#[test]
fn new_rejects_bad_layouts() {
    let memory = Driver::new().memory();
    let refuse = |change: fn(&mut Layout)| {
        let mut layout = layout(true);
        change(&mut layout);
        Ring::new(memory.clone(), &layout, Direction::Tx).unwrap_err()
    };
    assert!(matches!(refuse(|l| l.size = 6), RingError::Size(6)));
    assert!(matches!(refuse(|l| l.next_avail = WRAP | SIZE), RingError::Base { size: SIZE, .. }));
    assert!(matches!(refuse(|l| l.desc = USER + 0x10000 - 64), RingError::Address { .. }));
    assert!(matches!(refuse(|l| l.desc = USER + 8), RingError::Alignment { .. }));
    assert!(matches!(refuse(|l| l.avail = USER + 2), RingError::Alignment { .. }));
    assert!(matches!(refuse(|l| l.used = USER + 0x10000), RingError::Address { .. }));
}

#[test]
fn tx_chain_is_read_and_returned() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Tx, false);
    assert_eq!(ring.fill(4), Ok(0));
    driver.write(DATA, b"hello world");
    driver.offer(5, &[(DATA, 5, 0), (DATA + 5, 6, 0)]);
    assert_eq!(ring.fill(4), Ok(1));
    let mut text = [0; 16];
    assert_eq!(buf::read_chain(ring.bufs(0), 0, &mut text), 11);
    assert_eq!(&text[..11], b"hello world");
    ring.complete(0, 0);
    assert_eq!(driver.used(), None, "nothing is visible before the publish");
    assert!(ring.publish(1));
    assert_eq!((driver.used(), driver.used()), (Some((5, 0)), None));
    assert!(!ring.publish(0));
    assert_eq!(ring.next_avail(), WRAP | 2);
    assert_eq!(ring.fill(4), Ok(0), "the chain's second slot is not taken for another chain");
}

#[test]
fn used_descriptors_appear_together_and_in_the_order_of_completion() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Rx, false);
    driver.offer_shape(0, Shape::Direct(1));
    driver.offer_shape(1, Shape::Table(3));
    driver.offer_shape(2, Shape::Direct(3));
    assert_eq!(ring.fill(8), Ok(3));
    for (index, len) in [(0, 7), (2, 150), (1, 1)] {
        ring.complete(index, len);
    }
    assert_eq!(driver.used(), None);
    ring.publish(3);
    assert_eq!([driver.used(), driver.used(), driver.used()], [Some((0, 7)), Some((2, 150)), Some((1, 1))]);
    assert_eq!(driver.used(), None);
    // Across the ring's end, where the wrap counter changes.
    driver.offer_shape(3, Shape::Direct(4));
    driver.offer_shape(4, Shape::Direct(4));
    assert_eq!(ring.fill(8), Ok(2));
    ring.complete(0, 1);
    ring.complete(1, 2);
    ring.publish(2);
    assert_eq!([driver.used(), driver.used(), driver.used()], [Some((3, 1)), Some((4, 2)), None]);
    assert_eq!(ring.next_avail(), 5);
}

#[test]
fn bad_chains_go_back_empty_and_are_counted() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Tx, false);
    let table = TABLES;
    driver.desc(table, table, 16, 0, DESC_F_INDIRECT);
    let bad: [&[(u64, u32, u16)]; 8] = [
        &[(0xffff, 2, 0)],
        &[(DATA, 1, 0), (DATA, 10, DESC_F_WRITE), (DATA, 1, 0)],
        &[(u64::MAX, u32::MAX, 0)],
        &[(table, 0, DESC_F_INDIRECT)],
        &[(table, 17, DESC_F_INDIRECT)],
        &[(table + 4, 16, DESC_F_INDIRECT)],
        &[(table, 16 * (u32::from(SIZE) + 1), DESC_F_INDIRECT)],
        &[(table, 16, DESC_F_INDIRECT), (DATA, 1, 0)],
    ];
    for (id, descs) in (20..).zip(bad) {
        driver.offer(id, descs);
        driver.offer(1, &[(DATA, 10, 0)]);
        assert_eq!(ring.fill(8), Ok(2), "{descs:x?}");
        assert_eq!((ring.chain_len(0), ring.bufs(0).len()), (0, 0), "{descs:x?}");
        assert_eq!(ring.chain_len(1), 10);
        ring.complete(0, 0);
        ring.complete(1, 0);
        ring.publish(2);
        assert_eq!((driver.used(), driver.used()), (Some((id, 0)), Some((1, 0))));
        assert_eq!(ring.take_bad_chains(), 1);
    }
}

#[test]
fn endless_chain_breaks_the_ring_once() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Tx, false);
    driver.offer(3, &[(DATA, 10, 0), (DATA, 10, 0)]);
    assert_eq!(ring.fill(1), Ok(1));
    for slot in 0..u64::from(SIZE) {
        driver.desc(DESC + 16 * slot, DATA, 1, 0, DESC_F_NEXT | DESC_F_AVAIL);
    }
    assert_eq!(ring.fill(8), Err(Broken { at: WRAP | 2 }));
    assert_eq!(ring.fill(8), Ok(0), "told once");
    assert!(!ring.enable_kicks(), "and never again a reason to stay awake");
    assert_eq!(ring.chain_len(0), 20, "what was taken before is whole");
    assert_eq!(ring.next_avail(), WRAP);
}

#[test]
fn no_slot_is_taken_twice() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Tx, false);
    (0..SIZE).for_each(|id| driver.offer(id, &[(DATA, 10, 0)]));
    assert_eq!(ring.fill(100), Ok(8));
    // A driver that overwrites what it gave away with the next lap's flags.
    (0..SIZE).for_each(|id| driver.offer(id, &[(DATA, 10, 0)]));
    assert_eq!(ring.fill(100), Ok(8));
    assert!(!ring.enable_kicks());
}

#[test]
fn calls_follow_the_event_across_the_end() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Tx, true);
    let mut one = |ring: &mut Ring, event: u16| {
        driver.set_wish(event, EVENT_DESC);
        driver.offer(0, &[(DATA, 10, 0), (DATA, 10, 0)]);
        assert_eq!(ring.fill(1), Ok(1));
        ring.complete(0, 0);
        ring.publish(1);
        driver.used().unwrap();
        ring.wants_call()
    };
    assert!(one(&mut ring, WRAP | 7), "the first time there is nothing to compare with");
    assert!(one(&mut ring, WRAP | 3), "slot 3 was used");
    assert!(!one(&mut ring, WRAP | 6), "slots 4 and 5 were used");
    assert!(one(&mut ring, WRAP | 7), "slots 6 and 7 were used");
    assert!(one(&mut ring, 1), "slots 0 and 1 of the next lap");
    assert!(!one(&mut ring, WRAP | 2), "slot 2 of the last lap is long past");
    assert!(!one(&mut ring, 6));
    assert!(one(&mut ring, 6));
}

#[test]
fn calls_follow_the_flags() {
    let driver = Driver::new();
    for event_idx in [false, true] {
        let mut ring = driver.ring(Direction::Tx, event_idx);
        for _ in 0..2 {
            driver.set_wish(0, EVENT_ENABLE);
            assert!(ring.wants_call());
            driver.set_wish(0, EVENT_DISABLE);
            assert!(!ring.wants_call());
        }
    }
}

#[test]
fn kicks_are_asked_for_and_not() {
    let mut driver = Driver::new();
    let mut plain = driver.ring(Direction::Tx, false);
    plain.disable_kicks();
    assert_eq!(driver.device_wish().1, EVENT_DISABLE);
    assert!(!plain.enable_kicks());
    assert_eq!(driver.device_wish().1, EVENT_ENABLE);
    let mut event = driver.ring(Direction::Tx, true);
    driver.offer(0, &[(DATA, 10, 0), (DATA, 10, 0)]);
    assert!(event.enable_kicks(), "a chain slipped in");
    event.disable_kicks();
    assert_eq!(driver.device_wish().1, EVENT_DISABLE);
    assert_eq!(event.fill(4), Ok(1));
    assert!(!event.enable_kicks());
    assert_eq!(driver.device_wish(), (WRAP | 2, EVENT_DESC));
}

fn shape() -> impl Strategy<Value = Shape> {
    prop_oneof![(1u16..4).prop_map(Shape::Direct), (1u16..6).prop_map(Shape::Table)]
}

proptest! {
    /// Whatever the order of offering, filling, using, rewinding and restarting: each chain comes back exactly once,
    /// with the length that was said, across the ring's end.
    #[test]
    fn every_chain_comes_back_once(
        steps in prop::collection::vec((0u8..5, 1usize..6, shape()), 1..200),
    ) {
        let mut driver = Driver::new();
        let mut ring = driver.ring(Direction::Rx, true);
        let mut waiting = std::collections::VecDeque::new();
        let (mut id, mut said) = (0, 0u32);
        for (step, count, shape) in steps {
            match step {
                0 => {
                    let slots = if let Shape::Direct(slots) = shape { slots } else { 1 };
                    if driver.free() >= slots {
                        // Ids need not be below the ring's size, only different from those in flight.
                        id = (id + 1) % 16;
                        driver.offer_shape(id, shape);
                        waiting.push_back((id, shape));
                    }
                }
                1 => { ring.fill(count).unwrap(); }
                2 => {
                    let count = count.min(ring.fill(0).unwrap());
                    let mut order: Vec<usize> = (0..count).collect();
                    // As when a frame takes further buffers behind those of other frames.
                    if count > 2 { order[1..].rotate_right(1); }
                    let mut expected = Vec::new();
                    for index in &order {
                        let (id, shape) = waiting[*index];
                        let (Shape::Direct(pieces) | Shape::Table(pieces)) = shape;
                        prop_assert_eq!(ring.bufs(*index).len(), usize::from(pieces));
                        prop_assert_eq!(ring.chain_len(*index), 64 * usize::from(pieces));
                        said += 1;
                        ring.complete(*index, said);
                        expected.push((id, said));
                        prop_assert_eq!(driver.used(), None);
                    }
                    waiting.drain(..count);
                    prop_assert_eq!(ring.publish(count), count > 0);
                    let seen: Vec<_> = std::iter::from_fn(|| driver.used()).collect();
                    prop_assert_eq!(seen, expected);
                }
                3 => ring.rewind(),
                _ => {
                    let at = Layout { next_avail: ring.next_avail(), ..layout(true) };
                    ring = Ring::new(driver.memory(), &at, Direction::Rx).unwrap();
                }
            }
            prop_assert_eq!(ring.waiting(), SIZE - driver.free());
        }
        prop_assert_eq!(ring.take_bad_chains(), 0);
        prop_assert_eq!(ring.fill(100).unwrap(), waiting.len());
    }

    /// Arbitrary bytes as ring memory neither panic nor hang, and pieces never leave guest memory.
    #[test]
    fn arbitrary_ring_memory_is_survived(bytes in prop::collection::vec(any::<u8>(), 0x80), rx in any::<bool>()) {
        let driver = Driver::new();
        driver.write(0, &bytes);
        let direction = if rx { Direction::Rx } else { Direction::Tx };
        let mut ring = driver.ring(direction, true);
        for _ in 0..4 {
            let count = ring.fill(16).unwrap_or(0);
            for index in 0..count {
                let total: usize = ring.bufs(index).iter().map(GuestBuf::len).sum();
                prop_assert_eq!(total, ring.chain_len(index));
                ring.complete(index, 0);
            }
            ring.publish(count);
            prop_assert!(ring.waiting() <= ring.size());
            ring.wants_call();
        }
    }
}
