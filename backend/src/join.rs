//! Two networks that hear each other: what comes from one goes to the other.
//!
//! # Theory of operation
//! A thread per direction, because one that waits for a full network must not keep the other direction waiting. Each
//! receives a batch into memory of its own and sends it; while that does not go, it receives nothing, so that the frames
//! wait where they came from, for at most as long as a full link may stop a guest ([`PATIENCE`]). After that, what
//! is not taken is lost until something is.
//!
//! Descriptors are watched edge-triggered: one of a network that went away would be readable for ever. Each thread
//! watches whether either network is still there, and lets go of one that is not; it is plugged in again by its number.
//!
//! A link of another number that is plugged into the same end takes the place of the one that is there: what is sent goes to
//! the new one, and what the old one still brings is received until it is unplugged.
//!
//! Frames pass undone where both sides know such. What a network says of its frame is held against it here, since whom it
//! goes to relies on that.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Instant;

use offload::HEAD_MAX;
use rustix::event::epoll::EventFlags;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vdeplug::link::{BIG_FRAME_MAX, FRAME_MIN};
use vdeplug::{Link, LinkError, RxBuf, RxFrame, TxBuf, TxFrame};
use virtio_net::events::{Events, Wait};
use virtio_net::ports::PATIENCE;
use virtio_net::thread::{Commands, OwnerGone, Thread};
use virtio_net::{Counters, LinkLost};

/// Frames per batch, as for a NIC.
const BATCH: usize = 32;

/// Room for a frame: an odd number of cache lines, or the frames of a batch would compete for a few of them.
const ROOM: usize = BIG_FRAME_MAX.next_multiple_of(128) + 64;

enum Command {
    /// Into this end, 0 or 1, with this number.
    Plug(usize, usize, Arc<dyn Link>),
    Unplug(usize),
}

/// Handle of the two threads. Dropping it ends them.
#[derive(Debug)]
pub struct Join {
    ways: [Way; 2],
    /// The number of the link at each end.
    ends: [Option<usize>; 2],
}

/// Handle of the thread of one direction.
#[derive(Debug)]
struct Way {
    thread: Thread<Command>,
    counters: Arc<Counters>,
}

impl Join {
    /// Starts the threads. `lost` makes the callback of each for dead links.
    pub fn spawn(name: &str, lost: impl Fn() -> LinkLost) -> std::io::Result<Self> {
        Ok(Self { ways: [Way::spawn(name, 0, lost())?, Way::spawn(name, 1, lost())?], ends: [None; 2] })
    }

    /// Plugs a link in as this number, in place of one that had it; a new number goes to an end that is free.
    pub fn set_link(&mut self, number: usize, link: &Arc<dyn Link>) {
        self.hand_over(number, number, link);
    }

    /// Plugs a link in that takes the place of `old`, from which frames still come until it is unplugged.
    pub fn hand_over(&mut self, old: usize, number: usize, link: &Arc<dyn Link>) {
        let known = self.ends.iter().position(|end| *end == Some(old));
        // One that was never up had none.
        let end = known.or_else(|| self.ends.iter().position(Option::is_none)).unwrap_or(0);
        if let Some(slot) = self.ends.get_mut(end) {
            *slot = Some(number);
        }
        self.ways.iter().for_each(|way| way.thread.tell(Command::Plug(end, number, link.clone())));
    }

    /// Pulls a link out. The threads may have to wait for a full network first, and nobody waits for that.
    pub fn unplug(&self, number: usize) {
        self.ways.iter().for_each(|way| way.thread.tell(Command::Unplug(number)));
    }

    /// What happened to frames so far, of both directions: each was received, and sent or lost.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let [one, other] = &self.ways;
        let sum = |((name, one), (_, other))| (name, one + other);
        one.counters.list().into_iter().zip(other.counters.list()).map(sum).collect()
    }
}

