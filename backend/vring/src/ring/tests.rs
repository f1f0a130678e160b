//! The ring against a driver written here, and against a model under random schedules.

use std::collections::VecDeque;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::buf;
use crate::mem::RegionSpec;
use crate::split::{AVAIL_F_NO_INTERRUPT, USED_F_NO_NOTIFY};
use crate::window::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};

const SIZE: u16 = 8;
const DESC: u64 = 0x0000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const DATA: u64 = 0x4000;
const USER: u64 = 0x5555_0000_0000;

/// The guest's side: plain reads and writes of the file that backs its memory.
struct Driver {
    file: std::fs::File,
    avail: u16,
}

impl Driver {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x10000).unwrap();
        Self { file, avail: 0 }
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

    fn u16_at(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn desc(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0u8; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.write(table + 16 * u64::from(index), &bytes);
    }

    fn offer(&mut self, head: u16) {
        self.write(AVAIL + 4 + 2 * u64::from(self.avail % SIZE), &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.write(AVAIL + 2, &self.avail.to_le_bytes());
    }

    fn used_idx(&self) -> u16 {
        self.u16_at(USED + 2)
    }

    fn used(&self, index: u16) -> (u32, u32) {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, USED + 4 + 8 * u64::from(index % SIZE)).unwrap();
        (
            u32::from_le_bytes(bytes[..4].try_into().unwrap()),
            u32::from_le_bytes(bytes[4..].try_into().unwrap()),
        )
    }

    fn set_used_event(&self, index: u16) {
        self.write(AVAIL + 4 + 2 * u64::from(SIZE), &index.to_le_bytes());
    }

    fn avail_event(&self) -> u16 {
        self.u16_at(USED + 4 + 8 * u64::from(SIZE))
    }
}

fn layout(event_idx: bool) -> Layout {
    Layout {
        packed: false,
        size: SIZE,
        desc: USER + DESC,
        avail: USER + AVAIL,
        used: USER + USED,
        next_avail: 0,
        event_idx,
    }
}

#[test]
fn new_rejects_bad_layouts() {
    let memory = Driver::new().memory();
    let refuse = |change: fn(&mut Layout)| {
        let mut layout = layout(true);
        change(&mut layout);
        Ring::new(memory.clone(), &layout, Direction::Tx).unwrap_err()
    };
    assert!(matches!(refuse(|l| l.size = 0), RingError::Size(0)));
    assert!(matches!(refuse(|l| l.size = 6), RingError::Size(6)));
    assert!(matches!(refuse(|l| l.desc = USER - 16), RingError::Address { .. }));
    assert!(matches!(refuse(|l| l.used = USER + 0xfff8), RingError::Address { .. }), "runs over the end");
    assert!(matches!(refuse(|l| l.avail = u64::MAX), RingError::Address { .. }));
    assert!(matches!(refuse(|l| l.used = USER + USED + 2), RingError::Alignment { .. }));
    // The last word of the used ring is the available event: without it the ring just fits.
    let tight = |event_idx| Layout { used: USER + 0x10000 - 4 - 8 * u64::from(SIZE), ..layout(event_idx) };
    assert!(Ring::new(memory.clone(), &tight(true), Direction::Tx).is_err());
    assert!(Ring::new(memory.clone(), &tight(false), Direction::Tx).is_ok());
}

#[test]
fn split_heads_lasts_until_the_rewind() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Tx, false);
    driver.write(DATA, b"hello world");
    for head in 0..3 {
        driver.desc(DESC, head, DATA, [11, 3, 0][usize::from(head)], 0, 0);
        driver.offer(head);
    }
    let heads = |ring: &mut Ring| -> Vec<_> {
        let split = ring.split_heads::<2>(4);
        split.map(|chain| chain.map(|chain| (chain.head, chain.len, chain.bufs.len()))).collect()
    };
    assert_eq!(ring.fill(4), Ok(3));
    assert_eq!(heads(&mut ring), [Some(([b'h', b'e'], 7, 1)), None, None]);
    assert_eq!(ring.bufs(0)[0].len(), 7);
    ring.rewind();
    assert_eq!(ring.fill(4), Ok(3));
    assert_eq!(heads(&mut ring), [Some(([b'h', b'e'], 7, 1)), None, None]);
    ring.complete_front(2);
    assert!(ring.publish(2));
    assert_eq!((driver.used_idx(), driver.used(0), driver.used(1)), (2, (0, 0), (1, 0)));
    assert_eq!(heads(&mut ring), [None]);
    ring.complete_front(usize::MAX);
    assert!(ring.publish(1));
    assert_eq!((driver.used_idx(), driver.used(2), ring.fill(4)), (3, (2, 0), Ok(0)));
}

