//! The seqpacket form: the first program listens at `PATH`, the second connects and waits for a byte, 0 if it is taken and
//! else the number of an error.
//!
//! The sockets change over the life of a link, so its descriptors are two epolls: one shows all there is to do, and one,
//! the control descriptor, all but frames, so that connections are taken also while nobody receives. On either the
//! same is done ([`State::step`]); whoever comes first does it. Of two programs the one that listened goes on listening, to
//! refuse others; when it ends, the other one listens in its place.
//!
//! An epoll descriptor cannot show that a frame may be sent. What does not fit the peer's socket is lost, as on the path
//! through a switch.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, connect, listen, recv, send,
};

use super::name::{self, Name, remove_dead};
use super::{End, Form, PtpError, new_socket};
use crate::datagram::{self, Framing};
use crate::error::OpenError;
use crate::link::{FRAME_MAX, Link, LinkError, Meter, RxFrame, Sent, Stats, TxFrame};
use crate::lossy;

/// How many programs may wait to be answered.
const BACKLOG: i32 = 8;

/// How long the second program waits for its byte, as in the original.
const ANSWER: Duration = Duration::from_secs(2);

/// How often the name is looked at anew when others open the same cable at the same time.
const ATTEMPTS: usize = 16;

/// Connections that are answered in one call. More stay in the queue and keep the descriptors readable.
const VISITORS: usize = 16;

/// The byte for one that is taken.
const WELCOME: u8 = 0;

/// An open end of a cable.
#[derive(Debug)]
pub(crate) struct ConnectionLink {
    shown: Shown,
    state: Mutex<State>,
    meter: Meter,
}

/// The descriptors that a caller watches.
#[derive(Debug)]
struct Shown {
    all: OwnedFd,
    control: OwnedFd,
}

#[derive(Debug)]
struct State {
    path: PathBuf,
    end: End,
    listener: Option<(Name, OwnedFd)>,
    peer: Option<Peer>,
    /// Nothing will come of this link any more.
    over: bool,
}

/// The other program.
#[derive(Clone, Debug)]
struct Peer {
    socket: Arc<OwnedFd>,
    /// How both speak on it.
    framing: Framing,
    /// It took us, or we took it.
    joined: bool,
}

/// What was found at the path.
enum Found {
    /// A program that listens; whether it takes us is to be seen.
    Peer(OwnedFd),
    /// Nobody; we listen.
    Nobody(Name, OwnedFd),
}

/// Events of a socket that are there now.
fn events(fd: &OwnedFd, events: PollFlags, timeout: Duration) -> PollFlags {
    let timeout = Timespec::try_from(timeout).unwrap_or_default();
    let mut fds = [PollFd::new(fd, events)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) => fds.first().map_or_else(PollFlags::empty, PollFd::revents),
        Err(_) => PollFlags::empty(),
    }
}

fn hung_up(fd: &OwnedFd) -> bool {
    events(fd, PollFlags::RDHUP, Duration::ZERO)
        .intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
}

