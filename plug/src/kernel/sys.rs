//! The system calls of taps and packet sockets that rustix does not have.
//!
//! Invariants that the SAFETY comments cite:
//! - A: `TxBuf` and `RxBuf` have the layout of `struct iovec`, and whoever made one promised that the kernel may read
//!   or write what it points to for its life.
//! - B: the structures given to the kernel are C's own, all of integers and arrays of them, and are given by a pointer
//!   to a live one with its size.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::link::{RxBuf, TxBuf};

/// A setting of a tap: an `ioctl` that takes a pointer to a number, or, where the kernel says so, the number itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum TapSetting {
    /// Length of the header before each frame.
    HeaderLen(c_int),
    /// Whether the header is little endian.
    HeaderLittle(c_int),
    /// What the kernel may leave to be done to frames, of `TUN_F_`.
    Offloads(libc::c_uint),
    /// Whether the interface stays when its last descriptor is closed.
    Persist(bool),
}

/// Makes a descriptor of `/dev/net/tun` an end of the interface of this name, or of a new one whose name the kernel
/// chooses if it is empty. Returns the name.
pub(super) fn tap_attach(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<String> {
    // SAFETY: all fields are integers, arrays and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from.cast_signed() as _;
    }
    // The kernel's field has 16 bits, which all these flags fit.
    request.ifr_ifru.ifru_flags = i16::from_ne_bytes(
        u16::try_from(flags).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?.to_ne_bytes(),
    );
    // SAFETY: B; the kernel reads the structure and writes the name back.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(result)?;
    let name =
        request.ifr_name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0).collect();
    String::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Changes a setting of the tap that the descriptor is attached to.
pub(super) fn tap_set(fd: BorrowedFd<'_>, setting: TapSetting) -> io::Result<()> {
    let fd = fd.as_raw_fd();
    check(match setting {
        // SAFETY: B; the kernel reads one int.
        TapSetting::HeaderLen(len) => unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const len) },
        // SAFETY: B; the kernel reads one int.
        TapSetting::HeaderLittle(little) => unsafe { libc::ioctl(fd, libc::TUNSETVNETLE, &raw const little) },
        // SAFETY: these two take the number itself.
        TapSetting::Offloads(mask) => unsafe {
            libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(mask))
        },
        // SAFETY: as above.
        TapSetting::Persist(on) => unsafe { libc::ioctl(fd, libc::TUNSETPERSIST, libc::c_ulong::from(on)) },
    })
}

/// Reads one frame without waiting, if the descriptor does not; returns how many bytes there were of it in the room.
pub(super) fn read_frame(fd: BorrowedFd<'_>, room: &[RxBuf<'_>]) -> io::Result<usize> {
    let count = c_int::try_from(room.len()).unwrap_or(c_int::MAX);
    // SAFETY: A; `count` is at most the number of pieces.
    let got = unsafe { libc::readv(fd.as_raw_fd(), room.as_ptr().cast(), count) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Writes one frame, likewise.
pub(super) fn write_frame(fd: BorrowedFd<'_>, pieces: &[TxBuf<'_>]) -> io::Result<usize> {
    let count = c_int::try_from(pieces.len()).unwrap_or(c_int::MAX);
    // SAFETY: A; `count` is at most the number of pieces, which the kernel only reads.
    let sent = unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr().cast(), count) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Sets a number among the options of packet sockets.
pub(super) fn packet_set(fd: BorrowedFd<'_>, option: c_int, value: c_int) -> io::Result<()> {
    set(fd, option, &value)
}

/// Has the interface hand over frames to whatever address while the socket lives.
pub(super) fn packet_promiscuous(fd: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let membership = libc::packet_mreq {
        mr_ifindex: signed(index)?,
        mr_type: libc::c_ushort::try_from(libc::PACKET_MR_PROMISC).unwrap_or_default(),
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set(fd, libc::PACKET_ADD_MEMBERSHIP, &membership)
}

/// Binds a packet socket to an interface and to all protocols: from now on frames come.
pub(super) fn packet_bind(fd: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    // SAFETY: all fields are integers and an array of them, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
    address.sll_ifindex = signed(index)?;
    // SAFETY: B.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len_of::<libc::sockaddr_ll>()) })
}

/// Whether the interface that a packet socket was bound to still exists: the kernel undoes the binding when it goes.
pub(super) fn packet_is_bound(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: all fields are integers and an array of them, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut len = len_of::<libc::sockaddr_ll>();
    // SAFETY: B; the kernel writes at most `len` bytes of the address, and the length.
    check(unsafe { libc::getsockname(fd.as_raw_fd(), (&raw mut address).cast(), &raw mut len) })?;
    Ok(address.sll_ifindex > 0)
}

/// How many frames a packet socket had no room for since this was last asked.
pub(super) fn packet_lost(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = len_of::<libc::tpacket_stats>();
    // SAFETY: B; the kernel writes at most `len` bytes of the statistics, and the length.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut len,
        )
    };
    check(result).map(|()| statistics.tp_drops)
}

/// Whether a descriptor is a network namespace.
pub(super) fn is_net_namespace(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: this one takes no argument; a file of another kind refuses it.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), libc::NS_GET_NSTYPE) };
    kind == libc::CLONE_NEWNET
}

fn set<T>(fd: BorrowedFd<'_>, option: c_int, value: &T) -> io::Result<()> {
    let value: *const T = value;
    // SAFETY: B.
    let result = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, option, value.cast::<c_void>(), len_of::<T>())
    };
    check(result)
}

fn len_of<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default()
}

fn signed(index: u32) -> io::Result<c_int> {
    c_int::try_from(index).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
