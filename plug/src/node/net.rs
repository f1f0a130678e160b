//! Who is plugged into a node, and which of them gets which frame (VDE fact 4.2).
//!
//! The list of who is plugged in is read far more often than it changes, and by several threads: each takes a snapshot of it
//! and works on that. It is in the order of the ports' numbers.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::local::Local;
use super::peer::Peer;
use super::table::{LOOK, Port, Table, TableSettings, To};
use crate::datagram;
use crate::link::{BIG_FRAME_MAX, Meter, RxFrame, Sent, Stats, Traffic, TxFrame};

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

/// Who is plugged in.
#[derive(Clone, Debug)]
pub(super) enum Member {
    /// A client.
    Peer(Arc<Peer>),
    /// A port of this process, on a hub or a switch.
    Local(Arc<Local>),
}

impl Member {
    fn port(&self) -> Port {
        match self {
            Self::Peer(peer) => peer.port,
            Self::Local(local) => local.port,
        }
    }

    pub(super) fn peer(&self) -> Option<&Arc<Peer>> {
        match self {
            Self::Peer(peer) => Some(peer),
            Self::Local(_) => None,
        }
    }

    /// A peer that left and whose frames were not all received has a place in the list, and gets nothing.
    fn has_left(&self) -> bool {
        self.peer().is_some_and(|peer| peer.has_left())
    }

    fn send(&self, frames: &[TxFrame<'_>]) {
        match self {
            Self::Peer(peer) => peer.send(frames),
            Self::Local(local) => local.send(frames),
        }
    }
}

type Members = Arc<[Member]>;

/// How many peers that left may have frames that the owner has not received.
const LEFT_MAX: usize = 64;

/// How many peers are asked for at once whether they sent something.
const READY_MAX: usize = 64;

/// Who is plugged into a node and what it knows of them.
#[derive(Debug)]
pub(super) struct Net {
    kind: Kind,
    /// Big frames may be given to the owner.
    owner_big: bool,
    members: RwLock<Members>,
    /// In a multi or a bonding, the sockets of peers, which the owner reads itself.
    sockets: Option<OwnedFd>,
    table: Mutex<Table>,
    /// Whose turn it is.
    turn: AtomicUsize,
    /// The number of the port that comes next.
    next_port: AtomicU64,
}

impl Net {
    pub(super) fn new(kind: Kind, owner_big: bool, table: &TableSettings) -> Result<Self, Errno> {
        let sockets = match kind {
            Kind::Multi | Kind::Bonding => Some(epoll::create(CreateFlags::CLOEXEC)?),
            Kind::Hub | Kind::Switch => None,
        };
        Ok(Self {
            kind,
            owner_big,
            members: RwLock::new(Arc::new([])),
            sockets,
            table: Mutex::new(Table::new(table)),
            turn: AtomicUsize::new(0),
            next_port: AtomicU64::new(Port::OWNER.0),
        })
    }

    /// Whether frames go between peers, or to the owner alone.
    pub(super) fn relays(&self) -> bool {
        self.sockets.is_none()
    }

    /// Whether peers may send big frames: somebody has to segment them for who cannot take them.
    pub(super) fn takes_big(&self) -> bool {
        self.owner_big || self.relays()
    }

    /// Readable when a peer sent something to the owner; `None` if that comes through an inbox.
    pub(super) fn sockets(&self) -> Option<BorrowedFd<'_>> {
        self.sockets.as_ref().map(AsFd::as_fd)
    }

