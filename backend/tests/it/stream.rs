//! A NIC that is not virtio: frames on a stream socket, as QEMU's `-netdev stream` writes and reads them.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use virtio_net::ports::PATIENCE;

use crate::driver::Driver;
use crate::offload::{self, TCPV4, TX, assert_segments, pattern};
use crate::world::{Backend, LIMIT, Station, Switch, wait_for};

/// QEMU's end of the socket.
struct Qemu(UnixStream);

impl Qemu {
    fn connect(path: &Path) -> Self {
        let socket = wait_for("the back end's socket", || UnixStream::connect(path).ok());
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Self(socket)
    }

    fn send(&mut self, frame: &[u8]) {
        self.0.write_all(&encode(frame)).unwrap();
    }

    fn receive(&mut self) -> Vec<u8> {
        let mut prefix = [0; 4];
        self.0.read_exact(&mut prefix).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
        self.0.read_exact(&mut frame).unwrap();
        frame
    }

    /// Waits for the other side to end the connection.
    fn wait_end(&mut self) {
        assert_eq!(self.0.read(&mut [0; 1]).unwrap(), 0);
    }
}

fn encode(frame: &[u8]) -> Vec<u8> {
    [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], frame].concat()
}

/// A broadcast frame of `len` bytes with a number in it.
fn frame(number: u16, len: usize) -> Vec<u8> {
    let mut frame = vec![number.to_be_bytes()[1]; len];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&number.to_be_bytes());
    frame
}

fn backend(socket: &Path, links: &[&Path]) -> Backend {
    let mut args = vec!["--protocol", "stream", "--log-level", "info"];
    args.extend(["--socket-path", socket.to_str().unwrap()]);
    args.extend(links.iter().flat_map(|link| ["--link", link.to_str().unwrap()]));
    Backend::start(&args, socket)
}

/// The next line of the log that has `word` in it.
fn line_with(backend: &mut Backend, word: &str) -> String {
    loop {
        let line = backend.stderr_line();
        assert!(!line.is_empty(), "the log ended before {word}");
        if line.contains(word) {
            return line;
        }
    }
}

fn received(station: &Station) -> Vec<u8> {
    station.receive(LIMIT).expect("a frame in time")
}

#[test]
fn frames_pass_whole_and_short_ones_are_filled_up() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let _backend = backend(&socket, &[&switch.path]);
    let station = switch.station();
    let mut qemu = Qemu::connect(&socket);
    // In one piece, several in one, and a byte at a time.
    qemu.send(&frame(1, 42));
    assert_eq!(received(&station), frame(1, 42));
    qemu.0
        .write_all(&[encode(&frame(2, 60)), encode(&frame(3, 1514)), encode(&frame(4, 14))].concat())
        .unwrap();
    for (number, len) in [(2, 60), (3, 1514), (4, 14)] {
        assert_eq!(received(&station), frame(number, len));
    }
    for byte in encode(&frame(5, 60)) {
        qemu.0.write_all(&[byte]).unwrap();
    }
    assert_eq!(received(&station), frame(5, 60));
    // A long one first, of which nothing may be in the padding of the short one.
    station.send(&frame(6, 1514));
    assert_eq!(qemu.receive(), frame(6, 1514));
    station.send(&frame(7, 42));
    let mut padded = frame(7, 42);
    padded.resize(60, 0);
    assert_eq!(qemu.receive(), padded);
}

#[test]
fn one_end_after_the_other_is_served_to_its_last_frame() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let mut backend = backend(&socket, &[&switch.path]);
    let station = switch.station();
    for number in 0..20 {
        let mut qemu = Qemu::connect(&socket);
        let mut next = Qemu::connect(&socket);
        qemu.send(&frame(number, 60));
        assert_eq!(received(&station), frame(number, 60));
        station.send(&frame(number, 61));
        let mut got = qemu.receive();
        if number > 0 && got == frame(number - 1, 62) {
            got = qemu.receive();
        }
        assert_eq!(got, frame(number, 61));
        // Gone with a frame on its way, one that is not whole, and one that it never read, which may be the next one's.
        station.send(&frame(number, 62));
        qemu.send(&frame(number, 63));
        qemu.0.write_all(&encode(&frame(number, 64))[..20]).unwrap();
        drop(qemu);
        assert_eq!(received(&station), frame(number, 63));
        next.send(&frame(number, 65));
        assert_eq!(received(&station), frame(number, 65));
    }
    assert_eq!(backend.terminate(), Some(0));
}

#[test]
fn lengths_that_lie_end_the_connection_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let mut backend = backend(&socket, &[&switch.path]);
    let station = switch.station();
    for lie in [69_633_u32, 0x7fff_ffff, u32::MAX] {
        let mut qemu = Qemu::connect(&socket);
        for odd in [0, 13, 9_300, 69_632] {
            qemu.0.write_all(&encode(&vec![0xff; odd])).unwrap();
        }
        qemu.send(&frame(1, 60));
        qemu.0.write_all(&lie.to_be_bytes()).unwrap();
        assert_eq!(received(&station), frame(1, 60));
        qemu.wait_end();
        let line = line_with(&mut backend, "announced");
        assert!(line.contains(&lie.to_string()) && line.contains("69632"), "{line}");
        let line = line_with(&mut backend, "tx_frames");
        assert!(line.contains("tx_frames=1 ") || lie > 69_633, "{line}");
    }
    assert_eq!(backend.terminate(), Some(0));
}

