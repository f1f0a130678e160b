//! Counters become rates: two readings, the time between them, and what does not fit.
//!
//! A counter that is smaller than before belongs to a back end that was started anew; a time that does not go on gives no
//! rate either. Both are "not known", never a huge number.

use std::collections::BTreeMap;
use std::time::Duration;

use vde_control::Traffic;

/// Counters that only grow, by name.
pub type Counters = BTreeMap<String, u64>;

/// Frames and bits per second in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// Frames per second.
    pub frames: f64,
    /// Bits per second.
    pub bits: f64,
}

/// What one link did in the time between two readings, each per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LinkRate {
    /// From the guest.
    pub tx: Flow,
    /// To the guest.
    pub rx: Flow,
    /// Dropped in both directions.
    pub dropped: f64,
    /// Handed over unsegmented, in both directions.
    pub big: f64,
}

/// The seconds from one reading to the next; none if time stood still or ran backwards.
pub fn seconds(before: Duration, after: Duration) -> Option<f64> {
    let elapsed = after.checked_sub(before)?.as_secs_f64();
    (elapsed > 0.0).then_some(elapsed)
}

fn per_second(before: u64, after: u64, seconds: f64) -> Option<f64> {
    // Beyond 2^53 the last digits are lost, which nobody reads.
    Some(after.checked_sub(before)? as f64 / seconds)
}

/// The rate of each counter. A name that is new has counted from zero; none at all if one of them was set back.
pub fn of_counters(before: &Counters, after: &Counters, seconds: f64) -> Option<BTreeMap<String, f64>> {
    after
        .iter()
        .map(|(name, now)| {
            let then = before.get(name).copied().unwrap_or(0);
            Some((name.clone(), per_second(then, *now, seconds)?))
        })
        .collect()
}

/// The rates of a link; none if one of its counters was set back.
pub fn of_link(before: &Traffic, after: &Traffic, seconds: f64) -> Option<LinkRate> {
    let rate = |of: fn(&Traffic) -> u64| per_second(of(before), of(after), seconds);
    Some(LinkRate {
        tx: Flow { frames: rate(|t| t.tx_frames)?, bits: rate(|t| t.tx_bytes)? * 8.0 },
        rx: Flow { frames: rate(|t| t.rx_frames)?, bits: rate(|t| t.rx_bytes)? * 8.0 },
        dropped: rate(|t| t.tx_dropped)? + rate(|t| t.rx_dropped)?,
        big: rate(|t| t.tx_big)? + rate(|t| t.rx_big)?,
    })
}

/// Which share of the whole a part is; none if there is no whole.
pub fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| (part / whole).clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(list: &[(&str, u64)]) -> Counters {
        list.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn seconds_that_do_not_go_on_are_none() {
        let at = Duration::from_millis;
        assert_eq!(seconds(at(1000), at(3000)), Some(2.0));
        assert_eq!(seconds(at(1000), at(1000)), None);
        assert_eq!(seconds(at(3000), at(1000)), None);
    }

    #[test]
    fn of_counters_divides_and_takes_new_names_from_zero() {
        let (before, after) = (counters(&[("a", 10)]), counters(&[("a", 30), ("b", 5)]));
        let rates = of_counters(&before, &after, 2.0).unwrap();
        assert_eq!((rates["a"], rates["b"]), (10.0, 2.5));
    }

    #[test]
    fn of_counters_set_back_gives_nothing() {
        let (before, after) = (counters(&[("a", 10), ("b", 7)]), counters(&[("a", 11), ("b", 0)]));
        assert_eq!(of_counters(&before, &after, 1.0), None);
        // The largest numbers there are.
        let (before, after) = (counters(&[("a", 0)]), counters(&[("a", u64::MAX)]));
        assert!(of_counters(&before, &after, 1e-9).unwrap()["a"].is_finite());
    }

    #[test]
    fn of_link_sums_what_both_directions_share() {
        let before = Traffic { tx_frames: 1, ..Traffic::default() };
        let after = Traffic {
            tx_frames: 5,
            tx_bytes: 1000,
            tx_dropped: 2,
            tx_big: 1,
            rx_dropped: 4,
            rx_big: 3,
            ..Traffic::default()
        };
        let rate = of_link(&before, &after, 2.0).unwrap();
        assert_eq!(rate.tx, Flow { frames: 2.0, bits: 4000.0 });
        assert_eq!((rate.dropped, rate.big), (3.0, 2.0));
        assert_eq!(of_link(&after, &before, 2.0), None);
    }

    #[test]
    fn share_of_nothing_is_none() {
        assert_eq!(share(0.0, 0.0), None);
        assert_eq!(share(1.0, 4.0), Some(0.25));
        // Counters are not read at one instant: a part may be ahead of its whole.
        assert_eq!(share(5.0, 4.0), Some(1.0));
    }
}
