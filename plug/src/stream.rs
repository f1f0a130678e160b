//! Frames in a byte stream, as `vde_plug` writes them to its standard output and reads them from its standard input
//! (VDE fact 3.8): each frame behind its length, two bytes, the high one first.
//!
//! Theory of operation. A [`Decoder`] is fed the stream in whatever pieces it comes. A frame that lies whole in one
//! piece is given on where it lies; only one that is split is put together in a buffer, which never holds more than
//! one frame of [`FRAME_MAX`] bytes. A length may be split as well: its first byte waits for the second (the original
//! loses it, defect V-1). A length of 0 is no frame. After a length that is too long, as many bytes are skipped, so
//! that the frame behind them is found again, wherever the pieces end.
//!
//! ```
//! use vdeplug::stream::{Decoder, Event, prefix};
//!
//! let frame = [0x55; 60];
//! let mut bytes = prefix(frame.len()).expect("short enough").to_vec();
//! bytes.extend_from_slice(&frame);
//!
//! let mut decoder = Decoder::default();
//! let mut got = Vec::new();
//! for piece in bytes.chunks(7) {
//!     decoder.feed(piece, |event| {
//!         if let Event::Frame(frame) = event {
//!             got.push(frame.to_vec());
//!         }
//!     });
//! }
//! assert_eq!(got, [frame]);
//! ```

/// The longest frame that the original's stream carries, two bytes longer than a frame of VDE.
pub const FRAME_MAX: usize = crate::link::FRAME_MAX + PREFIX_LEN;

/// Bytes of a length.
pub const PREFIX_LEN: usize = 2;

/// The length that goes before a frame; `None` if the stream carries no frame that long.
pub fn prefix(len: usize) -> Option<[u8; PREFIX_LEN]> {
    u16::try_from(len).ok().filter(|_| len <= FRAME_MAX).map(u16::to_be_bytes)
}

/// Something found in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A frame of at least one byte.
    Frame(&'a [u8]),
    /// A frame was announced that is longer than [`FRAME_MAX`]; it will be skipped.
    TooLong {
        /// The length that was announced.
        len: usize,
        /// How many bytes were at hand behind it.
        at_hand: usize,
    },
}

/// Finds the frames of a stream.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    state: State,
    /// The beginning of a frame that is split.
    frame: Vec<u8>,
}

/// What the next byte belongs to.
#[derive(Clone, Copy, Debug, Default)]
enum State {
    /// The first byte of a length.
    #[default]
    Length,
    /// The second byte of a length whose first was this.
    HalfLength(u8),
    /// A frame that is being put together; so many bytes of it are missing.
    Frame(usize),
    /// A frame that is too long; so many bytes of it are to come.
    Skip(usize),
}

impl Decoder {
    /// A decoder that has from the beginning all the memory that it will ever need.
    pub fn preallocated() -> Self {
        Self { frame: Vec::with_capacity(FRAME_MAX), ..Self::default() }
    }

    /// Takes the next bytes of the stream, all of them, and tells what they complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(Event<'_>)) {
        while let Some(event) = self.next(&mut bytes) {
            each(event);
        }
    }

    /// Takes bytes from the front of the next bytes of the stream, up to the end of a frame or to their own end;
    /// `None` if they complete nothing. For callers that can use a limited number of frames.
    pub fn next<'e, 'b: 'e>(&'e mut self, bytes: &mut &'b [u8]) -> Option<Event<'e>> {
        loop {
            match self.state {
                State::Length => self.state = State::HalfLength(*bytes.split_off_first()?),
                State::HalfLength(high) => {
                    let len = usize::from(u16::from_be_bytes([high, *bytes.split_off_first()?]));
                    self.state = State::Length;
                    if len > FRAME_MAX {
                        self.state = State::Skip(len);
                        return Some(Event::TooLong { len, at_hand: bytes.len() });
                    } else if len > 0 {
                        if let Some(frame) = bytes.split_off(..len) {
                            return Some(Event::Frame(frame));
                        }
                        self.frame.clear();
                        self.state = State::Frame(len);
                    }
                }
                State::Frame(missing) => {
                    let piece = take_up_to(bytes, missing)?;
                    self.frame.extend_from_slice(piece);
                    self.state = State::Frame(missing - piece.len());
                    if piece.len() == missing {
                        self.state = State::Length;
                        return Some(Event::Frame(&self.frame));
                    }
                }
                State::Skip(missing) => {
                    let piece = take_up_to(bytes, missing)?;
                    self.state = match missing - piece.len() {
                        0 => State::Length,
                        left => State::Skip(left),
                    };
                }
            }
        }
    }
}

