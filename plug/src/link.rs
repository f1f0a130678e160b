//! What a link is: one attachment to a network that frames go into and come out of.
//!
//! The buffers that a link sends from and receives into may lie in memory that another process writes at
//! the same time (a guest's RAM), so they are never Rust slices: [`TxBuf`] and [`RxBuf`] are an address and
//! a length that only the kernel dereferences. Safe code makes them from slices; code that lends guest
//! memory makes them with the two unsafe constructors.

#![allow(unsafe_code)]

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use offload::Header;

/// The longest frame that VDE programs exchange: 9216 bytes of payload, header, one VLAN tag (VDE fact 2.7).
pub const FRAME_MAX: usize = 9216 + 14 + 4;

/// The longest frame that is still to be segmented: headers of Ethernet with two VLAN tags and of IPv6, and what a
/// 16-bit length can say.
pub const BIG_FRAME_MAX: usize = 14 + 2 * 4 + 40 + 65535;

/// The shortest thing that is a frame: two addresses and a type.
pub const FRAME_MIN: usize = 14;

/// How many pieces one frame may consist of (the kernel's limit).
pub const PIECES_MAX: usize = 1024;

/// What `recv_one` passes over at most: whoever sends without end what is no frame holds up nobody.
const PASSED_MAX: usize = 64;

/// A piece of a frame to be sent. Layout of `struct iovec`.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct TxBuf<'a>(libc::iovec, PhantomData<&'a [u8]>);

/// A piece of memory to receive into. Layout of `struct iovec`.
#[repr(transparent)]
pub struct RxBuf<'a>(libc::iovec, PhantomData<&'a mut [u8]>);

// SAFETY: the address is used by the kernel alone, which any thread may ask; a `TxBuf` is no more tied to a
// thread than the slice it stands for.
unsafe impl Send for TxBuf<'_> {}
// SAFETY: as above; who shares a `TxBuf` can only copy it.
unsafe impl Sync for TxBuf<'_> {}
// SAFETY: as for a `TxBuf`, for a mutable slice.
unsafe impl Send for RxBuf<'_> {}

impl<'a> TxBuf<'a> {
    /// An empty piece.
    pub const EMPTY: Self = Self(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }, PhantomData);

    /// Lends a slice.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }, PhantomData)
    }

    /// Lends memory that is not, or must not be, a Rust reference.
    ///
    /// # Safety
    /// `len` bytes from `base` stay mapped and readable for `'a`. Others may write them meanwhile.
    pub const unsafe fn from_raw(base: *const u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: base.cast_mut().cast(), iov_len: len }, PhantomData)
    }

    /// Address of the first byte, to be read as whoever made the piece allows.
    pub const fn as_ptr(&self) -> *const u8 {
        self.0.iov_base.cast::<u8>().cast_const()
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a piece of a frame is a length, not a collection")]
    pub const fn len(&self) -> usize {
        self.0.iov_len
    }
}

impl<'a> From<&'a IoSlice<'_>> for TxBuf<'a> {
    fn from(piece: &'a IoSlice<'_>) -> Self {
        Self::new(piece)
    }
}

impl<'a> From<&'a mut IoSliceMut<'_>> for RxBuf<'a> {
    fn from(piece: &'a mut IoSliceMut<'_>) -> Self {
        Self::new(piece)
    }
}

impl<'a> RxBuf<'a> {
    /// Lends a slice.
    pub const fn new(bytes: &'a mut [u8]) -> Self {
        Self(libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }, PhantomData)
    }

    /// Lends memory that is not, or must not be, a Rust reference.
    ///
    /// # Safety
    /// `len` bytes from `base` stay mapped and writable for `'a`, and nothing of ours holds a reference into
    /// them. Others may read or write them meanwhile.
    pub const unsafe fn from_raw(base: *mut u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: base.cast(), iov_len: len }, PhantomData)
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a piece of a frame is a length, not a collection")]
    pub const fn len(&self) -> usize {
        self.0.iov_len
    }
}

