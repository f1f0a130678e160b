//! The C side of plug-ins: `dlopen`, their table of functions, and the calls of these (VDE fact 3.9).
//!
//! Invariants that the SAFETY comments cite:
//! - A: a path or name given to the loader is a string that ends in NUL. What a library does when it is loaded is the
//!   business of whoever installed it; it is code of this process from then on, and is never unmapped (NODELETE).
//! - B: the symbol `vdeplug_ops` of a file named `libvdeplug_*.so` is a table as in `Ops`; that is the meaning of
//!   the name.
//! - C: `handle` is what the plug-in's `open` returned and its `close` did not yet get. It begins with two words that
//!   are the library's own. Only the owner of the `Conn` calls with it: one call at a time.
//! - D: the descriptors that a plug-in named belong to its connection and stay open, and the same, until `close`.
//!   A plug-in that changes its descriptors is not supported.

#![allow(unsafe_code)]

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::OpenOptions;
use crate::locator::Port;

/// What every program that is built against the library's header says.
const INTERFACE_VERSION: c_int = 1;

/// Mode of our end's socket when the caller has none in mind but gives other options.
const DEFAULT_MODE: libc::mode_t = 0o700;

/// The library that plug-ins which open other locators call back.
const LIBRARY: &CStr = c"libvdeplug.so.2";
const OPEN: &CStr = c"vde_open_real";

/// The first words of a plug-in's handle.
#[repr(C)]
struct Head {
    library: *mut c_void,
    ops: *const Ops,
}

/// `struct vde_open_args`.
#[repr(C)]
struct OpenArgs {
    port: c_int,
    group: *mut c_char,
    mode: libc::mode_t,
}

type OpenFn = unsafe extern "C" fn(*mut c_char, *mut c_char, c_int, *mut OpenArgs) -> *mut Head;
type RecvFn = unsafe extern "C" fn(*mut Head, *mut c_void, usize, c_int) -> isize;
type SendFn = unsafe extern "C" fn(*mut Head, *const c_void, usize, c_int) -> isize;
type AskFn = unsafe extern "C" fn(*mut Head) -> c_int;

/// The table of functions that a plug-in exports.
#[repr(C)]
struct Ops {
    flags: c_int,
    open: Option<OpenFn>,
    recv: Option<RecvFn>,
    send: Option<SendFn>,
    datafd: Option<AskFn>,
    ctlfd: Option<AskFn>,
    close: Option<AskFn>,
}

/// A loaded plug-in.
#[derive(Debug)]
pub(super) struct Library {
    handle: NonNull<c_void>,
    table: NonNull<Ops>,
    open: OpenFn,
    calls: Calls,
}

/// The functions that a connection needs.
#[derive(Clone, Copy, Debug)]
struct Calls {
    recv: RecvFn,
    send: SendFn,
    close: AskFn,
}

/// An open connection and its descriptors.
#[derive(Debug)]
pub(super) struct Plug {
    /// A plug-in is C code that nobody wrote for several threads.
    conn: Mutex<Conn>,
    data: RawFd,
    control: Option<RawFd>,
}

/// What is called with an open connection.
#[derive(Debug)]
pub(super) struct Conn {
    handle: NonNull<Head>,
    calls: Calls,
    library: NonNull<c_void>,
}

// SAFETY: C; nothing in the plug-ins' interface ties a connection to the thread that opened it, and programs do
// call from any.
unsafe impl Send for Conn {}

/// Loads a plug-in from this file, or, by a name without slash, from where the loader finds it.
pub(super) fn load(file: &CStr) -> Result<Library, String> {
    let flags = libc::RTLD_NOW | libc::RTLD_DEEPBIND | libc::RTLD_NODELETE;
    // SAFETY: A. Never unmapped, as a plug-in may have threads that still run when it was closed (slirp's does).
    let handle = unsafe { libc::dlopen(file.as_ptr(), flags) };
    let handle = NonNull::new(handle).ok_or_else(reason)?;
    table(handle).inspect_err(|_| unload(handle))
}

fn table(handle: NonNull<c_void>) -> Result<Library, String> {
    // SAFETY: A; the handle is the loader's.
    let symbol = unsafe { libc::dlsym(handle.as_ptr(), c"vdeplug_ops".as_ptr()) };
    let table = NonNull::new(symbol).ok_or("it has no symbol vdeplug_ops")?.cast::<Ops>();
    // SAFETY: B; the table lives as long as the library.
    let ops = unsafe { table.as_ref() };
    match (ops.open, ops.recv, ops.send, ops.datafd, ops.ctlfd, ops.close) {
        (Some(open), Some(recv), Some(send), Some(_), Some(_), Some(close)) => {
            Ok(Library { handle, table, open, calls: Calls { recv, send, close } })
        }
        _ => Err("its table vdeplug_ops lacks functions".into()),
    }
}

fn unload(handle: NonNull<c_void>) {
    // SAFETY: A; the handle is the loader's and is not used behind this. Takes back a count alone.
    if unsafe { libc::dlclose(handle.as_ptr()) } != 0 {
        log::debug!("cannot unload a plug-in: {}", reason());
    }
}

/// What the loader says of its last failure.
fn reason() -> String {
    // SAFETY: no arguments; the state is the thread's.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the loader gives no reason".into();
    }
    // SAFETY: a string that ends in NUL and lives until the thread's next call to the loader.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Makes sure that plug-ins which open other locators find the library to do it with: the process's own `libvdeplug`,
