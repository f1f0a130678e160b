//! One thread per queue pair.
//!
//! # Theory of operation
//! The thread sleeps in epoll until something happens: a command, a kick, a frame on a link. Then it works in rounds, one
//! batch out and one batch in, until a whole round moves nothing, or for longer if it was asked to poll (module `pace`);
//! only then does it ask the driver for kicks again, looks once more, and sleeps. While it works, nobody needs to wake it,
//! so nobody is asked to.
//!
//! Kicks and the data descriptors of links are registered edge-triggered, so that a descriptor that stays readable (a
//! guest without buffers, a peer that hung up, an odd kick descriptor) wakes the thread once and not for ever. What an edge
//! said is kept in `readable` and `blocked` until work takes it back. A link's writability is only watched while it is full.
//! One that stays full for a second does not stop the guest any longer: what it does not take is lost until it takes
//! frames again.
//!
//! A link whose frames come close together rests now and then (module `pace`). Meanwhile its readability is not watched, and
//! if there is nothing else to do, a timer ends the thread's sleep with the rest.
//!
//! The receive queue is not the thread's own: others deliver into it as well ([`Inlet`]). The thread takes its kicks
//! and gives it what waited for them.
//!
//! The owner's commands come through a channel and an eventfd. [`Worker::stop`] waits for the answer: when it returns,
//! nobody touches the ring any more. Links are shared by all workers of a NIC; only the first receives from them.
//!
//! A dead link is reported through the `lost` callback and forgotten; the owner brings a new one with
//! [`Worker::set_link`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};
use vdeplug::{Link, LinkError};

use crate::counters::Counters;
use crate::inlet::Inlet;
use crate::pace::{Arrivals, Next, Pace};
use crate::queue::{Queue, Start};
use crate::steer::Inlets;
use crate::{rx, tx};

/// The two queues of a pair, by the way their frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Into the guest.
    Rx,
    /// Out of the guest.
    Tx,
}

/// Tells the owner, from the worker's thread, that link number so-and-so is dead.
pub type LinkLost = Box<dyn Fn(usize, &LinkError) + Send>;

enum Command {
    Start(Side, Box<Start>, SyncSender<()>),
    Stop(Side, SyncSender<u16>),
    SetCall(Side, Option<OwnedFd>, SyncSender<()>),
    Enable(Side, bool, SyncSender<()>),
    SetLink(usize, Arc<dyn Link>),
    Exit,
}

/// Handle of a worker thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct Worker {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread of queue pair `pair`, whose frames for the guest go into `inlets`. The first pair's thread also
    /// reads from the links. `name` is the thread's and begins its log lines; `poll`: how long it goes on looking for frames
    /// after the last one before it sleeps.
    pub fn spawn(
        name: &str,
        pair: usize,
        inlets: Arc<Inlets>,
        poll: Duration,
        lost: LinkLost,
    ) -> std::io::Result<Self> {
        let (sender, commands) = channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let state = State::new(name, pair, inlets, lost, commands, wake.clone())?;
        let builder = std::thread::Builder::new().name(name.into()).stack_size(256 * 1024);
        let thread = Some(builder.spawn(move || state.run(poll))?);
        Ok(Self { commands: sender, wake, thread })
    }

    /// Runs a ring; it runs when this returns.
    pub fn start(&self, side: Side, start: Start) {
        self.ask(|reply| Command::Start(side, Box::new(start), reply));
    }

    /// Stops a ring and returns its next available index; 0 if it did not run.
    pub fn stop(&self, side: Side) -> u16 {
        self.ask(|reply| Command::Stop(side, reply)).unwrap_or(0)
    }

    /// Replaces the call descriptor of a running ring. The one before is closed when this returns: whoever sends descriptor
    /// after descriptor to a busy worker must not have them pile up.
    pub fn set_call(&self, side: Side, call: Option<OwnedFd>) {
        self.ask(|reply| Command::SetCall(side, call, reply));
    }

    /// Enables or disables a running ring. Who was told that it is enabled may count on getting what is sent from then on.
    pub fn enable(&self, side: Side, enabled: bool) {
        self.ask(|reply| Command::Enable(side, enabled, reply));
    }

    /// Plugs a link in as number `index`, in place of one that was there.
    pub fn set_link(&self, index: usize, link: Arc<dyn Link>) {
        self.command(Command::SetLink(index, link));
    }

    /// Gives a command and waits until it was carried out. `None`: the thread is gone.
    fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> Option<T> {
        let (reply, answer) = sync_channel(1);
        self.command(command(reply));
        answer.recv().ok()
    }

    fn command(&self, command: Command) {
        // The thread outlives this handle, so the channel is open; a full eventfd is readable already.
        let _ = self.commands.send(command);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.command(Command::Exit);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What an epoll event is about, packed into its data word: kind in the upper half, link number in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Command,
    Kick(Side),
    Data(usize),
    Control(usize),
    Alarm,
}