/// One frame for [`Link::send`].
#[derive(Clone, Copy)]
pub struct TxFrame<'a> {
    /// The frame, piece after piece, at most [`PIECES_MAX`] of them.
    pub bufs: &'a [TxBuf<'a>],
    /// What is still to be done to the frame. A link does it, or hands it on to a network that can.
    pub header: Header,
    /// How many segments of the frame went already, as [`Sent::segments`] said when it was offered before.
    pub segments: usize,
}

impl<'a> TxFrame<'a> {
    /// A frame to which nothing is left to be done.
    pub const fn new(bufs: &'a [TxBuf<'a>]) -> Self {
        Self { bufs, header: Header::NONE, segments: 0 }
    }

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a frame is never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        match self.bufs {
            [only] => only.len(),
            bufs => bufs.iter().fold(0, |sum: usize, piece| sum.saturating_add(piece.len())),
        }
    }

    /// Copies the frame's bytes from `offset` on; returns how many there were.
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> usize {
        self.read_near(&mut Place::default(), offset, to)
    }

    /// The same, looked for from where the last one was.
    pub(crate) fn read_near(&self, place: &mut Place, offset: usize, to: &mut [u8]) -> usize {
        let (bufs, offset) = self.find(place, offset);
        // SAFETY: whoever made the pieces promised that their bytes are readable.
        unsafe { gather(bufs.iter().map(|piece| &piece.0), offset, to) }
    }

    /// Appends a copy of the frame's bytes.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        out.reserve(self.len());
        for piece in self.bufs {
            let room = out.spare_capacity_mut();
            let count = piece.len().min(room.len());
            if count > 0 {
                let (from, to) = (piece.0.iov_base.cast::<u8>(), room.as_mut_ptr().cast::<u8>());
                // SAFETY: whoever made the piece promised that its bytes are readable; `room` is private memory of at
                // least `count` bytes. A writer on the other side of a shared mapping makes the copy hold any bytes.
                unsafe { std::ptr::copy_nonoverlapping(from, to, count) };
                let len = out.len() + count;
                // SAFETY: `count` bytes behind the old end were written just now, and the capacity includes them.
                unsafe { out.set_len(len) };
            }
        }
    }

    /// Appends the frame's bytes from `range` as pieces.
    pub fn pieces(&self, range: std::ops::Range<usize>, out: &mut Vec<TxBuf<'a>>) {
        self.pieces_near(&mut Place::default(), range, out);
    }

    /// The same, looked for from where the last ones were.
    pub(crate) fn pieces_near(
        &self,
        place: &mut Place,
        range: std::ops::Range<usize>,
        out: &mut Vec<TxBuf<'a>>,
    ) {
        let (bufs, mut skip) = self.find(place, range.start);
        let mut left = range.len();
        for piece in bufs {
            if left == 0 {
                break;
            }
            let count = piece.len().saturating_sub(skip).min(left);
            if count > 0 {
                let base = piece.0.iov_base.cast::<u8>().wrapping_add(skip);
                // SAFETY: a part of a piece, whose maker promised that it is readable for 'a.
                out.push(unsafe { TxBuf::from_raw(base, count) });
            }
            left -= count;
            skip = skip.saturating_sub(piece.len());
        }
    }

    /// The pieces from the one on that holds the byte at `offset`, and how far into that one it is.
    fn find(&self, place: &mut Place, offset: usize) -> (&'a [TxBuf<'a>], usize) {
        if offset < place.start {
            *place = Place::default();
        }
        let mut bufs = self.bufs.get(place.piece..).unwrap_or_default();
        while let [piece, rest @ ..] = bufs
            && offset - place.start >= piece.len()
        {
            (place.piece, place.start) = (place.piece + 1, place.start + piece.len());
            bufs = rest;
        }
        (bufs, offset - place.start)
    }
}

