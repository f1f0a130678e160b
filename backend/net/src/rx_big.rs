//! One batch into the guest, from a link whose frames may be big or unfinished.
//!
//! # Theory of operation
//! Such a frame may need more buffers than the guest has at the moment, and once it is taken from its link there is no
//! giving it back. So frames are taken one at a time (the kernel's cost is per frame, not per call), and never more than
//! one is held that the guest has no buffers for.
//!
//! If the guest has room for the longest frame and takes frames as they are, the link receives straight into as many of
//! its chains as that needs; those that stay empty are lent again for the next frame. Else the frame goes through private
//! memory: what the guest did not negotiate is done there (the checksum is completed, the frame is segmented), and it is
//! copied out as far as there are buffers. The rest *waits*, and no link is read, until the guest brings more. A guest
//! that was never seen to have so much room at once is not waited for: it gets the frame in segments, or not at all.
//!
//! The header comes from the network and is checked against the frame before anybody believes it. In the guest's memory the
//! guest can change a frame under us; then the guest itself gets the nonsense.

use std::ops::Range;

use offload::header::GSO_NONE;
use offload::{HEAD_MAX, Plan};
use vdeplug::link::{BIG_FRAME_MAX, FRAME_MIN, PIECES_MAX};
use vdeplug::{Header, Link, LinkError, RxBuf, RxFrame};
use vring::buf::{read_chain, write_chain};

use crate::counters::{Counter, Counters};
use crate::lend;
use crate::queue::Queue;
use crate::rx::{BATCH, Round, used_len};

/// Buffers that are kept from frame to frame.
#[derive(Default)]
pub struct Scratch {
    /// The frame in private memory; empty until the first one.
    frame: Vec<u8>,
    pieces: Vec<RxBuf<'static>>,
}

/// A frame in private memory that the guest is to get.
#[derive(Debug)]
pub struct Waiting {
    header: Header,
    len: usize,
    /// How it is segmented, and which segment is next.
    cut: Option<(Plan, usize)>,
}

/// Chains for a frame.
enum Room {
    /// They end before this one.
    Until(usize),
    /// The guest had that much room before, so it will again.
    Later,
    /// The guest never had that much.
    Never,
}

/// Receives one batch from one link. No frame is waiting.
pub fn round(
    queue: &mut Queue,
    link: &dyn Link,
    scratch: &mut Scratch,
    counters: &Counters,
    name: &str,
) -> Result<Round, LinkError> {
    let (mut round, mut next) = (Round::default(), 0);
    let result = loop {
        if round.moved >= BATCH {
            break Ok(());
        }
        match take(queue, link, scratch, &mut next, counters, name) {
            Ok(true) => round.moved += 1,
            Ok(false) => {
                round.drained = true;
                break Ok(());
            }
            Err(error) => break Err(error),
        }
        if !hand_over(queue, &scratch.frame, &mut next, counters, name) {
            round.starved = true;
            break Ok(());
        }
    };
    queue.publish(next);
    result.map(|()| round)
}

/// Hands over what waits, as far as the guest has buffers now; false: something still waits.
pub fn resume(queue: &mut Queue, scratch: &Scratch, counters: &Counters, name: &str) -> bool {
    let mut next = 0;
    let done = hand_over(queue, &scratch.frame, &mut next, counters, name);
    queue.publish(next);
    done
}

/// Takes one frame from the link: into the guest's chains from `next` on, or to where it waits. False: there is none.
fn take(
    queue: &mut Queue,
    link: &dyn Link,
    scratch: &mut Scratch,
    next: &mut usize,
    counters: &Counters,
    name: &str,
) -> Result<bool, LinkError> {
    let longest = queue.accepted.header_len + BIG_FRAME_MAX;
    let lent = match room(queue, next, longest, counters, name) {
        Room::Until(end) if queue.accepted.rx.tso4 && queue.accepted.rx.tso6 => *next..end,
        _ => 0..0,
    };
    let (in_guest, header, len) = match receive(queue, link, scratch, lent.clone())? {
        None => return Ok(false),
        Some(received) => received,
    };
    if let Err(counter) = admit(queue, scratch, in_guest.then_some(lent), header, len, next, counters) {
        counter.add(1);
    }
    Ok(true)
}

