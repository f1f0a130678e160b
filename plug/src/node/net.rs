//! Who is plugged into a node, and which of them gets which frame (VDE fact 4.2).
//!
//! The list of peers is read far more often than it changes, and by several threads: each takes a snapshot of it and works
//! on that. It is in the order of the peers' numbers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::inbox::Inbox;
use super::peer::Peer;
use super::table::{LOOK, Port, Table, TableSettings, To};
use crate::datagram;
use crate::link::{BIG_FRAME_MAX, Meter, RxFrame, Sent, Stats, TxFrame};

/// What a node does with frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The owner talks to all peers, they talk to it alone.
    Multi,
    /// The owner's frames go to the peers in turn, theirs to it alone.
    Bonding,
    /// Everybody hears everybody.
    Hub,
    /// Everybody hears what is for it.
    Switch,
}

type Peers = Arc<[Arc<Peer>]>;

/// How the owner comes by its frames.
#[derive(Debug)]
enum OwnerEnd {
    /// It reads the peers' sockets, which this epoll set tells it of.
    Sockets(OwnedFd),
    /// The node's thread reads them and leaves them there.
    Inbox(Inbox),
}

/// How many peers that left may have frames that the owner has not received.
const LEFT_MAX: usize = 64;

/// How many peers are asked for at once whether they sent something.
const READY_MAX: usize = 64;

/// A node's peers and what it knows of them.
#[derive(Debug)]
pub(super) struct Net {
    kind: Kind,
    /// Big frames may be given to the owner.
    owner_big: bool,
    peers: RwLock<Peers>,
    owner_end: OwnerEnd,
    table: Mutex<Table>,
    /// Whose turn it is.
    turn: AtomicUsize,
    /// What the owner sent and received.
    meter: Meter,
}

impl Net {
    pub(super) fn new(kind: Kind, owner_big: bool, table: &TableSettings) -> Result<Self, Errno> {
        let owner_end = match kind {
            Kind::Multi | Kind::Bonding => OwnerEnd::Sockets(epoll::create(CreateFlags::CLOEXEC)?),
            Kind::Hub | Kind::Switch => OwnerEnd::Inbox(Inbox::new(owner_big)?),
        };
        Ok(Self {
            kind,
            owner_big,
            peers: RwLock::new(Arc::new([])),
            owner_end,
            table: Mutex::new(Table::new(table)),
            turn: AtomicUsize::new(0),
            meter: Meter::default(),
        })
    }

    /// Whether frames go between peers, or to the owner alone.
    pub(super) fn inbox(&self) -> Option<&Inbox> {
        match &self.owner_end {
            OwnerEnd::Sockets(_) => None,
            OwnerEnd::Inbox(inbox) => Some(inbox),
        }
    }

    /// Whether the owner takes frames that are not done.
    pub(super) fn owner_takes_big(&self) -> bool {
        self.owner_big
    }

    /// Whether peers may send big frames: somebody has to segment them for who cannot take them.
    pub(super) fn takes_big(&self) -> bool {
        self.owner_big || self.inbox().is_some()
    }

