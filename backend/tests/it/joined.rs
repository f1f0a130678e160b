//! Segments from a network that knows no large frames, joined on the way into guests; and guests that are short of buffers.

use ::offload::{HEAD_MAX, Plan};
use vdeplug::Header;

use crate::driver::{MRG_RXBUF, VERSION_1, WRITE};
use crate::offload::{Node, RX, TCPV4, TCPV6, cable, counters, frame, pattern, take};
use crate::world::Backend;

/// What a network without offloads makes of such a frame.
fn cut(header: &Header, frame: &[u8]) -> Vec<Vec<u8>> {
    let plan = Plan::new(header, frame, frame.len()).unwrap();
    let mut room = [0; HEAD_MAX];
    let segment = |index| {
        let (head, payload) = plan.segment(index, frame, &mut room);
        [head, payload].concat()
    };
    (0..plan.segments()).map(segment).collect()
}

/// Has frames wait in the back end's socket, so that it finds them all at once.
fn send_at_once(node: &Node, backend: &Backend, frames: &[Vec<u8>]) {
    backend
        .stopped(|| frames.iter().for_each(|frame| assert_eq!(node.data.send(frame).unwrap(), frame.len())));
}

#[test]
fn rx_segments_arrive_joined_and_a_damaged_one_as_it_came() {
    for (kind, len, size) in [(TCPV4, 20 * 1460, 1460), (TCPV6, 20 * 1440, 1440)] {
        let (mut driver, node, backend, _dir) = cable(RX | MRG_RXBUF, "plain");
        let buffers = driver.rx().post(200, 1600);
        driver.rx().kick();
        let (header, mut whole) = frame(kind, &pattern(len), size);
        whole[0] = 2; // not to a group
        let mut segments = cut(&header, &whole);
        send_at_once(&node, &backend, &segments);
        let (got, joined) = take(driver.rx(), &buffers);
        assert_eq!((got.gso_type, got.gso_size, joined.len()), (kind, size, whole.len()));
        assert_eq!(cut(&got, &joined), segments);
        segments[7][700] ^= 1;
        send_at_once(&node, &backend, &segments);
        let (before, damaged, after) =
            (take(driver.rx(), &buffers), take(driver.rx(), &buffers), take(driver.rx(), &buffers));
        assert_eq!(damaged, (Header::NONE, segments[7].clone()));
        assert_eq!(
            [cut(&before.0, &before.1), cut(&after.0, &after.1)].concat(),
            [&segments[..7], &segments[8..]].concat()
        );
        assert!(counters(driver, backend).contains("rx_frames=4 "));
    }
}

#[test]
fn rx_segments_arrive_as_they_came_at_a_guest_that_takes_no_others() {
    let (mut driver, node, backend, _dir) = cable(VERSION_1 | MRG_RXBUF, "plain");
    let buffers = driver.rx().post(200, 1600);
    driver.rx().kick();
    let (header, mut whole) = frame(TCPV4, &pattern(20_000), 1460);
    whole[0] = 2; // not to a group
    let segments = cut(&header, &whole);
    send_at_once(&node, &backend, &segments);
    for segment in segments {
        assert_eq!(take(driver.rx(), &buffers), (Header::NONE, segment));
    }
}

#[test]
fn rx_starved_guest_gets_all_that_was_sent_meanwhile() {
    let (mut driver, node, _backend, _dir) = cable(RX | MRG_RXBUF, "plain");
    // More than the socket holds: it is emptied although nobody takes anything.
    let frames: Vec<_> = (0..600_usize)
        .map(|number| [&[2; 12][..], &[0x88, 0xb5], &pattern(1486 + number % 14)].concat())
        .collect();
    frames.iter().for_each(|frame| assert_eq!(node.data.send(frame).unwrap(), frame.len()));
    let mut buffers = driver.rx().post(200, 1600);
    driver.rx().kick();
    for (number, frame) in frames.iter().enumerate() {
        assert!(take(driver.rx(), &buffers) == (Header::NONE, frame.clone()), "frame {number}");
        let head = u16::try_from(number % 200).unwrap();
        let at = driver.rx().buffer(1600);
        buffers[usize::from(head)] = at;
        driver.rx().descriptor(None, head, at, 1600, WRITE, 0);
        driver.rx().offer(head);
        driver.rx().kick();
    }
}
