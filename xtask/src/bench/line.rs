//! A line of the table: what each side did in each round, how sides compare, and whether that is what was wanted.
//!
//! Two sides are compared round by round: the ratio is the median of the ratios of rounds that followed each other. A
//! median alone says nothing where rounds differ by more than it is off, so a verdict asks the quartiles.

use std::fmt;

/// One load, and what came of it.
#[derive(Debug, serde::Serialize)]
pub struct Line {
    pub name: String,
    /// What is counted, as `Mbit/s`.
    pub unit: &'static str,
    pub sides: Vec<Side>,
    pub comparisons: Vec<Comparison>,
}

/// One way to carry the load.
#[derive(Debug, Default, serde::Serialize)]
pub struct Side {
    pub title: String,
    /// The figure of each round.
    pub rounds: Vec<f64>,
    /// What the figure itself should be.
    pub limit: Option<Wanted>,
    /// What else there is to say, for the table.
    pub note: String,
    /// The same, round by round, for whoever reads the JSON.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<serde_json::Value>,
    /// Why it was not, or not always, measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// One side beside another.
#[derive(Debug, serde::Serialize)]
pub struct Comparison {
    /// The side that is how many times the other; numbers in the list of sides.
    pub of: usize,
    pub with: usize,
    pub wanted: Option<Wanted>,
}

/// What was promised.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

/// The middle of some numbers, and what lies around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Spread {
    pub min: f64,
    /// A quarter of them is below this one,
    pub low: f64,
    pub median: f64,
    /// and a quarter above that one.
    pub high: f64,
    pub max: f64,
}

impl Side {
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    pub fn spread(&self) -> Spread {
        Spread::of(self.rounds.clone())
    }
}

impl Line {
    /// How many times as much the one side has as the other; `None` if one was not measured.
    pub fn ratio(&self, comparison: &Comparison) -> Option<Spread> {
        let (of, with) = (self.sides.get(comparison.of)?, self.sides.get(comparison.with)?);
        let ratios: Vec<f64> = of.rounds.iter().zip(&with.rounds).map(|(of, with)| of / with).collect();
        (!ratios.is_empty()).then(|| Spread::of(ratios))
    }

    /// A sentence for each thing that is compared or wanted.
    pub fn sentences(&self) -> Vec<String> {
        let limits = self.sides.iter().filter_map(|side| {
            let wanted = side.limit.filter(|_| !side.rounds.is_empty())?;
            Some(format!("{}: wanted {wanted} {}: {}", side.title, self.unit, wanted.verdict(&side.spread())))
        });
        let title = |side: usize| self.sides.get(side).map_or("", |side| side.title.as_str());
        let ratios = self.comparisons.iter().filter_map(|comparison| {
            let ratio = self.ratio(comparison)?;
            let Spread { low, median, high, .. } = ratio;
            let (of, with) = (title(comparison.of), title(comparison.with));
            let mut text = format!("{of} / {with}: {median:.2} ({low:.2} to {high:.2})");
            if let Some(wanted) = comparison.wanted {
                text.push_str(&format!(", wanted {wanted}: {}", wanted.verdict(&ratio)));
            }
            Some(text)
        });
        limits.chain(ratios).collect()
    }
}

impl Wanted {
    /// Kept when three quarters of the rounds keep it, broken when three quarters do not.
    fn verdict(self, spread: &Spread) -> &'static str {
        match self {
            Self::AtLeast(least) if spread.low >= least => "kept",
            Self::AtLeast(least) if spread.high < least => "BELOW",
            Self::AtMost(most) if spread.high <= most => "kept",
            Self::AtMost(most) if spread.low > most => "ABOVE",
            Self::AtLeast(_) | Self::AtMost(_) => "undecided",
        }
    }
}

impl Spread {
    /// All zero of nothing.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (Some(min), Some(max)) = (values.first().copied(), values.last().copied()) else {
            return Self::default();
        };
        let low = values[(values.len() - 1) / 4];
        let half = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[half] } else { f64::midpoint(values[half - 1], values[half]) };
        // Rounded outwards: of few rounds, all of them decide.
        let high = values[((values.len() - 1) * 3).div_ceil(4)];
        Self { min, low, median, high, max }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::AtMost(most) => write!(f, "at most {most}"),
        }
    }
}

/// A figure with as many digits as it has a meaning.
pub fn figure(value: f64) -> String {
    match value.abs() {
        small if small < 10.0 => format!("{value:.2}"),
        middle if middle < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.name)?;
        for side in &self.sides {
            write!(f, "  {:<34}", side.title)?;
            if !side.rounds.is_empty() {
                let Spread { min, median, max, .. } = side.spread();
                let range = format!("({} to {})", figure(min), figure(max));
                write!(f, "{:>10} {:<14} {range:<22}", figure(median), self.unit)?;
            }
            if let Some(trouble) = &side.trouble {
                write!(f, " NOT MEASURED: {trouble}")?;
            }
            writeln!(f, "{}", side.note)?;
        }
        for sentence in self.sentences() {
            writeln!(f, "    {sentence}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(first: &[f64], second: &[f64]) -> Line {
        let side = |rounds: &[f64]| Side { rounds: rounds.to_vec(), ..Side::new("side") };
        Line {
            name: "line".into(),
            unit: "Mbit/s",
            sides: vec![side(first), side(second)],
            comparisons: vec![Comparison { of: 0, with: 1, wanted: Some(Wanted::AtLeast(2.0)) }],
        }
    }

    #[test]
    fn spread_odd_and_even_counts() {
        assert_eq!(Spread::of(vec![]), Spread::default());
        let of = |values: &[f64]| Spread::of(values.to_vec());
        assert_eq!(of(&[9.0, 1.0, 3.0]), Spread { min: 1.0, low: 1.0, median: 3.0, high: 9.0, max: 9.0 });
        assert_eq!(of(&[4.0, 1.0]).median.to_bits(), 2.5_f64.to_bits());
        let five = of(&[5.0, 4.0, 3.0, 2.0, 1.0]);
        assert_eq!(five, Spread { min: 1.0, low: 2.0, median: 3.0, high: 4.0, max: 5.0 });
    }

    #[test]
    fn ratio_machine_that_slows_down_changes_nothing() {
        let line = line(&[8.0, 4.0, 2.0], &[4.0, 2.0, 1.0]);
        let ratio = line.ratio(&line.comparisons[0]).unwrap();
        assert!((ratio.median - 2.0).abs() < 1e-9);
        assert_eq!(line.sentences(), ["side / side: 2.00 (2.00 to 2.00), wanted at least 2: kept"]);
    }

    #[test]
    fn ratio_side_without_rounds_has_none() {
        let line = line(&[8.0], &[]);
        assert_eq!(line.ratio(&line.comparisons[0]), None);
        assert!(line.sentences().is_empty());
    }

    #[test]
    fn verdict_rounds_on_both_sides_decide_nothing() {
        let spread = Spread::of(vec![1.0, 2.0, 3.0, 4.0, 5.0]);
        let verdicts = |wanted: fn(f64) -> Wanted| [2.0, 3.5, 4.5].map(|at| wanted(at).verdict(&spread));
        assert_eq!(verdicts(Wanted::AtLeast), ["kept", "undecided", "BELOW"]);
        assert_eq!(
            [1.5, 3.5, 4.0].map(|at| Wanted::AtMost(at).verdict(&spread)),
            ["ABOVE", "undecided", "kept"]
        );
    }
}
