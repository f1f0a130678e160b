//! Netlink: requests built attribute by attribute, and their answers taken apart.
//!
//! A message is a header of 16 bytes (length, kind, flags, number, port), a fixed body that its kind decides, and
//! attributes, each of a length, a kind and a value, padded to four bytes; a value may be attributes again. All
//! numbers are in the machine's order.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use rustix::io::{Errno, retry_on_intr as retry};
use rustix::net::netlink::{GENERIC, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

/// The kernel is to answer with what is asked for: `NLM_F_REQUEST`.
pub(super) const ASK: u16 = 1;
/// The kernel is to answer, with an error of 0 if there is nothing else to say: `NLM_F_REQUEST | NLM_F_ACK`.
pub(super) const ACK: u16 = 1 | 4;
/// What the message describes is to be made, and must not exist: `NLM_F_CREATE | NLM_F_EXCL`.
pub(super) const CREATE: u16 = 0x400 | 0x200;

/// Kind of an answer that is an error: `NLMSG_ERROR`.
const ERROR: u16 = 2;
/// The bit of an attribute's kind that says that its value is attributes: `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's kind that are no kind: `NLA_F_NESTED | NLA_F_NET_BYTEORDER`.
const NOT_KIND: u16 = 0xc000;
/// Length of a message's header.
const HEADER: usize = 16;
/// Length of an attribute's header.
const ATTRIBUTE: usize = 4;

/// A message on its way to the kernel.
pub(super) struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    /// A message of a kind with its fixed body.
    pub(super) fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        Self { kind, flags, body: body.to_vec() }
    }

    /// Appends an attribute.
    pub(super) fn put(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |request| request.body.extend_from_slice(value));
    }

    /// Appends a text with the zero byte that the kernel wants behind it.
    pub(super) fn put_text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, |request| {
            request.body.extend_from_slice(text.as_bytes());
            request.body.push(0);
        });
    }

    /// Appends bytes as they are: the fixed body that some attributes begin with.
    pub(super) fn put_raw(&mut self, bytes: &[u8]) {
        self.body.extend_from_slice(bytes);
    }

    /// Appends an attribute whose value is the attributes that `fill` appends.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, fill);
    }

    /// Appends an attribute whose value is what `fill` appends. Values here are names and numbers, so that no length
    /// comes near what 16 bits hold.
    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.body.len();
        self.body.extend_from_slice(&[0; ATTRIBUTE]);
        fill(self);
        let len = u16::try_from(self.body.len() - start).unwrap_or(u16::MAX);
        let [l0, l1] = len.to_ne_bytes();
        let [k0, k1] = kind.to_ne_bytes();
        if let Some(header) = self.body.get_mut(start..start + ATTRIBUTE) {
            header.copy_from_slice(&[l0, l1, k0, k1]);
        }
        self.body.resize(self.body.len().next_multiple_of(4), 0);
    }

    /// The whole message, with its number.
    fn encode(&self, number: u32) -> Vec<u8> {
        let len = u32::try_from(HEADER + self.body.len()).unwrap_or(u32::MAX);
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(&self.flags.to_ne_bytes());
        bytes.extend_from_slice(&number.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A message from the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    number: u32,
    pub(super) body: &'a [u8],
}

/// The messages in what one call received.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(number32(bytes, 0)?).ok()?;
        let message =
            Message { kind: number16(bytes, 4)?, number: number32(bytes, 8)?, body: bytes.get(HEADER..len)? };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in a value or behind a fixed body, kind and value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(number16(bytes, 0)?);
        let attribute = (number16(bytes, 2)? & !NOT_KIND, bytes.get(ATTRIBUTE..len)?);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The value of the first attribute of a kind.
pub(super) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(this, _)| *this == kind).map(|(_, value)| value)
}

/// The number of 16 bits at an offset.
pub(super) fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

/// The number of 32 bits at an offset.
pub(super) fn number32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// A text without the zero byte behind it.
pub(super) fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// A socket to the kernel. It asks about, and changes, the namespace that its thread was in when it was made.
#[derive(Debug)]
pub(super) struct Netlink {
    fd: OwnedFd,
    last: AtomicU32,
}

impl Netlink {
    /// One to rtnetlink.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(None, 0)
    }

    /// One to rtnetlink that also hears of changes, by a mask of `RTMGRP_`.
    pub(super) fn monitor(groups: u32) -> io::Result<Self> {
        Self::open(None, groups)
    }

    /// One to generic netlink, under which subsystems have families of their own.
    pub(super) fn generic() -> io::Result<Self> {
        Self::open(Some(GENERIC), 0)
    }

    fn open(protocol: Option<Protocol>, groups: u32) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        bind(&fd, &SocketAddrNetlink::new(0, groups))?;
        Ok(Self { fd, last: AtomicU32::new(0) })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Has the kernel do or answer something; returns the answer's body, empty if it is only that it was done.
    pub(super) fn ask(&self, request: &Request) -> io::Result<Vec<u8>> {
        let number = self.last.fetch_add(1, Relaxed).wrapping_add(1);
        retry(|| send(&self.fd, &request.encode(number), SendFlags::NOSIGNAL))?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            // The answer was put there while the request was being sent.
            let got = retry(|| recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT)).map(|(got, _)| got)?;
            let answer = buffer.get(..got).unwrap_or_default();
            let Some(message) = messages(answer).find(|message| message.number == number) else { continue };
            if message.kind != ERROR {
                return Ok(message.body.to_vec());
            }
            return match number32(message.body, 0).map(u32::cast_signed) {
                Some(0) => Ok(Vec::new()),
                Some(errno) => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
                None => Err(io::ErrorKind::InvalidData.into()),
            };
        }
    }

    /// Hands over what the kernel told, as much as one call brings; `None` when there is nothing.
    pub(super) fn listen(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match retry(|| recv(&self.fd, &mut *buffer, RecvFlags::DONTWAIT)) {
            Ok((got, _)) => Ok(Some(got)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_is_read_back() {
        let mut request = Request::new(16, ACK, &[7; 16]);
        request.put_text(3, "vde0");
        request.nest(18, |inner| {
            inner.put(1, b"veth");
            inner.nest(2, |data| data.put_raw(&[9; 4]));
        });
        let bytes = request.encode(5);
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].kind, all[0].number), (16, 5));
        let (body, rest) = all[0].body.split_at(16);
        assert_eq!(body, [7; 16]);
        assert_eq!(attribute(rest, 3).map(text).as_deref(), Some("vde0"));
        let inner = attribute(rest, 18).expect("nested");
        assert_eq!(attributes(inner).collect::<Vec<_>>(), [(1, &b"veth"[..]), (2, &[9; 4][..])]);
    }

    #[test]
    fn hostile_bytes_end_the_reading() {
        for bytes in [&[0; 40][..], &[0xff; 40], &[3, 0, 0, 0, 1, 0, 0, 0], &[4], &[]] {
            assert_eq!(messages(bytes).count(), 0, "{bytes:?}");
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }

    #[test]
    fn route_answers_for_the_loopback_interface() {
        let route = Netlink::route().expect("a socket");
        let mut body = [0; 16];
        body[4] = 1;
        let answer =
            route.ask(&Request::new(libc::RTM_GETLINK, ASK, &body)).expect("every namespace has one");
        assert_eq!(attribute(&answer[16..], libc::IFLA_IFNAME).map(text).as_deref(), Some("lo"));
        body[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let error = route.ask(&Request::new(libc::RTM_GETLINK, ASK, &body)).expect_err("no such interface");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
