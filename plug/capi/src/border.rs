//! What stands between C and Rust: failures become `errno`, and no panic goes through.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use crate::sys;

/// The number of an error in `errno.h`.
pub(crate) type Errno = i32;

/// Says in `errno` why a call failed, and what the call returns then.
pub(crate) fn fail<T: From<i8>>(errno: Errno) -> T {
    sys::set_errno(errno);
    T::from(-1)
}

/// Runs what may panic, and what must not be cancelled because it has to clean up. A panic becomes `EIO`.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    // The library has a standard library of its own, so the hook is not seen by a program in Rust.
    static SILENCE: Once = Once::new();
    SILENCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
    let before = sys::hold_cancellation();
    // What a panic leaves half done belongs to one connection, whose every call checks what it finds.
    let result = catch_unwind(AssertUnwindSafe(work));
    sys::restore_cancellation(before);
    result.unwrap_or(Err(libc::EIO))
}

/// The same without signals. Programs close connections in their signal handlers, and so does Debian's `vde_plug`: there
/// must be no lock that the interrupted call holds and the closing one waits for.
pub(crate) fn uninterrupted<T>(work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let before = sys::hold_signals();
    let result = guarded(work);
    sys::restore_signals(&before);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guarded_panic_is_an_error() {
        assert_eq!(guarded(|| Ok(1)), Ok(1));
        assert_eq!(guarded(|| Err::<(), _>(libc::ENOENT)), Err(libc::ENOENT));
        assert_eq!(guarded(|| -> Result<(), Errno> { panic!("a fault in the library") }), Err(libc::EIO));
        let nothing: [u8; 0] = [];
        assert_eq!(uninterrupted(|| Ok(nothing[std::hint::black_box(3)])), Err(libc::EIO));
    }

    #[test]
    fn uninterrupted_leaves_signals_as_they_were() {
        let blocked = || {
            let set = sys::hold_signals();
            sys::restore_signals(&set);
            // SAFETY: a set that the C library filled in.
            unsafe { libc::sigismember(&raw const set, libc::SIGTERM) }
        };
        assert_eq!(blocked(), 0);
        assert_eq!(uninterrupted(|| Ok(blocked())), Ok(1));
        assert_eq!(
            uninterrupted(|| -> Result<(), Errno> { panic!("a fault in the library") }),
            Err(libc::EIO)
        );
        assert_eq!(blocked(), 0);
    }
}
