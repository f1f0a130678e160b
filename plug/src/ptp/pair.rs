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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;
use rustix::net::{SocketAddrUnix, SocketType, connect, connect_unspec, getpeername};

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
    /// Whom the socket is connected to; `None`: nobody, as far as we know. Read for as long as something is sent or received, so
    /// that nothing is written for one program and sent to the next.
    joined: RwLock<Option<Peer>>,
    meter: Meter,
}

/// The program at the other end.
#[derive(Debug)]
struct Peer {
    /// How it wants to be written to, and writes.
    framing: Framing,
    /// What waited when the socket was connected was received. What comes is its own.
    alone: AtomicBool,
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
        *joined = connected.ok().map(|()| Peer {
            framing: name::framing_of_peer(&self.socket, &self.end),
            alone: AtomicBool::new(false),
        });
        if joined.is_none() {
            // Of one that is gone nothing will come; others have to be able to reach us. It fails when it was so before.
            let _ = connect_unspec(&self.socket);
        }
        // It stays so wide when an old program comes, of which more frames may wait then.
        if joined.as_ref().is_some_and(|peer| peer.framing == Framing::Header)
            && let Err(errno) = datagram::widen(&self.socket, datagram::SEND_BUFFER)
        {
            log::debug!("cannot give a socket room for frames: {errno}");
        }
        joined.is_some()
    }

    fn joined(&self) -> RwLockReadGuard<'_, Option<Peer>> {
        self.joined.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_joined(&self) -> bool {
        let joined = self.joined().is_some();
        joined || self.join()
    }

    /// Receives up to a batch of frames of whatever kind.
    fn take(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, Failure> {
        let fd = self.socket.as_fd();
        let joined = self.joined();
        let Some(peer) = &*joined else {
            return datagram::recv_mixed(fd, Framing::Header, name::framing, frames);
        };
        if peer.alone.load(Ordering::Relaxed) {
            // Without names, which cost a tenth of a short frame's time.
            let got = datagram::recv_batch(fd, peer.framing, frames)?;
            if getpeername(fd).is_err() {
                // We sent to one that died, on which the kernel disconnects the socket: these may be anybody's.
                frames.iter_mut().take(got).for_each(|frame| frame.len = 0);
            }
            return Ok(got);
        }
        let got = datagram::recv_mixed(fd, peer.framing, name::framing, frames)?;
        if got < frames.len() && !datagram::is_readable(fd) {
            peer.alone.store(true, Ordering::Relaxed);
        }
        Ok(got)
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
            let framing = joined.as_ref().map_or(Framing::Plain, |peer| peer.framing);
            datagram::send(fd, framing, FRAME_MAX, rest, &self.meter)
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
        // As long as there is nobody, they may be anybody's.
        self.end.big && self.joined().as_ref().is_none_or(|peer| peer.framing == Framing::Header)
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use rustix::net::{SendFlags, send};

    use super::*;
    use crate::link::{RxBuf, TxBuf};

    /// Lengths of the frames that wait.
    fn received(link: &PairLink) -> Vec<usize> {
        let (mut one, mut two) = ([0; 2000], [0; 2000]);
        let bufs = [[RxBuf::new(&mut one)], [RxBuf::new(&mut two)]];
        let mut frames = bufs.each_ref().map(|bufs| RxFrame::new(bufs));
        let got = link.recv(&mut frames).expect("alive");
        frames.iter().take(got).map(|frame| frame.len).collect()
    }

    #[test]
    fn frames_of_nobody_knows_whom_are_no_frames() -> std::io::Result<()> {
        let home = tempfile::tempdir()?;
        let (path, second) = (home.path().join("p"), home.path().join("p+"));
        let end = End { group: None, mode: 0o700, big: true };
        let ours = PairLink::open(path.clone(), end.clone()).expect("an end");
        let other = PairLink::open(path.clone(), end).expect("an end");
        let alone =
            |link: &PairLink| link.joined().as_ref().is_some_and(|peer| peer.alone.load(Ordering::Relaxed));
        let frame = [2; 60];
        let bufs = [TxBuf::new(&frame)];
        assert_eq!(other.send(&[TxFrame::new(&bufs)]).expect("alive").dropped, 0);
        // The first one is received by the name of who sent it.
        assert_eq!(received(&ours), [60]);
        assert!(!alone(&ours));
        assert_eq!(received(&ours), []);
        assert_eq!(other.send(&[TxFrame::new(&bufs)]).expect("alive").dropped, 0);
        assert_eq!(received(&ours), [60]);
        assert!(alone(&ours));
        // It ends, the kernel sees it when we send, and somebody sends before we saw it.
        drop(other);
        assert_eq!(send(&ours.socket, &frame, SendFlags::empty()), Err(Errno::CONNREFUSED));
        let stranger = UnixDatagram::bind(&second)?;
        stranger.send_to(&frame, &path)?;
        assert_eq!(received(&ours), [0]);
        // Now we look who it is.
        ours.join();
        stranger.send_to(&frame, &path)?;
        assert_eq!(received(&ours), [60]);
        Ok(())
    }
}
