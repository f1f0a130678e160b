//! Packet sockets: whole frames of an interface, read and written.
//!
//! Theory of operation. The socket is made for no protocol, so that nothing comes, set up, and only then bound to the
//! interface and to all protocols; it sees what the interface receives and not what the machine sends there.
//! Before each frame stands the header of virtio-net without its last field (10 bytes; the kernel takes 12 from Linux
//! 6.5 on, which would be a second form to keep for nothing).
//!
//! The kernel takes the outer VLAN tag off every frame, whatever the interface's settings, and tells it beside the frame.
//! It is put back here: the frame lies in the receiver's memory by then, so that what follows the addresses is moved.
//!
//! Who wants complete frames (a link without offloads) cannot be served by the kernel, which hands over what the other
//! end left undone. Such a frame is therefore looked at first, through private memory, and completed there.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use offload::header::GSO_NONE;
use offload::{Header, Plan};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt};

use super::{netlink, sys};
use crate::datagram::Failure;
use crate::link::{BIG_FRAME_MAX, Meter, RxBuf, RxFrame};
use crate::sys::{BATCH, Control, recv_batch};

/// Length of the header on these sockets.
pub(crate) const HEADER_LEN: usize = 10;

/// Where a VLAN tag stands: behind two addresses.
const TAG_AT: usize = 12;
/// Length of a VLAN tag.
const TAG_LEN: usize = 4;

/// Bytes that the socket may hold, as the kernel counts them; it adds as much again for its own. At 64 KiB a frame the
/// default (208 KiB) holds three.
const BUFFER: usize = 4 << 20;

/// How many frames are thrown away in a call: more than the socket can hold, so that what is there after them came since.
const LOST_MAX: usize = 1 << 14;

// The kernel reads and writes the headers of packet sockets in the machine's order.
const _: () = assert!(cfg!(target_endian = "little"), "headers are little endian here");

/// Opens a socket on an interface.
pub(super) fn open(index: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
    let fd = socket.as_fd();
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING, libc::PACKET_AUXDATA] {
        sys::packet_set(fd, option, 1)?;
    }
    // Beyond the system's limit only with a privilege, and below it is enough to work.
    if sockopt::set_socket_recv_buffer_size_force(fd, BUFFER).is_err() {
        sockopt::set_socket_recv_buffer_size(fd, BUFFER)?;
    }
    sockopt::set_socket_send_buffer_size(fd, BUFFER)?;
    sys::packet_promiscuous(fd, index)?;
    sys::packet_bind(fd, index)?;
    // That the interface is still down is no news.
    let _down = sockopt::socket_error(fd)?;
    Ok(socket)
}

/// Receives a batch of frames as they are, with their headers.
pub(crate) fn recv_frames(fd: BorrowedFd<'_>, frames: &mut [RxFrame<'_>]) -> Result<usize, Failure> {
    let mut headers = [[0; Header::LEN]; BATCH];
    let mut lens = [0; BATCH];
    let mut controls = [Control::EMPTY; BATCH];
    let mut pieces = Vec::with_capacity(4 * frames.len().min(BATCH));
    let mut bounds = [(0, 0); BATCH];
    for ((header, frame), bounds) in headers.iter_mut().zip(frames.iter()).zip(&mut bounds) {
        bounds.0 = pieces.len();
        pieces.push(RxBuf::new(header.get_mut(..HEADER_LEN).unwrap_or_default()));
        frame.lend_again(&mut pieces);
        bounds.1 = pieces.len();
    }
    let rooms =
        bounds.iter().take(frames.len()).map(|&(start, end)| pieces.get(start..end).unwrap_or_default());
    let got = recv_batch(fd, rooms, &mut lens, &mut controls, &mut [], RecvFlags::empty())?;
    for (((frame, header), len), control) in frames.iter_mut().zip(headers).zip(lens).zip(&controls).take(got)
    {
        frame.len = len.saturating_sub(HEADER_LEN);
        frame.header = Header::decode(&header);
        if let Some(tag) = tag(control) {
            frame.header = behind_tag(frame.header);
            frame.insert(TAG_AT, &tag);
        }
    }
    Ok(got)
}

/// The VLAN tag that the kernel took off, as it stood in the frame (`struct tpacket_auxdata`).
fn tag(control: &Control) -> Option<[u8; TAG_LEN]> {
    let header = size_of::<libc::cmsghdr>();
    let bytes = control.bytes();
    let (level, kind) = (netlink::number32(bytes, header - 8)?, netlink::number32(bytes, header - 4)?);
    if (level.cast_signed(), kind.cast_signed()) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    let data = bytes.get(header..)?;
    let status = netlink::number32(data, 0)?;
    if status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let [c0, c1] = netlink::number16(data, 16)?.to_be_bytes();
    let [p0, p1] = match status & libc::TP_STATUS_VLAN_TPID_VALID {
        0 => [0x81, 0],
        _ => netlink::number16(data, 18)?.to_be_bytes(),
    };
    Some([p0, p1, c0, c1])
}

/// The header of a frame into which a tag was put.
fn behind_tag(mut header: Header) -> Header {
    let tag_len = 4;
    if header.partial().is_some() {
        header.csum_start = header.csum_start.saturating_add(tag_len);
    }
    if header.hdr_len > 0 {
        header.hdr_len = header.hdr_len.saturating_add(tag_len);
    }
    header
}

