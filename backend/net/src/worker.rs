//! One thread per queue pair.
//!
//! # Theory of operation
//! The thread sleeps in epoll until something happens: a command, a kick, a frame on a link. Then it works in rounds, one
//! batch out and one batch in, until a whole round moves nothing, or for longer if it was asked to poll (module `pace`);
//! only then does it ask the driver for kicks again, looks once more, and sleeps. While it works, nobody needs to wake it,
//! so nobody is asked to.
//!
//! Kicks are registered edge-triggered, so that a descriptor that stays readable (a guest without buffers, an odd
//! descriptor) wakes the thread once and not for ever. The links are module `ports`.
//!
//! A TX ring whose frames come close together rests now and then, as links do (module `pace`): kicks stay off meanwhile, and
//! if there is nothing else to do, a timer ends the thread's sleep.
//!
//! The receive queue is not the thread's own: others deliver into it as well ([`Inlet`]). The thread takes its kicks
//! and gives it what waited for them.
//!
//! The owner's commands are carried out between rounds. [`Worker::stop`] waits for the answer: when it returns,
//! nobody touches the ring any more. Links are shared by all workers of a NIC; only the first receives from them.
//!
//! A dead link is reported through the `lost` callback and forgotten; the owner brings a new one with
//! [`Worker::set_link`].

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use rustix::event::epoll::{Event, EventFlags};
use vdeplug::{Link, LinkError};

use crate::counters::Counters;
use crate::events::{Events, Wait};
use crate::inlet::Inlet;
use crate::pace::{Next, Pace, Rest};
use crate::ports::Ports;
use crate::queue::{Level, Queue, Start};
use crate::steer::Inlets;
use crate::thread::{Commands, OwnerGone, Thread};
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
    HandOver(usize, usize, Arc<dyn Link>, SyncSender<()>),
    Unplug(usize, SyncSender<()>),
    Look(SyncSender<[Level; 2]>),
}

/// Handle of a worker thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct Worker(Thread<Command>);

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
        let thread = Thread::spawn(name, |commands| {
            let state = State::new(name, pair, inlets, lost, commands)?;
            Ok(move || state.run(poll))
        })?;
        Ok(Self(thread))
    }

    /// Runs a ring; it runs when this returns.
    pub fn start(&self, side: Side, start: Start) {
        self.0.ask(|reply| Command::Start(side, Box::new(start), reply));
    }

    /// Stops a ring and returns its next available index; 0 if it did not run.
    pub fn stop(&self, side: Side) -> u16 {
        self.0.ask(|reply| Command::Stop(side, reply)).unwrap_or(0)
    }

    /// Replaces the call descriptor of a running ring. The one before is closed when this returns: whoever sends descriptor
    /// after descriptor to a busy worker must not have them pile up.
    pub fn set_call(&self, side: Side, call: Option<OwnedFd>) {
        self.0.ask(|reply| Command::SetCall(side, call, reply));
    }

    /// Enables or disables a running ring. Who was told that it is enabled may count on getting what is sent from then on.
    pub fn enable(&self, side: Side, enabled: bool) {
        self.0.ask(|reply| Command::Enable(side, enabled, reply));
    }

    /// How full the rings are: the one into the guest, then the one out of it.
    pub fn levels(&self) -> [Level; 2] {
        self.0.ask(Command::Look).unwrap_or_default()
    }

    /// Plugs a link in as this number, in place of one that had it.
    pub fn set_link(&self, number: usize, link: Arc<dyn Link>) {
        self.0.tell(Command::SetLink(number, link));
    }

    /// Plugs a link in that takes the place of `old`: nothing is sent to that one any more when this returns, and what it
    /// brings is received until it is unplugged.
    pub fn hand_over(&self, old: usize, number: usize, link: &Arc<dyn Link>) {
        self.0.ask(|reply| Command::HandOver(old, number, link.clone(), reply));
    }

    /// Forgets a link; this thread has let go of it when this returns.
    pub fn unplug(&self, number: usize) {
        self.0.ask(|reply| Command::Unplug(number, reply));
    }
}

/// What events are about: their words. Those of links are larger.
const COMMANDS: u64 = 0;
const KICK_RX: u64 = 1;
const KICK_TX: u64 = 2;

fn kick_word(side: Side) -> u64 {
    match side {
        Side::Rx => KICK_RX,
        Side::Tx => KICK_TX,
    }
}

struct State {
    name: String,
    lost: LinkLost,
    commands: Commands<Command>,
    events: Events,
    inlets: Arc<Inlets>,
    /// The pair's own among them.
    pair: usize,
    counters: Arc<Counters>,
    tx: Option<Queue>,
    /// Of what the guest sends. Meanwhile it is not asked for kicks.
    tx_rest: Rest,
    ports: Ports,
    tx_scratch: tx::Scratch,
    reader: rx::Reader,
}

impl State {
    fn new(
        name: &str,
        pair: usize,
        inlets: Arc<Inlets>,
        lost: LinkLost,
        commands: Commands<Command>,
    ) -> std::io::Result<Self> {
        let events = Events::new()?;
        events.add(commands.wake(), COMMANDS, EventFlags::IN)?;
        Ok(Self {
            name: name.into(),
            lost,
            commands,
            counters: inlets.get(pair).map(|inlet| inlet.counters().clone()).unwrap_or_default(),
            inlets,
            pair,
            tx: None,
            tx_rest: Rest::new(Instant::now()),
            ports: Ports::new(events.epoll().clone(), pair == 0),
            events,
            tx_scratch: tx::Scratch::default(),
            reader: rx::Reader::default(),
        })
    }

