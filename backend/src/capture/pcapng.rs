//! Blocks of the pcapng format (draft-ietf-opsawg-pcapng, section 4), in the byte order of this machine.
//!
//! A section has no length, so that it can be written while it grows. Times are nanoseconds since 1970.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek};

/// What of a file is read at once.
const READ_AHEAD: usize = 1 << 20;

/// Block types (section 11.1).
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u16 = 1;
/// Options of any block (section 3.5), of a section (4.1), an interface (4.2), a packet (4.3) and statistics (4.6).
const END: u16 = 0;
const COMMENT: u16 = 1;
const SECTION_PROGRAM: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_DESCRIPTION: u16 = 3;
const INTERFACE_RESOLUTION: u16 = 9;
const PACKET_FLAGS: u16 = 2;
const STATISTICS_START: u16 = 2;
const STATISTICS_END: u16 = 3;
const STATISTICS_RECEIVED: u16 = 4;
const STATISTICS_DROPPED: u16 = 5;

/// Length of any block with statistics: type and two lengths, interface and time, four options of 8 bytes, their end.
pub const STATISTICS_LEN: usize = 12 + 12 + 4 * 12 + 4;

/// Which way a frame went, as the flags of a packet say it: a guest sends outbound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into the guest.
    Inbound = 1,
    /// Out of the guest.
    Outbound = 2,
}

/// What a packet's block says beside the packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Number of its interface in the section.
    pub interface: u32,
    /// When it passed.
    pub time: u64,
    /// Which way.
    pub way: Way,
    /// Its whole length in bytes.
    pub len: usize,
    /// How many of them there are at most.
    pub room: usize,
    /// For a person.
    pub comment: &'a str,
}

/// Begins a section, written by `program`.
pub fn section(to: &mut Vec<u8>, program: &str) {
    block(to, SECTION, |to| {
        // Byte order, version 1.0, length not known.
        to.extend(0x1a2b_3c4d_u32.to_ne_bytes());
        to.extend([1_u16, 0].into_iter().flat_map(u16::to_ne_bytes));
        to.extend([0xff; 8]);
        option(to, SECTION_PROGRAM, program.as_bytes());
        option(to, END, &[]);
    });
}

/// Adds an interface of Ethernet frames; its number is the count of those before it.
pub fn interface(to: &mut Vec<u8>, name: &str, description: &str) {
    block(to, INTERFACE, |to| {
        // No limit on the length of packets.
        to.extend([ETHERNET, 0, 0, 0].into_iter().flat_map(u16::to_ne_bytes));
        option(to, INTERFACE_NAME, name.as_bytes());
        option(to, INTERFACE_DESCRIPTION, description.as_bytes());
        option(to, INTERFACE_RESOLUTION, &[9]);
        option(to, END, &[]);
    });
}

/// The most that [`packet`] adds.
pub fn packet_len(packet: &Packet<'_>) -> usize {
    let padded = |len: usize| len.next_multiple_of(4);
    12 + 20 + padded(packet.room) + 4 + padded(packet.comment.len()) + 8 + 4
}

/// Adds a packet, whose bytes `read` copies, as many as it says.
pub fn packet(to: &mut Vec<u8>, packet: &Packet<'_>, read: impl FnOnce(&mut [u8]) -> usize) {
    block(to, PACKET, |to| {
        to.extend(packet.interface.to_ne_bytes());
        time(to, packet.time);
        let lengths = to.len();
        to.extend([0; 4]);
        to.extend(length(packet.len));
        let start = to.len();
        to.resize(start + packet.room, 0);
        let got = to.get_mut(start..).map_or(0, read).min(packet.room);
        to.truncate(start + got);
        put(to, lengths, length(got));
        pad(to, got);
        option(to, PACKET_FLAGS, &(packet.way as u32).to_ne_bytes());
        option(to, COMMENT, packet.comment.as_bytes());
        option(to, END, &[]);
    });
}

