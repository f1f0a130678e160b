//! Big frames over a cable: between two ends that take them they stay whole, towards all others they are segmented, whoever
//! comes and goes. Debian's `vde_plug` and bare sockets play programs that know nothing of them.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind, connect,
    listen, recv, send as send_to, socket_with,
};
use tempfile::TempDir;
use vdeplug::{Link, OpenOptions, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::harness::{VdePlug, broadcast, in_child, names, open, open_dir, readable, receive, send, until};
use crate::node_frames::{big_frame, check_segments, receive_with_header, send_big};
use crate::ptp::{drain, pass, tend};

const FORMS: [&str; 2] = ["datagram", "seqpacket"];

/// A place for a cable.
struct Place {
    home: TempDir,
    form: &'static str,
}

impl Place {
    fn new(form: &'static str) -> Self {
        Self { home: open_dir(), form }
    }

    fn path(&self) -> PathBuf {
        self.home.path().join("p")
    }

    fn locator(&self) -> String {
        format!("ptp://{}[form={}]", self.path().display(), self.form)
    }

    /// Opens an end, while whoever has the other one tends it.
    fn join(&self, big: bool, other: Option<&dyn Link>) -> Arc<dyn Link> {
        let locator = self.locator();
        let opening = std::thread::spawn(move || {
            let options = OpenOptions { offloads: big, ..OpenOptions::default() };
            vdeplug::open(&locator, &options).unwrap_or_else(|error| panic!("{locator}: {error}"))
        });
        until("an end opens", || {
            other.into_iter().for_each(tend);
            opening.is_finished()
        });
        let link = opening.join().expect("an end");
        // What either learns only by a frame.
        if let Some(other) = other {
            pass(&*link, &broadcast(7, 60), other);
            pass(other, &broadcast(7, 60), &*link);
        }
        link
    }
}

fn whole_both_ways(a: &dyn Link, b: &dyn Link) {
    for (from, to) in [(a, b), (b, a)] {
        assert!(from.offloads() && to.offloads());
        send(from, &broadcast(1, 1514));
        assert_eq!(receive(to), broadcast(1, 1514));
        let frame = send_big(from);
        let (header, whole) = receive_with_header(to);
        assert_eq!((header, whole), (big_frame().0, frame));
    }
}

fn segments_both_ways(a: &dyn Link, b: &dyn Link) {
    for (from, to) in [(a, b), (b, a)] {
        assert!(!from.offloads() && !to.offloads());
        send(from, &broadcast(1, 1514));
        assert_eq!(receive(to), broadcast(1, 1514));
        let frame = send_big(from);
        check_segments(&frame, || receive(to));
    }
}

#[test]
fn big_frames_pass_whole_if_both_ends_take_them() {
    for form in FORMS {
        for (first, second) in [(true, true), (true, false), (false, true), (false, false)] {
            let place = Place::new(form);
            let a = place.join(first, None);
            assert_eq!(a.offloads(), first, "whoever comes may send such frames");
            let b = place.join(second, Some(&*a));
            match first && second {
                true => whole_both_ways(&*a, &*b),
                false => segments_both_ways(&*a, &*b),
            }
            drop((a, b));
            assert!(names(place.home.path()).is_empty(), "{form}: {:?}", names(place.home.path()));
        }
    }
}

#[test]
fn big_frames_pass_whole_or_not_as_the_other_end_changes() {
    // Alone: what is closed here may stay open for a moment in a child of another test.
    in_child(
        "ptp_frames::big_frames_pass_whole_or_not_as_the_other_end_changes",
        |command| command,
        || {
            for form in FORMS {
                for survivor_first in [true, false] {
                    let place = Place::new(form);
                    let (mut other, survivor);
                    if survivor_first {
                        survivor = place.join(true, None);
                        other = place.join(true, Some(&*survivor));
                    } else {
                        other = place.join(true, None);
                        survivor = place.join(true, Some(&*other));
                    }
                    for big in [true, false, false, true, true, false, true] {
                        drop(other);
                        other = place.join(big, Some(&*survivor));
                        match big {
                            true => whole_both_ways(&*survivor, &*other),
                            false => segments_both_ways(&*survivor, &*other),
                        }
                    }
                }
            }
        },
    );
}

/// An end of a program that knows nothing of big frames.
struct Old {
    socket: OwnedFd,
    name: Option<PathBuf>,
}

impl Old {
    fn socket(kind: SocketType) -> OwnedFd {
        socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).expect("socket")
    }

    /// The end of the datagram form that has this name, and sends to that one.
    fn datagram(own: &Path, other: &Path) -> Self {
        Self::try_datagram(own, other).expect("the other end is there and speaks with nobody")
    }

    /// The same, if the one that has the other end knows that there is nobody yet.
    fn try_datagram(own: &Path, other: &Path) -> Option<Self> {
        let socket = Self::socket(SocketType::DGRAM);
        connect(&socket, &SocketAddrUnix::new(other).expect("short")).ok()?;
        bind(&socket, &SocketAddrUnix::new(own).expect("short")).expect("bind");
        Some(Self { socket, name: Some(own.into()) })
    }

    /// The end of the seqpacket form that connects.
    fn caller(place: &Place, other: &dyn Link) -> Self {
        let socket = Self::socket(SocketType::SEQPACKET);
        connect(&socket, &SocketAddrUnix::new(place.path()).expect("short")).expect("connect");
        tend(other);
        let caller = Self { socket, name: None };
        assert_eq!(caller.receive(), [0]);
        caller
    }

    fn receive(&self) -> Vec<u8> {
        let mut room = vec![0; 70_000];
        assert!(readable(&self.socket), "nothing comes");
        let (got, _) = recv(&self.socket, &mut room, RecvFlags::empty()).expect("recv");
        room.truncate(got);
        room
    }

    fn send(&self, frame: &[u8]) {
        send_to(&self.socket, frame, SendFlags::empty()).expect("send");
    }

    /// Ends by a signal or not.
    fn end(mut self, killed: bool) {
        if let Some(name) = self.name.take().filter(|_| !killed) {
            fs::remove_file(name).expect("its name");
        }
    }
}