#[test]
fn tx_chain_is_read_and_returned() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Tx, false);
    assert_eq!(ring.fill(4), Ok(0));
    driver.write(DATA, b"hello world");
    driver.desc(DESC, 3, DATA, 5, DESC_F_NEXT, 5);
    driver.desc(DESC, 5, DATA + 5, 6, 0, 0);
    driver.offer(3);
    assert_eq!(ring.fill(4), Ok(1));
    let mut text = [0; 16];
    assert_eq!(buf::read_chain(ring.bufs(0), 0, &mut text), 11);
    assert_eq!(&text[..11], b"hello world");
    assert_eq!(ring.chain_len(0), 11);
    ring.complete(0, 0);
    assert_eq!(driver.used_idx(), 0, "nothing is visible before the publish");
    assert!(ring.publish(1));
    assert_eq!((driver.used_idx(), driver.used(0)), (1, (3, 0)));
    assert!(!ring.publish(0));
    assert_eq!(ring.next_avail(), 1);
}

#[test]
fn indirect_table_is_followed_once() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Rx, true);
    driver.desc(0x6000, 0, DATA, 100, DESC_F_WRITE | DESC_F_NEXT, 1);
    driver.desc(0x6000, 1, DATA + 0x200, 200, DESC_F_WRITE, 0);
    driver.desc(DESC, 0, 0x6000, 32, DESC_F_INDIRECT, 0);
    driver.offer(0);
    assert_eq!(ring.fill(1), Ok(1));
    assert_eq!(ring.bufs(0).iter().map(GuestBuf::len).collect::<Vec<_>>(), [100, 200]);
    // A table in a table, a table with a successor, a ragged one, an unaligned one, an empty one.
    driver.desc(0x6000, 1, 0x6000, 32, DESC_F_INDIRECT, 0);
    driver.desc(DESC, 1, 0x6000, 32, DESC_F_INDIRECT | DESC_F_NEXT, 0);
    driver.desc(DESC, 2, 0x6000, 33, DESC_F_INDIRECT, 0);
    driver.desc(DESC, 3, 0x6004, 32, DESC_F_INDIRECT, 0);
    driver.desc(DESC, 4, 0x6000, 0, DESC_F_INDIRECT, 0);
    for head in 0..5 {
        driver.offer(head);
    }
    assert_eq!(ring.fill(8), Ok(6));
    assert_eq!((0..6).map(|index| ring.chain_len(index)).collect::<Vec<_>>(), [300, 0, 0, 0, 0, 0]);
    assert_eq!(ring.take_bad_chains(), 5);
}

#[test]
fn bad_chains_go_back_empty_and_are_counted() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Tx, false);
    driver.desc(DESC, 0, DATA, 10, DESC_F_NEXT, 0); // a loop
    driver.desc(DESC, 1, 0xffff, 2, 0, 0); // over the end of memory
    driver.desc(DESC, 2, DATA, 10, DESC_F_WRITE, 0); // wrong direction
    driver.desc(DESC, 3, DATA, 10, DESC_F_NEXT, 77); // out of the table
    driver.desc(DESC, 4, u64::MAX, u32::MAX, 0, 0);
    driver.desc(DESC, 5, DATA, 0, 0, 0); // nothing
    for head in 0..6 {
        driver.offer(head);
    }
    driver.offer(999); // no such head: nothing to give back
    assert_eq!(ring.fill(8), Ok(7));
    for index in 0..7 {
        assert_eq!((ring.chain_len(index), ring.bufs(index).len()), (0, 0));
        ring.complete(index, 0);
    }
    assert!(ring.publish(7));
    assert_eq!(driver.used_idx(), 6);
    for index in 0..6 {
        assert_eq!(driver.used(index), (u32::from(index), 0));
    }
    assert_eq!(ring.take_bad_chains(), 7);
    assert_eq!(ring.next_avail(), 7);
}