/// Adds what is known of an interface at the end: how many packets it had, and how many of them are missing. `times`: of the
/// capture's start and of its end.
pub fn statistics(to: &mut Vec<u8>, interface: u32, times: [u64; 2], received: u64, dropped: u64) {
    let [start, end] = times;
    block(to, STATISTICS, |to| {
        to.extend(interface.to_ne_bytes());
        time(to, end);
        for (code, at) in [(STATISTICS_START, start), (STATISTICS_END, end)] {
            let mut value = Vec::new();
            time(&mut value, at);
            option(to, code, &value);
        }
        option(to, STATISTICS_RECEIVED, &received.to_ne_bytes());
        option(to, STATISTICS_DROPPED, &dropped.to_ne_bytes());
        option(to, END, &[]);
    });
}

/// How many of the first `len` bytes of blocks are whole blocks, and how many of those are packets.
pub fn whole(blocks: &[u8], len: usize) -> (usize, u64) {
    let (mut whole, mut packets) = (0, 0);
    while let Some(&[k0, k1, k2, k3, l0, l1, l2, l3]) =
        blocks.get(whole..).and_then(|rest| rest.first_chunk::<8>())
    {
        let end = whole.saturating_add(u32::from_ne_bytes([l0, l1, l2, l3]) as usize);
        if end > len || end == whole {
            break;
        }
        packets += u64::from(u32::from_ne_bytes([k0, k1, k2, k3]) == PACKET);
        whole = end;
    }
    (whole, packets)
}

/// How many of a file's bytes are whole blocks.
pub fn end_of_blocks(file: &File) -> io::Result<u64> {
    let (mut reader, len) = (BufReader::with_capacity(READ_AHEAD, file), file.metadata()?.len());
    reader.rewind()?;
    let mut whole = 0;
    let mut head = [0; 8];
    while whole + 8 <= len {
        reader.read_exact(&mut head)?;
        let [_, _, _, _, rest @ ..] = head;
        let block = u64::from(u32::from_ne_bytes(rest));
        if block < 12 || whole + block > len {
            break;
        }
        reader.seek_relative(i64::try_from(block - 8).unwrap_or_default())?;
        whole += block;
    }
    Ok(whole)
}

/// The upper half comes first, whatever the byte order.
fn time(to: &mut Vec<u8>, nanoseconds: u64) {
    let (upper, lower) = (nanoseconds >> 32, nanoseconds & 0xffff_ffff);
    for half in [upper, lower] {
        to.extend(u32::try_from(half).unwrap_or_default().to_ne_bytes());
    }
}

fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_ne_bytes()
}

fn put(to: &mut [u8], at: usize, bytes: [u8; 4]) {
    if let Some(place) = to.get_mut(at..at + 4) {
        place.copy_from_slice(&bytes);
    }
}

/// Fills up behind a value of `len` bytes: everything begins at a multiple of four.
fn pad(to: &mut Vec<u8>, len: usize) {
    to.extend(std::iter::repeat_n(0, len.wrapping_neg() % 4));
}

fn option(to: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..usize::from(u16::MAX)).unwrap_or(value);
    to.extend(code.to_ne_bytes());
    to.extend(u16::try_from(value.len()).unwrap_or_default().to_ne_bytes());
    to.extend_from_slice(value);
    pad(to, value.len());
}

