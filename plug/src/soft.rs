//! What a network without offloads cannot do, done here: a frame's checksum is completed before it is sent.

use std::os::fd::BorrowedFd;

use offload::csum::Sum;

use crate::datagram::Failure;
use crate::link::{LinkError, TxBuf, TxFrame};
use crate::sys;

/// Room for the copied head of a frame: Ethernet, VLAN tags, IPv6 with extension headers, TCP with options.
const HEAD: usize = 256;

/// What became of a frame.
pub(crate) enum Outcome {
    /// It went.
    Sent,
    /// It cannot go.
    Dropped,
    /// It has to wait; so many of its segments went.
    Again(usize),
}

/// Completes a frame and sends it.
pub(crate) fn send(fd: BorrowedFd<'_>, frame: &TxFrame<'_>, max_frame: usize) -> Result<Outcome, LinkError> {
    let mut head = [0; HEAD];
    let Some(head) = complete(frame, &mut head, max_frame) else { return Ok(Outcome::Dropped) };
    let mut pieces = vec![TxBuf::new(head)];
    frame.pieces(head.len()..frame.len(), &mut pieces);
    loop {
        match sys::send_batch(fd, std::iter::once(&*pieces)).map_err(Failure::from) {
            Ok(_) => return Ok(Outcome::Sent),
            Err(Failure::Again) => return Ok(Outcome::Again(0)),
            Err(Failure::Interrupted) => {}
            Err(Failure::Frame) => return Ok(Outcome::Dropped),
            Err(Failure::Link(error)) => return Err(error),
        }
    }
}

/// Copies the frame up to its checksum into `head`, completes the checksum there and returns what was copied.
fn complete<'h>(frame: &TxFrame<'_>, head: &'h mut [u8; HEAD], max_frame: usize) -> Option<&'h [u8]> {
    let (partial, len) = (frame.header.partial()?, frame.len());
    let end = partial.at + 2;
    if end > len || len > max_frame || frame.header.gso_type != offload::header::GSO_NONE {
        return None;
    }
    let head = head.get_mut(..end)?;
    frame.read_at(0, head);
    let mut sum = Sum::default();
    sum.add(head.get(partial.start..)?);
    // Summed through a small copy: the memory may be a guest's, which is not read through references, and a copy
    // that stays in the first-level cache costs next to nothing beside the sum.
    let (mut piece, mut offset) = ([0u8; 2048], end);
    while offset < len {
        let got = frame.read_at(offset, &mut piece);
        sum.add(piece.get(..got)?);
        offset += got.max(1);
    }
    head.get_mut(partial.at..)?.copy_from_slice(&sum.finish());
    Some(head)
}
