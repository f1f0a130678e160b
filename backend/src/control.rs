//! The control socket: who is connected there, what they ask for, what they are told (`docs/control.md`).
//!
//! ```text
//!  client   one connection: bytes and descriptors into requests, answers out
//!  command  a request: which command, with which arguments
//!  event    what is told to everybody
//! ```
//!
//! Nothing here waits. The control thread calls [`Control::accept`] and [`Control::on_event`] when its epoll set says so,
//! and carries out the requests that come of it, each of which is answered once, then or later: its [`Ticket`] says where.
//!
//! A client whom nobody has room for waits in the listening socket's queue until another one has gone. What a client does
//! not read is kept for it up to a limit; then it is disconnected.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod client;
mod command;
mod event;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fs::Mode;
use serde_json::{Value, json};

use crate::Failure;
use crate::cli::Door;
use crate::socket::{self, OwnName};
use crate::sys::Inherited;
pub use client::{Client, Line};
pub use command::{Class, Command, Refusal};
pub use event::Event;

/// How many are served at a time.
const CLIENTS: usize = 16;
/// How many are taken in at once: those who come and go all the time must not keep us from all else.
const ROUND: usize = 64;
/// The socket is its owner's.
pub const MODE: Mode = Mode::from_raw_mode(0o600);

/// Edge-triggered: who waits for room must not keep us awake.
const DOOR: EventFlags = EventFlags::IN.union(EventFlags::ET);

/// Where an answer goes.
#[derive(Debug)]
pub struct Ticket {
    /// The client, by its number, which no other one gets.
    pub client: usize,
    /// What the client called its request.
    id: Option<Value>,
}

/// What a client asks for.
#[derive(Debug)]
pub struct Request {
    /// Where the answer goes.
    pub ticket: Ticket,
    /// The command, or why the line is none.
    pub command: Result<Command, Refusal>,
    /// Descriptors that came with it.
    pub descriptors: Vec<OwnedFd>,
}

/// The listening socket and all clients.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    /// Removed from the file system with this.
    _name: Option<OwnName>,
    epoll: Arc<OwnedFd>,
    /// Makes the words of the clients' events.
    word: fn(usize) -> EventData,
    clients: BTreeMap<usize, Client>,
    /// The next client's number.
    next: usize,
    /// The word of those who come.
    door: u64,
    /// Somebody has gone, for whom another one may have waited.
    has_room: bool,
}

