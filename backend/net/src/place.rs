//! Frames into the chains of a receive queue.
//!
//! # Theory of operation
//! A [`Filler`] puts one frame after the other into the chains that the guest made available, as many for each as it
//! takes, and shows all of them to the guest by one store. A frame may lie anywhere, in pieces, also in memory that another
//! guest writes at the same time.
//!
//! What a frame's header asks for is believed of nobody. The beginning of a frame that asks for anything is copied, the
//! header held against the copy, and the copy put before the guest: who changes the frame under us changes its payload.
//! What the guest did not negotiate is done here, through private memory: the checksum is completed, the frame is
//! segmented.
//!
//! A frame for which there are no buffers *waits*, with the number of its segments that went already, if the guest was
//! seen to have so much room at once before; else it is not waited for: the guest gets it in segments, or not at all.
//!
//! Chains that hold nothing cost a thousand times what it costs the guest to offer them again, and it may be another
//! guest's thread that meets them. A batch passes over [`EMPTY_MAX`] of them and then rests: it places nothing more.

use std::ops::Range;

use offload::header::{DATA_VALID, GSO_NONE};
use offload::{HEAD_MAX, Plan};
use vdeplug::link::{BIG_FRAME_MAX, FRAME_MIN};
use vdeplug::{Header, TxBuf, TxFrame};
use vring::buf::write_chain;

use crate::counters::{Counter, Counters};
use crate::lend::{self, Source};
use crate::queue::Queue;

/// Chains that are looked at ahead of the frames.
const AHEAD: usize = 32;

/// Chains that hold nothing, and that a batch passes over. Each may have a thousand descriptors that are read before that
/// shows, 6 µs of work; drivers offer none.
const EMPTY_MAX: usize = 32;

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Placed {
    /// The guest has it, or it was dropped and counted.
    Done,
    /// It waits for buffers, and so many of its segments do not.
    Waits(usize),
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

/// A batch of frames on its way into a queue.
pub struct Filler<'q> {
    queue: &'q mut Queue,
    /// Private memory for frames of which something has to be done.
    private: &'q mut Vec<u8>,
    counters: &'q Counters,
    name: &'q str,
    /// The first chain of the window that is not used yet.
    next: usize,
    /// How many chains the window holds, as far as anybody looked.
    filled: usize,
    /// How many chains it passed over that hold nothing.
    empty: usize,
    frames: u64,
    bytes: u64,
}

impl<'q> Filler<'q> {
    /// A batch that is empty yet.
    pub fn new(
        queue: &'q mut Queue,
        private: &'q mut Vec<u8>,
        counters: &'q Counters,
        name: &'q str,
    ) -> Self {
        Self { queue, private, counters, name, next: 0, filled: 0, empty: 0, frames: 0, bytes: 0 }
    }

    /// Puts a frame there, of which [`TxFrame::segments`] are there already.
    #[inline]
    pub fn place(&mut self, frame: &TxFrame<'_>) -> Placed {
        if self.place_at_once(frame) {
            return Placed::Done;
        }
        self.try_place(frame).unwrap_or_else(|counter| {
            counter.add(1);
            Placed::Done
        })
    }

    /// Shows the guest what was placed. True: there may be room that the batch rested too early to see.
    pub fn publish(self) -> bool {
        self.counters.rx_frames.add(self.frames);
        self.counters.rx_bytes.add(self.bytes);
        let rested = self.rests();
        self.queue.publish(self.next);
        rested
    }

    /// Whether it passed over so many empty chains that it leaves the rest to others.
    #[inline]
    fn rests(&self) -> bool {
        self.empty > EMPTY_MAX
    }

    /// The case that small frames are, and that costs less than to find out which it is: nothing is to be done to the frame,
    /// it is in one piece, and the next chain is one buffer that holds it. False: nothing was done.
    #[inline]
    fn place_at_once(&mut self, frame: &TxFrame<'_>) -> bool {
        const NOTHING: [u8; Header::LEN] = Header::NONE.encode(1);
        let [piece] = frame.bufs else { return false };
        let (len, need) = (piece.len(), piece.len().saturating_add(NOTHING.len()));
        let plain = frame.header.is_done() && frame.header.flags == 0;
        let known = (FRAME_MIN..=BIG_FRAME_MAX).contains(&len) && need <= self.queue.most_room;
        let headed = self.queue.accepted.header_len == NOTHING.len();
        if !plain || !known || !headed || self.rests() || !self.reach(self.next) {
            return false;
        }
        let [room] = self.queue.ring.bufs(self.next) else { return false };
        if !lend::copy(&NOTHING, piece, room) {
            return false;
        }
        self.queue.ring.complete(self.next, u32::try_from(need).unwrap_or(u32::MAX));
        self.count(self.next + 1, len);
        true
    }

