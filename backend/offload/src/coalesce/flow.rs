//! When one segment can be joined to those before it, and what the headers of the whole are.

use std::ops::Range;

use super::Take;
use crate::csum::Sum;
use crate::header::{self, Header};
use crate::layout::{IPV6, Layout, Network, Transport};
use crate::segment::most_segments;

/// The most bytes of a frame that is to be segmented, in a guest's buffers (virtio 1.2 § 5.1.6.3.1, without the header).
const FRAME_MAX: usize = 65550;
/// The most bytes of an IP packet; Linux counts IPv6's own header in as well.
const PACKET_MAX: usize = 65535;
/// The most datagrams that are joined. Linux joins no more, and takes no more than twice as many.
const DATAGRAMS_MAX: usize = 64;

const IPV4: usize = 20;
/// Flag of IPv4: don't fragment.
const DF: u16 = 0x4000;

/// Byte of the TCP header that holds the flags.
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;

/// A TCP segment or UDP datagram directly behind its IP header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'f> {
    frame: &'f [u8],
    layout: Layout,
}

impl<'f> Segment<'f> {
    /// None for all other frames, and if the lengths that the frame tells contradict each other.
    pub fn read(frame: &'f [u8]) -> Option<Self> {
        let layout = Layout::parse(frame, frame.len()).ok()?;
        let segment = Self { frame, layout };
        let Layout { network, transport, l3, l4, end, .. } = layout;
        let plain = match network {
            Network::V4 => l4 - l3 == IPV4 && segment.word(l3 + 2) != 0,
            Network::V6 => l4 - l3 == IPV6 && segment.word(l3 + 4) != 0,
        };
        let fits = transport == Transport::Tcp || usize::from(segment.word(l4 + 4)) == end - l4;
        (plain && fits).then_some(segment)
    }

    /// Whether all checksums are there and right.
    pub fn is_whole(&self) -> bool {
        let Layout { network, transport, l3, l4, end, .. } = self.layout;
        let mut sum = Sum::default();
        let addresses = match network {
            Network::V4 => {
                sum.add(self.bytes(l3..l4));
                if !sum.is_whole() {
                    return false;
                }
                l3 + 12
            }
            Network::V6 => l3 + 8,
        };
        if transport == Transport::Udp && self.word(l4 + 6) == 0 {
            return false;
        }
        let Ok(len) = u16::try_from(end - l4) else { return false };
        let [high, low] = len.to_be_bytes();
        let mut sum = Sum::default();
        // What the pseudo header has beside the addresses; those stand before the segment.
        sum.add(&[0, transport.protocol(), high, low]);
        sum.add(self.bytes(addresses..end));
        sum.is_whole()
    }

    /// Whether it was sent to more than one station.
    pub fn is_for_group(&self) -> bool {
        self.frame.first().is_some_and(|first| first & 1 == 1)
    }

    /// Whether it may be part of a large frame, as far as this can be seen from itself. To be asked only if it is whole.
    pub fn is_joinable(&self, take: Take) -> bool {
        let Layout { network, transport, l3, l4, payload, end } = self.layout;
        let taken = match (transport, network) {
            (Transport::Tcp, Network::V4) => take.tcp4,
            (Transport::Tcp, Network::V6) => take.tcp6,
            (Transport::Udp, _) => take.udp,
        };
        // Padding would be lost, and so would the other form of a checksum that is 0.
        taken
            && payload < end
            && end == self.frame.len()
            && (network == Network::V6 || self.word(l3 + 6) & !DF == 0 && self.word(l3 + 10) != 0xffff)
            && (transport == Transport::Udp || self.word(l4 + 16) != 0xffff)
    }

    /// Whether others can be joined to this one.
    pub fn can_be_followed(&self, take: Take) -> bool {
        let flags = self.flags();
        flags & (FIN | SYN | RST | PSH | URG) == 0 && (take.ecn || flags & CWR == 0)
    }

