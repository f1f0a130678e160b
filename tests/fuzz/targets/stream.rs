//! Frames in a byte stream, in pieces of any length. Input: a byte, and the stream; the byte is how the stream
//! is cut. However that is, what is found is what a reader of the whole stream finds.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vdeplug::stream::{Decoder, Event, FRAME_MAX};

#[derive(Debug, PartialEq)]
enum Found {
    Frame(Vec<u8>),
    TooLong(usize),
}

/// The model: the whole stream, taken apart as it says in VDE fact 3.8.
fn model(mut stream: &[u8]) -> Vec<Found> {
    let mut found = Vec::new();
    while let [high, low, rest @ ..] = stream {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let whole = rest.get(..len);
        if len > FRAME_MAX {
            found.push(Found::TooLong(len));
        } else if let Some(frame) = whole.filter(|frame| !frame.is_empty()) {
            found.push(Found::Frame(frame.to_vec()));
        }
        stream = rest.get(len..).unwrap_or_default();
    }
    found
}

fuzz_target!(|input: &[u8]| {
    let Some((how, stream)) = input.split_first() else { return };
    let mut decoder = Decoder::default();
    let (mut found, mut rest, mut step) = (Vec::new(), stream, usize::from(*how));
    while !rest.is_empty() {
        // Lengths that follow no pattern, 1 and 2 among them often.
        step = (step * 7 + 3) % 251;
        let (piece, behind) = rest.split_at((1 + step % (1 + usize::from(*how))).min(rest.len()));
        rest = behind;
        decoder.feed(piece, |event| {
            found.push(match event {
                Event::Frame(frame) => Found::Frame(frame.to_vec()),
                Event::TooLong { len, at_hand } => {
                    assert!(at_hand <= piece.len());
                    Found::TooLong(len)
                }
            });
        });
    }
    assert_eq!(found, model(stream));
});
