//! `vde://`: a port of a VDE switch (VDE facts, section 2).
//!
//! Theory of operation. A plug is two sockets. The stream to the switch's `ctl` carries one request and one
//! answer, then stays silent: its end is the end of the plug, for either side. The datagram socket carries
//! the frames, one per datagram. It has a name in the file system only while the switch looks for it, during
//! the handshake; then both ends are connected to each other and nobody else can send into them.
//!
//! A dead switch shows on the stream alone (end of file); the data socket stays quiet until something is
//! sent. The stream is therefore the control descriptor and has to be watched.

pub(crate) mod data_socket;
mod directory;
pub(crate) mod request;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::OpenOptions;
use crate::datagram::{self, Framing};
use crate::error::OpenError;
use crate::link::{FRAME_MAX, Link, LinkError, Meter, RxFrame, Sent, Stats, TxFrame};
use crate::locator::{LocatorProblem, Port, VdeLocator};

use data_socket::{Access, DataSocket};
use directory::Switch;
pub(crate) use request::description;
#[cfg(feature = "fuzzing")]
pub use request::{ANSWER_LEN, decode_answer};

/// An open plug in a switch.
#[derive(Debug)]
pub(crate) struct VdeLink {
    control: OwnedFd,
    data: OwnedFd,
    framing: Framing,
    meter: Meter,
}

/// Room for frames on their way to a node of this project, as for [`datagram::SEND_BUFFER`]. Four times as much lost a fifth of
/// the frames of 9000 bytes behind a switch; the default, a quarter of it, had the ends wait for each other.
const NODE_BUFFER: usize = 512 << 10;

/// How long the end of a link may wait for the switch, which takes well under a millisecond when it is well.
const CLOSING: Duration = Duration::from_millis(100);

/// The moment until which a handshake may take; `None` is never.
#[derive(Clone, Copy, Debug)]
struct Deadline(Option<Instant>);

impl Deadline {
    fn after(timeout: Duration) -> Self {
        Self(Instant::now().checked_add(timeout))
    }

    /// Time that is left, `Err` when none is.
    fn left(self) -> Result<Option<Duration>, Errno> {
        match self.0.map(|at| at.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => Err(Errno::TIMEDOUT),
            left => Ok(left),
        }
    }

    /// Waits until the descriptor is readable or at its end.
    fn wait_readable(self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        loop {
            let left = self.left()?.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], left.as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }
}

fn system(what: &'static str) -> impl FnOnce(Errno) -> OpenError {
    move |errno| OpenError::System { what, source: errno.into() }
}

impl VdeLink {
    /// Plugs in. What the locator says wins over the options.
    pub(crate) fn open(locator: &VdeLocator, options: &OpenOptions) -> Result<Self, OpenError> {
        let deadline = Deadline::after(options.timeout);
        let port = if locator.port == Port::Any { &options.port } else { &locator.port };
        if let Port::Number(number) = port
            && !(1..=Port::MAX).contains(number)
        {
            return Err(OpenError::Option(LocatorProblem::PortTooHigh { word: number.to_string() }));
        }
        let group = locator.group.as_ref().or(options.group.as_ref()).filter(|group| !group.is_empty());
        let access = Access::new(group, locator.mode.unwrap_or(options.mode))?;

        let switch = Switch::connect(&locator.path, port, options.timeout, deadline)?;
        let data = DataSocket::bind(switch.directory(), &access, switch.ctl())?;
        let description = request::description(&options.description, options.offloads);
        let request = request::encode(port, data.name(), &description);
        // One call, as the switch takes what one read brings for a whole request. An error says what the
        // end of the stream says below.
        let sent = retry(|| send(switch.stream(), &request, SendFlags::NOSIGNAL | SendFlags::DONTWAIT));
        if sent != Ok(request.len()) {
            return Err(OpenError::Refused { path: switch.directory().into(), port: port.clone() });
        }
        let peer = read_answer(&switch, port, options.timeout, deadline)?;
        data.join(&switch.peer(&peer)?).map_err(|errno| switch.bad_peer(&peer, errno))?;
        // Only a node that was told of the big frames' word answers with this, and it sends
        // headers from then on, so it is believed only where the word was said.
        let big = options.offloads && peer.as_os_str().as_bytes().ends_with(request::BIG_SUFFIX);
        let framing = if big { Framing::Header } else { Framing::Plain };
        let (control, data) = (switch.into_stream(), data.into_socket());
        if let Some(bytes) = queue(&peer, big) {
            datagram::widen(&data, bytes).map_err(system("give a socket room for frames"))?;
        }
        Ok(Self { control, data, framing, meter: Meter::default() })
    }
}