/// Connects to a program that listens at the path.
fn call(path: &Path, end: &End) -> Result<OwnedFd, Errno> {
    let socket = new_socket(SocketType::SEQPACKET)?;
    name::sign(&socket, end);
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Connects to a program that listens at the path, or listens there.
fn find(path: &Path, end: &End) -> Result<Found, OpenError> {
    for _ in 0..ATTEMPTS {
        match call(path, end) {
            Ok(socket) => return Ok(Found::Peer(socket)),
            Err(Errno::NOENT) => {}
            Err(Errno::CONNREFUSED) => remove_dead(path)?,
            Err(Errno::PROTOTYPE) => {
                return Err(PtpError::OtherForm { path: path.into(), found: Form::Datagram }.into());
            }
            // Others wait for it to accept.
            Err(Errno::AGAIN) => {
                return Err(PtpError::Silent { path: path.into(), timeout: Duration::ZERO }.into());
            }
            Err(errno) => {
                return Err(PtpError::Unreachable { path: path.into(), source: errno.into() }.into());
            }
        }
        let failed = |errno: Errno| PtpError::Make { path: path.into(), source: errno.into() };
        let socket = new_socket(SocketType::SEQPACKET).map_err(failed)?;
        if let Some(name) = Name::give(&socket, path, end, || listen(&socket, BACKLOG))? {
            return Ok(Found::Nobody(name, socket));
        }
    }
    Err(PtpError::Taken { path: path.into() }.into())
}

/// Waits for the byte.
fn wait_for_welcome(socket: &OwnedFd, path: &Path, timeout: Duration) -> Result<(), PtpError> {
    let deadline = Instant::now().checked_add(timeout.min(ANSWER));
    let left = || deadline.map_or(ANSWER, |at| at.saturating_duration_since(Instant::now()));
    loop {
        match read_welcome(socket) {
            Ok(()) => return Ok(()),
            Err(Errno::AGAIN | Errno::INTR) if left() > Duration::ZERO => {
                events(socket, PollFlags::IN, left());
            }
            Err(Errno::AGAIN | Errno::INTR) => {
                return Err(PtpError::Silent { path: path.into(), timeout: timeout.min(ANSWER) });
            }
            Err(Errno::ISCONN) => return Err(PtpError::Taken { path: path.into() }),
            Err(errno) => return Err(PtpError::Refused { path: path.into(), source: errno.into() }),
        }
    }
}

/// Reads the byte: the error that it stands for, or of the socket.
fn read_welcome(socket: &OwnedFd) -> Result<(), Errno> {
    let mut byte = [0];
    match recv(socket, &mut byte, RecvFlags::DONTWAIT)? {
        (0, _) => Err(Errno::CONNRESET),
        _ => match byte {
            [WELCOME] => Ok(()),
            [number] => Err(Errno::from_raw_os_error(number.into())),
        },
    }
}

impl Shown {
    fn new() -> Result<Self, Errno> {
        Ok(Self { all: epoll::create(CreateFlags::CLOEXEC)?, control: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// Shows a listener, or a peer that did not say yet whether it takes us.
    fn add(&self, socket: &OwnedFd) -> Result<(), Errno> {
        for epoll in [&self.all, &self.control] {
            epoll::add(epoll, socket, EventData::new_u64(0), EventFlags::IN | EventFlags::RDHUP)?;
        }
        Ok(())
    }

    /// From now on frames come from it.
    fn joined(&self, socket: &OwnedFd) -> Result<(), Errno> {
        epoll::modify(&self.control, socket, EventData::new_u64(0), EventFlags::RDHUP)
    }

    fn remove(&self, socket: &OwnedFd) {
        for epoll in [&self.all, &self.control] {
            if let Err(errno) = epoll::delete(epoll, socket) {
                log::debug!("cannot unwatch a socket: {errno}");
            }
        }
    }
}

impl Peer {
    fn new(socket: OwnedFd, end: &End, joined: bool) -> Self {
        let framing = name::framing_of_peer(&socket, end);
        if framing == Framing::Header
            && let Err(errno) = datagram::widen(&socket, datagram::SEND_BUFFER)
        {
            log::debug!("cannot give a socket room for frames: {errno}");
        }
        Self { socket: Arc::new(socket), framing, joined }
    }
}

impl State {
    /// Looks for the other program, or waits for it.
    fn look(&mut self, shown: &Shown) -> Result<(), OpenError> {
        let system = |errno: Errno| OpenError::System { what: "watch a socket", source: errno.into() };
        match find(&self.path, &self.end)? {
            Found::Peer(socket) => {
                shown.add(&socket).map_err(system)?;
                self.peer = Some(Peer::new(socket, &self.end, false));
            }
            Found::Nobody(name, socket) => {
                shown.add(&socket).map_err(system)?;
                self.listener = Some((name, socket));
            }
        }
        Ok(())
    }

    /// Does what there is to do, without waiting.
    fn step(&mut self, shown: &Shown) {
        if let Some(peer) = self.peer.clone() {
            let answer = if peer.joined { Err(Errno::AGAIN) } else { read_welcome(&peer.socket) };
            match answer {
                Ok(()) => {
                    self.peer = Some(Peer { joined: true, ..peer.clone() });
                    if let Err(errno) = shown.joined(&peer.socket) {
                        log::debug!("cannot watch a socket: {errno}");
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) if !hung_up(&peer.socket) => {}
                Err(errno) => self.lose(&peer, errno, shown),
            }
        }
        for _ in 0..VISITORS {
            let Some((_, listener)) = &self.listener else { break };
            match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.answer(socket, shown),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) => break,
            }
        }
    }

    /// Takes a visitor, or sends it away.
    fn answer(&mut self, socket: OwnedFd, shown: &Shown) {
        let busy = self.peer.is_some();
        // The numbers of errors on all machines that Linux runs on fit a byte.
        let byte = if busy { u8::try_from(Errno::ISCONN.raw_os_error()).unwrap_or(u8::MAX) } else { WELCOME };
        let told = send(&socket, &[byte], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        if busy || told != Ok(1) {
            return;
        }
        match shown.add(&socket).and_then(|()| shown.joined(&socket)) {
            Ok(()) => self.peer = Some(Peer::new(socket, &self.end, true)),
            Err(errno) => log::debug!("cannot watch a socket: {errno}"),
        }
    }

    /// The other program is gone, or does not take us.
    fn lose(&mut self, peer: &Peer, errno: Errno, shown: &Shown) {
        shown.remove(&peer.socket);
        self.peer = None;
        if self.listener.is_some() {
            return;
        }
        // One that refuses us would do so again and again.
        let looked = if peer.joined { self.look(shown) } else { Err(refusal(&self.path, errno)) };
        if let Err(error) = looked {
            log::warn!("the cable {:?} is lost: {error}", self.path);
            self.over = true;
        }
    }
}

fn refusal(path: &Path, errno: Errno) -> OpenError {
    PtpError::Refused { path: path.into(), source: errno.into() }.into()
}

impl ConnectionLink {
    pub(super) fn open(path: PathBuf, end: End, timeout: Duration) -> Result<Self, OpenError> {
        let shown = Shown::new()
            .map_err(|errno| OpenError::System { what: "make an epoll descriptor", source: errno.into() })?;
        let mut state = State { path, end, listener: None, peer: None, over: false };
        state.look(&shown)?;
        if let Some(peer) = &mut state.peer {
            wait_for_welcome(&peer.socket, &state.path, timeout)?;
            peer.joined = true;
            shown
                .joined(&peer.socket)
                .map_err(|errno| OpenError::System { what: "watch a socket", source: errno.into() })?;
        }
        Ok(Self { shown, state: Mutex::new(state), meter: Meter::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The other program, if there is one that took us.
    fn peer(&self) -> Option<Peer> {
        self.state().peer.clone().filter(|peer| peer.joined)
    }

    /// Does what there is to do; returns the other program, if there is one.
    fn step(&self) -> Result<Option<Peer>, LinkError> {
        let mut state = self.state();
        state.step(&self.shown);
        if state.over {
            return Err(LinkError::Closed);
        }
        Ok(state.peer.clone().filter(|peer| peer.joined))
    }
}

impl Link for ConnectionLink {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.shown.all.as_fd()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.shown.control.as_fd())
    }

    fn max_frame(&self) -> usize {
        FRAME_MAX
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        let peer = match self.peer() {
            Some(peer) => Some(peer),
            None => self.step()?,
        };
        let mut done = match peer {
            Some(Peer { socket, framing, .. }) => {
                let attempt = |rest: &[TxFrame<'_>]| {
                    datagram::send(socket.as_fd(), framing, FRAME_MAX, rest, &self.meter)
                };
                lossy::send(socket.as_fd(), frames, &self.meter, attempt, || false)
            }
            None => Sent::default(),
        };
        let lost = frames.len() - done.taken;
        self.meter.sent(0, 0, lost);
        done = Sent { taken: frames.len(), segments: 0, dropped: done.dropped + lost };
        Ok(done)
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        // What the other program sent before it ended comes first.
        if let Some(Peer { socket, framing, .. }) = self.peer()
            && let Ok(got) = datagram::recv(socket.as_fd(), framing, frames, &self.meter)
        {
            let received = frames.get(..got).unwrap_or_default();
            // At the end of the connection the kernel gives as many empty packets as one asks for.
            let real = received.iter().rposition(|frame| frame.len > 0).map_or(0, |last| last + 1);
            if real > 0 {
                return Ok(if hung_up(&socket) { real } else { got });
            }
        }
        self.step()?;
        Ok(0)
    }

    fn offloads(&self) -> bool {
        let state = self.state();
        // One that comes next may be any.
        state.end.big && state.peer.as_ref().is_none_or(|peer| peer.framing == Framing::Header)
    }

    fn stats(&self) -> Stats {
        self.meter.stats()
    }

    fn check_control(&self) -> Result<(), LinkError> {
        self.step().map(drop)
    }
}
