//! A program on a terminal of its own: that of a `tmux`, which tells what stands on it.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::{places, process};

/// A terminal with a shell command on it; both end when this is dropped.
pub struct Terminal {
    /// Where its server listens: no other terminal has that.
    folder: TempDir,
}

impl Terminal {
    /// Runs a command of the shell on a new terminal of this size. The terminal stays when the command has ended.
    pub fn start((width, height): (u16, u16), command: &str) -> Result<Self> {
        let terminal = Self { folder: tempfile::Builder::new().prefix("tty").tempdir_in("/tmp")? };
        let size = [width.to_string(), height.to_string()];
        let command = format!("{command}; exec cat");
        terminal.tmux(
            &["-u", "-f", "/dev/null"],
            &["new-session", "-d", "-x", &size[0], "-y", &size[1], &command],
        )?;
        terminal.resize((width, height))?;
        Ok(terminal)
    }

    fn run(&self, options: &[&str], words: &[&str]) -> Result<Output> {
        let mut tmux = Command::new(places::system_program("tmux")?);
        tmux.env_remove("TMUX").env("LC_ALL", "C.UTF-8").env("TMUX_TMPDIR", self.folder.path());
        Ok(tmux.args(options).args(words).output()?)
    }

    fn tmux(&self, options: &[&str], words: &[&str]) -> Result<String> {
        let output = self.run(options, words)?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tmux {words:?}: {complaint}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Makes it larger or smaller.
    pub fn resize(&self, (width, height): (u16, u16)) -> Result<()> {
        let size = [width.to_string(), height.to_string()];
        self.tmux(&[], &["resize-window", "-x", &size[0], "-y", &size[1]]).map(|_| ())
    }

    /// Presses keys, by tmux's names of them.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[], &[&["send-keys"], keys].concat()).map(|_| ())
    }

    /// What stands on it, without the spaces at the ends of lines.
    pub fn text(&self) -> Result<String> {
        self.tmux(&[], &["capture-pane", "-p"])
    }

    /// The same with the sequences for colours and the like.
    pub fn styled_text(&self) -> Result<String> {
        self.tmux(&[], &["capture-pane", "-p", "-e"])
    }

    /// One of tmux's variables, as `cursor_flag`.
    pub fn variable(&self, name: &str) -> Result<String> {
        let text = self.tmux(&[], &["display-message", "-p", &format!("#{{{name}}}")])?;
        Ok(text.trim().to_owned())
    }

    /// Waits until something stands on it, and gives all that does.
    pub fn wait_for(&self, words: &str, limit: Duration) -> Result<String> {
        self.wait_until(&format!("'{words}' stands on the terminal"), limit, |text| text.contains(words))
    }

    /// Waits until what stands on it is as wanted, and gives it.
    pub fn wait_until(&self, what: &str, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let found = process::wait_until(what, limit, || Ok(Some(self.text()?).filter(|text| wanted(text))));
        found.with_context(|| format!("there stands\n{}", self.text().unwrap_or_default()))
    }

    /// The process of the first command that the shell runs.
    pub fn command_pid(&self) -> Result<u32> {
        let shell = self.variable("pane_pid")?;
        let children = Path::new("/proc").join(&shell).join("task").join(&shell).join("children");
        let text = std::fs::read_to_string(children)?;
        match text.split_whitespace().next() {
            Some(pid) => Ok(pid.parse()?),
            None => bail!("the shell on the terminal runs nothing"),
        }
    }

    /// Takes the terminal away from the program, as a window that is closed.
    pub fn close(&self) -> Result<()> {
        self.tmux(&[], &["kill-server"]).map(|_| ())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that was closed is no longer there.
        let _ = self.run(&[], &["kill-server"]);
    }
}
