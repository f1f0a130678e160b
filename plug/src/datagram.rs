//! Frames over a datagram socket, one per datagram: what most links have in common.
//!
//! On some sockets every datagram begins with a [`Header`] and the frame behind it may be one that is still to be
//! segmented: a packet socket, and a socket between two programs of this project. On all others a frame goes
//! as it will be on the wire; what its header asks for is done here (module `soft`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use offload::Header;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};

use crate::kernel::{self, PACKET_HEADER_LEN};
use crate::link::{
    BIG_FRAME_MAX, FRAME_MIN, LinkError, Meter, PIECES_MAX, RxBuf, RxFrame, Sent, TxBuf, TxFrame,
};
use crate::soft::{self, Reached};
use crate::sys::{self, PeerName};

/// What is asked for as room for frames that the other side has not read yet; the kernel doubles it. It holds the frames
/// of about four milliseconds at 10 Gbit/s: 1700 of 1514 bytes, or 60 of 64 KiB. The default, of which two such big frames
/// fill the greater part, loses or stops every burst. An other side that never reads pins this much memory.
pub(crate) const SEND_BUFFER: usize = 2 << 20;

/// Gives a socket so much room for frames, or as much as it may have.
pub(crate) fn widen(socket: impl AsFd, bytes: usize) -> Result<(), Errno> {
    set_socket_send_buffer_size_force(&socket, bytes).or_else(|_| set_socket_send_buffer_size(&socket, bytes))
}

/// What a datagram of a socket holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A frame.
    Plain,
    /// A header, and a frame that may be still to be segmented.
    Header,
    /// The same on a packet socket: a shorter header, and a VLAN tag beside the frame (module `kernel::packet`).
    Packet,
}

impl Framing {
    /// The header of a complete frame, as long as headers are.
    fn prefix(self) -> &'static [u8] {
        const HEADER: [u8; Header::LEN] = Header::NONE.encode(0);
        match self {
            Self::Plain => &[],
            Self::Header => &HEADER,
            Self::Packet => HEADER.first_chunk::<PACKET_HEADER_LEN>().map_or(&[], |header| header),
        }
    }

    /// What a failed call means.
    fn failure(self, error: io::Error) -> Failure {
        match Errno::from_io_error(&error) {
            // An interface's queue is full, or its far end is down. The socket stays writable, so that there would be
            // nothing to wait for.
            Some(Errno::NOBUFS) if self == Self::Packet => Failure::Frame,
            _ => error.into(),
        }
    }
}

/// What a failed call on a data socket means.
pub(crate) enum Failure {
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
            // The memory of a guest may go at any time (FAULT); a kernel refuses a header that does not fit its
            // frame (INVAL); an interface that is down comes up again (NETDOWN, on a tap IO).
            Some(Errno::MSGSIZE | Errno::FAULT | Errno::INVAL | Errno::NETDOWN | Errno::IO) => Self::Frame,
            Some(Errno::CONNREFUSED | Errno::CONNRESET | Errno::NOTCONN | Errno::PIPE) => {
                Self::Link(LinkError::Closed)
            }
            // An interface was removed: NXIO from its packet socket, BADFD from its tap.
            Some(Errno::NXIO | Errno::NODEV | Errno::BADFD) => Self::Link(LinkError::Closed),
            _ => Self::Link(LinkError::Io(error)),
        }
    }
}

/// Whether a frame can be sent by a link whose complete frames have at most `max_frame` bytes.
pub(crate) fn is_frame(frame: &TxFrame<'_>, max_frame: usize) -> bool {
    let max = if frame.header.is_done() { max_frame } else { BIG_FRAME_MAX };
    frame.bufs.len() <= PIECES_MAX && (FRAME_MIN..=max).contains(&frame.len())
}

