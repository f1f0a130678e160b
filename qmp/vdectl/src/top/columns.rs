//! The columns: title, width, what stands in them, and how rows are ordered by them.

use std::cmp::Ordering;

use super::model::Port;
use super::number::{bar, curve, percent, short};
use super::rows::{Row, State};

/// How something looks; what colour that is, is decided where it is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As ever.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// To be looked at.
    Warning,
    /// Something does not work.
    Bad,
    /// Of little weight.
    Faint,
}

/// What stands in one place.
pub type Cell = (String, Tone);

/// A column.
pub struct Column {
    /// What stands above it.
    pub title: &'static str,
    /// How wide it is; 0: as wide as the terminal allows.
    pub width: u16,
    /// How wide it is in a wide terminal.
    pub wide: u16,
    /// It stands only in terminals that are so wide.
    pub from: u16,
    /// Numbers stand at its right edge.
    pub right: bool,
    /// What stands in a row.
    pub cell: fn(&Row<'_>) -> Cell,
    /// Which of two rows comes first; none if rows are not ordered by it.
    pub order: Option<fn(&Row<'_>, &Row<'_>) -> Ordering>,
}

/// Heights of a curve.
const LEVELS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Width of a bar, in characters.
const BAR: u8 = 5;
/// A terminal of so many columns is wide.
const WIDE: u16 = 150;
/// Width of a curve.
const CURVE: u16 = 30;

fn known(value: Option<f64>, show: fn(f64) -> String) -> Cell {
    match value {
        Some(value) => (show(value), if value > 0.0 { Tone::Plain } else { Tone::Faint }),
        None => ("-".to_owned(), Tone::Faint),
    }
}

/// Large numbers first, and those that are not known last.
fn falling(a: Option<f64>, b: Option<f64>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => b.total_cmp(&a),
        (a, b) => b.is_some().cmp(&a.is_some()),
    }
}

macro_rules! number {
    ($title:literal, $width:literal, $from:literal, $show:expr, $of:expr) => {
        Column {
            title: $title,
            width: $width,
            wide: $width,
            from: $from,
            right: true,
            cell: |row| known(row.port.and_then(|(_, port)| $of(port)), $show),
            order: Some(|a, b| {
                falling(a.port.and_then(|(_, port)| $of(port)), b.port.and_then(|(_, port)| $of(port)))
            }),
        }
    };
}

const fn plain(title: &'static str, width: u16, from: u16, cell: fn(&Row<'_>) -> Cell) -> Column {
    Column { title, width, wide: width, from, right: false, cell, order: None }
}

/// All of them, from left to right.
pub const COLUMNS: &[Column] = &[
    Column {
        order: Some(|a, b| a.vm.name.cmp(&b.vm.name)),
        wide: 20,
        ..plain("VM", 11, 0, |row| named(&row.vm.name))
    },
    Column {
        order: Some(|a, b| a.name().cmp(b.name())),
        wide: 16,
        ..plain("NIC", 9, 0, |row| named(row.name()))
    },
    // What is wrong comes first.
    Column { order: Some(|a, b| b.state().cmp(&a.state())), ..plain("STAT", 4, 0, state) },
    number!("RXpkt", 5, 0, short, |port: &Port| port.rx().map(|flow| flow.frames)),
    number!("RXbit", 5, 0, short, |port: &Port| port.rx().map(|flow| flow.bits)),
    number!("TXpkt", 5, 0, short, |port: &Port| port.tx().map(|flow| flow.frames)),
    number!("TXbit", 5, 0, short, |port: &Port| port.tx().map(|flow| flow.bits)),
    Column { cell: drops, ..number!("DROP", 5, 0, short, Port::drops) },
    plain("RXQ", 5, 0, |row| queue(row, Port::rx_fill, |fill| fill < 0.05)),
    plain("TXQ", 5, 0, |row| queue(row, Port::tx_fill, |fill| fill > 0.95)),
    number!("BIG%", 4, 0, percent, Port::big),
    number!("JOIN", 4, 0, percent, Port::joined),
    Column { right: true, ..plain("QP", 2, 110, queue_pairs) },
    Column { right: true, ..plain("RXSUM", 5, 110, |row| counter(row, "rx_bytes")) },
    Column { right: true, ..plain("TXSUM", 5, 110, |row| counter(row, "tx_bytes")) },
    plain("HISTORY", CURVE, WIDE, history),
    plain("LINKS", 0, 110, links),
];

