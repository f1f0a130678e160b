//! What a run leaves behind: `target/bench/AREA.md` to read and `target/bench/AREA.json` to compute with.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::facts::{self, Facts};
use super::line::{Line, Spread, figure};
use crate::places;

/// Everything.
#[derive(serde::Serialize)]
pub struct Report {
    #[serde(skip)]
    name: &'static str,
    /// Not to be quoted.
    quick: bool,
    pub facts: Facts,
    /// How busy the machine was at the end: our own load, and that of others.
    load_average_after: String,
    pub lines: Vec<Line>,
}

impl Report {
    pub fn new(name: &'static str, quick: bool) -> Result<Self> {
        let facts = facts::read()?;
        Ok(Self { name, quick, facts, load_average_after: String::new(), lines: Vec::new() })
    }

    /// Writes both files.
    pub fn write(&self) -> Result<()> {
        for (file, text) in
            [(self.file("md"), self.markdown()?), (self.file("json"), serde_json::to_string_pretty(self)?)]
        {
            std::fs::create_dir_all(places::target("bench"))?;
            std::fs::write(&file, text).with_context(|| format!("{} cannot be written", file.display()))?;
        }
        Ok(())
    }

    /// Writes them for the last time, and says where they are.
    pub fn finish(&mut self) -> Result<String> {
        // Part of it is our own, the ends that want to run: what matters is how it compares with a run on an idle machine.
        self.load_average_after = facts::load_average()?;
        self.write()?;
        let (markdown, json) = (self.file("md"), self.file("json"));
        let load = &self.load_average_after;
        Ok(format!("load average at the end: {load}\nwritten: {}, {}", markdown.display(), json.display()))
    }

    fn file(&self, end: &str) -> PathBuf {
        places::target(&format!("bench/{}.{end}", self.name))
    }

    fn markdown(&self) -> Result<String> {
        let mut text = String::new();
        writeln!(text, "{}", self.facts)?;
        if self.quick {
            writeln!(text, "A quick run: it shows that all works, its figures are not to be quoted.\n")?;
        }
        writeln!(text, "| line | side | median | min to max | |\n|---|---|---:|---|---|")?;
        for line in &self.lines {
            for (number, side) in line.sides.iter().enumerate() {
                let name = if number == 0 { line.name.as_str() } else { "" };
                let Spread { min, median, max, .. } = side.spread();
                let figures = match side.rounds.is_empty() {
                    true => "not measured |".to_owned(),
                    false => format!("{} {} | {} to {}", figure(median), line.unit, figure(min), figure(max)),
                };
                let note = side.trouble.as_deref().unwrap_or(side.note.trim());
                writeln!(
                    text,
                    "| {name} | {} | {figures} | {} |",
                    side.title,
                    note.replace(['\n', '|'], " ")
                )?;
            }
            for sentence in line.sentences() {
                writeln!(text, "| | **{sentence}** | | | |")?;
            }
        }
        Ok(text)
    }
}
