//! `vde://`: a port of a VDE switch (VDE facts, section 2).
//!
//! Theory of operation. A plug is two sockets. The stream to the switch's `ctl` carries one request and one
//! answer, then stays silent: its end is the end of the plug, for either side. The datagram socket carries
//! the frames, one per datagram. It has a name in the file system only while the switch looks for it, during
//! the handshake; then both ends are connected to each other and nobody else can send into them.
//!
//! A dead switch shows on the stream alone (end of file); the data socket stays quiet until something is
//! sent. The stream is therefore the control descriptor and has to be watched.

mod data_socket;
mod directory;
mod request;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::error::OpenError;
use crate::link::{FRAME_MAX, FRAME_MIN, Link, LinkError, RxFrame, Sent, TxBuf};
use crate::locator::{LocatorProblem, Port, VdeLocator};
use crate::{OpenOptions, sys};

use data_socket::{Access, DataSocket};
use directory::Switch;

/// An open plug in a switch.
#[derive(Debug)]
pub(crate) struct VdeLink {
    control: OwnedFd,
    data: OwnedFd,
}

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
        let description = request::description(&options.description);
        let request = request::encode(port, data.name(), &description);
        // One call, as the switch takes what one read brings for a whole request. An error says what the
        // end of the stream says below.
        let sent = retry(|| send(switch.stream(), &request, SendFlags::NOSIGNAL | SendFlags::DONTWAIT));
        if sent != Ok(request.len()) {
            return Err(OpenError::Refused { path: switch.directory().into(), port: port.clone() });
        }
        let peer = read_answer(&switch, port, options.timeout, deadline)?;
        data.join(&switch.peer(&peer)?).map_err(|errno| switch.bad_peer(&peer, errno))?;
        Ok(Self { control: switch.into_stream(), data: data.into_socket() })
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

/// What a failed call on the data socket means.
enum Failure {
    /// Nothing can be done now.
    Again,
    /// A signal came first.
    Interrupted,
    /// The frame is at fault, not the link.
    Frame,
    /// The link is at its end.
    Link(LinkError),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN | Errno::NOBUFS) => Self::Again,
            Some(Errno::INTR) => Self::Interrupted,
            // The memory of a guest may go at any time (FAULT).
            Some(Errno::MSGSIZE | Errno::FAULT) => Self::Frame,
            Some(Errno::CONNREFUSED | Errno::CONNRESET | Errno::NOTCONN | Errno::PIPE) => {
                Self::Link(LinkError::Closed)
            }
            _ => Self::Link(LinkError::Io(error)),
        }
    }
}

fn is_frame(pieces: &[TxBuf<'_>]) -> bool {
    let len = pieces.iter().fold(0, |sum: usize, piece| sum.saturating_add(piece.len()));
    (FRAME_MIN..=FRAME_MAX).contains(&len)
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

    fn send(&self, frames: &[&[TxBuf<'_>]]) -> Result<Sent, LinkError> {
        let mut done = Sent::default();
        while let Some(rest) = frames.get(done.taken..).filter(|rest| !rest.is_empty()) {
            let Some(bad_count) = rest.iter().position(|pieces| is_frame(pieces)) else {
                done.dropped += rest.len();
                done.taken = frames.len();
                break;
            };
            done.taken += bad_count;
            done.dropped += bad_count;
            // A run of good frames up to the next bad one, which is rare, or to the size of a batch.
            let run = rest.iter().copied().skip(bad_count).take_while(|pieces| is_frame(pieces));
            match sys::send_batch(self.data_fd(), run).map_err(Failure::from) {
                Ok(sent) => done.taken += sent,
                Err(Failure::Again) => break,
                Err(Failure::Interrupted) => {}
                Err(Failure::Frame) => {
                    done.taken += 1;
                    done.dropped += 1;
                }
                Err(Failure::Link(error)) => return Err(error),
            }
        }
        Ok(done)
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        let mut done = 0;
        // Each turn that is not the last takes a datagram from the queue or follows a signal, so a hostile
        // sender can keep this going for no more than the turns that are allowed here.
        for _ in 0..=frames.len() {
            let Some(rest) = frames.get_mut(done..).filter(|rest| !rest.is_empty()) else { break };
            let asked = rest.len().min(sys::BATCH);
            match sys::recv_batch(self.data.as_fd(), rest).map_err(Failure::from) {
                Ok(got) => {
                    done += got;
                    if got < asked {
                        break;
                    }
                }
                Err(Failure::Again) => break,
                // The kernel discards a datagram whose memory it cannot write.
                Err(Failure::Interrupted | Failure::Frame) => {}
                Err(Failure::Link(_)) if done > 0 => break,
                Err(Failure::Link(error)) => return Err(error),
            }
        }
        Ok(done)
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
}
