//! Greeting, commands and answers, events.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::Error;
use crate::address::Address;
use crate::wire::{Failure, Wire};

/// How many events are kept for who does not ask for them; then the oldest go.
const EVENTS_MAX: usize = 4096;
/// How long a greeting may take behind what could be the end of an answer: QEMU sends both in one go, and others none.
const BEHIND_AN_END: Duration = Duration::from_secs(2);

/// Something that happened in QEMU.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Event {
    /// Its name, for instance `DEVICE_DELETED`.
    #[serde(rename = "event")]
    pub name: String,
    /// What it says; null for an event without data.
    #[serde(default)]
    pub data: Value,
}

impl Event {
    /// The text at a key of its data.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.data.get(key).and_then(Value::as_str)
    }
}

/// The version of a QEMU; versions compare as they follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// `10` of `10.0.8`.
    pub major: u32,
    /// `0` of `10.0.8`.
    pub minor: u32,
    /// `8` of `10.0.8`.
    #[serde(default)]
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A connection to a monitor. A monitor serves one client at a time.
#[derive(Debug)]
pub struct Client {
    wire: Wire,
    events: VecDeque<Event>,
    greeting: Value,
    timeout: Duration,
    /// The id of the last command.
    id: u64,
    /// No other client has been on this socket.
    is_alone: bool,
}

