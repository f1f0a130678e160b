//! The links of a NIC, as a thread sees them that sends to them and may receive from them.
//!
//! # Theory of operation
//! Data descriptors are watched edge-triggered, so that one that stays readable (a peer that hung up) wakes the thread once
//! and not for ever. What an edge said is kept in `readable` and `blocked` until work takes it back. A link's writability is
//! only watched while it is full, its readability not while it rests (module `pace`).
//!
//! The only link stops the guest while it is full. One that stays full for a second does not any longer: what it does not
//! take is lost until it takes frames again. Of several links, a full one loses what it does not take at once.
//!
//! One link can take the place of another without a frame lost ([`Ports::hand_over`]): from one frame to the next, all that
//! is sent goes to the new one, and what is still under way on the old one is received until that is unplugged.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, Event, EventData, EventFlags};
use vdeplug::{Link, LinkError};

use crate::pace::Rest;
use crate::tx;

/// How long a full link may stop the guest. A switch that is well reads within milliseconds; one that hangs would hang the
/// guest's network with it, and a sender in the guest for good.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// What an event is about, in the upper half of its word; the lower one is the link's number. The thread's own events have
/// smaller words than these.
const DATA: u64 = 1 << 32;
const CONTROL: u64 = 2 << 32;

/// A link that is up.
struct Port {
    /// No other link of the NIC ever has it.
    number: usize,
    /// Frames are sent to it.
    sends: bool,
    link: Arc<dyn Link>,
    /// An edge said that frames may wait, and not all were taken yet.
    readable: bool,
    /// Edges for frames are asked for; not while it rests.
    watched: bool,
    rest: Rest,
}

/// The only link is full.
#[derive(Clone, Copy)]
struct Blocked {
    number: usize,
    /// When its time is up.
    until: Instant,
}

/// All links.
pub struct Ports {
    epoll: Arc<OwnedFd>,
    receives: bool,
    ports: Vec<Port>,
    /// Those of them that are sent to.
    up: Vec<(usize, Arc<dyn Link>)>,
    /// Its becoming writable ends it.
    blocked: Option<Blocked>,
    /// The only link was full for too long, and loses what it does not take until it takes something.
    lossy: bool,
    /// Which link is read first in the next round.
    turn: usize,
}

impl Ports {
    /// No links yet. `receives`: frames and the ends of networks are watched as well.
    pub fn new(epoll: Arc<OwnedFd>, receives: bool) -> Self {
        let (ports, up) = (Vec::new(), Vec::new());
        Self { epoll, receives, ports, up, blocked: None, lossy: false, turn: 0 }
    }

    /// Plugs a link in as this number, in place of one that had it.
    pub fn plug(&mut self, number: usize, link: Arc<dyn Link>) -> rustix::io::Result<()> {
        self.unplug(number);
        if let Some(fd) = link.control_fd().filter(|_| self.receives) {
            epoll::add(&self.epoll, fd, word(CONTROL, number), EventFlags::IN)?;
        }
        let (receives, rest) = (self.receives, Rest::new(Instant::now()));
        let port = Port { number, sends: true, link, readable: receives, watched: receives, rest };
        epoll::add(&self.epoll, port.link.data_fd(), word(DATA, number), self.interest(&port))?;
        self.ports.push(port);
        self.list();
        Ok(())
    }

    /// Plugs a link in, and sends nothing to the old one any more.
    pub fn hand_over(&mut self, old: usize, number: usize, link: Arc<dyn Link>) -> rustix::io::Result<()> {
        if let Some(port) = self.port_mut(old) {
            port.sends = false;
        }
        self.plug(number, link)
    }

    /// Forgets a link.
    pub fn unplug(&mut self, number: usize) {
        if let Some(at) = self.ports.iter().position(|port| port.number == number) {
            let port = self.ports.remove(at);
            let _ = epoll::delete(&self.epoll, port.link.data_fd());
            if let Some(fd) = port.link.control_fd().filter(|_| self.receives) {
                let _ = epoll::delete(&self.epoll, fd);
            }
        }
        self.list();
    }

