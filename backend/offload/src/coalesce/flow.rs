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
const TCP: usize = 20;
/// Bits of the second word of an IPv4 header: fragment offset and flags, and among them "don't fragment".
const FRAGMENT: u32 = 0xffff;
const DF: u32 = 0x4000;

/// Flags in the fourth word of a TCP header.
const FIN: u32 = 1 << 16;
const SYN: u32 = 2 << 16;
const RST: u32 = 4 << 16;
const PSH: u32 = 8 << 16;
const URG: u32 = 0x20 << 16;
const CWR: u32 = 0x80 << 16;

/// A TCP segment or UDP datagram directly behind its IP header.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment<'f> {
    frame: &'f [u8],
    layout: Layout,
    headers: Headers,
}

/// The headers as the RFCs draw them, in words of 32 bits: all of them that has to be compared.
#[derive(Clone, Copy, Debug)]
struct Headers {
    /// The five words of an IPv4 header, or as many of an IPv6 header.
    ip: [u32; 5],
    /// The five words of a TCP header, or the two of an UDP header.
    l4: [u32; 5],
}

impl<'f> Segment<'f> {
    /// None for all other frames, and if the lengths that the frame tells contradict each other.
    pub fn read(frame: &'f [u8]) -> Option<Self> {
        let layout = Layout::parse(frame, frame.len()).ok()?;
        let Layout { network, transport, l3, l4, end, .. } = layout;
        let ip: [u32; 5] = words(frame, l3)?;
        let [first, second, ..] = ip;
        let plain = match network {
            Network::V4 => l4 - l3 == IPV4 && first & 0xffff != 0,
            Network::V6 => l4 - l3 == IPV6 && second >> 16 != 0,
        };
        let (l4, fits) = match transport {
            Transport::Tcp => (words(frame, l4)?, true),
            Transport::Udp => {
                let [ports, rest] = words(frame, l4)?;
                ([ports, rest, 0, 0, 0], rest >> 16 == u32::try_from(end - l4).ok()?)
            }
        };
        (plain && fits).then_some(Self { frame, layout, headers: Headers { ip, l4 } })
    }

    /// Whether all checksums are there and right.
    pub fn is_whole(&self) -> bool {
        let Layout { network, transport, l3, l4, end, .. } = self.layout;
        let addresses = match network {
            Network::V4 => {
                let mut sum = Sum::default();
                sum.add(self.bytes(l3..l4));
                if !sum.is_whole() {
                    return false;
                }
                l3 + 12
            }
            Network::V6 => l3 + 8,
        };
        let Headers { l4: [_, length_and_checksum, ..], .. } = self.headers;
        if transport == Transport::Udp && length_and_checksum & 0xffff == 0 {
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
        let Layout { network, transport, payload, end, .. } = self.layout;
        let Headers { ip: [_, id_and_fragment, ip_sum, ..], l4: [.., l4_sum] } = self.headers;
        let taken = match (transport, network) {
            (Transport::Tcp, Network::V4) => take.tcp4,
            (Transport::Tcp, Network::V6) => take.tcp6,
            (Transport::Udp, _) => take.udp,
        };
        // Padding would be lost, and so would the other form of a checksum that is 0.
        taken
            && payload < end
            && end == self.frame.len()
            && (network == Network::V6 || id_and_fragment & FRAGMENT & !DF == 0 && ip_sum & 0xffff != 0xffff)
            && (transport == Transport::Udp || l4_sum >> 16 != 0xffff)
    }

    /// Whether others can be joined to this one.
    pub fn can_be_followed(&self, take: Take) -> bool {
        let flags = self.flags();
        flags & (FIN | SYN | RST | PSH | URG) == 0 && (take.ecn || flags & CWR == 0)
    }

    /// The word with the flags of TCP; UDP has none.
    fn flags(&self) -> u32 {
        let [_, _, _, flags, _] = self.headers.l4;
        flags
    }

    fn sequence(&self) -> u32 {
        let [_, sequence, ..] = self.headers.l4;
        sequence
    }

    /// Identification of IPv4.
    fn identification(&self) -> u32 {
        let [_, id_and_fragment, ..] = self.headers.ip;
        id_and_fragment >> 16
    }

    fn payload_len(&self) -> usize {
        self.layout.end - self.layout.payload
    }

    fn bytes(&self, range: Range<usize>) -> &'f [u8] {
        self.frame.get(range).unwrap_or_default()
    }
}

