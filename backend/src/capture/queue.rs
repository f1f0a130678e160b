//! What lies between those who note frames and the thread that writes them.
//!
//! Whoever brings a frame copies it in, as a block of the file, if there is room, and goes on; if there is none, the frame is
//! lost to the capture, and counted. The thread takes all that is there at once.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use offload::header::{GSO_NONE, NEEDS_CSUM};
use rustix::event::{EventfdFlags, eventfd};
use vde_control::CaptureEnd;
use vdeplug::link::BIG_FRAME_MAX;
use vdeplug::{Header, RxFrame, TxFrame};

use super::pcapng::{self, Packet, STATISTICS_LEN, Way};
use crate::cable::Name;

/// How much waits for the thread at most, in bytes; about as much again is with the thread. Some milliseconds of a fast
/// transfer, which a disk that thinks may take.
const QUEUE_MAX: usize = 16 << 20;

/// A frame as it is noted, of either kind.
pub trait Frame {
    /// What is still to be done to it.
    fn header(&self) -> &Header;
    /// Its length in bytes.
    fn len(&self) -> usize;
    /// Copies its first bytes; returns how many there were.
    fn read(&self, to: &mut [u8]) -> usize;
}

impl Frame for TxFrame<'_> {
    fn header(&self) -> &Header {
        &self.header
    }

    fn len(&self) -> usize {
        TxFrame::len(self)
    }

    fn read(&self, to: &mut [u8]) -> usize {
        self.read_at(0, to)
    }
}

impl Frame for RxFrame<'_> {
    fn header(&self) -> &Header {
        &self.header
    }

    fn len(&self) -> usize {
        self.len
    }

    fn read(&self, to: &mut [u8]) -> usize {
        self.read_at(0, to)
    }
}

/// The queue of one capture.
#[derive(Debug)]
pub struct Queue {
    /// Begins the description of each interface.
    nic: String,
    /// The id of the only link that is captured, if not all are.
    only: Option<String>,
    /// Eventfd: there is something for the thread.
    wake: OwnedFd,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Whole blocks.
    blocks: Vec<u8>,
    interfaces: Vec<Interface>,
    /// How many bytes more the file may have; those of the statistics are off it already.
    left: u64,
    started: u64,
    /// Frames that were to be written down.
    seen: u64,
    /// Nothing more is noted.
    over: Option<CaptureEnd>,
}

/// A link, as the file knows it.
#[derive(Debug)]
struct Interface {
    link: String,
    seen: u64,
    lost: u64,
}

/// Now, as the file says it.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// What is said of a frame that its interface and its direction do not say.
fn comment(link: &Name, way: Way, header: &Header) -> String {
    let direction = match way {
        Way::Inbound => "to guest",
        Way::Outbound => "from guest",
    };
    let undone = match header {
        Header { gso_type: GSO_NONE, flags, .. } if flags & NEEDS_CSUM == 0 => String::new(),
        Header { gso_type: GSO_NONE, .. } => ", checksum left to be completed".into(),
        Header { gso_size, .. } => format!(", left to be cut into segments of {gso_size} bytes"),
    };
    format!("{direction} via {}{undone}", link.id)
}

impl Inner {
    /// Adds blocks if the file may have them, and keep bytes for others that belong to them.
    fn add(&mut self, blocks: &[u8], keep: usize) -> bool {
        let cost = (blocks.len() + keep) as u64;
        match self.left.checked_sub(cost) {
            _ if self.over.is_some() => return false,
            _ if self.blocks.len() + blocks.len() > QUEUE_MAX => return false,
            None => {
                self.over = Some(CaptureEnd::MaxBytes);
                return false;
            }
            Some(left) => self.left = left,
        }
        self.blocks.extend_from_slice(blocks);
        true
    }

    /// The number of a link's interface, which is added if it is a new one. `None`: there is no room for it.
    fn interface(&mut self, nic: &str, link: &Name) -> Option<usize> {
        let known = self.interfaces.iter().position(|interface| interface.link == link.id);
        if known.is_some() {
            return known;
        }
        let mut block = Vec::new();
        pcapng::interface(&mut block, &link.locator, &format!("{nic} {}", link.id));
        self.add(&block, STATISTICS_LEN).then(|| {
            self.interfaces.push(Interface { link: link.id.clone(), seen: 0, lost: 0 });
            self.interfaces.len() - 1
        })
    }

