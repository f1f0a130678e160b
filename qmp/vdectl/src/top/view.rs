//! What the person at the keyboard has chosen: order, filter, which row, what is unfolded, how often is looked.

use std::collections::BTreeSet;
use std::time::Duration;

use super::columns::COLUMNS;
use super::keys::Key;
use super::rows::RowKey;

/// The shortest and the longest time between two looks.
pub const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
/// What `+` and `-` choose from, in seconds.
const STEPS: [f64; 10] = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0];
/// No filter is longer.
const FILTER_MAX: usize = 60;

/// What a key asks of the program beyond the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// To be drawn again.
    Draw,
    /// To be drawn again on a terminal in which something else may stand.
    Repaint,
    /// Into the background.
    Suspend,
    /// The end.
    Quit,
}

/// What is chosen.
#[derive(Debug)]
pub struct View {
    /// Place in `COLUMNS` of the one that rows are ordered by.
    pub sort: usize,
    /// The other way round.
    pub reverse: bool,
    /// Words that a row must have.
    pub filter: String,
    /// The filter is being written.
    pub typing: bool,
    /// The row that keys are about.
    pub selected: Option<RowKey>,
    /// Rows with their details.
    pub open: BTreeSet<RowKey>,
    /// The view stands.
    pub paused: bool,
    /// Keys are explained.
    pub help: bool,
    /// Time between two looks.
    pub interval: Duration,
    /// The first line that is seen.
    pub offset: usize,
    /// The place that the selected row had, for when it goes.
    place: usize,
    /// How many rows are a page.
    pub page: usize,
}

impl View {
    /// As it is at the start.
    pub fn new(interval: Duration) -> Self {
        Self {
            sort: 0,
            reverse: false,
            filter: String::new(),
            typing: false,
            selected: None,
            open: BTreeSet::new(),
            paused: false,
            help: false,
            interval,
            offset: 0,
            place: 0,
            page: 1,
        }
    }

    /// How long a back end may be silent before it is said.
    pub fn patience(&self) -> Duration {
        (self.interval * 3).max(Duration::from_secs(3))
    }

    /// The place of the selected row among these; if it is gone, the one that has its place is selected.
    pub fn place(&mut self, rows: &[RowKey]) -> Option<usize> {
        let found = self.selected.as_ref().and_then(|key| rows.iter().position(|row| row == key));
        self.place = found.unwrap_or(self.place).min(rows.len().checked_sub(1)?);
        self.selected = rows.get(self.place).cloned();
        Some(self.place)
    }

    /// Does what a key says; `rows` are those that are shown.
    pub fn key(&mut self, key: Key, rows: &[RowKey]) -> Wish {
        match key {
            Key::Interrupt => return Wish::Quit,
            Key::Suspend => return Wish::Suspend,
            Key::Repaint => return Wish::Repaint,
            _ if self.help => self.help = false,
            key if self.typing => self.type_filter(key),
            Key::Char('q') | Key::Escape => return Wish::Quit,
            Key::Char('?' | 'h') => self.help = true,
            Key::Char('/') => self.typing = true,
            Key::Char('p') => self.paused = !self.paused,
            Key::Char('r') => self.reverse = !self.reverse,
            Key::Char('s' | '>') | Key::Right => self.next_order(1),
            Key::Char('<') | Key::Left => self.next_order(COLUMNS.len() - 1),
            Key::Char('+') => self.next_interval(true),
            Key::Char('-') => self.next_interval(false),
            Key::Char('j') | Key::Down => self.go(rows, |place, _| place + 1),
            Key::Char('k') | Key::Up => self.go(rows, |place, _| place.saturating_sub(1)),
            Key::PageDown => self.go(rows, |place, page| place + page),
            Key::PageUp => self.go(rows, |place, page| place.saturating_sub(page)),
            Key::Home => self.go(rows, |_, _| 0),
            Key::End => self.go(rows, |_, _| usize::MAX),
            Key::Enter | Key::Char(' ') => self.unfold(rows),
            Key::Char(_) | Key::Backspace => {}
        }
        Wish::Draw
    }

    fn type_filter(&mut self, key: Key) {
        match key {
            Key::Enter => self.typing = false,
            Key::Escape => (self.typing, self.filter) = (false, String::new()),
            Key::Backspace => {
                self.filter.pop();
            }
            Key::Char(c) if self.filter.chars().count() < FILTER_MAX => self.filter.push(c),
            _ => {}
        }
    }

    fn next_order(&mut self, step: usize) {
        for _ in 0..COLUMNS.len() {
            self.sort = (self.sort + step) % COLUMNS.len();
            if COLUMNS.get(self.sort).is_some_and(|column| column.order.is_some()) {
                return;
            }
        }
    }

