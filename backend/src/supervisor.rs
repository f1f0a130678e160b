//! A worker that was killed has a successor, for as long as there is somebody to serve.
//!
//! # Theory of operation
//! Before there is a thread, a network or a socket of a NIC, the process forks. The child is the worker, which does all that
//! this program does; the parent waits for its end. A worker that ended by itself is the end of both, with its status. One that
//! a signal has killed (a mistake of ours, a plug-in's, the system without memory) is forked once more, from a process as it was
//! at the beginning: it has the inherited descriptors, finds in the [`Journal`] what the dead one served, and tries networks that
//! are not there again and again, because the machine runs and ending would be worse. The same is tried again after a worker
//! that could not begin.
//!
//! The first successor comes after a tenth of a second: QEMU connects again after a whole one, and a switch has time to free
//! the ports of the dead (Debian's loses track of one that is opened at the very moment at which another is closed). Who is
//! killed again soon waits ever longer, up to five seconds. During that time the supervisor hears signals and the life line,
//! and a process that is followed is looked for; what the dead worker had made is then removed here.
//!
//! The sockets of NICs are the worker's, so that nobody listens while nobody serves: QEMU waits for the answer of who has
//! taken its connection, and its guest with it. The control socket is kept here: a client of that may wait, and who
//! looks whether the back end lives is told the truth.
//!
//! A worker whose supervisor was killed goes on alone; before it is ready, it ends with it, since its starter knows only that one.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_acceptconn;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, waitpid,
};

use crate::cli::{Config, Door};
use crate::control;
use crate::journal::{Journal, Served};
use crate::readiness::Readiness;
use crate::socket::{self, OwnName};
use crate::sys::{self, Inherited};
use crate::{Failure, Status};

/// Before the first successor.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Before any successor.
const LAST_DELAY: Duration = Duration::from_secs(5);
/// Who lived so long was not killed by what it began with.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// Waits for workers.
#[derive(Debug)]
pub struct Supervisor {
    journal: Journal,
    /// Readable when we are to end.
    signals: OwnedFd,
    /// Removed from the file system by whichever process ends in order.
    control: Option<OwnName>,
    patience: Patience,
    /// Somebody has sent a signal that ends us.
    ending: bool,
}

/// What a process is after [`Supervisor::run`].
#[derive(Debug)]
pub enum Role {
    /// It is to serve.
    Worker(Worker),
    /// The supervisor, when all is over.
    Over(ExitCode),
}

/// What a worker has of its supervisor.
#[derive(Debug)]
pub struct Worker {
    journal: Journal,
    served: Option<Served>,
    control: Option<OwnName>,
}

impl Worker {
    /// What it keeps up to date, what its predecessor served, and the name of the control socket.
    pub fn parts(self) -> (Option<Journal>, Option<Served>, Option<OwnName>) {
        (Some(self.journal), self.served, self.control)
    }
}

/// All is up: from now on the worker is worth something without its supervisor.
pub fn leave() {
    if let Err(errno) = set_parent_process_death_signal(None) {
        log::warn!("the supervisor's end will be ours: {errno}");
    }
}

impl Supervisor {
    /// Makes what all workers have in common.
    pub fn new(config: &mut Config, inherited: &mut Inherited) -> Result<Self, Failure> {
        let failed = |error| Failure::system("cannot supervise", error);
        let is_connection = |fd| socket_acceptconn(fd) == Ok(false);
        let mut given = config.nics.iter().filter_map(|nic| nic.door.fd());
        if let Some(fd) = given.find(|fd| inherited.get(*fd).is_some_and(is_connection)) {
            return Err(Failure::new(
                Status::Usage,
                format_args!(
                    "--supervise: descriptor {fd} is a connection, which ends with the first worker; drop one"
                ),
            ));
        }
        let mut control = None;
        if let Some(Door::Path(path)) = &config.control {
            let (listener, name) = socket::bind(path, Some(control::MODE))?;
            config.control = Some(Door::Fd(listener.as_raw_fd()));
            inherited.add(listener.into());
            control = Some(name);
        }
        let signals = sys::take_signals().map_err(failed)?;
        sys::hear_of_children().map_err(failed)?;
        let journal = Journal::new().map_err(failed)?;
        Ok(Self { journal, signals, control, patience: Patience(Duration::ZERO), ending: false })
    }

