//! The back end's control socket, typed; `docs/control.md` is its description.

use std::error::Error as _;
use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qmp::{Address, Client, Error};
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use vde_control::{CaptureStart, Join, LinkId, Nic, NicAdd};

use crate::Failure;
use crate::vm::PATIENCE;

/// A connection to a back end.
#[derive(Debug)]
pub struct BackEnd {
    client: Client,
    path: PathBuf,
}

/// What went wrong with its causes, in one sentence.
pub fn sentence(error: &Error) -> String {
    match error {
        // Its own sentence says which; the command's name would not.
        Error::Command { desc, .. } => desc.clone(),
        error => match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}

/// What is said of one that hangs.
fn mute(limit: Duration) -> String {
    format!("does not answer within {} s", limit.as_secs_f32())
}

/// Why it does not do what it was told.
pub fn refusal(command: &str, error: &Error) -> Failure {
    match error {
        Error::Command { class, .. } if class == "DeviceNotFound" => Failure::not_found(sentence(error)),
        // The client is that of QEMU's monitor as well, and takes it for one.
        Error::Closed => Failure::new(format!("the back end has ended before it answered {command}")),
        Error::TimedOut(limit) => Failure::new(format!("the back end {} to {command}", mute(*limit))),
        _ => Failure::new(sentence(error)),
    }
}

/// What it says to a command.
fn understand<T: DeserializeOwned>(command: &str, answer: Result<Value, Error>) -> Result<T, Failure> {
    let answer = answer.map_err(|error| refusal(command, &error))?;
    serde_json::from_value(answer)
        .map_err(|error| Failure::new(format!("the back end answers {command} in words of its own: {error}")))
}

/// Whether somebody listens who may: in a directory that is not ours this is its owner alone, who else might lead us, by a
/// link, to a back end that he has no right to command.
fn is_its_owners(path: &Path, client: &Client) -> bool {
    let owner =
        path.parent().and_then(|directory| fs::symlink_metadata(directory).ok()).map(|found| found.uid());
    match owner.filter(|owner| *owner != geteuid().as_raw()) {
        Some(owner) => socket_peercred(client).is_ok_and(|peer| peer.uid.as_raw() == owner),
        None => true,
    }
}

impl BackEnd {
    /// Connects to the control socket `path`.
    pub fn connect(path: &Path) -> Result<Self, Failure> {
        Self::connect_within(path, PATIENCE)
    }

    /// The same, with another limit for each wait.
    pub fn connect_within(path: &Path, patience: Duration) -> Result<Self, Failure> {
        let client = Client::connect(&Address::Unix(path.into()), patience);
        let failed = |error| {
            let path = path.display();
            Failure::new(match error {
                Error::TimedOut(limit) => format!("the back end at {path} {}", mute(limit)),
                error => format!("the back end at {path} does not answer: {}", sentence(&error)),
            })
        };
        let client = client.map_err(failed)?;
        match is_its_owners(path, &client) {
            true => Ok(Self { client, path: path.into() }),
            false => Err(Failure::new(format!(
                "{} leads to another user's back end than that of its directory",
                path.display()
            ))),
        }
    }

    fn ask<T: DeserializeOwned>(&mut self, command: &str, arguments: Value) -> Result<T, Failure> {
        understand(command, self.client.execute(command, arguments))
    }

    /// The same of what may be asked twice: one that was killed has a successor, which serves what that one did.
    fn ask_again<T: DeserializeOwned>(&mut self, command: &str, arguments: Value) -> Result<T, Failure> {
        match self.client.execute(command, arguments.clone()) {
            Err(Error::Closed) if registry::listener(&self.path).is_some() => {
                *self = Self::connect_within(&self.path, self.client.timeout())?;
                self.ask(command, arguments)
            }
            answer => understand(command, answer),
        }
    }

    fn ask_with(&mut self, command: &str, arguments: Value, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        understand(command, self.client.execute_with(command, arguments, fds)).map(|_: Value| ())
    }

    /// The connection itself, for events.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// All NICs.
    pub fn query_nics(&mut self) -> Result<Vec<Nic>, Failure> {
        self.ask_again("query-nics", json!({}))
    }

    /// All joins.
    pub fn query_joins(&mut self) -> Result<Vec<Join>, Failure> {
        self.ask_again("query-joins", json!({}))
    }

    /// Serves one more NIC.
    pub fn nic_add(&mut self, nic: &NicAdd) -> Result<(), Failure> {
        self.ask("nic-add", json!(nic)).map(|_: Value| ())
    }

    /// Serves one more NIC, on a socket that was made for it.
    pub fn nic_add_on(&mut self, nic: &NicAdd, socket: BorrowedFd<'_>) -> Result<(), Failure> {
        self.ask_with("nic-add", json!(nic), &[socket])
    }

    /// Serves a NIC no longer; nor does one that has ended, and has no successor.
    pub fn nic_del(&mut self, id: &str) -> Result<(), Failure> {
        let answer: Result<Value, Failure> = self.ask_again("nic-del", json!({ "id": id }));
        match answer {
            Err(failure) if registry::listener(&self.path).is_some() => Err(failure),
            _ => Ok(()),
        }
    }

    /// Plugs a NIC or a join into one more network; gives the new link's name.
    pub fn link_add(&mut self, nic: &str, locator: &str) -> Result<String, Failure> {
        self.ask("link-add", json!({ "nic": nic, "locator": locator })).map(|LinkId { id }| id)
    }

    /// Pulls a cable.
    pub fn link_remove(&mut self, nic: &str, link: &str) -> Result<(), Failure> {
        self.ask("link-remove", json!({ "nic": nic, "link": link })).map(|_: Value| ())
    }

    /// Moves a cable; gives the new link's name.
    pub fn link_replace(
        &mut self,
        nic: &str,
        link: &str,
        locator: &str,
        mac: Option<&str>,
    ) -> Result<String, Failure> {
        let arguments = json!({ "nic": nic, "link": link, "locator": locator, "mac": mac });
        self.ask("link-replace", arguments).map(|LinkId { id }| id)
    }

    /// Has frames written to a descriptor until this connection ends.
    pub fn capture_start(&mut self, capture: &CaptureStart, to: BorrowedFd<'_>) -> Result<(), Failure> {
        self.ask_with("capture-start", json!(capture), &[to])
    }

    /// Ends the back end.
    pub fn quit(&mut self) -> Result<(), Failure> {
        self.ask("quit", json!({})).map(|_: Value| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::fs::chown;
    use std::os::unix::net::UnixListener;

    #[test]
    fn one_that_hangs_is_not_called_qemu() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("control.sock");
        let _mute = UnixListener::bind(&path).unwrap();
        let sentence = BackEnd::connect_within(&path, Duration::from_millis(50)).unwrap_err().sentence;
        assert_eq!(sentence, format!("the back end at {} does not answer within 0.05 s", path.display()));
    }

    #[test]
    fn who_listens_in_anothers_directory_is_that_one() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("n.control");
        let listener = UnixListener::bind(&path).unwrap();
        let connect = || {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let (mut client, _) = listener.accept().unwrap();
                    let greeting =
                        b"{\"QMP\": {\"version\": {\"package\": \"p\"}, \"capabilities\": []}}\r\n";
                    client.write_all(greeting).unwrap();
                    let mut command = String::new();
                    BufReader::new(&client).read_line(&mut command).unwrap();
                    let command: Value = serde_json::from_str(&command).unwrap();
                    writeln!(client, "{}", json!({ "return": {}, "id": command["id"] })).unwrap();
                });
                BackEnd::connect(&path)
            })
        };
        connect().unwrap();
        chown(scratch.path(), Some(65534), None).expect("chown: run the tests as root");
        let sentence = connect().unwrap_err().sentence;
        assert!(sentence.contains("leads to another user's back end"), "{sentence}");
    }
}