    fn next_interval(&mut self, longer: bool) {
        let now = self.interval.as_secs_f64();
        // A step is as good as reached within a hundredth: 0.1 has no exact form.
        let next = match longer {
            true => STEPS.iter().find(|step| **step > now * 1.01),
            false => STEPS.iter().rev().find(|step| **step < now * 0.99),
        };
        self.interval = next.map_or(self.interval, |step| Duration::from_secs_f64(*step));
    }

    fn go(&mut self, rows: &[RowKey], to: fn(usize, usize) -> usize) {
        if let Some(place) = self.place(rows) {
            self.selected = rows.get(to(place, self.page).min(rows.len() - 1)).cloned();
            self.place(rows);
        }
    }

    fn unfold(&mut self, rows: &[RowKey]) {
        self.place(rows);
        if let Some(key) = &self.selected
            && !self.open.remove(key)
        {
            self.open.insert(key.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(names: &[&str]) -> Vec<RowKey> {
        names.iter().map(|name| RowKey { vm: "vm".into(), port: (*name).into() }).collect()
    }

    fn press(view: &mut View, keys: &[Key], rows: &[RowKey]) {
        for key in keys {
            assert_eq!(view.key(*key, rows), Wish::Draw, "{key:?}");
        }
    }

    fn selected(view: &View) -> &str {
        view.selected.as_ref().map_or("none", |key| key.port.as_str())
    }

    #[test]
    fn selection_stays_with_its_row_and_then_with_its_place() {
        let mut view = View::new(Duration::from_secs(1));
        press(&mut view, &[Key::Down], &rows(&["a", "b", "c"]));
        assert_eq!(selected(&view), "b");
        assert_eq!(view.place(&rows(&["b", "a", "c"])), Some(0));
        assert_eq!(view.place(&rows(&["x", "y"])), Some(0));
        assert_eq!(selected(&view), "x");
        press(&mut view, &[Key::End, Key::Down], &rows(&["x", "y"]));
        assert_eq!(selected(&view), "y");
        assert_eq!(view.place(&[]), None);
        press(&mut view, &[Key::Down, Key::Enter, Key::PageUp], &[]);
        assert_eq!(view.place(&rows(&["z"])), Some(0));
    }

    #[test]
    fn filter_takes_letters_that_are_commands_elsewhere() {
        let mut view = View::new(Duration::from_secs(1));
        let all = rows(&["a"]);
        press(&mut view, &[Key::Char('/'), Key::Char('q'), Key::Char('p'), Key::Backspace, Key::Enter], &all);
        assert_eq!((view.filter.as_str(), view.paused, view.typing), ("q", false, false));
        press(&mut view, &[Key::Char('/'), Key::Char('x'), Key::Escape], &all);
        assert_eq!(view.filter, "");
        press(&mut view, &[Key::Char('/')], &all);
        press(&mut view, &[Key::Char('y'); 200], &all);
        assert_eq!(view.filter.len(), FILTER_MAX);
        assert_eq!(view.key(Key::Interrupt, &all), Wish::Quit);
    }

    #[test]
    fn order_goes_round_through_columns_that_have_one() {
        let mut view = View::new(Duration::from_secs(1));
        let mut seen = BTreeSet::new();
        while seen.insert(view.sort) {
            press(&mut view, &[Key::Char('s')], &[]);
            assert!(COLUMNS[view.sort].order.is_some());
        }
        assert_eq!(view.sort, 0);
        assert_eq!(seen.len(), COLUMNS.iter().filter(|column| column.order.is_some()).count());
        press(&mut view, &[Key::Char('<'), Key::Right], &[]);
        assert_eq!(view.sort, 0);
    }

    #[test]
    fn interval_has_ends() {
        let mut view = View::new(Duration::from_secs(1));
        press(&mut view, &[Key::Char('+')], &[]);
        assert_eq!(view.interval, Duration::from_secs(2));
        press(&mut view, &[Key::Char('-'); 20], &[]);
        assert_eq!(view.interval, Duration::from_millis(100));
        press(&mut view, &[Key::Char('+'); 20], &[]);
        assert_eq!(view.interval, Duration::from_secs(300));
    }

    #[test]
    fn unfold_and_quit() {
        let mut view = View::new(Duration::from_secs(1));
        let all = rows(&["a", "b"]);
        press(&mut view, &[Key::Enter], &all);
        assert_eq!(view.open.iter().map(|key| key.port.as_str()).collect::<Vec<_>>(), ["a"]);
        press(&mut view, &[Key::Char(' ')], &all);
        assert!(view.open.is_empty());
        // Help is left by any key.
        press(&mut view, &[Key::Char('?'), Key::Char('q')], &all);
        assert_eq!(view.key(Key::Char('q'), &all), Wish::Quit);
        assert_eq!(view.key(Key::Escape, &all), Wish::Quit);
        assert_eq!(view.key(Key::Suspend, &all), Wish::Suspend);
    }
}