    /// Goes on as workers, one after the other, and as the one that waits for them.
    pub fn run(
        mut self,
        config: &Config,
        inherited: &Inherited,
        ready: &mut Readiness,
    ) -> Result<Role, Failure> {
        let failed = |error| Failure::system("cannot start a worker", error);
        let mut served: Option<(u64, Served)> = None;
        loop {
            let (begin, ours) = (Instant::now(), getpid());
            let Some(worker) = sys::fork(inherited).map_err(failed)? else {
                return self.become_worker(ours, served.map(|(_, served)| served));
            };
            ready.leave();
            let status = self.wait_for(worker)?;
            let before = served.as_ref().map(|(number, _)| *number);
            served = self.journal.read();
            let has_served = served.as_ref().map(|(number, _)| *number) != before;
            let over = match status.code() {
                Some(code) if code == 0 || before.is_none() || has_served => {
                    return Ok(Role::Over(ExitCode::from(
                        u8::try_from(code).unwrap_or(Status::System as u8),
                    )));
                }
                Some(_) => self.ending,
                None => self.ending || served.is_none(),
            };
            let delay = self.patience.next(begin.elapsed());
            let shown = worker.as_raw_nonzero();
            if over {
                log::error!("process {shown}, which served, has ended by {status}");
            } else {
                log::error!(
                    "process {shown}, which served, has ended by {status}; the next one begins in {delay:?}, and its counters at 0"
                );
            }
            let lifeline = config.lifeline.and_then(|fd| inherited.get(fd));
            let followed = served.as_ref().and_then(|(_, served)| served.followed);
            if over || !self.pause(delay, lifeline)? || followed.is_some_and(|process| !process.is_alive()) {
                served.iter().for_each(|(_, served)| remove_sockets(served));
                let status = if over { Status::System as u8 } else { 0 };
                return Ok(Role::Over(ExitCode::from(status)));
            }
        }
    }

    fn become_worker(self, supervisor: Pid, served: Option<Served>) -> Result<Role, Failure> {
        if served.is_none() {
            let failed = |errno: Errno| Failure::system("cannot be supervised", errno);
            set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
            if getppid() != Some(supervisor) {
                return Err(Failure::new(Status::System, "the supervisor has ended"));
            }
        }
        Ok(Role::Worker(Worker { journal: self.journal, served, control: self.control }))
    }

    /// Waits until a worker has ended, and passes signals on to it.
    fn wait_for(&mut self, worker: Pid) -> Result<ExitStatus, Failure> {
        let failed = |errno: Errno| Failure::system("cannot wait for a worker", errno);
        // It is not reaped before it is waited for, and so keeps its number until then.
        let process = pidfd_open(worker, PidfdFlags::empty()).map_err(failed)?;
        loop {
            let mut fds = [PollFd::new(&process, PollFlags::IN), PollFd::new(&self.signals, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(failed(errno)),
            }
            let [ended, signalled] = fds.map(|fd| !fd.revents().is_empty());
            if signalled {
                self.note_signal();
                // One that has ended meanwhile needs none.
                let _ = pidfd_send_signal(&process, Signal::TERM);
            }
            if ended && let Some((_, status)) = waitpid(Some(worker), WaitOptions::empty()).map_err(failed)? {
                return Ok(ExitStatus::from_raw(status.as_raw()));
            }
        }
    }

    fn note_signal(&mut self) {
        // As much as describes one; several of them say the same.
        let _ = rustix::io::read(&self.signals, &mut [0u8; 128]);
        self.ending = true;
    }

    /// Waits before a successor. False: there is to be none.
    fn pause(&mut self, delay: Duration, lifeline: Option<BorrowedFd<'_>>) -> Result<bool, Failure> {
        let failed = |error: io::Error| Failure::system("cannot wait", error);
        let until = Instant::now() + delay;
        loop {
            let left = Timespec::try_from(until.saturating_duration_since(Instant::now()));
            let left = left.map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
            let signals = PollFd::new(&self.signals, PollFlags::IN);
            let lifeline = lifeline.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            let mut fds: Vec<PollFd<'_>> = [signals].into_iter().chain(lifeline).collect();
            match poll(&mut fds, Some(&left)) {
                Ok(count) => return Ok(count == 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }
}

/// Removes the sockets of NICs on which nobody listens any more.
fn remove_sockets(served: &Served) {
    for path in served.nics.iter().filter_map(|nic| nic.config.door.path()) {
        if let Err(failure) = socket::remove_stale(path) {
            log::warn!("{}", failure.sentence);
        }
    }
}

/// The last delay.
#[derive(Clone, Copy, Debug)]
struct Patience(Duration);

impl Patience {
    /// How long to wait after a worker that lived so long.
    fn next(&mut self, lived: Duration) -> Duration {
        self.0 = if lived > LONG_LIFE { FIRST_DELAY } else { (self.0 * 2).clamp(FIRST_DELAY, LAST_DELAY) };
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_to_a_limit_and_begins_anew_after_a_long_life() {
        let mut patience = Patience(Duration::ZERO);
        let delays = [(); 8].map(|()| patience.next(Duration::ZERO).as_millis());
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(patience.next(LONG_LIFE * 2), FIRST_DELAY);
        assert_eq!(patience.next(LONG_LIFE), FIRST_DELAY * 2);
    }
}
