//! System calls that the standard library does not offer.
//!
//! Invariant A: this process has one thread, so a forked child may do what the parent may; still only
//! system calls are made between `fork` and `exec`.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Access;
use rustix::io::{Errno, FdFlags};
use rustix::process::Signal;
use rustix::time::Timespec;

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

/// Lets a program that is only asked something end with this process, however that ends: a paused emulator
/// would wait for the next question for ever.
pub fn bind_to_us(command: &mut Command) {
    let ours = rustix::process::getpid();
    let bind = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // Who ended before that is not noticed any more.
        match rustix::process::getppid() == Some(ours) {
            true => Ok(()),
            false => Err(Errno::SRCH.into()),
        }
    };
    // SAFETY: invariant A; the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(bind) };
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
        .map_err(|source| Error::System { what: "cannot pass a descriptor on", source: source.into() })
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

/// The signals by which a user, a terminal or a manager of services ends a program.
const ENDING: [libc::c_int; 4] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM];

/// Signals that would end this process now, held back for as long as this value lives; then they do.
///
/// A program that is started meanwhile does not inherit that: the standard library's `spawn` holds nothing back.
#[derive(Debug)]
pub struct HeldSignals {
    /// Readable when one has come.
    arrived: OwnedFd,
    before: libc::sigset_t,
}

impl HeldSignals {
    /// Holds back those that the caller has not made us ignore.
    pub fn new() -> io::Result<Self> {
        let mut held = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the whole set.
        unsafe { libc::sigemptyset(held.as_mut_ptr()) };
        for signal in ENDING {
            if !is_ignored(signal)? {
                // SAFETY: the set was initialised above; the signal's number is valid.
                unsafe { libc::sigaddset(held.as_mut_ptr(), signal) };
            }
        }
        let mut before = MaybeUninit::uninit();
        // SAFETY: an initialised set, and room for the old one.
        let code = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, held.as_ptr(), before.as_mut_ptr()) };
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code));
        }
        // SAFETY: an initialised set; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, held.as_ptr(), libc::SFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and ours.
        let arrived = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: the call above succeeded and filled it.
        Ok(Self { arrived, before: unsafe { before.assume_init() } })
    }

    /// Waits until one has come, something else can be read, or time is up; tells whether one has come.
    pub fn come_before(&self, other: impl AsFd, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(timeout) = Timespec::try_from(left) else { return false };
            let mut fds = [PollFd::new(&self.arrived, PollFlags::IN), PollFd::new(&other, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Err(Errno::INTR) => {}
                outcome => return outcome.is_ok() && !fds[0].revents().is_empty(),
            }
        }
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        // SAFETY: the mask that was there before; no old one is asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}

/// Children of this process stay until they are waited for, for as long as this value lives. The caller may have us ignore
/// them, which QEMU is to inherit as it is.
#[derive(Debug)]
pub struct WaitableChildren {
    before: libc::sighandler_t,
}

impl WaitableChildren {
    pub fn new() -> io::Result<Self> {
        // SAFETY: the signal's number is valid, and there is no handler.
        match unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) } {
            libc::SIG_ERR => Err(io::Error::last_os_error()),
            before => Ok(Self { before }),
        }
    }
}

impl Drop for WaitableChildren {
    fn drop(&mut self) {
        // SAFETY: as it was; a program begins without handlers, and we set none.
        unsafe { libc::signal(libc::SIGCHLD, self.before) };
    }
}

/// Whether this process ignores a signal, as `nohup` has it.
fn is_ignored(signal: libc::c_int) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: asks only; there is room for the answer.
    if unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and filled it.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN)
}

/// Whether the host lets us use KVM.
pub fn kvm_usable() -> bool {
    rustix::fs::access("/dev/kvm", Access::READ_OK | Access::WRITE_OK).is_ok()
}
