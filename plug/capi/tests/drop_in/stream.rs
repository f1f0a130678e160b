//! `vdestream_*`, alone and in `vde_plug`, which reads and writes its standard streams with it.

use std::io::{Read, Write};
use std::process::Stdio;

use rustix::io::ioctl_fionread;
use rustix::pipe::fcntl_setpipe_size;

use crate::harness::{RealSwitch, broadcast, until};
use crate::library::{BOTH, Library, Original, Ours, Program};
use crate::process::{Plug, Running, framed};

/// A frame of this length, whose bytes count on from this one.
fn counting(from: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| from.wrapping_add(at.to_le_bytes()[0])).collect()
}

/// What `c/stream.c` prints when it is fed these bytes in steps of this size.
fn read(program: &Program, library: Library, step: usize, bytes: &[u8]) -> Vec<String> {
    let mut command = program.on(library);
    let command = command.arg("read").arg(step.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = Running::start(command);
    running.child.stdin.take().expect("a pipe").write_all(bytes).expect("write");
    let mut text = String::new();
    running.child.stdout.take().expect("a pipe").read_to_string(&mut text).expect("read");
    assert!(running.wait().success(), "step {step}: {text}");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn c_26_lengths_of_a_stream() {
    let program = Program::compile("stream", Ours, &[]);
    let mut bytes = Vec::new();
    for len in [0, 60, 0, 0, 9234, 14, 9236, 1] {
        bytes.extend(framed(&counting(7, len)));
    }
    let frames = ["frame 60", "frame 9234", "frame 14", "frame 9236", "frame 1"];
    // The original does not survive steps that end between the two bytes of a length.
    assert_eq!(read(&program, Original, bytes.len(), &bytes), frames);
    for step in [bytes.len(), 4096, 61, 7, 2, 1] {
        assert_eq!(read(&program, Ours, step, &bytes), frames, "step {step}");
    }
}

#[test]
fn c_26_too_long_a_frame_is_told_and_skipped() {
    let program = Program::compile("stream", Ours, &[]);
    for announced in [9237_u16, u16::MAX] {
        let mut bytes = framed(&counting(1, 60));
        bytes.extend(announced.to_be_bytes());
        bytes.extend(counting(2, announced.into()));
        bytes.extend(framed(&counting(3, 61)));
        let there = bytes.len() - 62 - 2;
        let told = format!("size {there} expected size {announced}");
        assert_eq!(read(&program, Ours, bytes.len(), &bytes), ["frame 60", &told, "frame 61"]);
        for step in [4096, 1000, 3, 1] {
            let got = read(&program, Ours, step, &bytes);
            let (first, rest) = got.split_first().expect("lines");
            assert_eq!(
                (first.as_str(), rest.len(), rest[1].as_str()),
                ("frame 60", 2, "frame 61"),
                "{got:?}"
            );
            assert!(rest[0].ends_with(&format!(" expected size {announced}")), "{got:?}");
        }
        // The original says the same and loses what the same read brought behind it.
        assert_eq!(read(&program, Original, bytes.len(), &bytes), ["frame 60", &told]);
    }
}

#[test]
fn frames_are_written_whole_whatever_the_pipe_takes() {
    let program = Program::compile("stream", Ours, &[]);
    let lens = [0_usize, 1, 60, 1514, 9234, 9236, 9237, 70000, 9000, 9000, 9236, 14];
    let words: Vec<String> = lens.iter().map(usize::to_string).collect();
    let sent = lens.iter().filter(|len| **len <= 9236);
    let expected: Vec<u8> = sent.flat_map(|&len| framed(&counting(0, len))).collect();
    // Of a frame that a pipe takes in part the original does not write the rest.
    for (library, mode) in [(Original, "write"), (Ours, "write"), (Ours, "write-nonblocking")] {
        let mut command = program.on(library);
        let (stdout, program_end) = std::io::pipe().expect("a pipe");
        fcntl_setpipe_size(&stdout, 4096).expect("a small one");
        let mut running = Running::start(command.arg(mode).args(&words).stdout(program_end));
        // It holds the other end of the pipe.
        drop(command);
        let mut bytes = Vec::new();
        let mut stdout = stdout;
        stdout.read_to_end(&mut bytes).expect("read");
        assert!(running.wait().success(), "{library:?} {mode}");
        assert!(bytes == expected, "{library:?} {mode}: {} of {} bytes", bytes.len(), expected.len());
    }
}

#[test]
fn c_27_vde_plug_is_fed_byte_by_byte() {
    let switch = RealSwitch::start();
    let mut feeder = Plug::start(Ours, &[&switch.at("")]);
    let listener = Plug::start(Ours, &[&switch.at("")]);
    until("both are plugged in", || switch.plugs() == 2);
    for mark in 1..4 {
        for byte in framed(&broadcast(mark, 60)) {
            feeder.write(&[byte]);
            until("the byte is read", || ioctl_fionread(feeder.stdin()).expect("FIONREAD") == 0);
        }
        listener.receive(&broadcast(mark, 60));
    }
}

#[test]
fn stream_of_vde_plug_has_the_same_bytes_on_both() {
    for library in BOTH {
        let switch = RealSwitch::start();
        let mut feeder = Plug::start(library, &[&switch.at("")]);
        let listener = Plug::start(library, &[&switch.at("")]);
        until("both are plugged in", || switch.plugs() == 2);
        let lens = [14, 60, 61, 1514, 1518];
        let bytes: Vec<u8> = lens.iter().flat_map(|&len| framed(&broadcast(1, len))).collect();
        feeder.write(&bytes);
        for len in lens {
            listener.receive(&broadcast(1, len));
        }
        assert_eq!(feeder.left_over(), 0, "nobody hears himself");
    }
}