/// Frames in order in both directions, and nothing else, whatever ours has to send.
fn old_notices_nothing(ours: &dyn Link, old: &Old) {
    for round in 0..3 {
        old.send(&broadcast(round, 60));
        assert_eq!(receive(ours), broadcast(round, 60));
        send(ours, &broadcast(round, 1514));
        assert_eq!(old.receive(), broadcast(round, 1514));
        let frame = send_big(ours);
        check_segments(&frame, || old.receive());
    }
    let nothing = recv(&old.socket, &mut [0; 1], RecvFlags::DONTWAIT);
    assert_eq!(nothing.map(drop), Err(rustix::io::Errno::AGAIN));
    assert!(!ours.offloads());
}

#[test]
fn big_frames_are_unknown_to_old_programs_in_the_datagram_form() {
    // Alone: what is closed here may stay open for a moment in a child of another test.
    in_child(
        "ptp_frames::big_frames_are_unknown_to_old_programs_in_the_datagram_form",
        |command| command,
        || {
            for ours_first in [true, false] {
                let place = Place::new("datagram");
                let (path, second) = (place.path(), place.home.path().join("p+"));
                // Ours holds the first name or the second.
                let (own, first) = if ours_first {
                    (second.clone(), None)
                } else {
                    (path.clone(), Some(open(place.locator())))
                };
                let ours = place.join(true, first.as_deref());
                drop(first);
                tend(&*ours);
                let other = if ours_first { path } else { second };
                for killed in [false, true, false] {
                    let old = Old::datagram(&own, &other);
                    old.send(&broadcast(9, 60));
                    until("the old one is there", || {
                        tend(&*ours);
                        readable(ours.data_fd())
                    });
                    assert_eq!(receive(&*ours), broadcast(9, 60));
                    old_notices_nothing(&*ours, &old);
                    old.end(killed);
                    // One of ours, in between.
                    let new = place.join(true, Some(&*ours));
                    whole_both_ways(&*ours, &*new);
                    drop(new);
                    tend(&*ours);
                }
            }
        },
    );
}

