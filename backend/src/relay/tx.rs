//! Out of the guest: the bytes that QEMU wrote, found to be frames, and sent to the links.
//!
//! # Theory of operation
//! On QEMU's stream sockets each frame stands behind its length, four bytes, the high one first. QEMU writes frame by
//! frame; we read whatever has gathered, and the frames go to the links from where they lie in the [`Inbox`]. The last one
//! may not be whole yet: the next bytes come behind it, and it never needs more room than the inbox has, because a length
//! that no QEMU writes ends the connection.
//!
//! A batch ends at a frame that must not go, which is dropped. With a single link, a link that is full stops the reading, for
//! as long as it may: QEMU's writes then find the socket full and the guest's NIC waits. With several, it loses the frames.

use vdeplug::link::{FRAME_MAX, FRAME_MIN};
use vdeplug::{TxBuf, TxFrame};
use virtio_net::counters::{Counter, Counters};
use virtio_net::{TxLinks, TxRound, offer};

/// Bytes of a length.
pub const PREFIX_LEN: usize = 4;
/// The longest frame that QEMU has room for: it drops the connection on which a longer one is announced, and writes none.
pub const QEMU_FRAME_MAX: usize = 4096 + 65536;
/// What a socket's buffer holds by default, so that one call empties it, and more than any one frame.
const ROOM: usize = 208 * 1024;
/// Frames per batch, as for a virtio NIC.
const BATCH: usize = 32;

/// A length that is longer than any frame of QEMU.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it announced a frame of {0} bytes; QEMU's netdev stream sends {QEMU_FRAME_MAX} at most")]
pub struct TooLong(usize);

/// Bytes that were read and not used yet.
#[derive(Debug)]
pub struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub fn new() -> Self {
        Self { bytes: vec![0; ROOM].into(), start: 0, end: 0 }
    }

    /// Forgets what is there.
    pub fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }

    /// Where the next bytes go. Only empty while whole frames are there.
    pub fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// So many bytes were put there.
    pub fn filled(&mut self, count: usize) {
        self.end = self.bytes.len().min(self.end + count);
    }

    /// The whole frames from the front on, up to a length that is a lie.
    pub fn frames(&self) -> impl Iterator<Item = Result<&[u8], TooLong>> {
        let mut rest = self.bytes.get(self.start..self.end).unwrap_or_default();
        std::iter::from_fn(move || {
            let (prefix, behind) = rest.split_first_chunk::<PREFIX_LEN>()?;
            let len = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
            if len > QEMU_FRAME_MAX {
                rest = &[];
                return Some(Err(TooLong(len)));
            }
            let (frame, behind) = behind.split_at_checked(len)?;
            rest = behind;
            Some(Ok(frame))
        })
    }

    /// Whether [`round`] has something to do.
    pub fn has_work(&self) -> bool {
        self.frames().next().is_some()
    }

    /// Is done with so many bytes of frames and their lengths.
    fn skip(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }
}

/// Why a frame does not go.
enum Odd<'c> {
    /// To be dropped with its length.
    Drop(&'c Counter, usize),
    /// Its length is a lie.
    Lie(TooLong),
}

fn check<'a, 'c>(frame: Result<&'a [u8], TooLong>, counters: &'c Counters) -> Result<&'a [u8], Odd<'c>> {
    let frame = frame.map_err(Odd::Lie)?;
    match frame.len() {
        len if len < FRAME_MIN => Err(Odd::Drop(&counters.tx_runt, len)),
        len if len > FRAME_MAX => Err(Odd::Drop(&counters.tx_too_long, len)),
        _ => Ok(frame),
    }
}

/// Sends one batch.
pub fn round(inbox: &mut Inbox, links: &TxLinks<'_>, counters: &Counters) -> Result<TxRound, TooLong> {
    let mut round = TxRound::default();
    let mut frames: [&[u8]; BATCH] = [&[]; BATCH];
    let (mut count, mut odd) = (0, None);
    for (slot, frame) in frames.iter_mut().zip(inbox.frames()) {
        match check(frame, counters) {
            Ok(frame) => *slot = frame,
            Err(reason) => {
                odd = Some(reason);
                break;
            }
        }
        count += 1;
    }
    let bufs = frames.map(|frame| [TxBuf::new(frame)]);
    let batch = bufs.each_ref().map(|bufs| TxFrame::new(bufs));
    let batch = batch.get(..count).unwrap_or_default();
    round.used = send(batch, links, counters, &mut round);
    let bytes: usize = batch.iter().take(round.used).map(|frame| PREFIX_LEN + frame.len()).sum();
    inbox.skip(bytes);
    match odd {
        Some(Odd::Drop(counter, len)) if round.used == count => {
            counter.add(1);
            inbox.skip(PREFIX_LEN + len);
            round.used += 1;
            Ok(round)
        }
        // What was sent is told first; the lie is still there in the next round.
        Some(Odd::Lie(error)) if count == 0 => Err(error),
        _ => Ok(round),
    }
}

