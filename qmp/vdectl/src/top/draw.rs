//! The view on a buffer of characters.
//!
//! ```text
//!  summary      VMs, NICs, links, what passes altogether
//!  titles       of the columns; the one that rows are ordered by stands out
//!  rows         each with its details below it, if unfolded
//!  details      of the selected row, where the terminal is high
//!  last line    keys, or the filter that is being written
//! ```

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

use super::columns::{COLUMNS, Column, Tone, fitting, sort};
use super::details::details;
use super::model::{Model, Port};
use super::number::short;
use super::rate::Flow;
use super::rows::{Row, RowKey, rows};
use super::view::View;

/// The smallest terminal that shows something of use.
const SMALLEST: (u16, u16) = (50, 8);
/// From this height on, the selected row's details have a place of their own.
const HIGH: u16 = 40;
/// How high that is.
const PANEL: u16 = 12;

/// How things look on this terminal.
#[derive(Clone, Copy, Debug)]
pub struct Theme {
    /// It has colours, and they are wanted.
    pub colours: bool,
}

impl Theme {
    fn style(self, tone: Tone) -> Style {
        let (colour, plain) = match tone {
            Tone::Plain => (None, Modifier::empty()),
            Tone::Good => (Some(Color::Green), Modifier::empty()),
            Tone::Warning => (Some(Color::Yellow), Modifier::BOLD),
            Tone::Bad => (Some(Color::Red), Modifier::BOLD),
            Tone::Faint => (None, Modifier::DIM),
        };
        match colour {
            Some(colour) if self.colours => Style::new().fg(colour),
            _ => Style::new().add_modifier(plain),
        }
    }
}

/// Writes text from a place up to the right edge of `area`; control characters are left out.
fn write(buffer: &mut Buffer, area: Rect, (x, y): (u16, u16), text: &str, style: Style) {
    if y < area.height && x < area.width {
        buffer.set_stringn(area.x + x, area.y + y, text, usize::from(area.width - x), style);
    }
}

/// Draws all of it. Gives the rows in the order in which they are shown, which the next key is about.
pub fn draw(
    buffer: &mut Buffer,
    area: Rect,
    model: &Model,
    view: &mut View,
    now: Duration,
    theme: Theme,
) -> Vec<RowKey> {
    let mut rows = rows(model, &view.filter, now, view.patience());
    sort(&mut rows, view.sort, view.reverse);
    let keys: Vec<RowKey> = rows.iter().map(Row::key).collect();
    let selected = view.place(&keys);
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        let text = format!("{}x{}: too small, 80x24 is enough", area.width, area.height);
        write(buffer, area, (0, 0), &text, Style::new());
        return keys;
    }
    summary(buffer, area, model, &rows, view, theme);
    if view.help {
        help(buffer, area);
        return keys;
    }
    titles(buffer, area, view);
    let panel = if area.height >= HIGH { PANEL } else { 0 };
    let body = Rect { y: area.y + 2, height: area.height - 3 - panel, ..area };
    if rows.is_empty() {
        let text = match model.vms.is_empty() {
            true => "No VM with a NIC of VDE runs here. Waiting for one; q quits.",
            false => "No NIC has these words; / and then Escape shows all.",
        };
        let x = body.width.saturating_sub(u16::try_from(text.len()).unwrap_or(0)) / 2;
        write(buffer, body, (x, body.height / 2), text, Style::new());
    }
    table(buffer, body, &rows, selected, view, theme);
    if let Some(row) = selected.and_then(|place| rows.get(place)).filter(|_| panel > 0) {
        let area = Rect { y: body.bottom(), height: panel, ..area };
        let title =
            format!("{:-<1$}", format!("-- {} {} ", row.vm.name, row.name()), usize::from(area.width));
        write(buffer, area, (0, 0), &title, theme.style(Tone::Faint));
        for (y, (text, tone)) in (1..).zip(details(row, area.width)) {
            write(buffer, area, (2, y), &text, theme.style(tone));
        }
    }
    last_line(buffer, area, view);
    keys
}

fn total<'a>(rows: &[Row<'a>], of: fn(&'a Port) -> Option<Flow>) -> f64 {
    // A join carries on what NICs send.
    let nics = rows.iter().filter_map(|row| row.port).filter(|(_, port)| port.nic.is_some());
    nics.filter_map(|(_, port)| of(port)).map(|flow| flow.bits).sum()
}

