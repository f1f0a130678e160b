//! One batch into the guest, from a link whose frames are complete.
//!
//! # Theory of operation
//! Chains are taken ahead, one per frame of the batch, and lent to the link, which receives straight into guest memory
//! behind the room for the header. A frame is as long as the network makes it, a chain as long as the guest made it
//! (1.5 KiB with Linux and mergeable buffers); so each frame's list of pieces ends in a private *spill* of 64 KiB, which
//! a usual frame never touches. What did spill is copied into further chains, if the guest takes mergeable buffers.
//!
//! Received frame number i lies in chain i. A frame that must be dropped after all (runt, too long, too few buffers) leaves
//! its chain in the middle of those used: it goes to the guest with a header and nothing behind, which drivers discard as
//! too short. That keeps the chains used up in order, and so costs nothing in the usual case.

use vdeplug::link::FRAME_MIN;
use vdeplug::{Header, Link, LinkError, RxBuf, RxFrame};
use vring::buf::write_chain;

use crate::counters::Counters;
use crate::lend;
use crate::queue::Queue;

/// Frames per batch.
pub const BATCH: usize = 32;
/// Private room behind each chain, in bytes: with any chain before it, more than the longest datagram that a VDE network
/// can carry.
const SPILL: usize = 65536;

/// Buffers of the RX side that are kept from batch to batch.
pub struct Scratch {
    /// `BATCH` spills; none without mergeable buffers. Its pages are only touched by long frames.
    spill: Vec<u8>,
    pieces: Vec<RxBuf<'static>>,
}

impl Scratch {
    pub fn new() -> Self {
        Self { spill: Vec::new(), pieces: Vec::new() }
    }
}

/// What a batch did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Frames taken from the link, and useless chains given back.
    pub moved: usize,
    /// The guest has no buffers.
    pub starved: bool,
    /// The link has no more frames for now.
    pub drained: bool,
}

/// Receives one batch from one link.
pub fn round(
    queue: &mut Queue,
    link: &dyn Link,
    scratch: &mut Scratch,
    counters: &Counters,
    name: &str,
) -> Result<Round, LinkError> {
    // A worker's rings come and go with the guest's drivers; what one may use, the next may not.
    if queue.accepted.mergeable == scratch.spill.is_empty() {
        scratch.spill = if queue.accepted.mergeable { vec![0; BATCH * SPILL] } else { Vec::new() };
    }
    let useless = give_back_useless(queue, counters, name);
    let room = usable(queue);
    if room == 0 {
        return Ok(Round { moved: useless, starved: useless == 0, drained: false });
    }
    let mut lens = [0; BATCH];
    let received = receive(queue, link, scratch, room, &mut lens)?;
    let mut next = received;
    for (chain, len) in lens.iter().enumerate().take(received) {
        let spill = scratch.spill.chunks(SPILL).nth(chain).unwrap_or_default();
        deliver(queue, chain, *len, spill, &mut next, counters, name);
    }
    queue.publish(next);
    Ok(Round { moved: useless + received, starved: false, drained: received < room })
}

/// Fills the window, and gives back the chains at its front that cannot even hold a header. Returns how many those were.
fn give_back_useless(queue: &mut Queue, counters: &Counters, name: &str) -> usize {
    let header_len = queue.accepted.header_len;
    let filled = queue.fill(BATCH, counters, name);
    let useless = (0..filled).take_while(|chain| queue.ring.chain_len(*chain) <= header_len).count();
    for chain in 0..useless {
        counters.rx_small_buffer.add(1);
        queue.ring.complete(chain, 0);
    }
    queue.publish(useless);
    useless
}

/// How many chains at the window's front can hold a header, and are not more than a batch.
fn usable(queue: &Queue) -> usize {
    (0..BATCH).take_while(|chain| queue.ring.chain_len(*chain) > queue.accepted.header_len).count()
}

/// Receives into the first `room` chains and says how long each frame was.
fn receive(
    queue: &Queue,
    link: &dyn Link,
    scratch: &mut Scratch,
    room: usize,
    lens: &mut [usize; BATCH],
) -> Result<usize, LinkError> {
    let mut pieces = lend::recycle(std::mem::take(&mut scratch.pieces));
    let mut ends = [0; BATCH];
    let mut spills = scratch.spill.chunks_mut(SPILL);
    for (chain, end) in ends.iter_mut().enumerate().take(room) {
        lend::rx(queue.ring.bufs(chain), queue.accepted.header_len, &mut pieces);
        pieces.extend(spills.next().map(RxBuf::new));
        *end = pieces.len();
    }
    let mut start = 0;
    let mut frames: [RxFrame<'_>; BATCH] = std::array::from_fn(|chain| {
        let end = ends.get(chain).copied().unwrap_or(0).max(start);
        let bufs = pieces.get(start..end).unwrap_or_default();
        start = end;
        RxFrame::new(bufs)
    });
    let result = link.recv(frames.get_mut(..room).unwrap_or_default());
    for (len, frame) in lens.iter_mut().zip(&frames) {
        *len = frame.len;
    }
    scratch.pieces = lend::recycle(pieces);
    result
}

/// Completes the chain that a frame of `len` bytes was received into, and the further ones it needs, from `next` on.
fn deliver(
    queue: &mut Queue,
    chain: usize,
    len: usize,
    spill: &[u8],
    next: &mut usize,
    counters: &Counters,
    name: &str,
) {
    let header_len = queue.accepted.header_len;
    let here = (queue.ring.chain_len(chain) - header_len).min(len);
    let spilt = len - here;
    let drop = if len < FRAME_MIN {
        Some(&counters.rx_runt)
    } else if spilt > spill.len() {
        Some(&counters.rx_too_long)
    } else if !reserve(queue, *next, spilt, counters, name) {
        Some(&counters.rx_no_buffer)
    } else {
        None
    };
    let (mut written, mut buffers) = (here, 1u16);
    let first = *next;
    if let Some(counter) = drop {
        counter.add(1);
        written = 0;
    } else {
        counters.rx_frames.add(1);
        counters.rx_bytes.add(len as u64);
        let mut rest = spill.get(..spilt).unwrap_or_default();
        while !rest.is_empty() {
            let count = write_chain(queue.ring.bufs(*next), 0, rest);
            rest = rest.get(count..).unwrap_or_default();
            *next += 1;
            buffers = buffers.saturating_add(1);
        }
    }
    let header = Header::NONE.encode(buffers);
    write_chain(queue.ring.bufs(chain), 0, header.get(..header_len).unwrap_or_default());
    queue.ring.complete(chain, used_len(header_len + written));
    let mut rest = spilt;
    for extra in first..*next {
        let count = queue.ring.chain_len(extra).min(rest);
        queue.ring.complete(extra, used_len(count));
        rest -= count;
    }
}

/// Makes sure that the window holds chains for `spilt` bytes from number `next` on.
fn reserve(queue: &mut Queue, next: usize, spilt: usize, counters: &Counters, name: &str) -> bool {
    let (mut have, mut chain) = (0, next);
    while have < spilt {
        if queue.ring.chain_len(chain) == 0 {
            let filled = queue.fill(chain + 1, counters, name);
            // The guest has no more, or has one that holds nothing.
            if filled <= chain || queue.ring.chain_len(chain) == 0 {
                return false;
            }
        }
        have += queue.ring.chain_len(chain);
        chain += 1;
    }
    true
}

/// Length in a used entry; chains are shorter than 4 GiB (vring checks it).
pub fn used_len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
