//! Cables between two programs, in both forms, with ours and Debian's `vde_plug` at the ends. Debian's knows the datagram
//! form alone; the other form's second party is played by a socket here.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind, connect,
    listen, recv, send as send_to, socket_with,
};
use vdeplug::{Link, OpenError, OpenErrorKind, OpenOptions, PtpError, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::harness::{
    VdePlug, broadcast, dead_datagram, impatient, in_child, names, open, open_dir, readable, receive, send,
    until,
};

/// What a program's event loop does when nothing but the control descriptor wakes it.
pub fn tend(link: &dyn Link) {
    let control = link.control_fd().expect("ptp has one");
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(control, rustix::event::PollFlags::IN)];
    if rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).expect("poll") > 0 {
        link.check_control().expect("a living link");
    }
}

/// Sends until a frame arrives at the other end, whose owner does nothing else than to watch its descriptors.
pub fn pass(from: &dyn Link, frame: &[u8], to: &dyn Link) {
    let mut room = [0; 10_000];
    let mut len = 0;
    until("the frame arrives", || {
        tend(to);
        tend(from);
        from.send(&[TxFrame::new(&[TxBuf::new(frame)])]).expect("a living link");
        let bufs = [RxBuf::new(&mut room)];
        let mut frames = [RxFrame::new(&bufs)];
        let got = to.recv(&mut frames).expect("a living link");
        len = frames[0].len;
        got == 1
    });
    assert_eq!(room[..len], *frame);
    drain(to);
}

/// Throws away what waits.
pub fn drain(link: &dyn Link) {
    let mut room = [0; 10_000];
    let bufs = [RxBuf::new(&mut room)];
    while link.recv(&mut [RxFrame::new(&bufs)]).expect("a living link") > 0 {}
}

fn refused(locator: &str) -> PtpError {
    match vdeplug::open(locator, &impatient()).expect_err(locator) {
        OpenError::Ptp(error) => error,
        other => panic!("{locator}: {other}"),
    }
}

fn both_ways(a: &dyn Link, b: &dyn Link) {
    for len in [14, 60, 1514, 9234] {
        send(a, &broadcast(1, len));
        assert_eq!(receive(b), broadcast(1, len));
        send(b, &broadcast(2, len));
        assert_eq!(receive(a), broadcast(2, len));
    }
}

#[test]
fn two_of_ours_and_no_third() {
    for form in ["", "[form=datagram]", "[form=seqpacket]"] {
        let home = open_dir();
        let locator = format!("ptp://{}/p{form}", home.path().display());
        let a = open(&locator);
        let second = {
            let locator = locator.clone();
            std::thread::spawn(move || open(locator))
        };
        until("the second opens", || {
            tend(&*a);
            second.is_finished()
        });
        let b = second.join().expect("the second");
        both_ways(&*a, &*b);
        let third = {
            let locator = locator.clone();
            std::thread::spawn(move || refused(&locator))
        };
        until("the third is refused", || {
            tend(&*a);
            third.is_finished()
        });
        let error = third.join().expect("the third");
        assert!(matches!(error, PtpError::Taken { .. }), "{error}");
        assert_eq!(error.kind(), OpenErrorKind::Refused);
        both_ways(&*a, &*b);
        let stats = a.stats().total;
        assert_eq!((stats.tx_frames, stats.rx_frames, stats.tx_dropped), (8, 8, 0));
        drop((a, b));
        assert!(names(home.path()).is_empty(), "{form}: {:?}", names(home.path()));
    }
}

#[test]
fn alone_everything_is_lost() {
    for form in ["datagram", "seqpacket"] {
        let home = open_dir();
        let link = open(format!("ptp://{}/p[form={form}]", home.path().display()));
        let frame = broadcast(1, 60);
        let pieces = [TxBuf::new(&frame)];
        let sent = link.send(&[TxFrame::new(&pieces); 100]).expect("alive");
        assert_eq!((sent.taken, sent.dropped), (100, 100), "{form}");
        assert_eq!(link.stats().total.tx_dropped, 100);
        drain(&*link);
    }
}

