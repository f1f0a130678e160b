//! An end by our crate.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use anyhow::Result;
use vdeplug::{Link, OpenOptions, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::frame::Frame;
use crate::{BATCH, BIG_ROOM, End, ROOM};

/// A link, and room for a batch of frames, which lives as long as the process.
pub struct Plug {
    link: Arc<dyn Link>,
    rooms: Vec<RxFrame<'static>>,
    /// How many segments of the next frame went already.
    segments: usize,
}

impl Plug {
    /// Opens a link, with big frames if both sides can.
    pub fn open(locator: &str, offloads: bool) -> Result<Self> {
        let options = OpenOptions { description: "vde-load".into(), offloads, ..OpenOptions::default() };
        let link = vdeplug::open(locator, &options)?;
        let room = if offloads { BIG_ROOM } else { ROOM };
        let memory = Vec::leak(vec![0; BATCH * room]);
        let bufs: Vec<RxBuf<'static>> = memory.chunks_exact_mut(room).map(RxBuf::new).collect();
        let rooms = Vec::leak(bufs).chunks_exact(1).map(RxFrame::new).collect();
        Ok(Self { link, rooms, segments: 0 })
    }
}

impl End for Plug {
    fn fd(&self) -> BorrowedFd<'_> {
        self.link.data_fd()
    }

    fn send(&mut self, frame: &Frame, count: usize) -> Result<usize> {
        let pieces = [TxBuf::new(frame.bytes())];
        let frame = TxFrame { bufs: &pieces, header: frame.header(), segments: 0 };
        let mut frames = [frame; BATCH];
        frames[0].segments = self.segments;
        let sent = self.link.send(&frames[..count])?;
        self.segments = sent.segments;
        // What the link drops by itself shows as loss at the other end.
        Ok(sent.taken)
    }

    fn recv(&mut self) -> Result<(usize, usize)> {
        let got = self.link.recv(&mut self.rooms)?;
        Ok((got, self.rooms[..got].iter().map(|frame| frame.len).sum()))
    }
}