impl Way {
    /// Starts the thread for what comes from link `from`.
    fn spawn(name: &str, from: usize, lost: LinkLost) -> std::io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let thread = Thread::spawn(&format!("{name}.{from}"), |commands| {
            let events = Events::new()?;
            events.add(commands.wake(), COMMANDS, EventFlags::IN)?;
            let state = State {
                name: name.into(),
                from,
                sources: Vec::new(),
                to: None,
                lossy: false,
                events,
                commands,
                counters: counters.clone(),
                lost,
                memory: vec![0; BATCH * ROOM].into(),
            };
            Ok(move || state.run())
        })?;
        Ok(Self { thread, counters })
    }
}

/// What events are about, in the upper half of their words; the lower one is the link's number.
const COMMANDS: u64 = 0;
const DATA: u64 = 1 << 32;
const CONTROL: u64 = 2 << 32;

/// A link that is received from.
struct Source {
    number: usize,
    link: Arc<dyn Link>,
    /// An edge said that frames may wait, and not all were taken yet.
    readable: bool,
}

/// State of the thread of one direction.
struct State {
    name: String,
    /// The end that it receives from.
    from: usize,
    sources: Vec<Source>,
    /// Where frames go, with its number.
    to: Option<(usize, Arc<dyn Link>)>,
    /// That was full for too long.
    lossy: bool,
    events: Events,
    commands: Commands<Command>,
    counters: Arc<Counters>,
    lost: LinkLost,
    /// A batch of frames, each in a room of its own.
    memory: Box<[u8]>,
}

impl State {
    fn run(mut self) {
        let mut events = Events::list();
        loop {
            let readable = self.sources.iter().any(|source| source.readable);
            let wait = if readable { Wait::Look } else { Wait::Sleep(None) };
            if let Err(errno) = self.events.wait(&mut events, wait) {
                return log::error!("{}: waiting for events failed: {errno}", self.name);
            }
            for event in events.drain(..) {
                let word = event.data.u64();
                let number = usize::try_from(word & (DATA - 1)).unwrap_or(usize::MAX);
                match word & !(DATA - 1) {
                    DATA => self.source(number).into_iter().for_each(|source| source.readable = true),
                    CONTROL => self.check(number),
                    _ => {
                        if self.run_commands().is_err() {
                            return;
                        }
                    }
                }
            }
            let next = self.sources.iter().position(|source| source.readable);
            if let Some(at) = next {
                let source = self.sources.remove(at);
                let (number, link) = (source.number, source.link.clone());
                // The other one, while there are two, is next.
                self.sources.push(source);
                self.pass_batch(number, &*link);
            }
        }
    }

    /// Carries out all commands.
    fn run_commands(&mut self) -> Result<(), OwnerGone> {
        self.commands.awake();
        while let Some(command) = self.commands.next()? {
            match command {
                Command::Plug(end, number, link) => self.plug(end, number, link),
                Command::Unplug(number) => self.unplug(number),
            }
        }
        Ok(())
    }

    fn plug(&mut self, end: usize, number: usize, link: Arc<dyn Link>) {
        self.unplug(number);
        if end != self.from
            && let Some((old, _)) = self.to
        {
            self.unplug(old);
        }
        if let Err(errno) = self.watch(end, number, &*link) {
            log::warn!("{}: cannot watch link {number}: {errno}", self.name);
        }
        match end == self.from {
            true => self.sources.push(Source { number, link, readable: true }),
            false => self.to = Some((number, link)),
        }
    }

    fn watch(&self, end: usize, number: usize, link: &dyn Link) -> rustix::io::Result<()> {
        if let Some(fd) = link.control_fd() {
            self.events.add(fd, CONTROL | number as u64, EventFlags::IN)?;
        }
        if end == self.from {
            self.events.add(link.data_fd(), DATA | number as u64, EventFlags::IN | EventFlags::ET)?;
        }
        Ok(())
    }

    /// Forgets a link.
    fn unplug(&mut self, number: usize) {
        let known = |source: &Source| source.number == number;
        let link = match self.sources.iter().position(known) {
            Some(at) => {
                let link = self.sources.remove(at).link;
                self.events.remove(link.data_fd());
                link
            }
            None => match self.to.take_if(|(to, _)| *to == number) {
                Some((_, link)) => link,
                None => return,
            },
        };
        if let Some(fd) = link.control_fd() {
            self.events.remove(fd);
        }
        self.lossy = false;
    }

