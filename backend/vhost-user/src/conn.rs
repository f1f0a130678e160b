//! The socket: bytes and descriptors into whole messages, replies out.
//!
//! A message is a 12-byte header (request, flags, size of the body) and a body; numbers are in native byte order. It
//! may arrive in any number of pieces. We never read past the end of the message at hand, so that descriptors,
//! which travel with some byte of their message, are never credited to the wrong one.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};
use vhost::vhost_user::message::{MAX_ATTACHED_FD_ENTRIES, MAX_MSG_SIZE, VhostUserHeaderFlag};

use crate::Device;
use crate::message::Message;
use crate::session::Session;

const HEADER: usize = 12;
/// Messages handled per call, so that a front end that never stops talking cannot starve other connections.
const BUDGET: usize = 64;
const VERSION: u32 = 1;

/// Why a connection is over. Each is the peer's doing and concerns this connection alone.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The front end closed the socket.
    #[error("the front end closed the connection")]
    Closed,
    /// The socket failed.
    #[error("the connection to the front end failed")]
    Io(#[source] io::Error),
    /// The front end broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(String),
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        match errno {
            rustix::io::Errno::CONNRESET | rustix::io::Errno::PIPE => Self::Closed,
            other => Self::Io(other.into()),
        }
    }
}

/// One front end.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// The message at hand, as far as it has come.
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    session: Session,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Connection {
    /// Takes an accepted socket, which becomes non-blocking. `name` begins the log lines.
    pub fn new(stream: UnixStream, name: &str, device: &dyn Device) -> Result<Self, Error> {
        stream.set_nonblocking(true).map_err(Error::Io)?;
        let session = Session::new(name, device);
        Ok(Self { stream, bytes: Vec::with_capacity(HEADER + MAX_MSG_SIZE), fds: Vec::new(), session })
    }

    /// Reads and answers what is there. After an error the connection is over; call [`Connection::close`].
    pub fn on_readable(&mut self, device: &mut dyn Device) -> Result<(), Error> {
        for _ in 0..BUDGET {
            if !self.receive()? {
                return Ok(());
            }
            let (request, flags, _) = self.header();
            let body = self.bytes.get(HEADER..).unwrap_or_default().to_vec();
            self.bytes.clear();
            let need_reply = flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0;
            let message = Message { request, need_reply, body, fds: std::mem::take(&mut self.fds) };
            if let Some(body) = self.session.handle(device, message)? {
                self.reply(request, &body)?;
            }
        }
        Ok(())
    }

    /// The feature bits that the driver acknowledged; 0 before it did.
    pub fn features(&self) -> u64 {
        self.session.features()
    }

    /// Stops every ring that runs.
    pub fn close(mut self, device: &mut dyn Device) {
        self.session.stop_all(device);
    }

    fn header(&self) -> (u32, u32, usize) {
        let word = |at: usize| {
            let bytes = self.bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
            bytes.map_or(0, u32::from_ne_bytes)
        };
        (word(0), word(4), usize::try_from(word(8)).unwrap_or(usize::MAX))
    }

    /// True: a whole message is there. False: wait for more.
    fn receive(&mut self) -> Result<bool, Error> {
        loop {
            let mut want = HEADER;
            if self.bytes.len() >= HEADER {
                let (request, flags, size) = self.header();
                check_header(request, flags, size)?;
                want += size;
            }
            let have = self.bytes.len();
            if have >= want {
                return Ok(true);
            }
            self.bytes.resize(want, 0);
            let result = self.receive_some(have);
            self.bytes.truncate(have + result.as_ref().copied().unwrap_or(0));
            match result {
                Ok(0) => return Err(Error::Closed),
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            if self.fds.len() > MAX_ATTACHED_FD_ENTRIES {
                return Err(Error::Protocol("too many descriptors with one message".into()));
            }
        }
    }

    fn receive_some(&mut self, from: usize) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ATTACHED_FD_ENTRIES + 1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let into = self.bytes.get_mut(from..).unwrap_or_default();
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(&self.stream, &mut [IoSliceMut::new(into)], &mut control, flags)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) {
            return Err(rustix::io::Errno::MSGSIZE);
        }
        Ok(got.bytes)
    }

    /// Replies are small and few; a front end that lets them fill the socket's buffer is not one.
    fn reply(&self, request: u32, body: &[u8]) -> Result<(), Error> {
        let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let flags = VERSION | VhostUserHeaderFlag::REPLY.bits();
        let mut message = Vec::with_capacity(HEADER + body.len());
        for word in [request, flags, size] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(body);
        let sent = send(&self.stream, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        if sent != message.len() {
            return Err(Error::Protocol("the front end does not read its replies".into()));
        }
        Ok(())
    }
}

fn check_header(request: u32, flags: u32, size: usize) -> Result<(), Error> {
    if flags & VhostUserHeaderFlag::VERSION.bits() != VERSION
        || flags & VhostUserHeaderFlag::REPLY.bits() != 0
        || size > MAX_MSG_SIZE
    {
        let what = format!("request {request} has flags {flags:#x} and size {size}");
        return Err(Error::Protocol(what));
    }
    Ok(())
}
