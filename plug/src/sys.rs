//! The system calls that rustix does not have: batched sends and receives of datagrams, and the user and
//! group database.
//!
//! Invariants that the SAFETY comments cite:
//! - A: `TxBuf` and `RxBuf` have the layout of `struct iovec`, and whoever made one promised that the kernel
//!   may read or write what it points to for its life.
//! - B: a `msghdr` made by `header` points to a caller's slice of pieces that outlives the call it is for.
//! - C: the fields of a `msghdr` for what comes beside a datagram are empty, or the bytes of a `Control` or a `PeerName` of the
//!   caller's that outlive the call.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::net::RecvFlags;

use crate::link::{PIECES_MAX, RxBuf, TxBuf};

/// Frames per system call. The kernel's cost is per datagram; a larger batch would gain nothing and make the
/// headers (64 bytes each) fall out of the first-level cache.
pub(crate) const BATCH: usize = 64;

type Headers = [MaybeUninit<libc::mmsghdr>; BATCH];

/// Room for what the kernel says beside a datagram, and how much it said.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(crate) struct Control {
    bytes: [u8; 64],
    len: usize,
}

impl Control {
    /// Room in which nothing is.
    pub(crate) const EMPTY: Self = Self { bytes: [0; 64], len: 0 };

    /// What the kernel said.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The name that a peer's socket was bound to, an abstract one behind a NUL; empty if it has none, or a longer one than
/// programs of this project give to sockets that are looked at.
#[derive(Clone, Copy)]
pub(crate) struct PeerName {
    address: [u8; Self::ROOM as usize],
    len: libc::socklen_t,
}

impl PeerName {
    const ROOM: libc::socklen_t = 64;

    /// No name.
    pub(crate) const EMPTY: Self = Self { address: [0; Self::ROOM as usize], len: 0 };