#[test]
fn vde_plug_at_either_end() {
    let home = open_dir();
    let path = home.path().join("p");
    let locator = format!("ptp://{}", path.display());
    for ours_first in [true, false] {
        let mut first = ours_first.then(|| open(&locator));
        let mut plug = VdePlug::start(&locator);
        let name = home.path().join(if ours_first { "p+" } else { "p" });
        until("vde_plug opens", || name.exists());
        let ours = first.take().unwrap_or_else(|| open(&locator));
        for len in [60, 1514, 9018] {
            plug.send(&broadcast(1, len));
            assert_eq!(receive(&*ours), broadcast(1, len));
            send(&*ours, &broadcast(2, len));
            assert_eq!(plug.receive(), broadcast(2, len));
        }
        assert!(matches!(refused(&locator), PtpError::Taken { .. }));
        drop(ours);
        plug.kill();
        until("a killed vde_plug leaves its name", || names(home.path()).len() == 1);
        fs::remove_file(&name).expect("left over");
    }
}

#[test]
fn peer_goes_and_comes_back() {
    let home = open_dir();
    let path = home.path().join("p");
    let locator = format!("ptp://{}", path.display());
    let stays = open(&locator);
    for round in 0..3 {
        // One that ends well, and one that is killed and leaves its name.
        drop(open(&locator));
        tend(&*stays);
        let plug = VdePlug::start(&locator);
        until("vde_plug opens", || home.path().join("p+").exists());
        pass_to_plug(&*stays, plug, round);
        // Nothing is sent by the one that stays, so only the name can tell it that the other is new.
        let comes = open(&locator);
        pass(&*comes, &broadcast(round, 60), &*stays);
        both_ways(&*stays, &*comes);
    }
    // The one that stays is the second now.
    let second = open(&locator);
    drop(stays);
    for round in 0..3 {
        let first = open(&locator);
        pass(&*first, &broadcast(round, 60), &*second);
        both_ways(&*first, &*second);
    }
}

/// Sends a frame to `vde_plug` until it is there, then kills it.
fn pass_to_plug(from: &dyn Link, mut plug: VdePlug, mark: u8) {
    let frame = broadcast(mark, 77);
    until("vde_plug shows a frame", || {
        tend(from);
        from.send(&[TxFrame::new(&[TxBuf::new(&frame)])]).expect("a living link");
        plug.has_output()
    });
    assert_eq!(plug.receive(), frame);
    plug.kill();
}

#[test]
fn names_of_the_dead_are_taken_over_and_others_are_not() {
    // Alone: what is closed here may stay open for a moment in a child of another test.
    in_child(
        "ptp::names_of_the_dead_are_taken_over_and_others_are_not",
        |command| command,
        || {
            let home = open_dir();
            let path = home.path().join("p");
            let locator = format!("ptp://{}", path.display());
            for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
                for name in [path.clone(), home.path().join("p+")] {
                    let socket =
                        socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("socket");
                    bind(&socket, &SocketAddrUnix::new(&name).expect("short")).expect("bind");
                }
                for form in ["", "[form=seqpacket]"] {
                    drop(open(format!("{locator}{form}")));
                    assert!(!path.exists());
                    let socket =
                        socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("socket");
                    bind(&socket, &SocketAddrUnix::new(&path).expect("short")).expect("bind");
                }
                fs::remove_file(&path).expect("left over");
                fs::remove_file(home.path().join("p+")).expect("left over");
            }
            fs::write(&path, "precious").expect("write");
            for form in ["", "[form=seqpacket]"] {
                let error = refused(&format!("{locator}{form}"));
                assert!(matches!(error, PtpError::NotOurs { .. }), "{error}");
            }
            assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
        },
    );
}

#[test]
fn group_and_mode_are_those_of_our_end() {
    crate::harness::need_root("to give a socket to a group");
    let home = open_dir();
    let path = home.path().join("p");
    let of =
        |path: &Path| fs::symlink_metadata(path).map(|meta| (meta.gid(), meta.permissions().mode() & 0o7777));
    for form in ["datagram", "seqpacket"] {
        let locator = format!("ptp://{}[form={form}/group=12345/mode=0660]", path.display());
        let link = open(&locator);
        assert_eq!(of(&path).expect("a socket"), (12345, 0o660));
        drop(link);
        let options = OpenOptions { mode: 0o666, ..OpenOptions::default() };
        let locator = format!("ptp://{}[form={form}]", path.display());
        let _link = vdeplug::open(&locator, &options).expect("opens");
        assert_eq!(of(&path).expect("a socket").1, 0o666);
    }
    let error = vdeplug::open(&format!("ptp://{}[group=no such]", path.display()), &impatient());
    assert!(matches!(error, Err(OpenError::UnknownGroup { .. })));
    assert!(names(home.path()).is_empty());
}