impl Client {
    /// Connects, and waits for the greeting. Each later wait has the same limit.
    pub fn connect(address: &Address, timeout: Duration) -> Result<Self, Error> {
        let socket = address.connect(timeout).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => Error::TimedOut(timeout),
            _ => Error::Io(error),
        })?;
        Self::start(socket, timeout, (ids_of_our_own(), false))
    }

    /// The same on a connected stream socket, which nobody has used before. Its flags stay as they are.
    pub fn new(socket: OwnedFd, timeout: Duration) -> Result<Self, Error> {
        Self::start(socket, timeout, (0, true))
    }

    fn start(socket: OwnedFd, timeout: Duration, (id, is_alone): (u64, bool)) -> Result<Self, Error> {
        let (wire, events) = (Wire::new(socket), VecDeque::new());
        let mut client = Self { wire, events, greeting: Value::Null, timeout, id, is_alone };
        client.greeting = client.read_greeting()?;
        match client.execute("qmp_capabilities", json!({})) {
            // QEMU carried out that of the client before only after it had greeted us.
            Err(error) if error.is_unknown_command() => {}
            outcome => drop(outcome?),
        }
        // Events so far were told to the client before.
        client.forget_events();
        Ok(client)
    }

    /// What the greeting says. QEMU says before it what it did not get rid of when the client before left: the end of an
    /// answer, events, and whole answers. The last of these may even come after it.
    fn read_greeting(&mut self) -> Result<Value, Error> {
        let (mut limit, mut odd) = (deadline(self.timeout), None);
        loop {
            let mut message = match self.read(limit) {
                Ok(message) => message,
                Err(error @ Error::NotQmp(_)) if odd.is_none() && !self.is_alone => {
                    (limit, odd) = (limit.min(deadline(BEHIND_AN_END)), Some(error));
                    continue;
                }
                Err(error) => return Err(odd.unwrap_or(error)),
            };
            if let Some(greeting) = message.get_mut("QMP") {
                return Ok(greeting.take());
            }
            if !["event", "return", "error"].iter().any(|kind| message.get(kind).is_some()) {
                return Err(Error::NotQmp(message.to_string()));
            }
            if Instant::now() >= limit {
                return Err(Error::TimedOut(self.timeout));
            }
        }
    }

    /// What the greeting said: version and capabilities.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// The version that the greeting named.
    pub fn version(&self) -> Result<Version, Error> {
        let version = self.greeting.pointer("/version/qemu").unwrap_or(&Value::Null);
        Version::deserialize(version).map_err(|_| Error::NotQmp("its greeting names no version".into()))
    }

    /// How long each wait takes at most.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends a command and returns what it returned. `arguments` is an object.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        self.execute_with(command, arguments, &[])
    }

    /// The same with descriptors, for `getfd` and `add-fd`. Only a Unix socket carries them, 16 at most.
    pub fn execute_with(
        &mut self,
        command: &str,
        arguments: Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Value, Error> {
        let deadline = deadline(self.timeout);
        self.id += 1;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": self.id }).to_string();
        line.push('\n');
        self.wire.send(line.as_bytes(), fds, deadline).map_err(|failure| self.error(failure))?;
        loop {
            let mut message = self.read(deadline)?;
            // One with another id is to a command whose time was up, or of the client before. Of who gives no ids, and of
            // what could not even be read, the answers have none.
            let ours = message.get("id").map_or(self.is_alone, |id| *id == self.id);
            if ours && let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if ours && let Some(error) = message.get("error") {
                let text = |key| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                return Err(Error::Command {
                    command: command.into(),
                    class: text("class"),
                    desc: text("desc"),
                });
            }
            self.keep_event(message);
            // One that talks without end has not answered either.
            if Instant::now() >= deadline {
                return Err(Error::TimedOut(self.timeout));
            }
        }
    }

    /// The next event, oldest first, waiting for it if none is there yet. `None`: none came in time.
    pub fn next_event(&mut self, wait: Duration) -> Result<Option<Event>, Error> {
        let deadline = deadline(wait);
        while self.events.is_empty() {
            match self.read(deadline) {
                Ok(message) => self.keep_event(message),
                Err(Error::TimedOut(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(self.events.pop_front())
    }

    /// The next event for which `wanted` says yes; those before it are dropped. `None`: none came in time.
    pub fn wait_for_event(
        &mut self,
        wait: Duration,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Result<Option<Event>, Error> {
        let deadline = deadline(wait);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.next_event(left)? {
                Some(event) if wanted(&event) => return Ok(Some(event)),
                Some(_) if !self.events.is_empty() || Instant::now() < deadline => {}
                _ => return Ok(None),
            }
        }
    }

    /// Drops the events that came with answers so far and were not asked for: what comes from now on was told after the
    /// last answer.
    pub fn forget_events(&mut self) {
        self.events.clear();
    }

    fn keep_event(&mut self, message: Value) {
        if let Ok(event) = Event::deserialize(message) {
            if self.events.len() == EVENTS_MAX {
                self.events.pop_front();
            }
            self.events.push_back(event);
        }
    }

    /// One message: a line of JSON.
    fn read(&mut self, deadline: Instant) -> Result<Value, Error> {
        let line = self.wire.line(deadline).map_err(|failure| self.error(failure))?;
        serde_json::from_slice(&line).map_err(|_| {
            let text = String::from_utf8_lossy(&line);
            Error::NotQmp(text.chars().filter(|c| !c.is_control()).take(200).collect())
        })
    }

    fn error(&self, failure: Failure) -> Error {
        match failure {
            Failure::Late => Error::TimedOut(self.timeout),
            Failure::Closed => Error::Closed,
            Failure::TooLong => Error::NotQmp("a line without an end".into()),
            Failure::System(errno) => Error::Io(errno.into()),
        }
    }
}

/// Where the ids of a connection begin: beyond those that another one, also of another process, is likely to come to. Seen
/// with QEMU 7.2 and 10.0: who connects while another client goes is told an answer to that one after the greeting.
fn ids_of_our_own() -> u64 {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    let connection = CONNECTIONS.fetch_add(1, Ordering::Relaxed) % (1 << 12);
    u64::from(std::process::id()) << 32 | connection << 20
}

/// When so much time has passed; in a year at the latest, since clocks have an end.
fn deadline(wait: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 86400);
    Instant::now() + wait.min(YEAR)
}

impl AsFd for Client {
    /// To be waited on together with other things: readable when something came. What came earlier may be here already, so
    /// [`Client::next_event`] is asked first, with no time to wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wire.as_fd()
    }
}