/// Resident memory in KiB.
fn memory(backend: &Backend) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", backend.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn qemu_that_does_not_read_costs_a_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let backend = backend(&socket, &[&switch.path]);
    let station = switch.station();
    let mut qemu = Qemu::connect(&socket);
    station.send(&frame(0, 60));
    assert_eq!(qemu.receive(), frame(0, 60));
    let before = memory(&backend);
    for number in 0..20_000 {
        station.send(&frame(number, 1514));
    }
    // The other way is open all the while.
    qemu.send(&frame(9, 60));
    assert_eq!(received(&station), frame(9, 60));
    let grown = memory(&backend).saturating_sub(before);
    assert!(grown < 4096, "{grown} KiB more");
    // What was kept comes whole and in order, and then what is sent once there is room again.
    let mut last = 0;
    while last < 20_000 {
        let got = qemu.receive();
        let number = u16::from_be_bytes([got[12], got[13]]);
        assert!(number >= last && got == frame(number, 1514), "{number} came after {last}");
        last = number;
        station.send(&frame(20_000, 1514));
    }
}

#[test]
fn full_network_makes_qemu_wait_and_loses_nothing() {
    wait_for("a network that is full for less than the second that it may be", || {
        full_network_for_less_than_a_second().then_some(())
    });
}

/// False: this machine was so busy that it took longer, and then frames may be lost.
fn full_network_for_less_than_a_second() -> bool {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let mut backend = backend(&socket, &[&switch.path]);
    let mut qemu = Qemu::connect(&socket);
    let begun = Instant::now();
    switch.signal(Signal::STOP);
    qemu.0.set_nonblocking(true).unwrap();
    let bytes = encode(&frame(1, 1514));
    let (mut written, mut unfinished) = (0_usize, 0);
    wait_for("the socket to be full for good", || {
        let before = written;
        for _ in 0..100 {
            match qemu.0.write(&bytes[unfinished..]) {
                Ok(count) => {
                    written += count;
                    unfinished = (unfinished + count) % bytes.len();
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
        assert!(written < 64 << 20, "{written} bytes and no end");
        (written == before).then_some(())
    });
    switch.signal(Signal::CONT);
    // The rest is for the switch to read something.
    if begun.elapsed() > PATIENCE / 2 {
        return false;
    }
    qemu.0.set_nonblocking(false).unwrap();
    qemu.0.write_all(&bytes[unfinished..]).unwrap();
    let mut count = (written + bytes.len() - unfinished) / bytes.len();
    // What the switch itself loses on the way to a station is not ours, so the last one is said again.
    let station = switch.station();
    wait_for("the last frame", || {
        qemu.send(&frame(2, 60));
        count += 1;
        let frames = std::iter::from_fn(|| station.receive(Duration::from_millis(100)));
        frames.take(1000).any(|got| got == frame(2, 60)).then_some(())
    });
    drop(qemu);
    let line = line_with(&mut backend, "tx_frames");
    assert!(line.contains(&format!(" tx_frames={count} ")), "{line} after {count} frames");
    assert!(!line.contains("tx_link_full"), "{line}");
    true
}

#[test]
fn full_network_does_not_stop_the_others_and_a_lost_one_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (slow, quick) = (Switch::start(&dir.path().join("slow")), Switch::start(&dir.path().join("quick")));
    let socket = dir.path().join("n0");
    let mut backend = backend(&socket, &[&slow.path, &quick.path]);
    let station = quick.station();
    let mut qemu = Qemu::connect(&socket);
    slow.signal(Signal::STOP);
    for number in 0..5_000 {
        qemu.send(&frame(number, 1514));
        assert_eq!(received(&station), frame(number, 1514));
    }
    slow.signal(Signal::CONT);
    let path = quick.path.clone();
    drop((station, quick));
    line_with(&mut backend, "is down");
    let quick = Switch::start(&path);
    line_with(&mut backend, "is up again");
    let station = quick.station();
    qemu.send(&frame(1, 60));
    assert_eq!(received(&station), frame(1, 60));
    station.send(&frame(2, 60));
    assert_eq!(qemu.receive(), frame(2, 60));
    drop(qemu);
    let line = line_with(&mut backend, "tx_frames");
    assert!(line.contains("tx_link_full"), "{line}");
}

#[test]
fn frames_of_a_virtio_nic_beside_it_come_cut_and_complete() {
    let dir = tempfile::tempdir().unwrap();
    let (virtio, plain) = (dir.path().join("virtio"), dir.path().join("plain"));
    let link = format!("link=switch://{}", dir.path().join("net").display());
    let nics = [
        format!("socket-path={},{link}", virtio.display()),
        format!("socket-path={},{link},protocol=stream", plain.display()),
    ];
    let _backend = Backend::start(&["--nic", &nics[0], "--nic", &nics[1]], &plain);
    let mut driver = Driver::connect(&virtio, TX, 1);
    let mut qemu = Qemu::connect(&plain);
    let payload = pattern(60_000);
    let (header, big) = offload::frame(TCPV4, &payload, 1460);
    driver.tx().send(&header.encode(0), &big, 4096);
    let segments: Vec<_> = (0..payload.len().div_ceil(1460)).map(|_| qemu.receive()).collect();
    assert_segments(&segments, &payload, 1460);
}

#[test]
fn frames_one_at_a_time_never_wait_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let _backend = backend(&socket, &[&switch.path]);
    let station = switch.station();
    let mut qemu = Qemu::connect(&socket);
    for number in 0..5_000 {
        qemu.send(&frame(number, 60));
        assert_eq!(received(&station), frame(number, 60));
        station.send(&frame(number, 61));
        assert_eq!(qemu.receive(), frame(number, 61));
    }
}