/// Receives a frame, into the chains if there are any that will do: whether it is there, its header, its length.
fn receive(
    queue: &Queue,
    link: &dyn Link,
    scratch: &mut Scratch,
    chains: Range<usize>,
) -> Result<Option<(bool, Header, usize)>, LinkError> {
    scratch.frame.resize(BIG_FRAME_MAX, 0);
    let mut pieces = lend::recycle(std::mem::take(&mut scratch.pieces));
    let mut skip = queue.accepted.header_len;
    for chain in chains {
        lend::rx(queue.ring.bufs(chain), skip, &mut pieces);
        skip = 0;
    }
    // One is left for what a link puts before a frame.
    let in_guest = (1..PIECES_MAX).contains(&pieces.len());
    if !in_guest {
        pieces.clear();
        pieces.push(RxBuf::new(&mut scratch.frame));
    }
    let mut frames = [RxFrame::new(&pieces)];
    let received = link.recv(&mut frames);
    let [RxFrame { header, len, .. }] = frames;
    scratch.pieces = lend::recycle(pieces);
    Ok((received? > 0).then_some((in_guest, header, len)))
}

/// Checks a received frame. What the guest takes as it lies in its chains is completed there; all else waits from now on.
fn admit<'c>(
    queue: &mut Queue,
    scratch: &mut Scratch,
    chains: Option<Range<usize>>,
    header: Header,
    len: usize,
    next: &mut usize,
    counters: &'c Counters,
) -> Result<(), &'c Counter> {
    if len < FRAME_MIN {
        return Err(&counters.rx_runt);
    }
    let frame = scratch.frame.get_mut(..len).ok_or(&counters.rx_too_long)?;
    let skip = queue.accepted.header_len;
    let head = frame.get_mut(..len.min(HEAD_MAX)).unwrap_or_default();
    if let Some(chains) = chains.clone() {
        gather(queue, chains, skip, head);
    }
    let mut header = offload::check(&header, head, len).map_err(|_| &counters.rx_bad_header)?;
    // A checksum at another place than the frame's own would be put there by whoever gets the frame from the guest: a
    // frame that the guest let through would become another one. It is put there now.
    let allowed = queue.accepted.rx.allow(&header) && offload::checksum_is_own(&header, head, len);
    if let Some(chains) = chains {
        if allowed {
            *next = complete(queue, chains, header, len, counters);
            return Ok(());
        }
        gather(queue, chains, skip, frame);
    }
    let mut cut = None;
    if !allowed && header.gso_type == GSO_NONE {
        offload::complete(&header, frame).map_err(|_| &counters.rx_bad_header)?;
        header = Header::NONE;
    } else if !allowed {
        cut = Some((Plan::new(&header, frame, len).map_err(|_| &counters.rx_bad_header)?, 0));
    }
    queue.waiting = Some(Waiting { header, len, cut });
    Ok(())
}

/// Copies the waiting frame to chains from `next` on. False: some of it still waits.
fn hand_over(queue: &mut Queue, frame: &[u8], next: &mut usize, counters: &Counters, name: &str) -> bool {
    let Some(mut waiting) = queue.waiting.take() else { return true };
    let frame = frame.get(..waiting.len).unwrap_or_default();
    let mut head = [0; HEAD_MAX];
    loop {
        let (header, parts) = match &waiting.cut {
            None => (waiting.header, (&[][..], frame)),
            Some((plan, index)) => (Header::NONE, plan.segment(*index, frame, &mut head)),
        };
        let len = parts.0.len() + parts.1.len();
        match room(queue, next, queue.accepted.header_len + len, counters, name) {
            Room::Until(end) => {
                scatter(queue, *next..end, queue.accepted.header_len, [parts.0, parts.1]);
                *next = complete(queue, *next..end, header, len, counters);
            }
            Room::Later => {
                queue.waiting = Some(waiting);
                return false;
            }
            Room::Never if waiting.cut.is_none() && header.gso_type != GSO_NONE => {
                // It passed the check, so there is a plan.
                waiting.cut = Plan::new(&header, frame, len).ok().map(|plan| (plan, 0));
                if waiting.cut.is_some() {
                    continue;
                }
            }
            Room::Never if queue.accepted.mergeable => counters.rx_no_buffer.add(1),
            Room::Never => counters.rx_too_long.add(1),
        }
        match &mut waiting.cut {
            Some((plan, index)) if *index + 1 < plan.segments() => *index += 1,
            _ => return true,
        }
    }
}

