//! What a link is: one attachment to a network that frames go into and come out of.
//!
//! The buffers that a link sends from and receives into may lie in memory that another process writes at
//! the same time (a guest's RAM), so they are never Rust slices: [`TxBuf`] and [`RxBuf`] are an address and
//! a length that only the kernel dereferences. Safe code makes them from slices; code that lends guest
//! memory makes them with the two unsafe constructors.

#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;

/// The longest frame that VDE programs exchange: 9216 bytes of payload, header, one VLAN tag (VDE fact 2.7).
pub const FRAME_MAX: usize = 9216 + 14 + 4;

/// The shortest thing that is a frame: two addresses and a type.
pub const FRAME_MIN: usize = 14;

/// How many pieces one frame may consist of (the kernel's limit).
pub const PIECES_MAX: usize = 1024;

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
// SAFETY: as above, for a mutable slice.
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

    /// Length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a piece of a frame is a length, not a collection")]
    pub const fn len(&self) -> usize {
        self.0.iov_len
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

/// One frame's worth of room for [`Link::recv`].
pub struct RxFrame<'a> {
    /// Where the frame goes, piece after piece. Pieces behind the first [`PIECES_MAX`] stay unused.
    pub bufs: &'a [RxBuf<'a>],
    /// Set by [`Link::recv`]: the frame's whole length in bytes. More than the room in `bufs` means that the
    /// frame was cut; such a frame must not be used. Whoever sends chooses it: it may be 0 or less than
    /// [`FRAME_MIN`], and such a frame is to be dropped.
    pub len: usize,
}

/// What became of a batch given to [`Link::send`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames, from the front of the batch, that the link is done with: sent or dropped. Fewer than the
    /// batch has means "again": wait until the data descriptor is writable and offer the rest anew.
    pub taken: usize,
    /// How many of `taken` were dropped (for instance longer than [`Link::max_frame`]).
    pub dropped: usize,
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

    /// Sends frames in order, each given as its pieces, without waiting. One that cannot be sent at all
    /// (shorter than [`FRAME_MIN`], longer than [`Link::max_frame`], in more than [`PIECES_MAX`] pieces, or in
    /// memory that is gone) is dropped and counted, and the next one is sent.
    fn send(&self, frames: &[&[TxBuf<'_>]]) -> Result<Sent, LinkError>;

    /// Receives up to `frames.len()` frames in order, without waiting, and returns how many; 0 when none is
    /// waiting. A network that died is not seen here but by [`Link::check_control`].
    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError>;

    /// To be called when the control descriptor is readable: an error says that the link is dead.
    fn check_control(&self) -> Result<(), LinkError>;
}
