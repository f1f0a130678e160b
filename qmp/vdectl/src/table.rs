//! Tables for people: columns two spaces apart, under a heading.
//!
//! A table looks the same on a terminal and in a pipe, so that what was written for one works with the other. No field is
//! empty. Control characters, which guests' command lines and other programs can bring along, never get out.

use std::fmt;

/// A table.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// One that has a heading only.
    pub fn new(heading: &[&str]) -> Self {
        Self { rows: vec![heading.iter().map(|name| (*name).to_owned()).collect()] }
    }

    /// Adds a row. An empty field is a dash.
    pub fn row<S: AsRef<str>>(&mut self, fields: impl IntoIterator<Item = S>) {
        self.rows.push(fields.into_iter().map(|field| clean(field.as_ref())).collect());
    }

    /// The heading is its only row.
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// Of each column, how wide it is and whether numbers stand in it: these are aligned at their ends.
    fn columns(&self) -> Vec<(usize, bool)> {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let fields = |column| self.rows.iter().filter_map(move |row| row.get(column));
        let column = |column| {
            let width = fields(column).map(|field: &String| field.chars().count()).max().unwrap_or(0);
            (width, fields(column).skip(1).all(|field| is_number(field)))
        };
        (0..count).map(column).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.columns();
        for row in &self.rows {
            let mut line = String::new();
            for (field, (width, is_number)) in row.iter().zip(&columns) {
                let padding = " ".repeat(width - field.chars().count());
                let (before, behind) = if *is_number { (&*padding, "") } else { ("", &*padding) };
                line.extend([before, field, behind, "  "]);
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// The field as it may stand in a table.
fn clean(field: &str) -> String {
    let text: String = field.chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    match text.trim() {
        "" => "-".into(),
        text => text.into(),
    }
}

fn is_number(field: &str) -> bool {
    field == "-" || field.starts_with(|c: char| c.is_ascii_digit()) && !field.contains([':', '/'])
}

/// A number in at most four digits and its unit of thousands: `999`, `1.5k`, `23M`.
pub fn short(number: u64) -> String {
    const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let (mut unit, mut scale) = (0, 1u64);
    while number / scale >= 1000 && unit + 1 < UNITS.len() {
        (unit, scale) = (unit + 1, scale * 1000);
    }
    let (whole, tenths) = (number / scale, number % scale * 10 / scale.max(1));
    let name = UNITS.get(unit).copied().unwrap_or_default();
    match whole < 10 && unit > 0 {
        true => format!("{whole}.{tenths}{name}"),
        false => format!("{whole}{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_field() {
        let mut table = Table::new(&["NIC", "FRAMES", "NETWORK"]);
        assert!(table.is_empty());
        table.row(["net0", "12", "vde:///tmp/a"]);
        table.row(["", "1234567", "a network with spaces"]);
        table.row(["ß", "-", ""]);
        let text = "NIC    FRAMES  NETWORK\n\
                    net0       12  vde:///tmp/a\n\
                    -     1234567  a network with spaces\n\
                    ß           -  -\n";
        assert_eq!(table.to_string(), text);
        assert!(!table.is_empty());
    }

    #[test]
    fn no_control_character_gets_out() {
        let mut table = Table::new(&["NIC"]);
        table.row(["a\x1b[2J\nb\u{9b}c\t"]);
        assert_eq!(table.to_string(), "NIC\na?[2J?b?c?\n");
    }

    #[test]
    fn short_numbers_keep_their_size() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1000, "1.0k"),
            (9999, "9.9k"),
            (12_345, "12k"),
            (999_999, "999k"),
            (1_500_000, "1.5M"),
            (u64::MAX, "18E"),
        ];
        for (number, text) in cases {
            assert_eq!(short(number), text);
        }
    }
}