#[test]
fn big_frames_are_unknown_to_old_programs_in_the_seqpacket_form() {
    // Alone: what is closed here may stay open for a moment in a child of another test.
    in_child(
        "ptp_frames::big_frames_are_unknown_to_old_programs_in_the_seqpacket_form",
        |command| command,
        || {
            let place = Place::new("seqpacket");
            let ours = place.join(true, None);
            for _ in 0..3 {
                let old = Old::caller(&place, &*ours);
                old_notices_nothing(&*ours, &old);
                drop(old);
                tend(&*ours);
                drain(&*ours);
                let new = place.join(true, Some(&*ours));
                whole_both_ways(&*ours, &*new);
            }
            drop(ours);
            // The old one listens.
            let listener = Old::socket(SocketType::SEQPACKET);
            bind(&listener, &SocketAddrUnix::new(place.path()).expect("short")).expect("bind");
            listen(&listener, 1).expect("listen");
            let opening = std::thread::spawn({
                let locator = place.locator();
                move || {
                    let options = OpenOptions { offloads: true, ..OpenOptions::default() };
                    vdeplug::open(&locator, &options).expect("an end")
                }
            });
            assert!(readable(&listener), "nobody connects");
            let old = Old { socket: accept(&listener).expect("accept"), name: None };
            old.send(&[0]);
            let ours = opening.join().expect("an end");
            old_notices_nothing(&*ours, &old);
            fs::remove_file(place.path()).expect("its name");
            drop((listener, old));
            tend(&*ours);
            let new = place.join(true, Some(&*ours));
            whole_both_ways(&*ours, &*new);
        },
    );
}

#[test]
fn vde_plug_takes_segments_and_ours_after_it_big_frames() {
    for ours_first in [true, false] {
        let place = Place::new("datagram");
        let locator = format!("ptp://{}", place.path().display());
        let before = ours_first.then(|| place.join(true, None));
        let mut plug = VdePlug::start(&locator);
        let name = if ours_first { place.home.path().join("p+") } else { place.path() };
        until("vde_plug opens", || name.exists());
        let ours = before.unwrap_or_else(|| place.join(true, None));
        plug.send(&broadcast(1, 60));
        assert_eq!(receive(&*ours), broadcast(1, 60));
        let frame = send_big(&*ours);
        check_segments(&frame, || plug.receive());
        assert!(!ours.offloads());
        plug.kill();
        let new = place.join(true, Some(&*ours));
        whole_both_ways(&*ours, &*new);
        drop(new);
        tend(&*ours);
        let mut plug = VdePlug::start(&locator);
        until("vde_plug opens", || name.exists());
        plug.send(&broadcast(2, 60));
        until("its frame comes", || {
            tend(&*ours);
            readable(ours.data_fd())
        });
        assert_eq!(receive(&*ours), broadcast(2, 60));
        let frame = send_big(&*ours);
        check_segments(&frame, || plug.receive());
    }
}

#[test]
fn frames_of_both_kinds_in_one_queue_are_told_apart() {
    let place = Place::new("datagram");
    let ours = place.join(true, None);
    let own = place.home.path().join("p+");
    // Nobody receives meanwhile: whose frames they are has to be seen from the frames.
    let options = OpenOptions { offloads: true, ..OpenOptions::default() };
    let mut sent = Vec::new();
    for round in 0..3 {
        let new = vdeplug::open(&place.locator(), &options).expect("an end");
        sent.push((big_frame().0, send_big(&*new)));
        drop(new);
        let old = Old::datagram(&own, &place.path());
        old.send(&broadcast(round, 1514));
        sent.push((vdeplug::Header::NONE, broadcast(round, 1514)));
        old.end(false);
    }
    for expected in sent {
        assert_eq!(receive_with_header(&*ours), expected);
    }
}