fn named(name: &str) -> Cell {
    (if name.is_empty() { "-".to_owned() } else { name.to_owned() }, Tone::Plain)
}

fn state(row: &Row<'_>) -> Cell {
    let state = row.state();
    let tone = match state {
        State::Up => Tone::Good,
        State::Part => Tone::Warning,
        State::Down | State::Late => Tone::Bad,
        State::Idle | State::Bare => Tone::Faint,
    };
    (state.word().to_owned(), tone)
}

fn drops(row: &Row<'_>) -> Cell {
    let (text, tone) = known(row.port.and_then(|(_, port)| port.drops()), short);
    (text, if tone == Tone::Plain { Tone::Warning } else { tone })
}

fn queue(row: &Row<'_>, fill: fn(&Port) -> Option<f64>, bad: fn(f64) -> bool) -> Cell {
    match row.port.and_then(|(_, port)| fill(port)) {
        Some(share) => (bar(share, BAR), if bad(share) { Tone::Bad } else { Tone::Plain }),
        None => ("-".to_owned(), Tone::Faint),
    }
}

fn queue_pairs(row: &Row<'_>) -> Cell {
    let nic = row.port.and_then(|(_, port)| port.nic.as_ref());
    (nic.map_or("-".to_owned(), |nic| nic.queues.to_string()), Tone::Faint)
}

fn counter(row: &Row<'_>, name: &str) -> Cell {
    known(row.port.and_then(|(_, port)| port.counters.get(name)).map(|count| *count as f64), short)
}

fn history(row: &Row<'_>) -> Cell {
    let Some((_, port)) = row.port else { return Cell::default() };
    (curve(port.history.iter().copied(), usize::from(CURVE), &LEVELS), Tone::Good)
}

fn links(row: &Row<'_>) -> Cell {
    let Some((_, port)) = row.port else { return Cell::default() };
    let all_up = port.links.iter().all(|link| link.up);
    let locators: Vec<&str> = port.links.iter().map(|link| link.locator.as_str()).collect();
    (locators.join(" "), if all_up { Tone::Plain } else { Tone::Warning })
}

/// The columns that a terminal of this width has, each with its place and width.
pub fn fitting(width: u16) -> Vec<(u16, u16, &'static Column)> {
    let mut x = 0;
    let mut columns = Vec::new();
    for column in COLUMNS.iter().filter(|column| column.from <= width) {
        let left = width.saturating_sub(x);
        let own = match if width >= WIDE { column.wide } else { column.width } {
            0 => left,
            own => own,
        };
        if own == 0 || own > left {
            break;
        }
        columns.push((x, own, column));
        x += own + 1;
    }
    columns
}

/// Orders rows by a column; equal ones by name.
pub fn sort(rows: &mut [Row<'_>], column: usize, reverse: bool) {
    let by = COLUMNS.get(column).and_then(|column| column.order);
    rows.sort_by(|a, b| {
        let order = by.map_or(Ordering::Equal, |by| by(a, b));
        let order = if reverse { order.reverse() } else { order };
        let name = |row: &Row<'_>| (row.vm.name.clone(), row.key());
        order.then_with(|| name(a).cmp(&name(b)))
    });
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::rows::rows;
    use super::super::sample::{answer, model, nic};
    use super::*;

    #[test]
    fn all_that_matters_fits_into_80_columns() {
        let columns = fitting(80);
        let (x, width, last) = columns.last().unwrap();
        assert_eq!(last.title, "JOIN");
        assert!(x + width <= 80);
        assert_eq!(fitting(200).len(), COLUMNS.len());
        assert!(fitting(30).len() < 5);
    }

    #[test]
    fn sort_puts_large_numbers_first_and_unknown_ones_last() {
        let mut model = model(&["a", "b", "c"]);
        for (vm, each) in [("a", 1), ("b", 5)] {
            for count in [1, 2] {
                let time = Duration::from_secs(count);
                model.heard(&format!("/run/{vm}"), time, answer(&[nic("net0", count * each)]));
            }
        }
        let by = COLUMNS.iter().position(|column| column.title == "TXbit").unwrap();
        let order = |column, reverse| -> String {
            let mut rows = rows(&model, "", Duration::from_secs(2), Duration::from_secs(3));
            sort(&mut rows, column, reverse);
            rows.iter().map(|row| row.vm.name.as_str()).collect()
        };
        assert_eq!((order(by, false), order(by, true)), ("bac".into(), "cab".into()));
        assert_eq!((order(0, false), order(0, true)), ("abc".into(), "cba".into()));
    }
}
