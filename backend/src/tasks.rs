//! Commands that wait for a network.
//!
//! # Theory of operation
//! A network may take seconds to answer, and the control thread waits for nobody. So what a command needs is prepared by a
//! thread of its own, which tells the control thread of the [`Prepared`] and ends; the control thread puts it in place and
//! answers. Until then nothing has changed, and whatever becomes of the preparation when its task is gone, it is dropped,
//! which closes everything again.
//!
//! A task goes when its client goes, when its NIC goes, and when the command that it came from is taken back. Its name is
//! reserved meanwhile.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use vdeplug::{Link, OpenOptions};

use crate::Failure;
use crate::cli::NicConfig;
use crate::control::{Class, Refusal, Ticket};
use crate::news::{News, Reporter};
use crate::open::{Missing, Networks};
use crate::socket::{self, Entrance, OwnName};

/// Most that wait at a time; each has a thread.
const MOST: usize = 64;

/// What was made for a command.
#[derive(Debug)]
pub struct Prepared {
    /// Open links, in the order of their locators.
    pub links: Vec<Arc<dyn Link>>,
    /// A NIC's socket.
    pub entrance: Option<(Entrance, Option<OwnName>)>,
}

/// A command that waits.
#[derive(Debug)]
pub struct Task {
    /// Where the answer goes.
    pub ticket: Ticket,
    /// What is to be done.
    pub aim: Aim,
}

/// What is to be done once all is prepared.
#[derive(Debug)]
pub enum Aim {
    /// Serve one more NIC.
    NicAdd(NicConfig),
    /// Plug one more link into this NIC.
    LinkAdd { user: usize, locator: String },
    /// Plug a link in that takes the place of another one, and say there that `mac` has moved.
    LinkReplace { user: usize, old: usize, locator: String, mac: Option<[u8; 6]> },
}

/// All that wait, by their numbers.
#[derive(Debug, Default)]
pub struct Tasks {
    tasks: BTreeMap<usize, Task>,
    next: usize,
}

impl Tasks {
    /// Has links opened, and a NIC's socket made, for a task.
    pub fn start(&mut self, task: Task, work: Work, reporter: &Reporter) -> Result<(), (Ticket, Refusal)> {
        let refuse = |task: Task, desc: String| Err((task.ticket, Refusal::new(Class::GenericError, desc)));
        if self.tasks.len() >= MOST {
            return refuse(task, format!("{MOST} commands wait for their networks already; try again later"));
        }
        let number = self.next;
        let reporter = reporter.clone();
        let body = move || reporter.tell(News::Done { task: number, outcome: work.prepare() });
        if let Err(error) = std::thread::Builder::new().name("open".into()).spawn(body) {
            return refuse(task, format!("cannot start a thread: {error}"));
        }
        self.next += 1;
        self.tasks.insert(number, task);
        Ok(())
    }

    /// Gives up what is for this user, and returns where to tell it.
    pub fn give_up_for(&mut self, gone: usize) -> Vec<Ticket> {
        self.give_up(|task| match task.aim {
            Aim::NicAdd(_) => false,
            Aim::LinkAdd { user, .. } | Aim::LinkReplace { user, .. } => user == gone,
        })
    }

    /// The task of this number, if it is still wanted.
    pub fn take(&mut self, number: usize) -> Option<Task> {
        self.tasks.remove(&number)
    }

    /// Gives up those of which this says so, and returns where to tell it.
    pub fn give_up(&mut self, which: impl Fn(&Task) -> bool) -> Vec<Ticket> {
        let gone: Vec<usize> =
            self.tasks.iter().filter(|(_, task)| which(task)).map(|(number, _)| *number).collect();
        gone.into_iter().filter_map(|number| self.tasks.remove(&number)).map(|task| task.ticket).collect()
    }

    /// The NICs that are to come.
    pub fn nics(&self) -> impl Iterator<Item = &NicConfig> {
        self.tasks.values().filter_map(|task| match &task.aim {
            Aim::NicAdd(config) => Some(config),
            _ => None,
        })
    }
}

/// What the thread of a task does.
#[derive(Debug)]
pub struct Work {
    pub networks: Arc<Networks>,
    pub locators: Vec<String>,
    pub options: OpenOptions,
    /// The socket of a NIC.
    pub door: Option<Threshold>,
}

/// Where a new NIC's socket comes from.
#[derive(Debug)]
pub enum Threshold {
    /// It is made at a path, and is to be of a user and group.
    Make(PathBuf, Option<(u32, u32)>),
    /// It came with the command, whose sender removes its name, too.
    There(Entrance),
}

impl Work {
    fn prepare(self) -> Result<Prepared, Failure> {
        let links = self.networks.open_all(&self.locators, &self.options, Missing::Refused)?;
        let links = links.into_iter().flatten().collect();
        let entrance = match self.door {
            Some(Threshold::Make(path, owner)) => {
                let (entrance, name) = socket::make(&path, owner)?;
                Some((entrance, Some(name)))
            }
            Some(Threshold::There(entrance)) => Some((entrance, None)),
            None => None,
        };
        Ok(Prepared { links, entrance })
    }
}
