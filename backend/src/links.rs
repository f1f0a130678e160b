//! Opening links, and opening them again when a network went away.
//!
//! A switch that ends takes its ports with it. The guest keeps its NIC; a thread per lost link tries the locator again, at
//! first after a tenth of a second, then ever less often, and hands what it opened to the control thread. Opening may
//! block for as long as a switch may take to answer, which is why the control thread does not do it.

use std::collections::HashMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fd::OwnedFd;
use vdeplug::{Link, LinkError, OpenError, OpenErrorKind, OpenOptions};
use virtio_net::LinkLost;

use crate::capture::Capture;
use crate::cli::Opener;
use crate::{Failure, Status, sentence};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(5);
/// How long a network may take to answer where nobody insists on it: 64 of them, one after the other, within the time
/// that `vdeq` gives us to be ready. Who is slower is asked again.
const SHORT_PATIENCE: Duration = Duration::from_millis(300);

/// Something happened to link `link` of `user`.
#[derive(Debug)]
pub struct LinkEvent {
    /// Whose link it is.
    pub user: User,
    /// Number of the link among those of the user.
    pub link: usize,
    /// What happened.
    pub news: News,
}

/// Who uses a link.
#[derive(Clone, Copy, Debug)]
pub enum User {
    /// The NIC of this number.
    Nic(usize),
    /// The join of this number.
    Join(usize),
}

/// What can happen to a link.
#[derive(Debug)]
pub enum News {
    /// A worker found it dead, for this reason.
    Lost(String),
    /// It is open again.
    Open(Arc<dyn Link>),
}

/// How other threads tell the control thread of links.
#[derive(Clone, Debug)]
pub struct Reporter {
    /// The news.
    pub sender: Sender<LinkEvent>,
    /// Eventfd on which the control thread waits.
    pub wake: Arc<OwnedFd>,
}

impl Reporter {
    fn tell(&self, user: User, link: usize, news: News) {
        // The control thread lives as long as the process.
        let _ = self.sender.send(LinkEvent { user, link, news });
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// The callback of one thread of a user.
    pub fn lost(&self, user: User) -> LinkLost {
        let reporter = self.clone();
        Box::new(move |link, error: &LinkError| reporter.tell(user, link, News::Lost(sentence(error))))
    }
}

/// The links that NICs of this process have by their locators, so that a hub or a switch that it serves need not be
/// reached from outside by the second of its NICs: that one gets a port of its own on it.
#[derive(Debug)]
pub struct Opened {
    open: Opener,
    links: HashMap<String, Weak<dyn Link>>,
}

impl Opened {
    /// None yet.
    pub fn new(open: Opener) -> Self {
        Self { open, links: HashMap::new() }
    }

    /// Opens all links of a user, or says which one cannot be opened and why. With `keep_going` one that may come up later
    /// is left out, and is not waited for as long as later.
    pub fn open_all(
        &mut self,
        locators: &[String],
        options: &OpenOptions,
        keep_going: bool,
    ) -> Result<Vec<Option<Arc<dyn Link>>>, Failure> {
        let patience = if keep_going { SHORT_PATIENCE } else { Duration::MAX };
        let options = OpenOptions { timeout: options.timeout.min(patience), ..options.clone() };
        let open = |locator: &String| match self.open(locator, &options) {
            Ok(link) => Ok(Some(link)),
            Err(error) if keep_going && error.kind() != OpenErrorKind::Usage => {
                log::warn!("link '{locator}' is not up ({}); trying to get it", sentence(&error));
                Ok(None)
            }
            Err(error) => Err(Failure::new(Status::Network, sentence(&error))),
        };
        locators.iter().map(open).collect()
    }

    fn open(&mut self, locator: &str, options: &OpenOptions) -> Result<Arc<dyn Link>, OpenError> {
        let known = self.links.get(locator).and_then(Weak::upgrade);
        if let Some(port) = known.and_then(|link| link.another(options.offloads)) {
            return Ok(port);
        }
        let link = (self.open)(locator, options)?;
        self.links.insert(locator.into(), Arc::downgrade(&link));
        Ok(link)
    }
}

/// How long to wait before a lost link is opened again. A network that throws us out as often as we come is asked ever
/// less often; one that kept us for a while is asked soon.
#[derive(Clone, Copy, Debug)]
struct Patience {
    delay: Duration,
    since: Instant,
}

impl Patience {
    /// The link has just been opened for the first time.
    fn new() -> Self {
        Self { delay: FIRST_DELAY, since: Instant::now() }
    }

