//! The plot that README shows: TCP from guest to guest, a bar for each way to connect them.
//!
//! Written by hand: a handful of bars needs no library.

use std::fmt::Write as _;

use anyhow::Result;

use super::line::{Line, Spread};
use crate::places;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 270.0;
const ROW: f64 = 26.0;
const TOP: f64 = 46.0;

/// The lines that are drawn, by their names, with what stands above their bars.
const DRAWN: [(&str, &str); 2] = [
    ("one vde_switch: TCP, 1 stream", "through one vde_switch"),
    ("no switch: TCP, 1 stream", "without a switch"),
];

/// Draws what there is of those lines: into `target/bench`, and from a full run for README as well.
pub fn draw(lines: &[Line], quick: bool) -> Result<()> {
    let found: Vec<(&str, &Line)> = DRAWN
        .iter()
        .filter_map(|(name, title)| Some((*title, lines.iter().find(|line| line.name == *name)?)))
        .collect();
    if found.is_empty() {
        return Ok(());
    }
    let text = svg(&found)?;
    std::fs::write(places::target("bench/guest-tcp.svg"), &text)?;
    if !quick && found.len() == DRAWN.len() {
        std::fs::write(places::root().join("docs/guest-tcp.svg"), &text)?;
    }
    Ok(())
}

fn svg(groups: &[(&str, &Line)]) -> Result<String> {
    let sides = || groups.iter().flat_map(|(_, line)| &line.sides);
    let most = sides().map(|side| side.spread().max).fold(1.0, f64::max);
    let scale = (WIDTH - LEFT - 90.0) / most;
    let (mut body, mut y) = (String::new(), TOP);
    for (title, line) in groups {
        writeln!(body, r#"<text x="12" y="{:.0}" class="group">{title}</text>"#, y + 16.0)?;
        y += ROW;
        for side in line.sides.iter().filter(|side| !side.rounds.is_empty()) {
            let Spread { low, median, high, .. } = side.spread();
            let class = if side.title.starts_with("ours") { "ours" } else { "peer" };
            let (end, middle) = (LEFT + median * scale, y + 11.0);
            writeln!(
                body,
                r#"<text x="{:.0}" y="{:.0}" text-anchor="end">{}</text>"#,
                LEFT - 8.0,
                y + 16.0,
                side.title
            )?;
            writeln!(
                body,
                r#"<rect x="{LEFT}" y="{:.0}" width="{:.1}" height="18" class="{class}"/>"#,
                y + 2.0,
                median * scale
            )?;
            let (from, to) = (LEFT + low * scale, LEFT + high * scale);
            writeln!(body, r#"<path d="M{from:.1} {middle}H{to:.1}" class="range"/>"#)?;
            writeln!(body, r#"<text x="{:.0}" y="{:.0}">{median:.0}</text>"#, end.max(to) + 6.0, y + 16.0)?;
            y += ROW;
        }
        y += ROW / 2.0;
    }
    Ok(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y:.0}" viewBox="0 0 {WIDTH} {y:.0}" font-family="sans-serif" font-size="13">
<style>
text {{ fill: #222 }} .group {{ font-weight: bold }} .ours {{ fill: #2a7f62 }} .peer {{ fill: #b8bcc4 }} .range {{ stroke: #222 }}
</style>
<rect width="100%" height="100%" fill="#fff"/>
<text x="12" y="26" font-size="14">TCP from guest to guest, one stream, Mbit/s: median, and the middle half of the rounds</text>
{body}</svg>
"##
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::line::Side;

    #[test]
    fn svg_has_a_bar_for_each_side_that_was_measured() {
        let side = |title: &str, rounds: &[f64]| Side { rounds: rounds.to_vec(), ..Side::new(title) };
        let line = Line {
            name: "line".into(),
            unit: "Mbit/s",
            sides: vec![side("ours", &[800.0, 1200.0]), side("QEMU", &[300.0]), side("absent", &[])],
            comparisons: Vec::new(),
        };
        let text = svg(&[("group", &line)]).unwrap();
        assert_eq!(text.matches("class=\"ours\"/>").count(), 1);
        assert_eq!(text.matches("class=\"peer\"/>").count(), 1);
        assert!(text.contains(">1000</text>") && !text.contains("absent"));
    }
}