    /// The name.
    pub(crate) fn bytes(&self) -> &[u8] {
        let name = self.address.get(size_of::<libc::sa_family_t>()..self.len as usize).unwrap_or_default();
        name.strip_suffix(b"\0").unwrap_or(name)
    }
}

/// The name of the socket that a local one is connected to.
pub(crate) fn peer_name(fd: BorrowedFd<'_>) -> PeerName {
    let mut name = PeerName { len: PeerName::ROOM, ..PeerName::EMPTY };
    // SAFETY: `len` is how many bytes there are at the address, of which the kernel writes as many at most.
    let result =
        unsafe { libc::getpeername(fd.as_raw_fd(), name.address.as_mut_ptr().cast(), &raw mut name.len) };
    if result == 0 { name } else { PeerName::EMPTY }
}

/// Sends the frames, at most [`BATCH`], in order, without waiting; returns how many went.
pub(crate) fn send_batch<'a>(
    fd: BorrowedFd<'_>,
    frames: impl Iterator<Item = &'a [TxBuf<'a>]>,
) -> io::Result<usize> {
    let mut headers: Headers = [const { MaybeUninit::uninit() }; BATCH];
    let mut count = 0;
    for (slot, pieces) in headers.iter_mut().zip(frames) {
        slot.write(header(pieces.as_ptr().cast::<libc::iovec>(), pieces.len()));
        #[cfg(target_arch = "x86_64")]
        pieces.iter().for_each(prefetch);
        count += 1;
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` headers are initialised; A and B hold for each; the kernel only reads the
    // pieces, and of the headers writes `msg_len` alone.
    let sent = unsafe { libc::sendmmsg(fd.as_raw_fd(), headers.as_mut_ptr().cast(), count, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives into the rooms, at most [`BATCH`], without waiting; says how long the datagrams were, whole, and returns
/// how many came. Of the first ones it says also what the kernel says beside them and who sent them, as far as there is
/// room for that.
pub(crate) fn recv_batch<'a>(
    fd: BorrowedFd<'_>,
    rooms: impl Iterator<Item = &'a [RxBuf<'a>]> + Clone,
    lens: &mut [usize; BATCH],
    controls: &mut [Control],
    senders: &mut [PeerName],
    more: RecvFlags,
) -> io::Result<usize> {
    let mut headers: Headers = [const { MaybeUninit::uninit() }; BATCH];
    let mut count = 0;
    let (mut control_rooms, mut sender_rooms) = (controls.iter_mut(), senders.iter_mut());
    for (slot, room) in headers.iter_mut().zip(rooms.clone()) {
        let header = slot.write(header(room.as_ptr().cast::<libc::iovec>(), room.len().min(PIECES_MAX)));
        if let Some(control) = control_rooms.next() {
            header.msg_hdr.msg_control = control.bytes.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = control.bytes.len() as _;
        }
        if let Some(sender) = sender_rooms.next() {
            header.msg_hdr.msg_name = sender.address.as_mut_ptr().cast();
            header.msg_hdr.msg_namelen = PeerName::ROOM;
        }
        count += 1;
    }
    // MSG_TRUNC makes the kernel report whole lengths, also of datagrams that did not fit.
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC | more.bits().cast_signed();
    // SAFETY: the first `count` headers are initialised; A, B and C hold for each, and the pieces are lent for
    // writing; no time-out is passed.
    let got = unsafe {
        libc::recvmmsg(fd.as_raw_fd(), headers.as_mut_ptr().cast(), count, flags, std::ptr::null_mut())
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let (mut controls, mut senders) = (controls.iter_mut(), senders.iter_mut());
    for ((slot, room), len) in headers.iter().zip(rooms).zip(lens).take(got) {
        // SAFETY: `got` is at most `count`, the number of initialised headers.
        let header = unsafe { slot.assume_init_ref() };
        *len = header.msg_len as usize;
        if let Some(control) = controls.next() {
            control.len = header.msg_hdr.msg_controllen as _;
        }
        if let Some(sender) = senders.next() {
            sender.len = header.msg_hdr.msg_namelen;
        }
        if room.len() > PIECES_MAX {
            let used: usize = room.iter().take(PIECES_MAX).map(|piece| piece.len()).sum();
            // In pieces that were not used there is no room.
            *len = if *len > used { usize::MAX } else { *len };
        }
    }
    Ok(got)
}

/// Asks the cache for the first bytes of a piece, which the kernel is about to copy. Those of a guest lie in the cache of the
/// core that it ran on, and what is asked for together comes together: full frames out of a guest take 100 ns less each.
#[cfg(target_arch = "x86_64")]
#[inline]
fn prefetch(piece: &TxBuf<'_>) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

    /// As many as a frame of usual length has; by then the cache sees by itself what follows.
    const MOST: usize = 1536;
    const LINE: usize = 64;
    for at in (0..piece.len().min(MOST)).step_by(LINE) {
        // SAFETY: nothing is read as far as the program can tell; any address may be asked for.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(piece.as_ptr().wrapping_add(at).cast()) };
    }
}

/// A header for one datagram. The pointer is to pieces that the kernel does not change (the C type is only
/// careless about const).
fn header(pieces: *const libc::iovec, len: usize) -> libc::mmsghdr {
    // SAFETY: all fields are integers and pointers, for which zero is a value.
    let mut header: libc::mmsghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_hdr.msg_iov = pieces.cast_mut();
    header.msg_hdr.msg_iovlen = len as _;
    header
}

/// A descriptor of our own for what is open under a number that somebody named.
pub(crate) fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: any number may be asked for; no memory is involved.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: made just above, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Login name of a user.
pub(crate) fn user_name(uid: u32) -> Option<String> {
    look_up(|entry: &mut libc::passwd, buffer, found| {
        // SAFETY: all pointers are to live memory of the lengths given.
        unsafe { libc::getpwuid_r(uid, entry, buffer.as_mut_ptr().cast(), buffer.len(), found) }
    })
    // SAFETY: an entry that was found holds a name that ends in NUL, in the buffer that lives with it.
    .map(|(entry, _buffer)| unsafe { CStr::from_ptr(entry.pw_name) }.to_string_lossy().into_owned())
}

/// Name of a group.
pub(crate) fn group_name(gid: u32) -> Option<String> {
    look_up(|entry: &mut libc::group, buffer, found| {
        // SAFETY: all pointers are to live memory of the lengths given.
        unsafe { libc::getgrgid_r(gid, entry, buffer.as_mut_ptr().cast(), buffer.len(), found) }
    })
    // SAFETY: as in `user_name`.
    .map(|(entry, _buffer)| unsafe { CStr::from_ptr(entry.gr_name) }.to_string_lossy().into_owned())
}

/// Number of a group.
pub(crate) fn group_id(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    look_up(|entry: &mut libc::group, buffer, found| {
        // SAFETY: all pointers are to live memory of the lengths given, and the name ends in NUL.
        unsafe { libc::getgrnam_r(name.as_ptr(), entry, buffer.as_mut_ptr().cast(), buffer.len(), found) }
    })
    .map(|(entry, _buffer)| entry.gr_gid)
}

/// Asks one of the re-entrant functions of the user database, with a buffer that grows until it suffices, and
/// returns the entry with the buffer that it points into.
fn look_up<T>(mut ask: impl FnMut(&mut T, &mut [u8], *mut *mut T) -> i32) -> Option<(T, Vec<u8>)>
where
    T: Entry,
{
    let mut buffer = vec![0; 1024];
    // A group may list thousands of members; a megabyte is where we stop believing it.
    while buffer.len() <= 1 << 20 {
        let mut entry = T::empty();
        let mut found = std::ptr::null_mut();
        match ask(&mut entry, &mut buffer, &raw mut found) {
            0 if found.is_null() => return None,
            0 => return Some((entry, buffer)),
            libc::ERANGE => buffer.resize(buffer.len() * 4, 0),
            libc::EINTR => {}
            _ => return None,
        }
    }
    None
}

/// An entry of the user database, to be filled in.
trait Entry {
    fn empty() -> Self;
}

impl Entry for libc::passwd {
    fn empty() -> Self {
        // SAFETY: all fields are integers and pointers, for which zero is a value.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }
}

impl Entry for libc::group {
    fn empty() -> Self {
        // SAFETY: all fields are integers and pointers, for which zero is a value.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_group_database_knows_root() {
        assert_eq!(user_name(0).as_deref(), Some("root"));
        assert_eq!(group_name(0).as_deref(), Some("root"));
        assert_eq!(group_id("root"), Some(0));
        assert_eq!(group_id("no such group"), None);
        assert_eq!(group_id("a\0b"), None);
        assert_eq!(user_name(4_000_000_000), None);
    }
}