    /// A number that no port had before.
    pub(super) fn new_port(&self) -> Port {
        Port(self.next_port.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn members(&self) -> Members {
        self.members.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn peer(&self, port: Port) -> Option<Arc<Peer>> {
        find(&self.members(), port).and_then(Member::peer).cloned()
    }

    /// The network as one of this process's ports sees it, whose own traffic this is.
    pub(super) fn stats(&self, total: Traffic) -> Stats {
        let members = self.members();
        let peers = members.iter().filter_map(Member::peer).filter(|peer| !peer.has_left());
        Stats { total, peers: peers.map(|peer| (peer.description.clone(), peer.meter().read())).collect() }
    }

    /// Takes in a peer.
    pub(super) fn plug(&self, peer: &Arc<Peer>) -> Result<(), Errno> {
        self.enlist(Member::Peer(peer.clone()));
        // Behind the list, so that the owner finds in that whom it is told of.
        self.sockets.as_ref().map_or(Ok(()), |epoll| self.watch(epoll, peer))
    }

    /// Takes in a port of this process.
    pub(super) fn plug_local(&self, local: &Arc<Local>) {
        self.enlist(Member::Local(local.clone()));
    }

    fn enlist(&self, member: Member) {
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        // Requests come in another order than connections.
        let at = members.partition_point(|other| other.port() < member.port());
        let (before, behind) = members.split_at(at);
        *members = before.iter().chain([&member]).chain(behind).cloned().collect();
    }

    /// Whether there are fewer peers than so many. One that left makes room for another.
    pub(super) fn has_room(&self, most: usize) -> bool {
        let members = self.members();
        let peers = || members.iter().filter_map(Member::peer);
        if peers().count() < most {
            return true;
        }
        let oldest = peers().find(|peer| peer.has_left());
        oldest.inspect(|peer| self.forget(peer)).is_some()
    }

    /// Ends a peer, but for what the owner has still to receive of it.
    pub(super) fn unplug(&self, peer: &Arc<Peer>) {
        let Some(epoll) = &self.sockets else {
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
        let members = self.members();
        let mut left = members.iter().filter_map(Member::peer).filter(|peer| peer.has_left());
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

    fn forget(&self, peer: &Peer) {
        if let Some(epoll) = &self.sockets {
            // It fails if another thread was first, or the peer is no member.
            let _ = epoll::delete(epoll, peer.data());
        }
        self.remove(peer.port);
    }

    /// Ends a port.
    pub(super) fn remove(&self, port: Port) {
        if self.kind == Kind::Switch {
            self.table.lock().unwrap_or_else(PoisonError::into_inner).forget(port);
        }
        let mut members = self.members.write().unwrap_or_else(PoisonError::into_inner);
        *members = members.iter().filter(|other| other.port() != port).cloned().collect();
    }

    /// Sends frames from a port to whom they are for.
    pub(super) fn pass_on(&self, from: Port, frames: &[TxFrame<'_>]) {
        let aims = self.aim(from, frames);
        let members = self.members();
        let others = || members.iter().filter(|member| member.port() != from && !member.has_left());
        let Some(aims) = aims else { return others().for_each(|member| member.send(frames)) };
        if aims.iter().all(|to| *to == To::All) {
            return others().for_each(|member| member.send(frames));
        }
        let send = |member: &Member| {
            let to = To::One(member.port());
            // A stream of frames to one station is the usual case.
            if aims.iter().all(|aim| *aim == to) {
                return member.send(frames);
            }
            let its = frames.iter().zip(&aims).filter(|(_, aim)| **aim == To::All || **aim == to);
            let its: Vec<_> = its.map(|(frame, _)| *frame).collect();
            if !its.is_empty() {
                member.send(&its);
            }
        };
        if aims.contains(&To::All) {
            return others().for_each(send);
        }
        let mut ports: Vec<_> =
            aims.iter().filter_map(|to| if let To::One(to) = to { Some(*to) } else { None }).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
            .iter()
            .filter_map(|port| find(&members, *port))
            .filter(|member| !member.has_left())
            .for_each(send);
    }

    /// Where frames from this port go; `None`: each to all.
    fn aim(&self, from: Port, frames: &[TxFrame<'_>]) -> Option<Vec<To>> {
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

    /// Sends frames of a port of this process. None ever has to wait.
    pub(super) fn send(&self, from: Port, frames: &[TxFrame<'_>], meter: &Meter) -> Sent {
        let good = |frame: &&TxFrame<'_>| datagram::is_frame(frame, BIG_FRAME_MAX);
        let dropped = frames.iter().filter(|frame| !good(frame)).count();
        if dropped == 0 {
            self.send_good(from, frames);
        } else {
            self.send_good(from, &frames.iter().filter(good).copied().collect::<Vec<_>>());
        }
        let bytes = frames.iter().filter(good).map(TxFrame::len).sum();
        meter.sent(frames.len() - dropped, bytes, dropped);
        Sent { taken: frames.len(), segments: 0, dropped }
    }

    fn send_good(&self, from: Port, frames: &[TxFrame<'_>]) {
        if self.kind != Kind::Bonding {
            return self.pass_on(from, frames);
        }
        let members = self.members();
        let peers: Vec<_> = members.iter().filter(|member| !member.has_left()).collect();
        let turn = self.turn.fetch_add(frames.len(), Ordering::Relaxed);
        for (index, peer) in peers.iter().enumerate() {
            let its = |at: usize| turn.wrapping_add(at) % peers.len() == index;
            let its = frames.iter().enumerate().filter(|(at, _)| its(*at)).map(|(_, frame)| *frame);
            peer.send(&its.collect::<Vec<_>>());
        }
    }

    /// Receives the frames of the owner of a multi or a bonding; fewer than there is room for means that no more are there.
    pub(super) fn recv(&self, frames: &mut [RxFrame<'_>], meter: &Meter) -> Result<usize, Errno> {
        let Some(epoll) = &self.sockets else { return Ok(0) };
        let members = self.members();
        // One peer need not be asked for.
        if let [Member::Peer(only)] = &*members {
            return Ok(self.recv_from(only, frames, meter));
        }
        self.recv_from_ready(epoll, &members, frames, meter)
    }

    /// Receives from peers that sent something, from each its share of the room.
    fn recv_from_ready(
        &self,
        epoll: &OwnedFd,
        members: &[Member],
        frames: &mut [RxFrame<'_>],
        meter: &Meter,
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
                let Some(peer) = find(members, Port(event.data.u64())).and_then(Member::peer) else {
                    // It joined a moment ago: for the next call, which its frame is the reason for.
                    continue;
                };
                let rest = frames.get_mut(done..).unwrap_or_default();
                let share = rest.len().div_ceil(events.len() - index);
                let got = self.recv_from(peer, rest.get_mut(..share).unwrap_or_default(), meter);
                drained &= got < share;
                done += got;
            }
            if drained || done == before {
                break;
            }
        }
        Ok(done)
    }

    fn recv_from(&self, peer: &Peer, frames: &mut [RxFrame<'_>], meter: &Meter) -> usize {
        // Asked first: what it sent before it left may come right after a look at its socket.
        let left = peer.has_left();
        let got = peer.recv(frames, Some(meter));
        if left && (got < frames.len() || !peer.is_pending()) {
            self.forget(peer);
        }
        got
    }
}

fn find(members: &[Member], port: Port) -> Option<&Member> {
    members.binary_search_by_key(&port, Member::port).ok().and_then(|at| members.get(at))
}

/// A time that only grows, to the few milliseconds that cost nothing to ask for.
fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::MonotonicCoarse)).unwrap_or_default()
}