    /// As [`Filler::place`]; the error is the counter of why the frame is dropped.
    fn try_place(&mut self, frame: &TxFrame<'_>) -> Result<Placed, &'q Counter> {
        let len = frame.len();
        if len < FRAME_MIN {
            return Err(&self.counters.rx_runt);
        }
        if len > BIG_FRAME_MAX {
            return Err(&self.counters.rx_too_long);
        }
        let takes = self.queue.accepted.rx;
        if frame.header.is_done() && frame.header.flags & !DATA_VALID == 0 {
            let flags = if takes.csum { frame.header.flags } else { 0 };
            return self.whole(Header { flags, ..Header::NONE }, Source::new(&[], frame.bufs), len);
        }
        let mut room = [0; HEAD_MAX];
        let count = frame.read_at(0, &mut room);
        let head = room.get(..count).unwrap_or_default();
        let header = offload::check(&frame.header, head, len).map_err(|_| &self.counters.rx_bad_header)?;
        // A checksum at another place than the frame's own would be put there by whoever gets the frame from the guest: a
        // frame that the guest let through would become another one. It is put there now.
        let allowed = takes.allow(&header) && offload::checksum_is_own(&header, head, len);
        if header.gso_type == GSO_NONE {
            if allowed {
                return self.whole(header, Source::new(head, frame.bufs), len);
            }
            return self.completed(header, head, frame, len);
        }
        if allowed && frame.segments == 0 {
            match self.room(len) {
                Room::Until(end) => {
                    self.write(end, header, Source::new(head, frame.bufs), len);
                    return Ok(Placed::Done);
                }
                Room::Later => return Ok(Placed::Waits(0)),
                Room::Never => {}
            }
        }
        self.segments(header, head, frame, len)
    }

    /// Places a frame of which nothing has to be done here.
    fn whole(&mut self, header: Header, source: Source<'_>, len: usize) -> Result<Placed, &'q Counter> {
        match self.room(len) {
            Room::Until(end) => self.write(end, header, source, len),
            Room::Later => return Ok(Placed::Waits(0)),
            Room::Never => return Err(self.why_never()),
        }
        Ok(Placed::Done)
    }

    /// Places a frame whose checksum is completed here.
    fn completed(
        &mut self,
        header: Header,
        head: &[u8],
        frame: &TxFrame<'_>,
        len: usize,
    ) -> Result<Placed, &'q Counter> {
        let end = match self.room(len) {
            Room::Until(end) => end,
            Room::Later => return Ok(Placed::Waits(0)),
            Room::Never => return Err(self.why_never()),
        };
        let private = gather(self.private, head, frame, len);
        offload::complete(&header, private).map_err(|_| &self.counters.rx_bad_header)?;
        let pieces = [TxBuf::new(private)];
        let source = Source::new(&[], &pieces);
        write(self.queue, self.next..end, Header::NONE, source, len);
        self.count(end, len);
        Ok(Placed::Done)
    }

    /// Places the segments of a frame, from the first that is not there yet.
    fn segments(
        &mut self,
        header: Header,
        head: &[u8],
        frame: &TxFrame<'_>,
        len: usize,
    ) -> Result<Placed, &'q Counter> {
        let plan = Plan::new(&header, head, len).map_err(|_| &self.counters.rx_bad_header)?;
        let mut gathered = false;
        for index in frame.segments..plan.segments() {
            let segment_len = plan.head_len() + plan.payload(index).len();
            let end = match self.room(segment_len) {
                Room::Until(end) => end,
                Room::Later => return Ok(Placed::Waits(index)),
                Room::Never => {
                    self.why_never().add(1);
                    continue;
                }
            };
            if !gathered {
                gather(self.private, head, frame, len);
                gathered = true;
            }
            let mut room = [0; HEAD_MAX];
            let (head, payload) = plan.segment(index, self.private, &mut room);
            let pieces = [TxBuf::new(payload)];
            let source = Source::joined(head, &pieces);
            write(self.queue, self.next..end, Header::NONE, source, segment_len);
            self.count(end, segment_len);
        }
        Ok(Placed::Done)
    }

