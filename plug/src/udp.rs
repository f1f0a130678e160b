//! `udp://[SRC:]SPORT->DST:DPORT`: frames in UDP datagrams, one in each (VDE fact 3.5).
//!
//! The socket is bound to the source and connected to the destination, so the kernel takes nothing that another sends.
//! There is nothing in the protocol by which one end knows that the other lives: that nobody listens there (an ICMP
//! message, of which the socket tells once), that there is no route, or that a firewall objects, are all passing matters.
//! A frame is lost then, and the link goes on.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use crate::OpenErrorKind;
use crate::datagram::{self, Framing};
use crate::link::{FRAME_MAX, Link, LinkError, Meter, RxFrame, Sent, Stats, TxFrame};
use crate::lossy;

/// How many messages of refusal are read past in one call. Each stands for a frame that was sent.
const REFUSALS: usize = 8;

/// Why a `udp` link could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UdpError {
    /// The argument does not have the form.
    #[error(
        "bad locator {text:?}, character {at}: {what}; write udp://SPORT->DST:DPORT or udp://SRC:SPORT->DST:DPORT"
    )]
    Form {
        /// The argument.
        text: String,
        /// Which character of it the problem begins with, counted from 1.
        at: usize,
        /// What is wrong with it.
        what: &'static str,
    },

    /// A name could not be resolved.
    #[error(
        "cannot find the address of {host:?}; write a name that is in /etc/hosts or the DNS, or an address"
    )]
    Unresolved {
        /// The name.
        host: String,
        /// Why not.
        source: io::Error,
    },

    /// One address is of IPv4 and the other of IPv6.
    #[error("{from:?} and {to:?} have no addresses of the same family; write both as IPv4, or both as IPv6")]
    Families {
        /// The source.
        from: String,
        /// The destination.
        to: String,
    },

    /// The source could not be bound.
    #[error("cannot bind {address}; choose a port that is free and an address of this machine")]
    Bind {
        /// The source.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },

    /// The destination cannot be reached from the source.
    #[error("cannot connect to {address}; choose an address to which this machine has a route")]
    Connect {
        /// The destination.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

impl UdpError {
    /// The coarse class of this error.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            Self::Form { .. } | Self::Families { .. } => OpenErrorKind::Usage,
            Self::Unresolved { .. } => OpenErrorKind::NotFound,
            Self::Bind { source, .. } | Self::Connect { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => OpenErrorKind::Permission,
                io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable => OpenErrorKind::Usage,
                _ => OpenErrorKind::Unavailable,
            },
        }
    }
}

/// An open `udp` link.
#[derive(Debug)]
pub(crate) struct UdpLink {
    socket: UdpSocket,
    meter: Meter,
}

/// One end as it was written.
#[derive(Debug, PartialEq, Eq)]
struct End<'a> {
    /// Empty if only a port was given.
    host: &'a str,
    port: u16,
}

impl<'a> End<'a> {
    /// Reads an end; an error says where in `text` the port should be.
    fn parse(text: &'a str) -> Result<Self, usize> {
        let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
        let port = port.parse().map_err(|_| text.len() - port.len())?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Ok(Self { host, port })
    }

    fn resolve(&self) -> Result<Vec<SocketAddr>, UdpError> {
        let unresolved = |source| UdpError::Unresolved { host: self.host.into(), source };
        Ok((self.host, self.port).to_socket_addrs().map_err(unresolved)?.collect())
    }
}

/// Takes the argument apart.
fn parse(argument: &str) -> Result<(End<'_>, End<'_>), UdpError> {
    const ARROW: &str = "->";
    let wrong = |at, what| {
        let at = argument.char_indices().take_while(|(offset, _)| *offset < at).count() + 1;
        UdpError::Form { text: argument.into(), at, what }
    };
    let no_port = |at| wrong(at, "there should be a port from 0 to 65535");
    let (from, to) = argument
        .split_once(ARROW)
        .ok_or_else(|| wrong(argument.len(), "there is no -> between source and destination"))?;
    let to_at = from.len() + ARROW.len();
    let from = End::parse(from).map_err(no_port)?;
    let to = End::parse(to).map_err(|at| no_port(to_at + at))?;
    if to.host.is_empty() {
        return Err(wrong(to_at, "there should be the host of the destination"));
    }
    if to.port == 0 {
        return Err(wrong(argument.len() - 1, "0 is no port of a destination"));
    }
    Ok((from, to))
}

