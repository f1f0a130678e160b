//! Where a monitor listens.

use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_type};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, getpeername, socket_with,
};
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
    /// The same place, as it is to be found from every directory and by every process; a descriptor stays one only if what it
    /// is connected to has no name.
    pub fn absolute(&self) -> Self {
        match self {
            Self::Unix(path) => Self::Unix(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
            Self::Tcp(_) => self.clone(),
            Self::Fd(number) => inherited(*number).ok().and_then(peer).unwrap_or_else(|| self.clone()),
        }
    }

    /// Connects, in so much time at most: those whom a monitor does not serve yet are in a queue, which is soon full.
    ///
    /// # Errors
    /// Those of the system; `TimedOut`; `InvalidInput` if the descriptor is not a socket or not open.
    pub fn connect(&self, limit: Duration) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(path) => Ok(connect_unix(path, limit)?),
            Self::Tcp(place) => {
                let stream = connect_tcp(place, limit)?;
                // A command is one short write that waits for its answer.
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }
            Self::Fd(number) => inherited(*number),
        }
    }
}

/// The kernel's own limit, because there is nothing to poll for.
fn connect_unix(path: &Path, limit: Duration) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // None at all would be for ever.
    set_socket_timeout(&socket, Timeout::Send, Some(limit.max(Duration::from_millis(1))))?;
    retry_on_intr(|| connect(&socket, &address)).map_err(|error| match error {
        Errno::AGAIN => Errno::TIMEDOUT,
        error => error,
    })?;
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket)
}

fn connect_tcp(place: &str, limit: Duration) -> io::Result<TcpStream> {
    let mut failed = io::ErrorKind::NotFound.into();
    for address in place.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, limit) {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// What a socket is connected to, by its name.
fn peer(socket: OwnedFd) -> Option<Address> {
    let peer = getpeername(&socket).ok()??;
    if let Ok(unix) = SocketAddrUnix::try_from(peer.clone()) {
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(unix.path_bytes()?));
        return path.is_absolute().then_some(Address::Unix(path));
    }
    std::net::SocketAddr::try_from(peer).ok().map(|place| Address::Tcp(place.to_string()))
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
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

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
        assert_eq!(parse("./a").absolute(), Address::Unix(std::env::current_dir().unwrap().join("a")));
        for text in ["unix:/run/a", "tcp:localhost:4444", "fd:2147483647"] {
            assert_eq!(parse(text).absolute(), parse(text));
            assert_eq!(parse(text).to_string(), text);
        }
    }

    #[test]
    fn a_descriptor_is_the_place_that_it_is_connected_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let place = |socket: &dyn AsRawFd| Address::Fd(socket.as_raw_fd()).absolute();
        let stream = UnixStream::connect(&path).unwrap();
        assert_eq!(place(&stream), Address::Unix(path));
        // Those without a name stay what they are.
        let (ours, _theirs) = UnixStream::pair().unwrap();
        for nameless in [&ours as &dyn AsRawFd, &listener, &std::fs::File::open("/dev/null").unwrap()] {
            assert_eq!(place(nameless), Address::Fd(nameless.as_raw_fd()));
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert_eq!(place(&stream), Address::Tcp(format!("127.0.0.1:{port}")));
    }

    #[test]
    fn a_full_queue_is_waited_for_as_long_as_said() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("s"));
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let first = address.connect(LIMIT).unwrap();
        let begin = Instant::now();
        let error = address.connect(Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() >= Duration::from_millis(50) && begin.elapsed() < LIMIT);
        drop(first);
        listener.accept().unwrap();
        address.connect(LIMIT).unwrap();
    }

    #[test]
    fn an_inherited_descriptor_has_to_be_a_socket() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let connected = Address::Fd(ours.as_raw_fd()).connect(LIMIT).unwrap();
        assert_ne!(connected.as_raw_fd(), ours.as_raw_fd());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(Address::Fd(file.as_raw_fd()).connect(LIMIT).is_err());
        assert!(Address::Fd(i32::MAX).connect(LIMIT).is_err());
    }
}
