//! Real emulators, and paused VMs that answer questions.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::{LIMIT, Running, finish_child, gone, spawn_quiet, stderr};

/// The installed emulator, 10 or newer.
pub fn installed() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut programs = std::env::split_paths(&path).map(|folder| folder.join("qemu-system-x86_64"));
    programs
        .find(|program| program.is_file())
        .expect("qemu-system-x86_64 is not installed: run cargo xtask test")
}

/// One of version 7.2, which lies under `target/`.
pub fn of_7_2(name: &str) -> PathBuf {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/qemu-7.2").join(name);
    assert!(program.exists(), "{} is missing: run cargo xtask test", program.display());
    program
}

/// Both emulators of a PC.
pub fn both() -> [PathBuf; 2] {
    [installed(), of_7_2("qemu-system-x86_64")]
}

/// A VM that does not run, with its monitor.
pub struct Paused {
    client: qmp::Client,
    child: Running,
}

impl Paused {
    /// Starts it by `command`, with `words` after what keeps it paused and quiet.
    pub fn start<'a>(command: &mut Command, words: impl IntoIterator<Item = &'a str>) -> Self {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        command.args(["-S", "-nodefaults", "-display", "none", "-qmp", "stdio"]).args(words);
        command.stdin(OwnedFd::from(theirs.try_clone().expect("a second descriptor")));
        let child = spawn_quiet(command.stdout(OwnedFd::from(theirs)));
        // The ends of the child must be its own for us to see it end.
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        match qmp::Client::new(ours.into(), LIMIT) {
            Ok(client) => Self { client, child },
            Err(error) => panic!("{command:?}: {error}: {}", stderr(&finish_child(child))),
        }
    }

    /// Asks a question that has an answer.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        match self.client.execute(command, arguments) {
            Ok(answer) => answer,
            Err(error) => panic!("{command}: {error}: {}", self.last_words()),
        }
    }

    /// What it complained about, once it has been ended.
    pub fn last_words(&mut self) -> String {
        let mut text = String::new();
        self.child.kill().ok();
        let pipe = self.child.stderr.as_mut().expect("a pipe");
        pipe.read_to_string(&mut text).expect("text");
        text
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it, and waits until nothing of it is left.
    pub fn quit(mut self) {
        let pid = self.pid();
        self.ask("quit", serde_json::json!({}));
        let output = finish_child(self.child);
        assert!(output.status.success(), "{}", stderr(&output));
        gone(pid);
    }
}
