//! The control thread.
//!
//! One epoll set holds everything that is not a frame: listening sockets, connections of front ends, the control socket and
//! its clients, the signals, the life line, and news of other threads. A NIC serves one front end at a time; another one
//! waits in the listening socket's queue until the first has gone. That makes a reconnecting QEMU, whose new connection may
//! come before the end of the old one is seen, lose nothing.
//!
//! What is there from the start, and how a NIC is added, is in module `start`.
//!
//! NICs and joins have numbers, which are never used again: an event of one that was removed finds nobody.

mod start;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use vhost_user::Error;

use crate::cli::Config;
use crate::commands::HandOff;
use crate::control::{self, Control};
use crate::follow::Follow;
use crate::journal::{Journal, Served};
use crate::news::{News, Reporter};
use crate::open::Networks;
use crate::socket::Entrance;
use crate::source::Source;
use crate::sys::Inherited;
use crate::tasks::Tasks;
use crate::user::{Kind, User};
use crate::{Failure, Status, sentence};

/// The control thread's state.
pub struct Server {
    epoll: Arc<OwnedFd>,
    _signals: OwnedFd,
    _lifeline: Option<OwnedFd>,
    news: Receiver<News>,
    pub(crate) reporter: Reporter,
    /// All but its NICs and joins, which are among `users`.
    pub(crate) config: Config,
    pub(crate) networks: Arc<Networks>,
    pub(crate) users: BTreeMap<usize, User>,
    /// The next user's number.
    next: usize,
    pub(crate) tasks: Tasks,
    /// In the order of their times.
    pub(crate) hand_offs: Vec<HandOff>,
    pub(crate) control: Option<Control>,
    /// Whose end is ours.
    pub(crate) follow: Option<Follow>,
    /// What is served is written down there, and what stands there.
    journal: Option<(Journal, Served)>,
    /// Why it ends.
    pub(crate) end: Option<&'static str>,
}

impl Server {
    /// Opens links and sockets and starts the workers; nothing is left behind by a failure. What a predecessor served that
    /// was killed is `served` in place of what the command line names.
    pub fn new(
        mut config: Config,
        served: Option<Served>,
        mut inherited: Inherited,
        signals: OwnedFd,
    ) -> Result<Self, Failure> {
        let system = |e: rustix::io::Errno| Failure::system("cannot wait for events", e);
        let epoll = Arc::new(epoll::create(CreateFlags::CLOEXEC).map_err(system)?);
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
        let at_start = Served::at_start(&mut config);
        let mut server = Self {
            _signals: signals,
            _lifeline: lifeline,
            news,
            reporter: Reporter { sender, wake },
            networks: Arc::new(Networks::new(config.open)),
            users: BTreeMap::new(),
            next: 0,
            tasks: Tasks::default(),
            hand_offs: Vec::new(),
            control: None,
            follow: config.follow.then(|| Follow::new(epoll.clone(), Source::Followed.pack())),
            journal: None,
            end: None,
            config,
            epoll,
        };
        match served {
            Some(served) => server.start(served, true, &mut inherited)?,
            None => server.start(at_start, false, &mut inherited)?,
        }
        Ok(server)
    }

    /// Watches a listening socket, or takes the connection that was inherited.
    pub(crate) fn open_door(&mut self, number: usize) -> Result<(), Failure> {
        let Some(nic) = self.users.get_mut(&number).and_then(User::nic) else { return Ok(()) };
        match &mut nic.entrance {
            // Edge-triggered: who waits behind a served front end must not keep us awake.
            Entrance::Listener(listener) => {
                let _ = listener.set_nonblocking(true);
                let flags = EventFlags::IN | EventFlags::ET;
                epoll::add(&self.epoll, listener, Source::Listener(number).pack(), flags)
                    .map_err(|errno| Failure::system("cannot wait for front ends", errno))
            }
            Entrance::Connected(stream) => {
                if let Some(stream) = stream.take() {
                    self.connect(number, stream);
                }
                Ok(())
            }
        }
    }