/// How much room a link needs for frames that the network has not read yet, if the default is not right.
///
/// A longer queue into Debian's vde_switch, or into a node of the original library, only moves the loss behind it: of frames
/// through the switch a third was lost then, and two thirds as many arrived as before.
fn queue(peer: &Path, big: bool) -> Option<usize> {
    let name = peer.file_name().unwrap_or_default().as_bytes();
    match name.strip_prefix(request::NODE_PREFIX.as_bytes()) {
        _ if big => Some(datagram::SEND_BUFFER),
        // (The original may have a socket number 0.)
        Some(number) if !number.is_empty() => Some(NODE_BUFFER),
        _ => None,
    }
}

/// Reads the answer, 110 bytes, in however many pieces it comes.
fn read_answer(
    switch: &Switch,
    port: &Port,
    timeout: Duration,
    deadline: Deadline,
) -> Result<std::path::PathBuf, OpenError> {
    let path: &Path = switch.directory();
    let bad = |why: &str| OpenError::BadAnswer { path: path.into(), why: why.into() };
    let mut answer = [0; request::ANSWER_LEN];
    let mut have = 0;
    while let Some(rest) = answer.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match deadline.wait_readable(switch.stream()) {
            Ok(()) => {}
            Err(Errno::TIMEDOUT) if have == 0 => {
                return Err(OpenError::NoAnswer { path: path.into(), port: port.clone(), timeout });
            }
            Err(Errno::TIMEDOUT) => return Err(bad("its answer is incomplete")),
            Err(errno) => return Err(system("wait for the switch's answer")(errno)),
        }
        match recv(switch.stream(), rest, RecvFlags::DONTWAIT) {
            Ok((0, _)) | Err(Errno::CONNRESET) if have == 0 => {
                return Err(OpenError::Refused { path: path.into(), port: port.clone() });
            }
            Ok((0, _)) | Err(Errno::CONNRESET) => return Err(bad("its answer is incomplete")),
            Ok((got, _)) => have += got,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(system("read the switch's answer")(errno)),
        }
    }
    request::decode_answer(&answer).map_err(bad)
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

impl Drop for VdeLink {
    /// Ends the plug and waits, briefly, until the switch has seen it. When Debian's vde_switch sees the end
    /// of one plug after it accepted another and before it read that one's request, it later forgets to free
    /// the other's port, which is lost until the switch ends. That was so for each of the 31 of 52 links,
    /// opened and closed in a row, for which the two came in this order; then no port was left.
    fn drop(&mut self) {
        let deadline = Deadline::after(CLOSING);
        // Either fails when the switch is gone or hangs; then there is no port to lose.
        let seen = shutdown(&self.control, Shutdown::Write).and_then(|()| {
            let mut ignored = [0_u8; 256];
            while retry(|| recv(&self.control, &mut ignored, RecvFlags::empty())) != Ok((0, 0)) {
                deadline.wait_readable(self.control.as_fd())?;
            }
            Ok(())
        });
        if let Err(errno) = seen {
            log::debug!("the switch did not confirm the end of a plug: {errno}");
        }
    }
}

impl Link for VdeLink {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.data.as_fd()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.control.as_fd())
    }

    fn max_frame(&self) -> usize {
        FRAME_MAX
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        datagram::send(self.data.as_fd(), self.framing, FRAME_MAX, frames, &self.meter)
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        datagram::recv(self.data.as_fd(), self.framing, frames, &self.meter)
    }

    fn offloads(&self) -> bool {
        self.framing == Framing::Header
    }

    fn stats(&self) -> Stats {
        self.meter.stats()
    }

    fn check_control(&self) -> Result<(), LinkError> {
        // A switch has nothing to say after its answer. What it says is thrown away, but not without end:
        // the descriptor stays readable and the caller comes again.
        let mut ignored = [0_u8; 256];
        for _ in 0..16 {
            match recv(&self.control, &mut ignored, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(LinkError::Closed),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN) => return Err(LinkError::Closed),
                Err(errno) => return Err(LinkError::Io(errno.into())),
            }
        }
        Ok(())
    }

    fn plain_socket(&self) -> Option<BorrowedFd<'_>> {
        (self.framing == Framing::Plain).then(|| self.data.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_is_long_into_nodes_of_ours_only() {
        for (name, big, bytes) in [
            ("/n/fd0", false, None),
            ("/n/fd7", false, None),
            ("/n/001.7", false, None),
            ("/n/fd07", false, Some(NODE_BUFFER)),
            ("/n/fd07+gso", true, Some(datagram::SEND_BUFFER)),
        ] {
            assert_eq!(queue(Path::new(name), big), bytes, "{name}");
        }
    }
}