/// Reads frames and completes them.
///
/// A frame that becomes several stays in the socket until the last of them was taken, so that the socket stays readable.
#[derive(Debug)]
pub(super) struct Completer {
    /// The bytes of the frame, with room for a tag before it.
    room: Vec<u8>,
    /// The frame, if one was read.
    pending: Option<Pending>,
    /// A segment.
    segment: Vec<u8>,
}

/// A frame that was read and is still in the socket.
#[derive(Debug)]
struct Pending {
    /// Where it lies.
    at: Range<usize>,
    /// How it is cut, if it is.
    plan: Option<Plan>,
    /// How many segments were taken.
    taken: usize,
}

impl Completer {
    pub(super) fn new() -> Self {
        Self { room: vec![0; TAG_LEN + BIG_FRAME_MAX], pending: None, segment: Vec::new() }
    }

    /// Receives a batch of frames, complete. Fewer than a batch means that the socket is empty, as callers rely on: what
    /// cannot be completed is thrown away on the way.
    pub(super) fn recv(
        &mut self,
        fd: BorrowedFd<'_>,
        frames: &mut [RxFrame<'_>],
        meter: &Meter,
    ) -> Result<usize, Failure> {
        let (mut done, mut lost) = (0, 0);
        while let Some(frame) = frames.get_mut(done).filter(|_| done < BATCH) {
            if self.pending.is_none() {
                match self.peek(fd) {
                    Ok(Some(pending)) => self.pending = Some(pending),
                    Ok(None) => {
                        meter.received(0, 0, 1);
                        discard(fd);
                        lost += 1;
                    }
                    Err(Failure::Interrupted | Failure::Frame) if lost < LOST_MAX => lost += 1,
                    Err(_) if done > 0 => break,
                    Err(failure) => return Err(failure),
                }
            }
            if self.pending.is_some() {
                if self.fill(frame) {
                    self.pending = None;
                    discard(fd);
                }
                done += 1;
            } else if lost >= LOST_MAX {
                break;
            }
        }
        Ok(done)
    }

    /// Reads the frame at the front and leaves it there; `None` if it cannot be completed.
    fn peek(&mut self, fd: BorrowedFd<'_>) -> Result<Option<Pending>, Failure> {
        let mut header = [0; Header::LEN];
        let mut lens = [0; BATCH];
        let mut controls = [Control::EMPTY];
        let frame_room = self.room.get_mut(TAG_LEN..).unwrap_or_default();
        let room = [RxBuf::new(header.get_mut(..HEADER_LEN).unwrap_or_default()), RxBuf::new(frame_room)];
        let rooms = std::iter::once(&room[..]);
        match recv_batch(fd, rooms, &mut lens, &mut controls, &mut [], RecvFlags::PEEK) {
            Ok(_) => {}
            // No header can say what is to be done to this frame, which stays where it is.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let [len, ..] = lens;
        let [control] = controls;
        let mut header = Header::decode(&header);
        let mut at = TAG_LEN..TAG_LEN + len.saturating_sub(HEADER_LEN);
        if let (Some(tag), true) = (tag(&control), at.len() >= TAG_AT) {
            self.room.copy_within(TAG_LEN..TAG_LEN + TAG_AT, 0);
            if let Some(place) = self.room.get_mut(TAG_AT..TAG_AT + TAG_LEN) {
                place.copy_from_slice(&tag);
            }
            at.start = 0;
            header = behind_tag(header);
        }
        // A frame that did not fit is not to be had at this index.
        let Some(frame) = self.room.get_mut(at.clone()) else { return Ok(None) };
        if header.gso_type != GSO_NONE {
            let plan = Plan::new(&header, frame, frame.len()).ok();
            return Ok(plan.map(|plan| Pending { at, plan: Some(plan), taken: 0 }));
        }
        let complete = offload::complete(&header, frame);
        Ok(complete.ok().map(|()| Pending { at, plan: None, taken: 0 }))
    }

    /// Hands over the frame that was read, or its next segment; says whether that was all of it.
    fn fill(&mut self, to: &mut RxFrame<'_>) -> bool {
        let Some(pending) = &mut self.pending else { return true };
        let frame = self.room.get(pending.at.clone()).unwrap_or_default();
        let Some(plan) = &pending.plan else {
            to.fill(Header::NONE, frame);
            return true;
        };
        let mut head = [0; offload::HEAD_MAX];
        let (head, payload) = plan.segment(pending.taken, frame, &mut head);
        self.segment.clear();
        self.segment.extend_from_slice(head);
        self.segment.extend_from_slice(payload);
        to.fill(Header::NONE, &self.segment);
        pending.taken += 1;
        pending.taken >= plan.segments()
    }
}

/// Takes the frame at the front out of the socket.
fn discard(fd: BorrowedFd<'_>) {
    // Either says something else first, once: a signal, an interface that went down. With any other answer the frame is
    // gone, or there was none.
    for _ in 0..4 {
        let result = recv(fd, &mut [0; HEADER_LEN], RecvFlags::DONTWAIT);
        if !matches!(result, Err(Errno::INTR | Errno::NETDOWN)) {
            break;
        }
    }
}