    /// Flags of TCP; UDP has none.
    fn flags(&self) -> u8 {
        match self.layout.transport {
            Transport::Tcp => self.frame.get(self.layout.l4 + TCP_FLAGS).copied().unwrap_or(0),
            Transport::Udp => 0,
        }
    }

    fn payload_len(&self) -> usize {
        self.layout.end - self.layout.payload
    }

    /// Whether both go from the same sender to the same receiver.
    fn is_flow_of(&self, other: &Self) -> bool {
        let Layout { network, transport, l3, l4, .. } = self.layout;
        let addresses = match network {
            Network::V4 => l3 + 12,
            Network::V6 => l3 + 8,
        };
        (network, transport, l3) == (other.layout.network, other.layout.transport, other.layout.l3)
            && self.agrees(other, l4..l4 + 4)
            && self.agrees(other, addresses..l4)
            && self.agrees(other, 0..l3)
    }

    /// Whether everything in the headers is equal that has to be in all segments of a frame.
    fn is_like(&self, first: &Self) -> bool {
        let Layout { network, transport, l3, l4, payload, .. } = self.layout;
        let ip = match network {
            Network::V4 => self.agrees(first, l3..l3 + 2) && self.agrees(first, l3 + 6..l3 + 10),
            Network::V6 => self.agrees(first, l3..l3 + 4) && self.agrees(first, l3 + 6..l3 + 8),
        };
        let flags = self.flags();
        ip && payload == first.layout.payload
            && (transport == Transport::Udp
                || (flags & !(PSH | FIN) == first.flags() & !CWR
                    // Acknowledgement and header length; window; urgent pointer and options.
                    && self.agrees(first, l4 + 8..l4 + TCP_FLAGS)
                    && self.agrees(first, l4 + 14..l4 + 16)
                    && self.agrees(first, l4 + 18..payload)))
    }

    fn agrees(&self, other: &Self, range: Range<usize>) -> bool {
        self.frame.get(range.clone()).is_some_and(|bytes| Some(bytes) == other.frame.get(range))
    }

    fn bytes(&self, range: Range<usize>) -> &'f [u8] {
        self.frame.get(range).unwrap_or_default()
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.array(at))
    }

    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        self.frame.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }
}

/// A run that may grow.
#[derive(Debug)]
pub(super) struct Open {
    run: usize,
    /// Which frame of the batch it began with, and where that has its headers.
    first: usize,
    layout: Layout,
    /// Payload bytes of each segment but the last.
    size: usize,
    /// How many segments.
    count: usize,
    /// Payload bytes of them all.
    payload_len: usize,
    /// By how much the IPv4 identification grows from segment to segment, known with the second one.
    step: u16,
    /// PSH and FIN, if the last has them.
    end_flags: u8,
}

/// Where a segment was added.
pub(super) struct Added {
    /// The run.
    pub run: usize,
    /// Nothing can be added behind it.
    pub is_last: bool,
}

impl Open {
    /// A run that a segment begins, which is frame `first` of the batch.
    pub fn new(run: usize, first: usize, segment: &Segment<'_>) -> Self {
        let payload_len = segment.payload_len();
        let (layout, size) = (segment.layout, payload_len);
        Self { run, first, layout, size, count: 1, payload_len, step: 1, end_flags: 0 }
    }

    pub fn run(&self) -> usize {
        self.run
    }

    /// How many segments there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Length in bytes of the joined frame.
    pub fn len(&self) -> usize {
        self.layout.payload + self.payload_len
    }

    /// Whether a segment is of this flow.
    pub fn is_flow_of(&self, segment: &Segment<'_>, frames: &[&[u8]]) -> bool {
        segment.is_flow_of(&self.first(frames))
    }