impl UdpLink {
    /// Opens the socket. The first destination address for which there is a source is taken.
    pub(crate) fn open(argument: &str) -> Result<Self, UdpError> {
        let (from, to) = parse(argument)?;
        let destinations = to.resolve()?;
        let sources = if from.host.is_empty() { Vec::new() } else { from.resolve()? };
        let mut failure = None;
        for &address in &destinations {
            let any = match address.ip() {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            };
            let any = from.host.is_empty().then(|| SocketAddr::new(any, from.port));
            let same = |source: &&SocketAddr| source.is_ipv4() == address.is_ipv4();
            for source in sources.iter().filter(same).copied().chain(any) {
                match connect(source, address) {
                    Ok(socket) => return Ok(Self { socket, meter: Meter::default() }),
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
        }
        let families = || UdpError::Families { from: from.host.into(), to: to.host.into() };
        Err(failure.unwrap_or_else(families))
    }
}

fn connect(from: SocketAddr, to: SocketAddr) -> Result<UdpSocket, UdpError> {
    let bind = |source| UdpError::Bind { address: from, source };
    let socket = UdpSocket::bind(from).map_err(bind)?;
    socket.connect(to).map_err(|source| UdpError::Connect { address: to, source })?;
    socket.set_nonblocking(true).map_err(bind)?;
    Ok(socket)
}

impl Link for UdpLink {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn max_frame(&self) -> usize {
        FRAME_MAX
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        let fd = self.socket.as_fd();
        let attempt = |rest: &[TxFrame<'_>]| datagram::send(fd, Framing::Plain, FRAME_MAX, rest, &self.meter);
        // The error may be that of an earlier frame.
        Ok(lossy::send(fd, frames, &self.meter, attempt, || true))
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        for _ in 0..REFUSALS {
            if let Ok(got) = datagram::recv(self.socket.as_fd(), Framing::Plain, frames, &self.meter) {
                return Ok(got);
            }
        }
        Ok(0)
    }

    fn offloads(&self) -> bool {
        false
    }

    fn stats(&self) -> Stats {
        self.meter.stats()
    }

    fn check_control(&self) -> Result<(), LinkError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parse_takes_all_forms() {
        for (text, from, to) in [
            ("5000->host:6000", ("", 5000), ("host", 6000)),
            (":5000->10.0.0.1:6000", ("", 5000), ("10.0.0.1", 6000)),
            ("127.0.0.1:5000->[::1]:6000", ("127.0.0.1", 5000), ("::1", 6000)),
            ("[fe80::1%eth0]:0->::1:6000", ("fe80::1%eth0", 0), ("::1", 6000)),
        ] {
            let end = |(host, port)| End { host, port };
            assert_eq!(parse(text).expect(text), (end(from), end(to)));
        }
    }

    #[test]
    fn parse_says_what_is_wrong() {
        for (text, what) in [
            ("", "\"\", character 1: there is no ->"),
            ("5000", "\"5000\", character 5: there is no ->"),
            ("5000->", "character 7: there should be a port"),
            ("x->host:1", "character 1: there should be a port"),
            ("é:x->host:1", "character 3: there should be a port"),
            ("1->host:65536", "character 9: there should be a port"),
            ("1->2", "character 4: there should be the host"),
            ("1->host:0", "character 9: 0 is no port"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.to_string().contains(what), "{error}");
            assert_eq!(error.kind(), OpenErrorKind::Usage);
        }
    }

    proptest! {
        #[test]
        fn parse_any_text_returns(text in "[a1:>\\[\\]-]{0,20}") {
            let _ = parse(&text);
        }
    }
}
