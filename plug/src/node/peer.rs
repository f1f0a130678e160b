//! A peer: a client that joined a node, with both ends of its two sockets that are ours.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, shutdown, socket_with,
};

use super::place::Place;
use super::request::{ClientName, Request, encode_answer};
use super::table::Port;
use crate::datagram::{self, Framing};
use crate::link::{BIG_FRAME_MAX, Meter, RxFrame, TxFrame};
use crate::vde::data_socket::{name_of, pin};
use crate::vde::request::{BIG_SUFFIX, NODE_PREFIX};

/// A peer.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) port: Port,
    stream: OwnedFd,
    data: OwnedFd,
    framing: Framing,
    /// Name of the data socket in the node's directory.
    pub(super) name: String,
    /// The whole of it.
    path: PathBuf,
    /// What it said that it is.
    pub(super) description: String,
    meter: Meter,
    /// It left, and what it sent before is still to be received.
    left: AtomicBool,
}

impl Peer {
    /// Makes our end of the cable to a client. `big`: the node takes big frames.
    pub(super) fn admit(
        port: Port,
        stream: OwnedFd,
        request: Request,
        big: bool,
        place: &Place,
    ) -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let data = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        datagram::widen(&data, datagram::SEND_BUFFER)?;
        // Connected before it has a name, so that nobody else can ever send to it.
        match &request.data_socket {
            ClientName::Abstract(name) => connect(&data, &SocketAddrUnix::new_abstract_name(name)?)?,
            // (A file system that hangs when it is asked for a name would hang the thread. Only who may mount one that
            // this user is let into could do that.)
            ClientName::Path(path) => {
                let (socket, stat) = pin(CWD, path)?;
                // Else anybody who may join could have us send to sockets that we may use and it may not.
                let user = socket_peercred(&stream)?.uid.as_raw();
                if user != stat.st_uid && user != 0 {
                    return Err(Errno::PERM);
                }
                connect(&data, &SocketAddrUnix::new(name_of(&socket))?)?;
            }
        }
        let big = big && request.big;
        let suffix = if big { std::str::from_utf8(BIG_SUFFIX).unwrap_or_default() } else { "" };
        let name = format!("{NODE_PREFIX}{}{suffix}", stream.as_raw_fd());
        let path = place.bind(&data, &name)?;
        Ok(Self {
            port,
            stream,
            data,
            framing: if big { Framing::Header } else { Framing::Plain },
            name,
            path,
            description: request.description,
            meter: Meter::default(),
            left: AtomicBool::new(false),
        })
    }

    /// Tells the client where our end is. From then on it may send.
    pub(super) fn answer(&self) -> Result<(), Errno> {
        let answer = encode_answer(&self.path);
        match send(&self.stream, &answer, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)? {
            sent if sent == answer.len() => Ok(()),
            _ => Err(Errno::PIPE),
        }
    }

    /// Whether the client is still there; to be asked when its stream is readable. It has nothing to say, so one that
    /// says something is sent away.
    pub(super) fn stays(&self) -> bool {
        let mut word = [0; 1];
        matches!(recv(&self.stream, &mut word, RecvFlags::DONTWAIT), Err(Errno::AGAIN | Errno::INTR))
    }

    /// Ends the cable. The client sees it at once; what it sent can still be received.
    pub(super) fn hang_up(&self) {
        // Either fails if the client went first.
        let _ = shutdown(&self.data, Shutdown::Read);
        let _ = shutdown(&self.stream, Shutdown::Both);
    }

    /// Whether there is something to be received.
    pub(super) fn is_pending(&self) -> bool {
        recv(&self.data, &mut [0; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT) != Err(Errno::AGAIN)
    }

    /// Notes that it left.
    pub(super) fn set_left(&self) {
        self.left.store(true, Ordering::Release);
    }

    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Whether it may send big frames.
    pub(super) fn is_big(&self) -> bool {
        self.framing == Framing::Header
    }

    pub(super) fn data(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }

    pub(super) fn stream(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Sends frames without waiting. A peer that does not take one loses it, and the rest of the batch. To one whose
    /// socket is gone, and whose end is not noticed yet, the first send is also the loss of what it sent and was not
    /// received: the kernel throws that away.
    pub(super) fn send(&self, frames: &[TxFrame<'_>]) {
        let now = Meter::default();
        // An error says that the peer is gone, which its stream will tell.
        let _ = datagram::send(self.data.as_fd(), self.framing, BIG_FRAME_MAX, frames, &now);
        let now = now.read();
        let sent = usize::try_from(now.tx_frames).unwrap_or(usize::MAX);
        let bytes = usize::try_from(now.tx_bytes).unwrap_or(usize::MAX);
        self.meter.sent(sent, bytes, frames.len().saturating_sub(sent));
    }

    /// Receives frames without waiting; fewer than there is room for means that no more are there. `owner` counts them
    /// too, if they are for it.
    pub(super) fn recv(&self, frames: &mut [RxFrame<'_>], owner: Option<&Meter>) -> usize {
        let now = Meter::default();
        // An error is about the peer alone (defect M-6). It is taken off the socket by being told.
        let got = datagram::recv(self.data.as_fd(), self.framing, frames, &now).unwrap_or(0);
        if got > 0 {
            let now = now.read();
            for meter in std::iter::once(&self.meter).chain(owner) {
                let count = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
                meter.received(count(now.rx_frames), count(now.rx_bytes), count(now.rx_dropped));
            }
        }
        got
    }
}
