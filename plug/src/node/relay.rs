//! Frames from one peer of a hub or a switch to the others, a batch at a time.

use offload::{HEAD_MAX, Header};

use super::net::Net;
use super::peer::Peer;
use super::table::Port;
use crate::link::{BIG_FRAME_MAX, FRAME_MIN, RxBuf, RxFrame, TxBuf, TxFrame};
use crate::sys::BATCH;

/// Room for one frame: an odd number of cache lines, or the frames of a batch would compete for a few of them. With 33 times
/// 2048 bytes a frame of 9000 cost the thread 5.9 µs, so 4.6.
const ROOM: usize = BIG_FRAME_MAX.next_multiple_of(128) + 64;

/// How many frames are taken at once from a peer that may send big ones, each of which may be as much work as a thousand
/// others. Past this a larger batch gains nothing in the kernel, whose cost is per frame.
const BIG_BATCH: usize = 8;

/// So many segments end a peer's turn: those of ten frames of 64 KiB. Whoever has frames cut into as many pieces as can be
/// does not make the others wait for 64 of them.
const SEGMENTS: usize = 512;

/// Room for a batch of frames. The kernel gives memory to it as far as it is used: 256 KiB for small frames.
pub(super) struct Relay {
    memory: Vec<u8>,
}

impl Relay {
    pub(super) fn new() -> Self {
        Self { memory: vec![0; BATCH * ROOM] }
    }

    /// Takes a batch from a peer and sends it on; whether there may be more.
    pub(super) fn turn(&mut self, net: &Net, peer: &Peer) -> bool {
        let batch = if peer.is_big() { BIG_BATCH } else { BATCH };
        let (mut frames, mut segments) = (0, 0);
        while frames < BATCH && segments < SEGMENTS {
            let (got, of_them) = self.pass(net, peer, batch);
            if got < batch {
                return false;
            }
            frames += got;
            segments += of_them;
        }
        true
    }

    /// Takes up to so many frames and sends them on: how many there were, and how many segments they are.
    fn pass(&mut self, net: &Net, peer: &Peer, batch: usize) -> (usize, usize) {
        let mut rooms = self.memory.chunks_exact_mut(ROOM);
        let bufs: [_; BATCH] = std::array::from_fn(|_| [RxBuf::new(rooms.next().unwrap_or_default())]);
        let mut frames = bufs.each_ref().map(|bufs| RxFrame::new(bufs));
        // Not the owner's traffic yet.
        let got = peer.recv(frames.get_mut(..batch).unwrap_or_default(), None);
        let marks = frames.map(|frame| (frame.header, frame.len));
        let frames = marks.iter().zip(self.memory.chunks_exact(ROOM)).take(got);
        let whole = frames.filter_map(|((header, len), room)| Some((*header, room.get(..*len)?)));
        let mut good: Vec<(Header, &[u8])> = Vec::with_capacity(got);
        for (header, frame) in whole.filter(|(_, frame)| (FRAME_MIN..=BIG_FRAME_MAX).contains(&frame.len())) {
            let head = frame.get(..HEAD_MAX).unwrap_or(frame);
            match offload::check(&header, head, frame.len()) {
                Ok(header) => good.push((header, frame)),
                Err(_) => peer.meter().received(0, 0, 1),
            }
        }
        if !good.is_empty() {
            send_on(net, peer.port, &good);
        }
        let segments = |(header, frame): &(Header, &[u8])| {
            frame.len().checked_div(header.gso_size.into()).map_or(1, |count| count + 1)
        };
        (got, good.iter().map(segments).sum())
    }
}

fn send_on(net: &Net, from: Port, frames: &[(Header, &[u8])]) {
    let bufs: Vec<_> = frames.iter().map(|(_, frame)| [TxBuf::new(frame)]).collect();
    let whole = bufs.iter().zip(frames);
    let whole: Vec<_> =
        whole.map(|(bufs, (header, _))| TxFrame { bufs, header: *header, segments: 0 }).collect();
    net.pass_on(from, &whole);
}