impl Control {
    /// Listens at `place`, and watches for clients with `door` as the word of these events, and for what each client does
    /// with a word that `word` makes of its number.
    pub fn new(
        place: &Door,
        inherited: &mut Inherited,
        epoll: Arc<OwnedFd>,
        door: EventData,
        word: fn(usize) -> EventData,
    ) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::system("cannot wait for commands", error);
        let (listener, name) = match place {
            Door::Path(path) => {
                socket::bind(path, Some(MODE)).map(|(listener, name)| (listener, Some(name)))?
            }
            Door::Fd(fd) => (socket::inherit_listener(*fd, inherited)?, None),
        };
        listener.set_nonblocking(true).map_err(failed)?;
        epoll::add(&epoll, &listener, door, DOOR).map_err(|errno| failed(errno.into()))?;
        let clients = BTreeMap::new();
        Ok(Self { listener, _name: name, epoll, word, clients, next: 0, door: door.u64(), has_room: false })
    }

    /// Whether anybody is connected.
    pub fn has_clients(&self) -> bool {
        !self.clients.is_empty()
    }

    /// Whether this one still is.
    pub fn has_client(&self, number: usize) -> bool {
        self.clients.contains_key(&number)
    }

    /// Takes in those who came, as far as there is room.
    pub fn accept(&mut self) {
        self.has_room = false;
        for _ in 0..ROUND {
            if self.clients.len() >= CLIENTS {
                return;
            }
            match self.listener.accept() {
                Ok((socket, _)) => self.take_in(socket),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => return log::warn!("cannot accept a control client: {error}"),
            }
        }
        // We are called again if there are more.
        if let Err(errno) = epoll::modify(&self.epoll, &self.listener, EventData::new_u64(self.door), DOOR) {
            log::warn!("cannot wait for control clients: {errno}");
        }
    }

    /// Takes in those who waited for somebody to go.
    fn fill(&mut self) {
        if self.has_room {
            self.accept();
        }
    }

    fn take_in(&mut self, socket: UnixStream) {
        let number = self.next;
        self.next += 1;
        let watched = epoll::add(&self.epoll, &socket, (self.word)(number), EventFlags::IN);
        if let Err(errno) = watched {
            return log::warn!("cannot serve a control client: {errno}");
        }
        self.clients.insert(number, Client::new(socket));
        let version = json!({ "package": concat!("vhost-user-vde ", env!("CARGO_PKG_VERSION")) });
        self.write(number, &json!({ "QMP": { "version": version, "capabilities": [] } }));
    }

    /// Writes what waits for a client, and reads a batch of what it asks for. One that has gone is forgotten.
    pub fn on_event(&mut self, number: usize) -> Vec<Request> {
        let Some(client) = self.clients.get_mut(&number) else { return Vec::new() };
        let (lines, ended) = client.read();
        let request = |line: Line| Request {
            ticket: Ticket { client: number, id: line.id },
            command: line.command,
            descriptors: line.descriptors,
        };
        let requests = lines.into_iter().map(request).collect();
        match ended {
            true => self.forget(number),
            false => self.flush(number),
        }
        self.fill();
        requests
    }

    /// Answers a request. Who has gone meanwhile does not hear it.
    pub fn answer(&mut self, ticket: Ticket, result: Result<Value, Refusal>) {
        let mut answer = match result {
            Ok(value) => json!({ "return": value }),
            Err(refusal) => json!({ "error": refusal.to_value() }),
        };
        if let (Some(id), Some(members)) = (ticket.id, answer.as_object_mut()) {
            members.insert("id".into(), id);
        }
        self.write(ticket.client, &answer);
        self.fill();
    }

    /// Tells everybody who said that he is ready.
    pub fn announce(&mut self, event: &Event) {
        let line = event.to_value();
        let ready = self.clients.iter().filter(|(_, client)| client.is_ready());
        let ready: Vec<usize> = ready.map(|(number, _)| *number).collect();
        ready.into_iter().for_each(|number| self.write(number, &line));
        self.fill();
    }

    fn write(&mut self, number: usize, line: &Value) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        match client.push(line) {
            true => self.flush(number),
            false => {
                log::warn!("a control client does not read what it is told, and is disconnected");
                self.forget(number);
            }
        }
    }

    /// Writes as much as a client takes, and watches for its taking the rest.
    fn flush(&mut self, number: usize) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        let mut flags = EventFlags::IN;
        match client.flush() {
            Ok(all) => flags.set(EventFlags::OUT, !all),
            Err(_) => return self.forget(number),
        }
        if let Err(errno) = epoll::modify(&self.epoll, client, (self.word)(number), flags) {
            log::warn!("cannot serve a control client: {errno}");
            self.forget(number);
        }
    }

    /// Disconnects a client. There is room for another one, who is not taken in here: he may have gone as well, and so may
    /// the next.
    fn forget(&mut self, number: usize) {
        self.clients.remove(&number);
        self.has_room = true;
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::path::PathBuf;
    use std::thread;

    use rustix::event::Timespec;

    use super::*;

    /// Has the clients in the queue taken in until somebody is there; gives how many calls that took.
    fn serve_first(path: PathBuf, queue: impl FnOnce()) -> usize {
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).unwrap());
        let (door, word) = (EventData::new_u64(u64::MAX), |client| EventData::new_u64(client as u64));
        // SAFETY: it names no descriptor at all.
        let mut inherited = unsafe { Inherited::claim(&[]) };
        let mut control = Control::new(&Door::Path(path), &mut inherited, epoll.clone(), door, word).unwrap();
        queue();
        let mut calls = 0;
        while control.clients.is_empty() {
            let (mut events, limit) = (Vec::with_capacity(1), Timespec { tv_sec: 5, tv_nsec: 0 });
            epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), Some(&limit)).unwrap();
            assert_eq!(events.len(), 1, "nothing calls us again");
            control.accept();
            calls += 1;
        }
        calls
    }

    #[test]
    fn who_has_gone_before_he_was_taken_in_is_no_burden() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let serve = move || {
            let mut last = None;
            let queue = || {
                (1..2 * ROUND).for_each(|_| drop(UnixStream::connect(&path).unwrap()));
                last = Some(UnixStream::connect(&path).unwrap());
            };
            let calls = serve_first(path.clone(), queue);
            let mut greeting = [0; 6];
            last.unwrap().read_exact(&mut greeting).unwrap();
            assert_eq!((calls, &greeting), (2, b"{\"QMP\""));
        };
        // As many calls inside each other have no room there.
        thread::Builder::new().stack_size(96 << 10).spawn(serve).unwrap().join().unwrap();
    }
}
