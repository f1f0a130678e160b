//! Where a capture is written to, by a thread of its own: a file, or a pipe whose reader may be slow.
//!
//! # Theory of operation
//! The descriptor is a program's that has it as well, so its flags are left alone: nothing is written before `poll` says that
//! there is room, and to what is no file not more than a pipe then takes for certain. So the thread hears at
//! any time of a reader that has gone, of its time being up, and of the capture's end. At the end, what waits is written
//! still, for as long as [`GRACE`]: a reader that has stopped reading must not keep it for ever.

use std::fs::File;
use std::io::Seek;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use vde_control::CaptureEnd;

use super::pcapng;
use super::queue::Queue;

/// How long what waits is still written when the capture is over.
const GRACE: Duration = Duration::from_secs(1);
/// What a pipe takes without waiting once it is writable (`PIPE_BUF`).
const PIPE_CHUNK: usize = 4096;
/// What a file is given at once.
const FILE_CHUNK: usize = 1 << 20;

/// Why nothing more can be written.
#[derive(Debug)]
pub enum Trouble {
    /// Nobody reads the other end.
    ReaderGone,
    /// What waited at the capture's end was not read in time.
    TooSlow,
    /// The system says so.
    Failed(Errno),
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A file, with the length of what is whole in it.
    File(u64),
    Socket,
    /// Pipe, terminal, or another device.
    Pipe,
}

/// What is written to.
#[derive(Debug)]
pub struct Sink {
    file: File,
    kind: Kind,
    packets: u64,
    queue: Arc<Queue>,
    /// When the capture's time is up.
    until: Option<Instant>,
    /// When the time for what waits at its end is up.
    grace: Option<Instant>,
}

impl Sink {
    /// Writes to a descriptor what comes through a queue. Refuses one that cannot be written to.
    pub fn new(fd: OwnedFd, queue: Arc<Queue>, time: Option<Duration>) -> std::io::Result<Self> {
        let flags = fcntl_getfl(&fd)?;
        if flags & OFlags::ACCMODE == OFlags::RDONLY || flags.contains(OFlags::PATH) {
            return Err(std::io::Error::other("it is not open for writing"));
        }
        let mut file = File::from(fd);
        let metadata = file.metadata()?;
        let kind = match metadata.file_type() {
            kind if kind.is_file() && flags.contains(OFlags::APPEND) => Kind::File(metadata.len()),
            kind if kind.is_file() => Kind::File(file.stream_position()?),
            kind if kind.is_socket() => Kind::Socket,
            _ => Kind::Pipe,
        };
        let until = time.and_then(|time| Instant::now().checked_add(time));
        Ok(Self { file, kind, packets: 0, queue, until, grace: None })
    }

    /// Cuts off what is left of a block at the end of a file.
    pub fn mend(&mut self) {
        if let Kind::File(end) = &mut self.kind {
            match pcapng::end_of_blocks(&self.file).and_then(|whole| self.file.set_len(whole).map(|()| whole))
            {
                Ok(whole) => *end = whole,
                Err(error) => {
                    log::warn!("a capture may not be readable behind its first {end} bytes: {error}")
                }
            }
        }
    }

    /// Packets that were written as a whole.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Writes blocks. If that fails, a file ends with those of them that are whole.
    pub fn write(&mut self, blocks: &[u8]) -> Result<(), Trouble> {
        let mut done = 0;
        let result = loop {
            let Some(left) = blocks.get(done..).filter(|left| !left.is_empty()) else { break Ok(()) };
            match self.write_some(left) {
                Ok(count) => done += count,
                Err(trouble) => break Err(trouble),
            }
        };
        let (whole, packets) = pcapng::whole(blocks, done);
        self.packets += packets;
        if let Kind::File(end) = &mut self.kind {
            *end += whole as u64;
            if result.is_err() {
                // What is left of a block would keep readers from what is before it.
                let _ = self.file.set_len(*end);
            }
        }
        result
    }

    /// Waits until there is something in the queue.
    pub fn wait(&mut self) -> Result<(), Trouble> {
        self.poll(PollFlags::empty()).map(|_| ())
    }

    /// Writes some bytes, none if there was no room yet.
    fn write_some(&mut self, bytes: &[u8]) -> Result<usize, Trouble> {
        if !self.poll(PollFlags::OUT)? {
            return Ok(0);
        }
        let chunk = if matches!(self.kind, Kind::File(_)) { FILE_CHUNK } else { PIPE_CHUNK };
        let bytes = bytes.get(..chunk).unwrap_or(bytes);
        let written = match self.kind {
            Kind::Socket => send(&self.file, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            _ => rustix::io::write(&self.file, bytes),
        };
        match written {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(Trouble::ReaderGone),
            Err(errno) => Err(Trouble::Failed(errno)),
        }
    }

    /// Waits until the descriptor is `ready` for something, or something is in the queue, or some time is up. True: it is ready.
    fn poll(&mut self, ready: PollFlags) -> Result<bool, Trouble> {
        let now = Instant::now();
        if self.until.is_some_and(|until| until <= now) {
            self.until = None;
            self.queue.end(CaptureEnd::MaxSeconds);
        }
        if self.grace.is_none() && self.queue.is_over() {
            self.grace = Some(now + GRACE);
        }
        if self.grace.is_some_and(|grace| grace <= now) {
            return Err(Trouble::TooSlow);
        }
        let limit = self.until.into_iter().chain(self.grace).min();
        let limit = limit.and_then(|limit| Timespec::try_from(limit - now).ok());
        let mut fds = [PollFd::new(&self.file, ready), PollFd::new(self.queue.wake(), PollFlags::IN)];
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Trouble::Failed(errno)),
        }
        let [ours, wake] = fds.map(|fd| fd.revents());
        if wake.contains(PollFlags::IN) {
            let _ = rustix::io::read(self.queue.wake(), &mut [0; 8]);
        }
        if ours.contains(PollFlags::NVAL) {
            return Err(Trouble::Failed(Errno::BADF));
        }
        if ours.intersects(PollFlags::ERR | PollFlags::HUP) {
            return Err(Trouble::ReaderGone);
        }
        Ok(ours.intersects(ready))
    }
}
