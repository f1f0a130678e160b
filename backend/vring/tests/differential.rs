//! The split ring beside rust-vmm's `virtio-queue`: one driver writes the same bytes to two guest memories, each device
//! works on its own. Both must see the same chains, and leave the same bytes in their used rings.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vring::{Direction, Layout, Memory, RegionSpec, Ring};

const LEN: u64 = 0x4_0000;
const USER: u64 = 0x7000_0000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x5000;
const USED_LEN: usize = 4 + 8 * 1024 + 2;
const TABLES: u64 = 0x8000;
const DATA: u64 = 0x2_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Both memories and both devices.
struct Pair {
    files: [File; 2],
    size: u16,
    ours: Ring,
    theirs: Queue,
    mem: GuestMemoryMmap,
    avail: u16,
    event_idx: bool,
}

impl Pair {
    fn new(size: u16, start: u16, event_idx: bool) -> Self {
        let files = [(); 2].map(|()| tempfile::tempfile().unwrap());
        files.iter().for_each(|file| file.set_len(LEN).unwrap());
        let copy = |index: usize| files[index].try_clone().unwrap();
        let mem = GuestMemoryMmap::from_ranges_with_files([(
            GuestAddress(0),
            usize::try_from(LEN).unwrap(),
            Some(FileOffset::new(copy(1), 0)),
        )]);
        let mem = mem.unwrap();
        let mut pair = Self {
            size,
            ours: ring(copy(0), size, start, event_idx),
            theirs: queue(size, start, event_idx),
            mem,
            avail: start,
            event_idx,
            files,
        };
        pair.write(AVAIL + 2, &start.to_le_bytes());
        pair.write(USED + 2, &start.to_le_bytes());
        // The used index is read at the start.
        pair.restart(start);
        // Every byte of data tells where it lies.
        let pattern: Vec<u8> =
            (0..(LEN - DATA) / 8).flat_map(|word| (DATA + 8 * word).to_le_bytes()).collect();
        pair.write(DATA, &pattern);
        pair
    }

    fn restart(&mut self, at: u16) {
        self.ours = ring(self.files[0].try_clone().unwrap(), self.size, at, self.event_idx);
        self.theirs = queue(self.size, at, self.event_idx);
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.files.iter().for_each(|file| file.write_all_at(bytes, at).unwrap());
    }

    fn desc(&mut self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let words = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.write(at, &words.concat());
    }

