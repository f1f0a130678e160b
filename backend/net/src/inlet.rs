//! The receive side of one queue pair, into which any thread may deliver.
//!
//! # Theory of operation
//! Three kinds of threads bring frames for a guest: the pair's own worker, which reads a link; the worker of another pair of
//! the same NIC, which reads a link for all pairs; the worker of another NIC in this process, whose guest sends. So the
//! queue, with the frames that wait for its buffers, is an object of its own behind a lock, taken once per batch. Who has
//! taken the queue out under the lock ([`Inlet::stop`]) knows that nobody touches its memory any more.
//!
//! [`Inlet::deliver`] never refuses: a frame enters the guest, or waits ([`crate::backlog`]), or is dropped and counted.
//! Nothing overtakes what waits. While something does, the guest is asked for kicks, which go to the pair's worker, who
//! answers with [`Inlet::kicked`].
//!
//! Who can do without delivering (a link that is not read keeps its frames) asks [`Inlet::is_ready`] before. A `false`
//! comes with the promise that the asker's eventfd is written once it is worth asking again.
//!
//! A guest may offer chains that are much work and no room. Who delivers does little of that and leaves the rest to the
//! pair's own worker, as if the guest had kicked; until that has done it, everybody else's frames only wait.
//!
//! A queue that is disabled or broken is as good as none: nothing waits for it.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vdeplug::{TxBuf, TxFrame};

use crate::backlog::{self, Backlog};
use crate::counters::Counters;
use crate::features::Offloads;
use crate::place::{Filler, Placed};
use crate::queue::{Level, Queue};

/// How often buffers that came while we asked for kicks are looked at before the guest is left to kick: a guest that adds
/// them one by one must not keep the deliverer.
const LOOKS: usize = 8;

/// The receive side of one queue pair.
#[derive(Debug)]
pub struct Inlet {
    name: String,
    counters: Arc<Counters>,
    /// There is a queue, and it is enabled and not broken. Written under the lock.
    live: AtomicBool,
    /// More waits than is to be read from links. Written under the lock.
    full: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    queue: Option<Queue>,
    backlog: Backlog,
    /// What the guest offers is for the pair's own worker to look at.
    left_to_worker: bool,
    /// Eventfds of those who wait until it is worth asking again.
    askers: Vec<Arc<OwnedFd>>,
    private: Vec<u8>,
}

impl Inlet {
    /// One without a queue. `name` begins its log lines.
    pub fn new(name: String) -> Self {
        Self {
            name,
            counters: Arc::default(),
            live: AtomicBool::new(false),
            full: AtomicBool::new(false),
            inner: Mutex::default(),
        }
    }

