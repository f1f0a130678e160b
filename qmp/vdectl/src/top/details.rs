//! What is said of a NIC below its row: its guest, rings, links, and what it drops.

use vde_control::{Link, Protocol};

use super::columns::{Cell, Tone};
use super::model::{self, Port};
use super::number::{percent, short};
use super::rate::{Flow, LinkRate};
use super::rows::Row;
use crate::features::words as feature_words;

/// How far they stand to the right of their row.
pub const INDENT: usize = 2;

/// How long the numbers of a link are.
const NUMBERS: usize = 52;

/// The lines below a row, on a terminal of this width.
pub fn details(row: &Row<'_>, width: u16) -> Vec<Cell> {
    let mut lines = Vec::new();
    if let Some(trouble) = &row.vm.trouble {
        let words: Vec<String> = trouble.split_whitespace().map(str::to_owned).collect();
        lines.extend(wrapped("late ", &words, width, Tone::Bad));
    }
    if let Some((_, port)) = row.port {
        lines.extend(guest(port));
        lines.extend(rings(port));
        lines.extend(links(port, width));
        lines.extend(wrapped("drops", &dropped(port), width, Tone::Warning));
        let features = port.nic.as_ref().map_or(0, |nic| nic.features);
        lines.extend(wrapped("takes", &feature_words(features), width, Tone::Faint));
    }
    lines
}

fn guest(port: &Port) -> Option<Cell> {
    let nic = port.nic.as_ref()?;
    let mut words = vec![match nic.protocol {
        Protocol::VhostUser => "virtio".to_owned(),
        Protocol::Stream => "stream".to_owned(),
    }];
    words.push(match (nic.connected, nic.pid) {
        (false, _) => "no front end".to_owned(),
        (true, Some(pid)) => format!("process {pid}"),
        (true, None) => "connected".to_owned(),
    });
    words.push(format!("{} queue pair{}", nic.queues, if nic.queues == 1 { "" } else { "s" }));
    if nic.capturing {
        words.push("frames are captured".to_owned());
    }
    Some((format!("guest  {}", words.join(", ")), Tone::Plain))
}

/// Words below each other where they do not fit beside each other.
fn wrapped(title: &str, words: &[String], width: u16, tone: Tone) -> Vec<Cell> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() + INDENT <= usize::from(width) => {
                *line += &format!(" {word}")
            }
            Some(_) => lines.push(format!("       {word}")),
            None => lines.push(format!("{title}  {word}")),
        }
    }
    lines.into_iter().map(|line| (line, tone)).collect()
}

/// Two pairs a line.
fn rings(port: &Port) -> Vec<Cell> {
    let Some(nic) = &port.nic else { return Vec::new() };
    let ring = |ring: &vde_control::Ring| match (ring.size, ring.enabled) {
        (0, _) => "stopped".to_owned(),
        (size, true) => format!("{}/{size}", ring.waiting),
        (size, false) => format!("{}/{size} off", ring.waiting),
    };
    let pairs: Vec<String> = nic
        .rings
        .chunks_exact(2)
        .enumerate()
        .filter_map(|(number, pair)| {
            let [rx, tx] = pair else { return None };
            Some(format!("rx{number} {:<13} tx{number} {:<13}", ring(rx), ring(tx)))
        })
        .collect();
    pairs.chunks(2).map(|pairs| (format!("rings  {}", pairs.concat()), Tone::Plain)).collect()
}

/// A line each; where the longest locator leaves no room for numbers beside it, they have a line of their own.
fn links(port: &Port, width: u16) -> Vec<Cell> {
    let longest = port.links.iter().map(|link| link.locator.chars().count()).max().unwrap_or(0);
    let beside = INDENT + 7 + longest + 2 + NUMBERS <= usize::from(width);
    let mut lines = Vec::new();
    let rates = port.link_rates.iter().copied().chain(std::iter::repeat(None));
    for (Link { id, locator, up, reason, .. }, rate) in port.links.iter().zip(rates) {
        let numbers = rate.map_or_else(String::new, |rate| numbers(&rate));
        let (text, tone) = match up {
            true => (numbers, Tone::Plain),
            false => (format!("down: {}", reason.as_deref().unwrap_or("no reason is known")), Tone::Bad),
        };
        if beside {
            lines.push((format!("{id:<6} {locator:<longest$}  {text}"), tone));
        } else {
            lines.push((format!("{id:<6} {locator}"), tone));
            lines.extend((!text.is_empty()).then(|| (format!("{:7}{text}", ""), tone)));
        }
    }
    lines
}

fn numbers(rate: &LinkRate) -> String {
    let flow = |flow: Flow| format!("{:>5} {:>5}", short(flow.frames), short(flow.bits));
    let all = rate.tx.frames + rate.rx.frames;
    let big = super::rate::share(rate.big, all).map_or("-".to_owned(), percent);
    format!("rx {}  tx {}  drop {:>5}  big% {big:>3}", flow(rate.rx), flow(rate.tx), short(rate.dropped))
}

/// The reasons for which frames were ever dropped.
fn dropped(port: &Port) -> Vec<String> {
    let ever = model::dropped(&port.counters).filter(|(_, count)| **count > 0);
    ever.map(|(reason, count)| {
        let rate = port.rates.as_ref().and_then(|rates| rates.get(reason)).filter(|rate| **rate > 0.0);
        let now = rate.map_or(String::new(), |rate| format!("(+{}/s)", short(*rate)));
        format!("{reason}={count}{now}")
    })
    .collect()
}
