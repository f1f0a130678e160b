//! Big frames through nodes: between programs that take them they stay whole, for all others they are segmented.

use std::net::Ipv4Addr;
use std::sync::Arc;

use vdeplug::{Header, Link, OpenOptions, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::harness::{names, open, readable, receive, until};
use crate::node_peers::{Place, Plug, until_peers};

/// Payload bytes of each segment, and how many segments the big frame is.
const SEGMENT: u16 = 1448;
const SEGMENTS: usize = 44;

const HEAD_LEN: usize = 14 + 20 + 20;
const FRAME_LEN: usize = HEAD_LEN + SEGMENTS * SEGMENT as usize - 100;

/// A TCP frame to be segmented, as a guest's driver writes it.
pub fn big_frame() -> (Header, Vec<u8>) {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00];
    let ip_len = u16::try_from(FRAME_LEN - 14).expect("fits");
    frame.extend_from_slice(&[0x45, 0]);
    frame.extend_from_slice(&ip_len.to_be_bytes());
    frame.extend_from_slice(&[0, 7, 0x40, 0, 64, 6, 0, 0]);
    frame.extend_from_slice(&Ipv4Addr::new(10, 0, 0, 1).octets());
    frame.extend_from_slice(&Ipv4Addr::new(10, 0, 0, 2).octets());
    frame.extend_from_slice(&[0x30, 0x39, 0, 80, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..251_u8).cycle().take(FRAME_LEN - HEAD_LEN));
    let header = Header {
        flags: 1,
        gso_type: 1,
        hdr_len: u16::try_from(HEAD_LEN).expect("short"),
        gso_size: SEGMENT,
        csum_start: 34,
        csum_offset: 16,
    };
    (header, frame)
}

pub fn send_big(link: &dyn Link) -> Vec<u8> {
    let (header, frame) = big_frame();
    let bufs = [TxBuf::new(&frame)];
    until("the frame is sent", || {
        let sent = link.send(&[TxFrame { bufs: &bufs, header, segments: 0 }]).expect("alive");
        assert_eq!(sent.dropped, 0);
        sent.taken == 1
    });
    frame
}

/// Waits for one frame with its header.
pub fn receive_with_header(link: &dyn Link) -> (Header, Vec<u8>) {
    assert!(readable(link.data_fd()), "no frame came");
    let mut room = vec![0; 70_000];
    let bufs = [RxBuf::new(&mut room)];
    let mut frames = [RxFrame::new(&bufs)];
    assert_eq!(link.recv(&mut frames).expect("alive"), 1);
    let (header, len) = (frames[0].header, frames[0].len);
    room.truncate(len);
    (header, room)
}

/// Holds segments against the frame that they were.
pub fn check_segments(frame: &[u8], mut next: impl FnMut() -> Vec<u8>) {
    let mut payload = Vec::new();
    for index in 0..SEGMENTS {
        let segment = next();
        assert!(segment.len() <= HEAD_LEN + usize::from(SEGMENT));
        let sequence = u32::from_be_bytes(segment[38..42].try_into().expect("four"));
        assert_eq!(sequence as usize, 9 + payload.len(), "segment {index}");
        // A TCP segment with its pseudo header sums up to zero, and so does the header of IP.
        let tcp_len = u16::try_from(segment.len() - 34).expect("short");
        let pseudo = [&segment[26..34], &[0, 6], &tcp_len.to_be_bytes()].concat();
        assert_eq!(ones_sum(&[&pseudo, &segment[34..]].concat()), 0xffff, "segment {index}");
        assert_eq!(ones_sum(&segment[14..34]), 0xffff, "segment {index}");
        payload.extend_from_slice(&segment[HEAD_LEN..]);
    }
    assert_eq!(payload, frame[HEAD_LEN..]);
}

fn ones_sum(bytes: &[u8]) -> u32 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Serves a node whose owner takes big frames.
fn serve_big(place: &Place, scheme: &str) -> Arc<dyn Link> {
    let options = OpenOptions { offloads: true, ..OpenOptions::default() };
    vdeplug::open(&place.at(scheme, ""), &options).expect("a node")
}

#[test]
fn big_frames_are_agreed_upon_where_both_can() {
    for (scheme, owner_big, expected) in
        [("switch", false, true), ("hub", true, true), ("multi", false, false), ("bonding", true, true)]
    {
        let place = Place::new();
        let _owner = if owner_big { serve_big(&place, scheme) } else { open(place.at(scheme, "")) };
        let _peer = place.join_big();
        let agreed = || names(&place.dir()).iter().any(|name| name.ends_with("+gso"));
        assert_eq!(agreed(), expected, "{scheme}");
        let place = Place::new();
        let _owner = serve_big(&place, scheme);
        let _peer = place.join();
        assert!(!names(&place.dir()).iter().any(|name| name.ends_with("+gso")), "{scheme}: nobody asked");
    }
}

#[test]
fn big_frames_pass_whole_or_as_segments() {
    for scheme in ["switch", "hub"] {
        let place = Place::new();
        let owner = place.serve(scheme);
        let mut plug = Plug::join(&place, &*owner, 1);
        let (sender, big, plain) = (place.join_big(), place.join_big(), place.join());
        let frame = send_big(&*sender);
        let (header, whole) = receive_with_header(&*big);
        assert_eq!((header.gso_type, header.gso_size, header.flags), (1, SEGMENT, 1));
        assert_eq!(whole, frame);
        // The owner did not ask for big frames, the others cannot take them.
        check_segments(&frame, || receive(&*owner));
        check_segments(&frame, || receive(&*plain));
        check_segments(&frame, || plug.receive());
    }
}

#[test]
fn big_frames_of_the_owner_pass_whole_or_as_segments() {
    for scheme in ["multi", "hub", "switch", "bonding"] {
        let place = Place::new();
        let owner = serve_big(&place, scheme);
        let peer = place.join_big();
        let frame = send_big(&*owner);
        assert_eq!(receive_with_header(&*peer).1, frame);
        assert_eq!(send_big(&*peer), frame);
        let (header, whole) = receive_with_header(&*owner);
        assert_eq!((header.gso_size, whole), (SEGMENT, frame), "{scheme}");
        drop(peer);
        until_peers(&*owner, 0);
        let mut plug = Plug::join(&place, &*owner, 1);
        let frame = send_big(&*owner);
        check_segments(&frame, || plug.receive());
    }
}

#[test]
fn headers_that_lie_are_dropped() {
    let place = Place::new();
    let owner = place.serve("switch");
    let (sender, other) = (place.join_big(), place.join_big());
    let (header, frame) = big_frame();
    let bufs = [TxBuf::new(&frame)];
    let lies = [
        Header { gso_type: 77, ..header },
        Header { gso_size: 0, ..header },
        Header { gso_size: 1, ..header },
        Header { csum_start: 60_000, csum_offset: 60_000, ..header },
        Header { gso_type: 4, ..header },
        Header { flags: 0x80, ..header },
        Header { gso_type: 0, csum_start: u16::MAX, ..header },
    ];
    let batch = lies.map(|header| TxFrame { bufs: &bufs, header, segments: 0 });
    let mut taken = 0;
    until("the lies are sent", || {
        taken += sender.send(&batch[taken..]).expect("alive").taken;
        taken == lies.len()
    });
    // The next is the first that comes out.
    send_big(&*sender);
    assert_eq!(receive_with_header(&*other).1, frame);
    check_segments(&frame, || receive(&*owner));
    assert_eq!(owner.stats().peers[0].1.rx_dropped, lies.len() as u64);
}
