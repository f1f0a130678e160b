//! Programs that a test makes.
//!
//! Another process writes them. What this one has open for writing, a child that another test is starting at that moment has
//! open too, until it has become its program, and nobody can run a file that somebody may write to ("text file busy").

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Makes a script that everybody may run.
pub fn script(path: &Path, text: &str) -> Result<()> {
    let line = "printf %s \"$1\" >\"$0\" && chmod 755 \"$0\"";
    run(Command::new("sh").args(["-c", line]).arg(path).arg(text))
}

/// Makes a copy of a program.
pub fn copy(program: &Path, path: &Path) -> Result<()> {
    run(Command::new("cp").arg(program).arg(path))
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
