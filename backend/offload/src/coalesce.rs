//! Segments of one flow that arrived one behind the other, joined into a large frame: what costs a guest much is the
//! number of frames, not their length.
//!
//! # Theory of operation
//! A batch is read in order of arrival. Each frame begins a *run*, or is added to one; runs are delivered in the order of
//! their first frames. A few runs at a time are *open*: the next segment of the same flow may still be added. Whatever
//! shows that it may not closes the run: a segment that does not fit, one that says that it is the last (PSH, FIN, or less
//! payload than those before), anything of that flow that is not joined, and more flows than are held. What is not
//! understood, and what goes to a group of receivers, closes all runs. So frames of one flow never overtake each other,
//! and at the end of the batch everything is closed: no frame ever waits for one that has not arrived.
//!
//! The rules are those of Linux's GRO, with one intent: that the joined frame, segmented again ([`Plan`](crate::Plan)),
//! gives the frames that arrived, byte for byte. What that could not give back is not joined. The one exception is Linux's
//! as well: an IPv4 identification that stays the same with "don't fragment" set, as the BSDs send it, has no meaning
//! (RFC 6864 § 4.1) and comes back counted up.
//!
//! Nothing is joined of which not all checksums were found right: the receiver completes one over the whole, and damage
//! would be sealed in. What was damaged goes on as it came.

use std::ops::Range;

use crate::header::{self, Header};
use flow::{Open, Segment};

mod flow;
#[cfg(test)]
mod oracle;

/// Flows that are held at the same time, as many as in a bucket of Linux's.
const FLOWS: usize = 8;

/// What the receiver takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Take {
    /// Frames whose checksums somebody else verified, or are to be completed. Without this there is nothing to be done.
    pub csum: bool,
    /// Large frames of TCP over IPv4.
    pub tcp4: bool,
    /// Large frames of TCP over IPv6.
    pub tcp6: bool,
    /// Large frames of TCP whose first segment says CWR.
    pub ecn: bool,
    /// Large frames of UDP.
    pub udp: bool,
}

/// Some bytes of a frame of the batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Which frame of the batch.
    pub frame: usize,
    /// Which bytes of it.
    pub range: Range<usize>,
}

/// A frame to deliver: `head`, and then the parts. One that goes as it came has no head, and one part, all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined<'a> {
    /// What stands before the frame.
    pub header: Header,
    /// Its headers, if they are not those that came.
    pub head: &'a [u8],
    /// Where the bytes behind the head are.
    pub parts: &'a [Part],
    /// Length of the whole in bytes.
    pub len: usize,
}

/// Joins the frames of one batch; keeps its memory from one to the next.
#[derive(Debug, Default)]
pub struct Coalescer {
    runs: Vec<Run>,
    /// The runs that may grow, the oldest first.
    open: Vec<Open>,
    /// For each frame of the batch its run.
    owners: Vec<usize>,
    parts: Vec<Part>,
    /// The heads of the joined frames, one behind the other.
    heads: Vec<u8>,
}

/// Frames that make up one.
#[derive(Debug)]
struct Run {
    header: Header,
    /// In `heads`; empty for one that goes as it came.
    head: Range<usize>,
    /// How many frames.
    count: usize,
    /// Bytes of the whole.
    len: usize,
    /// In `parts`.
    parts: Range<usize>,
}

impl Coalescer {
    /// Makes one; it allocates while the first batches come.
    pub fn new() -> Self {
        Self::default()
    }

    /// Joins what can be joined of a batch of complete frames, given in order of arrival. The result is in
    /// [`frames`](Self::frames).
    pub fn join(&mut self, frames: &[&[u8]], take: Take) {
        self.runs.clear();
        self.open.clear();
        self.owners.clear();
        self.heads.clear();
        for frame in frames {
            let run =
                if take.csum { self.place(frame, frames, take) } else { self.begin(frame, Header::NONE) };
            self.owners.push(run);
        }
        self.close_all(frames);
        self.lay_out(frames);
    }

    /// The frames to deliver, in order.
    pub fn frames(&self) -> impl Iterator<Item = Joined<'_>> {
        self.runs.iter().map(|run| Joined {
            header: run.header,
            head: self.heads.get(run.head.clone()).unwrap_or_default(),
            parts: self.parts.get(run.parts.clone()).unwrap_or_default(),
            len: run.len,
        })
    }

    /// Finds the run of a frame, or begins one.
    fn place(&mut self, frame: &[u8], frames: &[&[u8]], take: Take) -> usize {
        let Some(segment) = Segment::read(frame) else {
            self.close_all(frames);
            return self.begin(frame, Header::NONE);
        };
        let whole = segment.is_whole();
        let header = if whole { Header { flags: header::DATA_VALID, ..Header::NONE } } else { Header::NONE };
        if segment.is_for_group() {
            self.close_all(frames);
            return self.begin(frame, header);
        }
        let joinable = whole && segment.is_joinable(take);
        // The newest first: that is where most segments belong.
        let found = self.open.iter().enumerate().rev().find(|(_, open)| open.is_flow_of(&segment, frames));
        if let Some((place, _)) = found {
            let taken = joinable.then(|| self.open.get_mut(place)?.add(&segment, frames)).flatten();
            if let Some(added) = taken {
                if added.is_last {
                    self.close(place, frames);
                }
                return added.run;
            }
            self.close(place, frames);
        }
        let run = self.begin(frame, header);
        if joinable && segment.can_be_followed(take) {
            if self.open.len() == FLOWS {
                self.close(0, frames);
            }
            self.open.push(Open::new(run, self.owners.len(), &segment));
        }
        run
    }

    /// Begins a run with a frame that goes as it came, unless others join it.
    fn begin(&mut self, frame: &[u8], header: Header) -> usize {
        self.runs.push(Run { header, head: 0..0, count: 1, len: frame.len(), parts: 0..0 });
        self.runs.len() - 1
    }

    /// Closes the open run at `place` and, if it has grown, writes its head.
    fn close(&mut self, place: usize, frames: &[&[u8]]) {
        let open = self.open.remove(place);
        let Some(run) = self.runs.get_mut(open.run()) else { return };
        if open.count() > 1 {
            let start = self.heads.len();
            run.header = open.write_head(frames, &mut self.heads);
            run.head = start..self.heads.len();
            run.count = open.count();
            run.len = open.len();
        }
    }

    fn close_all(&mut self, frames: &[&[u8]]) {
        while !self.open.is_empty() {
            self.close(0, frames);
        }
    }

    /// Brings the parts of each run together.
    fn lay_out(&mut self, frames: &[&[u8]]) {
        let mut at = 0;
        for run in &mut self.runs {
            run.parts = at..at;
            at += run.count;
        }
        self.parts.clear();
        self.parts.resize(at, Part::default());
        for (index, (frame, owner)) in frames.iter().zip(&self.owners).enumerate() {
            let Some(run) = self.runs.get_mut(*owner) else { continue };
            if let Some(part) = self.parts.get_mut(run.parts.end) {
                *part = Part { frame: index, range: run.head.len()..frame.len() };
                run.parts.end += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
