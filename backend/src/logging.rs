//! The log: a line for each event, on standard error, and never more of them than a disk can take.
//!
//! Each line is about something that happens now and then, but much of it can be had as often as somebody likes: a guest resets its
//! NIC, a front end connects and breaks off, a network comes and goes. So of a long run of lines only some are written, and
//! the next one that is says how many were not. Nobody sees them all: what matters is in the counters.

use std::io::Write;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::LevelFilter;

/// Lines that may come at once. At debug level a NIC with many queues has a hundred at its start.
const BURST: u32 = 1000;
/// Then as many as 10 MB a day.
const PERIOD: Duration = Duration::from_secs(1);

/// Begins to log what is at least of this level.
pub fn start(level: LevelFilter) {
    let limit = Mutex::new(Limit::new(Instant::now()));
    env_logger::Builder::new()
        .filter_level(level)
        .format(move |out, record| {
            match limit.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now()) {
                None => return Ok(()),
                Some(0) => {}
                Some(number) => writeln!(out, "vhost-user-vde: {number} lines were left out here")?,
            }
            writeln!(out, "vhost-user-vde: {}", one_line(&record.args().to_string()))
        })
        .init();
}

/// Names of networks stand in it as somebody wrote them: none makes a second line, or moves a terminal's cursor.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// What may still be written.
struct Limit {
    lines: u32,
    /// When the last of them was added.
    since: Instant,
    left_out: u64,
}

impl Limit {
    fn new(now: Instant) -> Self {
        Self { lines: BURST, since: now, left_out: 0 }
    }

    /// Whether a line may be written, and how many before it were not.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        let passed = now.saturating_duration_since(self.since).as_secs() / PERIOD.as_secs();
        if let Ok(passed @ 1..) = u32::try_from(passed) {
            self.lines = self.lines.saturating_add(passed).min(BURST);
            self.since = now;
        }
        match self.lines.checked_sub(1) {
            Some(left) => {
                self.lines = left;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out = self.left_out.saturating_add(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_one() {
        assert_eq!(one_line("link 'a\nb\u{1b}[2J\u{9b}' is \u{fc}p"), "link 'a b [2J ' is \u{fc}p");
    }

    #[test]
    fn admit_lets_through_a_burst_and_then_one_at_a_time() {
        let begin = Instant::now();
        let mut limit = Limit::new(begin);
        let now = |millis| begin + Duration::from_millis(millis);
        for _ in 0..BURST {
            assert_eq!(limit.admit(now(0)), Some(0));
        }
        for millis in 1..1000 {
            assert_eq!(limit.admit(now(millis)), None);
        }
        assert_eq!(limit.admit(now(1000)), Some(999));
        assert_eq!(limit.admit(now(1001)), None);
        assert_eq!(limit.admit(now(3500)), Some(1));
        assert_eq!(limit.admit(now(3501)), Some(0));
        assert_eq!(limit.admit(now(3502)), None);
        // After a quiet time it is as at the beginning, and no more.
        let later = 1_000_000_000_000;
        let admitted = (0..2 * BURST).filter(|_| limit.admit(now(later)).is_some()).count();
        assert_eq!(admitted, usize::try_from(BURST).unwrap());
    }
}
