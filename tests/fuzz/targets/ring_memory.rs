//! Any bytes as the memory of a ring, split and packed, and a driver that rewrites them while the ring works. Input: a byte
//! of choices (packed, direction, event index, dirty log, size), two bytes of where the ring begins, a byte for the number
//! of steps, the steps, and the memory.
//!
//! Whatever the memory holds, pieces lie in guest memory, a window holds no more chains than the ring has room for, a
//! broken ring stays quiet, and the ring goes on where it says.

#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use vring::{Direction, DirtyLog, Layout, Memory, RegionSpec, Ring};

/// Two regions that adjoin and one behind a hole, of this many bytes each.
const REGION: u64 = 0x4000;
const USER: u64 = 0x1000_0000;
const FILE: u64 = 3 * REGION;

struct World {
    file: File,
    memory: Arc<Memory>,
    log: Arc<DirtyLog>,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let make = |len| {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(len).expect("its length");
        file
    };
    let file = make(FILE);
    let region = |guest_addr, offset| RegionSpec {
        guest_addr,
        size: REGION,
        user_addr: USER + offset,
        offset,
        file: file.try_clone().expect("a descriptor"),
    };
    let regions = vec![region(0, 0), region(REGION, REGION), region(0x10_0000, 2 * REGION)];
    let memory = Arc::new(Memory::new(regions).expect("regions that fit"));
    let log = Arc::new(DirtyLog::new(make(4), 4, 0).expect("a log"));
    World { file, memory, log }
});

fuzz_target!(|input: &[u8]| {
    let Some(([choices, low, high, count], rest)) = input.split_first_chunk() else { return };
    let (steps, memory) = rest.split_at(usize::from(*count).min(rest.len()));
    let mut bytes = vec![0; usize::try_from(FILE).expect("it is small")];
    for (to, from) in bytes.iter_mut().zip(memory) {
        *to = *from;
    }
    WORLD.file.write_all_at(&bytes, 0).expect("a write to the file");

    let layout = Layout {
        packed: choices & 1 != 0,
        // Small, and its parts close together, for inputs are short.
        size: 1 << ((choices >> 4) % 5),
        desc: USER,
        avail: USER + 0x100,
        used: USER + 0x180,
        next_avail: u16::from_le_bytes([*low, *high]),
        event_idx: choices & 4 != 0,
    };
    let direction = if choices & 2 != 0 { Direction::Rx } else { Direction::Tx };
    let start = |next_avail| {
        let ring = Ring::new(WORLD.memory.clone(), &Layout { next_avail, ..layout }, direction).ok()?;
        Some(if choices & 8 != 0 { ring.with_log(WORLD.log.clone(), true) } else { ring })
    };
    let Some(mut ring) = start(layout.next_avail) else {
        assert!(layout.packed, "only a packed ring has places where it cannot begin");
        return;
    };
    let (mut broken, mut held) = (false, 0);
    for step in steps {
        let count = usize::from(step >> 3);
        match step & 7 {
            0 | 1 => match ring.fill(count) {
                Ok(_) if broken => {}
                Ok(len) => {
                    check(&ring, len, usize::from(layout.size));
                    held = len;
                }
                Err(_) => {
                    assert!(!broken, "told twice");
                    broken = true;
                }
            },
            2 | 3 => {
                let count = count.min(held);
                use_up(&mut ring, count);
                held -= count;
            }
            4 => assert!(!ring.enable_kicks() || !broken, "a broken ring has no work"),
            5 => ring.disable_kicks(),
            6 => {
                let at = ring.next_avail();
                ring.rewind();
                assert_eq!(ring.next_avail(), at);
                assert!(ring.bufs(0).is_empty());
                held = 0;
            }
            // The driver writes while the ring works.
            _ => WORLD.file.write_all_at(&[*step; 16], u64::from(*step) * 16).expect("a write to the file"),
        }
    }
    // A packed ring's base always is one that it can begin at.
    assert!(start(ring.next_avail()).is_some());
});

/// Looks at all chains of a window of `len` chains.
fn check(ring: &Ring, len: usize, size: usize) {
    assert!(len <= size, "{len} chains in a ring of {size}");
    for index in 0..len {
        let total: usize = ring.bufs(index).iter().map(|piece| piece.len()).sum();
        assert_eq!(total, ring.chain_len(index));
        for piece in ring.bufs(index) {
            assert!((1..=REGION).contains(&(piece.len() as u64)));
            // Whether they are mapped shows when they are read.
            let mut ends = [0; 2];
            assert_eq!(piece.read_at(0, &mut ends[..1]) + piece.read_at(piece.len() - 1, &mut ends[1..]), 2);
        }
    }
    assert!(ring.bufs(len).is_empty() && ring.chain_len(len) == 0);
}

/// Completes and publishes the first chains, the second one last.
fn use_up(ring: &mut Ring, count: usize) {
    let order = (0..count).filter(|index| *index != 1).chain((count > 1).then_some(1));
    for index in order {
        let written = u32::try_from(ring.chain_len(index)).expect("lengths have 32 bits");
        ring.complete(index, written);
    }
    ring.publish(count);
    ring.wants_call();
    ring.take_bad_chains();
}
