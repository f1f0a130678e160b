//! What tests have instead of a guest: memory in a file, and a receive ring in it that is driven by hand.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vring::{Direction, Layout, Memory, RegionSpec, Ring};

use vdeplug::Header;

use crate::queue::Start;

const USER: u64 = 0x7000_0000;
const SIZE: u16 = 256;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x4000;
/// Room for the longest frame.
const BUFFER: u64 = 0x1_1000;

/// Features of a driver that takes its frames in several buffers.
pub const MERGEABLE: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_NET_F_MRG_RXBUF;

/// A descriptor that counts.
pub fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

/// Whether such a descriptor was written since the last look.
pub fn was_written(event: &OwnedFd) -> bool {
    rustix::io::read(event, &mut [0; 8]).is_ok()
}

/// A driver with its receive ring.
pub struct Guest {
    file: File,
    memory: Arc<Memory>,
    pub kick: OwnedFd,
    pub call: OwnedFd,
    avail: u16,
    seen: u16,
    free: Vec<u16>,
}

impl Guest {
    pub fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        let size = BUFFERS + BUFFER * u64::from(SIZE);
        file.set_len(size).unwrap();
        let share = file.try_clone().unwrap();
        let spec = RegionSpec { guest_addr: 0, size, user_addr: USER, offset: 0, file: share };
        let memory = Arc::new(Memory::new(vec![spec]).unwrap());
        let free = (0..SIZE).rev().collect();
        Self { file, memory, kick: event(), call: event(), avail: 0, seen: 0, free }
    }

    /// The ring, as a driver with these features starts it at `next_avail`.
    pub fn start(&self, features: u64, next_avail: u16) -> Start {
        let layout = Layout {
            packed: false,
            size: SIZE,
            desc: USER,
            avail: USER + AVAIL,
            used: USER + USED,
            next_avail,
            event_idx: features & 1 << VIRTIO_RING_F_EVENT_IDX != 0,
        };
        Start {
            ring: Ring::new(self.memory.clone(), &layout, Direction::Rx).unwrap(),
            kick: self.kick.try_clone().unwrap(),
            call: Some(self.call.try_clone().unwrap()),
            enabled: true,
            features,
        }
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Offers up to `count` buffers of `len` bytes; does not kick. Returns how many were free.
    pub fn post(&mut self, count: u16, len: u32) -> u16 {
        for done in 0..count {
            let Some(head) = self.free.pop() else { return done };
            let addr = BUFFERS + BUFFER * u64::from(head);
            let desc = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &2u16.to_le_bytes(), &[0, 0]].concat();
            self.file.write_all_at(&desc, 16 * u64::from(head)).unwrap();
            let slot = AVAIL + 4 + 2 * u64::from(self.avail % SIZE);
            self.file.write_all_at(&head.to_le_bytes(), slot).unwrap();
            self.avail = self.avail.wrapping_add(1);
            self.file.write_all_at(&self.avail.to_le_bytes(), AVAIL + 2).unwrap();
        }
        count
    }

    /// Offers chains that have no end, as many as the ring holds.
    pub fn post_endless(&mut self) {
        for head in self.free.drain(..) {
            let flags = 3u16; // NEXT and WRITE
            let desc =
                [&BUFFERS.to_le_bytes()[..], &1u32.to_le_bytes(), &flags.to_le_bytes(), &head.to_le_bytes()]
                    .concat();
            self.file.write_all_at(&desc, 16 * u64::from(head)).unwrap();
            let slot = AVAIL + 4 + 2 * u64::from(self.avail % SIZE);
            self.file.write_all_at(&head.to_le_bytes(), slot).unwrap();
            self.avail = self.avail.wrapping_add(1);
        }
        self.file.write_all_at(&self.avail.to_le_bytes(), AVAIL + 2).unwrap();
    }

    /// Takes back what was used and holds nothing.
    pub fn discard(&mut self) {
        while self.used_idx() != self.seen {
            assert!(self.next_buffer().is_empty());
        }
    }

    /// Makes the available index nonsense.
    pub fn break_ring(&self) {
        self.file.write_all_at(&self.avail.wrapping_add(SIZE + 1).to_le_bytes(), AVAIL + 2).unwrap();
    }

    pub fn used_idx(&self) -> u16 {
        u16::from_le_bytes(self.read(USED + 2))
    }

    /// 1 says that no kicks are wanted, without the event index.
    pub fn used_flags(&self) -> u16 {
        u16::from_le_bytes(self.read(USED))
    }

    fn next_buffer(&mut self) -> Vec<u8> {
        let entry: [u8; 8] = self.read(USED + 4 + 8 * u64::from(self.seen % SIZE));
        self.seen = self.seen.wrapping_add(1);
        let [h0, h1, _, _, len @ ..] = entry;
        let head = u16::from_le_bytes([h0, h1]);
        self.free.push(head);
        let mut bytes = vec![0; u32::from_le_bytes(len) as usize];
        self.file.read_exact_at(&mut bytes, BUFFERS + BUFFER * u64::from(head)).unwrap();
        bytes
    }

    /// All frames that arrived since the last time.
    pub fn take(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut frames = Vec::new();
        while self.used_idx() != self.seen {
            let mut bytes = self.next_buffer();
            for _ in 1..u16::from_le_bytes([bytes[10], bytes[11]]) {
                assert_ne!(self.used_idx(), self.seen, "a frame appears as a whole");
                bytes.extend(self.next_buffer());
            }
            let frame = bytes.split_off(12);
            frames.push((Header::decode(bytes.first_chunk().unwrap()), frame));
        }
        frames
    }
}
