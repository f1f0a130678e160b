//! When a worker looks at epoll, when it may sleep, and when it reads a link.
//!
//! # Theory of operation
//! A look at epoll is a system call, so a busy worker does not look after each round but once per [`LOOK_INTERVAL`]:
//! commands, other links and the other way of the NIC wait no longer than that and a round. An idle worker sleeps at once,
//! unless it was asked to poll: then it goes on working rounds, with a look after each, until nothing has moved for that
//! long. The drivers' kicks stay off meanwhile. The clock is read once per round, and not at all by a worker that sleeps
//! after an idle one.
//!
//! A link that brings one frame after the other would wake its reader for nearly each of them: the reader is faster than a
//! switch, and takes a core from it every time. So a link that was emptied and whose frames come close together *rests*
//! ([`Rest`]): it is not looked at until a good batch may be there. What is read as a batch can be joined, enters the
//! guest with one call, and is answered with one acknowledgement. A rest is shorter than the time in which a fast sender
//! fills a port's queue, and frames that come now and then never see one.

use std::time::{Duration, Instant};

/// How long a busy worker goes without a look at epoll. A look costs about 0.3 us; the rings of others, a command and the
/// frames that come the other way can wait that long.
const LOOK_INTERVAL: Duration = Duration::from_micros(50);

/// What comes after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another round.
    Round,
    /// Events that are there, then another round.
    Look,
    /// Nothing to do: sleep until an event.
    Sleep,
}

/// The clock of one worker.
#[derive(Debug)]
pub struct Pace {
    /// How long to go on after the last frame.
    poll: Duration,
    looked: Instant,
    worked: Instant,
}

impl Pace {
    /// Of a worker that goes on looking for `poll` after the last frame.
    pub fn new(poll: Duration) -> Self {
        let now = Instant::now();
        // As if the last frame was long ago.
        Self { poll, looked: now, worked: now.checked_sub(poll).unwrap_or(now) }
    }

    /// What comes after a round that moved something, or did not.
    pub fn after(&mut self, moved: bool) -> Next {
        if !moved && self.poll.is_zero() {
            return Next::Sleep;
        }
        self.after_at(moved, Instant::now())
    }

    fn after_at(&mut self, moved: bool, now: Instant) -> Next {
        if moved {
            self.worked = now;
        } else if now.saturating_duration_since(self.worked) >= self.poll {
            return Next::Sleep;
        }
        if moved && now.saturating_duration_since(self.looked) < LOOK_INTERVAL {
            return Next::Round;
        }
        self.looked = now;
        Next::Look
    }
}

/// How many frames a rest waits for: a third of those that fit into a port's queue in the switch, 93 of full length.
const REST_FRAMES: u32 = 32;

/// The longest rest. A TCP burst of 64 KiB takes 150 us through a `vde_switch`.
const REST_MAX: Duration = Duration::from_micros(100);

/// The longest time between two frames that are worth a rest, on average.
const REST_INTERVAL: Duration = Duration::from_micros(25);

/// When a source of frames is left alone.
#[derive(Debug)]
pub struct Rest {
    /// When it brought frames last.
    last: Instant,
    until: Option<Instant>,
}

impl Rest {
    /// Of a source that brought nothing yet.
    pub fn new(now: Instant) -> Self {
        Self { last: now, until: None }
    }

    /// So many frames were just taken, and there are no more. Says whether the source rests now.
    pub fn after(&mut self, frames: usize, now: Instant) -> bool {
        self.until = None;
        if let Some(frames) = u32::try_from(frames).ok().filter(|frames| *frames > 0) {
            let interval = now.saturating_duration_since(self.last) / frames;
            self.last = now;
            self.until = (interval <= REST_INTERVAL).then(|| now + (interval * REST_FRAMES).min(REST_MAX));
        }
        self.until.is_some()
    }

    /// When it ends; `None`: the source does not rest.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Ends it when it is over.
    pub fn keep_time(&mut self, now: Instant) {
        self.until.take_if(|until| *until <= now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn after_rounds_that_move_looks_now_and_then() {
        let mut pace = Pace::new(Duration::ZERO);
        let start = pace.looked;
        assert_eq!(pace.after_at(true, start + 49 * US), Next::Round);
        assert_eq!(pace.after_at(true, start + 50 * US), Next::Look);
        assert_eq!(pace.after_at(true, start + 60 * US), Next::Round);
        assert_eq!(pace.after_at(true, start + 170 * US), Next::Look);
        assert_eq!(pace.after(false), Next::Sleep);
    }

    #[test]
    fn after_the_last_frame_polls_as_long_as_asked() {
        let mut pace = Pace::new(100 * US);
        let start = pace.looked;
        assert_eq!(pace.after_at(false, start), Next::Sleep, "there was no frame yet");
        assert_eq!(pace.after_at(true, start + 10 * US), Next::Round);
        assert_eq!(pace.after_at(false, start + 11 * US), Next::Look);
        assert_eq!(pace.after_at(false, start + 109 * US), Next::Look);
        assert_eq!(pace.after_at(false, start + 110 * US), Next::Sleep);
        // Time goes backwards on some machines.
        assert_eq!(pace.after_at(true, start), Next::Round);
    }

    #[test]
    fn a_source_rests_while_its_frames_come_close_together() {
        let start = Instant::now();
        let mut rest = Rest::new(start);
        let mut until_after = |frames, now| {
            rest.keep_time(now);
            rest.after(frames, now).then(|| rest.until().unwrap())
        };
        assert_eq!(until_after(0, start + 10 * US), None, "nothing came");
        assert_eq!(until_after(1, start + 1000 * US), None, "the first after a while");
        assert_eq!(until_after(1, start + 1026 * US), None, "26 us after it");
        assert_eq!(until_after(1, start + 1051 * US), Some(start + 1151 * US), "25 us after it");
        let fast = start + 1151 * US;
        assert_eq!(until_after(50, fast), Some(fast + 64 * US), "2 us each, so 32 take 64 us");
        assert_eq!(until_after(0, fast + 64 * US), None, "nothing came during the rest");
        // Time goes backwards on some machines.
        assert_eq!(until_after(1, start), Some(start));
    }
}
