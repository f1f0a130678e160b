//! Large frames: what a kernel leaves undone passes through links as it is, or arrives complete where that was asked for.
//! A TCP connection between two namespaces runs through a relay of ours; each kernel checks what it receives.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vdeplug::link::BIG_FRAME_MAX;
use vdeplug::{Header, Link, RxBuf, RxFrame, Sent, TxBuf, TxFrame};

use crate::harness::{LONG, until};
use crate::kernel::{OTHER_MAC, Space, Udp, next, open_in, poll_next, send_with, sent_until};

/// Bytes that go through a connection.
const AMOUNT: usize = 64 << 20;
/// Bytes that are written and read by one call.
const PIECE: usize = 1 << 16;
/// After how many bytes what is sent repeats itself: a prime, so that no place in a frame gets the same bytes again.
const PERIOD: usize = 65_521;

/// Moves frames between two links until it is dropped.
struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    fn start(links: [Arc<dyn Link>; 2]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut rooms = vec![vec![0; BIG_FRAME_MAX]; 16];
            while !stopped.load(Relaxed) {
                let mut fds: Vec<_> = links
                    .iter()
                    .map(|link| PollFd::from_borrowed_fd(link.data_fd(), PollFlags::IN))
                    .collect();
                poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 })).expect("poll");
                forward(&*links[0], &*links[1], &mut rooms);
                forward(&*links[1], &*links[0], &mut rooms);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        let result = self.thread.take().expect("dropped once").join();
        assert!(result.is_ok() || std::thread::panicking(), "the relay failed");
    }
}

/// Moves what is there.
fn forward(from: &dyn Link, to: &dyn Link, rooms: &mut [Vec<u8>]) {
    let bufs: Vec<_> = rooms.iter_mut().map(|room| [RxBuf::new(room)]).collect();
    let mut frames: Vec<_> = bufs.iter().map(|bufs| RxFrame::new(bufs)).collect();
    let got = from.recv(&mut frames).expect("a living link");
    let got: Vec<(Header, usize)> = frames[..got].iter().map(|frame| (frame.header, frame.len)).collect();
    for (room, (header, len)) in rooms.iter().zip(&got) {
        let checked = offload::check(header, &room[..*len], *len);
        assert!(checked.is_ok(), "{header:?} of {len} bytes: {checked:?}");
    }
    let pieces: Vec<_> = rooms.iter().zip(&got).map(|(room, (_, len))| [TxBuf::new(&room[..*len])]).collect();
    let headers = got.iter().map(|(header, _)| *header);
    let batch: Vec<_> = pieces
        .iter()
        .zip(headers)
        .map(|(pieces, header)| TxFrame { header, ..TxFrame::new(pieces) })
        .collect();
    let mut left = &batch[..];
    while !left.is_empty() {
        let Sent { taken, .. } = to.send(left).expect("a living link");
        left = &left[taken..];
        if !left.is_empty() {
            let limit = Timespec::try_from(LONG).expect("fits");
            poll(&mut [PollFd::new(&to.data_fd().as_fd(), PollFlags::OUT)], Some(&limit)).expect("poll");
        }
    }
}

/// Gives the interface in a namespace an address of this number, in IPv4 and IPv6.
fn address(space: &Space, name: &str, number: u8) {
    space.ip(&format!("addr add 10.8.0.{number}/24 dev {name}"));
    space.ip(&format!("addr add fd00::{number}/64 dev {name} nodad"));
    space.ip(&format!("link set dev {name} up"));
}

/// Moves bytes through a TCP connection from one namespace to the other, and back; they have to arrive unchanged.
fn connection(from: &Space, to: &Space, address: &'static str, amount: usize) {
    let bytes: Arc<[u8]> = (0..PERIOD + PIECE).map(|at| (at % PERIOD * 31).to_le_bytes()[1]).collect();
    let expected = bytes.clone();
    let listener = to.run(move || TcpListener::bind((address, 0)).expect("bind"));
    let port = listener.local_addr().expect("bound").port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        stream.set_read_timeout(Some(LONG)).expect("time-out");
        let mut buffer = vec![0; PIECE];
        let mut at = 0;
        while at < amount {
            let got = stream.read(&mut buffer).expect("read");
            assert_ne!(got, 0, "the connection ended early");
            assert!(buffer[..got] == expected[at % PERIOD..][..got], "wrong bytes in {got} from {at} on");
            at += got;
        }
        stream.write_all(&[0; 100_000]).expect("write");
    });
    let mut stream = from.run(move || TcpStream::connect((address, port)).expect("connect"));
    stream.set_read_timeout(Some(LONG)).expect("time-out");
    stream.set_write_timeout(Some(LONG)).expect("time-out");
    for at in (0..amount).step_by(PIECE) {
        stream.write_all(&bytes[at % PERIOD..][..PIECE]).expect("write");
    }
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("read");
    server.join().expect("the bytes arrive");
    assert_eq!(back.len(), 100_000);
}

