//! One connection to the control socket.
//!
//! # Theory of operation
//! A request is a line. Lines come in any pieces, several at once, and with descriptors, which the kernel gives us with the
//! last of the bytes that it gives us by one call: they belong to the line that has the last of these. What a line has no use
//! for is closed when it was carried out.
//!
//! Answers are written at once as far as the socket takes them; the rest waits.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, recvmsg, send};
use serde_json::{Value, json};

use super::command::{self, Class, Command, Refusal};

/// Longest line, in bytes.
const LINE_MAX: usize = 64 << 10;
/// How much is read at once.
const CHUNK: usize = 16 << 10;
/// Most descriptors of one line; further ones are closed.
const DESCRIPTORS: usize = 16;
/// How much may wait for a client that does not read.
const BACKLOG: usize = 1 << 20;

/// One line that was read.
#[derive(Debug)]
pub struct Line {
    /// What the client calls it.
    pub id: Option<Value>,
    /// What it says.
    pub command: Result<Command, Refusal>,
    /// What came with it.
    pub descriptors: Vec<OwnedFd>,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    socket: UnixStream,
    /// It negotiated capabilities, and may give commands.
    ready: bool,
    /// Bytes behind the last complete line.
    inbox: Vec<u8>,
    /// What came with these.
    descriptors: Vec<OwnedFd>,
    outbox: Vec<u8>,
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Client {
    /// On a connected socket.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, ready: false, inbox: Vec::new(), descriptors: Vec::new(), outbox: Vec::new() }
    }

    /// Whether it negotiated capabilities.
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Adds a line to what is to be written. False: too much waits already.
    pub fn push(&mut self, line: &Value) -> bool {
        if self.outbox.len() > BACKLOG {
            return false;
        }
        self.outbox.extend_from_slice(line.to_string().as_bytes());
        self.outbox.extend_from_slice(b"\r\n");
        true
    }

    /// Writes as much as the socket takes; whether that was all.
    pub fn flush(&mut self) -> rustix::io::Result<bool> {
        let mut gone = 0;
        let result = loop {
            let rest = self.outbox.get(gone..).unwrap_or_default();
            if rest.is_empty() {
                break Ok(true);
            }
            match send(&self.socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => gone += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break Ok(false),
                Err(errno) => break Err(errno),
            }
        };
        self.outbox.drain(..gone);
        result
    }

    /// Reads once, and returns the lines that are complete, and whether the client has gone or has to go.
    pub fn read(&mut self) -> (Vec<Line>, bool) {
        let (ended, mut descriptors) = match self.receive() {
            Ok((count, descriptors)) => (count == 0, descriptors),
            Err(Errno::AGAIN | Errno::INTR) => return (Vec::new(), false),
            Err(_) => (true, Vec::new()),
        };
        let end = self.inbox.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole: Vec<u8> = self.inbox.drain(..end).collect();
        let mut lines: Vec<Line> =
            whole.split(|byte| *byte == b'\n').filter_map(|line| self.line(line.trim_ascii())).collect();
        if let Some(line) = lines.first_mut() {
            line.descriptors.append(&mut self.descriptors);
        }
        let theirs = match lines.last_mut().filter(|_| self.inbox.is_empty()) {
            Some(line) => &mut line.descriptors,
            None => &mut self.descriptors,
        };
        theirs.append(&mut descriptors);
        theirs.truncate(DESCRIPTORS);
        if self.inbox.len() > LINE_MAX {
            let refusal = Refusal::new(Class::GenericError, format!("a line has at most {LINE_MAX} bytes"));
            self.push(&json!({ "error": refusal.to_value() }));
            let _ = self.flush();
            return (lines, true);
        }
        (lines, ended)
    }

    fn line(&mut self, bytes: &[u8]) -> Option<Line> {
        if bytes.is_empty() {
            return None;
        }
        let (id, mut command) = command::parse(bytes);
        match command {
            Ok(Command::Capabilities) => self.ready = true,
            Ok(_) if !self.ready => {
                let desc = "capabilities come first: say {\"execute\": \"qmp_capabilities\"}";
                command = Err(Refusal::new(Class::CommandNotFound, desc));
            }
            _ => {}
        }
        Some(Line { id, command, descriptors: Vec::new() })
    }

    /// How many bytes came, and the descriptors that came with them.
    fn receive(&mut self) -> rustix::io::Result<(usize, Vec<OwnedFd>)> {
        let mut chunk = [0; CHUNK];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        // What does not fit in there, a few more, the kernel closes.
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = recvmsg(&self.socket, &mut [IoSliceMut::new(&mut chunk)], &mut control, flags)?;
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
        descriptors.truncate(DESCRIPTORS);
        self.inbox.extend_from_slice(chunk.get(..got.bytes).unwrap_or_default());
        Ok((got.bytes, descriptors))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Write};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};

    use super::*;

    fn send(socket: &UnixStream, bytes: &str, count: usize) {
        let descriptors = vec![socket.as_fd(); count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2 * DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(count == 0 || control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        let bytes = IoSlice::new(bytes.as_bytes());
        sendmsg(socket, &[bytes], &mut control, SendFlags::empty()).unwrap();
    }

    /// What is read by one call after another: for each complete line, its id and how many descriptors it has.
    fn read(client: &mut Client) -> Vec<(u64, usize)> {
        let mut all = Vec::new();
        loop {
            let waits = rustix::io::ioctl_fionread(&client.socket).unwrap() > 0;
            let (lines, _) = if waits { client.read() } else { return all };
            let line = |line: Line| (line.id.unwrap().as_u64().unwrap(), line.descriptors.len());
            all.extend(lines.into_iter().map(line));
        }
    }

    #[test]
    fn descriptors_are_those_of_the_line_that_they_came_with() {
        let (mut socket, other) = UnixStream::pair().unwrap();
        let mut client = Client::new(other);
        let line = |id: u32| format!("{{\"id\": {id}}}\n");
        send(&socket, &(line(1) + &line(2)), 0);
        send(&socket, &line(3), 2);
        send(&socket, &line(4), 0);
        assert_eq!(read(&mut client), [(1, 0), (2, 0), (3, 2), (4, 0)]);
        // Two in pieces, of which each brings some; one that brings too many; one that has none.
        send(&socket, "{\"id\":", 1);
        assert!(read(&mut client).is_empty());
        send(&socket, &format!("5}}\n{}{{\"id\": ", line(6)), 3);
        assert_eq!(read(&mut client), [(5, 1), (6, 0)]);
        socket.write_all(b"7}\n").unwrap();
        send(&socket, &line(8), DESCRIPTORS + 5);
        socket.write_all(line(9).as_bytes()).unwrap();
        assert_eq!(read(&mut client), [(7, 3), (8, DESCRIPTORS), (9, 0)]);
        for _ in 0..3 {
            send(&socket, " ", DESCRIPTORS);
        }
        read(&mut client);
        assert_eq!(client.descriptors.len(), DESCRIPTORS, "an endless line brings no more than another");
        send(&socket, &line(10), DESCRIPTORS);
        assert_eq!(read(&mut client), [(10, DESCRIPTORS)], "nor does its end bring more");
    }
}
