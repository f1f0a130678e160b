//! Numbers for narrow columns.

/// A number in five characters at most: `0`, `0.4`, `999`, `1.23k`, `12.3M`, `123G`.
pub fn short(value: f64) -> String {
    const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    // Neither below nothing nor the negative zero that an empty sum is.
    let mut value = if value > 0.0 { value } else { 0.0 };
    let (mut unit, mut units) = ("", UNITS.iter().peekable());
    while let Some(next) = units.next() {
        unit = next;
        if value < 999.5 || units.peek().is_none() {
            break;
        }
        value /= 1000.0;
    }
    let decimals = match (unit, value) {
        ("", value) if value < 9.95 && value.fract() != 0.0 => 1,
        ("", _) => 0,
        (_, value) if value < 9.995 => 2,
        (_, value) if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{unit}")
}

/// A share as per cent without the sign: `0` to `100`.
pub fn percent(share: f64) -> String {
    format!("{:.0}", share * 100.0)
}

/// A share as a bar of `width` characters. Only an empty one has none filled, and only a full one has all.
pub fn bar(share: f64, width: u8) -> String {
    let full = usize::from(width);
    let steps = (1..=width).filter(|step| share >= (f64::from(*step) - 0.5) / f64::from(width)).count();
    let steps = match steps {
        0 if share > 0.0 => 1,
        steps if steps == full && share < 1.0 => full.saturating_sub(1),
        steps => steps,
    };
    format!("{}{}", "|".repeat(steps), ".".repeat(full.saturating_sub(steps)))
}

/// A curve of the latest values, oldest first, as high as the largest of them.
pub fn curve(values: impl ExactSizeIterator<Item = f64> + Clone, width: usize, levels: &[char]) -> String {
    let values = values.clone().skip(values.len().saturating_sub(width));
    let top = values.clone().fold(0.0, f64::max);
    let mut text = " ".repeat(width.saturating_sub(values.len()));
    let highest = u8::try_from(levels.len()).unwrap_or(u8::MAX).saturating_sub(1);
    for value in values {
        let level = (1..=highest).take_while(|level| {
            value > 0.0 && top > 0.0 && value / top > f64::from(*level - 1) / f64::from(highest)
        });
        text.push(levels.get(level.count()).copied().unwrap_or(' '));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_never_exceeds_five_characters() {
        for (value, text) in [
            (0.0, "0"),
            (0.44, "0.4"),
            (9.0, "9"),
            (9.96, "10"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1234.0, "1.23k"),
            (9_996.0, "10.0k"),
            (99_960.0, "100k"),
            (123_456.0, "123k"),
            (999_600.0, "1.00M"),
            (9.87e9, "9.87G"),
            (1.8e19, "18.0E"),
            (-1.0, "0"),
            (-0.0, "0"),
        ] {
            assert_eq!(short(value), text);
            assert!(short(value).len() <= 5);
        }
    }

    #[test]
    fn bar_tells_little_from_nothing_and_much_from_all() {
        assert_eq!(bar(0.0, 5), ".....");
        assert_eq!(bar(0.001, 5), "|....");
        assert_eq!(bar(0.5, 4), "||..");
        assert_eq!(bar(0.999, 5), "||||.");
        assert_eq!(bar(1.0, 5), "|||||");
    }

    #[test]
    fn curve_ends_with_the_latest() {
        let levels = [' ', '.', ':', '#'];
        assert_eq!(curve([0.0, 1.0, 2.0, 3.0].into_iter(), 6, &levels), "   .:#");
        assert_eq!(curve([9.0, 0.0, 0.0].into_iter(), 2, &levels), "  ");
        assert_eq!(curve([].into_iter(), 3, &levels), "   ");
    }
}