/// Bytes a frame, of what a link received.
fn average(link: &dyn Link) -> u64 {
    let total = link.stats().total;
    total.rx_bytes / total.rx_frames
}

#[test]
fn veth_large_frames_pass_between_namespaces() {
    let (home, x, y) = (Space::new(), Space::new(), Space::new());
    let links = [(&x, "a"), (&y, "b")]
        .map(|(space, name)| open_in(&home, format!("veth://{name}[netns={}]", space.quoted()), true));
    address(&x, "a", 1);
    address(&y, "b", 2);
    let _relay = Relay::start(links.clone());
    for peer in ["10.8.0.2", "fd00::2"] {
        connection(&x, &y, peer, AMOUNT);
    }
    let stats = links[0].stats().total;
    assert!(stats.rx_bytes > 2 * AMOUNT as u64, "{stats:?}");
    assert!(average(&*links[0]) > 10_000, "{stats:?}");
}

#[test]
fn tap_and_veth_carry_the_same_large_frames() {
    let (home, x, y) = (Space::new(), Space::new(), Space::new());
    let links = [
        open_in(&home, format!("tap://a[netns={}]", x.quoted()), true),
        open_in(&home, format!("veth://b[netns={}]", y.quoted()), true),
    ];
    address(&x, "a", 1);
    address(&y, "b", 2);
    let relay = Relay::start(links.clone());
    connection(&x, &y, "10.8.0.2", AMOUNT / 4);
    connection(&y, &x, "fd00::1", AMOUNT / 4);
    for link in &links {
        assert!(average(&**link) > 5_000, "{:?}", link.stats());
    }
    drop(relay);
}

#[test]
fn veth_carries_a_tunnel_without_its_segments() {
    let (home, x, y) = (Space::new(), Space::new(), Space::new());
    let links = [(&x, "a"), (&y, "b")]
        .map(|(space, name)| open_in(&home, format!("veth://{name}[netns={}]", space.quoted()), true));
    for (space, name, local, remote) in [(&x, "a", 1, 2), (&y, "b", 2, 1)] {
        address(space, name, local);
        let ends = format!("local 10.8.0.{local} remote 10.8.0.{remote}");
        space.ip(&format!("link add vx0 type vxlan id 7 dstport 4789 {ends}"));
        space.ip(&format!("addr add 10.7.0.{local}/24 dev vx0"));
        space.ip("link set vx0 up");
    }
    let _relay = Relay::start(links.clone());
    connection(&x, &y, "10.7.0.2", AMOUNT / 16);
    let stats = links[0].stats().total;
    assert!(average(&*links[0]) <= 1514, "{stats:?}");
}

#[test]
fn links_without_offloads_get_complete_frames() {
    // Each from a link that gets complete frames to one that need not, so that a kernel checks them, and back.
    for (scheme, other) in [("tap", "veth"), ("veth", "veth")] {
        let (home, x, y) = (Space::new(), Space::new(), Space::new());
        let links = [
            open_in(&home, format!("{scheme}://a[netns={}]", x.quoted()), false),
            open_in(&home, format!("{other}://b[netns={}]", y.quoted()), true),
        ];
        address(&x, "a", 1);
        address(&y, "b", 2);
        let _relay = Relay::start(links.clone());
        connection(&x, &y, "10.8.0.2", AMOUNT / 4);
        connection(&x, &y, "fd00::2", AMOUNT / 4);
        let stats = links[0].stats().total;
        assert!((1000..=1514).contains(&average(&*links[0])), "{stats:?}");
        assert_eq!(stats.rx_dropped, 0);
    }
}

#[test]
fn veth_segments_wait_for_rooms() {
    let home = Space::new();
    let a = open_in(&home, "veth://v0[peer=v1/up]", true);
    let b = open_in(&home, "veth://v1", false);
    // A datagram of 20 segments, and one behind it.
    let (header, frame) = Udp::new(OTHER_MAC, &[5; 20_000]).partial();
    let header = Header { gso_type: offload::header::GSO_UDP_L4, gso_size: 1000, ..header };
    assert!(send_with(&*a, header, &frame));
    assert!(send_with(&*a, Header::NONE, &Udp::new(OTHER_MAC, b"behind").complete()));
    let mut lens = HashMap::new();
    until("all came, one at a time", || {
        // Each call has room for one, and the descriptor says that there are more.
        let (header, frame) = next(&*b);
        assert_eq!(header, Header::NONE);
        if frame[..6] == OTHER_MAC {
            *lens.entry(frame.len()).or_insert(0) += 1;
        }
        lens.contains_key(&48)
    });
    assert_eq!(lens, HashMap::from([(1042, 20), (48, 1)]));
}

