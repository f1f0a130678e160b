//! Into the guest: frames from the links as the bytes that QEMU reads.
//!
//! # Theory of operation
//! A batch of frames is received into the slots of the [`Outbox`], each behind room for its length, and written to QEMU's
//! socket in one call. What the socket does not take stays, and nothing more is received before it has gone: a QEMU that
//! does not read costs this much memory and no more, and the frames stay in the network's own queues until those are full.
//! (QEMU stops reading while the guest's NIC has no room; that is how the network is told to wait.)
//!
//! Short frames are filled up with zeros to the least that Ethernet carries, which is what a NIC expects of its
//! wire: QEMU's ne2k_pci and pcnet drop shorter ones.

use std::io::{ErrorKind, IoSlice, Write};
use std::os::unix::net::UnixStream;

use vdeplug::link::{FRAME_MAX, FRAME_MIN};
use vdeplug::{Link, LinkError, RxBuf, RxFrame};
use virtio_net::Counters;

use super::tx::PREFIX_LEN;

/// Frames per batch, as for a virtio NIC.
pub const BATCH: usize = 32;
/// The shortest frame on a wire, without its checksum (IEEE 802.3 § 4.2.3.3).
const WIRE_MIN: usize = 60;
/// Room for a frame and its length. Most frames touch the first page only.
const SLOT: usize = PREFIX_LEN + FRAME_MAX;

/// One batch of frames on its way to QEMU.
#[derive(Debug)]
pub struct Outbox {
    slots: Box<[u8]>,
    /// How many bytes of each slot are to be written; 0: none.
    lens: [usize; BATCH],
    /// How many bytes of all of them went already.
    gone: usize,
}

impl Outbox {
    pub fn new() -> Self {
        Self { slots: vec![0; BATCH * SLOT].into(), lens: [0; BATCH], gone: 0 }
    }

    /// Forgets what is there.
    pub fn clear(&mut self) {
        (self.lens, self.gone) = ([0; BATCH], 0);
    }

    /// Whether everything went.
    pub fn is_empty(&self) -> bool {
        self.gone == self.lens.iter().sum::<usize>()
    }

    /// Receives a batch in place of the one that went; returns how many frames were taken from the link.
    pub fn receive(&mut self, link: &dyn Link, counters: &Counters) -> Result<usize, LinkError> {
        self.clear();
        let mut slots = self.slots.chunks_exact_mut(SLOT);
        let bufs: [_; BATCH] = std::array::from_fn(|_| {
            let slot = slots.next().unwrap_or_default();
            [RxBuf::new(slot.get_mut(PREFIX_LEN..).unwrap_or_default())]
        });
        let mut frames = bufs.each_ref().map(|bufs| RxFrame::new(bufs));
        let count = link.recv(&mut frames)?;
        let received = frames.map(|frame| frame.len);
        for ((slot, out), len) in
            self.slots.chunks_exact_mut(SLOT).zip(&mut self.lens).zip(received).take(count)
        {
            *out = finish(slot, len, counters);
        }
        Ok(count)
    }

    /// Writes as much as the socket takes. False: it is full.
    pub fn write(&mut self, mut socket: &UnixStream) -> std::io::Result<bool> {
        while !self.is_empty() {
            let mut skip = self.gone;
            let mut parts = [IoSlice::new(&[]); BATCH];
            for ((part, slot), len) in parts.iter_mut().zip(self.slots.chunks_exact(SLOT)).zip(self.lens) {
                *part = IoSlice::new(slot.get(skip.min(len)..len).unwrap_or_default());
                skip = skip.saturating_sub(len);
            }
            match socket.write_vectored(&parts) {
                Ok(count) => self.gone += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// Completes a slot with a frame of `len` bytes behind the room for its length; returns how many bytes are to be written.
fn finish(slot: &mut [u8], len: usize, counters: &Counters) -> usize {
    let Some((prefix, room)) = slot.split_first_chunk_mut::<PREFIX_LEN>() else { return 0 };
    if len < FRAME_MIN {
        counters.rx_runt.add(1);
        return 0;
    }
    if len > room.len() {
        counters.rx_too_long.add(1);
        return 0;
    }
    counters.rx_frames.add(1);
    counters.rx_bytes.add(len as u64);
    // What the slot held before is not for the guest.
    if let Some(padding) = room.get_mut(len..WIRE_MIN) {
        padding.fill(0);
    }
    let len = len.max(WIRE_MIN);
    *prefix = u32::try_from(len).unwrap_or(0).to_be_bytes();
    PREFIX_LEN + len
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::tx::QEMU_FRAME_MAX;

    #[test]
    fn q_10_frames_longer_than_qemu_takes_never_reach_it() {
        // There is no room for one, and what does not fit into the room is dropped.
        const { assert!(SLOT - PREFIX_LEN <= QEMU_FRAME_MAX) };
        let counters = Counters::default();
        let mut slot = vec![0xff; SLOT];
        for len in [FRAME_MAX + 1, QEMU_FRAME_MAX, QEMU_FRAME_MAX + 1, usize::MAX] {
            assert_eq!(finish(&mut slot, len, &counters), 0, "{len}");
        }
        assert_eq!((counters.rx_too_long.get(), counters.rx_frames.get()), (4, 0));
        assert_eq!(finish(&mut slot, FRAME_MAX, &counters), PREFIX_LEN + FRAME_MAX);
        assert_eq!(slot[..PREFIX_LEN], u32::try_from(FRAME_MAX).unwrap().to_be_bytes());
    }

    #[test]
    fn finish_drops_runts_and_fills_short_frames_with_zeros() {
        let counters = Counters::default();
        let mut slot = vec![0xff; SLOT];
        assert_eq!(finish(&mut slot, FRAME_MIN - 1, &counters), 0);
        assert_eq!(finish(&mut slot, FRAME_MIN, &counters), PREFIX_LEN + WIRE_MIN);
        assert_eq!(slot[..PREFIX_LEN], [0, 0, 0, 60]);
        let frame = &slot[PREFIX_LEN..];
        assert!(frame[..FRAME_MIN].iter().all(|byte| *byte == 0xff), "{frame:?}");
        assert!(frame[FRAME_MIN..WIRE_MIN].iter().all(|byte| *byte == 0), "{frame:?}");
        assert_eq!((counters.rx_runt.get(), counters.rx_frames.get()), (1, 1));
    }
}