    pub(super) fn owner_fd(&self) -> BorrowedFd<'_> {
        match &self.owner_end {
            OwnerEnd::Sockets(epoll) => epoll.as_fd(),
            OwnerEnd::Inbox(inbox) => inbox.ready(),
        }
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    pub(super) fn peers(&self) -> Peers {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn peer(&self, port: Port) -> Option<Arc<Peer>> {
        find(&self.peers(), port).cloned()
    }

    pub(super) fn stats(&self) -> Stats {
        let peers = self.peers();
        let peers = peers.iter().filter(|peer| !peer.has_left());
        Stats {
            total: self.meter.read(),
            peers: peers.map(|peer| (peer.description.clone(), peer.meter().read())).collect(),
        }
    }

    /// Takes in a peer.
    pub(super) fn plug(&self, peer: &Arc<Peer>) -> Result<(), Errno> {
        {
            let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
            // Requests come in another order than connections.
            let (before, behind) = peers.split_at(peers.partition_point(|other| other.port < peer.port));
            *peers = before.iter().chain([peer]).chain(behind).cloned().collect();
        }
        // Behind the list, so that the owner finds in that whom it is told of.
        match &self.owner_end {
            OwnerEnd::Sockets(epoll) => self.watch(epoll, peer),
            OwnerEnd::Inbox(_) => Ok(()),
        }
    }

    /// Whether there are fewer peers than so many. One that left makes room for another.
    pub(super) fn has_room(&self, most: usize) -> bool {
        let peers = self.peers();
        if peers.len() < most {
            return true;
        }
        let oldest = peers.iter().find(|peer| peer.has_left());
        oldest.inspect(|peer| self.forget(peer)).is_some()
    }

    /// Ends a peer, but for what the owner has still to receive of it.
    pub(super) fn unplug(&self, peer: &Arc<Peer>) {
        let OwnerEnd::Sockets(epoll) = &self.owner_end else {
            peer.hang_up();
            return self.forget(peer);
        };
        // A socket that was hung up shows as readable whatever is in it, which is for the owner to see only if something
        // is. Leaving the set fails if the peer never got in there.
        let _ = epoll::delete(epoll, peer.data());
        peer.hang_up();
        if !peer.is_pending() {
            return self.forget(peer);
        }
        peer.set_left();
        if let Err(errno) = self.watch(epoll, peer) {
            log::debug!("cannot receive what a peer sent before it left: {errno}");
            return self.forget(peer);
        }
        let peers = self.peers();
        let mut left = peers.iter().filter(|peer| peer.has_left());
        if let Some(oldest) = left.next()
            && left.count() >= LEFT_MAX
        {
            self.forget(oldest);
        }
    }

    /// Has the owner told of what a peer sends.
    fn watch(&self, epoll: &OwnedFd, peer: &Peer) -> Result<(), Errno> {
        epoll::add(epoll, peer.data(), EventData::new_u64(peer.port.0), EventFlags::IN)
    }

    fn forget(&self, peer: &Arc<Peer>) {
        if let OwnerEnd::Sockets(epoll) = &self.owner_end {
            // It fails if another thread was first, or the peer is no member.
            let _ = epoll::delete(epoll, peer.data());
        }
        if self.kind == Kind::Switch {
            self.table.lock().unwrap_or_else(PoisonError::into_inner).forget(peer.port);
        }
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        *peers = peers.iter().filter(|other| other.port != peer.port).cloned().collect();
    }

    /// Where frames from this port go; `None`: each to all.
    pub(super) fn aim(&self, from: Port, frames: &[TxFrame<'_>]) -> Option<Vec<To>> {
        if self.kind != Kind::Switch {
            return None;
        }
        let now = now();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let aims = frames.iter().map(|frame| {
            let mut head = [0; LOOK];
            frame.read_at(0, &mut head);
            table.pass(from, &head, frame.len(), now)
        });
        Some(aims.collect())
    }

    /// Sends frames to the peers that they are for.
    pub(super) fn fan_out(&self, from: Port, frames: &[TxFrame<'_>], aims: Option<&[To]>) {
        let peers = self.peers();
        let others = || peers.iter().filter(|peer| peer.port != from && !peer.has_left());
        let Some(aims) = aims else { return others().for_each(|peer| peer.send(frames)) };
        if aims.iter().all(|to| *to == To::All) {
            return others().for_each(|peer| peer.send(frames));
        }
        let send = |peer: &Arc<Peer>| {
            let to = To::One(peer.port);
            let its = frames.iter().zip(aims).filter(|(_, aim)| **aim == To::All || **aim == to);
            let its: Vec<_> = its.map(|(frame, _)| *frame).collect();
            if !its.is_empty() {
                peer.send(&its);
            }
        };
        if aims.contains(&To::All) {
            return others().for_each(send);
        }
        let mut ports: Vec<_> =
            aims.iter().filter_map(|to| if let To::One(to) = to { Some(*to) } else { None }).collect();
        ports.sort_unstable();
        ports.dedup();
        for peer in ports.iter().filter_map(|port| find(&peers, *port)).filter(|peer| !peer.has_left()) {
            send(peer);
        }
    }

    /// Sends the owner's frames. None ever has to wait.
    pub(super) fn send(&self, frames: &[TxFrame<'_>]) -> Sent {
        let good = |frame: &&TxFrame<'_>| datagram::is_frame(frame, BIG_FRAME_MAX);
        let dropped = frames.iter().filter(|frame| !good(frame)).count();
        if dropped == 0 {
            self.send_good(frames);
        } else {
            self.send_good(&frames.iter().filter(good).copied().collect::<Vec<_>>());
        }
        let bytes = frames.iter().filter(good).map(TxFrame::len).sum();
        self.meter.sent(frames.len() - dropped, bytes, dropped);
        Sent { taken: frames.len(), segments: 0, dropped }
    }

    fn send_good(&self, frames: &[TxFrame<'_>]) {
        if self.kind != Kind::Bonding {
            return self.fan_out(Port::OWNER, frames, self.aim(Port::OWNER, frames).as_deref());
        }
        let peers = self.peers();
        let peers: Vec<_> = peers.iter().filter(|peer| !peer.has_left()).collect();
        let turn = self.turn.fetch_add(frames.len(), Ordering::Relaxed);
        for (index, peer) in peers.iter().enumerate() {
            let its = |at: usize| turn.wrapping_add(at) % peers.len() == index;
            let its = frames.iter().enumerate().filter(|(at, _)| its(*at)).map(|(_, frame)| *frame);
            peer.send(&its.collect::<Vec<_>>());
        }
    }

    /// Receives the owner's frames; fewer than there is room for means that no more are there.
    pub(super) fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, Errno> {
        match &self.owner_end {
            OwnerEnd::Inbox(inbox) => Ok(inbox.take(frames, &self.meter)),
            OwnerEnd::Sockets(epoll) => {
                let peers = self.peers();
                // One peer need not be asked for.
                if let [only] = &*peers {
                    return Ok(self.recv_from(only, frames));
                }
                self.recv_from_ready(epoll, &peers, frames)
            }
        }
    }

    /// Receives from peers that sent something, from each its share of the room.
    fn recv_from_ready(
        &self,
        epoll: &OwnedFd,
        peers: &[Arc<Peer>],
        frames: &mut [RxFrame<'_>],
    ) -> Result<usize, Errno> {
        let mut done = 0;
        let mut events = Vec::with_capacity(READY_MAX);
        while done < frames.len() {
            events.clear();
            match epoll::wait(epoll, spare_capacity(&mut events), Some(&Timespec::default())) {
                Err(Errno::INTR) => continue,
                result => result?,
            };
            let before = done;
            let mut drained = events.len() < READY_MAX;
            for (index, event) in events.iter().enumerate() {
                let Some(peer) = find(peers, Port(event.data.u64())) else {
                    // It joined a moment ago: for the next call, which its frame is the reason for.
                    continue;
                };
                let rest = frames.get_mut(done..).unwrap_or_default();
                let share = rest.len().div_ceil(events.len() - index);
                let got = self.recv_from(peer, rest.get_mut(..share).unwrap_or_default());
                drained &= got < share;
                done += got;
            }
            if drained || done == before {
                break;
            }
        }
        Ok(done)
    }

    fn recv_from(&self, peer: &Arc<Peer>, frames: &mut [RxFrame<'_>]) -> usize {
        // Asked first: what it sent before it left may come right after a look at its socket.
        let left = peer.has_left();
        let got = peer.recv(frames, Some(&self.meter));
        if left && (got < frames.len() || !peer.is_pending()) {
            self.forget(peer);
        }
        got
    }
}

fn find(peers: &[Arc<Peer>], port: Port) -> Option<&Arc<Peer>> {
    peers.binary_search_by_key(&port, |peer| peer.port).ok().and_then(|at| peers.get(at))
}

/// A time that only grows, to the few milliseconds that cost nothing to ask for.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::MonotonicCoarse)).unwrap_or_default()
}
