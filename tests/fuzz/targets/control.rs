//! What a client of the back end's control socket sends. Input: pieces, each ended by a byte 255; the first byte of a piece
//! says how many descriptors come with it, the rest is sent.
//!
//! Every line is a request, which is a command or is refused by a sentence, and keeps its id; in whatever pieces it comes, it is the
//! same. No line has more descriptors than one may have, none has one that came after it, and all are closed when nobody
//! uses them. Who has not said that he is ready gives no command.

#![no_main]

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost_user_vde::fuzzing::{Client, Line};

/// Most descriptors of one line.
const OF_LINE: usize = 16;
/// Most that a piece is sent with here: more than a line may have.
const OF_PIECE: usize = 20;

struct Peer {
    socket: UnixStream,
    client: Client,
    lines: Vec<Line>,
}

impl Peer {
    fn new() -> Self {
        let (socket, theirs) = UnixStream::pair().expect("a pair of sockets");
        Self { socket, client: Client::new(theirs), lines: Vec::new() }
    }

    /// Sends something, and has it read. A request of more than one read is none that fits in here.
    fn send(&mut self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(OF_PIECE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
        let bytes = [IoSlice::new(bytes)];
        sendmsg(&self.socket, &bytes, &mut control, SendFlags::empty()).expect("room for it");
        let (lines, ended) = self.client.read();
        assert!(!ended, "nothing in here is too long");
        self.lines.extend(lines);
    }

    /// What was understood.
    fn text(&self) -> String {
        self.lines.iter().map(|line| format!("{:?} {:?}\n", line.id, line.command)).collect()
    }
}

/// A command or a refusal, whose answer the client can read.
fn check(peer: &mut Peer) {
    let refusals = peer.lines.iter().filter_map(|line| line.command.as_ref().err()).map(|why| why.to_value());
    for refusal in refusals.collect::<Vec<_>>() {
        assert!(refusal["desc"].as_str().is_some_and(|desc| desc.contains(' ')), "a sentence: {refusal}");
        assert!(peer.client.push(&refusal), "few lines have few answers");
        assert!(peer.client.flush().expect("somebody there"), "room for it");
        let mut answer = vec![0; refusal.to_string().len() + 2];
        peer.socket.read_exact(&mut answer).expect("an answer");
        let line = answer.strip_suffix(b"\r\n").expect("a line");
        assert_eq!(serde_json::from_slice::<serde_json::Value>(line).expect("JSON"), refusal);
    }
    let mut ready = false;
    for line in peer.lines.iter().filter_map(|line| line.command.as_ref().ok()) {
        ready |= format!("{line:?}") == "Capabilities";
        assert!(ready, "{line:?} came before capabilities");
    }
    assert_eq!(peer.client.is_ready(), ready);
}

fuzz_target!(|input: &[u8]| {
    let (mut lent, theirs) = UnixStream::pair().expect("a pair of sockets");
    lent.set_nonblocking(true).expect("a flag");
    let (mut peer, mut whole) = (Peer::new(), Vec::new());
    let mut sent = 0;
    for piece in input.split(|byte| *byte == 255) {
        let Some((count, bytes)) = piece.split_first().filter(|(_, bytes)| !bytes.is_empty()) else {
            continue;
        };
        let descriptors = vec![theirs.as_fd(); usize::from(*count) % (OF_PIECE + 1)];
        peer.send(bytes, &descriptors);
        whole.extend_from_slice(bytes);
        sent += descriptors.len();
        let got: usize = peer.lines.iter().map(|line| line.descriptors.len()).sum();
        assert!(got <= sent && peer.lines.iter().all(|line| line.descriptors.len() <= OF_LINE));
    }
    let count = whole.split(|byte| *byte == b'\n').rev().skip(1).filter(|line| !line.trim_ascii().is_empty());
    assert_eq!(peer.lines.len(), count.count(), "each line is answered once");
    if !whole.is_empty() {
        let mut at_once = Peer::new();
        at_once.send(&whole, &[]);
        assert_eq!(at_once.text(), peer.text());
    }
    check(&mut peer);
    drop((peer, theirs));
    assert_eq!(lent.read(&mut [0]).expect("nobody has one of the descriptors"), 0);
});
