//! The datagram form: two sockets, `PATH` and `PATH+`, each connected to the other.
//!
//! A connected datagram socket takes frames from its peer alone, and stays connected when that one dies: nobody could
//! take its place until the survivor sends something. (So it is in the original, whose second program, ended and
//! started again, is refused with `EPERM` until then.) The name of the peer is therefore watched: whoever takes a dead
//! program's place removes its name first, and by that the survivor learns to connect anew.
//!
//! We connect as soon as we can: when a frame is to be sent, and when one came. As long as only one of the two sockets is
//! connected, the kernel lets no more than ten frames wait in the other.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketType, connect, connect_unspec};

use super::name::{self, Name, remove_dead};
use super::{End, Form, PtpError, knock, new_socket};
use crate::datagram::{self, Failure, Framing};
use crate::error::OpenError;
use crate::link::{FRAME_MAX, Link, LinkError, Meter, RxFrame, Sent, Stats, TxFrame};
use crate::lossy;

/// How often the names are looked at anew when others open the same cable at the same time.
const ATTEMPTS: usize = 16;

/// Errors that are read past in one call: each is told once.
const ERRORS: usize = 4;

/// An open end of a cable.
#[derive(Debug)]
pub(crate) struct PairLink {
    _name: Name,
    socket: OwnedFd,
    peer: PathBuf,
    /// Shows changes of the peer's name. Without one (a user may have 128) the peer's end is seen when we send.
    watch: Option<OwnedFd>,
    end: End,
    /// How whom the socket is connected to wants to be written to; `None`: it is connected to nobody, as far as we know. Read
    /// for as long as something is sent, so that nothing is written for one program and sent to the next.
    joined: RwLock<Option<Framing>>,
    meter: Meter,
}

/// What a name is the name of.
#[derive(PartialEq, Eq)]
enum Holder {
    Nobody,
    /// A program that died.
    Dead,
    Alive,
}

fn holder(path: &Path) -> Result<Holder, PtpError> {
    match knock(path, SocketType::DGRAM) {
        Ok(_) | Err(Errno::PERM) => Ok(Holder::Alive),
        Err(Errno::NOENT) => Ok(Holder::Nobody),
        Err(Errno::CONNREFUSED) => Ok(Holder::Dead),
        Err(Errno::PROTOTYPE) => Err(PtpError::OtherForm { path: path.into(), found: Form::SeqPacket }),
        Err(errno) => Err(PtpError::Unreachable { path: path.into(), source: errno.into() }),
    }
}

impl PairLink {
    pub(super) fn open(path: PathBuf, end: End) -> Result<Self, OpenError> {
        let mut second = path.clone().into_os_string();
        second.push("+");
        let second = PathBuf::from(second);
        let system = |errno: Errno| OpenError::System { what: "make a socket", source: errno.into() };
        for _ in 0..ATTEMPTS {
            let (own, peer) = match holder(&path)? {
                Holder::Alive => (&second, &path),
                Holder::Dead | Holder::Nobody => (&path, &second),
            };
            match holder(own)? {
                Holder::Alive => return Err(PtpError::Taken { path }.into()),
                Holder::Dead => remove_dead(own)?,
                Holder::Nobody => {}
            }
            let socket = new_socket(SocketType::DGRAM).map_err(system)?;
            let Some(name) = Name::give(&socket, own, &end, || Ok(()))? else { continue };
            let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
            let link = Self {
                _name: name,
                socket,
                peer: peer.clone(),
                watch: watch.inspect_err(|errno| log::debug!("no inotify: {errno}")).ok(),
                end,
                joined: RwLock::new(None),
                meter: Meter::default(),
            };
            link.join();
            return Ok(link);
        }
        Err(PtpError::Taken { path }.into())
    }

    /// Connects to whoever has the peer's name now. Connecting to the same once more changes nothing.
    fn join(&self) -> bool {
        // Watched first: a name that changes in between is seen.
        let watched = WatchFlags::ATTRIB | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        if let Some(watch) = &self.watch
            && let Err(errno) = inotify::add_watch(watch, &self.peer, watched)
            && errno != Errno::NOENT
        {
            log::debug!("cannot watch {:?}: {errno}", self.peer);
        }
        let mut joined = self.joined.write().unwrap_or_else(PoisonError::into_inner);
        let connected = SocketAddrUnix::new(&self.peer).and_then(|address| connect(&self.socket, &address));
        *joined = connected.ok().map(|()| name::framing_of_peer(&self.socket, &self.end));
        if joined.is_none() {
            // Of one that is gone nothing will come; others have to be able to reach us. It fails when it was so before.
            let _ = connect_unspec(&self.socket);
        }
        // It stays so wide when an old program comes, of which more frames may wait then.
        if *joined == Some(Framing::Header)
            && let Err(errno) = datagram::widen(&self.socket, datagram::SEND_BUFFER)
        {
            log::debug!("cannot give a socket room for frames: {errno}");
        }
        joined.is_some()
    }

    fn joined(&self) -> RwLockReadGuard<'_, Option<Framing>> {
        self.joined.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_joined(&self) -> bool {
        let joined = self.joined().is_some();
        joined || self.join()
    }

    /// How the frames that come next are expected to look.
    fn expected(&self) -> Framing {
        match *self.joined() {
            Some(framing) => framing,
            // It may be anybody's.
            None if self.end.big => Framing::Header,
            None => Framing::Plain,
        }
    }

    fn take(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, Failure> {
        datagram::recv_mixed(self.socket.as_fd(), self.expected(), name::framing, frames)
    }
}

impl Link for PairLink {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(AsFd::as_fd)
    }

    fn max_frame(&self) -> usize {
        FRAME_MAX
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        if !self.is_joined() {
            self.meter.sent(0, 0, frames.len());
            return Ok(Sent { taken: frames.len(), dropped: frames.len(), ..Sent::default() });
        }
        let fd = self.socket.as_fd();
        let attempt = |rest: &[TxFrame<'_>]| {
            let joined = self.joined();
            // One that is connected to nobody says so.
            datagram::send(fd, joined.unwrap_or(Framing::Plain), FRAME_MAX, rest, &self.meter)
        };
        Ok(lossy::send(fd, frames, &self.meter, attempt, || self.join()))
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        for _ in 0..ERRORS {
            // An error is that a peer which was connected to us connected to another.
            let got = match self.end.big {
                true => datagram::recv_by(frames, &self.meter, |rest| self.take(rest)),
                false => datagram::recv(self.socket.as_fd(), Framing::Plain, frames, &self.meter),
            };
            if let Ok(got) = got {
                if got > 0 {
                    self.is_joined();
                }
                return Ok(got);
            }
        }
        Ok(0)
    }

    fn offloads(&self) -> bool {
        self.expected() == Framing::Header
    }

    fn stats(&self) -> Stats {
        self.meter.stats()
    }

    fn check_control(&self) -> Result<(), LinkError> {
        let Some(watch) = &self.watch else { return Ok(()) };
        let mut room = [MaybeUninit::uninit(); 1024];
        let mut events = Reader::new(watch, &mut room);
        // What happened does not matter, and many events are one reason. The descriptor stays readable if there are more.
        let mut changed = false;
        for _ in 0..64 {
            match events.next() {
                Ok(_) => changed = true,
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        if changed {
            self.join();
        }
        Ok(())
    }
}
