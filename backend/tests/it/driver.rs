//! A virtio-net driver that does by hand what a guest does: memory in a file, rings in it, the `vhost` crate's front end to
//! configure the back end.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::world::wait_for;

pub const PACKED: u64 = 1 << 34;
pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;
pub const MQ: u64 = 1 << 22;
pub const MRG_RXBUF: u64 = 1 << 15;
pub const CSUM: u64 = 1;
pub const GUEST_CSUM: u64 = 1 << 1;
pub const GUEST_TSO4: u64 = 1 << 7;
pub const GUEST_TSO6: u64 = 1 << 8;
pub const GUEST_ECN: u64 = 1 << 9;
pub const HOST_TSO4: u64 = 1 << 11;
pub const HOST_TSO6: u64 = 1 << 12;
pub const HOST_ECN: u64 = 1 << 13;
pub const GUEST_USO4: u64 = 1 << 54;
pub const GUEST_USO6: u64 = 1 << 55;
pub const HOST_USO: u64 = 1 << 56;
const PROTOCOL_FEATURES: u64 = 1 << 30;

pub const USER: u64 = 0x7f00_0000_0000;
pub const MEMORY: u64 = 4 << 20;
/// Each ring has a page per part, then its buffers.
const RING_SPAN: u64 = 0x8_0000;
const BUFFERS: u64 = 0x1_0000;
pub const SIZE: u16 = 256;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

/// One virtqueue as its driver sees it.
pub struct Queue {
    file: File,
    pub base: u64,
    pub kick: EventFd,
    pub call: EventFd,
    avail: u16,
    pub seen: u16,
    free: u64,
}

impl Queue {
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.file.write_all_at(bytes, at).unwrap();
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Guest address of a fresh buffer.
    pub fn buffer(&mut self, len: u32) -> u64 {
        let at = self.base + BUFFERS + self.free;
        self.free = (self.free + u64::from(len.next_multiple_of(16))) % 0x6_0000;
        at
    }

    pub fn descriptor(&self, table: Option<u64>, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table.unwrap_or(self.base) + 16 * u64::from(index);
        let words = [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.write(at, &words.concat());
    }

    pub fn offer(&mut self, head: u16) {
        self.write(self.base + 0x2000 + 4 + 2 * u64::from(self.avail % SIZE), &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.write(self.base + 0x2000 + 2, &self.avail.to_le_bytes());
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Kicks if the device asked for it at the entry offered last (event index). Says whether it did.
    pub fn kick_if_asked(&self) -> bool {
        let asked_at = u16::from_le_bytes(self.read(self.base + 0x4000 + 4 + 8 * u64::from(SIZE)));
        let asked = asked_at == self.avail.wrapping_sub(1);
        if asked {
            self.kick();
        }
        asked
    }

    /// Asks to be told of the next used entry (event index).
    pub fn want_call(&self) {
        self.write(self.base + 0x2000 + 4 + 2 * u64::from(SIZE), &self.seen.to_le_bytes());
    }

    pub fn used_idx(&self) -> u16 {
        u16::from_le_bytes(self.read(self.base + 0x4000 + 2))
    }

    /// Waits for the next used entry: head and length.
    pub fn used(&mut self) -> (u16, u32) {
        wait_for("a used entry", || (self.used_idx() != self.seen).then_some(()));
        let bytes: [u8; 8] = self.read(self.base + 0x4000 + 4 + 8 * u64::from(self.seen % SIZE));
        self.seen = self.seen.wrapping_add(1);
        let [h0, h1, _, _, l0, l1, l2, l3] = bytes;
        (u16::from_le_bytes([h0, h1]), u32::from_le_bytes([l0, l1, l2, l3]))
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Offers a frame behind `header`, cut into pieces of at most `piece` bytes, and kicks.
    pub fn send(&mut self, header: &[u8], frame: &[u8], piece: usize) {
        let all = [header, frame].concat();
        let at = self.buffer(u32::try_from(all.len()).unwrap());
        self.write(at, &all);
        let mut pieces = all.chunks(piece).enumerate().peekable();
        while let Some((index, bytes)) = pieces.next() {
            let addr = at + u64::try_from(index * piece).unwrap();
            let index = u16::try_from(index).unwrap();
            let flags = if pieces.peek().is_some() { NEXT } else { 0 };
            self.descriptor(None, index, addr, u32::try_from(bytes.len()).unwrap(), flags, index + 1);
        }
        self.offer(0);
        self.kick();
    }

    /// Offers bytes at a buffer of the caller's as a chain of one descriptor; does not kick.
    pub fn send_at(&mut self, at: u64, bytes: &[u8], head: u16) {
        self.write(at, bytes);
        self.descriptor(None, head, at, u32::try_from(bytes.len()).unwrap(), 0, 0);
        self.offer(head);
    }

    /// Offers `count` receive buffers of `len` bytes; head n lies at the n-th of the addresses returned.
    pub fn post(&mut self, count: u16, len: u32) -> Vec<u64> {
        let addresses = (0..count).map(|head| {
            let at = self.buffer(len);
            self.descriptor(None, head, at, len, WRITE, 0);
            self.offer(head);
            at
        });
        addresses.collect()
    }
}

/// A driver with its queues, connected and negotiated.
pub struct Driver {
    pub frontend: Frontend,
    /// The same socket, for what that would not say.
    pub connection: UnixStream,
    pub queues: Vec<Queue>,
    file: File,
}

impl Driver {
    /// Connects and starts `pairs` queue pairs with these features.
    pub fn connect(socket: &Path, features: u64, pairs: usize) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(MEMORY).unwrap();
        let count = 2 * pairs;
        let connection = wait_for("the back end to listen", || UnixStream::connect(socket).ok());
        let mut frontend = Frontend::from_stream(connection.try_clone().unwrap(), count as u64);
        let offered = frontend.get_features().unwrap();
        assert_eq!(features & !offered, 0, "offered: {offered:#x}");
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_owner().unwrap();
        frontend.set_features(features | PROTOCOL_FEATURES).unwrap();
        let queue = |index: usize| Queue {
            file: file.try_clone().unwrap(),
            base: RING_SPAN * u64::try_from(index).unwrap(),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            avail: 0,
            seen: 0,
            free: 0,
        };
        let queues = (0..count).map(queue).collect();
        let mut driver = Self { frontend, connection, queues, file };
        driver.share_memory();
        for index in 0..count {
            driver.start(index, 0);
        }
        driver
    }

    fn share_memory(&mut self) {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        };
        self.frontend.set_mem_table(&[region]).unwrap();
    }

    /// Configures, starts and enables a ring.
    pub fn start(&mut self, index: usize, base: u16) {
        let queue = &self.queues[index];
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: USER + queue.base,
            avail_ring_addr: USER + queue.base + 0x2000,
            used_ring_addr: USER + queue.base + 0x4000,
            log_addr: None,
        };
        self.frontend.set_vring_num(index, SIZE).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.frontend.set_vring_addr(index, &addresses).unwrap();
        self.frontend.set_vring_kick(index, &queue.kick).unwrap();
        self.frontend.set_vring_call(index, &queue.call).unwrap();
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    pub fn rx(&mut self) -> &mut Queue {
        &mut self.queues[0]
    }

    pub fn tx(&mut self) -> &mut Queue {
        &mut self.queues[1]
    }
}
