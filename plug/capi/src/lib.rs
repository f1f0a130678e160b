//! `libvdeplug.so.2`: the C interface to [`vdeplug`], which existing VDE programs load instead of the original.
//!
//! Theory of operation. A `VDECONN *` is a boxed `conn::Conn`. Most of the time it is a port of a switch, whose frames
//! are the datagrams of one socket: then `vde_send` and `vde_recv` are `send(2)` and `recv(2)` on it and nothing
//! more, as in the original, and they block as the descriptor does. On any other link they go through
//! [`vdeplug::Link`], which never blocks, and the waiting is done here (module `conn`).
//!
//! ```text
//! C program ── extern "C" (this file) ── border: no panic, errno ──┬─ open ─── vdeplug::open
//!                                                                  ├─ conn ─┬─ send(2), recv(2)
//!                                                                  │        └─ vdeplug::Link
//!                                                                  └─ stream
//! ```
//!
//! What holds for every call (VDE facts 3.5, 3.7):
//! - Failure is -1 or NULL with the reason in `errno`; a NULL handle is `EBADF`. Nothing is ever written to the
//!   standard streams.
//! - No panic crosses the border. It ends the call with `EIO`; the program goes on.
//! - Everything but `vde_close` may be called by several threads at once, and by a process that shares memory and
//!   descriptors with the one that opened. After a fork, `vde_close` on one side leaves the other side's plug alone.
//! - On the way of a frame through a switch's port nothing is allocated, locked or kept per thread, so a helper that
//!   runs on a small stack and on its creator's thread-local storage may send and receive.
//! - A thread may be cancelled (`pthread_cancel`) where it waits. That is an unwinding of its stack, so the
//!   functions that wait have nothing to clean up and are declared to let it through ("C-unwind").

mod border;
mod conn;
mod open;
mod stream;
mod sys;
mod watch;

use std::ffi::{c_char, c_int, c_uchar, c_void};

use border::{fail, guarded, uninterrupted};
use conn::Conn;
use stream::{ErrorCall, FrameCall, Stream};

pub use open::OpenArgs;

/// Generation of the library; plug-ins of the original are found beside the library that holds it.
#[unsafe(no_mangle)]
pub static __vde_version_tag: u64 = 4;

/// Opens a connection; NULL and `errno` if that cannot be (`vdeplug::OpenError::errno` lists the numbers).
///
/// # Safety
/// `locator` and `description` are NULL or end in NUL; `args` is NULL or points to a `struct vde_open_args`.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vde_open_real(
    locator: *const c_char,
    description: *const c_char,
    interface_version: c_int,
    args: *const OpenArgs,
) -> *mut Conn {
    let opened = guarded(|| {
        // SAFETY: as promised by the caller.
        let request = unsafe { open::Request::read(locator, description, interface_version, args) }?;
        request.open().map(Box::new)
    });
    match opened {
        Ok(conn) => Box::into_raw(conn),
        Err(errno) => {
            sys::set_errno(errno);
            std::ptr::null_mut()
        }
    }
}

/// Receives one frame and returns its length, cut to `len`; 1 if it woke up for something else, with the first byte of
/// the buffer zeroed; 0 at the end of the connection; -1 and `errno`. Waits for a frame unless the data
/// descriptor is non-blocking (`EAGAIN`). No flag has a meaning.
///
/// # Safety
/// `conn` is NULL or a living handle; `len` bytes from `buf` are writable.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vde_recv(
    conn: *const Conn,
    buf: *mut c_void,
    len: usize,
    _flags: c_int,
) -> isize {
    // SAFETY: as promised by the caller.
    match unsafe { conn.as_ref() } {
        // SAFETY: as promised by the caller.
        Some(conn) => unsafe { conn.recv(buf, len) },
        None => fail(libc::EBADF),
    }
}

/// Sends one frame and returns its length, also if it is too short to be one and goes nowhere; -1 and `errno`. Waits for
/// room unless the data descriptor is non-blocking (`EAGAIN`). No flag has a meaning.
///
/// # Safety
/// `conn` is NULL or a living handle; `len` bytes from `buf` are readable.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vde_send(
    conn: *const Conn,
    buf: *const c_void,
    len: usize,
    _flags: c_int,
) -> isize {
    // SAFETY: as promised by the caller.
    match unsafe { conn.as_ref() } {
        // SAFETY: as promised by the caller.
        Some(conn) => unsafe { conn.send(buf, len) },
        None => fail(libc::EBADF),
    }
}