    /// The queue pair's counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Delivers frames, in order.
    pub fn deliver<'f>(&self, frames: impl Iterator<Item = &'f TxFrame<'f>>) {
        let mut inner = self.lock();
        let Inner { queue: Some(queue), backlog, private, left_to_worker, .. } = &mut *inner else {
            return self.counters.rx_no_queue.add(frames.count() as u64);
        };
        if !self.live.load(Ordering::Relaxed) {
            return self.counters.rx_no_queue.add(frames.count() as u64);
        }
        if !*left_to_worker {
            *left_to_worker = self.drain(queue, backlog, private);
        }
        let mut filler = Filler::new(queue, private, &self.counters, &self.name);
        let (mut waited, mut lost) = (0, 0);
        for frame in frames {
            let segments = match backlog.is_empty() {
                true => match filler.place(frame) {
                    Placed::Done => continue,
                    Placed::Waits(segments) => segments,
                },
                false => frame.segments,
            };
            match backlog.push(frame, segments) {
                true => waited += 1,
                false => lost += 1,
            }
        }
        *left_to_worker |= filler.publish();
        self.counters.rx_waited.add(waited);
        self.counters.rx_overrun.add(lost);
        self.settle(&mut inner);
    }

    /// Takes the driver's kick, and hands over what waits.
    pub(crate) fn kicked(&self) {
        let mut inner = self.lock();
        let Inner { queue: Some(queue), backlog, private, left_to_worker, .. } = &mut *inner else { return };
        queue.clear_kick();
        queue.ring.disable_kicks();
        *left_to_worker = self.drain(queue, backlog, private);
        self.settle(&mut inner);
    }

    /// Whether frames may be delivered without being lost. If not, `asker` is written when they may.
    pub fn is_ready(&self, asker: &Arc<OwnedFd>) -> bool {
        let ready = || self.live.load(Ordering::Relaxed) && !self.full.load(Ordering::Relaxed);
        if ready() {
            return true;
        }
        let mut inner = self.lock();
        if !ready() && !inner.askers.iter().any(|known| Arc::ptr_eq(known, asker)) {
            inner.askers.push(asker.clone());
        }
        ready()
    }

    /// Whether there is a queue that gets frames.
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Relaxed)
    }

    /// What the guest's driver takes undone; nothing without one.
    pub fn takes(&self) -> Offloads {
        self.lock().queue.as_ref().map(|queue| queue.accepted.rx).unwrap_or_default()
    }

    /// How full the queue's ring is.
    pub(crate) fn level(&self) -> Level {
        self.lock().queue.as_ref().map(Queue::level).unwrap_or_default()
    }

    /// Runs a queue from now on; there is none.
    pub(crate) fn start(&self, mut queue: Queue) {
        queue.ring.disable_kicks();
        let mut inner = self.lock();
        inner.queue = Some(queue);
        self.settle(&mut inner);
    }

    /// Takes the queue out; nobody touches its memory any more. What waits is lost.
    pub(crate) fn stop(&self) -> Option<Queue> {
        let mut inner = self.lock();
        let queue = inner.queue.take();
        self.settle(&mut inner);
        queue
    }

    /// Changes the queue, if there is one.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Queue)) {
        let mut inner = self.lock();
        if let Some(queue) = &mut inner.queue {
            change(queue);
            self.settle(&mut inner);
        }
    }

    /// Gives back memory that is not needed now: the pair's worker is about to sleep.
    pub(crate) fn rest(&self) {
        if let Ok(mut inner) = self.inner.try_lock() {
            inner.backlog.shrink();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over what waits, as far as there are buffers. True: too much stood in the way of more.
    fn drain(&self, queue: &mut Queue, backlog: &mut Backlog, private: &mut Vec<u8>) -> bool {
        if backlog.is_empty() {
            return false;
        }
        let mut filler = Filler::new(queue, private, &self.counters, &self.name);
        while let Some((entry, bytes)) = backlog.front() {
            let pieces = [TxBuf::new(bytes)];
            let frame = TxFrame { bufs: &pieces, header: entry.header, segments: entry.segments };
            if let Placed::Waits(segments) = filler.place(&frame) {
                backlog.set_segments(segments);
                break;
            }
            backlog.pop();
        }
        filler.publish()
    }

    /// Brings everything in line with the queue and with what waits for it, after either changed.
    fn settle(&self, inner: &mut Inner) {
        let Inner { queue, backlog, askers, private, left_to_worker } = inner;
        let live = match queue.as_mut().filter(|queue| queue.enabled && !queue.broken) {
            Some(queue) => {
                *left_to_worker = self.await_buffers(queue, backlog, private, *left_to_worker);
                !queue.broken
            }
            None => false,
        };
        if !live {
            self.counters.rx_no_queue.add(backlog.clear() as u64);
        }
        // Half of it first, so that readers are not stopped and woken for every frame.
        let limit = if self.full.load(Ordering::Relaxed) { backlog::FULL / 2 } else { backlog::FULL };
        let full = backlog.used() >= limit;
        self.live.store(live, Ordering::Relaxed);
        self.full.store(full, Ordering::Relaxed);
        // Also when the queue is gone: a reader asks again, and goes on for the others.
        if !full {
            for asker in askers.drain(..) {
                // Full means that it is readable already.
                let _ = rustix::io::write(&asker, &1u64.to_ne_bytes());
            }
        }
    }

    /// Asks for kicks if something waits, unless buffers come meanwhile. Takes and returns whether the ring is left to the worker.
    fn await_buffers(
        &self,
        queue: &mut Queue,
        backlog: &mut Backlog,
        private: &mut Vec<u8>,
        mut left_to_worker: bool,
    ) -> bool {
        for _ in 0..LOOKS {
            if left_to_worker {
                break;
            }
            if backlog.is_empty() || !queue.ring.enable_kicks() {
                return false;
            }
            queue.ring.disable_kicks();
            left_to_worker = self.drain(queue, backlog, private);
        }
        // The worker goes on where we stop, as if the guest had kicked.
        let _ = rustix::io::write(&queue.kick, &1u64.to_ne_bytes());
        left_to_worker
    }
}

#[cfg(test)]
mod tests;