    /// The link is lost: how long to wait first.
    fn lost(&mut self) -> Duration {
        let kept = self.since.elapsed() > LAST_DELAY;
        self.delay = if kept { FIRST_DELAY } else { (self.delay * 2).min(LAST_DELAY) };
        self.delay
    }

    /// The link is open again.
    fn opened(&mut self) {
        self.since = Instant::now();
    }
}

/// The links of a user as the control thread knows them.
#[derive(Debug)]
pub struct Links {
    name: String,
    user: User,
    options: OpenOptions,
    states: Vec<State>,
    capture: Option<Arc<Capture>>,
}

#[derive(Debug)]
struct State {
    locator: String,
    up: bool,
    patience: Patience,
}

impl Links {
    /// `name` begins the log lines of the user; `options` are those that the links are opened with.
    pub fn new(
        name: String,
        user: User,
        options: OpenOptions,
        locators: Vec<String>,
        capture: Option<Arc<Capture>>,
    ) -> Self {
        let state = |locator| State { locator, up: true, patience: Patience::new() };
        Self { name, user, options, states: locators.into_iter().map(state).collect(), capture }
    }

    /// Plugs in what could be opened at the start; has the others opened.
    pub fn start(
        &mut self,
        opened: Vec<Option<Arc<dyn Link>>>,
        open: Opener,
        reporter: &Reporter,
        mut plug: impl FnMut(usize, &Arc<dyn Link>),
    ) {
        for (number, link) in opened.into_iter().enumerate() {
            match link {
                Some(link) => plug(number, &self.captured(number, link)),
                None => self.reopen(number, open, reporter.clone()),
            }
        }
    }

    /// The link as its user sees it.
    fn captured(&self, number: usize, link: Arc<dyn Link>) -> Arc<dyn Link> {
        match &self.capture {
            Some(capture) => capture.tap(number, link),
            None => link,
        }
    }

    /// The user's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes note of news: has a lost link opened again, and one that is open again plugged in.
    pub fn hear(
        &mut self,
        link: usize,
        news: News,
        open: Opener,
        reporter: &Reporter,
        plug: impl FnOnce(&Arc<dyn Link>),
    ) {
        let Some(State { locator, up, patience }) = self.states.get_mut(link) else { return };
        match news {
            // Every thread of the user may say so.
            News::Lost(_) if !*up => {}
            News::Lost(reason) => {
                log::warn!("{}: link '{locator}' is down ({reason}); trying to get it back", self.name);
                self.reopen(link, open, reporter.clone());
            }
            News::Open(opened) => {
                *up = true;
                patience.opened();
                let locator = locator.clone();
                plug(&self.captured(link, opened));
                // Whoever reads this may count on it.
                log::warn!("{}: link '{locator}' is up again", self.name);
            }
        }
    }

    /// Has a link that is not up opened in a thread of its own, however long it takes.
    fn reopen(&mut self, link: usize, open: Opener, reporter: Reporter) {
        let Some(State { locator, up, patience }) = self.states.get_mut(link) else { return };
        *up = false;
        let (locator, mut delay) = (locator.clone(), patience.lost());
        let (name, user, options) = (self.name.clone(), self.user, self.options.clone());
        let work = move || {
            loop {
                std::thread::sleep(delay);
                match open(&locator, &options) {
                    Ok(opened) => return reporter.tell(user, link, News::Open(opened)),
                    Err(error) => log::debug!("{name}: {}", sentence(&error)),
                }
                delay = (delay * 2).min(LAST_DELAY);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("reopen".into()).spawn(work) {
            log::error!("{}: cannot start a thread to reopen link {link}: {error}", self.name);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A network that answers after two seconds, or is given up before.
    fn slow(_: &str, options: &OpenOptions) -> Result<Arc<dyn Link>, OpenError> {
        let locator =
            if options.timeout >= Duration::from_secs(2) { "null://" } else { "vde:///no/such/switch" };
        vdeplug::open(locator, options)
    }

    #[test]
    fn open_all_waits_long_only_for_what_must_be_there() {
        let (locators, options) = (["a".to_owned(), "b".to_owned()], OpenOptions::default());
        let opened = Opened::new(slow).open_all(&locators, &options, false).unwrap();
        assert!(opened.iter().all(Option::is_some));
        let opened = Opened::new(slow).open_all(&locators, &options, true).unwrap();
        assert!(opened.iter().all(Option::is_none));
    }
}