impl Source {
    fn pack(self) -> EventData {
        let (kind, index) = match self {
            Self::Command => (0, 0),
            Self::Kick(Side::Rx) => (1, 0),
            Self::Kick(Side::Tx) => (2, 0),
            Self::Data(index) => (3, index),
            Self::Control(index) => (4, index),
            Self::Alarm => (5, 0),
        };
        EventData::new_u64(kind << 32 | (index as u64 & 0xffff_ffff))
    }

    fn unpack(data: EventData) -> Self {
        let index = usize::try_from(data.u64() & 0xffff_ffff).unwrap_or(usize::MAX);
        match data.u64() >> 32 {
            1 => Self::Kick(Side::Rx),
            2 => Self::Kick(Side::Tx),
            3 => Self::Data(index),
            4 => Self::Control(index),
            5 => Self::Alarm,
            _ => Self::Command,
        }
    }
}

/// A link as this worker sees it.
struct Port {
    link: Arc<dyn Link>,
    /// An edge said that frames may wait, and not all were taken yet.
    readable: bool,
    /// Edges for frames are asked for; not while it rests.
    watched: bool,
    /// It is not read until then.
    rests_until: Option<Instant>,
    arrivals: Arrivals,
}

const EVENTS: usize = 16;

/// How long a full link may stop the queue. A switch that is well reads within milliseconds; one that hangs would hang the
/// guest's network with it, and a sender in the guest for good.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// The only link is full.
#[derive(Clone, Copy)]
struct Blocked {
    index: usize,
    /// When its time is up.
    until: Instant,
}

struct State {
    name: String,
    receives: bool,
    lost: LinkLost,
    commands: Receiver<Command>,
    wake: Arc<OwnedFd>,
    epoll: OwnedFd,
    /// Ends a sleep when a link has rested.
    alarm: OwnedFd,
    inlets: Arc<Inlets>,
    /// The pair's own among them.
    pair: usize,
    counters: Arc<Counters>,
    tx: Option<Queue>,
    /// What the guest sends is not looked at until then, and it is not asked for kicks.
    tx_rests_until: Option<Instant>,
    tx_arrivals: Arrivals,
    ports: Vec<Option<Port>>,
    /// Which link is read first in the next round.
    turn: usize,
    /// The only link is full; its becoming writable ends it.
    blocked: Option<Blocked>,
    /// It was for too long, and loses what it does not take until it takes something.
    lossy: bool,
    tx_scratch: tx::Scratch,
    reader: rx::Reader,
    /// Links that are up, for `tx::round`; kept in step with `ports`.
    up: Vec<(usize, Arc<dyn Link>)>,
}

