//! Frames from one peer of a hub or a switch to the others, a batch at a time.

use offload::{HEAD_MAX, Header};

use super::net::Net;
use super::peer::Peer;
use crate::link::{BIG_FRAME_MAX, FRAME_MIN, RxBuf, RxFrame, TxBuf, TxFrame};
use crate::sys::BATCH;

/// Room for one frame: an odd number of cache lines, or the frames of a batch would compete for a few of them. With 33 times
/// 2048 bytes a frame of 9000 cost the thread 5.9 µs, so 4.6.
const ROOM: usize = BIG_FRAME_MAX.next_multiple_of(128) + 64;

/// How many frames are received by one call from a peer that may send big ones, each of which may be as much work as a
/// thousand others. Past this a larger batch gains nothing in the kernel, whose cost is per frame.
const BIG_BATCH: usize = 8;

/// So many segments end a batch: those of ten frames of 64 KiB. Whoever has frames cut into as many pieces as can be
/// does not make the others wait for 64 of them.
const SEGMENTS: usize = 512;

/// Room for a batch of frames. The kernel gives memory to it as far as it is used: 256 KiB for small frames.
pub(super) struct Relay {
    memory: Vec<u8>,
    /// Headers and lengths of the frames that are there.
    marks: Vec<(Header, usize)>,
}

impl Relay {
    pub(super) fn new() -> Self {
        Self { memory: vec![0; BATCH * ROOM], marks: Vec::with_capacity(BATCH) }
    }

    /// Takes a batch of frames from a peer; whether there may be more.
    pub(super) fn take(&mut self, peer: &Peer) -> bool {
        let batch = if peer.is_big() { BIG_BATCH } else { BATCH };
        let mut segments = 0;
        self.marks.clear();
        while self.marks.len() < BATCH && segments < SEGMENTS {
            let mut rooms = self.memory.chunks_exact_mut(ROOM).skip(self.marks.len());
            let bufs: [_; BATCH] = std::array::from_fn(|_| [RxBuf::new(rooms.next().unwrap_or_default())]);
            let mut frames = bufs.each_ref().map(|bufs| RxFrame::new(bufs));
            // Not the owner's traffic yet.
            let got = peer.recv(frames.get_mut(..batch).unwrap_or_default(), None);
            for RxFrame { header, len, .. } in frames.iter().take(got) {
                segments += len.checked_div(header.gso_size.into()).map_or(1, |count| count + 1);
                self.marks.push((*header, *len));
            }
            if got < batch {
                return false;
            }
        }
        true
    }

    /// Sends the frames that were taken from a peer to whom they are for.
    pub(super) fn pass_on(&self, net: &Net, peer: &Peer) {
        let rooms = self.marks.iter().zip(self.memory.chunks_exact(ROOM));
        let whole = rooms.filter_map(|((header, len), room)| Some((*header, room.get(..*len)?)));
        let mut good: Vec<(Header, &[u8])> = Vec::with_capacity(self.marks.len());
        for (header, frame) in whole.filter(|(_, frame)| (FRAME_MIN..=BIG_FRAME_MAX).contains(&frame.len())) {
            let head = frame.get(..HEAD_MAX).unwrap_or(frame);
            match offload::check(&header, head, frame.len()) {
                Ok(header) => good.push((header, frame)),
                Err(_) => peer.meter().received(0, 0, 1),
            }
        }
        let bufs: Vec<_> = good.iter().map(|(_, frame)| [TxBuf::new(frame)]).collect();
        let frames = bufs.iter().zip(&good);
        let frames: Vec<_> =
            frames.map(|(bufs, (header, _))| TxFrame { bufs, header: *header, segments: 0 }).collect();
        if !frames.is_empty() {
            net.pass_on(peer.port, &frames);
        }
    }
}