/// Ends the threads of a test, also if it fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn no_program_is_written_to_or_read_as_the_one_before_it() {
    let place = Place::new("datagram");
    let ours = place.join(true, None);
    let own = place.home.path().join("p+");
    let (header, frame) = big_frame();
    let plain = broadcast(7, 1514);
    let over = AtomicBool::new(false);
    let more = || !over.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        let _over = Over(&over);
        // Two queues of a guest, the one that receives, and the thread that looks after the link.
        for _ in 0..2 {
            scope.spawn(|| {
                let bufs = [TxBuf::new(&frame)];
                while more() {
                    ours.send(&[TxFrame { bufs: &bufs, header, segments: 0 }; 4]).expect("alive");
                }
            });
        }
        scope.spawn(|| {
            let mut room = vec![0; 70_000];
            while more() {
                let bufs = [RxBuf::new(&mut room)];
                let mut frames = [RxFrame::new(&bufs)];
                let got = ours.recv(&mut frames).expect("alive");
                let [RxFrame { header: said, len, .. }] = frames;
                match &room[..len] {
                    _ if got == 0 || len == 0 => {}
                    whole if said == header => assert!(whole == frame),
                    whole => assert!(said == vdeplug::Header::NONE && whole == plain),
                }
            }
        });
        scope.spawn(|| {
            while more() {
                tend(&*ours);
            }
        });
        for _ in 0..15 {
            let mut old = None;
            until("the one before is gone", || {
                old = Old::try_datagram(&own, &place.path());
                old.is_some()
            });
            let old = old.expect("an end");
            for _ in 0..100 {
                let segment = old.receive();
                assert_eq!((&segment[..12], segment.len() <= 1514), (&frame[..12], true));
                old.send(&plain);
            }
            old.end(false);
            let new = place.join(true, None);
            for _ in 0..5 {
                let (got, whole) = receive_with_header(&*new);
                assert!(got == header && whole == frame);
                send_big(&*new);
            }
        }
    });
}

#[test]
fn who_lies_about_big_frames_harms_nobody() {
    for form in FORMS {
        let place = Place::new(form);
        let ours = place.join(true, None);
        let signed = place.home.path().join(".ptp-1-1+gso");
        let liar = match form {
            "datagram" => {
                // Found by the name that ours looks for.
                let liar = Old::datagram(&signed, &place.path());
                fs::hard_link(&signed, place.home.path().join("p+")).expect("link");
                liar
            }
            _ => {
                let socket = Old::socket(SocketType::SEQPACKET);
                bind(&socket, &SocketAddrUnix::new(&signed).expect("short")).expect("bind");
                connect(&socket, &SocketAddrUnix::new(place.path()).expect("short")).expect("connect");
                tend(&*ours);
                let liar = Old { socket, name: None };
                assert_eq!(liar.receive(), [0]);
                liar
            }
        };
        // No header, a part of one, nothing behind it, a runt behind it, lies in it.
        let runts = [1, 11, 12, 12 + 13];
        for len in runts {
            liar.send(&broadcast(1, len));
        }
        let mut lie = broadcast(1, 12 + 60);
        lie[..12].fill(0xff);
        liar.send(&lie);
        liar.send(&[&[0; 12][..], &broadcast(2, 60)].concat());
        let mut got = Vec::new();
        until("all that was sent is there", || {
            let mut room = [0; 2000];
            while let Some(len) = ours.recv_one(&mut room).expect("alive") {
                got.push(room[..len].to_vec());
            }
            got.len() >= 2
        });
        assert_eq!(got, [&lie[12..], &broadcast(2, 60)], "{form}");
        assert_eq!(ours.stats().total.rx_dropped, runts.len() as u64, "{form}");
        // It gets what it asked for.
        send(&*ours, &broadcast(3, 60));
        assert_eq!(liar.receive(), [&[0; 12][..], &broadcast(3, 60)].concat());
    }
}