impl State {
    fn new(
        name: &str,
        pair: usize,
        inlets: Arc<Inlets>,
        lost: LinkLost,
        commands: Receiver<Command>,
        wake: Arc<OwnedFd>,
    ) -> std::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &wake, Source::Command.pack(), EventFlags::IN)?;
        let alarm =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &alarm, Source::Alarm.pack(), EventFlags::IN | EventFlags::ET)?;
        Ok(Self {
            name: name.into(),
            receives: pair == 0,
            lost,
            commands,
            wake,
            epoll,
            alarm,
            counters: inlets.get(pair).map(|inlet| inlet.counters().clone()).unwrap_or_default(),
            inlets,
            pair,
            tx: None,
            tx_rests_until: None,
            tx_arrivals: Arrivals::new(Instant::now()),
            ports: Vec::new(),
            turn: 0,
            blocked: None,
            lossy: false,
            tx_scratch: tx::Scratch::default(),
            reader: rx::Reader::default(),
            up: Vec::new(),
        })
    }

    fn run(mut self, poll: Duration) {
        let mut events = Vec::with_capacity(EVENTS);
        let mut pace = Pace::new(poll);
        let mut next = Next::Sleep;
        loop {
            if next == Next::Sleep {
                self.set_alarm();
            }
            if next != Next::Round && !self.wait(&mut events, next == Next::Look) {
                return;
            }
            self.keep_time();
            let count = self.tx_round() + self.rx_round();
            next = match pace.after(count > 0) {
                // Not straight to another round: a driver that makes us look and look must not keep us from epoll.
                Next::Sleep if self.slipped_in() => Next::Look,
                next => next,
            };
        }
    }

    /// Waits for events, or only looks for them, and notes what they say. False: the owner is gone.
    fn wait(&mut self, events: &mut Vec<Event>, only_look: bool) -> bool {
        let limit = only_look.then(Timespec::default);
        match epoll::wait(&self.epoll, spare_capacity(events), limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                log::error!("{}: waiting for events failed: {errno}", self.name);
                return false;
            }
        }
        for event in events.drain(..) {
            match Source::unpack(event.data) {
                Source::Command => {
                    if !self.run_commands() {
                        return false;
                    }
                }
                Source::Kick(Side::Rx) => {
                    if let Some(inlet) = self.inlet() {
                        inlet.kicked();
                    }
                }
                Source::Kick(Side::Tx) => {
                    if let Some(queue) = &mut self.tx {
                        queue.clear_kick();
                        queue.ring.disable_kicks();
                    }
                }
                Source::Data(index) => self.data_event(index, event.flags),
                Source::Control(index) => self.control_event(index),
                Source::Alarm => {}
            }
        }
        true
    }

    /// Everything that is to happen at some time.
    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let rests = self.ports.iter().flatten().filter_map(|port| port.rests_until);
        rests.chain(self.tx_rests_until).chain(self.blocked.map(|blocked| blocked.until))
    }

    /// Does what is due.
    fn keep_time(&mut self) {
        if self.deadlines().next().is_none() {
            return;
        }
        let now = Instant::now();
        for port in self.ports.iter_mut().flatten() {
            port.rests_until.take_if(|until| *until <= now);
        }
        self.tx_rests_until.take_if(|until| *until <= now);
        // Goes on without the only link if it was full for too long.
        if let Some(blocked) = self.blocked.take_if(|blocked| blocked.until <= now) {
            self.watch(blocked.index);
            self.lossy = true;
        }
    }

    /// Lets a sleep end with the first deadline.
    fn set_alarm(&self) {
        let Some(end) = self.deadlines().min() else { return };
        // At least a little: a time of zero would mean never.
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let time = |duration| Timespec::try_from(duration).unwrap_or_default();
        let once = Itimerspec { it_interval: time(Duration::ZERO), it_value: time(left) };
        if let Err(errno) = timerfd_settime(&self.alarm, TimerfdTimerFlags::empty(), &once) {
            log::error!("{}: cannot set the timer: {errno}", self.name);
        }
    }

    fn is_blocked_by(&self, index: usize) -> bool {
        self.blocked.is_some_and(|blocked| blocked.index == index)
    }

    /// The receive side of the pair.
    fn inlet(&self) -> Option<&Inlet> {
        self.inlets.get(self.pair)
    }

    fn data_event(&mut self, index: usize, flags: EventFlags) {
        if flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP) && self.is_blocked_by(index)
        {
            self.blocked = None;
            self.watch(index);
        }
        if let Some(Some(port)) = self.ports.get_mut(index) {
            port.readable |=
                self.receives && flags.intersects(EventFlags::IN | EventFlags::ERR | EventFlags::HUP);
        }
    }

    fn control_event(&mut self, index: usize) {
        if let Some(Some(port)) = self.ports.get(index)
            && let Err(error) = port.link.check_control()
        {
            self.lose(index, &error);
        }
    }

    /// Carries out all commands. False: the owner is gone.
    fn run_commands(&mut self) -> bool {
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Start(side, start, reply) => {
                    self.start(side, *start);
                    let _ = reply.send(());
                }
                Command::Stop(side, reply) => {
                    let _ = reply.send(self.stop(side));
                }
                Command::SetCall(side, call, reply) => {
                    self.change(side, |queue| {
                        queue.call = call;
                        // What was used under the old descriptor may not have been told.
                        queue.tell();
                    });
                    let _ = reply.send(());
                }
                Command::Enable(side, enabled, reply) => {
                    self.change(side, |queue| queue.enabled = enabled);
                    let _ = reply.send(());
                }
                Command::SetLink(index, link) => self.set_link(index, link),
                Command::Exit => return false,
            }
        }
        true
    }

    fn change(&mut self, side: Side, change: impl FnOnce(&mut Queue)) {
        match (side, &mut self.tx) {
            (Side::Rx, _) => {
                if let Some(inlet) = self.inlet() {
                    inlet.change(change);
                }
            }
            (Side::Tx, Some(queue)) => change(queue),
            (Side::Tx, None) => {}
        }
    }

    fn start(&mut self, side: Side, start: Start) {
        self.stop(side);
        let mut queue = Queue::new(start);
        self.add(&queue.kick, Source::Kick(side), EventFlags::IN | EventFlags::ET);
        match (side, self.inlet()) {
            (Side::Rx, Some(inlet)) => inlet.start(queue),
            (Side::Rx, None) => {}
            (Side::Tx, _) => {
                queue.ring.disable_kicks();
                self.tx = Some(queue);
            }
        }
    }

    fn stop(&mut self, side: Side) -> u16 {
        let queue = match side {
            Side::Rx => self.inlet().and_then(Inlet::stop),
            Side::Tx => self.tx.take(),
        };
        queue.map_or(0, |queue| {
            let _ = epoll::delete(&self.epoll, &queue.kick);
            queue.ring.next_avail()
        })
    }

    fn set_link(&mut self, index: usize, link: Arc<dyn Link>) {
        self.unplug(index);
        while self.ports.len() <= index {
            self.ports.push(None);
        }
        if let Some(fd) = link.control_fd().filter(|_| self.receives) {
            self.add(fd, Source::Control(index), EventFlags::IN);
        }
        let port = Port {
            link,
            readable: self.receives,
            watched: self.receives,
            rests_until: None,
            arrivals: Arrivals::new(Instant::now()),
        };
        self.add(port.link.data_fd(), Source::Data(index), self.interest(&port, index));
        if let Some(slot) = self.ports.get_mut(index) {
            *slot = Some(port);
        }
        self.list_links();
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
        if let Some(Some(port)) = self.ports.get(index) {
            let data = Source::Data(index).pack();
            let interest = self.interest(port, index);
            if let Err(errno) = epoll::modify(&self.epoll, port.link.data_fd(), data, interest) {
                log::error!("{}: cannot watch link {index}: {errno}", self.name);
            }
        }
    }

    fn add(&self, fd: impl AsFd, source: Source, flags: EventFlags) {
        let fd: BorrowedFd<'_> = fd.as_fd();
        if let Err(errno) = epoll::add(&self.epoll, fd, source.pack(), flags) {
            log::warn!("{}: cannot watch {source:?}: {errno}", self.name);
        }
    }

    fn unplug(&mut self, index: usize) {
        if let Some(port) = self.ports.get_mut(index).and_then(Option::take) {
            let _ = epoll::delete(&self.epoll, port.link.data_fd());
            if let Some(fd) = port.link.control_fd().filter(|_| self.receives) {
                let _ = epoll::delete(&self.epoll, fd);
            }
        }
        if self.is_blocked_by(index) {
            self.blocked = None;
        }
        self.list_links();
    }

    fn list_links(&mut self) {
        self.up.clear();
        let up = self.ports.iter().enumerate().filter_map(|(i, p)| Some((i, p.as_ref()?.link.clone())));
        self.up.extend(up);
        self.lossy = false;
        // Only the only link may stop the queue.
        if self.up.len() > 1
            && let Some(blocked) = self.blocked.take()
        {
            self.watch(blocked.index);
        }
    }

    fn lose(&mut self, index: usize, error: &LinkError) {
        self.unplug(index);
        (self.lost)(index, error);
    }

    /// One batch out of the guest; returns the number of chains used up.
    fn tx_round(&mut self) -> usize {
        let may_send = self.blocked.is_none() && self.tx_rests_until.is_none();
        let Some(queue) = self.tx.as_mut().filter(|_| may_send) else { return 0 };
        let links = tx::Links { up: &self.up, lossy: self.lossy };
        let sender = tx::Sender { inlets: &self.inlets, pair: self.pair };
        let round = tx::round(queue, &sender, &links, &mut self.tx_scratch, &self.counters, &self.name);
        self.lossy &= !round.carried;
        if let Some(index) = round.blocked {
            self.blocked = Some(Blocked { index, until: Instant::now() + PATIENCE });
            self.watch(index);
        }
        if round.used > 0 && round.used < tx::BATCH {
            self.tx_rests_until = self.tx_arrivals.rest(round.used, Instant::now());
        }
        for (index, error) in &round.lost {
            self.lose(*index, error);
        }
        round.used
    }

    /// One batch towards the guest from each link that has something; returns how much was moved.
    fn rx_round(&mut self) -> usize {
        let mut moved = 0;
        let count = self.ports.len();
        for step in 0..count {
            let index = (self.turn + step) % count;
            let Some(Some(port)) = self.ports.get_mut(index) else { continue };
            if !port.readable || port.rests_until.is_some() {
                continue;
            }
            if !self.inlets.are_ready(&self.wake) {
                break;
            }
            match self.reader.round(&*port.link, &self.inlets, &self.counters) {
                Ok(round) => {
                    moved += round.moved;
                    if round.drained {
                        port.rests_until = port.arrivals.rest(round.moved, Instant::now());
                        let rests = port.rests_until.is_some();
                        port.readable = rests;
                        if port.watched == rests {
                            port.watched = !rests;
                            self.watch(index);
                        }
                    }
                }
                Err(error) => self.lose(index, &error),
            }
        }
        self.turn = self.turn.wrapping_add(1) % count.max(1);
        moved
    }

    /// Asks the driver for kicks before a sleep. True: do not sleep, work slipped in.
    fn slipped_in(&mut self) -> bool {
        if let Some(inlet) = self.inlet() {
            inlet.rest();
        }
        if self.blocked.is_none()
            && self.tx_rests_until.is_none()
            && let Some(queue) = &mut self.tx
            && queue.ring.enable_kicks()
        {
            queue.ring.disable_kicks();
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_survives_packing() {
        let all = [
            Source::Command,
            Source::Kick(Side::Rx),
            Source::Kick(Side::Tx),
            Source::Data(0),
            Source::Data(7),
            Source::Control(3),
            Source::Alarm,
        ];
        for source in all {
            assert_eq!(Source::unpack(source.pack()), source);
        }
    }
}