/// Sends until so many datagrams of this length arrived.
fn receive_each(socket: &UdpSocket, count: usize, len: usize, send: impl FnMut()) {
    let (mut room, mut got) = ([0; 2000], 0);
    let arrived = || {
        while socket.recv(&mut room).is_ok_and(|this| this == len) {
            got += 1;
        }
        (got >= count).then_some(())
    };
    sent_until(send, arrived);
}

/// Has the kernel cut what is sent into datagrams of this length.
fn set_segment_len(socket: &UdpSocket, len: libc::c_int) {
    let size = libc::socklen_t::try_from(size_of_val(&len)).expect("short");
    let fd = socket.as_raw_fd();
    // SAFETY: the option is a number, given by a pointer to a live one with its size.
    let result =
        unsafe { libc::setsockopt(fd, libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const len).cast(), size) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn what_the_kernel_refuses_is_done_here() {
    let (home, there) = (Space::new(), Space::new());
    for (locator, name) in [("tap://t0", "t0"), ("veth://v0", "v0")] {
        let link = open_in(&home, format!("{locator}[netns={}/up]", there.quoted()), true);
        there.ip(&format!("addr add 10.9.0.1/24 dev {name}"));
        let socket = there.socket();
        // The length of the headers is a hint, which kernels check and refuse.
        let (header, frame) = Udp::new(there.mac(name), &[5; 20_000]).partial();
        let header =
            Header { gso_type: offload::header::GSO_UDP_L4, gso_size: 1000, hdr_len: 60_000, ..header };
        receive_each(&socket, 20, 1000, || assert!(send_with(&*link, header, &frame)));
        let (header, frame) = Udp::new(there.mac(name), b"one").partial();
        receive_each(&socket, 1, 3, || {
            assert!(send_with(&*link, Header { hdr_len: 60_000, ..header }, &frame))
        });
        there.ip(&format!("addr del 10.9.0.1/24 dev {name}"));
    }
}

#[test]
fn udp_of_the_kernel_comes_whole() {
    let (home, there) = (Space::new(), Space::new());
    for (locator, name) in [("tap://t0", "t0"), ("veth://v0", "v0")] {
        for (offloads, lens) in [(true, vec![42 + 20_000]), (false, vec![42 + 1000; 20])] {
            let link = open_in(&home, format!("{locator}[netns={}/up]", there.quoted()), offloads);
            there.address(name);
            let socket = there.socket();
            set_segment_len(&socket, 1000);
            let mut got = Vec::new();
            sent_until(
                || assert_eq!(socket.send(&[5; 20_000]).expect("send"), 20_000),
                || {
                    got.extend(std::iter::from_fn(|| poll_next(&*link)).map(|(_, frame)| frame.len()));
                    got.windows(lens.len()).any(|window| window == lens).then_some(())
                },
            );
            drop(link);
            until("the interface goes", || there.interfaces().is_empty());
        }
    }
}

#[test]
fn veth_frames_that_fit_nothing_are_dropped_and_counted() {
    let home = Space::new();
    let a = open_in(&home, "veth://v0[peer=v1/up]", true);
    let links = [open_in(&home, "veth://v1", true), open_in(&home, "veth://v1", false)];
    let (partial, frame) = Udp::new(OTHER_MAC, &[5; 1000]).partial();
    let long = vec![0xff; 70_000];
    for (header, frame) in [
        (Header::NONE, &frame[..13]),
        (Header::NONE, &long[..2000]),
        (Header { gso_type: 1, gso_size: 100, ..partial }, &long[..]),
        (Header { gso_type: 77, gso_size: 100, ..partial }, &frame[..]),
        (Header { csum_start: 60_000, ..partial }, &frame[..]),
    ] {
        let pieces = [TxBuf::new(frame)];
        let sent = a.send(&[TxFrame { header, ..TxFrame::new(&pieces) }]).expect("alive");
        assert_eq!((sent.taken, sent.dropped), (1, 1), "{header:?}");
    }
    // More than a socket holds, which nobody takes.
    let good = Udp::new(OTHER_MAC, &[5; 1400]).complete();
    for _ in 0..20_000 {
        assert!(send_with(&*a, Header::NONE, &good));
    }
    for link in &links {
        let before = link.stats().total;
        assert!(before.rx_dropped > 1000 && before.rx_frames == 0, "{before:?}");
        let mut rooms = vec![vec![0; 1514]; 64];
        let bufs: Vec<_> = rooms.iter_mut().map(|room| [RxBuf::new(room)]).collect();
        let mut frames: Vec<_> = bufs.iter().map(|bufs| RxFrame::new(bufs)).collect();
        // A short batch means that there is nothing left.
        while link.recv(&mut frames).expect("alive") == frames.len() {}
        assert_eq!(link.recv(&mut frames).expect("alive"), 0);
        let after = link.stats().total;
        assert!(after.rx_frames + after.rx_dropped >= 20_000 && after.rx_frames > 1000, "{after:?}");
    }
}