    fn note(&mut self, number: usize, time: u64, way: Way, link: &Name, frame: &impl Frame) {
        let Some(interface) = self.interfaces.get_mut(number).filter(|_| self.over.is_none()) else { return };
        let comment = comment(link, way, frame.header());
        let packet = Packet {
            interface: u32::try_from(number).unwrap_or(u32::MAX),
            time,
            way,
            len: frame.len(),
            // What is longer was cut on its way here.
            room: frame.len().min(BIG_FRAME_MAX),
            comment: &comment,
        };
        let most = pcapng::packet_len(&packet);
        if most as u64 > self.left {
            self.over = Some(CaptureEnd::MaxBytes);
            return;
        }
        self.seen += 1;
        interface.seen += 1;
        let before = self.blocks.len();
        if before + most > QUEUE_MAX {
            interface.lost += 1;
            return;
        }
        pcapng::packet(&mut self.blocks, &packet, |to| frame.read(to));
        self.left -= (self.blocks.len() - before) as u64;
    }
}

impl Queue {
    /// One with the beginning of a file of at most `max_bytes` in it, in which these links are interfaces already.
    pub fn new(nic: &str, links: &[Name], only: Option<String>, max_bytes: u64) -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let inner = Inner { left: max_bytes, started: now(), ..Inner::default() };
        let mut queue = Self { nic: nic.into(), only, wake, inner: Mutex::new(inner) };
        let mut section = Vec::new();
        pcapng::section(&mut section, concat!("vhost-user-vde ", env!("CARGO_PKG_VERSION")));
        let inner = queue.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.add(&section, 0);
        for link in links.iter().filter(|link| is_wanted(queue.only.as_deref(), link)) {
            inner.interface(nic, link);
        }
        Ok(queue)
    }

    /// Readable when there is something for the thread.
    pub fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// Notes frames that passed through a link.
    pub fn note<F: Frame>(&self, way: Way, link: &Name, frames: &[F]) {
        if frames.is_empty() || !is_wanted(self.only.as_deref(), link) {
            return;
        }
        let mut inner = self.lock();
        if inner.over.is_some() {
            return;
        }
        let was_empty = inner.blocks.is_empty();
        match inner.interface(&self.nic, link) {
            Some(number) => {
                let time = now();
                frames.iter().for_each(|frame| inner.note(number, time, way, link, frame));
            }
            None => inner.seen += frames.len() as u64,
        }
        if was_empty || inner.over.is_some() {
            self.tell_thread();
        }
    }

    /// Nothing more is to be noted. Returns the reason that counts, which is the first one.
    pub fn end(&self, reason: CaptureEnd) -> CaptureEnd {
        let first = *self.lock().over.get_or_insert(reason);
        self.tell_thread();
        first
    }

    /// Whether nothing more is noted.
    pub fn is_over(&self) -> bool {
        self.lock().over.is_some()
    }

    /// Takes all that is there. The reason, if nothing more will come.
    pub fn take(&self, blocks: &mut Vec<u8>) -> Option<CaptureEnd> {
        blocks.clear();
        let mut inner = self.lock();
        std::mem::swap(&mut inner.blocks, blocks);
        inner.over
    }

    /// What the file ends with.
    pub fn statistics(&self) -> Vec<u8> {
        let inner = self.lock();
        let times = [inner.started, now()];
        let mut blocks = Vec::new();
        for (number, interface) in (0..).zip(&inner.interfaces) {
            pcapng::statistics(&mut blocks, number, times, interface.seen, interface.lost);
        }
        blocks
    }

    /// Frames that were to be written down.
    pub fn seen(&self) -> u64 {
        self.lock().seen
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_thread(&self) {
        // A full eventfd is readable already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

fn is_wanted(only: Option<&str>, link: &Name) -> bool {
    only.is_none_or(|only| only == link.id)
}
