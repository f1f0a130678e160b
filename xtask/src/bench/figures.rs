//! What came out: medians, ratios, the table.

use std::fmt;

use super::facts::Facts;
use super::plan::Line;

/// Above the first line of the table.
pub const HEADING: &str = "                                frames/s     Mbit/s     lost   CPU: net    ends      first is so many times this";

/// What one side did in one round.
#[derive(Clone, Copy, Default, serde::Serialize)]
pub struct Run {
    /// Frames, and their bytes, that the receivers got in one second.
    pub frames_per_second: f64,
    pub bytes_per_second: f64,
    /// The part of what was sent, without headers, that should have arrived and did not.
    pub lost: f64,
    /// Nanoseconds of CPU, in the ends and in the kernel for them, for each frame that arrived.
    pub end_nanoseconds: f64,
    /// The same of whoever carries the frames: the switch, or the node's process.
    pub network_nanoseconds: f64,
}

/// A side with all its rounds.
#[derive(serde::Serialize)]
pub struct SideResult {
    pub title: &'static str,
    pub wanted: Option<f64>,
    pub rounds: Vec<Run>,
}

/// A line with all its sides.
#[derive(serde::Serialize)]
pub struct LineResult {
    name: String,
    pub sides: Vec<SideResult>,
}

/// Everything.
#[derive(serde::Serialize)]
pub struct Report {
    pub facts: Facts,
    /// How busy the machine was at the end: our own load, and that of others.
    pub load_average_after: String,
    pub lines: Vec<LineResult>,
}

impl SideResult {
    fn median(&self, figure: impl Fn(&Run) -> f64) -> f64 {
        median(self.rounds.iter().map(figure).collect())
    }

    /// How many times as many bytes the `first` one carries, over pairs of rounds that followed each other. Bytes, because
    /// sides may differ in the length of their frames.
    fn ratio(&self, first: &Self) -> Ratio {
        let pairs = first.rounds.iter().zip(&self.rounds);
        let mut ratios: Vec<f64> =
            pairs.map(|(first, this)| first.bytes_per_second / this.bytes_per_second).collect();
        ratios.sort_by(f64::total_cmp);
        let at = |quarter: usize| ratios.get(ratios.len().saturating_sub(1) * quarter / 4).copied();
        let (low, high) = (at(1).unwrap_or_default(), at(3).unwrap_or_default());
        Ratio { low, high, median: median(ratios) }
    }
}

/// The median of ratios, and the quartiles around it.
struct Ratio {
    low: f64,
    median: f64,
    high: f64,
}

impl Ratio {
    /// Whether it is what was wanted. A median alone says nothing where rounds differ by more than it is off.
    fn verdict(&self, wanted: f64) -> &'static str {
        match (self.low >= wanted, self.high < wanted) {
            (true, _) => "as wanted",
            (_, true) => "BELOW",
            _ => "undecided",
        }
    }
}

impl LineResult {
    pub fn new(line: &Line) -> Self {
        let sides = line.sides.iter();
        let sides =
            sides.map(|side| SideResult { title: side.title, wanted: side.wanted, rounds: Vec::new() });
        Self { name: line.name.clone(), sides: sides.collect() }
    }
}

impl fmt::Display for LineResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.name)?;
        for (number, side) in self.sides.iter().enumerate() {
            write!(
                f,
                "  {:<28}{:>10.0} {:>10.0} {:>7.1}% {:>7.0} {:>7.0} ns",
                side.title,
                side.median(|run| run.frames_per_second),
                side.median(|run| run.bytes_per_second) * 8.0 / 1e6,
                side.median(|run| run.lost) * 100.0,
                side.median(|run| run.network_nanoseconds),
                side.median(|run| run.end_nanoseconds),
            )?;
            if number > 0 {
                let ratio = side.ratio(&self.sides[0]);
                write!(f, "   {:.2} ({:.2} to {:.2})", ratio.median, ratio.low, ratio.high)?;
                if let Some(wanted) = side.wanted {
                    write!(f, ", wanted {wanted}: {}", ratio.verdict(wanted))?;
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// The middle one, or the mean of the two in the middle; 0 of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match (values.get(half), values.len() % 2) {
        (None, _) => 0.0,
        (Some(middle), 1) => *middle,
        (Some(above), _) => f64::midpoint(values[half - 1], *above),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(rounds: &[f64]) -> SideResult {
        let run = |rate: &f64| Run { bytes_per_second: *rate, ..Run::default() };
        SideResult { title: "", wanted: None, rounds: rounds.iter().map(run).collect() }
    }

    #[test]
    fn median_odd_and_even_counts() {
        assert_eq!(median(vec![]).to_bits(), 0.0_f64.to_bits());
        assert_eq!(median(vec![9.0, 1.0, 3.0]).to_bits(), 3.0_f64.to_bits());
        assert_eq!(median(vec![4.0, 1.0]).to_bits(), 2.5_f64.to_bits());
    }

    #[test]
    fn ratio_machine_that_slows_down_changes_nothing() {
        let (ours, theirs) = (side(&[8.0, 4.0, 2.0]), side(&[4.0, 2.0, 1.0]));
        assert!((theirs.ratio(&ours).median - 2.0).abs() < 1e-9);
    }

    #[test]
    fn verdict_rounds_on_both_sides_decide_nothing() {
        let (ours, theirs) = (side(&[1.0, 2.0, 3.0, 4.0, 5.0]), side(&[1.0; 5]));
        let ratio = theirs.ratio(&ours);
        assert_eq!(
            [ratio.low, ratio.median, ratio.high].map(f64::to_bits),
            [2.0, 3.0, 4.0_f64].map(f64::to_bits)
        );
        assert_eq!(ratio.verdict(2.0), "as wanted");
        assert_eq!(ratio.verdict(3.5), "undecided");
        assert_eq!(ratio.verdict(4.5), "BELOW");
    }
}
