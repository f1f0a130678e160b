//! `udp://`, with ours and Debian's `vde_plug` at the ends, and `seqpacket://`.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use vdeplug::{LinkError, OpenErrorKind, RxBuf, RxFrame, Sent, TxBuf, TxFrame};

use crate::harness::{VdePlug, broadcast, impatient, in_child, open, readable, receive, send, until};

/// Two ports that were free just now.
fn ports(host: &str) -> (u16, u16) {
    let socket = || UdpSocket::bind((host, 0)).expect("bind");
    let (a, b) = (socket(), socket());
    let port = |socket: &UdpSocket| socket.local_addr().expect("bound").port();
    (port(&a), port(&b))
}

#[test]
fn two_of_ours() {
    // Alone: what is closed here may stay open for a moment in a child of another test.
    in_child(
        "udp::two_of_ours",
        |command| command,
        || {
            for (written, host) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("localhost", "localhost")]
            {
                let (p, q) = ports(host);
                let a = open(format!("udp://{written}:{p}->{written}:{q}"));
                let b = open(format!("udp://{written}:{q}->{written}:{p}"));
                for len in [14, 60, 1514, 9234] {
                    send(&*a, &broadcast(1, len));
                    assert_eq!(receive(&*b), broadcast(1, len));
                    send(&*b, &broadcast(2, len));
                    assert_eq!(receive(&*a), broadcast(2, len));
                }
            }
        },
    );
}

#[test]
fn vde_plug_at_the_other_end() {
    // Alone: what is closed here may stay open for a moment in a child of another test.
    in_child(
        "udp::vde_plug_at_the_other_end",
        |command| command,
        || {
            let (p, q) = ports("127.0.0.1");
            let ours = open(format!("udp://{p}->127.0.0.1:{q}"));
            let mut plug = VdePlug::start(&format!("udp://{q}->127.0.0.1:{p}"));
            plug.send(&broadcast(1, 1514));
            assert_eq!(receive(&*ours), broadcast(1, 1514));
            send(&*ours, &broadcast(2, 9000));
            assert_eq!(plug.receive(), broadcast(2, 9000));
            plug.kill();
        },
    );
}

#[test]
fn nobody_at_the_other_end_is_no_end() {
    // Alone: what is closed here may stay open for a moment in a child of another test.
    in_child(
        "udp::nobody_at_the_other_end_is_no_end",
        |command| command,
        || {
            let (p, q) = ports("127.0.0.1");
            let ours = open(format!("udp://127.0.0.1:{p}->127.0.0.1:{q}"));
            let frame = broadcast(1, 60);
            let pieces = [TxBuf::new(&frame)];
            for _ in 0..20 {
                // A refusal in the middle of a batch may split it.
                let mut left = 70;
                for _ in 0..=70 {
                    left -= ours.send(&[TxFrame::new(&pieces); 70][..left]).expect("no end").taken;
                }
                assert_eq!(left, 0);
                assert!(readable(ours.data_fd()), "the refusal shows");
                let mut room = [0; 100];
                let bufs = [RxBuf::new(&mut room)];
                assert_eq!(ours.recv(&mut [RxFrame::new(&bufs)]).expect("no end"), 0);
            }
            let peer = UdpSocket::bind(("127.0.0.1", q)).expect("bind");
            peer.connect(("127.0.0.1", p)).expect("connect");
            peer.set_nonblocking(true).expect("non-blocking");
            let mut room = [0; 100];
            until("a frame arrives", || {
                ours.send(&[TxFrame::new(&pieces)]).expect("no end");
                peer.recv(&mut room).is_ok_and(|got| room[..got] == frame)
            });
            // Another's datagram is not taken, so the peer's comes first.
            let other = UdpSocket::bind(("127.0.0.1", 0)).expect("bind");
            other.send_to(&broadcast(9, 60), ("127.0.0.1", p)).expect("send");
            peer.send(&broadcast(2, 60)).expect("send");
            assert_eq!(receive(&*ours), broadcast(2, 60));
        },
    );
}

#[test]
fn frames_without_a_route_are_lost() {
    // A broadcast address needs an option that is not set: the kernel refuses each frame.
    let error = vdeplug::open("udp://0->255.255.255.255:9", &impatient()).expect_err("not allowed");
    assert!(error.to_string().contains("cannot connect to 255.255.255.255:9"), "{error}");
}

