//! The terminal: taken as a whole, and given back as it was, however the program ends.

use std::io::{self, BufWriter, IsTerminal, Stdout};
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::Frame;
use ratatui::Terminal;
use ratatui::TerminalOptions;
use ratatui::Viewport;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode, size,
};
use ratatui::layout::Rect;
use ratatui::prelude::CrosstermBackend;

use super::draw::Theme;
use crate::Failure;

/// The terminal is ours.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The size of a terminal that does not say.
const USUAL: (u16, u16) = (80, 24);

/// The whole of a terminal.
#[derive(Debug)]
pub struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
}

/// There must be a terminal, and it must be able to place characters.
pub fn check() -> Result<(), Failure> {
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    if io::stdin().is_terminal() && io::stdout().is_terminal() && !dumb {
        return Ok(());
    }
    Err(Failure::new("top fills a terminal, and there is none here; 'vdectl stats' prints the same numbers"))
}

/// What this terminal can show; <https://no-color.org> is heard.
pub fn theme() -> Theme {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let term = std::env::var("TERM").unwrap_or_default();
    Theme { colours: !unwanted && has_colours(&term) }
}

/// By the names of terminfo: DEC's terminals of one colour, and others' modes without.
fn has_colours(term: &str) -> bool {
    !term.starts_with("vt") && !term.ends_with("-m") && !term.ends_with("-mono")
}

impl Screen {
    /// Takes the terminal. From here on a panic gives it back before it is reported.
    pub fn take() -> io::Result<Self> {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            report(panic);
        }));
        let options = TerminalOptions { viewport: Viewport::Fixed(area()) };
        let output = BufWriter::with_capacity(64 << 10, io::stdout());
        let terminal = Terminal::with_options(CrosstermBackend::new(output), options)?;
        let mut screen = Self { terminal };
        screen.enter()?;
        Ok(screen)
    }

    fn enter(&mut self) -> io::Result<()> {
        TAKEN.store(true, Ordering::Relaxed);
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        self.resize()
    }

    /// Takes it again, after somebody else had it.
    pub fn take_again(&mut self) -> io::Result<()> {
        give_back();
        self.enter()
    }

    /// It may have another size, and anything may stand there.
    pub fn resize(&mut self) -> io::Result<()> {
        self.terminal.resize(area())
    }

    /// Draws.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(draw).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn area() -> Rect {
    let known = size().ok().filter(|(width, height)| *width > 0 && *height > 0);
    let (width, height) = known.unwrap_or(USUAL);
    Rect::new(0, 0, width, height)
}

/// The terminal as it was, if it is taken: a terminal that is told twice puts its cursor back to where it was before. One that
/// has gone takes no notice.
pub fn give_back() {
    if !TAKEN.swap(false, Ordering::Relaxed) {
        return;
    }
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

#[cfg(test)]
mod tests {
    use super::has_colours;

    #[test]
    fn has_colours_by_name() {
        for (term, yes) in [
            ("xterm-256color", true),
            ("screen", true),
            ("linux", true),
            ("vt100", false),
            ("linux-m", false),
        ] {
            assert_eq!(has_colours(term), yes, "{term}");
        }
    }
}