/// Which piece of a frame was used last, so that the way to the next one does not begin at the front: somebody who hands in
/// a thousand pieces to be cut into a thousand segments would have us pass by a million of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    piece: usize,
    /// Where in the frame it begins.
    start: usize,
}

/// One frame's worth of room for [`Link::recv`].
pub struct RxFrame<'a> {
    /// Where the frame goes, piece after piece. Pieces behind the first [`PIECES_MAX`] stay unused.
    pub bufs: &'a [RxBuf<'a>],
    /// Set by [`Link::recv`]: what is still to be done to the frame. On a link that was opened without
    /// [`OpenOptions::offloads`](crate::OpenOptions::offloads) always nothing. A network's word about its own frame:
    /// whoever acts on it has to check it.
    pub header: Header,
    /// Set by [`Link::recv`]: the frame's whole length in bytes. More than the room in `bufs` means that the
    /// frame was cut; such a frame must not be used. Whoever sends chooses it: it may be 0 or less than
    /// [`FRAME_MIN`], and such a frame is to be dropped.
    pub len: usize,
}

impl<'a> RxFrame<'a> {
    /// Room for a frame.
    pub const fn new(bufs: &'a [RxBuf<'a>]) -> Self {
        Self { bufs, header: Header::NONE, len: 0 }
    }

    /// Appends the pieces, at most [`PIECES_MAX`] less the one before them, to be received into beside others.
    pub(crate) fn lend_again<'b>(&'b self, out: &mut Vec<RxBuf<'b>>) {
        for piece in self.bufs.iter().take(PIECES_MAX - 1) {
            // SAFETY: the same memory with the same promise, lent on for as long as this frame is borrowed.
            out.push(unsafe { RxBuf::from_raw(piece.0.iov_base.cast(), piece.0.iov_len) });
        }
    }

    /// Puts a frame there, as far as there is room for it, and notes its whole length.
    pub fn fill(&mut self, header: Header, frame: &[u8]) {
        self.write_at(0, frame);
        self.header = header;
        self.len = frame.len();
    }

    /// Puts bytes into the frame that was received, at an offset, before what is there. What there is no room for
    /// any more is lost, as the frame's length then says.
    pub(crate) fn insert(&mut self, at: usize, bytes: &[u8]) {
        let mut behind = vec![0; self.len.saturating_sub(at).min(BIG_FRAME_MAX)];
        let count = self.read_at(at, &mut behind);
        behind.truncate(count);
        self.write_at(at, bytes);
        self.write_at(at + bytes.len(), &behind);
        self.len = self.len.saturating_add(bytes.len());
    }

    /// Copies bytes that are there from `offset` on; returns how many there were.
    pub fn read_at(&self, offset: usize, to: &mut [u8]) -> usize {
        // SAFETY: whoever made the pieces promised that they are mapped and that no reference into them is held.
        unsafe { gather(self.bufs.iter().take(PIECES_MAX).map(|piece| &piece.0), offset, to) }
    }

    /// Copies bytes there from `offset` on, as far as there is room.
    fn write_at(&mut self, mut offset: usize, bytes: &[u8]) {
        let mut rest = bytes;
        for piece in self.bufs.iter().take(PIECES_MAX) {
            let (here, behind) = rest.split_at(rest.len().min(piece.len().saturating_sub(offset)));
            if !here.is_empty() {
                let to = piece.0.iov_base.cast::<u8>().wrapping_add(offset);
                // SAFETY: whoever made the piece promised that it is writable and that no reference into it is held;
                // `offset` and the length of `here` are at most its length. Private memory never overlaps what was lent.
                unsafe { std::ptr::copy_nonoverlapping(here.as_ptr(), to, here.len()) };
            }
            rest = behind;
            offset = offset.saturating_sub(piece.len());
        }
    }
}

