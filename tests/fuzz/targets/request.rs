//! What a client sends on a node's `ctl` (VDE fact 2.3). Input: a byte, and the request; the byte is where it is cut, for
//! it may arrive in two parts.

#![no_main]

use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use vdeplug::fuzzing::{
    ANSWER_LEN, ClientName, REQUEST_MAX, Reading, Request, decode, decode_answer, encode_answer,
};

fuzz_target!(|input: &[u8]| {
    let Some((cut, bytes)) = input.split_first() else { return };
    let whole = decode(bytes);
    match &whole {
        Reading::Whole(request) => check(request, bytes),
        Reading::Part => assert!(bytes.len() < REQUEST_MAX, "who waits for more has room for it"),
        Reading::Bad(reason) => assert!(!reason.is_empty()),
    }
    let first = &bytes[..usize::from(*cut).min(bytes.len())];
    if let Reading::Bad(_) = decode(first) {
        assert!(matches!(whole, Reading::Bad(_)), "more bytes make nothing good");
    }
});

fn check(request: &Request, bytes: &[u8]) {
    assert!(bytes.len() <= REQUEST_MAX);
    assert!(!request.description.contains(char::is_control), "it becomes part of a line");
    assert!(!request.big || request.description.ends_with(" gso=1"));
    match &request.data_socket {
        ClientName::Abstract(name) => assert!(!name.is_empty() && name.len() < 108),
        ClientName::Path(path) => {
            assert!(path.is_absolute() && !path.as_os_str().as_bytes().contains(&0));
            // The same field is in an answer.
            let answer: [u8; ANSWER_LEN] = encode_answer(path);
            assert_eq!(decode_answer(&answer).as_ref(), Ok(path));
        }
    }
}
