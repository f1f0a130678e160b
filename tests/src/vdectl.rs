//! Our `vdectl`, run to its end.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::places;

/// What a run of it gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Its exit status.
    pub status: i32,
    /// What it printed.
    pub text: String,
    /// What it complained of.
    pub complaint: String,
}

/// Runs it with these words.
pub fn run(words: &[&str]) -> Result<Said> {
    let output = Command::new(places::own_program("vdectl")?).args(words).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let status = output.status.code();
    ensure!(status.is_some(), "vdectl {words:?} died: {}", output.status);
    Ok(Said {
        status: status.unwrap_or_default(),
        text: text(&output.stdout),
        complaint: text(&output.stderr),
    })
}

/// Runs it with these words, which it must obey without a complaint, and gives what it printed.
pub fn run_ok(words: &[&str]) -> Result<String> {
    let said = run(words)?;
    ensure!(said.status == 0 && said.complaint.is_empty(), "vdectl {words:?}: {said:?}");
    Ok(said.text)
}
