//! A frame that is to be segmented, cut into segments (virtio 1.2 § 5.1.6.2).
//!
//! # Theory of operation
//! A [`Plan`] is made from the header, the beginning of the frame and its whole length, and keeps a private copy of the
//! frame's headers: whoever can still write the frame (a guest) cannot change what was checked. The payload is never
//! looked at here. For each segment the plan says which bytes of the frame are its payload and, given the checksum of
//! those, writes the headers to put before them. Segments may so be sent from where the payload lies.
//!
//! Everything is taken from the frame itself; of the header, only the type and the segment size count, and the place of
//! the checksum has to be the frame's own (else it is a tunnel, of which we know nothing). Checksums are computed from
//! the addresses, as drivers disagree on what they leave in the field.

use std::ops::Range;

use crate::check::Misfit;
use crate::csum::Sum;
use crate::header::{self, Header};
use crate::layout::{HEAD_MAX, IPV6, Layout, Network, Transport};

/// The most segments that a frame may become, so that nobody makes us send a thousand times what it sent. A frame of
/// 64 KiB has as many with segments of 64 bytes; Linux makes none below 88 of TCP with its options.
pub const SEGMENTS_MAX: usize = 1024;

/// Segments with less payload than what such a TCP may have beside its options are crumbs.
const CRUMB: usize = 48;

/// The most crumbs that a frame may become: as many as Linux takes of UDP. With 1024 of one byte each, one peer kept the
/// frames of all others out of a hub for ten seconds (in a debug build, which is slow).
const CRUMBS_MAX: usize = 128;

/// The most segments of so many payload bytes that a frame may become.
pub(crate) const fn most_segments(size: usize) -> usize {
    if size < CRUMB { CRUMBS_MAX } else { SEGMENTS_MAX }
}

/// Byte of the TCP header that holds the flags.
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// How a frame is cut.
#[derive(Clone, Debug)]
pub struct Plan {
    head: [u8; HEAD_MAX],
    layout: Layout,
    /// Payload bytes of each segment but the last.
    size: usize,
    count: usize,
}

impl Plan {
    /// Plans the segments of a frame of `frame_len` bytes, of which `head` is the beginning: all of it, or at least
    /// [`HEAD_MAX`] bytes.
    pub fn new(header: &Header, head: &[u8], frame_len: usize) -> Result<Self, Misfit> {
        let (transport, network) = match header.gso_type {
            header::GSO_UDP_L4 => (Transport::Udp, None),
            kind => match kind & !header::GSO_ECN {
                header::GSO_TCPV4 => (Transport::Tcp, Some(Network::V4)),
                header::GSO_TCPV6 => (Transport::Tcp, Some(Network::V6)),
                _ => return Err(Misfit::Kind(kind)),
            },
        };
        let layout = Layout::parse(head, frame_len)?;
        if layout.transport != transport || network.is_some_and(|network| layout.network != network) {
            return Err(Misfit::Protocol);
        }
        let partial = header.partial().ok_or(Misfit::Checksum)?;
        if partial.start != layout.l4 || partial.at != layout.l4 + layout.transport.checksum_at() {
            return Err(Misfit::Checksum);
        }
        let (size, payload_len) = (usize::from(header.gso_size), layout.end - layout.payload);
        let count = payload_len.checked_div(size).map(|_| payload_len.div_ceil(size).max(1));
        let count = count
            .filter(|count| *count <= most_segments(size))
            .ok_or(Misfit::SegmentCount { size: header.gso_size, len: frame_len })?;
        if layout.payload - layout.l3 + size.min(payload_len) > usize::from(u16::MAX) {
            return Err(Misfit::SegmentLength(header.gso_size));
        }
        let mut copy = [0; HEAD_MAX];
        put(&mut copy, 0, head.get(..layout.payload).ok_or(Misfit::Head)?);
        Ok(Self { head: copy, layout, size, count })
    }

    /// Length in bytes of the headers, of the frame and of each segment.
    pub fn head_len(&self) -> usize {
        self.layout.payload
    }

    /// How many segments there are: at least one, at most [`SEGMENTS_MAX`].
    pub fn segments(&self) -> usize {
        self.count
    }

    /// Length in bytes of the longest segment, with its headers.
    pub fn longest(&self) -> usize {
        self.layout.payload + self.payload(0).len()
    }

    /// Whether the first segment, and no other, tells that the sender slowed down.
    pub(crate) fn says_cwr(&self) -> bool {
        self.layout.transport == Transport::Tcp && self.flags() & CWR != 0
    }

