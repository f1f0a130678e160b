//! Tells the program that started us that all is up, or why not.
//!
//! The descriptor given by `--ready-fd` gets one line: `READY`, or `ERROR STATUS SENTENCE`; then it is closed. End of file
//! without a line means that we died. Whoever listens there shows the sentence itself, so it does not go to the
//! standard error as well.

use std::fs::File;
use std::io::Write;
use std::os::fd::RawFd;

use crate::sys::Inherited;
use crate::{Failure, Status};

/// Where to tell it; nowhere without `--ready-fd`.
#[derive(Debug)]
pub struct Readiness(Option<File>);

impl Readiness {
    /// Takes the descriptor over.
    pub fn new(fd: Option<RawFd>, inherited: &mut Inherited) -> Result<Self, Failure> {
        let take = |fd| {
            inherited.take(fd).map_err(|e| Failure::new(Status::Usage, format_args!("--ready-fd {fd}: {e}")))
        };
        Ok(Self(fd.map(take).transpose()?.map(File::from)))
    }

    /// Another process tells it: nobody here has it open any more.
    pub fn leave(&mut self) {
        self.0 = None;
    }

    /// All is up.
    pub fn tell_ready(&mut self) {
        self.tell("READY\n");
    }

    /// We are about to exit. False: nobody listens here.
    pub fn tell_failure(&mut self, failure: &Failure) -> bool {
        self.tell(&format!("ERROR {} {}\n", failure.status as u8, failure.sentence.replace('\n', " ")))
    }

    fn tell(&mut self, line: &str) -> bool {
        self.0.take().is_some_and(|mut file| file.write_all(line.as_bytes()).is_ok())
    }
}
