//! What the tests of taps and veths stand on: network namespaces that are gone with the test, and UDP frames. They
//! need root and `ip` (package iproute2).

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use offload::csum::Sum;
use offload::header::NEEDS_CSUM;
use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};
use vdeplug::{Header, Link, OpenError, OpenErrorKind, OpenOptions, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::harness::{need_root, readable, until};

/// Address of the kernel in a namespace, and of what is on the other end of the cable.
pub const KERNEL: [u8; 4] = [10, 9, 0, 1];
pub const OTHER: [u8; 4] = [10, 9, 0, 2];
/// Hardware address of the other.
pub const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace: that of a thread, which does in it what is asked for.
pub struct Space {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    path: String,
}

impl Space {
    pub fn new() -> Self {
        need_root("to make network namespaces");
        let (jobs, work) = channel::<Job>();
        let (tell, told) = channel();
        let thread = std::thread::spawn(move || {
            // SAFETY: descriptors are not unshared.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare");
            let path = format!("/proc/{}/task/{}/ns/net", std::process::id(), gettid().as_raw_nonzero());
            tell.send(path).expect("somebody waits");
            work.iter().for_each(|job| job());
        });
        let path = told.recv().expect("a namespace");
        Self { jobs: Some(jobs), thread: Some(thread), path }
    }

    /// Does something in the namespace.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (tell, told) = channel();
        let job = move || tell.send(work()).expect("somebody waits");
        self.jobs.as_ref().expect("open").send(Box::new(job)).expect("a living thread");
        told.recv().expect("the work in the namespace failed")
    }

    /// Runs `ip` in the namespace.
    pub fn ip(&self, args: &str) -> String {
        let args: Vec<String> = args.split_whitespace().map(Into::into).collect();
        self.run(move || ip(&args))
    }

    /// Names of the interfaces in it, beside `lo`.
    pub fn interfaces(&self) -> Vec<String> {
        let list = self.ip("-o link");
        let names = list.lines().filter_map(|line| line.split(": ").nth(1)?.split('@').next());
        names.filter(|name| *name != "lo").map(Into::into).collect()
    }

    /// The path of its file.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path of its file, as it stands in a locator.
    pub fn quoted(&self) -> String {
        format!("'{}'", self.path)
    }

    /// Gives an interface the kernel's address, and tells the kernel the other's, so that nobody has to ask.
    pub fn address(&self, name: &str) {
        self.ip(&format!("addr replace 10.9.0.1/24 dev {name}"));
        self.ip(&format!("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:02 dev {name}"));
    }

    /// Hardware address of an interface.
    pub fn mac(&self, name: &str) -> [u8; 6] {
        let text = self.ip(&format!("-o link show dev {name}"));
        let text = text.split("link/ether ").nth(1).expect("Ethernet").split(' ').next().expect("an address");
        let mut mac = [0; 6];
        for (byte, pair) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(pair, 16).expect("hexadecimal");
        }
        mac
    }

    /// A socket of the kernel's in it, to the other.
    pub fn socket(&self) -> UdpSocket {
        self.run(|| {
            let mut socket = Err(ErrorKind::AddrInUse.into());
            // One that was closed lives on in a process that another test is just starting, until it becomes its program.
            until("the address is free", || {
                socket = UdpSocket::bind("10.9.0.1:4000");
                !matches!(&socket, Err(error) if error.kind() == ErrorKind::AddrInUse)
            });
            let socket = socket.expect("bind");
            socket.connect("10.9.0.2:5000").expect("connect");
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("time-out");
            socket
        })
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.jobs = None;
        // A panic in it was told to whoever asked for the work.
        drop(self.thread.take().expect("dropped once").join());
    }
}

