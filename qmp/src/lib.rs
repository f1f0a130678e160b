//! Client of the QEMU Machine Protocol (QMP), synchronous, over a Unix socket.
//!
//! One connection, one command at a time: [`Client::connect`] reads the greeting and leaves capability negotiation,
//! [`Client::execute`] sends a command and waits for its answer. Events that arrive meanwhile are kept for
//! [`Client::next_event`]. Whatever is not known (fields, events, extra greeting members) passes through as JSON; nothing here depends on the
//! version of QEMU. Every wait has a limit: a QEMU whose vhost-user back end is mute does not answer at all.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest message accepted, in bytes; QEMU's own longest answers (schema, device lists) are a few hundred KiB.
const MAX_MESSAGE: usize = 16 << 20;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Connecting, reading or writing failed.
    #[error("the QMP connection failed")]
    Io(#[source] io::Error),
    /// QEMU closed the connection; it may have ended.
    #[error("QEMU closed the QMP connection")]
    Closed,
    /// Nothing came in time.
    #[error("QEMU did not answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// Not a QMP server.
    #[error("this is not a QMP socket: {0}")]
    NotQmp(String),
    /// The command was carried out with an error.
    #[error("{command}: {desc}")]
    Command {
        /// The command.
        command: String,
        /// QEMU's error class, for instance `DeviceNotFound`.
        class: String,
        /// QEMU's sentence.
        desc: String,
    },
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A connection to a monitor. A monitor serves one client at a time.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// Bytes behind the last complete line.
    rest: Vec<u8>,
    events: VecDeque<Value>,
    greeting: Value,
    timeout: Duration,
}

impl Client {
    /// Connects, and waits for the greeting. Each later wait has the same limit.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, Error> {
        Self::new(UnixStream::connect(path)?, timeout)
    }

    /// The same on a connected socket.
    pub fn new(stream: UnixStream, timeout: Duration) -> Result<Self, Error> {
        let (rest, events) = (Vec::new(), VecDeque::new());
        let mut client = Self { stream, rest, events, greeting: Value::Null, timeout };
        let greeting = client.read(Instant::now() + timeout)?;
        match greeting.get("QMP") {
            Some(inner) => client.greeting = inner.clone(),
            None => return Err(Error::NotQmp(greeting.to_string())),
        }
        client.execute("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// What the greeting said: version and capabilities.
    pub fn greeting(&self) -> &Value {
        &self.greeting
    }

    /// Sends a command and returns what it returned. `arguments` is an object.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let deadline = Instant::now() + self.timeout;
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.set_write_timeout(Some(self.timeout))?;
        self.stream.write_all(line.as_bytes())?;
        loop {
            let mut message = self.read(deadline)?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                let text = |key| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
                return Err(Error::Command {
                    command: command.into(),
                    class: text("class"),
                    desc: text("desc"),
                });
            }
            self.keep_event(message);
        }
    }

    /// The next event, oldest first, waiting for it if none is there yet. `None`: none came in time.
    pub fn next_event(&mut self, wait: Duration) -> Result<Option<Value>, Error> {
        let deadline = Instant::now() + wait;
        while self.events.is_empty() {
            match self.read(deadline) {
                Ok(message) => self.keep_event(message),
                Err(Error::TimedOut(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(self.events.pop_front())
    }

    fn keep_event(&mut self, message: Value) {
        if message.get("event").is_some() {
            self.events.push_back(message);
        }
    }

    /// One message: a line of JSON.
    fn read(&mut self, deadline: Instant) -> Result<Value, Error> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map_err(|_| Error::NotQmp(String::from_utf8_lossy(&line).trim().into()));
            }
            if self.rest.len() > MAX_MESSAGE {
                return Err(Error::NotQmp(format!("a line longer than {MAX_MESSAGE} bytes")));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::TimedOut(self.timeout));
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Error::Closed),
                Ok(count) => self.rest.extend(bytes.iter().take(count)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(Error::TimedOut(self.timeout));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::thread::{JoinHandle, spawn};

    use super::*;

    const GREETING: &str =
        r#"{"QMP": {"version": {"qemu": {"major": 10}}, "capabilities": ["oob"], "new": 1}}"#;

    /// Says each line once a command has come, the first at once; returns the commands.
    fn server(lines: &'static [&'static str]) -> (UnixStream, JoinHandle<Vec<Value>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().unwrap());
            let mut commands = Vec::new();
            for line in lines {
                (&theirs).write_all(line.as_bytes()).unwrap();
                (&theirs).write_all(b"\r\n").unwrap();
                let mut command = String::new();
                if reader.read_line(&mut command).unwrap() > 0 {
                    commands.push(serde_json::from_str(&command).unwrap());
                }
            }
            commands
        });
        (ours, server)
    }

    fn client(stream: UnixStream) -> Result<Client, Error> {
        Client::new(stream, Duration::from_secs(5))
    }

    #[test]
    fn answers_errors_and_events_are_told_apart() {
        let (stream, server) = server(&[
            GREETING,
            r#"{"return": {}}"#,
            "{\"event\": \"UNHEARD_OF\", \"data\": {\"x\": [1]}}\r\n{\"return\": {\"running\": true}}",
            r#"{"error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}}"#,
        ]);
        let mut client = client(stream).unwrap();
        assert_eq!(client.greeting()["version"]["qemu"]["major"], 10);
        assert_eq!(client.execute("query-status", json!({})).unwrap()["running"], true);
        let error = client.execute("device_del", json!({ "id": "x" })).unwrap_err();
        assert_eq!(error.to_string(), "device_del: Device 'x' not found");
        assert!(matches!(error, Error::Command { class, .. } if class == "DeviceNotFound"));
        let event = client.next_event(Duration::ZERO).unwrap().unwrap();
        assert_eq!(event["data"]["x"][0], 1);
        drop(client);
        let commands = server.join().unwrap();
        assert_eq!(commands[2]["arguments"]["id"], "x");
    }

    #[test]
    fn other_servers_are_recognised() {
        let (stream, _server) = server(&["220 smtp.example ready"]);
        assert!(matches!(client(stream).unwrap_err(), Error::NotQmp(text) if text.contains("smtp")));
        let (stream, _server) = server(&[r#"{"return": {}}"#]);
        assert!(matches!(client(stream).unwrap_err(), Error::NotQmp(_)));
    }

    #[test]
    fn silence_and_end_are_errors() {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let error = Client::new(stream.try_clone().unwrap(), Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Error::TimedOut(_)));
        drop(theirs);
        assert!(matches!(client(stream).unwrap_err(), Error::Closed));
    }
}