    fn run(mut self, poll: Duration) {
        let mut events = Events::list();
        let mut pace = Pace::new(poll);
        let mut next = Next::Sleep;
        loop {
            if next != Next::Round && self.wait(&mut events, next == Next::Look).is_err() {
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

    /// Waits for events, or only looks for them, and notes what they say.
    fn wait(&mut self, events: &mut Vec<Event>, only_look: bool) -> Result<(), OwnerGone> {
        let wait = if only_look { Wait::Look } else { Wait::Sleep(self.deadlines().min()) };
        if let Err(errno) = self.events.wait(events, wait) {
            log::error!("{}: waiting for events failed: {errno}", self.name);
            return Err(OwnerGone);
        }
        for event in events.drain(..) {
            match event.data.u64() {
                COMMANDS => self.run_commands()?,
                KICK_RX => {
                    if let Some(inlet) = self.inlet() {
                        inlet.kicked();
                    }
                }
                KICK_TX => {
                    if let Some(queue) = &mut self.tx {
                        queue.clear_kick();
                        queue.ring.disable_kicks();
                    }
                }
                _ => {
                    if let Some((index, error)) = self.ports.on_event(&event) {
                        self.lose(index, &error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Everything that is to happen at some time.
    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        self.ports.deadlines().chain(self.tx_rest.until())
    }

    /// Does what is due.
    fn keep_time(&mut self) {
        if self.deadlines().next().is_some() {
            let now = Instant::now();
            self.ports.keep_time(now);
            self.tx_rest.keep_time(now);
        }
    }

    /// The receive side of the pair.
    fn inlet(&self) -> Option<&Inlet> {
        self.inlets.get(self.pair)
    }

    /// Carries out all commands.
    fn run_commands(&mut self) -> Result<(), OwnerGone> {
        self.commands.awake();
        while let Some(command) = self.commands.next()? {
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
                Command::SetLink(number, link) => {
                    let plugged = self.ports.plug(number, link);
                    self.warn_of(number, plugged);
                }
                Command::HandOver(old, number, link, reply) => {
                    let plugged = self.ports.hand_over(old, number, link);
                    self.warn_of(number, plugged);
                    let _ = reply.send(());
                }
                Command::Unplug(number, reply) => {
                    self.ports.unplug(number);
                    let _ = reply.send(());
                }
                Command::Look(reply) => {
                    let _ = reply.send([
                        self.inlet().map(Inlet::level).unwrap_or_default(),
                        self.tx.as_ref().map(Queue::level).unwrap_or_default(),
                    ]);
                }
            }
        }
        Ok(())
    }

    fn warn_of(&self, number: usize, plugged: rustix::io::Result<()>) {
        if let Err(errno) = plugged {
            log::warn!("{}: cannot watch link {number}: {errno}", self.name);
        }
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
        if let Err(errno) = self.events.add(&queue.kick, kick_word(side), EventFlags::IN | EventFlags::ET) {
            log::warn!("{}: cannot watch the kicks of {side:?}: {errno}", self.name);
        }
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
            self.events.remove(&queue.kick);
            queue.ring.next_avail()
        })
    }

    fn lose(&mut self, index: usize, error: &LinkError) {
        self.ports.unplug(index);
        (self.lost)(index, error);
    }

    /// One batch out of the guest; returns the number of chains used up.
    fn tx_round(&mut self) -> usize {
        let Some(links) = self.ports.links().filter(|_| self.tx_rest.until().is_none()) else { return 0 };
        let Some(queue) = &mut self.tx else { return 0 };
        let sender = tx::Sender { inlets: &self.inlets, pair: self.pair };
        let round = tx::round(queue, &sender, &links, &mut self.tx_scratch, &self.counters, &self.name);
        self.ports.sent(&round);
        if round.used > 0 && round.used < tx::BATCH {
            self.tx_rest.after(round.used, Instant::now());
        }
        for (index, error) in &round.lost {
            self.lose(*index, error);
        }
        round.used
    }

    /// One batch towards the guest; returns 0 if no link may have had frames, or they cannot be placed.
    fn rx_round(&mut self) -> usize {
        let Some((index, link)) = self.ports.next_readable() else { return 0 };
        if !self.inlets.are_ready(self.commands.wake()) {
            return 0;
        }
        match self.reader.round(&*link, &self.inlets, &self.counters) {
            Ok(round) => {
                if round.drained {
                    self.ports.drained(index, round.moved);
                }
            }
            Err(error) => self.lose(index, &error),
        }
        // This one may have had nothing, and another one has.
        1
    }

    /// Asks the driver for kicks before a sleep. True: do not sleep, work slipped in.
    fn slipped_in(&mut self) -> bool {
        if let Some(inlet) = self.inlet() {
            inlet.rest();
        }
        if !self.ports.is_blocked()
            && self.tx_rest.until().is_none()
            && let Some(queue) = &mut self.tx
            && queue.ring.enable_kicks()
        {
            queue.ring.disable_kicks();
            return true;
        }
        false
    }
}
