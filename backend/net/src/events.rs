//! What a thread waits for: descriptors, edge- or level-triggered as their owner wants, and a time.
//!
//! The time has a timer of its own among the descriptors, because rounding it to epoll's milliseconds would make a rest of
//! 100 us ten times as long.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

/// The word of the timer's events, which nobody but this module sees.
const ALARM: u64 = u64::MAX;
/// How many events are taken by one call.
const EVENTS: usize = 16;

/// How long to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Look,
    /// Until something happens, or until then.
    Sleep(Option<Instant>),
}

/// An epoll descriptor and a timer.
#[derive(Debug)]
pub struct Events {
    epoll: Arc<OwnedFd>,
    alarm: OwnedFd,
}

impl Events {
    /// With nothing to wait for yet.
    pub fn new() -> std::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let alarm = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &alarm, EventData::new_u64(ALARM), EventFlags::IN | EventFlags::ET)?;
        Ok(Self { epoll: Arc::new(epoll), alarm })
    }

    /// A list for [`Events::wait`].
    pub fn list() -> Vec<Event> {
        Vec::with_capacity(EVENTS)
    }

    /// The epoll descriptor, for who watches descriptors of its own.
    pub fn epoll(&self) -> &Arc<OwnedFd> {
        &self.epoll
    }

    /// Watches a descriptor, whose events have this word.
    pub fn add(&self, fd: impl AsFd, word: u64, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(word), flags)
    }

    /// Changes what is watched of a descriptor. What is there already counts as an edge.
    pub fn modify(&self, fd: impl AsFd, word: u64, flags: EventFlags) -> rustix::io::Result<()> {
        epoll::modify(&self.epoll, fd, EventData::new_u64(word), flags)
    }

    /// Watches a descriptor no longer; of one that is not watched, nothing happens.
    pub fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Puts what happened into an empty list.
    pub fn wait(&self, events: &mut Vec<Event>, wait: Wait) -> rustix::io::Result<()> {
        if let Wait::Sleep(Some(until)) = wait {
            self.set_alarm(until)?;
        }
        let limit = (wait == Wait::Look).then(Timespec::default);
        match epoll::wait(&self.epoll, spare_capacity(events), limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        events.retain(|event| event.data.u64() != ALARM);
        Ok(())
    }

    fn set_alarm(&self, until: Instant) -> rustix::io::Result<()> {
        // At least a little: a time of zero would mean never.
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let time = |duration| Timespec::try_from(duration).unwrap_or_default();
        let once = Itimerspec { it_interval: time(Duration::ZERO), it_value: time(left) };
        timerfd_settime(&self.alarm, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn a_sleep_ends_with_an_event_or_its_time() {
        let events = Events::new().unwrap();
        let mut list = Events::list();
        let start = Instant::now();
        let until = start + Duration::from_micros(200);
        events.wait(&mut list, Wait::Sleep(Some(until))).unwrap();
        assert!(Instant::now() >= until && list.is_empty());
        events.wait(&mut list, Wait::Sleep(Some(start))).unwrap();
        assert!(list.is_empty(), "a time that is over");

        let fd = eventfd(1, EventfdFlags::NONBLOCK).unwrap();
        events.add(&fd, 7, EventFlags::IN | EventFlags::ET).unwrap();
        events.wait(&mut list, Wait::Sleep(None)).unwrap();
        assert_eq!(list.drain(..).map(|event| event.data.u64()).collect::<Vec<_>>(), [7]);
        events.wait(&mut list, Wait::Look).unwrap();
        assert!(list.is_empty(), "no new edge");
        events.modify(&fd, 8, EventFlags::IN | EventFlags::ET).unwrap();
        events.wait(&mut list, Wait::Look).unwrap();
        assert_eq!(list.drain(..).map(|event| event.data.u64()).collect::<Vec<_>>(), [8]);
        events.remove(&fd);
        events.remove(&fd);
        rustix::io::write(&fd, &1u64.to_ne_bytes()).unwrap();
        events.wait(&mut list, Wait::Look).unwrap();
        assert!(list.is_empty());
    }
}