/// whatever it is, or the installed one. Returns the directory that it lies in.
pub(super) fn provide_library() -> Result<PathBuf, String> {
    // SAFETY: A.
    let mut symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, OPEN.as_ptr()) };
    if symbol.is_null() {
        // SAFETY: A. Kept for good; if the process has a library of this name out of the others' sight, it is that.
        let handle = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        let handle = NonNull::new(handle).ok_or_else(reason)?;
        // SAFETY: A; the handle is the loader's.
        symbol = unsafe { libc::dlsym(handle.as_ptr(), OPEN.as_ptr()) };
    }
    let symbol = NonNull::new(symbol).ok_or("libvdeplug.so.2 has no symbol vde_open_real")?;
    file_of(symbol).ok_or_else(|| "the loader does not know where libvdeplug.so.2 lies".into())
}

/// The directory of the file that a symbol came from.
fn file_of(symbol: NonNull<c_void>) -> Option<PathBuf> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for; `info` has room for the answer.
    let known = unsafe { libc::dladdr(symbol.as_ptr(), info.as_mut_ptr()) };
    // SAFETY: pointers alone, for which zero is a value.
    let info = unsafe { info.assume_init() };
    if known == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's own string, which ends in NUL and lives as long as the library.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    let name = Path::new(OsStr::from_bytes(name.to_bytes())).canonicalize().ok()?;
    name.parent().map(Path::to_path_buf)
}

impl Library {
    /// Opens a locator's argument.
    pub(super) fn open(
        self,
        argument: &CStr,
        description: &CStr,
        options: &OpenOptions,
        group: Option<&CStr>,
    ) -> io::Result<Plug> {
        // The plug-in may write into both.
        let mut argument = argument.to_bytes_with_nul().to_vec();
        let mut description = description.to_bytes_with_nul().to_vec();
        let mut group = group.map(|group| group.to_bytes_with_nul().to_vec());
        let mut args = OpenArgs {
            port: match options.port {
                Port::Any | Port::Group(_) => 0,
                Port::Number(number) => c_int::try_from(number).unwrap_or(c_int::MAX),
                Port::Management => -1,
            },
            group: group.as_mut().map_or(ptr::null_mut(), |group| group.as_mut_ptr().cast()),
            mode: if options.mode == 0 { DEFAULT_MODE } else { options.mode & 0o7777 },
        };
        // A plug-in's own defaults are better than ours.
        let plain = options.port == Port::Any && group.is_none() && options.mode == 0;
        let args: *mut OpenArgs = if plain { ptr::null_mut() } else { &raw mut args };
        clear_errno();
        let (text, description) = (argument.as_mut_ptr().cast(), description.as_mut_ptr().cast());
        // SAFETY: B; all are private copies that live until it returns, strings that end in NUL.
        let handle = unsafe { (self.open)(text, description, INTERFACE_VERSION, args) };
        let Some(handle) = NonNull::new(handle) else {
            let error = io::Error::last_os_error();
            unload(self.handle);
            return Err(Some(error).filter(|error| error.raw_os_error() != Some(0)).unwrap_or_else(silence));
        };
        let head = Head { library: self.handle.as_ptr(), ops: self.table.as_ptr() };
        // SAFETY: C; the two words are there for this.
        unsafe { handle.write(head) };
        let conn = Conn { handle, calls: self.calls, library: self.handle };
        // SAFETY: B; the table lives as long as the library.
        let ops = unsafe { self.table.as_ref() };
        let data = conn.ask(ops.datafd).ok_or_else(|| io::Error::other("it names no data descriptor"))?;
        let control = conn.ask(ops.ctlfd);
        Ok(Plug { conn: Mutex::new(conn), data, control })
    }
}

impl Conn {
    /// Asks for a descriptor.
    fn ask(&self, function: Option<AskFn>) -> Option<RawFd> {
        // SAFETY: B and C.
        let fd = unsafe { function?(self.handle.as_ptr()) };
        (fd >= 0).then_some(fd)
    }

    /// Receives; the plug-in's word for the length is returned, whatever it is. Waits when nothing is pending.
    pub(super) fn recv(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let (to, len) = (room.as_mut_ptr().cast(), room.len());
        // SAFETY: B and C; `to` has room for `len` bytes.
        let got = unsafe { (self.calls.recv)(self.handle.as_ptr(), to, len, libc::MSG_DONTWAIT) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// Sends a frame. The bytes may be changed: Debian's vlan plug-in does that, in spite of its const.
    pub(super) fn send(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        let (from, len) = (frame.as_mut_ptr().cast::<c_void>().cast_const(), frame.len());
        // SAFETY: B and C; `len` bytes from `from` are private and may be read and written.
        let sent = unsafe { (self.calls.send)(self.handle.as_ptr(), from, len, libc::MSG_DONTWAIT) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        // SAFETY: B and C; the handle is not used behind this. The plug-in frees it.
        let result = unsafe { (self.calls.close)(self.handle.as_ptr()) };
        if result == 0 {
            unload(self.library);
        } else {
            log::debug!("a plug-in failed to close: {}", io::Error::last_os_error());
        }
    }
}

impl Plug {
    /// The descriptor that shows frames.
    pub(super) fn data_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: D; the connection is closed with this struct, after the borrow.
        unsafe { BorrowedFd::borrow_raw(self.data) }
    }

    /// The descriptor that shows the end of the connection.
    pub(super) fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: as above.
        self.control.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// The connection, for calls.
    pub(super) fn lock(&self) -> MutexGuard<'_, Conn> {
        self.conn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a plug-in failed that sets no `errno`.
fn silence() -> io::Error {
    io::Error::other("the plug-in gives no reason")
}

fn clear_errno() {
    // SAFETY: no arguments; the pointer is to the thread's own integer.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    unsafe { errno.write(0) };
}
