//! The links of a NIC or a join as the control thread knows them; opening them again when a network went away.
//!
//! A switch that ends takes its ports with it. The guest keeps its NIC; a thread per lost link tries the locator again, at
//! first after a tenth of a second, then ever less often, and hands what it opened to the control thread. It ends when the
//! link is removed.
//!
//! A link has a number, which no other link of the same user ever gets: what is told late of one that was removed is of
//! no consequence.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use vdeplug::{Link, OpenOptions};

use crate::cable::{Cable, Name};
use crate::capture::Tap;
use crate::control::{Class, Event, Refusal};
use crate::journal::Numbers;
use crate::news::{News, Reporter};
use crate::open::Networks;
use crate::sentence;

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(5);

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

/// All links of a user.
#[derive(Debug)]
pub struct Links {
    /// Begins the log lines of the user.
    name: String,
    /// The user's number.
    user: usize,
    options: OpenOptions,
    networks: Arc<Networks>,
    reporter: Reporter,
    tap: Arc<Tap>,
    states: Vec<State>,
    /// The next link's number.
    next: usize,
}

#[derive(Debug)]
struct State {
    number: usize,
    locator: String,
    condition: Condition,
    patience: Patience,
    /// Another one has taken its place; it will be closed soon.
    leaving: bool,
}

#[derive(Debug)]
enum Condition {
    /// The user's threads own it: when it was lost, it must end before another one takes its place.
    Up(Weak<Cable>),
    /// Why, and the end of a channel for whose life a thread tries to open it.
    Down { reason: String, retry: Option<Sender<()>> },
}

/// What a link is called.
pub fn id(number: usize) -> String {
    format!("link{number}")
}

impl State {
    fn id(&self) -> String {
        id(self.number)
    }

    fn describe(&self) -> vde_control::Link {
        let (up, reason, traffic) = match &self.condition {
            Condition::Up(cable) => (true, None, cable.upgrade().map(|cable| cable.traffic())),
            Condition::Down { reason, .. } => (false, Some(reason.clone()), None),
        };
        let (id, locator, traffic) = (self.id(), self.locator.clone(), traffic.unwrap_or_default());
        vde_control::Link { id, locator, up, reason, traffic }
    }
}

impl Links {
    /// None yet. `options` are those that links are opened with; `tap` is that of all cables.
    pub fn new(
        name: String,
        user: usize,
        options: OpenOptions,
        networks: Arc<Networks>,
        reporter: Reporter,
        tap: Arc<Tap>,
    ) -> Self {
        Self { name, user, options, networks, reporter, tap, states: Vec::new(), next: 0 }
    }

    /// The user's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What links are opened with.
    pub fn options(&self) -> &OpenOptions {
        &self.options
    }

    /// The next link gets this number.
    pub fn set_next(&mut self, number: usize) {
        self.next = number;
    }

    /// The locators of those that stay, and by which numbers they go.
    pub fn plugged(&self) -> (Vec<String>, Numbers) {
        let here = self.states.iter().filter(|state| !state.leaving);
        let (locators, used) = here.map(|state| (state.locator.clone(), state.number)).unzip();
        (locators, Numbers { used, next: self.next })
    }

    /// One more link. Returns its number, and the link as its user sees it, unless it is still to be opened.
    pub fn add(&mut self, locator: String, opened: Option<Arc<dyn Link>>) -> (usize, Option<Arc<dyn Link>>) {
        let number = self.next;
        self.next += 1;
        let link = opened.map(|link| self.cable(number, &locator, link));
        let mut patience = Patience::new();
        let condition = match &link {
            Some(link) => Condition::Up(Arc::downgrade(link)),
            None => self.reopen(number, &locator, patience.lost(), "it was not up at the start".into()),
        };
        self.states.push(State { number, locator, condition, patience, leaving: false });
        (number, link.map(|link| link as Arc<dyn Link>))
    }

    /// The link as its user sees it.
    fn cable(&self, number: usize, locator: &str, link: Arc<dyn Link>) -> Arc<Cable> {
        let name = Name { id: id(number), locator: locator.into() };
        Arc::new(Cable::new(link, name, self.tap.clone()))
    }

    /// What they are called.
    pub fn names(&self) -> impl Iterator<Item = Name> {
        self.states.iter().map(|state| Name { id: state.id(), locator: state.locator.clone() })
    }

    /// All of them, in the order in which they came; what has taken the place of another one comes before that.
    pub fn describe(&self) -> Vec<vde_control::Link> {
        self.states.iter().map(State::describe).collect()
    }

