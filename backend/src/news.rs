//! What other threads tell the control thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use vde_control::CaptureEnded;
use vdeplug::{Link, LinkError};
use virtio_net::LinkLost;

use crate::Failure;
use crate::sentence;
use crate::tasks::Prepared;

/// Something happened. Users, links and tasks are named by their numbers, which are never used again, so that news of one
/// that is no more are of no consequence.
#[derive(Debug)]
pub enum News {
    /// A thread of a user found a link dead, for this reason.
    Lost { user: usize, link: usize, reason: String },
    /// That one is open again.
    Open { user: usize, link: usize, opened: Arc<dyn Link> },
    /// A capture has ended.
    Captured(CaptureEnded),
    /// What a command has waited for is there, or will not be.
    Done { task: usize, outcome: Result<Prepared, Failure> },
}

/// How it is told.
#[derive(Clone, Debug)]
pub struct Reporter {
    /// The news.
    pub sender: Sender<News>,
    /// Eventfd on which the control thread waits.
    pub wake: Arc<OwnedFd>,
}

impl Reporter {
    /// Tells it.
    pub fn tell(&self, news: News) {
        // The control thread lives as long as the process.
        let _ = self.sender.send(news);
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// The callback of one thread of a user.
    pub fn lost(&self, user: usize) -> LinkLost {
        let reporter = self.clone();
        Box::new(move |link, error: &LinkError| {
            reporter.tell(News::Lost { user, link, reason: sentence(error) });
        })
    }
}