    /// Flags of a TCP frame.
    fn flags(&self) -> u8 {
        let [flags] = take(&self.head, self.layout.l4 + TCP_FLAGS);
        flags
    }

    /// Which bytes of the frame are the payload of segment `index`; none beyond the last.
    pub fn payload(&self, index: usize) -> Range<usize> {
        let Layout { payload, end, .. } = self.layout;
        let at = |segment: usize| segment.saturating_mul(self.size).saturating_add(payload).min(end);
        at(index)..at(index.saturating_add(1))
    }

    /// Writes the headers of segment `index`, whose payload sums up to `sum`, and returns them.
    pub fn write_head<'h>(&self, index: usize, sum: Sum, out: &'h mut [u8; HEAD_MAX]) -> &'h [u8] {
        *out = self.head;
        let Layout { network, transport, l3, l4, payload, .. } = self.layout;
        let l4_len = payload - l4 + self.payload(index).len();
        match network {
            Network::V4 => self.write_ipv4(index, l4 - l3 + l4_len, out),
            Network::V6 => put(out, l3 + 4, &low16(l4 - l3 - IPV6 + l4_len)),
        }
        match transport {
            Transport::Tcp => self.write_tcp(index, out),
            Transport::Udp => put(out, l4 + 4, &low16(l4_len)),
        }
        let at = l4 + transport.checksum_at();
        put(out, at, &[0, 0]);
        let mut whole = Sum::default();
        let addresses = match network {
            Network::V4 => l3 + 12..l3 + 20,
            Network::V6 => l3 + 8..l3 + IPV6,
        };
        whole.add(out.get(addresses).unwrap_or_default());
        whole.add(&[0, transport.protocol()]);
        whole.add(&low16(l4_len));
        whole.add(out.get(l4..payload).unwrap_or_default());
        whole.join(sum);
        // In UDP, 0 says that there is no checksum.
        let checksum = match transport {
            Transport::Tcp => whole.complement(),
            Transport::Udp => whole.finish(),
        };
        put(out, at, &checksum);
        out.get(..payload).unwrap_or_default()
    }

    /// Segment `index` of the whole frame, in private memory: its headers and its payload.
    pub fn segment<'f, 'h>(
        &self,
        index: usize,
        frame: &'f [u8],
        out: &'h mut [u8; HEAD_MAX],
    ) -> (&'h [u8], &'f [u8]) {
        let payload = frame.get(self.payload(index)).unwrap_or_default();
        let mut sum = Sum::default();
        sum.add(payload);
        (self.write_head(index, sum, out), payload)
    }

    fn write_ipv4(&self, index: usize, len: usize, out: &mut [u8; HEAD_MAX]) {
        let (l3, l4) = (self.layout.l3, self.layout.l4);
        put(out, l3 + 2, &low16(len));
        // Each packet its own identification, as if they had been sent one after the other (RFC 791 § 3.2).
        let identification = u16::from_be_bytes(take(&self.head, l3 + 4));
        put(out, l3 + 4, &low16(usize::from(identification) + index));
        put(out, l3 + 10, &[0, 0]);
        let mut sum = Sum::default();
        sum.add(out.get(l3..l4).unwrap_or_default());
        put(out, l3 + 10, &sum.complement());
    }

    fn write_tcp(&self, index: usize, out: &mut [u8; HEAD_MAX]) {
        let l4 = self.layout.l4;
        let sequence = u32::from_be_bytes(take(&self.head, l4 + 4));
        let offset = u32::try_from(index.saturating_mul(self.size)).unwrap_or(0);
        put(out, l4 + 4, &sequence.wrapping_add(offset).to_be_bytes());
        let mut flags = self.flags();
        if index + 1 < self.count {
            flags &= !(FIN | PSH);
        }
        // Said once, it is heard (RFC 3168 § 6.1.2), whether or not the header told that it is said.
        if index > 0 {
            flags &= !CWR;
        }
        put(out, l4 + TCP_FLAGS, &[flags]);
    }
}

/// Writes bytes at `at`; all places are inside a checked head.
fn put(head: &mut [u8; HEAD_MAX], at: usize, bytes: &[u8]) {
    if let Some(place) = head.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Reads bytes at `at`; all places are inside a checked head.
fn take<const N: usize>(head: &[u8; HEAD_MAX], at: usize) -> [u8; N] {
    head.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// The low 16 bits, in network order.
fn low16(value: usize) -> [u8; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "lengths fit (Plan::new), identifications wrap")]
    (value as u16).to_be_bytes()
}

#[cfg(test)]
mod tests;
