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
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open, test_kill_process};

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

    /// Follows whom a predecessor of ours followed. If that has ended, there is nobody to wait for.
    pub fn resume(&mut self, process: Process) {
        match process.is_alive() {
            true => self.came(Some(process.pid)),
            false => self.until = Some(Instant::now()),
        }
    }

    /// Who is followed, if it can be seen.
    pub fn process(&self) -> Option<Process> {
        Process::of(self.process.as_ref()?.0)
    }

    /// A front end of this process came. One that has ended by now did not.
    pub fn came(&mut self, peer: Option<u32>) {
        if self.process.is_none() {
            self.follow(peer.into_iter());
        }
        // Unlike /proc, this says of everybody's processes whether they are there.
        let is_gone = |pid| test_kill_process(pid) == Err(Errno::SRCH);
        if self.process.is_some() || !peer.and_then(as_pid).is_some_and(is_gone) {
            self.until = None;
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
            let watched = as_pid(peer).ok_or(Errno::SRCH).and_then(|pid| {
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

fn as_pid(number: u32) -> Option<Pid> {
    i32::try_from(number).ok().and_then(Pid::from_raw)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use rustix::event::epoll::{CreateFlags, create};

    use super::*;

    #[test]
    fn the_dead_are_not_waited_for() {
        let epoll = Arc::new(create(CreateFlags::CLOEXEC).unwrap());
        let follow = || Follow::new(epoll.clone(), EventData::new_u64(1));
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        let (mut came, mut resumed) = (follow(), follow());
        came.came(Some(process.pid));
        resumed.resume(process);
        assert!([came, resumed].iter().all(|follow| follow.until().is_none() && follow.process().is_some()));
        child.kill().unwrap();
        child.wait().unwrap();
        let (mut came, mut resumed) = (follow(), follow());
        came.came(Some(process.pid));
        assert!(came.until().unwrap() > Instant::now());
        resumed.resume(process);
        assert!(resumed.until().unwrap() <= Instant::now());
        // Who cannot be seen has come all the same.
        came.came(None);
        assert!(came.until().is_none());
    }
}
