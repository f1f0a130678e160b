//! Ending with the virtual machine, for a back end that nobody gave a life line.
//!
//! Whoever connects a QEMU that runs already cannot have it hold the end of a pipe. So the process of a front end is watched
//! by a descriptor: first that of whoever connects first; when it has ended, that of another process whose front end is
//! there (who connects first may only have looked whether somebody listens). If there is none, it is over. It is as well
//! when the last NIC is deleted, and when nobody comes at all.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry::Process;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long nobody needs to come, unless a client of the control socket is there.
const GRACE: Duration = Duration::from_secs(60);

/// Whom we follow.
pub struct Follow {
    epoll: Arc<OwnedFd>,
    /// The word of the event of its end.
    word: EventData,
    process: Option<(u32, OwnedFd)>,
    /// Until when somebody has to come; `None` once somebody has.
    until: Option<Instant>,
}

impl Follow {
    /// Nobody yet.
    pub fn new(epoll: Arc<OwnedFd>, word: EventData) -> Self {
        Self { epoll, word, process: None, until: Some(Instant::now() + GRACE) }
    }

    /// Follows whom a predecessor of ours followed, if that is still there.
    pub fn resume(&mut self, process: Process) {
        if process.is_alive() {
            self.came(Some(process.pid));
        }
    }

    /// Who is followed, if it can be seen.
    pub fn process(&self) -> Option<Process> {
        Process::of(self.process.as_ref()?.0)
    }

    /// A front end of this process came.
    pub fn came(&mut self, peer: Option<u32>) {
        self.until = None;
        if self.process.is_none() {
            self.follow(peer.into_iter());
        }
    }

    /// The process has ended. `peers` are those of the front ends that are there. False: there is nobody left to follow.
    pub fn next(&mut self, peers: impl Iterator<Item = u32>) -> bool {
        let ended = self.process.take().map(|(pid, _)| pid);
        // The end of its own connections may not have been seen yet.
        self.follow(peers.filter(|peer| Some(*peer) != ended));
        self.process.is_some()
    }

    fn follow(&mut self, peers: impl Iterator<Item = u32>) {
        for peer in peers {
            let pid = i32::try_from(peer).ok().and_then(Pid::from_raw);
            let watched = pid.ok_or(rustix::io::Errno::SRCH).and_then(|pid| {
                let process = pidfd_open(pid, PidfdFlags::empty())?;
                epoll::add(&self.epoll, &process, self.word, EventFlags::IN)?;
                Ok(process)
            });
            match watched {
                Ok(process) => return self.process = Some((peer, process)),
                Err(errno) => log::warn!("cannot follow process {peer}: {errno}"),
            }
        }
    }

    /// When there is nobody to wait for any more.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }
}