/// Gives the batch to the links and returns how many frames, from the front, are done with.
fn send(batch: &[TxFrame<'_>], links: &TxLinks<'_>, counters: &Counters, round: &mut TxRound) -> usize {
    if batch.is_empty() {
        return 0;
    }
    if links.up.is_empty() {
        counters.tx_no_link.add(batch.len() as u64);
        return batch.len();
    }
    let (sent, passed) = offer(batch, links, counters, round);
    if round.lost.len() == links.up.len() {
        counters.tx_no_link.add(batch.len() as u64);
    }
    counters.tx_frames.add(passed as u64);
    counters.tx_bytes.add(batch.iter().take(passed).map(|frame| frame.len() as u64).sum());
    sent.taken
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame whose bytes tell its length.
    fn frame(len: usize) -> Vec<u8> {
        vec![len.to_be_bytes()[7]; len]
    }

    fn encode(lens: &[usize]) -> Vec<u8> {
        let with_prefix =
            |len: &usize| [&u32::try_from(*len).unwrap().to_be_bytes()[..], &frame(*len)].concat();
        lens.iter().flat_map(with_prefix).collect()
    }

    /// Takes the bytes in as they come and gives what they complete.
    fn feed(inbox: &mut Inbox, mut bytes: &[u8]) -> Result<Vec<Vec<u8>>, TooLong> {
        let mut got = Vec::new();
        while !bytes.is_empty() {
            let room = inbox.room();
            let count = room.len().min(bytes.len());
            assert!(count > 0, "there is room for the rest of any frame");
            room[..count].copy_from_slice(&bytes[..count]);
            inbox.filled(count);
            bytes = &bytes[count..];
            let frames: Vec<Vec<u8>> =
                inbox.frames().map(|f| f.map(<[u8]>::to_vec)).collect::<Result<_, _>>()?;
            inbox.skip(frames.iter().map(|frame| PREFIX_LEN + frame.len()).sum());
            got.extend(frames);
        }
        Ok(got)
    }

    #[test]
    fn frames_split_at_every_byte_are_whole_again() {
        let lens = [60, 0, 14, 1514, 61];
        let bytes = encode(&lens);
        let expected: Vec<Vec<u8>> = lens.map(frame).into();
        for cut in 0..=bytes.len() {
            let mut inbox = Inbox::new();
            let mut got = feed(&mut inbox, &bytes[..cut]).unwrap();
            got.extend(feed(&mut inbox, &bytes[cut..]).unwrap());
            assert_eq!(got, expected, "cut at {cut}");
        }
        let mut inbox = Inbox::new();
        let got: Vec<_> = bytes.chunks(1).flat_map(|byte| feed(&mut inbox, byte).unwrap()).collect();
        assert_eq!(got, expected);
    }

    #[test]
    fn frames_as_long_as_the_inbox_and_longer_streams_fit() {
        let lens = [QEMU_FRAME_MAX; 7];
        let mut inbox = Inbox::new();
        let got = feed(&mut inbox, &encode(&lens)).unwrap();
        assert_eq!(got.iter().map(Vec::len).collect::<Vec<_>>(), lens);
        // However long a frame that never ends is, its beginning is all that is kept.
        let unfinished = &encode(&[QEMU_FRAME_MAX])[..QEMU_FRAME_MAX];
        assert!(feed(&mut inbox, unfinished).unwrap().is_empty());
        assert!(!inbox.has_work());
    }

    #[test]
    fn frames_end_at_a_length_that_is_a_lie() {
        for lie in [QEMU_FRAME_MAX + 1, 0xffff_ffff, 0x8000_0000] {
            let bytes = [&encode(&[60])[..], &u32::try_from(lie).unwrap().to_be_bytes()].concat();
            let mut inbox = Inbox::new();
            assert_eq!(feed(&mut inbox, &bytes), Err(TooLong(lie)));
            assert_eq!(
                inbox.frames().take(2).filter_map(Result::ok).count(),
                1,
                "what came before it is there"
            );
        }
    }

    #[test]
    fn round_drops_what_must_not_go_and_counts_it() {
        let link = vdeplug::open("null://", &vdeplug::OpenOptions::default()).unwrap();
        let counters = Counters::default();
        let mut inbox = Inbox::new();
        let bytes = encode(&[60, 0, 13, 14, FRAME_MAX + 1, FRAME_MAX]);
        inbox.room()[..bytes.len()].copy_from_slice(&bytes);
        inbox.filled(bytes.len());
        let up = [(0, link)];
        let links = TxLinks { up: &up, lossy: false };
        let mut used = 0;
        while inbox.has_work() {
            used += round(&mut inbox, &links, &counters).unwrap().used;
        }
        assert_eq!(used, 6);
        assert_eq!((counters.tx_frames.get(), counters.tx_bytes.get()), (3, 74 + FRAME_MAX as u64));
        assert_eq!((counters.tx_runt.get(), counters.tx_too_long.get()), (2, 1));
        inbox.room()[..64].copy_from_slice(&encode(&[60]));
        inbox.filled(64);
        assert_eq!(round(&mut inbox, &TxLinks { up: &[], lossy: false }, &counters).unwrap().used, 1);
        assert_eq!((counters.tx_no_link.get(), counters.tx_frames.get()), (1, 3));
    }
}
