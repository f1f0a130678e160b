//! `cmd://COMMAND LINE`: frames to and from a program's standard input and output, as a byte stream (module
//! [`stream`](crate::stream)), for instance `cmd://ssh host vde_plug`.
//!
//! Theory of operation. The program gets one end of a stream socket as both. Not pipes, as the original makes them: one
//! descriptor then shows both that frames came and that frames can be sent, and a frame goes in one call or not at
//! all. What came is looked at before it is taken (`MSG_PEEK`), and only as much is taken as was asked for, so that the
//! descriptor stays readable as long as frames wait.
//!
//! The program's end is the link's end; its pidfd is the control descriptor. The link's end is the program's end: it sees
//! its input end, gets a SIGTERM, and is killed if it does not end soon. It stays in our process group, so that it
//! may ask its user for a password on the terminal, and what it says on its standard error is shown.

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use offload::Header;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, SocketType, recv,
    sendmsg, shutdown, socketpair,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::OpenErrorKind;
use crate::link::{FRAME_MAX, FRAME_MIN, Link, LinkError, Meter, RxFrame, Sent, Stats, TxFrame};
use crate::single::{self, Room, Went};
use crate::stream::{Decoder, Event, prefix};

/// How long a program may take to end after SIGTERM, and then after SIGKILL.
const PATIENCE: Duration = Duration::from_millis(500);

/// How much of the stream is looked at in one call.
const LOOK: usize = 64 * 1024;

/// Looks in one call that bring no frame: what is left shows only when more comes.
const BARREN: usize = 256;

/// Why a command could not be made a link.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CmdError {
    /// There is no command.
    #[error("cmd:// names no program; write a command line, as in cmd://ssh host vde_plug")]
    Empty,

    /// The command line's quoting is wrong.
    #[error("bad command line {line:?}, character {at}: {what}")]
    Quoting {
        /// The command line.
        line: String,
        /// Which character, counted from 1.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },

    /// The program could not be started.
    #[error("cannot start {program:?}; write the name of a program that is in PATH, or its whole path")]
    Start {
        /// The program.
        program: OsString,
        /// Why not.
        source: io::Error,
    },

    /// A system call failed.
    #[error("cannot {what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl CmdError {
    /// The coarse class of this error.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            Self::Empty | Self::Quoting { .. } => OpenErrorKind::Usage,
            Self::Start { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => OpenErrorKind::NotFound,
                io::ErrorKind::PermissionDenied => OpenErrorKind::Permission,
                _ => OpenErrorKind::System,
            },
            Self::System { .. } => OpenErrorKind::System,
        }
    }
}

/// A running command.
#[derive(Debug)]
pub(crate) struct CmdLink {
    stream: OwnedFd,
    /// Readable when the program ended.
    ended: OwnedFd,
    child: Mutex<Child>,
    line: String,
    input: Mutex<Input>,
    output: Mutex<Output>,
    meter: Meter,
}

#[derive(Debug)]
struct Input {
    decoder: Decoder,
    look: Box<[u8]>,
}

#[derive(Debug, Default)]
struct Output {
    room: Room,
    /// The rest of a frame whose beginning went: at most one frame.
    rest: Vec<u8>,
}

/// Splits a command line into words as the original does: at spaces; a backslash keeps the next character; '…' keeps
/// everything; so does "…", in which `\"` is no end.
fn words(line: &str) -> Result<Vec<OsString>, CmdError> {
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote: Option<(char, usize)> = None;
    let mut text = line.chars().enumerate();
    let push = |word: &mut Option<Vec<u8>>, letter: char| {
        word.get_or_insert_default().extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
    };
    let wrong = |at: usize, what| CmdError::Quoting { line: line.into(), at: at + 1, what };
    while let Some((at, letter)) = text.next() {
        match (quote, letter) {
            (Some((opened, _)), _) if opened == letter => quote = None,
            (Some(('"', _)), '\\') => {
                push(&mut word, letter);
                if let Some((_, kept)) = text.next() {
                    push(&mut word, kept);
                }
            }
            (Some(_), _) => push(&mut word, letter),
            (None, '\'' | '"') => {
                quote = Some((letter, at));
                word.get_or_insert_default();
            }
            (None, '\\') => {
                let (_, kept) = text.next().ok_or_else(|| wrong(at, "nothing follows this backslash"))?;
                push(&mut word, kept);
            }
            (None, ' ' | '\t' | '\n') => words.extend(word.take()),
            (None, _) => push(&mut word, letter),
        }
    }
    if let Some((_, at)) = quote {
        return Err(wrong(at, "this quote is never closed; close it, or write a backslash before it"));
    }
    words.extend(word);
    Ok(words.into_iter().map(OsString::from_vec).collect())
}

