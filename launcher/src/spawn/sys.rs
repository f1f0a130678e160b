//! System calls that the standard library does not offer.
//!
//! Invariant A: this process has one thread, so a forked child may do what the parent may; still only
//! system calls are made between `fork` and `exec`.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::fs::Access;
use rustix::io::FdFlags;

use crate::error::Error;

/// Starts a program as a process that init will reap, in a session of its own and without any
/// descriptor above 2 but those in `keep`. The returned child is the short-lived one in between; its
/// PID is the process group of the program.
///
/// Were the program a plain child, it would become QEMU's child at `exec`, and QEMU reaps nobody.
pub fn spawn_orphan(command: &mut Command, keep: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let keep: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    let detach = move || {
        rustix::process::setsid()?;
        leave_parent()?;
        close_on_exec_all();
        for &fd in &keep {
            // SAFETY: the caller borrowed this descriptor to us for longer than the child lives before exec.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: invariant A; the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(detach) };
    command.spawn()
}

/// Forks and goes on in the child; the parent ends at once.
fn leave_parent() -> io::Result<()> {
    // SAFETY: invariant A.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(()),
        // SAFETY: ends the process without running anything that belongs to the first parent.
        _ => unsafe { libc::_exit(0) },
    }
}

/// Marks every descriptor above the standard ones, so that the program inherits nothing by accident:
/// it must not hold the other end of somebody's pipe. Kernels before 5.11 cannot do this in one call;
/// there the program merely keeps what the caller had open.
fn close_on_exec_all() {
    // SAFETY: the call only sets a flag on descriptors; it has no memory operands.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
}

/// Lets a descriptor survive `exec`.
pub fn keep_through_exec(fd: impl AsFd) -> Result<(), Error> {
    rustix::io::fcntl_setfd(fd, FdFlags::empty())
        .map_err(|source| Error::System { what: "cannot keep the lifeline open", source: source.into() })
}

/// User and group numbers of the user with this name.
pub fn user_ids(name: &str) -> Option<(u32, u32)> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` ends in NUL and outlives the call.
    let found = unsafe { libc::getpwnam(name.as_ptr()) };
    // SAFETY: null, or an entry that stays as it is until the next such call; invariant A.
    let entry = unsafe { found.as_ref() }?;
    Some((entry.pw_uid, entry.pw_gid))
}

/// Whether the host lets us use KVM.
pub fn kvm_usable() -> bool {
    rustix::fs::access("/dev/kvm", Access::READ_OK | Access::WRITE_OK).is_ok()
}