/// Looks for chains that hold `need` bytes, from `next` on. Chains there that do not even hold a header go back.
fn room(queue: &mut Queue, next: &mut usize, need: usize, counters: &Counters, name: &str) -> Room {
    let (mut have, mut chain) = (0, *next);
    while have < need {
        if queue.fill(chain + 1, counters, name) <= chain {
            queue.most_room = queue.most_room.max(have);
            return if have == 0 || need <= queue.most_room { Room::Later } else { Room::Never };
        }
        let len = queue.ring.chain_len(chain);
        if have == 0 && len <= queue.accepted.header_len {
            // All before it are completed, so it can be as well.
            counters.rx_small_buffer.add(1);
            queue.ring.complete(chain, 0);
            *next += 1;
        } else if !queue.accepted.mergeable && len < need {
            return Room::Never;
        } else {
            have += len;
        }
        chain += 1;
    }
    queue.most_room = queue.most_room.max(have);
    Room::Until(chain)
}

/// Copies the bytes of chains behind the first `skip` ones.
fn gather(queue: &Queue, chains: Range<usize>, mut skip: usize, to: &mut [u8]) {
    let mut rest = to;
    for chain in chains {
        let count = read_chain(queue.ring.bufs(chain), skip, rest);
        rest = rest.get_mut(count..).unwrap_or_default();
        skip = 0;
    }
}

/// Copies bytes into chains, behind the first `skip` ones.
fn scatter(queue: &Queue, chains: Range<usize>, mut skip: usize, parts: [&[u8]; 2]) {
    let [mut part, mut other] = parts;
    for chain in chains {
        let bufs = queue.ring.bufs(chain);
        let count = write_chain(bufs, skip, part);
        part = part.get(count..).unwrap_or_default();
        if part.is_empty() {
            let count = write_chain(bufs, skip + count, other);
            other = other.get(count..).unwrap_or_default();
        }
        skip = 0;
    }
}

/// Completes as many of the chains as a header and the `len` bytes behind it, which are there already, take up. Returns
/// the first chain behind them.
fn complete(
    queue: &mut Queue,
    chains: Range<usize>,
    header: Header,
    len: usize,
    counters: &Counters,
) -> usize {
    let header_len = queue.accepted.header_len;
    let (mut left, mut end, mut buffers) = (header_len + len, chains.start, 0u16);
    while left > 0 && end < chains.end {
        let held = queue.ring.chain_len(end);
        // One that broke the rules is no part of the frame and must not come between those that are.
        if held == 0 {
            queue.ring.complete(end, 0);
        } else {
            buffers = buffers.saturating_add(1);
        }
        left = left.saturating_sub(held);
        end += 1;
    }
    let bytes = header.encode(buffers);
    write_chain(queue.ring.bufs(chains.start), 0, bytes.get(..header_len).unwrap_or_default());
    let mut left = header_len + len;
    for chain in chains.start..end {
        let count = queue.ring.chain_len(chain).min(left);
        if count > 0 {
            queue.ring.complete(chain, used_len(count));
        }
        left -= count;
    }
    counters.rx_frames.add(1);
    counters.rx_bytes.add(len as u64);
    end
}
