//! A NIC whose model is not virtio: QEMU emulates it, and its frames come and go through QEMU's `-netdev stream`.
//!
//! ```text
//!  relay   the thread: its event loop, and the handle by which the NIC's owner commands it
//!  tx      bytes from QEMU -> frames -> links
//!  rx      links -> frames -> bytes for QEMU
//! ```
//!
//! # Theory of operation
//! One thread per NIC stands between the socket and the links, as a worker of `virtio_net` does between virtqueues and
//! links, and with the same rules: edge-triggered readiness, rounds of one batch out and one batch in until nothing moves,
//! bounded memory both ways, a dead link reported through the `lost` callback and forgotten. The links are opened without
//! offloads, because such a guest has to be given complete frames.
//!
//! Who is connected is the owner's affair: it accepts, [`Relay::connect`]s, watches for the end of the connection, and then
//! [`Relay::disconnect`]s. The relay ends a connection by shutting the socket down, which the owner sees. While nobody is
//! connected, frames stay in the network's queues until those are full.
//!
//! A stream and not datagrams, which QEMU knows as well: one call carries many frames into QEMU, a full socket is waited
//! for by both sides, and each sees the other's end. QEMU's datagram socket carries one frame a call; it sends without
//! being connected, and so can neither see our end nor wait until we have room.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod rx;
mod tx;

use std::io::{ErrorKind, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use rustix::event::epoll::{Event, EventFlags};
use vdeplug::{Link, LinkError};
use virtio_net::events::{Events, Wait};
use virtio_net::ports::Ports;
use virtio_net::thread::{Commands, OwnerGone, Thread};
use virtio_net::{Counters, LinkLost, Next, Pace};

use rx::Outbox;
use tx::Inbox;

enum Command {
    Connect(UnixStream),
    Disconnect(SyncSender<()>),
    SetLink(usize, Arc<dyn Link>),
    HandOver(usize, usize, Arc<dyn Link>, SyncSender<()>),
    Unplug(usize, SyncSender<()>),
}

/// Handle of a relay's thread. Dropping it ends the thread.
#[derive(Debug)]
pub struct Relay {
    thread: Thread<Command>,
    counters: Arc<Counters>,
}

impl Relay {
    /// Starts the thread. `name` is the thread's and begins its log lines; `poll`: how long it goes on looking for frames
    /// after the last one before it sleeps.
    pub fn spawn(name: &str, poll: Duration, lost: LinkLost) -> std::io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let thread = Thread::spawn(name, |commands| {
            let state = State::new(name, lost, commands, counters.clone())?;
            Ok(move || state.run(poll))
        })?;
        Ok(Self { thread, counters })
    }

    /// What happened to frames so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Serves a connection from now on, which is non-blocking.
    pub fn connect(&self, socket: UnixStream) {
        self.thread.tell(Command::Connect(socket));
    }

    /// Passes on what the other end wrote before it went, and forgets the connection. When this returns, all of it is
    /// counted.
    pub fn disconnect(&self) {
        // Without an answer the thread is gone, and with it the connection.
        let _ = self.thread.ask(Command::Disconnect);
    }

    /// Plugs a link in as this number, in place of one that had it.
    pub fn set_link(&self, number: usize, link: Arc<dyn Link>) {
        self.thread.tell(Command::SetLink(number, link));
    }

    /// Plugs a link in that takes the place of `old`, as a worker of a virtio NIC does.
    pub fn hand_over(&self, old: usize, number: usize, link: &Arc<dyn Link>) {
        let _ = self.thread.ask(|reply| Command::HandOver(old, number, link.clone(), reply));
    }

    /// Forgets a link; the thread has let go of it when this returns.
    pub fn unplug(&self, number: usize) {
        let _ = self.thread.ask(|reply| Command::Unplug(number, reply));
    }
}

/// What events are about: their words. Those of links are larger.
const COMMANDS: u64 = 0;
const SOCKET: u64 = 1;

/// The connection to QEMU.
struct Peer {
    socket: UnixStream,
    /// An edge said that bytes may wait, and not all were read yet.
    readable: bool,
    /// It takes no more; its becoming writable ends it, and is watched only then.
    full: bool,
}

struct State {
    name: String,
    lost: LinkLost,
    commands: Commands<Command>,
    events: Events,
    counters: Arc<Counters>,
    peer: Option<Peer>,
    ports: Ports,
    inbox: Inbox,
    outbox: Outbox,
}

