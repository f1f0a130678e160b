//! Signals as a descriptor, and descriptors that were inherited by number: all unsafe code of this crate.
//!
//! Invariant I: a number on the command line is turned into an owned descriptor once, and before this process has opened
//! any descriptor of its own that might have that number.
//! Invariant II: until what was inherited is in use by the server, this process has one thread.

use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::process::Pid;

/// The signals that end us in order.
const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Blocks the ending signals for this thread, and for those it will start, and returns the descriptor that becomes readable
/// when one comes.
pub fn take_signals() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the whole set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in ENDING {
        // SAFETY: the set was initialised above; the signal numbers are valid.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: an initialised set, and no old one is asked for.
    check(unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut()) })?;
    // SAFETY: as above; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has children stay until they are waited for, also where whoever started us did not want to hear of his.
pub fn hear_of_children() -> io::Result<()> {
    // SAFETY: a valid signal, and no handler.
    match unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Goes on as two processes: gives the number of the other one, or `None` in that.
pub fn fork(_inherited: &Inherited) -> io::Result<Option<Pid>> {
    // SAFETY: this process has one thread (II): nothing in the memory of the child waits for another one.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Pid::from_raw(child)),
    }
}

/// `pthread_*` functions return the error number itself.
fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

/// Descriptors that whoever started us opened for us and named on the command line.
#[derive(Debug)]
pub struct Inherited(BTreeMap<RawFd, OwnedFd>);

impl Inherited {
    /// Takes over those of `numbers` that are open; they are not passed on to programs of ours.
    ///
    /// # Safety
    /// To be called once, before this process has opened anything: then no descriptor above 2 is in use by it. Whoever calls
    /// it starts no thread before all has been handed to [`run`](crate::run).
    pub unsafe fn claim(numbers: &[RawFd]) -> Self {
        let mut claimed = BTreeMap::new();
        for fd in numbers.iter().copied().filter(|fd| *fd > 2) {
            // SAFETY: only used to ask whether it is open.
            let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
            let open =
                fcntl_getfd(borrowed).and_then(|flags| fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC));
            if open.is_ok() && !claimed.contains_key(&fd) {
                // SAFETY: it is open, nothing else here uses it (I, the caller's promise), and it is claimed once.
                claimed.insert(fd, unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        Self(claimed)
    }

    /// Closes everything else that whoever started us had open, besides the standard ones.
    ///
    /// # Safety
    /// As of [`claim`](Self::claim): nothing above 2 but what was claimed is in use by this process.
    pub unsafe fn close_others(&self) {
        let mut first: RawFd = 3;
        for end in self.0.keys().copied().chain([RawFd::MAX]) {
            if first < end {
                // SAFETY: none of them is in use (the caller's promise). On a kernel without this call they stay open.
                unsafe { libc::syscall(libc::SYS_close_range, first, end - 1, 0) };
            }
            first = end.saturating_add(1);
        }
    }

    /// One more, under the number that it has.
    pub fn add(&mut self, fd: OwnedFd) {
        self.0.insert(fd.as_raw_fd(), fd);
    }

    /// One that was not handed out.
    pub fn get(&self, fd: RawFd) -> Option<BorrowedFd<'_>> {
        self.0.get(&fd).map(AsFd::as_fd)
    }

    /// Hands one out, once.
    pub fn take(&mut self, fd: RawFd) -> io::Result<OwnedFd> {
        let why = "it is not open, one of the standard ones, or given twice";
        self.0.remove(&fd).ok_or_else(|| io::Error::other(why))
    }
}