/// Copies the bytes from `offset` on of memory that lies in pieces; returns how many there were.
///
/// # Safety
/// The pieces are readable, and no mutable reference into them is held. Others may write them meanwhile, which makes the
/// copy hold any bytes and nothing worse.
unsafe fn gather<'a>(
    pieces: impl Iterator<Item = &'a libc::iovec>,
    mut offset: usize,
    to: &mut [u8],
) -> usize {
    let mut done = 0;
    for piece in pieces {
        let Some(room) = to.get_mut(done..).filter(|room| !room.is_empty()) else { break };
        let count = piece.iov_len.saturating_sub(offset).min(room.len());
        if count > 0 {
            let from = piece.iov_base.cast::<u8>().wrapping_add(offset);
            // SAFETY: readable, as the caller promises, and `offset + count` is at most the piece's length; `room` is
            // private memory of at least `count` bytes.
            unsafe { std::ptr::copy_nonoverlapping(from, room.as_mut_ptr(), count) };
        }
        done += count;
        offset = offset.saturating_sub(piece.iov_len);
    }
    done
}

/// What became of a batch given to [`Link::send`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames, from the front of the batch, that the link is done with: sent or dropped. Fewer than the
    /// batch has means "again": wait until the data descriptor is writable and offer the rest anew.
    pub taken: usize,
    /// How many segments of the first frame that is not among `taken` went nevertheless: what
    /// [`TxFrame::segments`] has to say when that frame is offered anew.
    pub segments: usize,
    /// How many of `taken` were dropped (for instance longer than [`Link::max_frame`]).
    pub dropped: usize,
}

/// What passed through a link, or through one peer of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames that were sent; one that was segmented counts once.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames that were not sent: at fault themselves, or for a peer that does not read.
    pub tx_dropped: u64,
    /// Frames that were received.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames that were received and dropped: shorter than [`FRAME_MIN`], or longer than there was room for.
    pub rx_dropped: u64,
}

/// What passed through a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// The link as a whole.
    pub total: Traffic,
    /// Each peer that is plugged into it now, if the link is a node, by the description that it gave.
    pub peers: Vec<(String, Traffic)>,
}

/// [`Traffic`] as it is counted, by any thread.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    tx: Way,
    rx: Way,
}

/// One direction.
#[derive(Debug, Default)]
struct Way {
    frames: AtomicU64,
    bytes: AtomicU64,
    dropped: AtomicU64,
}

impl Way {
    fn add(&self, frames: usize, bytes: usize, dropped: usize) {
        for (counter, count) in [(&self.frames, frames), (&self.bytes, bytes), (&self.dropped, dropped)] {
            if count > 0 {
                counter.fetch_add(count as u64, Relaxed);
            }
        }
    }
}

impl Meter {
    pub(crate) fn sent(&self, frames: usize, bytes: usize, dropped: usize) {
        self.tx.add(frames, bytes, dropped);
    }

    pub(crate) fn received(&self, frames: usize, bytes: usize, dropped: usize) {
        self.rx.add(frames, bytes, dropped);
    }