    /// Notes what an event says, if it is one of a link. Returns the link that is dead.
    #[must_use]
    pub fn on_event(&mut self, event: &Event) -> Option<(usize, LinkError)> {
        let number = usize::try_from(event.data.u64() & (DATA - 1)).ok()?;
        match event.data.u64() & !(DATA - 1) {
            DATA => {
                self.on_data(number, event.flags);
                None
            }
            CONTROL => {
                let error = self.port(number)?.link.check_control().err()?;
                Some((number, error))
            }
            _ => None,
        }
    }

    fn on_data(&mut self, number: usize, flags: EventFlags) {
        let ended = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        if (ended || flags.contains(EventFlags::OUT)) && self.is_blocked_by(number) {
            self.blocked = None;
            self.watch(number);
        }
        let receives = self.receives;
        if let Some(port) = self.port_mut(number) {
            port.readable |= receives && (ended || flags.contains(EventFlags::IN));
        }
    }

    /// Everything that is to happen at some time.
    pub fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let rests = self.ports.iter().filter_map(|port| port.rest.until());
        rests.chain(self.blocked.map(|blocked| blocked.until))
    }

    /// Does what is due.
    pub fn keep_time(&mut self, now: Instant) {
        for port in &mut self.ports {
            port.rest.keep_time(now);
        }
        // Goes on without the only link.
        if let Some(blocked) = self.blocked.take_if(|blocked| blocked.until <= now) {
            self.watch(blocked.number);
            self.lossy = true;
        }
    }

    /// Whether the only link is full.
    pub fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Where the next batch goes; nowhere while the only link is full.
    pub fn links(&self) -> Option<tx::Links<'_>> {
        (!self.is_blocked()).then_some(tx::Links { up: &self.up, lossy: self.lossy })
    }

    /// Notes how full the links were for a batch.
    pub fn sent(&mut self, round: &tx::Round) {
        self.lossy &= !round.carried;
        if let Some(number) = round.blocked {
            self.blocked = Some(Blocked { number, until: Instant::now() + PATIENCE });
            self.watch(number);
        }
    }

    /// The next link that may have frames, all of them in turn.
    pub fn next_readable(&mut self) -> Option<(usize, Arc<dyn Link>)> {
        let count = self.ports.len();
        for step in 0..count {
            let at = (self.turn + step) % count;
            if let Some(port) = self.ports.get(at)
                && port.readable
                && port.rest.until().is_none()
            {
                self.turn = at + 1;
                return Some((port.number, port.link.clone()));
            }
        }
        None
    }

    /// A link had no more than these frames.
    pub fn drained(&mut self, number: usize, frames: usize) {
        let Some(port) = self.port_mut(number) else { return };
        let rests = port.rest.after(frames, Instant::now());
        port.readable = rests;
        if port.watched == rests {
            port.watched = !rests;
            self.watch(number);
        }
    }

    fn port(&self, number: usize) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    fn port_mut(&mut self, number: usize) -> Option<&mut Port> {
        self.ports.iter_mut().find(|port| port.number == number)
    }

    fn is_blocked_by(&self, number: usize) -> bool {
        self.blocked.is_some_and(|blocked| blocked.number == number)
    }

    /// What is to be watched on a link's data descriptor.
    fn interest(&self, port: &Port) -> EventFlags {
        let mut flags = EventFlags::ET;
        flags.set(EventFlags::IN, port.watched);
        flags.set(EventFlags::OUT, self.is_blocked_by(port.number));
        flags
    }

    /// Watches that. What is there already counts as an edge.
    fn watch(&self, number: usize) {
        if let Some(port) = self.port(number)
            && let Err(errno) =
                epoll::modify(&self.epoll, port.link.data_fd(), word(DATA, number), self.interest(port))
        {
            log::error!("cannot watch link {number}: {errno}");
        }
    }

    /// Lists those that are sent to.
    fn list(&mut self) {
        let up = self.ports.iter().filter(|port| port.sends);
        self.up = up.map(|port| (port.number, port.link.clone())).collect();
        self.lossy = false;
        // Only the only link may stop the guest.
        let may = |blocked: &Blocked| matches!(self.up[..], [(only, _)] if only == blocked.number);
        if let Some(blocked) = self.blocked.take_if(|blocked| !may(blocked)) {
            self.watch(blocked.number);
        }
    }
}

fn word(kind: u64, number: usize) -> EventData {
    EventData::new_u64(kind | (number as u64 & (DATA - 1)))
}