/// Takes at most `count` bytes from the front; `None` if there are none.
fn take_up_to<'b>(bytes: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    bytes.split_off(..count.min(bytes.len())).filter(|piece| !piece.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq, Eq)]
    enum Seen {
        Frame(Vec<u8>),
        TooLong(usize),
    }

    fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Seen> {
        let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
        for piece in pieces {
            decoder.feed(piece, |event| {
                seen.push(match event {
                    Event::Frame(frame) => Seen::Frame(frame.to_vec()),
                    Event::TooLong { len, .. } => Seen::TooLong(len),
                });
            });
        }
        assert!(decoder.frame.capacity() <= 2 * FRAME_MAX);
        seen
    }

    /// Any length, whether the stream carries it or not, and that many bytes.
    fn encode(lens: &[u16]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &len in lens {
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.resize(bytes.len() + usize::from(len), len.to_be_bytes()[1]);
        }
        bytes
    }

    fn expected(lens: &[u16]) -> Vec<Seen> {
        let seen = |len: &u16| match usize::from(*len) {
            0 => None,
            long if long > FRAME_MAX => Some(Seen::TooLong(long)),
            len => Some(Seen::Frame(encode(&[u16::try_from(len).unwrap()])[2..].to_vec())),
        };
        lens.iter().filter_map(seen).collect()
    }

    #[test]
    fn prefix_knows_the_longest_frame() {
        assert_eq!(prefix(0), Some([0, 0]));
        assert_eq!(prefix(9236), Some([0x24, 0x14]));
        assert_eq!((prefix(9237), prefix(65536 + 60)), (None, None));
    }

    #[test]
    fn feed_takes_the_longest_and_skips_what_is_longer() {
        let lens = [0, 60, 9234, 9236, 9237, 14, 65535, 0, 15];
        let bytes = encode(&lens);
        assert_eq!(decode([&*bytes]), expected(&lens));
        assert_eq!(decode(bytes.chunks(1)), expected(&lens));
    }

    #[test]
    fn feed_keeps_a_lone_byte_of_a_length() {
        let bytes = encode(&[60, 300, 61]);
        assert_eq!(decode([&bytes[..63], &bytes[63..]]), expected(&[60, 300, 61]));
    }

    #[test]
    fn next_leaves_what_it_was_not_asked_for() {
        let bytes = encode(&[60, 61]);
        let (mut decoder, mut rest) = (Decoder::default(), &bytes[..]);
        assert!(matches!(decoder.next(&mut rest), Some(Event::Frame(frame)) if frame.len() == 60));
        assert_eq!(rest.len(), 63);
    }

    proptest! {
        #[test]
        fn feed_any_split_gives_the_same(
            lens in prop::collection::vec(prop_oneof![0..70_u16, 9230..9240_u16, any::<u16>()], 0..12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let bytes = encode(&lens);
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            ends.push(bytes.len());
            ends.sort_unstable();
            let mut start = 0;
            let pieces: Vec<&[u8]> = ends
                .iter()
                .map(|&end| &bytes[std::mem::replace(&mut start, end)..end])
                .collect();
            prop_assert_eq!(decode(pieces), expected(&lens));
        }

        #[test]
        fn feed_any_bytes_return(bytes in prop::collection::vec(any::<u8>(), 0..2000), at in 1..50_usize) {
            prop_assert_eq!(decode(bytes.chunks(at)), decode([&*bytes]));
        }
    }
}
