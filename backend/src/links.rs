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

use crate::cli::{NicConfig, Opener};
use crate::{Failure, Status, sentence};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(5);

/// Something happened to link `link` of NIC `nic`.
#[derive(Debug)]
pub struct LinkEvent {
    /// Number of the NIC.
    pub nic: usize,
    /// Number of the link in it.
    pub link: usize,
    /// What happened.
    pub news: News,
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
    fn tell(&self, nic: usize, link: usize, news: News) {
        // The control thread lives as long as the process.
        let _ = self.sender.send(LinkEvent { nic, link, news });
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// The callback of one worker of a NIC.
    pub fn lost(&self, nic: usize) -> LinkLost {
        let reporter = self.clone();
        Box::new(move |link, error: &LinkError| reporter.tell(nic, link, News::Lost(sentence(error))))
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

    /// Opens all links of a NIC, or says which one cannot be opened and why. With `keep_going` one that may come up later
    /// is left out.
    pub fn open_all(
        &mut self,
        nic: &NicConfig,
        options: &OpenOptions,
        keep_going: bool,
    ) -> Result<Vec<Option<Arc<dyn Link>>>, Failure> {
        let open = |locator: &String| match self.open(locator, options) {
            Ok(link) => Ok(Some(link)),
            Err(error) if keep_going && error.kind() != OpenErrorKind::Usage => {
                log::warn!("link '{locator}' is not up ({}); trying to get it", sentence(&error));
                Ok(None)
            }
            Err(error) => Err(Failure::new(Status::Network, sentence(&error))),
        };
        nic.links.iter().map(open).collect()
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
pub struct Patience {
    delay: Duration,
    since: Instant,
}

impl Patience {
    /// The link has just been opened for the first time.
    pub fn new() -> Self {
        Self { delay: FIRST_DELAY, since: Instant::now() }
    }

    /// The link is lost: how long to wait first.
    pub fn lost(&mut self) -> Duration {
        let kept = self.since.elapsed() > LAST_DELAY;
        self.delay = if kept { FIRST_DELAY } else { (self.delay * 2).min(LAST_DELAY) };
        self.delay
    }

    /// The link is open again.
    pub fn opened(&mut self) {
        self.since = Instant::now();
    }
}

/// Opens a lost link again, in a thread of its own, however long it takes.
pub fn reopen(
    nic: usize,
    link: usize,
    locator: String,
    mut delay: Duration,
    open: Opener,
    options: OpenOptions,
    reporter: Reporter,
) {
    let work = move || {
        loop {
            std::thread::sleep(delay);
            match open(&locator, &options) {
                Ok(opened) => return reporter.tell(nic, link, News::Open(opened)),
                Err(error) => log::debug!("nic{nic}: {}", sentence(&error)),
            }
            delay = (delay * 2).min(LAST_DELAY);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("reopen".into()).spawn(work) {
        log::error!("nic{nic}: cannot start a thread to reopen link {link}: {error}");
    }
}
