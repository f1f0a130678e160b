//! The control thread.
//!
//! One epoll set holds everything that is not a frame: listening sockets, connections of front ends, the signals, the life
//! line, and news of links. A NIC serves one front end at a time; another one waits in the listening socket's queue until
//! the first has gone. That makes a reconnecting QEMU, whose new connection may come before the end of the old one is
//! seen, lose nothing.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use vdeplug::OpenOptions;
use vhost_user::Error;

use crate::capture::{self, Capture};
use crate::cli::{Config, NicConfig, Protocol};
use crate::front::Front;
use crate::join::Join;
use crate::links::{LinkEvent, Links, Opened, Reporter, User};
use crate::socket::{self, Entrance, OwnName};
use crate::sys::Inherited;
use crate::{Failure, Status, sentence};

/// What an epoll event is about, packed into its data word: kind in the upper half, number of the NIC in the lower.
#[derive(Clone, Copy, Debug)]
enum Source {
    Signal,
    Lifeline,
    News,
    Listener(usize),
    Connection(usize),
}

impl Source {
    fn pack(self) -> EventData {
        let (kind, nic) = match self {
            Self::Signal => (0, 0),
            Self::Lifeline => (1, 0),
            Self::News => (2, 0),
            Self::Listener(nic) => (3, nic),
            Self::Connection(nic) => (4, nic),
        };
        EventData::new_u64(kind << 32 | (nic as u64 & 0xffff_ffff))
    }

    fn unpack(data: EventData) -> Self {
        let nic = usize::try_from(data.u64() & 0xffff_ffff).unwrap_or(usize::MAX);
        match data.u64() >> 32 {
            1 => Self::Lifeline,
            2 => Self::News,
            3 => Self::Listener(nic),
            4 => Self::Connection(nic),
            _ => Self::Signal,
        }
    }
}

/// One NIC with its door and its links.
struct Served {
    front: Front,
    entrance: Entrance,
    /// Removed from the file system when the server ends.
    _own_name: Option<OwnName>,
    links: Links,
}

/// Two networks that hear each other.
struct Joined {
    join: Join,
    links: Links,
}

impl Served {
    /// Ends the connection, and logs the counters.
    fn part(&mut self) {
        self.front.disconnect();
        let counters = self.front.counters();
        log_counters(self.name(), &counters);
    }

    fn name(&self) -> &str {
        self.links.name()
    }
}

/// Logs the counters that are not zero.
fn log_counters(name: &str, counters: &[(&str, u64)]) {
    let shown = counters.iter().filter(|(_, value)| *value > 0);
    let shown: String = shown.map(|(name, value)| format!(" {name}={value}")).collect();
    log::info!("{name}:{shown}");
}

/// The control thread's state.
pub struct Server {
    epoll: OwnedFd,
    _signals: OwnedFd,
    _lifeline: Option<OwnedFd>,
    news: Receiver<LinkEvent>,
    reporter: Reporter,
    /// All but its NICs and joins, which are in `served` and `joined`.
    config: Config,
    served: Vec<Served>,
    joined: Vec<Joined>,
}