impl CmdLink {
    /// Starts the program.
    pub(crate) fn open(line: &str) -> Result<Self, CmdError> {
        let words = words(line)?;
        let [program, arguments @ ..] = &*words else { return Err(CmdError::Empty) };
        let system = |what| move |source: io::Error| CmdError::System { what, source };
        let (stream, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .map_err(|errno| system("make a socket")(errno.into()))?;
        ioctl_fionbio(&stream, true).map_err(|errno| system("set up a socket")(errno.into()))?;
        let input = theirs.try_clone().map_err(system("make a socket"))?;
        // The command is dropped at once, and with it our copies of the program's end: its end must be the socket's.
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(input)
            .stdout(theirs)
            .spawn()
            .map_err(|source| CmdError::Start { program: program.clone(), source })?;
        let ended = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(ended) => ended,
            Err(errno) => {
                let _ = child.kill().and_then(|()| child.wait());
                return Err(system("watch a process")(errno.into()));
            }
        };
        Ok(Self {
            stream,
            ended,
            child: Mutex::new(child),
            line: line.into(),
            input: Mutex::new(Input { decoder: Decoder::default(), look: vec![0; LOOK].into() }),
            output: Mutex::default(),
            meter: Meter::default(),
        })
    }

    /// Whether the program ended, waiting for it at most this long.
    fn has_ended(&self, patience: Duration) -> bool {
        let timeout = Timespec::try_from(patience).unwrap_or_default();
        poll(&mut [PollFd::new(&self.ended, PollFlags::IN)], Some(&timeout)).is_ok_and(|count| count > 0)
    }

    /// Notes how the program ended, once.
    fn reap(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        match child.try_wait() {
            Ok(Some(status)) => log::debug!("cmd://{} ended: {status}", self.line),
            Ok(None) => log::warn!("cmd://{} does not end, even when it is killed", self.line),
            Err(error) => log::debug!("cmd://{}: {error}", self.line),
        }
    }

    /// Writes what is left of the last frame; whether all of it went.
    fn flush(&self, rest: &mut Vec<u8>) -> Result<bool, LinkError> {
        while !rest.is_empty() {
            match self.write(&[IoSlice::new(rest)])? {
                0 => return Ok(false),
                count => drop(rest.drain(..count)),
            }
        }
        Ok(true)
    }

