//! Where a monitor listens.

use std::fmt;
use std::io;
use std::net::TcpStream;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

use rustix::net::sockopt::socket_type;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

/// The address of a monitor, in the words of QEMU's `-qmp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `unix:PATH`, or a path with a slash.
    Unix(PathBuf),
    /// `tcp:HOST:PORT`.
    Tcp(String),
    /// `fd:NUMBER`: a connected socket that this process inherited.
    Fd(RawFd),
}

/// Neither a path nor one of the other forms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no address of a monitor: unix:PATH, tcp:HOST:PORT, fd:NUMBER or a path with a slash")]
pub struct BadAddress(String);

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.into());
        match text.split_once(':') {
            // QEMU's options of the chardev may follow, as they stand in its command line.
            Some(("unix", rest)) => {
                let path = rest.split(',').next().filter(|path| !path.is_empty()).ok_or_else(bad)?;
                Ok(Self::Unix(path.into()))
            }
            Some(("tcp", rest)) => {
                let place = rest.split(',').next().unwrap_or_default();
                let (host, port) = place.rsplit_once(':').ok_or_else(bad)?;
                port.parse::<u16>().map_err(|_| bad())?;
                // Of an empty host QEMU means all of this machine.
                Ok(Self::Tcp(if host.is_empty() { format!("localhost:{port}") } else { place.into() }))
            }
            Some(("fd", number)) => {
                let number = number.parse().ok().filter(|number| *number >= 0);
                Ok(Self::Fd(number.ok_or_else(bad)?))
            }
            _ if text.contains('/') => Ok(Self::Unix(text.into())),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(place) => write!(f, "tcp:{place}"),
            Self::Fd(number) => write!(f, "fd:{number}"),
        }
    }
}

impl Address {
    /// Connects.
    ///
    /// # Errors
    /// Those of the system; `InvalidInput` if the descriptor is not a socket or not open.
    pub fn connect(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(path) => Ok(UnixStream::connect(path)?.into()),
            Self::Tcp(place) => {
                let stream = TcpStream::connect(place.as_str())?;
                // A command is one short write that waits for its answer.
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }
            Self::Fd(number) => inherited(*number),
        }
    }
}

/// A descriptor of our own by its number, duplicated: who else uses that number keeps it.
fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    let socket = pidfd_getfd(&own, number, PidfdGetfdFlags::empty())?;
    // Fails if it is something else.
    socket_type(&socket)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn addresses_are_those_of_qemu() {
        let parse = |text: &str| text.parse::<Address>().unwrap();
        assert_eq!(parse("unix:/run/a,server=on,wait=off"), Address::Unix("/run/a".into()));
        assert_eq!(parse("unix:a"), Address::Unix("a".into()));
        assert_eq!(parse("./a:b"), Address::Unix("./a:b".into()));
        assert_eq!(parse("tcp:localhost:4444,server"), Address::Tcp("localhost:4444".into()));
        assert_eq!(parse("tcp::4444"), Address::Tcp("localhost:4444".into()));
        assert_eq!(parse("tcp:[::1]:4444"), Address::Tcp("[::1]:4444".into()));
        assert_eq!(parse("fd:3"), Address::Fd(3));
        for text in ["", "vm1", "unix:", "tcp:4444", "tcp:localhost:http", "fd:", "fd:-1", "udp:a:1"] {
            let error = text.parse::<Address>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("'{text}' is no address")), "{error}");
        }
        for text in ["unix:/run/a", "tcp:localhost:4444", "fd:3"] {
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn an_inherited_descriptor_has_to_be_a_socket() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let connected = Address::Fd(ours.as_raw_fd()).connect().unwrap();
        assert_ne!(connected.as_raw_fd(), ours.as_raw_fd());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Address::Fd(file.as_raw_fd()).connect().is_err());
        assert!(Address::Fd(i32::MAX).connect().is_err());
    }
}
