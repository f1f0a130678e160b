//! What the ring itself costs per packet: chains taken, looked at, completed and published in batches, and the notification
//! rules, with a driver that refills all of the ring between two looks at the clock. `cargo bench -p vring`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vring::{Direction, Layout, Memory, RegionSpec, Ring};

const SIZE: u16 = 256;
const BATCH: usize = 32;
const LEN: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000;
const TABLES: u64 = 0x1_0000;
const DATA: u64 = 0x4_0000;

/// How the driver describes a packet.
#[derive(Clone, Copy)]
struct Shape {
    name: &'static str,
    /// Descriptors in the ring.
    slots: u16,
    /// Descriptors in a table; 0: none.
    table: u16,
}

const SHAPES: [Shape; 3] = [
    Shape { name: "1 descriptor", slots: 1, table: 0 },
    Shape { name: "4 descriptors", slots: 4, table: 0 },
    Shape { name: "a table of 2", slots: 1, table: 2 },
];

/// The driver's side of a ring in a file.
struct Driver {
    file: File,
    packed: bool,
    shape: Shape,
    /// Chains per lap of the ring.
    chains: u16,
    avail: u16,
    wrap: bool,
}

impl Driver {
    fn new(packed: bool, shape: Shape) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN).unwrap();
        let driver = Self { file, packed, shape, chains: SIZE / shape.slots, avail: 0, wrap: true };
        for slot in 0..SIZE {
            for index in 0..shape.table {
                let more = u16::from(index + 1 < shape.table);
                let at = TABLES + 64 * u64::from(slot) + 16 * u64::from(index);
                let words = if packed { [0, 0] } else { [more, index + 1] };
                driver.desc(at, DATA + 2048 * u64::from(slot), words);
            }
        }
        driver
    }

    fn desc(&self, at: u64, addr: u64, words: [u16; 2]) {
        let bytes =
            [&addr.to_le_bytes()[..], &64u32.to_le_bytes(), &words[0].to_le_bytes(), &words[1].to_le_bytes()];
        self.file.write_all_at(&bytes.concat(), at).unwrap();
    }

    /// Fills the whole ring.
    fn refill(&mut self) {
        for slot in 0..SIZE {
            let more = u16::from(slot % self.shape.slots + 1 < self.shape.slots);
            let flags = if self.shape.table > 0 { 4 } else { more };
            let at = 16 * u64::from(slot);
            let addr = if self.shape.table > 0 {
                TABLES + 64 * u64::from(slot)
            } else {
                DATA + 2048 * u64::from(slot)
            };
            let lap = if self.wrap { 1 << 7 } else { 1 << 15 };
            self.desc(at, addr, if self.packed { [slot, flags | lap] } else { [flags, slot + 1] });
            if self.shape.table > 0 {
                self.file.write_all_at(&(16 * u32::from(self.shape.table)).to_le_bytes(), at + 8).unwrap();
            }
        }
        self.wrap = !self.wrap;
        if !self.packed {
            for chain in 0..self.chains {
                let at = 0x2000 + 4 + 2 * u64::from(self.avail % SIZE);
                self.file.write_all_at(&(chain * self.shape.slots).to_le_bytes(), at).unwrap();
                self.avail = self.avail.wrapping_add(1);
            }
            self.file.write_all_at(&self.avail.to_le_bytes(), 0x2002).unwrap();
        }
    }

    fn ring(&self) -> Ring {
        let file = self.file.try_clone().unwrap();
        let spec = RegionSpec { guest_addr: 0, size: LEN, user_addr: USER, offset: 0, file };
        let memory = Arc::new(Memory::new(vec![spec]).unwrap());
        let next_avail = if self.packed { 1 << 15 } else { 0 };
        let (desc, avail, used) = (USER, USER + 0x2000, USER + 0x3000);
        let layout =
            Layout { packed: self.packed, size: SIZE, desc, avail, used, next_avail, event_idx: true };
        Ring::new(memory, &layout, Direction::Tx).unwrap()
    }
}

/// What a worker does with a ring until it is empty.
fn serve(ring: &mut Ring) -> usize {
    let mut packets = 0;
    ring.disable_kicks();
    loop {
        let count = ring.fill(BATCH).unwrap();
        for index in 0..count {
            black_box(ring.chain_len(index));
            black_box(ring.bufs(index));
        }
        (0..count).for_each(|index| ring.complete(index, 0));
        if ring.publish(count) {
            black_box(ring.wants_call());
        }
        packets += count;
        if count == 0 && !ring.enable_kicks() {
            return packets;
        }
    }
}

fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    group.throughput(Throughput::Elements(1));
    // Refilling takes much longer than what is measured.
    group
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300))
        .sample_size(20);
    for shape in SHAPES {
        for (layout, packed) in [("split", false), ("packed", true)] {
            group.bench_function(BenchmarkId::new(layout, shape.name), |bencher| {
                let mut driver = Driver::new(packed, shape);
                let mut ring = driver.ring();
                bencher.iter_custom(|packets| measure(&mut driver, &mut ring, packets));
            });
        }
    }
    group.finish();
}

/// The time that so many packets take, in whole laps of the ring.
fn measure(driver: &mut Driver, ring: &mut Ring, packets: u64) -> Duration {
    let laps = packets.div_ceil(u64::from(driver.chains));
    let mut time = Duration::ZERO;
    for _ in 0..laps {
        driver.refill();
        let start = Instant::now();
        let served = serve(ring);
        time += start.elapsed();
        assert_eq!(served, usize::from(driver.chains));
    }
    time.mul_f64(packets as f64 / (laps * u64::from(driver.chains)) as f64)
}

criterion_group!(benches, ring);
criterion_main!(benches);
