//! When a worker looks at epoll, and when it may sleep.
//!
//! # Theory of operation
//! A look at epoll is a system call, so a busy worker does not look after each round but once per [`LOOK_INTERVAL`]:
//! commands, other links and the other way of the NIC wait no longer than that and a round. An idle worker sleeps at once,
//! unless it was asked to poll: then it goes on working rounds, with a look after each, until nothing has moved for that
//! long. The drivers' kicks stay off meanwhile. The clock is read once per round, and not at all by a worker that sleeps
//! after an idle one.

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
}