/// Runs `ip`, which has to succeed, in the namespace of this thread.
fn ip(args: &[String]) -> String {
    let output = Command::new("ip").args(args).output().expect("ip has to be installed (package iproute2)");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {args:?}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Opens a link, once nobody uses what it is to be the end of: a tap that was closed lives on for a moment, in a process
/// that another test is just starting.
pub fn open_free(locator: &str, options: &OpenOptions) -> Result<Arc<dyn Link>, OpenError> {
    let mut result = None;
    until("a tap is free", || {
        let this = result.insert(vdeplug::open(locator, options));
        !matches!(this, Err(error) if error.kind() == OpenErrorKind::Unavailable)
    });
    result.expect("tried")
}

/// Opens a link in a namespace; it has to open.
pub fn open_in(space: &Space, locator: impl Into<String>, offloads: bool) -> Arc<dyn Link> {
    let text = locator.into();
    let locator = text.clone();
    let options = OpenOptions { offloads, ..Default::default() };
    let result = space.run(move || open_free(&locator, &options));
    result.unwrap_or_else(|error| panic!("{text}: {error}: {:?}", std::error::Error::source(&error)))
}

/// Opens a link in a namespace, which has to fail; returns the error.
pub fn refused_in(space: &Space, locator: impl Into<String>) -> OpenError {
    let locator = locator.into();
    space.run(move || {
        vdeplug::open(&locator, &OpenOptions::default()).err().unwrap_or_else(|| panic!("{locator} opened"))
    })
}

/// A frame that is there, with its header.
pub fn poll_next(link: &dyn Link) -> Option<(Header, Vec<u8>)> {
    let mut room = vec![0; vdeplug::link::BIG_FRAME_MAX];
    let bufs = [RxBuf::new(&mut room)];
    let mut frames = [RxFrame::new(&bufs)];
    let got = link.recv(&mut frames).expect("a living link");
    let (header, len) = (frames[0].header, frames[0].len);
    room.truncate(len);
    (got == 1).then_some((header, room))
}

/// A frame that is received next, with its header.
pub fn next(link: &dyn Link) -> (Header, Vec<u8>) {
    let mut frame = None;
    // An event that is no frame makes the descriptor readable too.
    until("a frame comes", || {
        assert!(readable(link.data_fd()), "no frame came");
        frame = poll_next(link);
        frame.is_some()
    });
    frame.expect("it came")
}

/// The next frame that is UDP over IPv4: others are the kernel's own (multicast groups, router solicitations).
pub fn next_udp(link: &dyn Link) -> (Header, Vec<u8>) {
    loop {
        let (header, frame) = next(link);
        if frame[12..14] == [8, 0] && frame[23] == 17 {
            return (header, frame);
        }
    }
}

/// Sends one frame with a header; says whether it went.
pub fn send_with(link: &dyn Link, header: Header, frame: &[u8]) -> bool {
    let pieces = [TxBuf::new(&frame[..14]), TxBuf::new(&frame[14..])];
    let sent = link.send(&[TxFrame { header, ..TxFrame::new(&pieces) }]).expect("a living link");
    assert_eq!(sent.taken, 1);
    sent.dropped == 0
}

/// A frame of UDP from the other to the kernel.
pub struct Udp {
    pub to: [u8; 6],
    /// VLAN tags, outer first.
    pub tags: Vec<[u8; 4]>,
    pub payload: Vec<u8>,
}

impl Udp {
    pub fn new(to: [u8; 6], payload: &[u8]) -> Self {
        Self { to, tags: Vec::new(), payload: payload.to_vec() }
    }

    fn head(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// The frame with its checksum left to be completed.
    pub fn partial(&self) -> (Header, Vec<u8>) {
        let mut frame = self.to.to_vec();
        frame.extend(OTHER_MAC);
        frame.extend(self.tags.concat());
        frame.extend([8, 0]);
        let len = |more: usize| u16::try_from(self.payload.len() + more).expect("short").to_be_bytes();
        let mut ipv4 = [&[0x45, 0], &len(28)[..], &[0, 1, 0, 0, 64, 17, 0, 0], &OTHER, &KERNEL].concat();
        let mut sum = Sum::default();
        sum.add(&ipv4);
        ipv4[10..12].copy_from_slice(&sum.finish());
        frame.extend(ipv4);
        let mut pseudo = Sum::default();
        pseudo.add(&[&OTHER, &KERNEL, &[0, 17][..], &len(8)].concat());
        let pseudo = pseudo.finish().map(|byte| !byte);
        frame.extend([&5000_u16.to_be_bytes(), &4000_u16.to_be_bytes(), &len(8)[..], &pseudo].concat());
        frame.extend(&self.payload);
        let csum_start = u16::try_from(self.head() + 20).expect("short");
        (Header { flags: NEEDS_CSUM, csum_start, csum_offset: 6, ..Header::NONE }, frame)
    }

    /// The frame, complete.
    pub fn complete(&self) -> Vec<u8> {
        let (header, mut frame) = self.partial();
        offload::complete(&header, &mut frame).expect("fits");
        frame
    }
}

/// Whether the UDP checksum of an untagged frame is right.
pub fn is_complete(frame: &[u8]) -> bool {
    let len = usize::from(u16::from_be_bytes([frame[38], frame[39]]));
    let mut sum = Sum::default();
    sum.add(&frame[26..34]);
    sum.add(&[0, 17]);
    sum.add(&frame[38..40]);
    sum.add(&frame[34..34 + len]);
    // The sum of what holds its own checksum, which is never written as 0.
    sum.finish() == [0xff, 0xff]
}

/// Has a frame go each way between a socket in the kernel and a link, at whose other end is this interface. A frame that
/// is given to an interface right after it came up may be lost, so each is sent until it arrives.
pub fn talk(link: &dyn Link, space: &Space, name: &str, offloads: bool) {
    space.address(name);
    let socket = space.socket();
    let (header, frame) = sent_until(
        || assert_eq!(socket.send(b"from the kernel").expect("send"), 15),
        || poll_next(link).filter(|(_, frame)| frame.ends_with(b"from the kernel")),
    );
    assert_eq!((&frame[..6], frame.len()), (&OTHER_MAC[..], 57));
    if offloads {
        assert_eq!((header.flags & NEEDS_CSUM, header.csum_start, header.csum_offset), (NEEDS_CSUM, 34, 6));
    } else {
        assert_eq!(header, Header::NONE);
        assert!(is_complete(&frame));
    }
    let (complete, partial) = (Udp::new(space.mac(name), b"complete"), Udp::new(space.mac(name), b"partial"));
    let (header, partial) = partial.partial();
    for (header, frame) in [(Header::NONE, complete.complete()), (header, partial)] {
        sent_until(
            || assert!(send_with(link, header, &frame)),
            || {
                let mut room = [0; 100];
                let got = socket.recv(&mut room).ok()?;
                frame.ends_with(&room[..got]).then_some(())
            },
        );
    }
}

/// Sends something until it arrives.
pub fn sent_until<T>(mut send: impl FnMut(), mut arrived: impl FnMut() -> Option<T>) -> T {
    let mut result = None;
    until("what was sent arrives", || {
        send();
        result = arrived();
        result.is_some()
    });
    result.expect("it arrived")
}
