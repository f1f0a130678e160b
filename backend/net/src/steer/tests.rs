use vdeplug::TxBuf;

use super::*;
use crate::guest::{Guest, MERGEABLE, event, was_written};
use crate::queue::Queue;

/// UDP from port `from` of one host to port `to` of another, or the other way.
fn datagram(from: u16, to: u16, number: u8) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 1]);
    frame.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
    frame.extend([0, 9, 0, 0, number]);
    frame
}

fn each_frame(frames: &[Vec<u8>], pass: impl FnOnce(&[TxFrame<'_>])) {
    let pieces: Vec<_> = frames.iter().map(|frame| [TxBuf::new(frame)]).collect();
    pass(&pieces.iter().map(|pieces| TxFrame::new(pieces)).collect::<Vec<_>>());
}

fn started(pairs: u16) -> (Inlets, Vec<Guest>) {
    let inlets = Inlets::new("test", pairs);
    let mut guests: Vec<_> = (0..pairs).map(|_| Guest::new()).collect();
    for (guest, inlet) in guests.iter_mut().zip(inlets.iter()) {
        guest.post(250, 2000);
        inlet.start(Queue::new(guest.start(MERGEABLE, 0)));
    }
    (inlets, guests)
}

#[test]
fn flows_stay_on_their_queue_and_spread_over_all() {
    let (inlets, mut guests) = started(4);
    // Ten of each of twenty flows, mixed, in both directions.
    let flows = (0..10).flat_map(|number| (0..20).map(move |flow| (number, 1000 + flow)));
    let frames: Vec<_> = flows
        .map(|(number, port)| match number % 2 {
            0 => datagram(port, 53, number),
            _ => datagram(53, port, number),
        })
        .collect();
    each_frame(&frames, |frames| inlets.deliver(frames));
    let mut total = 0;
    for guest in &mut guests {
        let got: Vec<_> = guest.take().into_iter().map(|(_, frame)| frame).collect();
        assert!(!got.is_empty() && got.len() % 10 == 0, "{} frames of whole flows", got.len());
        let numbers = |port: u16| -> Vec<u8> {
            let is_of = |frame: &&Vec<u8>| frame[34..38].chunks(2).any(|word| word == port.to_be_bytes());
            got.iter().filter(is_of).map(|frame| frame[42]).collect()
        };
        for port in 1000..1020 {
            let numbers = numbers(port);
            assert!(numbers.is_empty() || numbers == (0..10).collect::<Vec<_>>(), "{port}: {numbers:?}");
        }
        total += got.len();
    }
    assert_eq!(total, frames.len());
}

#[test]
fn answers_arrive_where_the_guest_sent() {
    let (inlets, mut guests) = started(3);
    for pair in [0, 2, 1] {
        each_frame(&[datagram(1000, 53, 0)], |frames| inlets.sent(pair, frames));
        each_frame(&[datagram(53, 1000, 1), datagram(53, 1000, 2)], |frames| inlets.deliver(frames));
        assert_eq!(guests[pair].take().len(), 2);
    }
    // Its queue stops: the flow goes on elsewhere.
    inlets.get(1).unwrap().stop();
    each_frame(&[datagram(53, 1000, 1)], |frames| inlets.deliver(frames));
    assert_eq!(guests[0].take().len() + guests[2].take().len(), 1);
}

#[test]
fn reader_that_waits_for_a_full_queue_goes_on_when_that_stops() {
    let (inlets, _guests) = started(2);
    let asker = Arc::new(event());
    let mut frame = datagram(1, 2, 3);
    frame[13] = 6;
    frame.resize(9000, 0);
    for _ in 0..1000 {
        each_frame(std::slice::from_ref(&frame), |frames| inlets.deliver(frames));
        if !inlets.are_ready(&asker) {
            break;
        }
    }
    assert!(!inlets.are_ready(&asker) && !was_written(&asker));
    inlets.get(0).unwrap().stop();
    assert!(was_written(&asker) && inlets.are_ready(&asker));
}

#[test]
fn what_is_no_ip_enters_the_first_queue_that_is_live() {
    let (inlets, mut guests) = started(2);
    let mut frame = datagram(1, 2, 3);
    frame[13] = 6;
    each_frame(&[frame.clone()], |frames| inlets.deliver(frames));
    assert_eq!(guests[0].take().len(), 1);
    inlets.get(0).unwrap().stop();
    each_frame(&[frame.clone()], |frames| inlets.deliver(frames));
    assert_eq!(guests[1].take().len(), 1);
    inlets.get(1).unwrap().stop();
    each_frame(&[frame], |frames| inlets.deliver(frames));
    assert_eq!(inlets.get(0).unwrap().counters().rx_no_queue.get(), 1);
}