#[test]
fn runaway_available_index_breaks_the_ring_once() {
    let driver = Driver::new();
    let mut ring = driver.ring(Direction::Tx, false);
    driver.write(AVAIL + 2, &(SIZE + 1).to_le_bytes());
    assert_eq!(ring.waiting(), SIZE);
    assert_eq!(ring.fill(1), Err(Broken { at: SIZE + 1 }));
    assert_eq!(ring.fill(1), Ok(0), "told once");
    assert_eq!(ring.waiting(), 0);
    assert!(!ring.enable_kicks(), "and never again a reason to stay awake");
}

#[test]
fn available_index_that_goes_back_breaks_the_ring() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Rx, false);
    driver.desc(DESC, 0, DATA, 0x100, DESC_F_WRITE, 0);
    (0..4).for_each(|_| driver.offer(0));
    assert_eq!(ring.fill(8), Ok(4));
    driver.write(AVAIL + 2, &2u16.to_le_bytes());
    assert_eq!(ring.fill(8), Err(Broken { at: 2 }));
    // Before, all 65534 entries up to the index were taken, most of them many times.
    assert_eq!(ring.fill(usize::MAX), Ok(0));
}

#[test]
fn unused_chains_survive_a_stop() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Rx, false);
    for head in 0..4 {
        driver.desc(DESC, head, DATA + 0x100 * u64::from(head), 0x100, DESC_F_WRITE, 0);
        driver.offer(head);
    }
    assert_eq!(ring.fill(8), Ok(4));
    ring.complete(0, 1);
    ring.publish(1);
    assert_eq!(ring.chain_len(0), 0x100);
    assert_eq!(ring.next_avail(), 1);
    let base = ring.next_avail();
    let mut again =
        Ring::new(driver.memory(), &Layout { next_avail: base, ..layout(false) }, Direction::Rx).unwrap();
    assert_eq!(again.fill(8), Ok(3));
    again.complete(0, 2);
    again.publish(1);
    assert_eq!((driver.used_idx(), driver.used(1)), (2, (1, 2)));
    again.rewind();
    assert_eq!((again.next_avail(), again.fill(8)), (2, Ok(2)));
}

#[test]
fn bad_chain_keeps_its_place_over_a_rewind() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Tx, false);
    driver.desc(DESC, 0, DATA, 10, 0, 0);
    driver.desc(DESC, 1, u64::MAX, 10, 0, 0);
    driver.desc(DESC, 2, DATA, 10, 0, 0);
    (0..3).for_each(|head| driver.offer(head));
    assert_eq!(ring.fill(8), Ok(3));
    ring.rewind();
    assert_eq!((ring.next_avail(), ring.fill(8)), (0, Ok(3)));
    for index in 0..3 {
        ring.complete(index, 0);
    }
    ring.publish(3);
    assert_eq!([driver.used(0).0, driver.used(1).0, driver.used(2).0], [0, 1, 2]);
}

#[test]
fn calls_follow_the_event_index() {
    let mut driver = Driver::new();
    let mut ring = driver.ring(Direction::Tx, true);
    driver.desc(DESC, 0, DATA, 10, 0, 0);
    let mut one = |ring: &mut Ring, event| {
        driver.set_used_event(event);
        driver.offer(0);
        assert_eq!(ring.fill(1), Ok(1));
        ring.complete(0, 0);
        ring.publish(1);
        ring.wants_call()
    };
    assert!(one(&mut ring, 7), "the first time there is nothing to compare with");
    assert!(one(&mut ring, 1), "crossed");
    assert!(!one(&mut ring, 3), "not yet reached");
    assert!(one(&mut ring, 3));
    assert!(!one(&mut ring, 3), "long past");
}

#[test]
fn calls_follow_the_flag_without_event_index() {
    let driver = Driver::new();
    let mut ring = driver.ring(Direction::Tx, false);
    assert!(ring.wants_call());
    driver.write(AVAIL, &AVAIL_F_NO_INTERRUPT.to_le_bytes());
    assert!(!ring.wants_call());
}

