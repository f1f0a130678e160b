//! A header that somebody else wrote, held against its frame: a guest's for what it sends, a network's for what it
//! delivers. Nothing is acted upon, and nothing is handed on to a guest or a kernel, that has not passed here.

use crate::csum::Sum;
use crate::header::{self, Header};
use crate::layout::Layout;
use crate::segment::Plan;

/// Why a header does not fit its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// Bits that have no meaning here.
    #[error("the flags {0:#04x} hold one that is unknown")]
    Flags(u8),
    /// Not one of the types that can be segmented.
    #[error("the segmentation type {0:#04x} is unknown")]
    Kind(u8),
    /// The checksum is not where the frame has it.
    #[error("the checksum that is to be completed is not in the frame, or not where its protocol has it")]
    Checksum,
    /// Not IP, a fragment, not the protocol that the type says, or a tunnel.
    #[error("the frame is not of the protocol that is to be segmented")]
    Protocol,
    /// The headers are cut off.
    #[error("the frame's headers do not end in the frame's first {} bytes", crate::HEAD_MAX)]
    Head,
    /// The IP packet is longer than its frame.
    #[error("the packet is longer than its frame")]
    Length,
    /// A segment would be longer than IP can say.
    #[error("segments of {0} bytes do not fit into IP packets")]
    SegmentLength(u16),
    /// No segment size, or one that would make too many segments.
    #[error("segments of {size} bytes would be too many for a frame of {len}")]
    SegmentCount {
        /// Payload bytes per segment.
        size: u16,
        /// Length of the frame.
        len: usize,
    },
}

/// Holds a header against its frame of `frame_len` bytes, of which `head` is the beginning: all of it, or at least
/// [`HEAD_MAX`](crate::HEAD_MAX) bytes. Returns it with everything that is true of the frame and nothing else: the
/// word that checksums are valid is not passed on, the length of the headers is the real one, and
/// [`GSO_ECN`](header::GSO_ECN) stands where TCP says CWR and nowhere else: a receiver that did not agree to that must
/// not get it unsegmented (virtio 1.2 § 5.1.6.2), whatever the sender forgot to tell.
pub fn check(header: &Header, head: &[u8], frame_len: usize) -> Result<Header, Misfit> {
    if header.flags & !(header::NEEDS_CSUM | header::DATA_VALID) != 0 {
        return Err(Misfit::Flags(header.flags));
    }
    if header.gso_type != header::GSO_NONE {
        let plan = Plan::new(header, head, frame_len)?;
        let hdr_len = u16::try_from(plan.head_len()).map_err(|_| Misfit::Head)?;
        let ecn = if plan.says_cwr() { header::GSO_ECN } else { 0 };
        let gso_type = header.gso_type & !header::GSO_ECN | ecn;
        return Ok(Header { flags: header::NEEDS_CSUM, gso_type, hdr_len, ..*header });
    }
    match header.partial() {
        None => Ok(Header::NONE),
        Some(partial) if partial.at + 2 <= frame_len => Ok(Header {
            flags: header::NEEDS_CSUM,
            csum_start: header.csum_start,
            csum_offset: header.csum_offset,
            ..Header::NONE
        }),
        Some(_) => Err(Misfit::Checksum),
    }
}

/// Whether the checksum that a checked header leaves open, if it leaves one, is that of the TCP or UDP that the frame is. It
/// may also be one inside a tunnel, or any two bytes that somebody wants to see changed later.
pub fn checksum_is_own(header: &Header, head: &[u8], frame_len: usize) -> bool {
    header.partial().is_none_or(|partial| {
        let layout = Layout::parse(head, frame_len);
        layout.is_ok_and(|Layout { l4, transport, .. }| {
            (partial.start, partial.at) == (l4, l4 + transport.checksum_at())
        })
    })
}

/// Completes the checksum of a whole frame in private memory, if its header asks for that. Segmentation is [`Plan`]'s.
pub fn complete(header: &Header, frame: &mut [u8]) -> Result<(), Misfit> {
    let Some(partial) = header.partial() else { return Ok(()) };
    let mut sum = Sum::default();
    sum.add(frame.get(partial.start..).ok_or(Misfit::Checksum)?);
    let field = frame.get_mut(partial.at..).and_then(|rest| rest.first_chunk_mut());
    *field.ok_or(Misfit::Checksum)? = sum.finish();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_keeps_what_is_true_and_nothing_else() {
        let header = |flags, csum_start, csum_offset| Header {
            flags,
            csum_start,
            csum_offset,
            hdr_len: 77,
            gso_size: 9,
            ..Header::NONE
        };
        let frame = [0; 60];
        let check = |header: Header| check(&header, &frame, frame.len());
        assert_eq!(check(header(0, 34, 16)), Ok(Header::NONE));
        assert_eq!(check(header(header::DATA_VALID, 34, 16)), Ok(Header::NONE));
        let partial = Header { hdr_len: 0, gso_size: 0, ..header(header::NEEDS_CSUM, 34, 16) };
        assert_eq!(check(header(3, 34, 16)), Ok(partial));
        assert!(check(header(1, 34, 24)).is_ok(), "the last two bytes");
        assert_eq!(check(header(1, 34, 25)), Err(Misfit::Checksum));
        assert_eq!(check(header(1, u16::MAX, u16::MAX)), Err(Misfit::Checksum));
        assert_eq!(check(header(4, 0, 0)), Err(Misfit::Flags(4)));
        assert_eq!(check(Header { gso_type: 3, ..header(1, 34, 16) }), Err(Misfit::Kind(3)), "UFO");
    }

    #[test]
    fn complete_stores_the_sum_of_what_the_field_holds() {
        let mut frame = [0; 20];
        frame[14..20].copy_from_slice(&[0x12, 0x34, 0xab, 0xcd, 0x01, 0x00]);
        let header = Header { flags: header::NEEDS_CSUM, csum_start: 14, csum_offset: 2, ..Header::NONE };
        complete(&header, &mut frame).unwrap();
        assert_eq!(u16::from_be_bytes([frame[16], frame[17]]), !(0x1234 + 0xabcd + 0x0100));
        assert_eq!(complete(&header, &mut frame[..17]), Err(Misfit::Checksum));
        assert_eq!(complete(&header, &mut frame[..13]), Err(Misfit::Checksum));
        assert_eq!(complete(&Header::NONE, &mut []), Ok(()));
    }
}