    /// Adds a segment of this flow, if it is the next one and fits.
    pub fn add(&mut self, segment: &Segment<'_>, frames: &[&[u8]]) -> Option<Added> {
        let first = self.first(frames);
        let Layout { network, transport, l3, l4, payload, .. } = self.layout;
        let (len, most) = (segment.payload_len(), self.most_segments());
        let whole = self.len() + len;
        let in_order = transport == Transport::Udp || {
            let sequence = |of: &Segment<'_>| u32::from_be_bytes(of.array(l4 + 4));
            let expected = u32::try_from(self.payload_len).ok()?.wrapping_add(sequence(&first));
            sequence(segment) == expected
        };
        if !in_order
            || len > self.size
            || self.count >= most
            || whole > FRAME_MAX
            || whole - l3 > PACKET_MAX
            || !segment.is_like(&first)
        {
            return None;
        }
        if network == Network::V4 {
            let apart = segment.word(l3 + 4).wrapping_sub(first.word(l3 + 4));
            // With the second segment it shows whether they are counted.
            if self.count == 1 && apart == 0 && first.word(l3 + 6) & DF != 0 {
                self.step = 0;
            }
            if usize::from(apart) != usize::from(self.step) * self.count {
                return None;
            }
        }
        self.count += 1;
        self.payload_len += len;
        self.end_flags = segment.flags() & (PSH | FIN);
        let room = FRAME_MAX.min(PACKET_MAX + l3) - payload - self.payload_len;
        let is_last = len < self.size || self.end_flags != 0 || self.count == most || room == 0;
        Some(Added { run: self.run, is_last })
    }

    /// Writes the headers of the joined frame behind what is in `heads`, and returns what goes before it.
    pub fn write_head(&self, frames: &[&[u8]], heads: &mut Vec<u8>) -> Header {
        let Layout { network, transport, l3, l4, payload, .. } = self.layout;
        let first = self.first(frames);
        let start = heads.len();
        heads.extend_from_slice(first.bytes(0..payload));
        let head = heads.get_mut(start..).unwrap_or_default();
        let l4_len = payload - l4 + self.payload_len;
        let gso_type = match (transport, network) {
            (Transport::Udp, _) => header::GSO_UDP_L4,
            (Transport::Tcp, Network::V4) => header::GSO_TCPV4,
            (Transport::Tcp, Network::V6) => header::GSO_TCPV6,
        };
        let ecn = if first.flags() & CWR != 0 { header::GSO_ECN } else { 0 };
        let addresses = match network {
            Network::V4 => {
                put(head, l3 + 2, &low16(l4 - l3 + l4_len));
                put(head, l3 + 10, &[0, 0]);
                let mut sum = Sum::default();
                sum.add(head.get(l3..l4).unwrap_or_default());
                put(head, l3 + 10, &sum.complement());
                l3 + 12..l4
            }
            Network::V6 => {
                put(head, l3 + 4, &low16(l4_len));
                l3 + 8..l4
            }
        };
        match transport {
            Transport::Tcp => put(head, l4 + TCP_FLAGS, &[first.flags() | self.end_flags]),
            Transport::Udp => put(head, l4 + 4, &low16(l4_len)),
        }
        let mut sum = Sum::default();
        sum.add(head.get(addresses).unwrap_or_default());
        sum.add(&[0, transport.protocol()]);
        sum.add(&low16(l4_len));
        put(head, l4 + transport.checksum_at(), &sum.partial());
        let word = |value: usize| u16::try_from(value).unwrap_or(0);
        Header {
            flags: header::NEEDS_CSUM,
            gso_type: gso_type | ecn,
            hdr_len: word(payload),
            gso_size: word(self.size),
            csum_start: word(l4),
            csum_offset: word(transport.checksum_at()),
        }
    }

    fn most_segments(&self) -> usize {
        match self.layout.transport {
            Transport::Tcp => most_segments(self.size),
            Transport::Udp => DATAGRAMS_MAX,
        }
    }

    fn first<'f>(&self, frames: &[&'f [u8]]) -> Segment<'f> {
        Segment { frame: frames.get(self.first).copied().unwrap_or_default(), layout: self.layout }
    }
}

/// Writes bytes at `at`; all places are inside the head.
fn put(head: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = head.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// The low 16 bits, in network order.
fn low16(value: usize) -> [u8; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "lengths fit: a frame has no more than FRAME_MAX")]
    (value as u16).to_be_bytes()
}
