//! What happens at a node: takes in peers, sees them off, and, in a hub or a switch, says who sent something.
//!
//! Theory of operation. One level-triggered epoll set holds the listening socket, the streams of clients, and in a hub or
//! a switch the peers' data sockets. A connection is *waiting* until its request is there whole, which for every honest
//! client it is at once. There is a time limit for that only while somebody waits; an idle node never wakes up.
//!
//! Nobody can make a thread wait for him: all sockets are non-blocking, each peer gets one batch a turn. Nobody can
//! make it spin: what is readable is read, or closed. Nobody can use up the process: connections that wait are few, and
//! never more than there may be peers, the newest win; peers take at most half of the descriptors that the process may
//! have, and those that left before they were heard make room for others. When descriptors run out all the
//! same, nothing is accepted until a peer leaves or a second has passed.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, accept_with, recv};
use rustix::process::{Resource, getrlimit};

use super::net::{Member, Net};
use super::peer::Peer;
use super::place::Place;
use super::request::{REQUEST_MAX, Reading, decode};
use super::table::Port;

/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connections whose request is not there yet; the longest waiting one goes when there are more.
const WAITING_MAX: usize = 64;

/// Connections accepted in one turn.
const ACCEPT_MAX: usize = 16;

/// How many things that happened are asked for at once.
const EVENTS_MAX: usize = 64;

/// How long nothing is accepted when descriptors have run out.
const PAUSE: Duration = Duration::from_secs(1);

/// Peers without a limit of descriptors.
const PEERS_MAX: usize = 1 << 16;

/// What an epoll event is about, packed into its data word: kind in the highest byte, number of the port below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// The owner wants the node to end.
    Stop,
    Listener,
    Stream(Port),
    Data(Port),
}

impl Source {
    const KIND_SHIFT: u32 = 56;

    fn pack(self) -> EventData {
        let (kind, number) = match self {
            Self::Stop => (0, 0),
            Self::Listener => (1, 0),
            Self::Stream(port) => (2, port.0),
            Self::Data(port) => (3, port.0),
        };
        EventData::new_u64(kind << Self::KIND_SHIFT | number)
    }

    fn unpack(data: EventData) -> Self {
        let port = Port(data.u64() & ((1 << Self::KIND_SHIFT) - 1));
        match data.u64() >> Self::KIND_SHIFT {
            0 => Self::Stop,
            1 => Self::Listener,
            2 => Self::Stream(port),
            _ => Self::Data(port),
        }
    }
}

/// A connection whose request is not there yet.
struct Waiting {
    stream: OwnedFd,
    until: Instant,
    request: Vec<u8>,
}

/// The thread's state.
pub(super) struct Server {
    net: Arc<Net>,
    place: Place,
    listener: OwnedFd,
    epoll: OwnedFd,
    waiting: BTreeMap<Port, Waiting>,
    /// Nothing is accepted until then.
    paused: Option<Instant>,
    peers_max: usize,
    /// What happened and was not looked at yet.
    ready: VecDeque<Source>,
}

/// What is left to be done by who asked.
pub(super) enum Work {
    /// This peer of a hub or a switch sent something.
    Frames(Arc<Peer>),
    /// This one leaves: what it sent before is to go where it should, then it is to be seen off.
    Leaves(Arc<Peer>),
}

