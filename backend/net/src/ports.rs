//! The links of a NIC, as a thread sees them that sends to them and may receive from them.
//!
//! # Theory of operation
//! Data descriptors are watched edge-triggered, so that one that stays readable (a peer that hung up) wakes the thread once
//! and not for ever. What an edge said is kept in `readable` and `blocked` until work takes it back. A link's writability is
//! only watched while it is full, its readability not while it rests (module `pace`).
//!
//! The only link stops the guest while it is full. One that stays full for a second does not any longer: what it does not
//! take is lost until it takes frames again. Of several links, a full one loses what it does not take at once.

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
    index: usize,
    /// When its time is up.
    until: Instant,
}

/// All links, by their numbers.
pub struct Ports {
    epoll: Arc<OwnedFd>,
    receives: bool,
    slots: Vec<Option<Port>>,
    /// Those in `slots`, for the senders.
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
        let (slots, up) = (Vec::new(), Vec::new());
        Self { epoll, receives, slots, up, blocked: None, lossy: false, turn: 0 }
    }

    /// Plugs a link in as number `index`, in place of one that was there.
    pub fn plug(&mut self, index: usize, link: Arc<dyn Link>) -> rustix::io::Result<()> {
        self.unplug(index);
        while self.slots.len() <= index {
            self.slots.push(None);
        }
        if let Some(fd) = link.control_fd().filter(|_| self.receives) {
            epoll::add(&self.epoll, fd, word(CONTROL, index), EventFlags::IN)?;
        }
        let receives = self.receives;
        let port = Port { link, readable: receives, watched: receives, rest: Rest::new(Instant::now()) };
        epoll::add(&self.epoll, port.link.data_fd(), word(DATA, index), self.interest(&port, index))?;
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(port);
        }
        self.list();
        Ok(())
    }

    /// Forgets a link.
    pub fn unplug(&mut self, index: usize) {
        if let Some(port) = self.slots.get_mut(index).and_then(Option::take) {
            let _ = epoll::delete(&self.epoll, port.link.data_fd());
            if let Some(fd) = port.link.control_fd().filter(|_| self.receives) {
                let _ = epoll::delete(&self.epoll, fd);
            }
        }
        self.blocked = self.blocked.filter(|blocked| blocked.index != index);
        self.list();
    }

    /// Notes what an event says, if it is one of a link. Returns the link that is dead.
    #[must_use]
    pub fn on_event(&mut self, event: &Event) -> Option<(usize, LinkError)> {
        let index = usize::try_from(event.data.u64() & (DATA - 1)).ok()?;
        match event.data.u64() & !(DATA - 1) {
            DATA => {
                self.on_data(index, event.flags);
                None
            }
            CONTROL => {
                let error = self.slots.get(index)?.as_ref()?.link.check_control().err()?;
                Some((index, error))
            }
            _ => None,
        }
    }

    fn on_data(&mut self, index: usize, flags: EventFlags) {
        let ended = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        if (ended || flags.contains(EventFlags::OUT)) && self.is_blocked_by(index) {
            self.blocked = None;
            self.watch(index);
        }
        if let Some(Some(port)) = self.slots.get_mut(index) {
            port.readable |= self.receives && (ended || flags.contains(EventFlags::IN));
        }
    }

    /// Everything that is to happen at some time.
    pub fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let rests = self.slots.iter().flatten().filter_map(|port| port.rest.until());
        rests.chain(self.blocked.map(|blocked| blocked.until))
    }

    /// Does what is due.
    pub fn keep_time(&mut self, now: Instant) {
        for port in self.slots.iter_mut().flatten() {
            port.rest.keep_time(now);
        }
        // Goes on without the only link.
        if let Some(blocked) = self.blocked.take_if(|blocked| blocked.until <= now) {
            self.watch(blocked.index);
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
        if let Some(index) = round.blocked {
            self.blocked = Some(Blocked { index, until: Instant::now() + PATIENCE });
            self.watch(index);
        }
    }

    /// The next link that may have frames, all of them in turn.
    pub fn next_readable(&mut self) -> Option<(usize, Arc<dyn Link>)> {
        let count = self.slots.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            if let Some(Some(port)) = self.slots.get(index)
                && port.readable
                && port.rest.until().is_none()
            {
                self.turn = index + 1;
                return Some((index, port.link.clone()));
            }
        }
        None
    }

    /// A link had no more than these frames.
    pub fn drained(&mut self, index: usize, frames: usize) {
        let Some(Some(port)) = self.slots.get_mut(index) else { return };
        let rests = port.rest.after(frames, Instant::now());
        port.readable = rests;
        if port.watched == rests {
            port.watched = !rests;
            self.watch(index);
        }
    }

    fn is_blocked_by(&self, index: usize) -> bool {
        self.blocked.is_some_and(|blocked| blocked.index == index)
    }

    /// What is to be watched on a link's data descriptor.
    fn interest(&self, port: &Port, index: usize) -> EventFlags {
        let mut flags = EventFlags::ET;
        flags.set(EventFlags::IN, port.watched);
        flags.set(EventFlags::OUT, self.is_blocked_by(index));
        flags
    }

    /// Watches that. What is there already counts as an edge.
    fn watch(&self, index: usize) {
        if let Some(Some(port)) = self.slots.get(index)
            && let Err(errno) =
                epoll::modify(&self.epoll, port.link.data_fd(), word(DATA, index), self.interest(port, index))
        {
            log::error!("cannot watch link {index}: {errno}");
        }
    }

    fn list(&mut self) {
        let up = self.slots.iter().enumerate();
        self.up = up.filter_map(|(index, port)| Some((index, port.as_ref()?.link.clone()))).collect();
        self.lossy = false;
        // Only the only link may stop the guest.
        if self.up.len() > 1
            && let Some(blocked) = self.blocked.take()
        {
            self.watch(blocked.index);
        }
    }
}

fn word(kind: u64, index: usize) -> EventData {
    EventData::new_u64(kind | (index as u64 & (DATA - 1)))
}
