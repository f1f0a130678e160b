//! Peers of nodes for the tests: Debian's `vde_plug`, and one that speaks the protocol by hand.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use vdeplug::{Link, OpenOptions, RxBuf, RxFrame};

use crate::harness::{LONG, broadcast, open_dir, readable, until};

/// A directory and a node to be served in it.
pub struct Place {
    pub home: TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self { home: open_dir() }
    }

    pub fn dir(&self) -> PathBuf {
        self.home.path().join("m")
    }

    pub fn ctl(&self) -> PathBuf {
        self.dir().join("ctl")
    }

    /// The locator of the node, with this behind its path.
    pub fn at(&self, scheme: &str, rest: &str) -> String {
        format!("{scheme}://{}{rest}", self.dir().display())
    }

    /// Serves it.
    pub fn serve(&self, scheme: &str) -> Arc<dyn Link> {
        crate::harness::open(self.at(scheme, ""))
    }

    /// Joins it with a link of ours.
    pub fn join(&self) -> Arc<dyn Link> {
        crate::harness::open(self.at("vde", ""))
    }

    /// Joins it with a link of ours that takes big frames.
    pub fn join_big(&self) -> Arc<dyn Link> {
        let options = OpenOptions { offloads: true, ..OpenOptions::default() };
        vdeplug::open(&self.at("vde", ""), &options).expect("a node")
    }
}

/// Waits until so many peers are plugged into a node.
pub fn until_peers(owner: &dyn Link, count: usize) {
    until("peers join or leave", || owner.stats().peers.len() == count);
}

/// A running `vde_plug` with one locator: frames of its standard input go to the network, and back.
pub struct Plug {
    pub child: Child,
}

impl Plug {
    pub fn start(locators: &[&str]) -> Self {
        let child = Command::new("vde_plug")
            .args(locators)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("vde_plug has to be installed (package vdeplug)");
        Self { child }
    }

    /// Starts one in a node and waits until it is the so-many-th peer and has read its answer.
    pub fn join(place: &Place, owner: &dyn Link, count: usize) -> Self {
        let mut plug = Self::start(&[place.dir().to_str().expect("ASCII")]);
        until_peers(owner, count);
        // In a bonding each peer has its turn.
        (0..count).for_each(|_| crate::harness::send(owner, &broadcast(99, 99)));
        assert_eq!(plug.receive(), broadcast(99, 99));
        plug
    }

    /// Starts one that serves a multi with the original library, beside these other locators.
    pub fn serve(place: &Place, others: &[&str]) -> Self {
        let locator = place.at("multi", "");
        let plug = Self::start(&[others, &[&locator]].concat());
        // It would not survive a probe by connecting.
        let line_end = format!(" {}", place.ctl().display());
        until("vde_plug serves a node", || {
            let sockets = std::fs::read("/proc/net/unix").expect("/proc");
            String::from_utf8_lossy(&sockets)
                .lines()
                .any(|line| line.contains(" 00010000 ") && line.ends_with(&line_end))
        });
        plug
    }

    pub fn send(&mut self, frame: &[u8]) {
        let len = u16::try_from(frame.len()).expect("a frame").to_be_bytes();
        let stdin = self.child.stdin.as_mut().expect("piped");
        stdin.write_all(&[&len, frame].concat()).expect("write to vde_plug");
    }

    pub fn receive(&mut self) -> Vec<u8> {
        let stdout = self.child.stdout.as_mut().expect("piped");
        assert!(readable(&*stdout), "vde_plug received no frame");
        let mut len = [0; 2];
        stdout.read_exact(&mut len).expect("read from vde_plug");
        let mut frame = vec![0; u16::from_be_bytes(len).into()];
        stdout.read_exact(&mut frame).expect("read from vde_plug");
        frame
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// Waits for its end; its exit status.
    pub fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        until("vde_plug ends", || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        // Both fail when a test has ended it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request with a data socket of these bytes.
pub fn request(data_socket: &[u8], description: &str) -> Vec<u8> {
    let mut request = Vec::new();
    for word in [0xfeed_face_u32, 3, 0] {
        request.extend_from_slice(&word.to_ne_bytes());
    }
    request.extend_from_slice(&1_u16.to_ne_bytes());
    request.extend_from_slice(data_socket);
    request.resize(122, 0);
    request.extend_from_slice(description.as_bytes());
    request
}

/// Opens a stream to a node.
pub fn connect(ctl: &Path) -> UnixStream {
    let stream = UnixStream::connect(ctl).expect("a node");
    stream.set_read_timeout(Some(LONG)).expect("time-out");
    stream
}

/// Whether the node closes a stream without a word.
pub fn is_closed(mut stream: UnixStream) -> bool {
    match stream.read(&mut [0; 16]) {
        Ok(got) => got == 0,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// A peer by hand.
pub struct Raw {
    pub stream: UnixStream,
    pub data: UnixDatagram,
    pub answer: Vec<u8>,
}

impl Raw {
    /// Joins with a data socket that is bound already to the name in the request.
    pub fn join_with(ctl: &Path, data: UnixDatagram, request: &[u8]) -> Self {
        let mut stream = connect(ctl);
        stream.write_all(request).expect("a request");
        let mut answer = vec![0; 110];
        stream.read_exact(&mut answer).expect("an answer");
        data.connect(name_in(&answer)).expect("the node's end");
        Self { stream, data, answer }
    }

    /// Joins with a data socket of this name.
    pub fn join(ctl: &Path, name: &Path) -> Self {
        let data = UnixDatagram::bind(name).expect("bind");
        data.set_read_timeout(Some(LONG)).expect("time-out");
        data.set_write_timeout(Some(Duration::from_secs(5))).expect("time-out");
        Self::join_with(ctl, data, &request(name.as_os_str().as_encoded_bytes(), "raw"))
    }

    /// The name of the node's end.
    pub fn peer_name(&self) -> PathBuf {
        name_in(&self.answer)
    }
}

/// The name of a node's end in its answer.
pub fn name_in(answer: &[u8]) -> PathBuf {
    let end = answer[2..].iter().position(|&byte| byte == 0).expect("a NUL");
    PathBuf::from(std::str::from_utf8(&answer[2..2 + end]).expect("ASCII"))
}

/// Waits for one frame of any length, by a link.
pub fn receive_long(link: &dyn Link) -> Vec<u8> {
    assert!(readable(link.data_fd()), "no frame came");
    let mut room = vec![0; 70_000];
    let bufs = [RxBuf::new(&mut room)];
    let mut frames = [RxFrame::new(&bufs)];
    assert_eq!(link.recv(&mut frames).expect("a living link"), 1);
    let len = frames[0].len;
    room.truncate(len);
    room
}

/// Takes all frames that are there; their lengths.
pub fn drain(link: &dyn Link) -> Vec<usize> {
    let mut lens = Vec::new();
    loop {
        let mut rooms = vec![[0; 2048]; 100];
        let bufs: Vec<_> = rooms.iter_mut().map(|room| [RxBuf::new(room)]).collect();
        let mut frames: Vec<_> = bufs.iter().map(|bufs| RxFrame::new(bufs)).collect();
        let got = link.recv(&mut frames).expect("a living link");
        lens.extend(frames.iter().take(got).map(|frame| frame.len));
        if got < 100 {
            return lens;
        }
    }
}

/// A frame between two stations.
pub fn unicast(to: u8, from: u8, len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5];
    frame.resize(len, from);
    frame
}