    fn lose(&mut self, number: usize, error: &LinkError) {
        self.unplug(number);
        (self.lost)(number, error);
    }

    fn source(&mut self, number: usize) -> Option<&mut Source> {
        self.sources.iter_mut().find(|source| source.number == number)
    }

    /// Asks a link whether its network is still there.
    fn check(&mut self, number: usize) {
        let source = self.sources.iter().find(|source| source.number == number).map(|source| &source.link);
        let link = source.or(self.to.as_ref().filter(|(to, _)| *to == number).map(|(_, link)| link));
        if let Some(Err(error)) = link.map(|link| link.check_control()) {
            self.lose(number, &error);
        }
    }

    /// Receives a batch from a link and sends it.
    fn pass_batch(&mut self, number: usize, from: &dyn Link) {
        let mut rooms = self.memory.chunks_exact_mut(ROOM);
        let bufs: [_; BATCH] = std::array::from_fn(|_| [RxBuf::new(rooms.next().unwrap_or_default())]);
        let mut frames = bufs.each_ref().map(|bufs| RxFrame::new(bufs));
        let count = match from.recv(&mut frames) {
            Ok(count) => count,
            Err(error) => return self.lose(number, &error),
        };
        let marks = frames.map(|frame| (frame.header, frame.len));
        // Only ever taken back here: who was unplugged has none.
        self.source(number).into_iter().for_each(|source| source.readable = count == BATCH);
        let rooms = self.memory.chunks_exact(ROOM).zip(marks).take(count);
        let mut good = Vec::with_capacity(count);
        for (room, (header, len)) in rooms {
            let counters = &self.counters;
            counters.rx_frames.add(1);
            counters.rx_bytes.add(len as u64);
            let Some(frame) = room.get(..len) else {
                counters.rx_too_long.add(1);
                continue;
            };
            if len < FRAME_MIN {
                counters.rx_runt.add(1);
                continue;
            }
            match offload::check(&header, frame.get(..HEAD_MAX).unwrap_or(frame), len) {
                Ok(header) => good.push((header, [TxBuf::new(frame)])),
                Err(_) => counters.rx_bad_header.add(1),
            }
        }
        let batch: Vec<_> =
            good.iter().map(|(header, bufs)| TxFrame { header: *header, ..TxFrame::new(bufs) }).collect();
        let outcome = match &self.to {
            Some((to, link)) => {
                send(&**link, batch, self.lossy, &self.counters).map_err(|error| (*to, error))
            }
            None => {
                self.counters.tx_no_link.add(batch.len() as u64);
                Ok(false)
            }
        };
        match outcome {
            Ok(lossy) => self.lossy = lossy,
            Err((to, error)) => self.lose(to, &error),
        }
    }
}

/// Sends a batch, and waits for a full link unless it was full for too long before; whether it is that now.
fn send(
    link: &dyn Link,
    mut batch: Vec<TxFrame<'_>>,
    lossy: bool,
    counters: &Counters,
) -> Result<bool, LinkError> {
    let mut rest = batch.as_mut_slice();
    let mut carried = false;
    let mut until = Instant::now() + PATIENCE;
    while !rest.is_empty() {
        let before = rest.first().map_or(0, |frame| frame.segments);
        let sent = link.send(rest)?;
        counters.tx_refused.add(sent.dropped as u64);
        let (gone, left) = rest.split_at_mut(sent.taken.min(rest.len()));
        counters.tx_frames.add(gone.len().saturating_sub(sent.dropped) as u64);
        counters.tx_bytes.add(gone.iter().map(|frame| frame.len() as u64).sum());
        if sent.taken > 0 || sent.segments > before {
            (carried, until) = (true, Instant::now() + PATIENCE);
        }
        rest = left;
        let Some(first) = rest.first_mut() else { break };
        first.segments = sent.segments;
        let left = until.saturating_duration_since(Instant::now());
        if (lossy && !carried) || left.is_zero() {
            counters.tx_link_full.add(rest.len() as u64);
            return Ok(true);
        }
        let mut fds = [PollFd::from_borrowed_fd(link.data_fd(), PollFlags::OUT)];
        // However it ends, the link is asked again.
        let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
    }
    Ok(false)
}