/// The descriptor that is readable when [`vde_recv`] has something to do; the same for the handle's whole life.
///
/// # Safety
/// `conn` is NULL or a living handle.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vde_datafd(conn: *const Conn) -> c_int {
    // SAFETY: as promised by the caller.
    match unsafe { conn.as_ref() } {
        Some(conn) => conn.data_fd(),
        None => fail(libc::EBADF),
    }
}

/// The descriptor that is readable when the connection has ended, and silent before.
///
/// # Safety
/// `conn` is NULL or a living handle.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vde_ctlfd(conn: *const Conn) -> c_int {
    // SAFETY: as promised by the caller.
    match unsafe { conn.as_ref() } {
        Some(conn) => conn.control_fd(),
        None => fail(libc::EBADF),
    }
}

/// Ends the connection and frees the handle; always 0.
///
/// # Safety
/// `conn` is NULL or a living handle, which nobody uses at the same time or later.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vde_close(conn: *mut Conn) -> c_int {
    if conn.is_null() {
        return fail(libc::EBADF);
    }
    // SAFETY: it is a living handle, so it came from `Box::into_raw` and was not given back since.
    let conn = unsafe { Box::from_raw(conn) };
    match uninterrupted(|| {
        conn.close();
        Ok(())
    }) {
        Ok(()) => 0,
        Err(errno) => fail(errno),
    }
}

/// Makes a converter between frames and a stream of bytes: 2 bytes of length, the highest first, and the frame.
/// Frames that were read out of the stream go to `frame_call`, and lengths that no frame can have are told to
/// `error_call`, unless that is NULL.
///
/// # Safety
/// Both functions, if not NULL, may be called with `opaque` for the life of the converter.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vdestream_open(
    opaque: *mut c_void,
    fdout: c_int,
    frame_call: Option<FrameCall>,
    error_call: Option<ErrorCall>,
) -> *mut Stream {
    match guarded(|| Ok(Box::new(Stream::new(opaque, fdout, frame_call, error_call)))) {
        Ok(stream) => Box::into_raw(stream),
        Err(errno) => {
            sys::set_errno(errno);
            std::ptr::null_mut()
        }
    }
}

/// Writes a frame into the stream and returns how many bytes that took; 0 if it is too long; -1 and `errno`.
///
/// # Safety
/// `stream` is NULL or a living converter; `len` bytes from `buf` are readable.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vdestream_send(
    stream: *const Stream,
    buf: *const c_void,
    len: usize,
) -> isize {
    // SAFETY: as promised by the caller.
    match unsafe { stream.as_ref() } {
        // SAFETY: as promised by the caller.
        Some(stream) => unsafe { stream.send(buf, len) },
        None => fail(libc::EBADF),
    }
}

/// Takes the next bytes that were read from the stream and delivers the frames that they complete. A length that no memory
/// has, as the -1 of a read that failed would be, is `EINVAL`.
///
/// # Safety
/// `stream` is NULL or a living converter that no other thread feeds now; `len` bytes from `buf` are readable, and
/// writable if the program's own function writes to frames.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vdestream_recv(stream: *const Stream, buf: *mut c_uchar, len: usize) {
    // SAFETY: as promised by the caller.
    match unsafe { stream.as_ref() } {
        Some(_) if isize::try_from(len).is_err() => sys::set_errno(libc::EINVAL),
        // SAFETY: as promised by the caller.
        Some(stream) if !buf.is_null() => unsafe { stream.feed(buf, len) },
        Some(_) => {}
        None => sys::set_errno(libc::EBADF),
    }
}

/// Frees a converter; its descriptor stays open.
///
/// # Safety
/// `stream` is NULL or a living converter, which nobody uses at the same time or later.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn vdestream_close(stream: *mut Stream) {
    if !stream.is_null() {
        // SAFETY: it is living, so it came from `Box::into_raw` and was not given back since.
        drop(unsafe { Box::from_raw(stream) });
    }
}