#[test]
fn bad_locators_are_named() {
    let long = "x".repeat(120);
    for (locator, message) in [
        ("ptp://".to_owned(), "ptp:// names no socket"),
        (format!("ptp:///tmp/{long}"), "is too long for a socket: 125 bytes"),
        ("ptp:///nowhere/p".to_owned(), "cannot make the socket \"/nowhere/p\""),
        ("ptp:///nowhere/p[form=seqpacket]".to_owned(), "cannot make the socket \"/nowhere/p\""),
    ] {
        let error = refused(&locator);
        assert!(error.to_string().contains(message), "{error}");
    }
    let error = vdeplug::open("ptp:///tmp/p[form=stream]", &impatient()).expect_err("no such form");
    assert!(error.to_string().contains("write form=datagram or form=seqpacket"), "{error}");
}

#[test]
fn many_at_once_are_two() {
    for form in ["datagram", "seqpacket"] {
        let home = open_dir();
        let path = home.path().join("p");
        // The names are there already, of programs that died.
        let leftover = if form == "datagram" { &["p", "p+"][..] } else { &["p"] };
        for name in leftover {
            dead_datagram(home.path().join(name));
        }
        let locator = &format!("ptp://{}[form={form}]", path.display());
        let done = &std::sync::atomic::AtomicUsize::new(0);
        let links: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(move || {
                        let link = vdeplug::open(locator, &OpenOptions::default());
                        done.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        // Whoever is in lets the others in, or tells them that there are two.
                        until("all have an answer", || {
                            link.iter().for_each(|link| tend(&**link));
                            done.load(std::sync::atomic::Ordering::SeqCst) == 8
                        });
                        link
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread")).collect()
        });
        let (open, refused): (Vec<_>, Vec<_>) = links.into_iter().partition(Result::is_ok);
        assert_eq!((open.len(), refused.len()), (2, 6), "{form}: {refused:?}");
        let open: Vec<_> = open.into_iter().flatten().collect();
        both_ways(&*open[0], &*open[1]);
        drop(open);
        assert!(names(home.path()).is_empty(), "{form}: {:?}", names(home.path()));
    }
}

/// The other program of the seqpacket form.
struct Fake {
    socket: OwnedFd,
}

impl Fake {
    fn new() -> Self {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        Self { socket: socket.expect("socket") }
    }

    fn listening(path: &Path) -> Self {
        let fake = Self::new();
        bind(&fake.socket, &SocketAddrUnix::new(path).expect("short")).expect("bind");
        listen(&fake.socket, 1).expect("listen");
        fake
    }

    fn connected(path: &Path) -> Self {
        let fake = Self::new();
        connect(&fake.socket, &SocketAddrUnix::new(path).expect("short")).expect("connect");
        fake
    }

    /// Takes a connection and says this byte to it.
    fn accept(&self, byte: u8) -> Self {
        assert!(readable(&self.socket), "nobody connects");
        let socket = accept(&self.socket).expect("accept");
        send_to(&socket, &[byte], SendFlags::empty()).expect("send");
        Self { socket }
    }

    fn receive(&self) -> Vec<u8> {
        let mut room = vec![0; 10_000];
        assert!(readable(&self.socket), "nothing comes");
        let (got, _) = recv(&self.socket, &mut room, RecvFlags::empty()).expect("recv");
        room.truncate(got);
        room
    }

    fn send(&self, frame: &[u8]) {
        send_to(&self.socket, frame, SendFlags::empty()).expect("send");
    }
}

