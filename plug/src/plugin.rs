//! Schemes that are not native: the installed plug-ins of vdeplug, by their C interface (VDE facts 3.1 and 3.9).
//!
//! Theory of operation. A plug-in is a shared library `libvdeplug_SCHEME.so`; it is looked for and loaded when its
//! scheme is asked for and not before. Those that wrap another locator (`vlan://5{…}`) open that one through the
//! libvdeplug of the process, so one is provided before the plug-in is loaded.
//!
//! A plug-in takes and gives one frame in one buffer. Its receive waits when nothing is pending, whatever one asks for,
//! so its data descriptor is asked before every call. What it returns is a frame's length; 1 when it only kept its own
//! house; 0 at the end; or an error, most of which are of the network's weather and not its end. Frames pass through a
//! private buffer, because what we were lent may be a guest's memory.
//!
//! All calls are made under one lock. A plug-in whose data descriptor can never be writable (an epoll, as those have
//! that hold several sockets) drops what it cannot send at once, as its own code does.

mod mend;
mod search;
mod sys;

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use offload::Header;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::{RecvFlags, recv};

use crate::link::{
    BIG_FRAME_MAX, FRAME_MAX, FRAME_MIN, Link, LinkError, Meter, RxFrame, Sent, Stats, TxFrame,
};
use crate::single::{self, Room, Went};
use crate::{OpenErrorKind, OpenOptions, vde};

/// How often a plug-in may keep its house in one call of ours. More than any queue of the kernel holds, as what stays
/// behind shows only when more comes.
const CHORES: usize = 4096;

/// Schemes that a package of Debian brings.
const PACKAGES: [(&str, &str); 8] = [
    ("agno", "libvdeplug-agno"),
    ("pcap", "libvdeplug-pcap"),
    ("slirp", "libvdeplug-slirp"),
    ("vdesl", "libvdeplug-vdesl"),
    ("vlan", "libvdeplug-vlan"),
    ("vxlan", "libvdeplug2"),
    ("vxvde", "libvdeplug2"),
    ("macvtap", "libvdeplug2 (newer than 4.0.1)"),
];

/// Why a plug-in could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// What stands before `://` cannot be a scheme.
    #[error("{scheme:?} is no scheme; write letters and digits before ://, as in vde://PATH")]
    BadScheme {
        /// The word.
        scheme: String,
    },

    /// Nothing opens this scheme.
    #[error("the scheme {scheme:?} is not supported: there is no plug-in {}{}", search::file_name(.scheme), advice(.scheme, .searched))]
    Missing {
        /// The scheme.
        scheme: String,
        /// The only directories that were looked at, if `VDEPLUGIN_PATH` names any.
        searched: Option<String>,
    },

    /// There is a file for this scheme, but it is no plug-in that works.
    #[error("cannot load the plug-in {file:?}: {why}; install the package that it comes from again")]
    Unusable {
        /// The file.
        file: PathBuf,
        /// What the loader says.
        why: String,
    },

    /// A text for the plug-in has a zero byte, at which C would cut it.
    #[error("a zero byte can be part of no locator, group or description; leave it out")]
    Nul,

    /// The plug-in could not open the network.
    #[error(
        "the plug-in {file:?} cannot open {locator:?}; correct the locator as the manual page \
         libvdeplug_{scheme}(1) says, or see to what it names"
    )]
    Failed {
        /// The plug-in.
        file: PathBuf,
        /// Its scheme.
        scheme: String,
        /// The locator.
        locator: String,
        /// What the plug-in said of it, often not the real reason.
        source: io::Error,
    },
}

impl PluginError {
    /// The coarse class of this error.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            Self::BadScheme { .. } | Self::Missing { .. } | Self::Nul => OpenErrorKind::Usage,
            Self::Unusable { .. } => OpenErrorKind::System,
            Self::Failed { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => OpenErrorKind::NotFound,
                io::ErrorKind::PermissionDenied => OpenErrorKind::Permission,
                io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported => OpenErrorKind::Usage,
                io::ErrorKind::ConnectionRefused | io::ErrorKind::TimedOut => OpenErrorKind::Unavailable,
                _ => OpenErrorKind::System,
            },
        }
    }
}