#[test]
fn bad_locators_are_named() {
    let taken = UdpSocket::bind("127.0.0.1:0").expect("bind");
    let port = taken.local_addr().expect("bound").port();
    for (locator, message, kind) in [
        (
            "udp://5000".to_owned(),
            "character 5: there is no -> between source and destination",
            OpenErrorKind::Usage,
        ),
        ("udp://5000->host".to_owned(), "character 7: there should be a port", OpenErrorKind::Usage),
        ("udp://127.0.0.1:0->[::1]:9".to_owned(), "no addresses of the same family", OpenErrorKind::Usage),
        ("udp://0->no.such.invalid:9".to_owned(), "cannot find the address of", OpenErrorKind::NotFound),
        (format!("udp://127.0.0.1:{port}->127.0.0.1:9"), "cannot bind 127.0.0.1:", OpenErrorKind::Usage),
        ("udp://192.0.2.1:0->127.0.0.1:9".to_owned(), "cannot bind 192.0.2.1:0", OpenErrorKind::Usage),
    ] {
        let error = vdeplug::open(&locator, &impatient()).expect_err(&locator);
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.kind(), kind, "{error}");
        assert_ne!(error.errno(), 0, "{error}");
    }
}

#[test]
fn inherited_sockets_are_used_and_checked() {
    for kind in [SocketType::SEQPACKET, SocketType::DGRAM] {
        let (a, b) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("pair");
        let link = open(format!("seqpacket://{}", a.as_raw_fd()));
        let other = open(format!("seqpacket://{}", b.as_raw_fd()));
        drop((a, b));
        send(&*link, &broadcast(1, 9234));
        assert_eq!(receive(&*other), broadcast(1, 9234));
        send(&*other, &broadcast(2, 60));
        drop(other);
        assert_eq!(receive(&*link), broadcast(2, 60));
        if kind == SocketType::SEQPACKET {
            assert!(readable(link.control_fd().expect("seqpacket has one")));
            assert!(matches!(link.check_control(), Err(LinkError::Closed)));
            let (mut one, mut two) = ([0; 60], [0; 60]);
            let bufs = [[RxBuf::new(&mut one)], [RxBuf::new(&mut two)]];
            let mut frames = bufs.each_ref().map(|bufs| RxFrame::new(bufs));
            assert!(matches!(link.recv(&mut frames), Err(LinkError::Closed)));
        }
        let frame = broadcast(1, 60);
        assert!(matches!(link.send(&[TxFrame::new(&[TxBuf::new(&frame)])]), Err(LinkError::Closed)));
    }
}

/// A frame that is too large for the socket is lost alone. Nor may the batch end there: the socket never was full, so who
/// waits for it to become writable again, as an edge, would wait for ever.
#[test]
fn frame_that_the_socket_refuses_stops_no_batch() {
    let (a, b) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("pair");
    // The kernel doubles it and keeps a little for itself.
    set_socket_send_buffer_size(&a, 4096).expect("set");
    let [link, other] = [&a, &b].map(|socket| open(format!("seqpacket://{}", socket.as_raw_fd())));
    let (good, large) = (broadcast(1, 60), broadcast(2, 9000));
    let (good_pieces, large_pieces) = ([TxBuf::new(&good)], [TxBuf::new(&large)]);
    let batch = [&good_pieces, &large_pieces, &good_pieces].map(|pieces| TxFrame::new(pieces));
    let sent = link.send(&batch).expect("alive");
    assert_eq!(sent, Sent { taken: 3, dropped: 1, ..Sent::default() });
    for _ in 0..2 {
        assert_eq!(receive(&*other), good);
    }
}

#[test]
fn descriptors_that_are_no_network_are_named() {
    let socket = |kind| rustix::net::socket(AddressFamily::UNIX, kind, None).expect("socket");
    let (stream, alone) = (socket(SocketType::STREAM), socket(SocketType::SEQPACKET));
    let file = std::fs::File::open("/dev/null").expect("open");
    for (word, message) in [
        ("".to_owned(), "\"\" is no number of a descriptor"),
        ("-1".to_owned(), "\"-1\" is no number"),
        ("three".to_owned(), "\"three\" is no number"),
        ("1000000".to_owned(), "descriptor 1000000 is not open"),
        (file.as_raw_fd().to_string(), "is no socket"),
        (stream.as_raw_fd().to_string(), "is a socket that does not keep frames apart"),
        (alone.as_raw_fd().to_string(), "is a socket that is not connected"),
    ] {
        let error = vdeplug::open(&format!("seqpacket://{word}"), &impatient()).expect_err(&word);
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.kind(), OpenErrorKind::Usage);
    }
}