#[test]
fn seqpacket_form_is_as_later_versions_speak_it() {
    let home = open_dir();
    let path = home.path().join("p");
    let locator = format!("ptp://{}", path.display());
    // The other listens, and by that says its form.
    let other = Fake::listening(&path);
    let second = std::thread::spawn({
        let locator = locator.clone();
        move || open(locator)
    });
    let peer = other.accept(0);
    peer.send(&broadcast(1, 60));
    let ours = second.join().expect("opens");
    assert_eq!(receive(&*ours), broadcast(1, 60));
    send(&*ours, &broadcast(2, 9234));
    assert_eq!(peer.receive(), broadcast(2, 9234));
    // It ends; we listen in its place, without a call to receive.
    fs::remove_file(&path).expect("its name");
    drop((other, peer));
    assert!(readable(ours.control_fd().expect("ptp has one")));
    tend(&*ours);
    assert!(path.exists(), "nobody listens");
    let peer = Fake::connected(&path);
    assert!(readable(ours.data_fd()));
    drain(&*ours);
    assert_eq!(peer.receive(), [0]);
    // A third is told that two are there, while nobody receives.
    let third = Fake::connected(&path);
    tend(&*ours);
    let busy = u8::try_from(rustix::io::Errno::ISCONN.raw_os_error()).expect("small");
    assert_eq!(third.receive(), [busy]);
    assert_eq!(third.receive(), []);
    peer.send(&broadcast(3, 60));
    assert_eq!(receive(&*ours), broadcast(3, 60));
    send(&*ours, &broadcast(4, 60));
    assert_eq!(peer.receive(), broadcast(4, 60));
    // What came before an end is received, and the next one is taken.
    peer.send(&broadcast(5, 60));
    drop(peer);
    assert_eq!(receive(&*ours), broadcast(5, 60));
    assert!(readable(ours.control_fd().expect("ptp has one")));
    tend(&*ours);
    let peer = Fake::connected(&path);
    tend(&*ours);
    assert_eq!(peer.receive(), [0]);
    drop(ours);
    assert_eq!(peer.receive(), []);
    assert!(!path.exists());
}

#[test]
fn seqpacket_form_refusals_are_errors_in_time() {
    let home = open_dir();
    let path = home.path().join("p");
    let locator = format!("ptp://{}", path.display());
    let other = Fake::listening(&path);
    let try_open = || {
        let locator = locator.clone();
        std::thread::spawn(move || refused(&locator))
    };
    let error = refused(&locator);
    assert!(matches!(error, PtpError::Silent { .. }), "{error}");
    assert!(error.to_string().contains("did not answer within 1.5s"), "{error}");
    drop(accept(&other.socket).expect("the one before"));
    for (byte, taken) in [(106, true), (13, false)] {
        let attempt = try_open();
        drop(other.accept(byte));
        let error = attempt.join().expect("an answer");
        assert_eq!(matches!(error, PtpError::Taken { .. }), taken, "{error}");
        assert_eq!(error.kind(), OpenErrorKind::Refused);
    }
    let attempt = try_open();
    assert!(readable(&other.socket));
    drop(accept(&other.socket).expect("accept"));
    assert!(matches!(attempt.join().expect("an answer"), PtpError::Refused { .. }));
    let error = refused(&format!("{locator}[form=datagram]"));
    assert!(error.to_string().contains("write form=seqpacket or nothing"), "{error}");
    drop(other);
    fs::remove_file(&path).expect("left over");
    let _first = open(&locator);
    let error = refused(&format!("{locator}[form=seqpacket]"));
    assert!(error.to_string().contains("write form=datagram or nothing"), "{error}");
}

#[test]
fn seqpacket_form_loses_what_a_slow_peer_does_not_take() {
    let home = open_dir();
    let path = home.path().join("p");
    let ours = open(format!("ptp://{}[form=seqpacket]", path.display()));
    let peer = Fake::connected(&path);
    tend(&*ours);
    assert_eq!(peer.receive(), [0]);
    let frame = broadcast(1, 1514);
    let pieces = [TxBuf::new(&frame)];
    let sent = ours.send(&[TxFrame::new(&pieces); 1000]).expect("alive");
    assert!(sent.taken == 1000 && (1..1000).contains(&sent.dropped), "{sent:?}");
    for _ in 0..1000 - sent.dropped {
        assert_eq!(peer.receive(), frame);
    }
    let stats = ours.stats().total;
    assert_eq!(stats.tx_frames + stats.tx_dropped, 1000);
}