/// [`Link::send`](crate::Link::send) over such a socket, whose complete frames have at most `max_frame` bytes.
pub(crate) fn send(
    fd: BorrowedFd<'_>,
    framing: Framing,
    max_frame: usize,
    frames: &[TxFrame<'_>],
    meter: &Meter,
) -> Result<Sent, LinkError> {
    let mut done = Sent::default();
    // Segments of the frame at the front that went already.
    let segments = |taken: usize| frames.get(taken).map_or(0, |frame| frame.segments);
    done.segments = segments(0);
    while let Some(rest) = frames.get(done.taken..).filter(|rest| !rest.is_empty()) {
        // Up to the next bad one, which is rare, or to the size of a batch.
        let bad = |frame: &TxFrame<'_>| !is_frame(frame, max_frame);
        let run = rest.iter().take(sys::BATCH).position(bad).unwrap_or(rest.len().min(sys::BATCH));
        let run = rest.get(..run).unwrap_or_default();
        if run.is_empty() {
            done.taken += 1;
            done.dropped += 1;
            done.segments = segments(done.taken);
            continue;
        }
        match send_run(fd, framing, max_frame, run, done.segments) {
            Ok((Reached { frames: count, segments: part }, all)) => {
                meter.sent(count, run.iter().take(count).map(TxFrame::len).sum(), 0);
                done.taken += count;
                done.segments = if part > 0 { part } else { segments(done.taken) };
                // The next one did not go: the socket is full, or that frame is at fault, which the next call tells. A look
                // at the socket costs less than that call, which copies a frame before it fails, or cuts and sums the
                // segments of a batch, to send the two for which there came to be room meanwhile and again the next: a
                // sender that never rests, on a core that the receiver may need. To stop at a socket that is not full
                // would leave a caller waiting who waits for an edge.
                if !all && !is_writable(fd) {
                    break;
                }
            }
            Err(Failure::Again) => break,
            Err(Failure::Interrupted) => {}
            Err(Failure::Frame) => {
                done.taken += 1;
                done.dropped += 1;
                done.segments = segments(done.taken);
            }
            // Told by the next call, if it lasts.
            Err(Failure::Link(_)) if done.taken > 0 => break,
            Err(Failure::Link(error)) => return Err(error),
        }
    }
    meter.sent(0, 0, done.dropped);
    Ok(done)
}

/// Sends of good frames, no more than a batch, what goes by one call; says how far it came, and whether all that it
/// offered went. `segments` of the first one went before.
fn send_run(
    fd: BorrowedFd<'_>,
    framing: Framing,
    max_frame: usize,
    frames: &[TxFrame<'_>],
    segments: usize,
) -> Result<(Reached, bool), Failure> {
    let starts_complete = frames.first().is_some_and(|frame| frame.header.is_done());
    match framing {
        Framing::Plain if frames.iter().all(|frame| frame.header.is_done()) => {
            let sent = sys::send_batch(fd, frames.iter().map(|frame| frame.bufs))?;
            Ok((whole(sent), sent == frames.len()))
        }
        Framing::Plain => soft::send(fd, framing.prefix(), frames.iter(), segments, max_frame),
        Framing::Header | Framing::Packet => match send_with_headers(fd, framing, frames.iter()) {
            Ok(sent) => Ok((whole(sent), sent == frames.len())),
            // A header that this kernel does not know (UDP before Linux 6.2) or does not like: its work is done here.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !starts_complete => {
                soft::send(fd, framing.prefix(), frames.iter().take(1), segments, max_frame)
            }
            Err(error) => Err(framing.failure(error)),
        },
    }
}

/// Whether a socket has room for another frame, or an error to tell of.
pub(crate) fn is_writable(fd: BorrowedFd<'_>) -> bool {
    shows(fd, PollFlags::OUT)
}

/// Whether a datagram waits in a socket, or an error.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    shows(fd, PollFlags::IN)
}

fn shows(fd: BorrowedFd<'_>, events: PollFlags) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, events)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|count| count > 0)
}

/// So many frames that went whole.
fn whole(frames: usize) -> Reached {
    Reached { frames, segments: 0 }
}

fn send_with_headers<'a>(
    fd: BorrowedFd<'_>,
    framing: Framing,
    frames: impl Iterator<Item = &'a TxFrame<'a>> + Clone,
) -> io::Result<usize> {
    let headers: Vec<[u8; Header::LEN]> = frames.clone().map(|frame| frame.header.encode(0)).collect();
    let mut pieces = Vec::with_capacity(4 * headers.len());
    let mut bounds = Vec::with_capacity(headers.len());
    for (header, frame) in headers.iter().zip(frames) {
        let start = pieces.len();
        pieces.push(TxBuf::new(header.get(..framing.prefix().len()).unwrap_or(header)));
        pieces.extend_from_slice(frame.bufs);
        bounds.push((start, pieces.len()));
    }
    let datagrams = bounds.iter().map(|&(start, end)| pieces.get(start..end).unwrap_or_default());
    sys::send_batch(fd, datagrams)
}