/// A block has its length at both ends.
fn block(to: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    to.extend(kind.to_ne_bytes());
    to.extend([0; 4]);
    body(to);
    let length = length(to.len() - start + 4);
    to.extend(length);
    put(to, start + 4, length);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Words in the order of the file, as the draft draws them.
    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// Two halves of a word.
    fn halves(first: u16, second: u16) -> u32 {
        let [[a, b], [c, d]] = [first.to_ne_bytes(), second.to_ne_bytes()];
        u32::from_ne_bytes([a, b, c, d])
    }

    fn text(four: &[u8; 4]) -> u32 {
        u32::from_ne_bytes(*four)
    }

    #[test]
    fn section_is_that_of_the_draft() {
        let mut bytes = Vec::new();
        section(&mut bytes, "vde 1");
        let expected = [
            [0x0a0d_0d0a, 44, 0x1a2b_3c4d, halves(1, 0), u32::MAX, u32::MAX].as_slice(),
            &[halves(4, 5), text(b"vde "), text(b"1\0\0\0"), 0, 44],
        ]
        .concat();
        assert_eq!(bytes, words(&expected));
    }

    #[test]
    fn interface_is_that_of_the_draft() {
        let mut bytes = Vec::new();
        interface(&mut bytes, "a,b", "net0");
        let expected = [
            [1, 48, halves(1, 0), 0].as_slice(),
            &[halves(2, 3), text(b"a,b\0"), halves(3, 4), text(b"net0"), halves(9, 1), text(b"\x09\0\0\0")],
            &[0, 48],
        ]
        .concat();
        assert_eq!(bytes, words(&expected));
    }

    #[test]
    fn packet_is_that_of_the_draft() {
        let about = Packet {
            interface: 7,
            time: 3 << 32 | 5,
            way: Way::Outbound,
            len: 6,
            room: 6,
            comment: "from guest",
        };
        let mut bytes = Vec::new();
        packet(&mut bytes, &about, |to| {
            to.copy_from_slice(b"abcdef");
            6
        });
        let expected = [
            [6, 68, 7, 3, 5, 6, 6, text(b"abcd"), text(b"ef\0\0")].as_slice(),
            &[halves(2, 4), 2, halves(1, 10), text(b"from"), text(b" gue"), text(b"st\0\0"), 0, 68],
        ]
        .concat();
        assert_eq!(bytes, words(&expected));
        assert_eq!(bytes.len(), packet_len(&about));
        // Cut on its way: less is there than it was long.
        let mut cut = Vec::new();
        packet(&mut cut, &about, |to| {
            to.get_mut(..2).unwrap().copy_from_slice(b"ab");
            2
        });
        assert_eq!(cut.get(20..32).unwrap(), words(&[2, 6, text(b"ab\0\0")]));
        assert!(cut.len() < packet_len(&about));
    }

    #[test]
    fn statistics_are_those_of_the_draft() {
        let mut bytes = Vec::new();
        statistics(&mut bytes, 1, [2 << 32 | 3, 4 << 32 | 5], 6, 7);
        let [six, seven] = [6_u64, 7].map(u64::to_ne_bytes);
        let expected = [
            words(&[5, 76, 1, 4, 5, halves(2, 8), 2, 3, halves(3, 8), 4, 5, halves(4, 8)]),
            six.to_vec(),
            words(&[halves(5, 8)]),
            seven.to_vec(),
            words(&[0, 76]),
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(bytes.len(), STATISTICS_LEN);
    }

    #[test]
    fn whole_counts_blocks_up_to_a_cut() {
        let mut bytes = Vec::new();
        section(&mut bytes, "x");
        let head = bytes.len();
        let about = Packet { interface: 0, time: 0, way: Way::Inbound, len: 60, room: 60, comment: "" };
        packet(&mut bytes, &about, |to| to.len());
        let first = bytes.len();
        packet(&mut bytes, &about, |to| to.len());
        let cases = [
            (0, (0, 0)),
            (head - 1, (0, 0)),
            (head, (head, 0)),
            (first - 1, (head, 0)),
            (first, (first, 1)),
            (bytes.len() - 1, (first, 1)),
            (bytes.len(), (bytes.len(), 2)),
        ];
        for (len, expected) in cases {
            assert_eq!(whole(&bytes, len), expected, "cut at {len}");
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes.get(..len).unwrap()).unwrap();
            assert_eq!(end_of_blocks(&file).unwrap(), expected.0 as u64, "cut at {len}");
        }
    }
}
