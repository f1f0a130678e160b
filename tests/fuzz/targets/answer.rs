//! What a switch answers to our request (VDE fact 2.4): any bytes are the name of a socket, or are refused.

#![no_main]

use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use vdeplug::fuzzing::{ANSWER_LEN, decode_answer};

fuzz_target!(|bytes: &[u8]| {
    let mut answer = [0; ANSWER_LEN];
    let len = bytes.len().min(ANSWER_LEN);
    answer[..len].copy_from_slice(&bytes[..len]);
    if let Ok(path) = decode_answer(&answer) {
        let name = path.as_os_str().as_bytes();
        assert!(!name.is_empty() && !name.contains(&0));
        assert_eq!(name, &answer[2..2 + name.len()], "the name that was sent");
        assert_eq!(answer[2 + name.len()], 0, "all of it");
    }
});
