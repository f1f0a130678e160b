//! Lines of JSON on a socket.
//!
//! The socket is used without changing its flags, which may be shared with others: every call is one that does not
//! wait, and the waiting is done by `poll`, until a deadline.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv, sendmsg};

/// Longest line accepted, in bytes; QEMU's own longest answers (schema, device lists) are a few hundred KiB.
const LINE_MAX: usize = 16 << 20;
/// How much is read at once.
const CHUNK: usize = 16 << 10;
/// The most descriptors that go with one line; QEMU takes no more.
const FDS_MAX: usize = 16;

/// Why there is no line.
#[derive(Debug)]
pub enum Failure {
    /// The deadline has passed.
    Late,
    /// The other end has gone.
    Closed,
    /// The line has no end.
    TooLong,
    /// The system says so.
    System(Errno),
}

/// One end of the connection.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
    /// Bytes behind the last complete line.
    rest: Vec<u8>,
    /// How many of them are known to contain no end of a line.
    searched: usize,
}

impl Wire {
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, rest: Vec::new(), searched: 0 }
    }

    /// Writes bytes, descriptors with the first of them.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>], deadline: Instant) -> Result<(), Failure> {
        let (mut left, mut fds) = (bytes, fds);
        while !left.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if fds.len() > FDS_MAX
                || (!fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)))
            {
                return Err(Failure::System(Errno::INVAL));
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.socket, &[IoSlice::new(left)], &mut ancillary, flags) {
                Ok(count) => (left, fds) = (left.get(count..).unwrap_or_default(), &[]),
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, deadline)?,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Failure::Closed),
                Err(errno) => return Err(Failure::System(errno)),
            }
        }
        Ok(())
    }

    /// Reads a line, without its end.
    pub fn line(&mut self, deadline: Instant) -> Result<Vec<u8>, Failure> {
        loop {
            let unseen = self.rest.get(self.searched..).unwrap_or_default();
            if let Some(at) = unseen.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.rest.drain(..=self.searched + at).collect();
                line.truncate(line.trim_ascii_end().len());
                self.searched = 0;
                return Ok(line);
            }
            self.searched = self.rest.len();
            if self.rest.len() > LINE_MAX {
                return Err(Failure::TooLong);
            }
            self.fill(deadline)?;
        }
    }

    /// Reads some bytes.
    fn fill(&mut self, deadline: Instant) -> Result<(), Failure> {
        let mut chunk = [0; CHUNK];
        loop {
            match recv(&self.socket, &mut chunk[..], RecvFlags::DONTWAIT) {
                Ok((_, 0)) | Err(Errno::CONNRESET) => return Err(Failure::Closed),
                Ok((_, count)) => {
                    self.rest.extend(chunk.iter().take(count));
                    return Ok(());
                }
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, deadline)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Failure::System(errno)),
            }
        }
    }

    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<(), Failure> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Failure::Late);
        }
        let limit = Timespec::try_from(left).map_err(|_| Failure::Late)?;
        match poll(&mut [PollFd::new(&self.socket, flags)], Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Failure::System(errno)),
        }
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
