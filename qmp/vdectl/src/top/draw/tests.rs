//! The layout, as the files in `snapshots` have it; `VDEQ_BLESS=1 cargo test -p vdectl` writes them anew.

use std::path::Path;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use vde_control::Join;

use super::super::keys::Key;
use super::super::model::Answer;
use super::super::sample::{answer, model, nic};
use super::*;

const NOW: Duration = Duration::from_secs(10);

/// The whole terminal as text, without the spaces at the ends of lines.
fn drawn(size: (u16, u16), model: &Model, view: &mut View) -> String {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    let theme = Theme { colours: true };
    terminal
        .draw(|frame| {
            let area = frame.area();
            draw(frame.buffer_mut(), area, model, view, NOW, theme);
        })
        .unwrap();
    let buffer = terminal.backend().buffer();
    let lines = buffer.content().chunks(usize::from(size.0));
    lines
        .map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned() + "\n")
        .collect()
}

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/top/draw/snapshots").join(name);
    if std::env::var_os("VDEQ_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap();
    assert!(text == stored, "{} differs; now it is\n{text}", path.display());
}

fn view() -> View {
    View::new(Duration::from_secs(1))
}

/// Three VMs: one with two NICs and a join, one whose back end does not answer any more, one that never did.
fn crowd() -> Model {
    let mut model = model(&["web", "mail.example.org", "new"]);
    for (second, count) in [(6, 100), (8, 1_350), (10, 90_000)] {
        let mut second_nic = nic("net1", count / 3);
        second_nic.links[0].up = false;
        second_nic.links[0].reason = Some("No such file or directory".into());
        second_nic.links.push(nic("", count).links.remove(0));
        second_nic.links[1].id = "link1".into();
        second_nic.links[1].locator = "tap://t0".into();
        second_nic.counters.remove("rx_overrun");
        second_nic.counters.remove("tx_refused");
        second_nic.capturing = true;
        let links = nic("", count).links;
        let join = Join { id: "vlan0".into(), links, counters: Default::default() };
        let at = Duration::from_secs(second);
        let found = Answer { nics: vec![nic("net0", count), second_nic], joins: vec![join] };
        model.heard("/run/web", at, Ok(found));
    }
    let mut quiet = nic("net0", 5);
    quiet.connected = false;
    quiet.rings.clear();
    for second in [1, 2] {
        model.heard("/run/mail.example.org", Duration::from_secs(second), answer(&[quiet.clone()]));
    }
    let silence = "the back end at /run/new does not answer: nothing was said for 15 s";
    model.heard("/run/new", NOW, Err(silence.into()));
    model
}

#[test]
fn layout_at_80x24() {
    compare("80x24.txt", &drawn((80, 24), &crowd(), &mut view()));
}

#[test]
fn layout_at_80x24_unfolded() {
    let (model, mut view) = (crowd(), view());
    drawn((80, 24), &model, &mut view);
    let keys: Vec<RowKey> = rows(&model, "", NOW, view.patience()).iter().map(Row::key).collect();
    view.open.extend(keys);
    compare("80x24-unfolded.txt", &drawn((80, 24), &model, &mut view));
}

#[test]
fn layout_at_200x50() {
    let (model, mut view) = (crowd(), view());
    view.sort = 4;
    compare("200x50.txt", &drawn((200, 50), &model, &mut view));
}

#[test]
fn help_fits_80x24() {
    let mut view = view();
    view.help = true;
    compare("80x24-help.txt", &drawn((80, 24), &crowd(), &mut view));
}

#[test]
fn nothing_runs_and_nothing_matches() {
    let text = drawn((80, 24), &Model::default(), &mut view());
    assert!(text.contains("No VM with a NIC of VDE runs here. Waiting for one; q quits."), "{text}");
    let mut view = view();
    view.filter = "nowhere".into();
    let text = drawn((80, 24), &crowd(), &mut view);
    assert!(text.contains("No NIC has these words") && text.contains("filter: nowhere  q quit"), "{text}");
}

#[test]
fn terminal_that_is_too_small_says_so() {
    for size in [(49, 24), (80, 7), (20, 3)] {
        let text = drawn(size, &crowd(), &mut view());
        assert!(text.starts_with(&format!("{}x{}: too small", size.0, size.1)), "{text}");
    }
    for (width, height) in [(1, 1), (50, 8), (300, 200), (60, 9)] {
        drawn((width, height), &crowd(), &mut view());
    }
}

#[test]
fn many_rows_scroll_with_the_selection() {
    let names: Vec<String> = (0..60).map(|number| format!("vm{number:02}")).collect();
    let model = model(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut view = view();
    let shown = |view: &mut View| drawn((80, 24), &model, view);
    assert!(shown(&mut view).contains("vm20") && !shown(&mut view).contains("vm21"));
    let keys: Vec<RowKey> = rows(&model, "", NOW, view.patience()).iter().map(Row::key).collect();
    view.key(Key::PageDown, &keys);
    let text = shown(&mut view);
    assert!(!text.contains("vm00") && text.contains("vm01") && text.contains("vm21"), "{text}");
    view.key(Key::End, &keys);
    assert!(shown(&mut view).contains("vm59"));
    // Details that do not fit below their row: the row stays in sight.
    view.key(Key::Home, &keys);
    assert!(shown(&mut view).contains("vm00"));
}

#[test]
fn names_bring_no_control_characters_to_the_terminal() {
    let mut model = Model::default();
    model.running(NOW, &[("/run/x".into(), "a\x1b[31mb\r\n".into())]);
    let mut odd = nic("n\x07\u{9b}2J", 1);
    odd.links[0].locator = "vde://\x1b]0;title\x07".into();
    odd.links[0].up = false;
    odd.links[0].reason = Some("no\x1b[2J".into());
    model.heard("/run/x", NOW, answer(&[odd]));
    let text = drawn((200, 50), &model, &mut view());
    assert!(text.contains("a[31mb") && text.contains("vde://]0;title"), "{text}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
}

#[test]
fn colours_are_left_out_where_they_are_not_wanted() {
    for tone in [Tone::Good, Tone::Warning, Tone::Bad] {
        assert!(Theme { colours: true }.style(tone).fg.is_some());
        let style = Theme { colours: false }.style(tone);
        assert_eq!((style.fg, style.bg), (None, None));
    }
}