impl State {
    fn new(
        name: &str,
        lost: LinkLost,
        commands: Commands<Command>,
        counters: Arc<Counters>,
    ) -> std::io::Result<Self> {
        let events = Events::new()?;
        events.add(commands.wake(), COMMANDS, EventFlags::IN)?;
        Ok(Self {
            name: name.into(),
            lost,
            commands,
            counters,
            peer: None,
            ports: Ports::new(events.epoll().clone(), true),
            events,
            inbox: Inbox::new(),
            outbox: Outbox::new(),
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
            if self.ports.deadlines().next().is_some() {
                self.ports.keep_time(Instant::now());
            }
            let count = self.tx_round() + self.rx_round();
            next = pace.after(count > 0);
        }
    }

    /// Waits for events, or only looks for them, and notes what they say.
    fn wait(&mut self, events: &mut Vec<Event>, only_look: bool) -> Result<(), OwnerGone> {
        let wait = if only_look { Wait::Look } else { Wait::Sleep(self.ports.deadlines().min()) };
        if let Err(errno) = self.events.wait(events, wait) {
            log::error!("{}: waiting for events failed: {errno}", self.name);
            return Err(OwnerGone);
        }
        for event in events.drain(..) {
            match event.data.u64() {
                COMMANDS => self.run_commands()?,
                SOCKET => self.socket_event(event.flags),
                _ => {
                    if let Some((index, error)) = self.ports.on_event(&event) {
                        self.lose(index, &error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Carries out all commands.
    fn run_commands(&mut self) -> Result<(), OwnerGone> {
        self.commands.awake();
        while let Some(command) = self.commands.next()? {
            match command {
                Command::Connect(socket) => self.connect(socket),
                Command::Disconnect(reply) => {
                    self.disconnect();
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
            }
        }
        Ok(())
    }

    fn warn_of(&self, number: usize, plugged: rustix::io::Result<()>) {
        if let Err(errno) = plugged {
            log::warn!("{}: cannot watch link {number}: {errno}", self.name);
        }
    }

    fn connect(&mut self, socket: UnixStream) {
        self.disconnect();
        match self.events.add(&socket, SOCKET, interest(false)) {
            Ok(()) => self.peer = Some(Peer { socket, readable: true, full: false }),
            Err(errno) => log::warn!("{}: cannot watch the front end: {errno}", self.name),
        }
    }

    fn disconnect(&mut self) {
        if let Some(peer) = &mut self.peer {
            // From now on nothing more comes, whatever the other end does: the loop has an end.
            let _ = peer.socket.shutdown(Shutdown::Both);
            peer.readable = true;
        }
        while self.tx_round() > 0 {}
        self.hang_up();
    }

    /// Ends the connection at once; the owner sees it.
    fn hang_up(&mut self) {
        if let Some(peer) = self.peer.take() {
            self.events.remove(&peer.socket);
            let _ = peer.socket.shutdown(Shutdown::Both);
        }
        self.counters.tx_link_full.add(self.inbox.frames().flatten().count() as u64);
        self.inbox.clear();
        self.outbox.clear();
    }

    fn socket_event(&mut self, flags: EventFlags) {
        let Some(peer) = &mut self.peer else { return };
        peer.readable |= flags.intersects(EventFlags::IN | EventFlags::ERR | EventFlags::HUP);
        if peer.full && flags.intersects(EventFlags::OUT | EventFlags::ERR | EventFlags::HUP) {
            peer.full = false;
            self.watch_socket();
        }
    }

    fn watch_socket(&self) {
        if let Some(peer) = &self.peer
            && let Err(errno) = self.events.modify(&peer.socket, SOCKET, interest(peer.full))
        {
            log::error!("{}: cannot watch the front end: {errno}", self.name);
        }
    }

    fn lose(&mut self, index: usize, error: &LinkError) {
        self.ports.unplug(index);
        (self.lost)(index, error);
    }

    /// One batch out of the guest; returns how much was moved.
    fn tx_round(&mut self) -> usize {
        // While the only link is full there is work, and nothing more is read.
        let read = if self.inbox.has_work() { 0 } else { self.read() };
        let Some(links) = self.ports.links() else { return 0 };
        let round = match tx::round(&mut self.inbox, &links, &self.counters) {
            Ok(round) => round,
            Err(error) => {
                log::warn!("{}: front end disconnected: {error}", self.name);
                self.hang_up();
                return 0;
            }
        };
        self.ports.sent(&round);
        for (index, error) in &round.lost {
            self.lose(*index, error);
        }
        round.used.max(read)
    }

    /// Reads what QEMU wrote; returns 0 if that was nothing.
    fn read(&mut self) -> usize {
        let Some(peer) = self.peer.as_mut().filter(|peer| peer.readable) else { return 0 };
        let room = self.inbox.room();
        match peer.socket.read(room) {
            Ok(count) => {
                // Bytes that come after this have an edge of their own, and the end is the owner's to see.
                peer.readable = count == room.len();
                self.inbox.filled(count);
                count.min(1)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => 1,
            Err(_) => {
                peer.readable = false;
                0
            }
        }
    }

    /// One batch into the guest; returns how much was moved.
    fn rx_round(&mut self) -> usize {
        let Some(peer) = self.peer.as_mut().filter(|peer| !peer.full) else { return 0 };
        let mut moved = 0;
        if self.outbox.is_empty() {
            let Some((index, link)) = self.ports.next_readable() else { return 0 };
            match self.outbox.receive(&*link, &self.counters) {
                Ok(count) => {
                    moved = count;
                    if count < rx::BATCH {
                        self.ports.drained(index, count);
                    }
                }
                Err(error) => {
                    self.lose(index, &error);
                    return 1;
                }
            }
        }
        match self.outbox.write(&peer.socket) {
            // A link may have had nothing, and another one has.
            Ok(true) => moved.max(1),
            Ok(false) => {
                peer.full = true;
                self.watch_socket();
                0
            }
            Err(_) => {
                self.disconnect();
                0
            }
        }
    }
}

/// What is watched on the connection.
fn interest(writable: bool) -> EventFlags {
    let mut flags = EventFlags::ET | EventFlags::IN;
    flags.set(EventFlags::OUT, writable);
    flags
}
