//! The one system call of nodes that rustix does not have: a thread's signal mask.

#![allow(unsafe_code)]

use std::mem::MaybeUninit;

/// Does something, like starting a thread, while no signal can come: a thread inherits that. The signals of a process
/// belong to the program, whose handlers must not run on a thread that it knows nothing of.
pub(super) fn without_signals<T>(work: impl FnOnce() -> T) -> T {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut old = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: it fills the set that it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: both are sets; the first was filled above, the second is filled here.
    let failed = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), old.as_mut_ptr()) };
    let result = work();
    if failed == 0 {
        // SAFETY: the set was filled by the call that did not fail.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, old.as_ptr(), std::ptr::null_mut()) };
    }
    result
}