    pub(crate) fn read(&self) -> Traffic {
        Traffic {
            tx_frames: self.tx.frames.load(Relaxed),
            tx_bytes: self.tx.bytes.load(Relaxed),
            tx_dropped: self.tx.dropped.load(Relaxed),
            rx_frames: self.rx.frames.load(Relaxed),
            rx_bytes: self.rx.bytes.load(Relaxed),
            rx_dropped: self.rx.dropped.load(Relaxed),
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats { total: self.read(), peers: Vec::new() }
    }
}

/// The link is gone; nothing will pass through it any more.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other end closed its side.
    #[error("the network closed the connection")]
    Closed,
    /// A system call failed in a way that cannot be waited out.
    #[error("the connection failed")]
    Io(#[source] io::Error),
}

/// Who takes frames in the moment in which they come, and in memory that is somebody else's ([`Link::deliver_to`]).
pub trait Receiver: fmt::Debug + Send + Sync {
    /// Takes frames without waiting; what it has no room for it drops. Their memory is only lent for the call, and others
    /// may write it meanwhile: headers were held against their frames before, and have to be once more.
    fn deliver(&self, frames: &[TxFrame<'_>]);
}

/// An open attachment to a network. Frames are Ethernet frames without FCS.
///
/// All calls are non-blocking and may come from several threads at once.
pub trait Link: fmt::Debug + Send + Sync {
    /// Readable when a frame may be waiting, writable when one may be sent.
    fn data_fd(&self) -> BorrowedFd<'_>;

    /// Readable when [`Link::check_control`] wants to be called; the sign by which a dead network is known.
    fn control_fd(&self) -> Option<BorrowedFd<'_>>;

    /// The longest frame, in bytes, that the link carries.
    fn max_frame(&self) -> usize;

    /// Sends frames in order without waiting. One that cannot be sent at all (shorter than [`FRAME_MIN`], longer
    /// than [`Link::max_frame`], or [`BIG_FRAME_MAX`] if it is to be segmented, with a header that does not fit
    /// it, in more than [`PIECES_MAX`] pieces, or in memory that is gone) is dropped and counted, and the next one
    /// is sent.
    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError>;

    /// Receives up to `frames.len()` frames in order, without waiting, and returns how many; 0 when none is
    /// waiting. A network that died is not seen here but by [`Link::check_control`].
    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError>;

    /// Whether the headers of received frames may ask for something, and frames be longer than [`Link::max_frame`]. It
    /// changes when another program comes to the other end of a cable; frames that were received before or at the same
    /// time may still be of the other kind.
    fn offloads(&self) -> bool {
        true
    }

    /// What passed through the link since it was opened.
    fn stats(&self) -> Stats;

    /// To be called when the control descriptor is readable: an error says that the link is dead.
    fn check_control(&self) -> Result<(), LinkError>;

    /// Another port on the same network, if this process serves that network and its ports are all alike: that of a hub
    /// or a switch. `offloads`: as when a link is opened. The network lives until the last of its ports is dropped.
    fn another(&self, _offloads: bool) -> Option<Arc<dyn Link>> {
        None
    }

    /// Has frames given to `receiver` from now on, by whoever brings them and in that one's thread, instead of leaving
    /// them for [`Link::recv`]. True: the link does that. What came before is still to be received.
    fn deliver_to(&self, _receiver: &Arc<dyn Receiver>) -> bool {
        false
    }

    /// The connected socket whose datagrams are the link's frames and nothing else, if it is as simple as that. Whoever
    /// moves one frame at a time may call `send(2)` and `recv(2)` on it, blocking or not as he sets it; what
    /// passes like that is not in [`Link::stats`].
    fn plain_socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl dyn Link {
    /// Sends one complete frame; false: not now, wait until the data descriptor is writable.
    pub fn send_one(&self, frame: &[u8]) -> Result<bool, LinkError> {
        Ok(self.send(&[TxFrame::new(&[TxBuf::new(frame)])])?.taken == 1)
    }

    /// Receives one frame and returns its length, `None` when none is waiting. What is no frame and what is longer
    /// than `room` is passed over; after 64 of that in a row nothing is returned, and there may be more to receive.
    pub fn recv_one(&self, room: &mut [u8]) -> Result<Option<usize>, LinkError> {
        let len = room.len();
        let bufs = [RxBuf::new(room)];
        let mut frame = [RxFrame::new(&bufs)];
        for _ in 0..PASSED_MAX {
            let got = self.recv(&mut frame)?;
            let [RxFrame { len: whole, .. }] = &frame;
            match *whole {
                _ if got == 0 => return Ok(None),
                whole if (FRAME_MIN..=len).contains(&whole) => return Ok(Some(whole)),
                _ => {}
            }
        }
        Ok(None)
    }
}