/// What to do about a plug-in that is missing.
fn advice(scheme: &str, searched: &Option<String>) -> String {
    let place = searched.as_ref().map_or_else(String::new, |list| {
        format!(" in the directories of VDEPLUGIN_PATH, {list:?}, the only ones that are looked at")
    });
    match PACKAGES.iter().find(|(known, _)| *known == scheme) {
        Some((_, package)) => format!("{place}; install the package {package}"),
        None => {
            let known: Vec<_> = PACKAGES.iter().map(|(known, _)| *known).collect();
            format!(
                "{place}; schemes of this library are {}, and packages bring {}",
                crate::SCHEMES.join(", "),
                known.join(", ")
            )
        }
    }
}

/// An open link of a plug-in.
#[derive(Debug)]
pub(crate) struct PluginLink {
    plug: sys::Plug,
    /// Whether the data descriptor shows that a frame can be sent.
    shows_writable: bool,
    /// Room for one frame in each direction.
    incoming: Mutex<Box<[u8]>>,
    outgoing: Mutex<Room>,
    meter: Meter,
}

impl PluginLink {
    /// Finds the plug-in and opens the locator.
    pub(crate) fn open(scheme: &str, argument: &str, options: &OpenOptions) -> Result<Self, PluginError> {
        if !search::is_name(scheme) {
            return Err(PluginError::BadScheme { scheme: scheme.into() });
        }
        let plugin_path = std::env::var_os("VDEPLUGIN_PATH");
        let library_path = std::env::var_os("LD_LIBRARY_PATH");
        let library = || sys::provide_library().inspect_err(|why| log::debug!("no libvdeplug: {why}")).ok();
        let candidates = search::candidates(scheme, plugin_path.as_deref(), library_path.as_deref(), library);
        let mut failure = None;
        for file in candidates {
            match Self::open_with(&file, scheme, argument, options) {
                Ok(Some(link)) => return Ok(link),
                Ok(None) => {}
                // Another of that name may know better: so do plug-ins say that they are not the one.
                Err(error @ PluginError::Unusable { .. }) => failure = failure.or(Some(error)),
                Err(PluginError::Failed { source, .. }) if is_foreign(&source) => {}
                Err(error) => return Err(error),
            }
        }
        Err(failure.unwrap_or_else(|| PluginError::Missing {
            scheme: scheme.into(),
            searched: plugin_path.map(|list| list.to_string_lossy().into_owned()),
        }))
    }

    /// Opens the locator with one candidate for the plug-in; `None` if there is no such file.
    fn open_with(
        file: &Path,
        scheme: &str,
        argument: &str,
        options: &OpenOptions,
    ) -> Result<Option<Self>, PluginError> {
        let for_loader = !file.as_os_str().as_bytes().contains(&b'/');
        if !for_loader && !file.is_file() {
            return Ok(None);
        }
        let text = |text: &[u8]| CString::new(text).map_err(|_| PluginError::Nul);
        let name = text(file.as_os_str().as_bytes())?;
        let argument_text = text(mend::argument(scheme, argument).as_bytes())?;
        let description = text(vde::description(&options.description, false).as_bytes())?;
        let group = options.group.as_ref().map(|group| text(group.as_bytes())).transpose()?;
        let unusable = |why| PluginError::Unusable { file: file.into(), why };
        // Those that wrap another locator cannot even be loaded without one; all others can.
        if let Err(why) = sys::provide_library() {
            log::debug!("no libvdeplug: {why}");
        }
        let library = match sys::load(&name) {
            Ok(library) => library,
            Err(_) if for_loader => return Ok(None),
            Err(why) => return Err(unusable(why)),
        };
        let failed = |source| PluginError::Failed {
            file: file.into(),
            scheme: scheme.into(),
            locator: format!("{scheme}://{argument}"),
            source,
        };
        let plug = library.open(&argument_text, &description, options, group.as_deref()).map_err(failed)?;
        Self::new(plug).map(Some).map_err(|errno| failed(errno.into()))
    }

    fn new(plug: sys::Plug) -> Result<Self, Errno> {
        for fd in [Some(plug.data_fd()), plug.control_fd()].into_iter().flatten() {
            fcntl_setfd(fd, fcntl_getfd(fd)? | FdFlags::CLOEXEC)?;
        }
        // At this time every socket can be written to.
        let shows_writable =
            ready(plug.data_fd(), PollFlags::OUT).is_ok_and(|events| events.contains(PollFlags::OUT));
        Ok(Self {
            plug,
            shows_writable,
            incoming: Mutex::new(vec![0; BIG_FRAME_MAX].into()),
            outgoing: Mutex::default(),
            meter: Meter::default(),
        })
    }

