use std::os::fd::{AsFd, OwnedFd};

use offload::header::{GSO_TCPV4, NEEDS_CSUM};
use offload::{Header, complete as complete_private};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, recv, socketpair};

use crate::datagram::{self, Framing};
use crate::link::{FRAME_MAX, Meter, Sent, TxBuf, TxFrame};

use super::*;

fn sockets() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::NONBLOCK, None).unwrap()
}

fn receive(fd: &OwnedFd) -> Option<Vec<u8>> {
    let mut room = vec![0; FRAME_MAX];
    let (got, _) = recv(fd, &mut room[..], RecvFlags::empty()).ok()?;
    room.truncate(got);
    Some(room)
}

/// A TCP frame over IPv4 with a payload that says where it is.
fn tcp(payload: usize) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 80, 4, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|at| (at / 7).to_le_bytes()[0]));
    frame
}

const TSO: Header = Header {
    flags: NEEDS_CSUM,
    gso_type: GSO_TCPV4,
    hdr_len: 0,
    gso_size: 1000,
    csum_start: 34,
    csum_offset: 16,
};
const CSUM: Header = Header { gso_type: 0, gso_size: 0, ..TSO };

/// What should arrive.
fn expected(frame: &[u8], header: Header) -> Vec<Vec<u8>> {
    if header.gso_type == 0 {
        let mut frame = frame.to_vec();
        complete_private(&header, &mut frame).unwrap();
        return vec![frame];
    }
    let plan = Plan::new(&header, &frame[..frame.len().min(HEAD_MAX)], frame.len()).unwrap();
    let cut = |index| {
        let mut head = [0; HEAD_MAX];
        let (head, payload) = plan.segment(index, frame, &mut head);
        [head, payload].concat()
    };
    (0..plan.segments()).map(cut).collect()
}

fn pieces(frame: &[u8], len: usize) -> Vec<TxBuf<'_>> {
    frame.chunks(len).map(TxBuf::new).collect()
}

