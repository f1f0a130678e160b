//! System calls by way of the C library, whose waiting functions are the points where a thread can be cancelled.
//! The bindings of the `libc` crate say that these never unwind; here they are declared as what they are.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// `PTHREAD_CANCEL_DISABLE`.
const CANCEL_DISABLE: c_int = 1;

unsafe extern "C-unwind" {
    fn recv(fd: c_int, buf: *mut c_void, len: usize, flags: c_int) -> isize;
    fn send(fd: c_int, buf: *const c_void, len: usize, flags: c_int) -> isize;
    fn writev(fd: c_int, pieces: *const libc::iovec, count: c_int) -> isize;
    fn poll(fds: *mut libc::pollfd, count: libc::nfds_t, timeout: c_int) -> c_int;
}

unsafe extern "C" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

/// Receives a datagram and returns its whole length, which may be more than `len`; -1 and `errno`.
///
/// # Safety
/// `len` bytes from `buf` are writable, or are not, which the kernel finds out (`EFAULT`).
#[inline]
pub(crate) unsafe fn receive(fd: c_int, buf: *mut c_void, len: usize) -> isize {
    // SAFETY: the kernel checks the descriptor and, as it writes, the memory, which the caller gave to be written.
    unsafe { recv(fd, buf, len, libc::MSG_TRUNC) }
}

/// Sends a datagram and returns its length; -1 and `errno`.
///
/// # Safety
/// `len` bytes from `buf` are readable, or are not, which the kernel finds out (`EFAULT`).
#[inline]
pub(crate) unsafe fn transmit(fd: c_int, buf: *const c_void, len: usize) -> isize {
    // SAFETY: the kernel checks the descriptor and, as it reads, the memory.
    unsafe { send(fd, buf, len, libc::MSG_NOSIGNAL) }
}

/// Writes pieces of memory to a stream and returns how many bytes went; -1 and `errno`.
///
/// # Safety
/// The pieces are readable, or are not, which the kernel finds out (`EFAULT`).
pub(crate) unsafe fn write_pieces(fd: c_int, pieces: &[libc::iovec; 2]) -> isize {
    // SAFETY: the kernel checks the descriptor and, as it reads, the memory; there are two pieces.
    unsafe { writev(fd, pieces.as_ptr(), 2) }
}

/// Waits until one of the events is there or the descriptor is at its end, so many milliseconds or for ever; whether that came.
/// An `Err` is `errno`; a signal is one.
pub(crate) fn wait(fd: c_int, events: i16, limit: Option<u16>) -> Result<bool, i32> {
    let mut fds = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: one structure, which lives until the call returns.
    match unsafe { poll(&raw mut fds, 1, limit.map_or(-1, c_int::from)) } {
        -1 => Err(errno()),
        ready => Ok(ready > 0),
    }
}

/// Whether the descriptor is to be used without waiting.
pub(crate) fn is_nonblocking(fd: c_int) -> bool {
    // SAFETY: reads a property of a descriptor, whatever that is.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags != -1 && flags & libc::O_NONBLOCK != 0
}

/// The forks by the C library's own function that this memory has seen: what starts programs without it leaves no copy of
/// a descriptor that is closed on exec, and a helper that shares this memory (`CLONE_VM`) is no other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forks {
    /// How often it was copied.
    pub(crate) as_parent: u32,
    /// How often it became a copy.
    pub(crate) as_child: u32,
}

/// Counts from the first call on.
pub(crate) fn forks() -> Forks {
    static ASKED: Once = Once::new();
    static AS_PARENT: AtomicU32 = AtomicU32::new(0);
    static AS_CHILD: AtomicU32 = AtomicU32::new(0);
    extern "C" fn parent() {
        AS_PARENT.fetch_add(1, Relaxed);
    }
    extern "C" fn child() {
        AS_CHILD.fetch_add(1, Relaxed);
    }
    // SAFETY: the functions touch nothing but their counters, and their code stays loaded (`-z nodelete`). It fails only for
    // want of memory; then forks go unseen.
    ASKED.call_once(|| _ = unsafe { libc::pthread_atfork(None, Some(parent), Some(child)) });
    Forks { as_parent: AS_PARENT.load(Relaxed), as_child: AS_CHILD.load(Relaxed) }
}

/// Closes a descriptor by its number.
///
/// # Safety
/// Nobody uses the number as that of this descriptor any more.
pub(crate) unsafe fn close(fd: c_int) {
    // SAFETY: as promised by the caller. There is nothing to be done about an error.
    unsafe { libc::close(fd) };
}

/// Lets no cancellation of this thread happen; returns what is to be restored.
pub(crate) fn hold_cancellation() -> c_int {
    let mut old = 0;
    // SAFETY: writes the thread's own state and the local variable.
    unsafe { pthread_setcancelstate(CANCEL_DISABLE, &raw mut old) };
    old
}

/// Ends [`hold_cancellation`].
pub(crate) fn restore_cancellation(old: c_int) {
    let mut ignored = 0;
    // SAFETY: writes the thread's own state and the local variable. A cancellation that came meanwhile happens at the next
    // function that waits, not here, as deferred ones do.
    unsafe { pthread_setcancelstate(old, &raw mut ignored) };
}

/// Lets no signal come to this thread but those by which it is told of its own faults; returns what is to be restored.
pub(crate) fn hold_signals() -> libc::sigset_t {
    let mut all = MaybeUninit::uninit();
    // SAFETY: fills the set, and cannot fail.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: it was filled.
    let mut all: libc::sigset_t = unsafe { all.assume_init() };
    for fault in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
        // SAFETY: changes the local variable; these are signals.
        unsafe { libc::sigdelset(&raw mut all, fault) };
    }
    let mut old = all;
    // SAFETY: reads the one local variable and writes the other; it cannot fail.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut old) };
    old
}

/// Ends [`hold_signals`]; what came meanwhile is delivered before it returns.
pub(crate) fn restore_signals(old: &libc::sigset_t) {
    // SAFETY: reads the set; it cannot fail.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old, std::ptr::null_mut()) };
}

pub(crate) fn errno() -> i32 {
    // SAFETY: the C library's own place for this thread, always there.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { *place }
}

pub(crate) fn set_errno(errno: i32) {
    // SAFETY: the C library's own place for this thread, always there.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { *place = errno };
}