    /// The number of the link with this id or locator.
    pub fn find(&self, word: &str) -> Result<usize, Refusal> {
        let here = || self.states.iter().filter(|state| !state.leaving);
        if let Some(state) = here().find(|state| state.id() == word) {
            return Ok(state.number);
        }
        let mut found = here().filter(|state| state.locator == word);
        match (found.next(), found.next()) {
            (Some(state), None) => Ok(state.number),
            (Some(one), Some(other)) => Err(Refusal::new(
                Class::GenericError,
                format!("{} has several links to {word}: say {} or {}", self.name, one.id(), other.id()),
            )),
            (None, _) => {
                let known: Vec<String> = here().map(|s| format!("{} ({})", s.id(), s.locator)).collect();
                let known = if known.is_empty() { "none".into() } else { known.join(", ") };
                let desc = format!("{} has no link '{word}'; its links: {known}", self.name);
                Err(Refusal::new(Class::DeviceNotFound, desc))
            }
        }
    }

    /// Whether a link is there, and nothing has taken its place.
    pub fn has(&self, number: usize) -> bool {
        self.states.iter().any(|state| state.number == number && !state.leaving)
    }

    /// The newest link takes the place of this one: if it is down, it is not opened any more.
    pub fn leave(&mut self, number: usize) {
        if let Some(state) = self.state(number) {
            state.leaving = true;
            if let Condition::Down { retry, .. } = &mut state.condition {
                *retry = None;
            }
        }
        // Who starts another back end by this list calls the others as they are called here.
        if let Some(place) = self.states.iter().position(|state| state.number == number)
            && let Some(newest) = self.states.pop()
        {
            self.states.insert(place, newest);
        }
    }

    /// Forgets a link.
    pub fn remove(&mut self, number: usize) {
        self.states.retain(|state| state.number != number);
    }

    /// Something happened to a link.
    pub fn event(&self, name: &'static str, number: usize) -> Option<Event> {
        let state = self.states.iter().find(|state| state.number == number)?;
        Some(Event::link(name, &self.name, &state.id(), &state.locator))
    }

    /// A thread of the user found a link dead: has it opened again.
    pub fn lost(&mut self, number: usize, reason: String) -> Option<Event> {
        let state = self.state(number)?;
        // Every thread of the user may say so.
        let Condition::Up(_) = state.condition else { return None };
        let (locator, delay) = (state.locator.clone(), state.patience.lost());
        let event = self.event("LINK_DOWN", number)?.because(&reason);
        let condition = match self.state(number)?.leaving {
            true => Condition::Down { reason, retry: None },
            false => {
                log::warn!("{}: link '{locator}' is down ({reason}); trying to get it back", self.name);
                self.reopen(number, &locator, delay, reason)
            }
        };
        self.state(number)?.condition = condition;
        Some(event)
    }

    /// A link is open again: plugs it in.
    pub fn opened(
        &mut self,
        number: usize,
        opened: Arc<dyn Link>,
        plug: impl FnOnce(&Arc<dyn Link>),
    ) -> Option<Event> {
        if !self.has(number) {
            return None;
        }
        let locator = self.state(number)?.locator.clone();
        let cable = self.cable(number, &locator, opened);
        let state = self.state(number)?;
        state.condition = Condition::Up(Arc::downgrade(&cable));
        state.patience.opened();
        plug(&(cable as Arc<dyn Link>));
        // Whoever reads this may count on it.
        log::warn!("{}: link '{locator}' is up again", self.name);
        self.event("LINK_UP", number)
    }

    fn state(&mut self, number: usize) -> Option<&mut State> {
        self.states.iter_mut().find(|state| state.number == number)
    }

    /// Has a link that is not up opened in a thread of its own, however long it takes.
    fn reopen(&self, link: usize, locator: &str, mut delay: Duration, reason: String) -> Condition {
        let (name, user, locator) = (self.name.clone(), self.user, locator.to_owned());
        let (options, networks, reporter) =
            (self.options.clone(), self.networks.clone(), self.reporter.clone());
        let (retry, removed) = channel();
        let work = move || {
            while removed.recv_timeout(delay) == Err(RecvTimeoutError::Timeout) {
                match networks.open(&locator, &options) {
                    Ok(opened) => return reporter.tell(News::Open { user, link, opened }),
                    Err(error) => log::debug!("{name}: {}", sentence(&error)),
                }
                delay = (delay * 2).min(LAST_DELAY);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("reopen".into()).spawn(work) {
            log::error!("{}: cannot start a thread to reopen link {link}: {error}", self.name);
        }
        Condition::Down { reason, retry: Some(retry) }
    }
}