    /// The counter of a frame that the guest never has the room for.
    fn why_never(&self) -> &'q Counter {
        if self.queue.accepted.mergeable { &self.counters.rx_no_buffer } else { &self.counters.rx_too_long }
    }

    /// Looks for chains that hold a header and `len` bytes. Chains in the way that do not even hold a header go back.
    fn room(&mut self, len: usize) -> Room {
        let header_len = self.queue.accepted.header_len;
        let need = header_len + len;
        if self.rests() {
            return Room::Later;
        }
        if need > self.queue.most_room {
            self.survey();
        }
        let (mut have, mut chain) = (0, self.next);
        while have < need {
            if self.rests() {
                self.give_back(chain);
                return Room::Later;
            }
            if !self.reach(chain) {
                return if have == 0 || need <= self.queue.most_room { Room::Later } else { Room::Never };
            }
            let held = self.queue.ring.chain_len(chain);
            let small = have == 0 && held <= header_len;
            self.empty += usize::from(small || held == 0);
            if small {
                // All before it are completed, so it can be as well.
                self.counters.rx_small_buffer.add(1);
                self.give_back(chain + 1);
            } else if !self.queue.accepted.mergeable && held < need {
                return Room::Never;
            } else {
                have += held;
            }
            chain += 1;
        }
        Room::Until(chain)
    }

    /// Gives back the chains before this one, empty.
    fn give_back(&mut self, end: usize) {
        (self.next..end).for_each(|chain| self.queue.ring.complete(chain, 0));
        self.next = end;
    }

    /// Counts the room that there is now, as far as it matters.
    fn survey(&mut self) {
        let (mut have, mut chain, mut empty) = (0, self.next, 0);
        let enough = self.queue.accepted.header_len + BIG_FRAME_MAX;
        while have < enough && empty <= EMPTY_MAX && self.reach(chain) {
            let held = self.queue.ring.chain_len(chain);
            empty += usize::from(held == 0);
            have += held;
            chain += 1;
        }
        self.queue.most_room = self.queue.most_room.max(have);
    }

    /// Whether the window holds this chain.
    #[inline]
    fn reach(&mut self, chain: usize) -> bool {
        if chain >= self.filled {
            self.filled = self.queue.fill(chain + AHEAD, self.counters, self.name);
        }
        chain < self.filled
    }

    /// Writes a frame into the chains up to `end`, which are all that it needs.
    fn write(&mut self, end: usize, header: Header, source: Source<'_>, len: usize) {
        write(self.queue, self.next..end, header, source, len);
        self.count(end, len);
    }

    #[inline]
    fn count(&mut self, end: usize, len: usize) {
        self.next = end;
        self.frames += 1;
        self.bytes += len as u64;
    }
}

/// A frame in private memory, with a beginning that was copied before.
fn gather<'p>(private: &'p mut Vec<u8>, head: &[u8], frame: &TxFrame<'_>, len: usize) -> &'p mut [u8] {
    private.resize(len, 0);
    frame.read_at(0, private);
    if let Some(start) = private.get_mut(..head.len()) {
        start.copy_from_slice(head);
    }
    private
}

/// Writes a header and a frame of `len` bytes into chains that just hold them, and completes those.
fn write(queue: &mut Queue, chains: Range<usize>, header: Header, mut source: Source<'_>, len: usize) {
    let header_len = queue.accepted.header_len;
    let (mut skip, mut buffers) = (header_len, 0u16);
    for chain in chains.clone() {
        let bufs = queue.ring.bufs(chain);
        source.pour(bufs, skip);
        skip = 0;
        // One that broke the rules is no part of the frame and must not come between those that are.
        if bufs.is_empty() {
            queue.ring.complete(chain, 0);
        } else {
            buffers = buffers.saturating_add(1);
        }
    }
    let bytes = header.encode(buffers);
    write_chain(queue.ring.bufs(chains.start), 0, bytes.get(..header_len).unwrap_or_default());
    let mut left = header_len + len;
    for chain in chains {
        let count = queue.ring.chain_len(chain).min(left);
        if count > 0 {
            // Chains are shorter than 4 GiB (vring checks it).
            queue.ring.complete(chain, u32::try_from(count).unwrap_or(u32::MAX));
        }
        left -= count;
    }
}