fn offer(fd: &OwnedFd, frames: &[TxFrame<'_>]) -> (Sent, crate::Traffic) {
    let meter = Meter::default();
    let sent = datagram::send(fd.as_fd(), Framing::Plain, FRAME_MAX, frames, &meter).unwrap();
    (sent, meter.read())
}

#[test]
fn segments_come_out_of_frames_in_pieces_of_any_length() {
    let (ours, theirs) = sockets();
    let frame = tcp(4321);
    for len in [5000, 1000, 54, 61, 7] {
        let pieces = pieces(&frame, len);
        let (sent, traffic) = offer(&ours, &[TxFrame { header: TSO, ..TxFrame::new(&pieces) }]);
        assert_eq!(sent, Sent { taken: 1, ..Sent::default() });
        assert_eq!((traffic.tx_frames, traffic.tx_bytes), (1, 4375));
        let got: Vec<_> = std::iter::from_fn(|| receive(&theirs)).collect();
        assert_eq!(got, expected(&frame, TSO), "pieces of {len}");
    }
}

#[test]
fn frames_of_all_kinds_keep_their_order() {
    let (ours, theirs) = sockets();
    let (big, small, plain, long) = (tcp(2500), tcp(333), tcp(90), tcp(9300));
    let (big_bufs, small_bufs) = (pieces(&big, 100), pieces(&small, 50));
    let (plain_bufs, long_bufs) = ([TxBuf::new(&plain)], [TxBuf::new(&long)]);
    let with = |bufs, header| TxFrame { header, ..TxFrame::new(bufs) };
    let batch = [
        with(&small_bufs, CSUM),
        with(&plain_bufs, Header::NONE),
        with(&big_bufs, Header { gso_type: 3, ..TSO }),
        with(&big_bufs, TSO),
        with(&long_bufs, CSUM),
        with(&plain_bufs, Header { csum_start: 143, ..CSUM }),
        with(&long_bufs, Header { gso_size: 9200, ..TSO }),
        with(&plain_bufs, Header::NONE),
        with(&big_bufs, TSO),
    ];
    let (sent, traffic) = offer(&ours, &batch);
    assert_eq!(sent, Sent { taken: 9, dropped: 4, segments: 0 });
    assert_eq!((traffic.tx_frames, traffic.tx_dropped), (5, 4));
    let wanted =
        [expected(&small, CSUM), vec![plain.clone()], expected(&big, TSO), vec![plain], expected(&big, TSO)];
    let got: Vec<_> = std::iter::from_fn(|| receive(&theirs)).collect();
    assert_eq!(got, wanted.concat());
}

#[test]
fn full_socket_neither_loses_nor_repeats_a_segment() {
    let (ours, theirs) = sockets();
    let frames: Vec<_> = (60_000..60_008).map(tcp).collect();
    let bufs: Vec<_> = frames.iter().map(|frame| pieces(frame, 4096)).collect();
    let mut batch: Vec<_> = bufs.iter().map(|bufs| TxFrame { header: TSO, ..TxFrame::new(bufs) }).collect();
    let (mut got, mut parts) = (Vec::new(), 0);
    while !batch.is_empty() {
        let (sent, _) = offer(&ours, &batch);
        assert_eq!(sent.dropped, 0);
        batch.drain(..sent.taken);
        match batch.first_mut() {
            Some(first) => {
                parts += usize::from(sent.segments > 0);
                first.segments = sent.segments;
                // Nothing went, so nothing more went.
                assert_eq!(offer(&ours, &batch).0, Sent { segments: sent.segments, ..Sent::default() });
            }
            None => assert_eq!(sent.segments, 0),
        }
        got.extend(std::iter::from_fn(|| receive(&theirs)).take(7));
    }
    got.extend(std::iter::from_fn(|| receive(&theirs)));
    assert!(parts > 5, "{parts}");
    assert!(got == frames.iter().flat_map(|frame| expected(frame, TSO)).collect::<Vec<_>>());
}

#[test]
fn a_batch_that_went_in_part_says_so() {
    let (ours, theirs) = sockets();
    let frame = tcp(60_000);
    let pieces = [TxBuf::new(&frame)];
    let frames = [TxFrame { header: TSO, ..TxFrame::new(&pieces) }];
    let send = || send(ours.as_fd(), &[], frames.iter(), 0, FRAME_MAX);
    let whole = Reached { frames: 1, segments: 0 };
    assert!(matches!(send(), Ok((reached, true)) if reached == whole));
    while matches!(send(), Ok((_, true))) {}
    assert!(matches!(send(), Err(Failure::Again)));
    assert!(receive(&theirs).is_some());
    let one = Reached { frames: 0, segments: 1 };
    assert!(matches!(send(), Ok((reached, false)) if reached == one));
}

#[test]
fn resuming_behind_the_last_segment_drops_the_frame() {
    let (ours, theirs) = sockets();
    let frame = tcp(2500);
    let pieces = [TxBuf::new(&frame)];
    let changed = TxFrame { header: TSO, segments: 3, ..TxFrame::new(&pieces) };
    assert_eq!(offer(&ours, &[changed]).0, Sent { taken: 1, dropped: 1, segments: 0 });
    assert_eq!(receive(&theirs), None);
}

#[test]
fn a_thousand_pieces_are_passed_once() {
    let frame = tcp(64_000);
    let pieces = pieces(&frame, 63);
    let whole = TxFrame::new(&pieces);
    let (mut place, mut got, mut lent) = (Place::default(), Vec::new(), Vec::new());
    let steps = (0..frame.len()).step_by(62);
    for at in steps.clone() {
        let mut room = [0; 62];
        let count = whole.read_near(&mut place, at, &mut room);
        got.extend_from_slice(&room[..count]);
    }
    assert!(got == frame);
    // Back to the front, and over pieces without a byte.
    assert_eq!(whole.read_near(&mut place, 0, &mut [0; 9]), 9);
    assert_eq!(whole.read_near(&mut place, frame.len(), &mut [0; 9]), 0);
    let mut place = Place::default();
    steps.for_each(|at| whole.pieces_near(&mut place, at..frame.len().min(at + 62), &mut lent));
    let again = TxFrame::new(&lent);
    let mut got = vec![0; frame.len() + 1];
    assert_eq!(again.read_at(0, &mut got), frame.len());
    assert!(got[..frame.len()] == frame);
    let holes = [TxBuf::EMPTY, TxBuf::new(&frame[..3]), TxBuf::EMPTY, TxBuf::EMPTY, TxBuf::new(&frame[3..9])];
    let mut got = [0; 9];
    assert_eq!(TxFrame::new(&holes).read_at(2, &mut got), 7);
    assert_eq!(got[..7], frame[2..9]);
}