    /// Writes what goes at once; 0 if nothing does.
    fn write(&self, pieces: &[IoSlice<'_>]) -> Result<usize, LinkError> {
        loop {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match sendmsg(&self.stream, pieces, &mut SendAncillaryBuffer::default(), flags) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN | Errno::NOBUFS) => return Ok(0),
                Err(_) => return Err(LinkError::Closed),
            }
        }
    }

    /// Sends one frame.
    fn write_frame(&self, frame: &[u8], rest: &mut Vec<u8>) -> Result<Went, LinkError> {
        let Some(prefix) = prefix(frame.len()) else { return Ok(Went::Lost) };
        if !self.flush(rest)? {
            return Ok(Went::Again);
        }
        match self.write(&[IoSlice::new(&prefix), IoSlice::new(frame)])? {
            0 => Ok(Went::Again),
            count => {
                // Nothing, as long as a frame is smaller than what the socket takes at once.
                rest.extend(prefix.iter().chain(frame).skip(count));
                Ok(Went::Sent)
            }
        }
    }

    /// Receives up to `frames.len()` frames from what is there now; `None` if nothing is.
    fn read(&self, input: &mut Input, frames: &mut [RxFrame<'_>]) -> Result<Option<usize>, LinkError> {
        let got = match recv(&self.stream, &mut *input.look, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Err(LinkError::Closed),
            Ok((got, _)) => got,
            Err(Errno::INTR) => return Ok(Some(0)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(_) => return Err(LinkError::Closed),
        };
        let mut bytes = input.look.get(..got).unwrap_or_default();
        let mut done = 0;
        while let Some(room) = frames.get_mut(done)
            && let Some(event) = input.decoder.next(&mut bytes)
        {
            match event {
                Event::Frame(frame) if frame.len() >= FRAME_MIN => {
                    room.fill(Header::NONE, frame);
                    self.meter.received(1, frame.len(), 0);
                    done += 1;
                }
                Event::Frame(_) | Event::TooLong { .. } => self.meter.received(0, 0, 1),
            }
        }
        let mut used = got - bytes.len();
        while let Some(taken) = input.look.get_mut(..used).filter(|taken| !taken.is_empty()) {
            match recv(&self.stream, taken, RecvFlags::DONTWAIT) {
                Ok((0, _)) => break,
                Ok((count, _)) => used -= count,
                Err(Errno::INTR) => {}
                Err(_) => return Err(LinkError::Closed),
            }
        }
        Ok(Some(done))
    }
}

impl Drop for CmdLink {
    fn drop(&mut self) {
        let _ = shutdown(&self.stream, Shutdown::Both);
        for signal in [Signal::TERM, Signal::KILL] {
            if self.has_ended(Duration::ZERO) || pidfd_send_signal(&self.ended, signal).is_err() {
                break;
            }
            if self.has_ended(PATIENCE) {
                break;
            }
        }
        self.reap();
    }
}

impl Link for CmdLink {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ended.as_fd())
    }

    fn max_frame(&self) -> usize {
        FRAME_MAX
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let Output { room, rest } = &mut *output;
        single::send(frames, FRAME_MAX, room, &self.meter, |frame| self.write_frame(frame, rest))
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        let mut barren = 0;
        while let Some(rest) = frames.get_mut(done..).filter(|rest| !rest.is_empty() && barren < BARREN) {
            match self.read(&mut input, rest) {
                Ok(Some(0)) => barren += 1,
                Ok(Some(count)) => done += count,
                Ok(None) => break,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn offloads(&self) -> bool {
        false
    }

    fn stats(&self) -> Stats {
        self.meter.stats()
    }

    fn check_control(&self) -> Result<(), LinkError> {
        if !self.has_ended(Duration::ZERO) {
            return Ok(());
        }
        self.reap();
        Err(LinkError::Closed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_those_of_the_original() {
        for (line, expected) in [
            ("ssh host vde_plug", &["ssh", "host", "vde_plug"][..]),
            ("  a \t b\n", &["a", "b"]),
            (
                r#""a\ b" "c\"d" 'e\f' g\ h %41 "" i"j k"l"#,
                &[r"a\ b", r#"c\"d"#, r"e\f", "g h", "%41", "", "ij kl"],
            ),
            ("é\\é", &["éé"]),
            ("", &[]),
        ] {
            assert_eq!(words(line).expect(line), expected);
        }
        for (line, column, what) in
            [("a 'b", 3, "never closed"), ("é\"\\\"", 2, "never closed"), ("a\\", 2, "nothing")]
        {
            let error = words(line).expect_err(line);
            assert!(matches!(&error, CmdError::Quoting { at, .. } if *at == column), "{error}");
            assert!(error.to_string().contains(what), "{error}");
        }
    }

    proptest! {
        #[test]
        fn words_any_text_returns(line in any::<String>()) {
            let _ = words(&line);
        }

        #[test]
        fn words_quoted_are_kept(word in "[^']*") {
            prop_assert_eq!(words(&format!("'{word}'")).unwrap(), [OsString::from(word)]);
        }
    }
}