    /// Serves until a signal, the life line, or the end of the last connection where no other can come.
    pub fn run(mut self) -> Result<(), Failure> {
        let mut events: Vec<Event> = Vec::with_capacity(16);
        while self.end.is_none() {
            let limit = self.next_time().map(|time| time.saturating_duration_since(Instant::now()));
            let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
            match epoll::wait(&self.epoll, spare_capacity(&mut events), limit.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Failure::system("cannot wait for events", errno)),
            }
            for event in events.drain(..) {
                self.on_event(Source::unpack(event.data));
            }
            self.end_hand_offs();
            self.give_up_orphans();
            self.stop_orphaned_captures();
            let nobody_came = self.follow.as_ref().and_then(Follow::until);
            if nobody_came.is_some_and(|until| until <= Instant::now()) && !self.has_clients() {
                self.end = Some("nobody came");
            }
            // Without a listener there is nobody left to come.
            let mut nics = self.users.values_mut().filter_map(User::nic).peekable();
            if nics.peek().is_some() && nics.all(|nic| nic.is_over()) {
                self.end = Some("the connection that it was started for is over");
            }
        }
        log::info!("{}", self.end.unwrap_or_default());
        self.users.values_mut().for_each(User::part);
        self.finish_captures();
        self.announce(control::Event::shutdown());
        Ok(())
    }

    /// Writes down what is served, now and whenever it changes.
    pub fn keep(&mut self, journal: Journal) {
        let served = self.served();
        self.write_down(journal, served);
    }

    fn served(&self) -> Served {
        let followed = self.follow.as_ref().and_then(Follow::process);
        let mut served = Served { followed, ..Served::default() };
        self.users.values().for_each(|user| user.write_down(&mut served));
        served
    }

    /// Writes down what is served, if somebody keeps it and it has changed.
    pub(crate) fn note_change(&mut self) {
        let Some((journal, written)) = self.journal.take() else { return };
        let served = self.served();
        match served == written {
            true => self.journal = Some((journal, written)),
            false => self.write_down(journal, served),
        }
    }

    fn write_down(&mut self, mut journal: Journal, served: Served) {
        if let Err(error) = journal.write(&served) {
            log::error!("if this process is killed, what has changed is lost: {error}");
        }
        self.journal = Some((journal, served));
    }

    fn has_clients(&self) -> bool {
        self.control.as_ref().is_some_and(Control::has_clients)
    }

    /// When something is to be done though nothing happens.
    fn next_time(&self) -> Option<Instant> {
        let hand_off = self.hand_offs.first().map(|hand_off| hand_off.until);
        let nobody_came = self.follow.as_ref().filter(|_| !self.has_clients()).and_then(Follow::until);
        hand_off.into_iter().chain(nobody_came).min()
    }

    fn on_event(&mut self, source: Source) {
        match source {
            Source::Signal => self.end = Some("ended by a signal"),
            Source::Lifeline => self.end = Some("the life line was cut"),
            Source::News => self.read_news(),
            Source::Followed => {
                let peers = self.users.values_mut().filter_map(|user| user.nic()?.peer);
                if self.follow.as_mut().is_some_and(|follow| !follow.next(peers)) {
                    self.end = Some("the process that it served has ended");
                }
                self.note_change();
            }
            Source::Listener(number) => self.accept(number),
            Source::Connection(number) => self.read(number),
            Source::Control => {
                if let Some(control) = &mut self.control {
                    control.accept();
                }
            }
            Source::Client(number) => {
                let requests = self.control.as_mut().map(|control| control.on_event(number));
                for request in requests.into_iter().flatten() {
                    self.carry_out(request);
                }
            }
        }
    }

    fn accept(&mut self, number: usize) {
        let Some(user) = self.users.get_mut(&number) else { return };
        let User { links, kind: Kind::Nic(nic) } = user else { return };
        if nic.front.fd().is_some() {
            log::info!("{}: another front end waits until the present one has gone", links.name());
            return;
        }
        let Entrance::Listener(listener) = &nic.entrance else { return };
        match listener.accept() {
            Ok((stream, _)) => {
                if self.config.one_off {
                    // Nobody shall wait where nobody will be served.
                    nic.entrance = Entrance::Connected(None);
                }
                self.connect(number, stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => log::warn!("{}: cannot accept a front end: {error}", links.name()),
        }
    }

    fn connect(&mut self, number: usize, stream: UnixStream) {
        let Some(User { links, kind: Kind::Nic(nic) }) = self.users.get_mut(&number) else { return };
        if let Err(error) = nic.connect(links.name(), stream) {
            log::warn!("{}: cannot serve a front end: {}", links.name(), sentence(&error));
            return;
        }
        let Some(fd) = nic.front.fd() else { return };
        let watched = epoll::add(&self.epoll, fd, Source::Connection(number).pack(), nic.front.interest());
        if let Err(errno) = watched {
            log::warn!("{}: cannot serve a front end: {errno}", links.name());
            nic.front.disconnect();
            return;
        }
        log::info!("{}: front end connected", links.name());
        if let Some(follow) = &mut self.follow {
            follow.came(nic.peer);
        }
        let event = control::Event::nic("NIC_CONNECTED", links.name());
        self.note_change();
        self.announce(event);
    }

    fn read(&mut self, number: usize) {
        let Some(User { links, kind: Kind::Nic(nic) }) = self.users.get_mut(&number) else { return };
        let Err(error) = nic.front.on_event() else { return };
        match error {
            Error::Closed => log::info!("{}: front end gone", links.name()),
            error => log::warn!("{}: front end disconnected: {}", links.name(), sentence(&error)),
        }
        self.part(number);
        self.accept(number);
    }

    /// Parts from the front end of a NIC, if one is there.
    pub(crate) fn part(&mut self, number: usize) {
        let Some(user) = self.users.get_mut(&number) else { return };
        let Some(fd) = user.nic().and_then(|nic| nic.front.fd()) else { return };
        let _ = epoll::delete(&self.epoll, fd);
        user.part();
        let event = control::Event::nic("NIC_DISCONNECTED", user.name());
        self.announce(event);
    }

    pub(crate) fn read_news(&mut self) {
        let _ = rustix::io::read(&self.reporter.wake, &mut [0u8; 8]);
        while let Ok(news) = self.news.try_recv() {
            let event = match news {
                News::Lost { user, link, reason } => {
                    self.users.get_mut(&user).and_then(|user| user.links.lost(link, reason))
                }
                News::Open { user, link, opened } => self.users.get_mut(&user).and_then(|user| {
                    let User { links, kind } = user;
                    links.opened(link, opened, |opened| kind.set_link(link, opened))
                }),
                News::Captured(ended) => Some(control::Event::capture_ended(&ended)),
                News::Done { task, outcome } => {
                    self.finish(task, outcome);
                    None
                }
            };
            event.into_iter().for_each(|event| self.announce(event));
        }
    }

    /// Tells everybody on the control socket.
    pub(crate) fn announce(&mut self, event: control::Event) {
        if let Some(control) = &mut self.control {
            control.announce(&event);
        }
    }
}
