//! Opening networks.
//!
//! Opening may block for as long as a switch may take to answer, so once the process serves, threads of their own do it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use vdeplug::{Link, OpenError, OpenErrorKind, OpenOptions};

use crate::cli::Opener;
use crate::{Failure, Status, sentence};

/// How long a network may take to answer where nobody insists on it: 64 of them, one after the other, within the time
/// that `vdeq` gives us to be ready. Who is slower is asked again.
const SHORT_PATIENCE: Duration = Duration::from_millis(300);

/// Schemes of networks that we serve ourselves and that can be plugged into more than once.
const SHARED: [&str; 2] = ["hub://", "switch://"];

/// What becomes of a network that cannot be joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// It is an error.
    Refused,
    /// It is tried again, unless its locator is wrong.
    Retried,
    /// It is tried again whatever is said of it: it was there before.
    Expected,
}

impl Missing {
    /// Whether one that cannot be joined for a reason of this kind is tried again.
    fn is_retried(self, kind: OpenErrorKind) -> bool {
        match self {
            Self::Refused => false,
            Self::Retried => kind != OpenErrorKind::Usage,
            Self::Expected => true,
        }
    }
}

/// The networks that were opened, by locator. One that this process serves need not be reached from outside by the second
/// of its NICs: that one gets a port of its own on it.
#[derive(Debug)]
pub struct Networks {
    open: Opener,
    links: Mutex<HashMap<String, Weak<dyn Link>>>,
}

impl Networks {
    /// None yet.
    pub fn new(open: Opener) -> Self {
        Self { open, links: Mutex::default() }
    }

    /// Opens all links of a user, or says which one cannot be opened and why. One that is to be tried again is left out, and
    /// is not waited for as long as later.
    pub fn open_all(
        &self,
        locators: &[String],
        options: &OpenOptions,
        missing: Missing,
    ) -> Result<Vec<Option<Arc<dyn Link>>>, Failure> {
        let patience = if missing == Missing::Refused { Duration::MAX } else { SHORT_PATIENCE };
        let options = OpenOptions { timeout: options.timeout.min(patience), ..options.clone() };
        let open = |locator: &String| match self.open(locator, &options) {
            Ok(link) => Ok(Some(link)),
            Err(error) if missing.is_retried(error.kind()) => {
                log::warn!("link '{locator}' is not up ({}); trying to get it", sentence(&error));
                Ok(None)
            }
            Err(error) => Err(Failure::new(Status::Network, sentence(&error))),
        };
        locators.iter().map(open).collect()
    }

    /// Opens one link.
    pub fn open(&self, locator: &str, options: &OpenOptions) -> Result<Arc<dyn Link>, OpenError> {
        let lock = || self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let mut links = lock();
        let known = links.get(locator).and_then(Weak::upgrade);
        if let Some(port) = known.and_then(|link| link.another(options.offloads)) {
            return Ok(port);
        }
        // Two who ask for one network of ours at the same time are to share it. Making it waits for nobody, as opening
        // any other one may.
        let shared = SHARED.iter().any(|scheme| locator.starts_with(scheme)).then_some(links);
        let link = (self.open)(locator, options)?;
        links = shared.unwrap_or_else(lock);
        links.retain(|_, link| link.strong_count() > 0);
        links.insert(locator.into(), Arc::downgrade(&link));
        Ok(link)
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
        let opened = Networks::new(slow).open_all(&locators, &options, Missing::Refused).unwrap();
        assert!(opened.iter().all(Option::is_some));
        let opened = Networks::new(slow).open_all(&locators, &options, Missing::Retried).unwrap();
        assert!(opened.iter().all(Option::is_none));
    }

    #[test]
    fn who_asks_for_a_network_of_ours_at_the_same_time_shares_it() {
        let dir = tempfile::tempdir().unwrap();
        let locator = format!("switch://{}", dir.path().join("net").display());
        let networks = Networks::new(vdeplug::open);
        let opened: Vec<_> = std::thread::scope(|scope| {
            let open = || networks.open(&locator, &OpenOptions::default()).unwrap();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(opened.iter().skip(1).all(|link| link.send_one(&[0xff; 60]).unwrap()));
        drop(opened);
        assert!(!dir.path().join("net").exists());
    }
}
