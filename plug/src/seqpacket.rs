//! `seqpacket://FD`: frames on a connected socket that the process inherited, one per packet.
//!
//! The link has a descriptor of its own for the socket, so that the inherited one may be closed, and leaves the socket's
//! flags alone, which are shared with whoever has the other descriptors. That the other end closed shows on an epoll
//! descriptor that watches for nothing else; an end cannot be told from an empty packet by reading.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_type;
use rustix::net::{SocketType, getpeername};

use crate::datagram::{self, Framing};
use crate::link::{FRAME_MAX, Link, LinkError, Meter, RxFrame, Sent, Stats, TxFrame};
use crate::{OpenErrorKind, sys};

/// Why an inherited descriptor could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeqPacketError {
    /// What stands behind `seqpacket://` is no number of a descriptor.
    #[error(
        "{word:?} is no number of a descriptor; write one that the program inherited, as in seqpacket://3"
    )]
    NoNumber {
        /// The word.
        word: String,
    },

    /// Nothing is open under this number.
    #[error("descriptor {fd} is not open; start the program with a connected socket as this descriptor")]
    NotOpen {
        /// The number.
        fd: RawFd,
        /// Why not.
        source: std::io::Error,
    },

    /// Something else is open under this number.
    #[error("descriptor {fd} is {what}; hand over one end of a connected socket of type SOCK_SEQPACKET")]
    Unfit {
        /// The number.
        fd: RawFd,
        /// What it is instead.
        what: &'static str,
    },

    /// The socket could not be watched.
    #[error("cannot watch descriptor {fd}")]
    Watch {
        /// The number.
        fd: RawFd,
        /// Why not.
        source: std::io::Error,
    },
}

impl SeqPacketError {
    /// The coarse class of this error.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            Self::NoNumber { .. } | Self::NotOpen { .. } | Self::Unfit { .. } => OpenErrorKind::Usage,
            Self::Watch { .. } => OpenErrorKind::System,
        }
    }
}

/// An open link over an inherited socket.
#[derive(Debug)]
pub(crate) struct SeqPacketLink {
    socket: OwnedFd,
    /// Readable when the other end closed.
    hangup: OwnedFd,
    meter: Meter,
}

impl SeqPacketLink {
    /// Takes the descriptor of this number over.
    pub(crate) fn open(word: &str) -> Result<Self, SeqPacketError> {
        let number = word.parse::<RawFd>().ok().filter(|number| *number >= 0);
        let fd = number.ok_or_else(|| SeqPacketError::NoNumber { word: word.into() })?;
        let socket = sys::duplicate(fd).map_err(|source| SeqPacketError::NotOpen { fd, source })?;
        let unfit = |what| Err(SeqPacketError::Unfit { fd, what });
        match socket_type(&socket) {
            Ok(SocketType::SEQPACKET | SocketType::DGRAM) => {}
            Ok(_) => return unfit("a socket that does not keep frames apart"),
            Err(_) => return unfit("no socket"),
        }
        if getpeername(&socket).is_err() {
            return unfit("a socket that is not connected");
        }
        let hangup = watch(&socket).map_err(|errno| SeqPacketError::Watch { fd, source: errno.into() })?;
        Ok(Self { socket, hangup, meter: Meter::default() })
    }

    fn hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.hangup, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
    }
}

/// A descriptor that shows the end of the connection and nothing else.
fn watch(socket: &OwnedFd) -> Result<OwnedFd, Errno> {
    let hangup = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&hangup, socket, EventData::new_u64(0), EventFlags::RDHUP)?;
    Ok(hangup)
}

impl Link for SeqPacketLink {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.hangup.as_fd())
    }

    fn max_frame(&self) -> usize {
        FRAME_MAX
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        datagram::send(self.socket.as_fd(), Framing::Plain, FRAME_MAX, frames, &self.meter)
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        let got = datagram::recv(self.socket.as_fd(), Framing::Plain, frames, &self.meter)?;
        let received = frames.get(..got).unwrap_or_default();
        // At the end of the connection the kernel gives as many empty packets as one asks for.
        if received.last().is_some_and(|frame| frame.len == 0) && self.hung_up() {
            let real = received.iter().rposition(|frame| frame.len > 0).map_or(0, |last| last + 1);
            return if real > 0 { Ok(real) } else { Err(LinkError::Closed) };
        }
        Ok(got)
    }

    fn offloads(&self) -> bool {
        false
    }

    fn stats(&self) -> Stats {
        self.meter.stats()
    }

    fn check_control(&self) -> Result<(), LinkError> {
        if self.hung_up() { Err(LinkError::Closed) } else { Ok(()) }
    }
}