impl Server {
    /// `stop` becomes readable when the node is to end.
    pub(super) fn new(net: Arc<Net>, place: Place, listener: OwnedFd, stop: &OwnedFd) -> Result<Self, Errno> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, stop, Source::Stop.pack(), EventFlags::IN)?;
        epoll::add(&epoll, &listener, Source::Listener.pack(), EventFlags::IN)?;
        // A peer has two descriptors, and half of all is left to the program.
        let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
        let peers_max = limit.map_or(PEERS_MAX, |limit| limit / 4).max(1);
        let (waiting, ready) = (BTreeMap::new(), VecDeque::new());
        Ok(Self { net, place, listener, epoll, waiting, paused: None, peers_max, ready })
    }

    /// Waits for what happens, until there is work for the caller. `None`: the node is to end.
    pub(super) fn next(&mut self) -> Option<Work> {
        loop {
            let Some(source) = self.ready.pop_front() else {
                self.wait()?;
                continue;
            };
            let work = match source {
                Source::Stop => return None,
                Source::Listener => {
                    self.accept();
                    None
                }
                Source::Stream(port) => self.hear(port).map(Work::Leaves),
                Source::Data(port) => self.net.peer(port).map(Work::Frames),
            };
            if work.is_some() {
                return work;
            }
        }
    }

    /// Waits until something happens.
    fn wait(&mut self) -> Option<()> {
        self.look_at_the_clock();
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS_MAX);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), self.time_left().as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                log::error!("cannot serve the network any more: {errno}");
                return None;
            }
        }
        self.ready.extend(events.iter().map(|event| Source::unpack(event.data)));
        Some(())
    }

    /// Until something has to be done that no event announces.
    fn time_left(&self) -> Option<Timespec> {
        let oldest = self.waiting.values().next().map(|waiting| waiting.until);
        let next = oldest.into_iter().chain(self.paused).min()?;
        // A millisecond more, as the kernel may count in them and then would be early.
        let left = next.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        Timespec::try_from(left).ok()
    }

    fn look_at_the_clock(&mut self) {
        if self.waiting.is_empty() && self.paused.is_none() {
            return;
        }
        let now = Instant::now();
        self.waiting.retain(|_, waiting| waiting.until > now);
        if self.paused.is_some_and(|until| until <= now) {
            self.resume();
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPT_MAX {
            match accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(stream) => self.greet(stream),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(Errno::AGAIN) => return,
                Err(errno) => return self.pause(errno),
            }
        }
    }

    /// Stops accepting for a while: the connection that could not be accepted keeps the listener readable.
    fn pause(&mut self, errno: Errno) {
        log::debug!("cannot accept a peer: {errno}");
        let paused = epoll::modify(&self.epoll, &self.listener, Source::Listener.pack(), EventFlags::empty());
        if paused.is_ok() {
            self.paused = Some(Instant::now() + PAUSE);
        }
    }

    fn resume(&mut self) {
        let resumed = epoll::modify(&self.epoll, &self.listener, Source::Listener.pack(), EventFlags::IN);
        self.paused = if resumed.is_ok() { None } else { Some(Instant::now() + PAUSE) };
    }

    /// A connection came in. Its request is most often there already.
    fn greet(&mut self, stream: OwnedFd) {
        let port = self.net.new_port();
        if let Err(errno) = epoll::add(&self.epoll, &stream, Source::Stream(port).pack(), EventFlags::IN) {
            return log::debug!("cannot watch a peer: {errno}");
        }
        let waiting = Waiting { stream, until: Instant::now() + PATIENCE, request: Vec::new() };
        self.read_request(port, waiting);
        if self.waiting.len() > WAITING_MAX.min(self.peers_max) {
            self.waiting.pop_first();
        }
    }

    /// A client's stream is readable: the peer that it belongs to, if that leaves.
    fn hear(&mut self, port: Port) -> Option<Arc<Peer>> {
        if let Some(waiting) = self.waiting.remove(&port) {
            self.read_request(port, waiting);
            return None;
        }
        self.net.peer(port).filter(|peer| !peer.stays())
    }

    fn read_request(&mut self, port: Port, mut waiting: Waiting) {
        // One byte more than there can be, to see that there are too many.
        let mut piece = [0; REQUEST_MAX + 1];
        let got = match recv(&waiting.stream, &mut piece, RecvFlags::DONTWAIT) {
            Ok((got, _)) if got > 0 => got,
            Err(Errno::AGAIN | Errno::INTR) => {
                self.waiting.insert(port, waiting);
                return;
            }
            // The client went, which is no news: a probe does nothing else (defect M-2).
            _ => return,
        };
        waiting.request.extend_from_slice(piece.get(..got).unwrap_or_default());
        match decode(&waiting.request) {
            Reading::Part => {
                self.waiting.insert(port, waiting);
            }
            Reading::Bad(reason) => log::debug!("closing a connection that sent no request: {reason}"),
            Reading::Whole(_) if !self.net.has_room(self.peers_max) => {
                log::debug!("refusing a peer: there are {} already", self.peers_max);
            }
            Reading::Whole(request) => {
                let stream = waiting.stream;
                match Peer::admit(port, stream, request, self.net.takes_big(), &self.place) {
                    Ok(peer) => self.admit(&Arc::new(peer)),
                    Err(errno) => log::debug!("refusing a peer: cannot make its end of the cable: {errno}"),
                }
            }
        }
    }

    /// Plugs a peer in, then tells it so: what is sent from that moment on is for it too.
    fn admit(&mut self, peer: &Arc<Peer>) {
        let watched = match self.net.relays() {
            true => epoll::add(&self.epoll, peer.data(), Source::Data(peer.port).pack(), EventFlags::IN),
            false => Ok(()),
        };
        if let Err(errno) = watched.and_then(|()| self.net.plug(peer)).and_then(|()| peer.answer()) {
            log::debug!("refusing a peer: {errno}");
            self.see_off(peer);
        }
    }

    /// Ends a peer.
    pub(super) fn see_off(&mut self, peer: &Arc<Peer>) {
        // Others may hold the descriptors for a moment; they fail if they were never watched.
        let _ = epoll::delete(&self.epoll, peer.data());
        let _ = epoll::delete(&self.epoll, peer.stream());
        if let Err(errno) = self.place.remove(&peer.name) {
            log::debug!("cannot remove the data socket of a peer: {errno}");
        }
        self.net.unplug(peer);
        if self.paused.is_some() {
            self.resume();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The owner may outlive the thread in a descriptor's life: nobody must be left believing in it.
        for peer in self.net.members().iter().filter_map(Member::peer) {
            peer.hang_up();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpack_undoes_pack() {
        let far = Port((1 << Source::KIND_SHIFT) - 1);
        for source in [Source::Stop, Source::Listener, Source::Stream(Port(7)), Source::Data(far)] {
            assert_eq!(Source::unpack(source.pack()), source);
        }
    }
}
