//! Several ports of one process on its own hub or switch.

use std::sync::{Arc, Mutex};

use vdeplug::{Link, Receiver, TxBuf, TxFrame};

use crate::harness::{VdePlug, broadcast, open, readable, receive, send};
use crate::node_peers::{Place, until_peers};

/// A frame between two stations.
fn frame(to: u8, from: u8) -> Vec<u8> {
    let mut frame = broadcast(from, 60);
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, to]);
    frame
}

/// Nothing is there to be received.
fn is_silent(link: &Arc<dyn Link>) -> bool {
    link.recv_one(&mut [0; 100]).expect("a living link").is_none()
}

/// Keeps what it is given.
#[derive(Debug, Default)]
struct Basket(Mutex<Vec<Vec<u8>>>);

impl Receiver for Basket {
    fn deliver(&self, frames: &[TxFrame<'_>]) {
        let copies = frames.iter().map(|frame| {
            let mut copy = vec![0; frame.len()];
            frame.read_at(0, &mut copy);
            copy
        });
        self.0.lock().expect("no panic").extend(copies);
    }
}

#[test]
fn ports_of_a_switch_hear_what_is_for_them() {
    let place = Place::new();
    let first = open(place.at("switch", ""));
    let second = first.another(true).expect("a second port");
    let third = second.another(true).expect("a third port");
    let mut outside = VdePlug::start(&place.at("vde", ""));
    until_peers(&*first, 1);
    send(&*second, &broadcast(2, 60));
    for other in [&first, &third] {
        assert_eq!(receive(&**other), broadcast(2, 60));
    }
    assert_eq!(outside.receive(), broadcast(2, 60));
    assert!(is_silent(&second), "nobody hears himself");
    send(&*third, &frame(2, 3));
    assert_eq!(receive(&*second), frame(2, 3));
    outside.send(&frame(3, 9));
    assert_eq!(receive(&*third), frame(3, 9));
    send(&*first, &frame(9, 1));
    assert_eq!(outside.receive(), frame(9, 1));
    assert!([&first, &second, &third].iter().all(|port| is_silent(port)));
    let (of_first, of_third) = (first.stats(), third.stats());
    assert_eq!((of_first.total.tx_frames, of_first.total.rx_frames), (1, 1));
    assert_eq!((of_third.total.tx_frames, of_third.total.rx_frames), (1, 2));
    assert_eq!(of_third.peers.len(), 1);
}

#[test]
fn ports_of_a_hub_hear_everything() {
    let place = Place::new();
    let first = open(place.at("hub", ""));
    let second = first.another(true).expect("a second port");
    send(&*first, &frame(7, 1));
    assert_eq!(receive(&*second), frame(7, 1));
    send(&*second, &frame(1, 7));
    assert_eq!(receive(&*first), frame(1, 7));
    assert!(is_silent(&first) && is_silent(&second));
}

#[test]
fn only_hubs_and_switches_have_more_ports() {
    for scheme in ["multi", "bonding"] {
        let place = Place::new();
        assert!(open(place.at(scheme, "")).another(true).is_none(), "{scheme}");
    }
    assert!(open("null://").another(true).is_none());
}

#[test]
fn network_lives_as_long_as_a_port_of_it() {
    let place = Place::new();
    let first = open(place.at("switch", ""));
    let second = first.another(true).expect("a second port");
    send(&*first, &broadcast(1, 60));
    assert_eq!(receive(&*second), broadcast(1, 60));
    drop(first);
    let peer = open(place.at("vde", ""));
    send(&*second, &frame(1, 2));
    assert_eq!(receive(&*peer), frame(1, 2), "the address of a port that ended is forgotten");
    drop(second);
    assert!(readable(peer.control_fd().expect("a cable")));
    assert!(peer.check_control().is_err());
    assert!(!place.dir().exists());
}

#[test]
fn receiver_is_given_what_comes_and_nothing_waits() {
    let place = Place::new();
    let first = open(place.at("switch", ""));
    let second = first.another(true).expect("a second port");
    send(&*first, &broadcast(1, 60));
    let basket = Arc::new(Basket::default());
    let receiver: Arc<dyn Receiver> = basket.clone();
    assert!(second.deliver_to(&receiver));
    assert!(!second.deliver_to(&receiver), "one port has one receiver");
    assert_eq!(receive(&*second), broadcast(1, 60), "what came before is still there");
    let (a, b) = (frame(2, 1), frame(2, 1));
    let bufs = [[TxBuf::new(&a)], [TxBuf::new(&b)]];
    let frames = [TxFrame::new(&bufs[0]), TxFrame::new(&bufs[1])];
    assert_eq!(first.send(&frames).expect("alive").taken, 2);
    assert_eq!(*basket.0.lock().expect("no panic"), [a, b], "in the thread of who sent it");
    assert!(is_silent(&second));
    assert_eq!(second.stats().total.rx_frames, 3);
    let multi = Place::new();
    assert!(!open(multi.at("multi", "")).deliver_to(&receiver));
}
