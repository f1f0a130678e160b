//! The frames of a NIC in a file or a pipe, in the pcapng format that Wireshark reads.
//!
//! ```text
//!  capture  a NIC's switch for it, and the thread that writes
//!  queue    between those who note frames and that thread
//!  sink     what is written to
//!  pcapng   the blocks of the format
//! ```
//!
//! # Theory of operation
//! All links of a NIC are seen through cables (module `cable`), which share a [`Tap`]: one flag that says whether frames are
//! written down, and behind it the [`Queue`] of the capture. The links are the interfaces of the file, by their
//! locators, so that a frame that went to two networks is there twice, as it went; a link that is plugged in later becomes
//! one with its first frame. Outbound is what leaves the guest. Frames are noted as they pass between NIC and link: what the
//! guest left to be segmented is one long frame there, with a checksum still to be completed, and what is joined for the
//! guest was not joined yet.
//!
//! Whoever brings a frame only copies it into the queue, which is bounded; a disk or a reader that is too slow for what passes
//! costs the capture frames, and the guest nothing. How many are missing is said in the file's last blocks and when
//! it has ended. A file that cannot grow ends the capture: its last block is cut off again, and the NIC goes on.

mod pcapng;
mod queue;
mod sink;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vde_control::{CaptureEnd, CaptureEnded};

use crate::cable::Name;
pub use pcapng::Way;
pub use queue::{Frame, Queue};
use sink::{Sink, Trouble};

/// What the cables of a NIC have in common: whether their frames are written down.
#[derive(Debug, Default)]
pub struct Tap {
    on: AtomicBool,
    queue: Mutex<Option<Arc<Queue>>>,
}

impl Tap {
    /// Notes frames that passed through a link, if anybody wants to know.
    #[inline]
    pub fn note<F: Frame>(&self, way: Way, link: &Name, frames: &[F]) {
        // Nothing hangs on when a cable sees the change.
        if self.on.load(Ordering::Relaxed) {
            self.note_down(way, link, frames);
        }
    }

    #[cold]
    fn note_down<F: Frame>(&self, way: Way, link: &Name, frames: &[F]) {
        let queue = self.lock().clone();
        if let Some(queue) = queue {
            queue.note(way, link, frames);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Queue>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, queue: Option<Arc<Queue>>) {
        let mut slot = self.lock();
        self.on.store(queue.is_some(), Ordering::Relaxed);
        *slot = queue;
    }
}

/// What is to be captured, and where to.
#[derive(Debug)]
pub struct Order {
    /// Is written to, in whatever way the flags of its description say.
    pub to: OwnedFd,
    /// It is a file that somebody was writing when he died: what he did not finish is cut off.
    pub resumes: bool,
    /// The links that there are now.
    pub links: Vec<Name>,
    /// The id of the only one that is meant, if not all are.
    pub only: Option<String>,
    /// The file has no more bytes than that.
    pub max_bytes: Option<u64>,
    /// Ends after that time.
    pub max_time: Option<Duration>,
}

/// Why a capture cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// One at a time.
    #[error("the frames of {0} are being captured already; end that capture first")]
    Busy(String),
    /// Out of descriptors or threads, or not a descriptor to write to.
    #[error("the descriptor to write to is of no use")]
    System(#[from] std::io::Error),
}

/// What is told of a capture's end, from its thread.
pub type Ended = Box<dyn FnOnce(CaptureEnded) + Send>;

/// Captures the frames of one NIC, one capture at a time.
#[derive(Debug)]
pub struct Recorder {
    nic: String,
    tap: Arc<Tap>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// For a NIC of this name.
    pub fn new(nic: &str) -> Self {
        Self { nic: nic.into(), tap: Arc::default(), thread: None }
    }

    /// For the NIC's cables.
    pub fn tap(&self) -> &Arc<Tap> {
        &self.tap
    }

    /// Whether there is a capture that has not ended yet.
    pub fn is_on(&self) -> bool {
        self.tap.lock().is_some()
    }

    /// Starts a capture; `ended` hears of its end.
    pub fn start(&mut self, order: Order, ended: Ended) -> Result<(), StartError> {
        if self.is_on() {
            return Err(StartError::Busy(self.nic.clone()));
        }
        // The one before may be about to tell of its end, and is to have done so.
        self.thread.take().map(JoinHandle::join);
        let Order { to, resumes, links, only, max_bytes, max_time } = order;
        let queue = Arc::new(Queue::new(&self.nic, &links, only, max_bytes.unwrap_or(u64::MAX))?);
        let mut sink = Sink::new(to, queue.clone(), max_time)?;
        let (nic, tap) = (self.nic.clone(), self.tap.clone());
        // Before the thread, which takes it out again.
        self.tap.set(Some(queue.clone()));
        let work = move || {
            // The longer the file is, the longer this takes.
            if resumes {
                sink.mend();
            }
            record(nic, &tap, &queue, sink, ended);
        };
        match std::thread::Builder::new().name("capture".into()).spawn(work) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => {
                self.tap.set(None);
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Has the capture end, if there is one; it has when `ended` hears of it.
    pub fn stop(&self, reason: CaptureEnd) {
        let queue = self.tap.lock().clone();
        if let Some(queue) = queue {
            queue.end(reason);
        }
    }

    /// Ends the capture and waits until everything is written, for about a second at most if nobody reads it.
    pub fn finish(&mut self) {
        self.stop(CaptureEnd::Stopped);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Recorder {
    /// Does not wait for the thread, which may be about to wait for a reader.
    fn drop(&mut self) {
        self.stop(CaptureEnd::NicDeleted);
    }
}

/// The thread: writes what comes through the queue until the capture is over, and tells of it.
fn record(nic: String, tap: &Tap, queue: &Queue, mut sink: Sink, ended: Ended) {
    let (reason, error) = match drain(queue, &mut sink) {
        Ok(reason) => (reason, None),
        Err(Trouble::TooSlow) => (queue.end(CaptureEnd::Stopped), None),
        Err(Trouble::ReaderGone) => (CaptureEnd::ReaderGone, None),
        Err(Trouble::Failed(errno)) => (CaptureEnd::Failed, Some(errno)),
    };
    queue.end(reason);
    let frames = sink.packets();
    let lost = queue.seen().saturating_sub(frames);
    // The file is closed, and free for another one, before anybody hears of it.
    drop(sink);
    tap.set(None);
    match error {
        Some(errno) => {
            log::warn!("{nic}: the capture cannot grow ({errno}) and ends here; the network does not");
        }
        None => log::info!("{nic}: {frames} frames captured, {lost} lost"),
    }
    ended(CaptureEnded { nic, reason, error: error.map(|errno| errno.to_string()), frames, lost });
}

/// Writes until the queue is over, and its end.
fn drain(queue: &Queue, sink: &mut Sink) -> Result<CaptureEnd, Trouble> {
    let mut blocks = Vec::new();
    loop {
        let over = queue.take(&mut blocks);
        if over.is_some() {
            blocks.extend(queue.statistics());
        } else if blocks.is_empty() {
            sink.wait()?;
        }
        sink.write(&blocks)?;
        if let Some(reason) = over {
            return Ok(reason);
        }
    }
}

/// The file of NIC `index` of `count`, where one was asked for.
pub fn path(asked: &Path, index: usize, count: usize) -> PathBuf {
    if count == 1 {
        return asked.to_owned();
    }
    let mut name = asked.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".nic{index}"));
    if let Some(extension) = asked.extension() {
        name.push(".");
        name.push(extension);
    }
    asked.with_file_name(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests;