    /// Offers a chain of `lens` pieces that begins at descriptor `head`, itself or in a table.
    fn offer(&mut self, head: u16, lens: &[u32], table: bool) {
        let (base, first) = if table { (TABLES + 256 * u64::from(head), 0) } else { (0, head) };
        for (index, len) in (0u16..).zip(lens) {
            let more = usize::from(index) + 1 < lens.len();
            let at = base + 16 * u64::from(first + index);
            let addr = DATA + 2048 * u64::from((head + index) % 60) + 8 * u64::from(index);
            self.desc(at, addr, *len, WRITE | if more { NEXT } else { 0 }, first + index + 1);
        }
        if table {
            self.desc(16 * u64::from(head), base, 16 * u32::try_from(lens.len()).unwrap(), INDIRECT, 0);
        }
        self.write(AVAIL + 4 + 2 * u64::from(self.avail % self.size), &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.write(AVAIL + 2, &self.avail.to_le_bytes());
    }

    /// Each device takes up to `max` chains and gives them back; the chains that both saw: bytes of each piece.
    fn serve(&mut self, max: usize) -> [Vec<Vec<Vec<u8>>>; 2] {
        let count = self.ours.fill(max).unwrap().min(max);
        let mut seen = [Vec::new(), Vec::new()];
        for index in 0..count {
            let bytes = self.ours.bufs(index).iter().map(|piece| {
                let mut bytes = vec![0; piece.len()];
                piece.read_at(0, &mut bytes);
                bytes
            });
            seen[0].push(bytes.collect());
            self.ours.complete(index, u32::try_from(index).unwrap() + 1);
        }
        self.ours.publish(count);
        for index in 0..max {
            let Some(mut chain) = self.theirs.pop_descriptor_chain(&self.mem) else { break };
            let head = chain.head_index();
            let bytes = chain.by_ref().map(|desc| {
                let mut bytes = vec![0; desc.len() as usize];
                self.mem.read_slice(&mut bytes, desc.addr()).unwrap();
                bytes
            });
            seen[1].push(bytes.collect());
            self.theirs.add_used(&self.mem, head, u32::try_from(index).unwrap() + 1).unwrap();
        }
        seen
    }

    fn used_rings(&self) -> [Vec<u8>; 2] {
        self.files.each_ref().map(|file| {
            let mut bytes = vec![0; USED_LEN];
            file.read_exact_at(&mut bytes, USED).unwrap();
            bytes
        })
    }
}

fn ring(file: File, size: u16, next_avail: u16, event_idx: bool) -> Ring {
    let spec = RegionSpec { guest_addr: 0, size: LEN, user_addr: USER, offset: 0, file };
    let memory = Arc::new(Memory::new(vec![spec]).unwrap());
    let (desc, avail, used) = (USER, USER + AVAIL, USER + USED);
    let layout = Layout { packed: false, size, desc, avail, used, next_avail, event_idx };
    Ring::new(memory, &layout, Direction::Rx).unwrap()
}

fn queue(size: u16, start: u16, event_idx: bool) -> Queue {
    let mut queue = Queue::new(1024).unwrap();
    queue.set_size(size);
    queue.set_desc_table_address(Some(0), Some(0));
    queue.set_avail_ring_address(Some(u32::try_from(AVAIL).unwrap()), Some(0));
    queue.set_used_ring_address(Some(u32::try_from(USED).unwrap()), Some(0));
    queue.set_event_idx(event_idx);
    queue.set_next_avail(start);
    queue.set_next_used(start);
    queue.set_ready(true);
    queue
}

#[derive(Clone, Debug)]
enum Step {
    Offer(Vec<u32>, bool),
    Serve(usize),
    Notifications(bool),
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let lens = prop::collection::vec(1u32..1500, 1..8);
    let step = prop_oneof![
        4 => (lens, any::<bool>()).prop_map(|(lens, table)| Step::Offer(lens, table)),
        2 => (1usize..40).prop_map(Step::Serve),
        1 => any::<bool>().prop_map(Step::Notifications),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 1..150)
}

proptest! {
    #[test]
    fn split_ring_does_as_virtio_queue(
        steps in steps(),
        size in prop_oneof![Just(16u16), Just(256), Just(1024)],
        start in prop_oneof![Just(0u16), Just(65_530)],
        event_idx in any::<bool>(),
    ) {
        let mut pair = Pair::new(size, start, event_idx);
        let (mut flying, mut next, mut told) = (std::collections::VecDeque::new(), 0u16, false);
        for step in steps {
            match step {
                Step::Offer(lens, table) => {
                    let slots = if table { 1 } else { u16::try_from(lens.len()).unwrap() };
                    if next + slots > size { next = 0; }
                    if flying.iter().sum::<u16>() + 2 * slots + 8 <= size {
                        pair.offer(next, &lens, table);
                        next += slots;
                        flying.push_back(slots);
                    }
                }
                Step::Serve(max) => {
                    let [ours, theirs] = pair.serve(max);
                    flying.drain(..ours.len());
                    prop_assert_eq!(ours, theirs);
                    let used = pair.theirs.used_idx(&pair.mem, Ordering::Relaxed).unwrap().0;
                    // The driver asks to be told of what comes a few entries later.
                    let event = used.wrapping_sub(u16::try_from(max % 5).unwrap());
                    pair.write(AVAIL + 4 + 2 * u64::from(size), &event.to_le_bytes());
                    let calls = [pair.ours.wants_call(), pair.theirs.needs_notification(&pair.mem).unwrap()];
                    // The first time ours has nothing to compare with, and calls.
                    prop_assert!(calls[0] == calls[1] || !told, "{calls:?}");
                    told = true;
                }
                Step::Notifications(wanted) => {
                    if wanted {
                        let more = [pair.ours.enable_kicks(), pair.theirs.enable_notification(&pair.mem).unwrap()];
                        prop_assert_eq!(more[0], more[1]);
                    } else {
                        pair.ours.disable_kicks();
                        pair.theirs.disable_notification(&pair.mem).unwrap();
                    }
                }
                Step::Restart => {
                    let at = pair.ours.next_avail();
                    prop_assert_eq!(at, pair.theirs.next_avail());
                    pair.restart(at);
                    told = false;
                }
            }
            let [ours, theirs] = pair.used_rings();
            prop_assert_eq!(ours, theirs);
        }
    }
}
