//! Programs that run beside a test, and `vde_plug` as a source and sink of frames.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use vdeplug::stream::{Decoder, Event, prefix};

use crate::harness::{LONG, until};
use crate::library::Library;

/// A program with all that it started; killed when this is dropped.
pub struct Running {
    pub child: Child,
    ended: Option<ExitStatus>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        // A group of its own: vdens and others start programs that would outlive them.
        let child = command.process_group(0).spawn();
        Self { child: child.unwrap_or_else(|error| panic!("{command:?}: {error}")), ended: None }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("kill");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        until("the program ends", || {
            self.ended = self.ended.or(self.child.try_wait().expect("wait"));
            self.ended.is_some()
        });
        self.ended.expect("it ended")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails when the group is gone.
        let _ = kill_process_group(self.pid(), Signal::KILL);
        if self.ended.is_none() {
            let _ = self.child.wait();
        }
    }
}

/// A `vde_plug` whose stream we hold.
pub struct Plug {
    pub running: Running,
    stdin: Option<ChildStdin>,
    frames: Receiver<Vec<u8>>,
}

impl Plug {
    /// Starts one on a library, with these arguments.
    pub fn start(library: Library, args: &[&str]) -> Self {
        let mut command = library.command("vde_plug");
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running::start(&mut command);
        let stdin = running.child.stdin.take();
        let mut stdout = running.child.stdout.take().expect("a pipe");
        let (sender, frames) = channel();
        std::thread::spawn(move || {
            let (mut decoder, mut bytes) = (Decoder::default(), [0; 4096]);
            while let Ok(got @ 1..) = stdout.read(&mut bytes) {
                decoder.feed(&bytes[..got], |event| {
                    if let Event::Frame(frame) = event {
                        // The test may be over.
                        let _ = sender.send(frame.to_vec());
                    }
                });
            }
        });
        Self { running, stdin, frames }
    }

    /// Writes bytes to its standard input, in one write.
    pub fn write(&mut self, bytes: &[u8]) {
        self.stdin.as_mut().expect("not closed").write_all(bytes).expect("write");
    }

    /// The pipe to its standard input.
    pub fn stdin(&self) -> &ChildStdin {
        self.stdin.as_ref().expect("not closed")
    }

    pub fn send(&mut self, frame: &[u8]) {
        self.write(&framed(frame));
    }

    /// Closes its standard input.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// Waits for a frame that is so.
    pub fn expect(&self, what: &str, is: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let deadline = Instant::now() + LONG;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.frames.recv_timeout(left) {
                Ok(frame) if is(&frame) => return frame,
                Ok(_) => {}
                Err(_) => panic!("in vain: {what}"),
            }
        }
    }

    /// Waits for this frame.
    pub fn receive(&self, frame: &[u8]) {
        self.expect(&format!("a frame of {} bytes", frame.len()), |got| got == frame);
    }

    /// Whether such a frame is among those that have come.
    pub fn has_frame(&self, is: impl Fn(&[u8]) -> bool) -> bool {
        self.frames.try_iter().any(|frame| is(&frame))
    }

    /// Frames that came and were not waited for.
    pub fn left_over(&self) -> usize {
        self.frames.try_iter().count()
    }
}

/// A frame as it goes through a stream.
pub fn framed(frame: &[u8]) -> Vec<u8> {
    [&prefix(frame.len()).expect("short enough"), frame].concat()
}