impl Headers {
    /// Whether everything is equal that has to be in all segments of a frame. TCP options are not looked at.
    fn are_like(&self, first: &Self, layout: &Layout) -> bool {
        // Not lengths, checksums, identification, sequence number.
        let ip: [u32; 3] = match layout.network {
            Network::V4 => [0xffff_0000, 0x0000_ffff, 0xffff_0000],
            Network::V6 => [0xffff_ffff, 0x0000_ffff, 0],
        };
        let l4: [u32; 5] = match layout.transport {
            Transport::Tcp => [0, 0, 0xffff_ffff, !(CWR | PSH | FIN), 0x0000_ffff],
            Transport::Udp => [0; 5],
        };
        let differing = |ours: &[u32], theirs: &[u32], masks: &[u32]| {
            let pairs = ours.iter().zip(theirs).zip(masks);
            pairs.fold(0, |bits, ((ours, theirs), mask)| bits | (ours ^ theirs) & mask)
        };
        differing(&self.ip, &first.ip, &ip) | differing(&self.l4, &first.l4, &l4) == 0
    }
}

/// The words of a header that begins at `at`.
fn words<const N: usize>(frame: &[u8], at: usize) -> Option<[u32; N]> {
    Some(frame.get(at..)?.as_chunks().0.first_chunk()?.map(u32::from_be_bytes))
}

/// A run that may grow.
#[derive(Debug)]
pub(super) struct Open {
    run: usize,
    /// Which frame of the batch it began with, where that has its headers, and what is in them.
    first: usize,
    layout: Layout,
    headers: Headers,
    /// Payload bytes of each segment but the last.
    size: usize,
    /// How many segments.
    count: usize,
    /// Payload bytes of them all.
    payload_len: usize,
    /// By how much the IPv4 identification grows from segment to segment, known with the second one.
    step: usize,
    /// PSH and FIN, if the last has them.
    end_flags: u32,
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
        let Segment { layout, headers, .. } = *segment;
        let size = segment.payload_len();
        Self { run, first, layout, headers, size, count: 1, payload_len: size, step: 1, end_flags: 0 }
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

    /// Whether a segment goes from the same sender to the same receiver.
    pub fn is_flow_of(&self, segment: &Segment<'_>, frames: &[&[u8]]) -> bool {
        let Layout { network, transport, l3, l4, .. } = self.layout;
        let Headers { l4: [ports, ..], .. } = self.headers;
        let Headers { l4: [other, ..], .. } = segment.headers;
        let addresses = match network {
            Network::V4 => l3 + 12,
            Network::V6 => l3 + 8,
        };
        let Layout { network: other_network, transport: other_transport, l3: other_l3, .. } = segment.layout;
        let first = self.first(frames);
        ports == other
            && (network, transport, l3) == (other_network, other_transport, other_l3)
            && segment.bytes(0..l3) == first.bytes(0..l3)
            && segment.bytes(addresses..l4) == first.bytes(addresses..l4)
    }

    /// Adds a segment of this flow, if it is the next one and fits.
    pub fn add(&mut self, segment: &Segment<'_>, frames: &[&[u8]]) -> Option<Added> {
        let first = self.first(frames);
        let Layout { network, transport, l3, l4, payload, .. } = self.layout;
        let (len, most) = (segment.payload_len(), self.most_segments());
        let whole = self.len() + len;
        let expected = u32::try_from(self.payload_len).ok()?.wrapping_add(first.sequence());
        let is_next = transport == Transport::Udp || segment.sequence() == expected;
        if !is_next
            || len > self.size
            || self.count >= most
            || whole > FRAME_MAX
            || whole - l3 > PACKET_MAX
            || payload != segment.layout.payload
            || segment.flags() & CWR != 0
            || !segment.headers.are_like(&self.headers, &self.layout)
            || transport == Transport::Tcp
                && segment.bytes(l4 + TCP..payload) != first.bytes(l4 + TCP..payload)
        {
            return None;
        }
        if network == Network::V4 {
            let apart = segment.identification().wrapping_sub(first.identification()) & 0xffff;
            let [_, id_and_fragment, ..] = self.headers.ip;
            // With the second segment it shows whether they are counted.
            if self.count == 1 && apart == 0 && id_and_fragment & DF != 0 {
                self.step = 0;
            }
            if usize::try_from(apart).ok()? != self.step * self.count {
                return None;
            }
        }
        self.count += 1;
        self.payload_len += len;
        self.end_flags = segment.flags() & (PSH | FIN);
        let is_full = self.count == most || self.len() == FRAME_MAX.min(PACKET_MAX + l3);
        let is_last = len < self.size || self.end_flags != 0 || is_full;
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
            Transport::Tcp => put(head, l4 + 12, &(first.flags() | self.end_flags).to_be_bytes()),
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
        let frame = frames.get(self.first).copied().unwrap_or_default();
        Segment { frame, layout: self.layout, headers: self.headers }
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