/// [`Link::recv`](crate::Link::recv) over such a socket.
pub(crate) fn recv(
    fd: BorrowedFd<'_>,
    framing: Framing,
    frames: &mut [RxFrame<'_>],
    meter: &Meter,
) -> Result<usize, LinkError> {
    recv_by(frames, meter, |rest| recv_batch(fd, framing, rest))
}

/// Receives up to a batch of frames.
pub(crate) fn recv_batch(
    fd: BorrowedFd<'_>,
    framing: Framing,
    frames: &mut [RxFrame<'_>],
) -> Result<usize, Failure> {
    match framing {
        Framing::Plain => recv_plain(fd, frames, &mut []),
        Framing::Header => recv_with_headers(fd, frames, &mut [[0; Header::LEN]; sys::BATCH], &mut []),
        Framing::Packet => kernel::packet_recv(fd, frames),
    }
}

/// [`Link::recv`](crate::Link::recv) by a call that receives up to a batch of frames.
pub(crate) fn recv_by(
    frames: &mut [RxFrame<'_>],
    meter: &Meter,
    mut take: impl FnMut(&mut [RxFrame<'_>]) -> Result<usize, Failure>,
) -> Result<usize, LinkError> {
    let mut done = 0;
    // Each turn that is not the last takes a datagram from the queue or follows a signal, so a hostile
    // sender can keep this going for no more than the turns that are allowed here.
    for _ in 0..=frames.len() {
        let Some(rest) = frames.get_mut(done..).filter(|rest| !rest.is_empty()) else { break };
        let asked = rest.len().min(sys::BATCH);
        match take(rest) {
            Ok(got) => {
                count(rest.get(..got).unwrap_or_default(), meter);
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

/// Receives from a socket into which some write headers and others do not, as `framing` tells by the name of whose socket
/// a datagram came from. All kinds are received; what is not `usual` costs more, or is lost if it has a header.
pub(crate) fn recv_mixed(
    fd: BorrowedFd<'_>,
    usual: Framing,
    framing: impl Fn(&[u8]) -> Framing,
    frames: &mut [RxFrame<'_>],
) -> Result<usize, Failure> {
    let mut senders = [PeerName::EMPTY; sys::BATCH];
    if usual == Framing::Plain {
        let got = recv_plain(fd, frames, &mut senders)?;
        let odd = |sender: &PeerName| framing(sender.bytes()) != Framing::Plain;
        let senders = frames.iter_mut().zip(&senders).take(got);
        senders.filter(|(_, sender)| odd(sender)).for_each(|(frame, _)| frame.len = 0);
        return Ok(got);
    }
    let mut headers = [[0; Header::LEN]; sys::BATCH];
    let got = recv_with_headers(fd, frames, &mut headers, &mut senders)?;
    for ((frame, header), sender) in frames.iter_mut().zip(&headers).zip(&senders).take(got) {
        if framing(sender.bytes()) == Framing::Plain {
            frame.header = Header::NONE;
            // What is shorter than this is no frame either way.
            frame.insert(0, header);
        }
    }
    Ok(got)
}

fn recv_plain(
    fd: BorrowedFd<'_>,
    frames: &mut [RxFrame<'_>],
    senders: &mut [PeerName],
) -> Result<usize, Failure> {
    let mut lens = [0; sys::BATCH];
    let rooms = frames.iter().map(|frame| frame.bufs);
    let got = sys::recv_batch(fd, rooms, &mut lens, &mut [], senders, RecvFlags::empty())?;
    for (frame, len) in frames.iter_mut().zip(lens).take(got) {
        (frame.header, frame.len) = (Header::NONE, len);
    }
    Ok(got)
}

/// Receives frames behind headers, whose bytes stay in `headers`.
fn recv_with_headers(
    fd: BorrowedFd<'_>,
    frames: &mut [RxFrame<'_>],
    headers: &mut [[u8; Header::LEN]; sys::BATCH],
    senders: &mut [PeerName],
) -> Result<usize, Failure> {
    let mut lens = [0; sys::BATCH];
    let mut pieces = Vec::with_capacity(4 * frames.len().min(sys::BATCH));
    let mut bounds = [(0, 0); sys::BATCH];
    for ((header, frame), bounds) in headers.iter_mut().zip(frames.iter()).zip(&mut bounds) {
        bounds.0 = pieces.len();
        pieces.push(RxBuf::new(header));
        frame.lend_again(&mut pieces);
        bounds.1 = pieces.len();
    }
    let rooms =
        bounds.iter().take(frames.len()).map(|&(start, end)| pieces.get(start..end).unwrap_or_default());
    let got = sys::recv_batch(fd, rooms, &mut lens, &mut [], senders, RecvFlags::empty())?;
    for ((frame, header), len) in frames.iter_mut().zip(headers).zip(lens).take(got) {
        // What is too short for a header is too short for a frame.
        (frame.header, frame.len) = (Header::decode(header), len.saturating_sub(Header::LEN));
    }
    Ok(got)
}

/// Counts received frames.
fn count(frames: &[RxFrame<'_>], meter: &Meter) {
    let good = frames.iter().filter(|frame| (FRAME_MIN..=BIG_FRAME_MAX).contains(&frame.len));
    let (good_count, bytes) = good.fold((0, 0), |(count, bytes), frame| (count + 1, bytes + frame.len));
    meter.received(good_count, bytes, frames.len() - good_count);
}
