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

/// Plug in a link as number 0 or 1.
type SetLink = (usize, Arc<dyn Link>);

/// Handle of the two threads. Dropping it ends them.
#[derive(Debug)]
pub struct Join {
    ways: [Way; 2],
}

/// Handle of the thread of one direction.
#[derive(Debug)]
struct Way {
    thread: Thread<SetLink>,
    counters: Arc<Counters>,
}

impl Join {
    /// Starts the threads. `lost` makes the callback of each for dead links.
    pub fn spawn(name: &str, lost: impl Fn() -> LinkLost) -> std::io::Result<Self> {
        Ok(Self { ways: [Way::spawn(name, 0, lost())?, Way::spawn(name, 1, lost())?] })
    }

    /// Plugs in link 0 or 1, in place of one that was there.
    pub fn set_link(&self, index: usize, link: &Arc<dyn Link>) {
        self.ways.iter().for_each(|way| way.thread.tell((index, link.clone())));
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
                links: [None, None],
                readable: false,
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

/// What events are about: their words. [`CONTROL`] and the number of a link: it may be gone.
const COMMANDS: u64 = 0;
const DATA: u64 = 1;
const CONTROL: u64 = 2;

/// State of the thread of one direction.
struct State {
    name: String,
    /// The number of the link that it receives from.
    from: usize,
    links: [Option<Arc<dyn Link>>; 2],
    /// An edge said that frames may wait, and not all were taken yet.
    readable: bool,
    /// The other link was full for too long.
    lossy: bool,
    events: Events,
    commands: Commands<SetLink>,
    counters: Arc<Counters>,
    lost: LinkLost,
    /// A batch of frames, each in a room of its own.
    memory: Box<[u8]>,
}

impl State {
    fn run(mut self) {
        let mut events = Events::list();
        loop {
            let wait = if self.readable { Wait::Look } else { Wait::Sleep(None) };
            if let Err(errno) = self.events.wait(&mut events, wait) {
                return log::error!("{}: waiting for events failed: {errno}", self.name);
            }
            for event in events.drain(..) {
                match event.data.u64() {
                    COMMANDS => {
                        if self.run_commands().is_err() {
                            return;
                        }
                    }
                    DATA => self.readable = true,
                    control => self.check(usize::from(control > CONTROL)),
                }
            }
            if self.readable {
                self.pass_batch();
            }
        }
    }

    /// Carries out all commands.
    fn run_commands(&mut self) -> Result<(), OwnerGone> {
        self.commands.awake();
        while let Some((index, link)) = self.commands.next()? {
            self.unplug(index);
            if let Err(errno) = self.watch(index, &*link) {
                log::warn!("{}: cannot watch link {index}: {errno}", self.name);
            }
            if let Some(slot) = self.links.get_mut(index) {
                *slot = Some(link);
            }
            self.readable |= index == self.from;
        }
        Ok(())
    }

    fn watch(&self, index: usize, link: &dyn Link) -> rustix::io::Result<()> {
        if let Some(fd) = link.control_fd() {
            self.events.add(fd, CONTROL + index as u64, EventFlags::IN)?;
        }
        if index == self.from {
            self.events.add(link.data_fd(), DATA, EventFlags::IN | EventFlags::ET)?;
        }
        Ok(())
    }

    /// Forgets a link.
    fn unplug(&mut self, index: usize) {
        let Some(link) = self.links.get_mut(index).and_then(Option::take) else { return };
        for fd in link.control_fd().into_iter().chain((index == self.from).then(|| link.data_fd())) {
            self.events.remove(fd);
        }
        self.readable &= index != self.from;
        self.lossy = false;
    }

    fn lose(&mut self, index: usize, error: &LinkError) {
        self.unplug(index);
        (self.lost)(index, error);
    }

    fn link(&self, index: usize) -> Option<Arc<dyn Link>> {
        self.links.get(index).and_then(Clone::clone)
    }

    /// Asks a link whether its network is still there.
    fn check(&mut self, index: usize) {
        if let Some(Err(error)) = self.link(index).map(|link| link.check_control()) {
            self.lose(index, &error);
        }
    }

    /// Receives a batch and sends it.
    fn pass_batch(&mut self) {
        let Some(from) = self.link(self.from) else {
            self.readable = false;
            return;
        };
        let mut rooms = self.memory.chunks_exact_mut(ROOM);
        let bufs: [_; BATCH] = std::array::from_fn(|_| [RxBuf::new(rooms.next().unwrap_or_default())]);
        let mut frames = bufs.each_ref().map(|bufs| RxFrame::new(bufs));
        let count = match from.recv(&mut frames) {
            Ok(count) => count,
            Err(error) => return self.lose(self.from, &error),
        };
        let marks = frames.map(|frame| (frame.header, frame.len));
        self.readable = count == BATCH;
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
        let to = 1 - self.from;
        let outcome = match self.link(to) {
            Some(link) => send(&*link, batch, self.lossy, &self.counters),
            None => {
                self.counters.tx_no_link.add(batch.len() as u64);
                Ok(false)
            }
        };
        match outcome {
            Ok(lossy) => self.lossy = lossy,
            Err(error) => self.lose(to, &error),
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