#[test]
fn kicks_are_asked_for_and_not() {
    let mut driver = Driver::new();
    let mut plain = driver.ring(Direction::Tx, false);
    plain.disable_kicks();
    assert_eq!(driver.u16_at(USED), USED_F_NO_NOTIFY);
    assert!(!plain.enable_kicks());
    assert_eq!(driver.u16_at(USED), 0);
    let mut event = driver.ring(Direction::Tx, true);
    driver.desc(DESC, 0, DATA, 10, 0, 0);
    driver.offer(0);
    assert!(event.enable_kicks(), "a chain slipped in");
    assert_eq!(event.fill(4), Ok(1));
    assert!(!event.enable_kicks());
    assert_eq!(driver.avail_event(), 1);
}

proptest! {
    /// Whatever the order of offering, filling, using and restarting: each chain comes back exactly once, in order, with
    /// the length that was said, across the wrap of the indices.
    #[test]
    fn every_chain_comes_back_once(
        steps in prop::collection::vec((0u8..4, 1usize..6), 1..200),
        start in prop_oneof![Just(0u16), Just(u16::MAX - 3)],
    ) {
        let mut driver = Driver { avail: start, ..Driver::new() };
        driver.write(AVAIL + 2, &start.to_le_bytes());
        driver.write(USED + 2, &start.to_le_bytes());
        let at = |next_avail| Layout { next_avail, ..layout(true) };
        let mut ring = Ring::new(driver.memory(), &at(start), Direction::Rx).unwrap();
        let mut free: VecDeque<u16> = (0..SIZE).collect();
        let (mut expected, mut seen, mut said) = (VecDeque::new(), start, 0u32);
        for (step, count) in steps {
            match step {
                0 => for _ in 0..count {
                    let Some(head) = free.pop_front() else { break };
                    driver.desc(DESC, head, DATA + 64 * u64::from(head), 64, DESC_F_WRITE, 0);
                    driver.offer(head);
                    expected.push_back(head);
                },
                1 => { ring.fill(count).unwrap(); }
                2 => {
                    let count = count.min(ring.fill(0).unwrap());
                    let before = driver.used_idx();
                    for index in 0..count {
                        said += 1;
                        ring.complete(index, said);
                        prop_assert_eq!(driver.used_idx(), before);
                    }
                    ring.publish(count);
                    prop_assert_eq!(driver.used_idx().wrapping_sub(before) as usize, count);
                    let first = said - u32::try_from(count).unwrap();
                    for offset in 1..=count {
                        let (head, len) = driver.used(seen);
                        prop_assert_eq!(len, first + u32::try_from(offset).unwrap());
                        prop_assert_eq!(Some(head), expected.pop_front().map(u32::from));
                        free.push_back(u16::try_from(head).unwrap());
                        seen = seen.wrapping_add(1);
                    }
                }
                _ => ring = Ring::new(driver.memory(), &at(ring.next_avail()), Direction::Rx).unwrap(),
            }
            prop_assert_eq!(usize::from(ring.waiting()), expected.len());
        }
    }

    /// Arbitrary bytes as ring memory neither panic nor hang, and pieces never leave guest memory.
    #[test]
    fn arbitrary_ring_memory_is_survived(bytes in prop::collection::vec(any::<u8>(), 0x2100), rx in any::<bool>()) {
        let driver = Driver::new();
        driver.write(0, &bytes);
        let direction = if rx { Direction::Rx } else { Direction::Tx };
        let mut ring = driver.ring(direction, true);
        for _ in 0..4 {
            let count = ring.fill(16).unwrap_or(0);
            for index in 0..count {
                let total: usize = ring.bufs(index).iter().map(GuestBuf::len).sum();
                prop_assert_eq!(total, ring.chain_len(index));
                prop_assert!(ring.bufs(index).iter().all(|b| b.len() <= 0x10000));
                ring.complete(index, 0);
            }
            ring.publish(count);
            prop_assert!(ring.waiting() <= ring.size());
            ring.wants_call();
        }
    }
}