fn summary(buffer: &mut Buffer, area: Rect, model: &Model, rows: &[Row<'_>], view: &View, theme: Theme) {
    let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let ports = || model.vms.values().flat_map(|vm| vm.ports.values());
    let links = || ports().flat_map(|port| &port.links);
    let down = links().filter(|link| !link.up).count();
    let text = format!(
        "{}, {}, {}{}   rx {}bit/s  tx {}bit/s",
        count(model.vms.len(), "VM"),
        count(ports().filter(|port| port.nic.is_some()).count(), "NIC"),
        count(links().count(), "link"),
        if down > 0 { format!(" ({down} down)") } else { String::new() },
        short(total(rows, Port::rx)),
        short(total(rows, Port::tx)),
    );
    write(buffer, area, (0, 0), &text, Style::new().add_modifier(Modifier::BOLD));
    let by = COLUMNS.get(view.sort).map_or("", |column| column.title);
    let (text, tone) = match view.paused {
        true => ("PAUSED".to_owned(), Tone::Warning),
        false => (
            format!("by {}{by}, {} s", if view.reverse { "-" } else { "" }, view.interval.as_secs_f64()),
            Tone::Faint,
        ),
    };
    let x = area.width.saturating_sub(u16::try_from(text.len()).unwrap_or(0));
    write(buffer, area, (x, 0), &text, theme.style(tone));
}

fn titles(buffer: &mut Buffer, area: Rect, view: &View) {
    let style = Style::new().add_modifier(Modifier::REVERSED);
    let all = " ".repeat(usize::from(area.width));
    write(buffer, area, (0, 1), &all, style);
    let chosen = COLUMNS.get(view.sort).map(|column| column.title);
    for (x, width, column) in fitting(area.width) {
        let style = match chosen == Some(column.title) {
            true => style.add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
            false => style,
        };
        write(buffer, area, (x, 1), &aligned(column.title, width, column.right), style);
    }
}

/// Text as a column has it; what is cut ends with a plus.
fn aligned(text: &str, width: u16, right: bool) -> String {
    let width = usize::from(width);
    match text.chars().count() > width {
        true => text.chars().take(width.saturating_sub(1)).chain(['+']).collect(),
        false if right => format!("{text:>width$}"),
        false => text.to_owned(),
    }
}

/// The rows that there is room for, the selected one with its details among them.
fn table(
    buffer: &mut Buffer,
    area: Rect,
    rows: &[Row<'_>],
    selected: Option<usize>,
    view: &mut View,
    theme: Theme,
) {
    let columns = fitting(area.width);
    let height = usize::from(area.height);
    view.page = height.max(1);
    let blocks: Vec<_> = rows
        .iter()
        .map(|row| if view.open.contains(&row.key()) { details(row, area.width) } else { Vec::new() })
        .collect();
    let start = blocks.iter().take(selected.unwrap_or(0)).map(|block| block.len() + 1).sum::<usize>();
    let end = start + selected.and_then(|place| blocks.get(place)).map_or(1, |block| block.len() + 1);
    // As far as needed for the end of the selected one, and never beyond its start.
    view.offset = view.offset.max(end.saturating_sub(height)).min(start);
    let mut line = 0;
    for (place, (row, block)) in rows.iter().zip(&blocks).enumerate() {
        let y = |line: usize| line.checked_sub(view.offset).and_then(|y| u16::try_from(y).ok());
        if let Some(y) = y(line).filter(|y| *y < area.height) {
            draw_row(buffer, area, y, row, &columns, theme);
            if selected == Some(place) {
                let whole = Rect { y: area.y + y, height: 1, ..area };
                buffer.set_style(whole, Style::new().add_modifier(Modifier::REVERSED));
            }
        }
        for (number, (text, tone)) in (1..).zip(block) {
            if let Some(y) = y(line + number) {
                write(buffer, area, (2, y), text, theme.style(*tone));
            }
        }
        line += 1 + block.len();
    }
}

fn draw_row(
    buffer: &mut Buffer,
    area: Rect,
    y: u16,
    row: &Row<'_>,
    columns: &[(u16, u16, &Column)],
    theme: Theme,
) {
    for (x, width, column) in columns {
        let (text, tone) = (column.cell)(row);
        // Numbers of a back end that does not answer are old.
        let tone = if row.late && tone != Tone::Bad { Tone::Faint } else { tone };
        let place = Rect { x: area.x + x, y: area.y + y, width: *width, height: 1 };
        write(buffer, place, (0, 0), &aligned(&text, *width, column.right), theme.style(tone));
    }
}

fn last_line(buffer: &mut Buffer, area: Rect, view: &View) {
    let y = area.height - 1;
    if view.typing {
        write(buffer, area, (0, y), &format!("filter: {}_", view.filter), Style::new());
        return;
    }
    let keys = "q quit  s sort  r reverse  / filter  Enter unfold  p pause  + - interval  ? help";
    let text = match view.filter.as_str() {
        "" => keys.to_owned(),
        filter => format!("filter: {filter}  {keys}"),
    };
    let line = format!("{text:<0$}", usize::from(area.width));
    write(buffer, area, (0, y), &line, Style::new().add_modifier(Modifier::REVERSED));
}

/// What keys and columns mean.
const HELP: &str = "\
q, Escape, Ctrl-C  quit              Up, Down, j, k  choose a row
s, <, >            order by column   r               the other way round
Enter, Space       unfold a row      /               show what has these words
p                  pause             +, -            look less, more often

RX enters the guest, TX leaves it; k, M, G are powers of 1000, all per second.
STAT  up; part, down: some or no links carry; idle: no guest is connected;
      late: the back end does not answer, and the numbers are old
DROP  frames dropped; unfold the row for the reasons
RXQ   the guest's empty buffers (few: it does not keep up)
TXQ   frames of the guest that wait (many: the network does not keep up)
BIG%  share of frames that pass its links unsegmented
JOIN  per cent of received segments that were joined into larger frames
";

fn help(buffer: &mut Buffer, area: Rect) {
    for (y, line) in (2..).zip(HELP.lines()) {
        write(buffer, area, (1, y), line, Style::new());
    }
    write(buffer, area, (1, area.height - 1), "Any key goes back.", Style::new());
}

#[cfg(test)]
mod tests;
