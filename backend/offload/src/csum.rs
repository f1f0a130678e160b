//! The Internet checksum (RFC 1071), over bytes that come in pieces of any length.
//!
//! Words are summed in native byte order, which gives the same bits as network order does once the result is stored
//! natively too (RFC 1071 § 2 (B)). A piece that starts at an odd offset is summed as if it started at an even one and
//! its sum is then swapped (§ 2 (B) again), so no byte is ever handled twice or copied.

/// A running one's complement sum.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// A one's complement number itself: what is carried out at the top comes in at the bottom. As 2^16 - 1 divides
    /// 2^64 - 1, it can be folded as late as one likes, and is multiplied by 256, which swaps the bytes, by a rotation.
    total: u64,
    odd: bool,
}

impl Sum {
    /// Adds the bytes that follow those added before.
    pub fn add(&mut self, bytes: &[u8]) {
        self.join(Self { total: words(bytes), odd: bytes.len() % 2 == 1 });
    }

    /// Adds what another sum was made of, as if its bytes had been added here.
    pub fn join(&mut self, other: Self) {
        let other_total = if self.odd { other.total.rotate_left(8) } else { other.total };
        let (total, carry) = self.total.overflowing_add(other_total);
        self.total = total.wrapping_add(u64::from(carry));
        self.odd ^= other.odd;
    }

    /// The checksum to store, in the byte order of memory. 0 is never returned: it means "no checksum" in UDP, and
    /// 0xffff is the same number everywhere else.
    pub fn finish(self) -> [u8; 2] {
        match self.complement() {
            [0, 0] => [0xff, 0xff],
            value => value,
        }
    }

    /// The checksum as TCP and IPv4 store it: 0 is a number like any other there.
    pub fn complement(self) -> [u8; 2] {
        (!fold(self.total)).to_ne_bytes()
    }

    /// The sum itself, in the byte order of memory: what stands in the place of a checksum that somebody else completes.
    pub fn partial(self) -> [u8; 2] {
        fold(self.total).to_ne_bytes()
    }

    /// Whether the bytes added, their checksum among them, were not damaged.
    pub fn is_whole(self) -> bool {
        fold(self.total) == 0xffff
    }
}

/// Sum of the halves of 64-bit lanes; cannot overflow for pieces shorter than 32 GiB. Wrapping, because a check for each
/// addition keeps the compiler from adding several at once. The lower halves are never taken out of their lanes: they
/// are what the sum of the whole lanes has more than that of the upper halves, which does not wrap. That is one step
/// less for each lane.
fn words(bytes: &[u8]) -> u64 {
    let (lanes, rest) = bytes.as_chunks::<8>();
    let (mut whole, mut upper) = (0u64, 0u64);
    for lane in lanes {
        let lane = u64::from_ne_bytes(*lane);
        whole = whole.wrapping_add(lane);
        upper = upper.wrapping_add(lane >> 32);
    }
    let lower = whole.wrapping_sub(upper << 32);
    let (half, rest) = rest.as_chunks::<4>();
    let half = half.first().map_or(0, |half| u64::from(u32::from_ne_bytes(*half)));
    let (pair, last) = rest.as_chunks::<2>();
    let pair = pair.first().map_or(0, |pair| u64::from(u16::from_ne_bytes(*pair)));
    let last = last.first().map_or(0, |byte| u64::from(u16::from_ne_bytes([*byte, 0])));
    lower + upper + half + pair + last
}

/// The same number in 16 bits.
fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    #[expect(clippy::cast_possible_truncation, reason = "33 bits, 32, 17, 16")]
    let folded = sum as u16;
    folded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 § 4.1, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            let word = u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
            sum += u32::from(word);
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !u16::try_from(sum).unwrap()
    }

    #[test]
    fn rfc_example() {
        let mut sum = Sum::default();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(u16::from_be_bytes(sum.finish()), !0xddf2);
    }

    #[test]
    fn zero_is_stored_as_its_other_form() {
        let mut sum = Sum::default();
        sum.add(&[0xff, 0xff]);
        assert_eq!(sum.finish(), [0xff, 0xff]);
    }

    #[test]
    fn tcp_checksum_agrees_with_etherparse() {
        let payload: Vec<u8> = (0..1000u32).map(|i| (i * 7).to_le_bytes()[0]).collect();
        let mut packet = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1234, 80, 42, 4096)
            .write(&mut packet, &payload)
            .unwrap();
        let mut segment = packet[20..].to_vec();
        let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
        let expected = [segment[16], segment[17]];
        segment[16..18].fill(0);
        let mut sum = Sum::default();
        sum.add(&packet[12..20]);
        sum.add(&[0, 6]);
        sum.add(&length);
        sum.add(&segment);
        assert_eq!(sum.finish(), expected);
    }

    proptest! {
        #[test]
        fn pieces_sum_as_the_whole(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..70), 0..8)) {
            let mut sum = Sum::default();
            pieces.iter().for_each(|piece| sum.add(piece));
            let whole = reference(&pieces.concat());
            let expected = if whole == 0 { 0xffff } else { whole };
            prop_assert_eq!(u16::from_be_bytes(sum.finish()), expected);
        }

        #[test]
        fn joined_sums_are_the_sum_of_the_whole(
            first in prop::collection::vec(any::<u8>(), 0..70),
            second in prop::collection::vec(any::<u8>(), 0..70),
            third in prop::collection::vec(any::<u8>(), 0..70),
        ) {
            let mut sum = Sum::default();
            for piece in [&first, &second, &third] {
                let mut part = Sum::default();
                part.add(piece);
                sum.join(part);
            }
            let mut whole = Sum::default();
            whole.add(&[first, second, third].concat());
            prop_assert_eq!(sum.finish(), whole.finish());
        }
    }
}