impl Server {
    /// Opens links and sockets and starts the workers; nothing is left behind by a failure.
    pub fn new(mut config: Config, mut inherited: Inherited, signals: OwnedFd) -> Result<Self, Failure> {
        let system = |e: rustix::io::Errno| Failure::system("cannot wait for events", e);
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(system)?;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(system)?);
        epoll::add(&epoll, &signals, Source::Signal.pack(), EventFlags::IN).map_err(system)?;
        epoll::add(&epoll, &wake, Source::News.pack(), EventFlags::IN).map_err(system)?;
        let usage =
            |fd, e: std::io::Error| Failure::new(Status::Usage, format_args!("--lifeline-fd {fd}: {e}"));
        let take = |fd| inherited.take(fd).map_err(|e| usage(fd, e));
        let lifeline = config.lifeline.map(take).transpose()?;
        if let Some(fd) = &lifeline {
            epoll::add(&epoll, fd, Source::Lifeline.pack(), EventFlags::IN)
                .map_err(|e| Failure::new(Status::Usage, format_args!("--lifeline-fd: {e}")))?;
        }
        let (sender, news) = channel();
        let (nics, joins) = (std::mem::take(&mut config.nics), std::mem::take(&mut config.joins));
        let mut server = Self {
            epoll,
            _signals: signals,
            _lifeline: lifeline,
            news,
            reporter: Reporter { sender, wake },
            served: Vec::new(),
            joined: Vec::new(),
            config,
        };
        let mut opened = Opened::new(server.config.open);
        let count = nics.len();
        for nic in nics {
            server.add_nic(nic, count, &mut opened, &mut inherited)?;
        }
        for locators in joins {
            server.add_join(locators, &mut opened)?;
        }
        for index in 0..server.served.len() {
            server.open_door(index).map_err(system)?;
        }
        Ok(server)
    }

    fn add_nic(
        &mut self,
        nic: NicConfig,
        count: usize,
        opened: &mut Opened,
        inherited: &mut Inherited,
    ) -> Result<(), Failure> {
        let index = self.served.len();
        let name = format!("nic{index}");
        let options = OpenOptions {
            description: self.config.description.clone(),
            // A NIC that is not virtio has no header that could say what is left to be done.
            offloads: self.config.offloads && nic.protocol == Protocol::VhostUser,
            ..OpenOptions::default()
        };
        let capture = self.config.capture.as_ref().map(|asked| {
            let path = capture::path(asked, index, count);
            let failed = |e| Failure::system(&format!("cannot write to {}", path.display()), e);
            Capture::create(path.clone(), &nic.links).map_err(failed)
        });
        let capture = capture.transpose()?;
        let opened = opened.open_all(&nic.links, &options, self.config.keep_going)?;
        let (entrance, own_name) = socket::open(&nic.door, self.config.socket_owner, inherited)?;
        let user = User::Nic(index);
        let lost = || self.reporter.lost(user);
        let mut front = Front::new(&name, &nic, self.config.offloads, self.config.poll, lost)
            .map_err(|e| Failure::system("cannot start a worker", e))?;
        let mut links = Links::new(name, user, options, nic.links, capture);
        links.start(opened, self.config.open, &self.reporter, |number, link| front.set_link(number, link));
        self.served.push(Served { front, entrance, _own_name: own_name, links });
        Ok(())
    }

    fn add_join(&mut self, locators: [String; 2], opened: &mut Opened) -> Result<(), Failure> {
        let index = self.joined.len();
        let name = format!("join{index}");
        let options = OpenOptions {
            description: self.config.description.clone(),
            offloads: self.config.offloads,
            ..OpenOptions::default()
        };
        let opened = opened.open_all(&locators, &options, self.config.keep_going)?;
        let user = User::Join(index);
        let join = Join::spawn(&name, || self.reporter.lost(user))
            .map_err(|e| Failure::system("cannot start a thread", e))?;
        let mut links = Links::new(name, user, options, locators.into(), None);
        links.start(opened, self.config.open, &self.reporter, |number, link| join.set_link(number, link));
        self.joined.push(Joined { join, links });
        Ok(())
    }

    /// Watches a listening socket, or takes the connection that was inherited.
    fn open_door(&mut self, index: usize) -> rustix::io::Result<()> {
        let Some(served) = self.served.get_mut(index) else { return Ok(()) };
        match &mut served.entrance {
            // Edge-triggered: who waits behind a served front end must not keep us awake.
            Entrance::Listener(listener) => {
                let _ = listener.set_nonblocking(true);
                let flags = EventFlags::IN | EventFlags::ET;
                epoll::add(&self.epoll, listener, Source::Listener(index).pack(), flags)
            }
            Entrance::Connected(stream) => {
                if let Some(stream) = stream.take() {
                    self.connect(index, stream);
                }
                Ok(())
            }
        }
    }

    /// Serves until a signal, the life line, or the end of an inherited connection.
    pub fn run(mut self) -> Result<(), Failure> {
        let mut events: Vec<Event> = Vec::with_capacity(16);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Failure::system("cannot wait for events", errno)),
            }
            for event in events.drain(..) {
                match Source::unpack(event.data) {
                    Source::Signal => {
                        log::info!("ended by a signal");
                        self.part();
                        return Ok(());
                    }
                    Source::Lifeline => {
                        log::info!("the life line was cut");
                        self.part();
                        return Ok(());
                    }
                    Source::News => self.read_news(),
                    Source::Listener(index) => self.accept(index),
                    Source::Connection(index) => self.read(index),
                }
            }
            // Without a listener there is nobody left to come.
            let over = |s: &Served| s.front.fd().is_none() && matches!(s.entrance, Entrance::Connected(_));
            if self.served.iter().all(over) {
                return Ok(());
            }
        }
    }

    fn accept(&mut self, index: usize) {
        let Some(served) = self.served.get(index) else { return };
        if served.front.fd().is_some() {
            log::info!("{}: another front end waits until the present one has gone", served.name());
            return;
        }
        let Entrance::Listener(listener) = &served.entrance else { return };
        match listener.accept() {
            Ok((stream, _)) => self.connect(index, stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => log::warn!("{}: cannot accept a front end: {error}", served.name()),
        }
    }

    fn connect(&mut self, index: usize, stream: UnixStream) {
        let Some(served) = self.served.get_mut(index) else { return };
        if let Err(error) = served.front.connect(served.links.name(), stream) {
            log::warn!("{}: cannot serve a front end: {}", served.name(), sentence(&error));
            return;
        }
        let Some(fd) = served.front.fd() else { return };
        match epoll::add(&self.epoll, fd, Source::Connection(index).pack(), served.front.interest()) {
            Ok(()) => log::info!("{}: front end connected", served.name()),
            Err(errno) => {
                log::warn!("{}: cannot serve a front end: {errno}", served.name());
                served.front.disconnect();
            }
        }
    }

    fn read(&mut self, index: usize) {
        let Some(served) = self.served.get_mut(index) else { return };
        let Err(error) = served.front.on_event() else { return };
        match error {
            Error::Closed => log::info!("{}: front end gone", served.name()),
            error => log::warn!("{}: front end disconnected: {}", served.name(), sentence(&error)),
        }
        if let Some(fd) = served.front.fd() {
            let _ = epoll::delete(&self.epoll, fd);
        }
        served.part();
        self.accept(index);
    }

    /// Parts from all front ends that are there, and logs what the joins carried.
    fn part(&mut self) {
        self.served.iter_mut().filter(|served| served.front.fd().is_some()).for_each(Served::part);
        for Joined { join, links } in &self.joined {
            log_counters(links.name(), &join.counters());
        }
    }

    fn read_news(&mut self) {
        let _ = rustix::io::read(&self.reporter.wake, &mut [0u8; 8]);
        while let Ok(LinkEvent { user, link, news }) = self.news.try_recv() {
            let (open, reporter) = (self.config.open, &self.reporter);
            match user {
                User::Nic(index) => {
                    let Some(Served { front, links, .. }) = self.served.get_mut(index) else { continue };
                    links.hear(link, news, open, reporter, |opened| front.set_link(link, opened));
                }
                User::Join(index) => {
                    let Some(Joined { join, links }) = self.joined.get_mut(index) else { continue };
                    links.hear(link, news, open, reporter, |opened| join.set_link(link, opened));
                }
            }
        }
    }
}