    /// Gives the plug-in a frame.
    fn give(&self, frame: &mut [u8]) -> Result<Went, LinkError> {
        if self.shows_writable && !ready(self.data_fd(), PollFlags::OUT)?.contains(PollFlags::OUT) {
            return Ok(Went::Again);
        }
        loop {
            let Err(error) = self.plug.lock().send(frame) else { return Ok(Went::Sent) };
            match weather(&error) {
                Weather::Interrupted => {}
                Weather::Again if self.shows_writable => return Ok(Went::Again),
                Weather::Again | Weather::Bad => return Ok(Went::Lost),
                Weather::End => return Err(LinkError::Closed),
            }
        }
    }
}

/// What an error of a plug-in means.
enum Weather {
    Interrupted,
    Again,
    /// This frame is lost, as frames on a network are.
    Bad,
    /// Nothing will pass any more.
    End,
}

fn weather(error: &io::Error) -> Weather {
    match Errno::from_io_error(error) {
        Some(Errno::INTR) => Weather::Interrupted,
        Some(Errno::AGAIN | Errno::NOBUFS) => Weather::Again,
        Some(Errno::BADF | Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => Weather::End,
        _ => Weather::Bad,
    }
}

/// Whether a plug-in says by this error that it is not the one for this scheme.
fn is_foreign(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::PROTONOSUPPORT)
}

/// Which of the events are there now, and the ends of the descriptor.
fn ready(fd: BorrowedFd<'_>, events: PollFlags) -> Result<PollFlags, LinkError> {
    let mut fds = [PollFd::from_borrowed_fd(fd, events)];
    loop {
        match poll(&mut fds, Some(&Timespec::default())) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(LinkError::Io(errno.into())),
            Ok(_) => return Ok(fds.first().map_or_else(PollFlags::empty, PollFd::revents)),
        }
    }
}

impl Link for PluginLink {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.plug.data_fd()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        self.plug.control_fd()
    }

    fn max_frame(&self) -> usize {
        FRAME_MAX
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        let mut room = self.outgoing.lock().unwrap_or_else(PoisonError::into_inner);
        single::send(frames, FRAME_MAX, &mut room, &self.meter, |frame| self.give(frame))
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        let mut room = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        let mut conn = self.plug.lock();
        let mut done = 0;
        for _ in 0..frames.len().saturating_add(CHORES) {
            let Some(frame) = frames.get_mut(done) else { break };
            let events = ready(self.data_fd(), PollFlags::IN)?;
            if events.is_empty() {
                break;
            }
            let got = match conn.recv(&mut room).map_err(|error| weather(&error)) {
                Ok(got) => got,
                Err(Weather::End) => 0,
                Err(Weather::Interrupted) => 1,
                // What is at its end and brings nothing would bring nothing for ever.
                Err(_) if !events.contains(PollFlags::IN) => 0,
                Err(_) => 1,
            };
            // No frame is that long.
            let got = if got == room.len() { mend::length(&room).unwrap_or(usize::MAX) } else { got };
            match room.get(..got) {
                _ if got == 0 && done > 0 => break,
                _ if got == 0 => return Err(LinkError::Closed),
                Some(bytes) if got >= FRAME_MIN => {
                    frame.fill(Header::NONE, bytes);
                    self.meter.received(1, got, 0);
                    done += 1;
                }
                // Its own affairs, or less than a frame.
                Some(_) => {}
                // A length that cannot be.
                None => self.meter.received(0, 0, 1),
            }
        }
        Ok(done)
    }

    fn offloads(&self) -> bool {
        false
    }

    fn stats(&self) -> Stats {
        self.meter.stats()
    }

    fn check_control(&self) -> Result<(), LinkError> {
        let Some(fd) = self.control_fd() else { return Ok(()) };
        // A control connection, as that of a switch, says only by its end that all is over. It is not read without
        // end: the descriptor stays readable and the caller comes again.
        let mut ignored = [0_u8; 256];
        for _ in 0..16 {
            let events = ready(fd, PollFlags::IN)?;
            if events.is_empty() {
                return Ok(());
            }
            match recv(fd, &mut ignored, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(LinkError::Closed),
                Ok(_) | Err(Errno::INTR | Errno::AGAIN) => {}
                // What is no socket can have its end alone looked at.
                Err(Errno::NOTSOCK) if !events.intersects(PollFlags::HUP | PollFlags::ERR) => return Ok(()),
                Err(_) => return Err(LinkError::Closed),
            }
        }
        Ok(())
    }
}
