//! The links of a relay.
//!
//! Their data descriptors are watched edge-triggered; what an edge said is kept in `readable` and `blocked` until work takes
//! it back. That a link can be written to is watched only while it is full. The only link stops the guest while it is full,
//! for as long as one stops a virtio NIC; then what it does not take is lost until it takes frames again.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventFlags};
use vdeplug::{Link, LinkError};
use virtio_net::{PATIENCE, TxLinks, TxRound};

use super::{Source, interest};

/// A link that is up.
struct Port {
    link: Arc<dyn Link>,
    /// An edge said that frames may wait, and not all were taken yet.
    readable: bool,
}

/// All links, by their numbers.
#[derive(Default)]
pub struct Ports {
    slots: Vec<Option<Port>>,
    up: Vec<(usize, Arc<dyn Link>)>,
    /// The only link is full: its number, and when its time is up. Its becoming writable ends it.
    blocked: Option<(usize, Instant)>,
    /// It was for too long, and loses what it does not take until it takes something.
    lossy: bool,
    /// Which link is read first in the next round.
    turn: usize,
}

impl Ports {
    /// Where the next batch goes; `None` while the only link is full.
    pub fn links(&self) -> Option<TxLinks<'_>> {
        self.blocked.is_none().then_some(TxLinks { up: &self.up, lossy: self.lossy })
    }

    /// Notes how full the links were for a batch.
    pub fn sent(&mut self, epoll: &OwnedFd, round: &TxRound) {
        self.lossy &= !round.carried;
        if let Some(index) = round.blocked {
            self.blocked = Some((index, Instant::now() + PATIENCE));
            self.watch(epoll, index, true);
        }
    }

    /// How long the only link may still be full.
    pub fn patience(&self) -> Option<Duration> {
        self.blocked.map(|(_, until)| until.saturating_duration_since(Instant::now()))
    }

    /// Goes on without the only link if it was full for too long.
    pub fn lose_patience(&mut self, epoll: &OwnedFd) {
        if let Some((index, _)) = self.blocked.take_if(|(_, until)| Instant::now() >= *until) {
            self.watch(epoll, index, false);
            self.lossy = true;
        }
    }

    /// Plugs a link in as number `index`, in place of one that was there.
    pub fn plug(&mut self, epoll: &OwnedFd, index: usize, link: Arc<dyn Link>) -> rustix::io::Result<()> {
        self.unplug(epoll, index);
        while self.slots.len() <= index {
            self.slots.push(None);
        }
        if let Some(fd) = link.control_fd() {
            epoll::add(epoll, fd, Source::Control(index).pack(), EventFlags::IN)?;
        }
        epoll::add(epoll, link.data_fd(), Source::Data(index).pack(), interest(false))?;
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Some(Port { link, readable: true });
        }
        self.list(epoll);
        Ok(())
    }

    /// Forgets a link.
    pub fn unplug(&mut self, epoll: &OwnedFd, index: usize) {
        if let Some(port) = self.slots.get_mut(index).and_then(Option::take) {
            let _ = epoll::delete(epoll, port.link.data_fd());
            if let Some(fd) = port.link.control_fd() {
                let _ = epoll::delete(epoll, fd);
            }
        }
        self.blocked = self.blocked.filter(|(blocked, _)| *blocked != index);
        self.list(epoll);
    }

    /// Notes what an edge of a data descriptor says.
    pub fn on_data(&mut self, epoll: &OwnedFd, index: usize, flags: EventFlags) {
        if flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP)
            && self.blocked.take_if(|(blocked, _)| *blocked == index).is_some()
        {
            self.watch(epoll, index, false);
        }
        if let Some(Some(port)) = self.slots.get_mut(index) {
            port.readable |= flags.intersects(EventFlags::IN | EventFlags::ERR | EventFlags::HUP);
        }
    }

    /// Asks a link whether its network is still there.
    pub fn on_control(&self, index: usize) -> Result<(), LinkError> {
        self.slots.get(index).and_then(Option::as_ref).map_or(Ok(()), |port| port.link.check_control())
    }

    /// The next link with frames, all of them in turn.
    pub fn next_readable(&mut self) -> Option<(usize, Arc<dyn Link>)> {
        let count = self.slots.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            if let Some(Some(port)) = self.slots.get(index)
                && port.readable
            {
                self.turn = index + 1;
                return Some((index, port.link.clone()));
            }
        }
        None
    }

    /// A link had no more frames.
    pub fn drained(&mut self, index: usize) {
        if let Some(Some(port)) = self.slots.get_mut(index) {
            port.readable = false;
        }
    }

    fn watch(&self, epoll: &OwnedFd, index: usize, writable: bool) {
        if let Some(Some(port)) = self.slots.get(index)
            && let Err(errno) =
                epoll::modify(epoll, port.link.data_fd(), Source::Data(index).pack(), interest(writable))
        {
            log::error!("cannot watch link {index}: {errno}");
        }
    }

    fn list(&mut self, epoll: &OwnedFd) {
        let up = self.slots.iter().enumerate();
        self.up = up.filter_map(|(index, port)| Some((index, port.as_ref()?.link.clone()))).collect();
        self.lossy = false;
        // Only the only link may stop the guest.
        if self.up.len() > 1
            && let Some((index, _)) = self.blocked.take()
        {
            self.watch(epoll, index, false);
        }
    }
}
