//! Who uses links: a NIC or a join, as the control thread knows it.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::net::sockopt::socket_peercred;
use vde_control as wire;
use vdeplug::Link;
use vhost_user::Error;

use crate::capture::Recorder;
use crate::cli::NicConfig;
use crate::front::Front;
use crate::join::Join;
use crate::journal::{self, Served};
use crate::links::Links;
use crate::socket::{Entrance, OwnName};

/// A NIC or a join with its links.
#[derive(Debug)]
pub struct User {
    pub links: Links,
    pub kind: Kind,
}

/// What uses them.
#[derive(Debug)]
pub enum Kind {
    Nic(Box<Nic>),
    Join(Join),
}

/// A NIC and its door.
#[derive(Debug)]
pub struct Nic {
    pub config: NicConfig,
    pub front: Front,
    pub entrance: Entrance,
    /// Removed from the file system when the NIC ends.
    pub _own_name: Option<OwnName>,
    /// The process of the front end that is there.
    pub peer: Option<u32>,
    /// Writes its frames down where that is asked for.
    pub recorder: Recorder,
    /// The client for whose connection's life it does.
    pub captured_for: Option<usize>,
    /// The file to which it does for as long as we live.
    pub capture_file: Option<PathBuf>,
}

impl User {
    /// Its name.
    pub fn name(&self) -> &str {
        self.links.name()
    }

    /// The NIC, if it is one.
    pub fn nic(&mut self) -> Option<&mut Nic> {
        match &mut self.kind {
            Kind::Nic(nic) => Some(nic),
            Kind::Join(_) => None,
        }
    }

    /// As the control socket tells of a NIC.
    pub fn describe_nic(&self) -> Option<wire::Nic> {
        let Kind::Nic(nic) = &self.kind else { return None };
        Some(wire::Nic {
            id: self.name().into(),
            socket_path: nic.config.door.path().map(Into::into),
            protocol: nic.config.protocol.into(),
            queues: nic.config.queues,
            connected: nic.front.fd().is_some(),
            pid: nic.peer,
            features: nic.front.features(),
            rings: nic.front.rings(),
            links: self.links.describe(),
            counters: by_name(nic.front.counters()),
            capturing: nic.recorder.is_on(),
        })
    }

    /// As the control socket tells of a join.
    pub fn describe_join(&self) -> Option<wire::Join> {
        let Kind::Join(join) = &self.kind else { return None };
        let (id, links) = (self.name().into(), self.links.describe());
        Some(wire::Join { id, links, counters: by_name(join.counters()) })
    }

    /// Adds it to what is served.
    pub fn write_down(&self, served: &mut Served) {
        let (links, numbers) = self.links.plugged();
        let name = self.name().to_owned();
        match &self.kind {
            Kind::Nic(nic) => {
                let config = NicConfig { id: Some(name), links, ..nic.config.clone() };
                served.nics.push(journal::Nic { config, numbers, capture: nic.capture_file.clone() });
            }
            Kind::Join(_) => served.joins.push(journal::Join { name, links, numbers }),
        }
    }

    /// Parts from a front end that is there, and logs what passed until now.
    pub fn part(&mut self) {
        let counters = match &mut self.kind {
            Kind::Nic(nic) if nic.front.fd().is_none() => return,
            Kind::Nic(nic) => {
                nic.front.disconnect();
                nic.peer = None;
                nic.front.counters()
            }
            Kind::Join(join) => join.counters(),
        };
        let shown = counters.iter().filter(|(_, value)| *value > 0);
        let shown: String = shown.map(|(name, value)| format!(" {name}={value}")).collect();
        log::info!("{}:{}", self.name(), if shown.is_empty() { " nothing has passed" } else { &shown });
    }
}

fn by_name(counters: Vec<(&'static str, u64)>) -> std::collections::BTreeMap<String, u64> {
    counters.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl Kind {
    /// Plugs a link in, in place of one of the same number.
    pub fn set_link(&mut self, number: usize, link: &Arc<dyn Link>) {
        match self {
            Self::Nic(nic) => nic.front.set_link(number, link),
            Self::Join(join) => join.set_link(number, link),
        }
    }

    /// Plugs a link in that takes the place of `old`, from which frames still come until it is unplugged.
    pub fn hand_over(&mut self, old: usize, number: usize, link: &Arc<dyn Link>) {
        match self {
            Self::Nic(nic) => nic.front.hand_over(old, number, link),
            Self::Join(join) => join.hand_over(old, number, link),
        }
    }

    /// Pulls a link out.
    pub fn unplug(&mut self, number: usize) {
        match self {
            Self::Nic(nic) => nic.front.unplug(number),
            Self::Join(join) => join.unplug(number),
        }
    }
}

impl Nic {
    /// Serves a front end; there is none.
    pub fn connect(&mut self, name: &str, socket: UnixStream) -> Result<(), Error> {
        let credentials = socket_peercred(&socket).ok();
        self.front.connect(name, socket)?;
        // One in a container that we do not see into has none.
        self.peer = credentials.and_then(|peer| u32::try_from(peer.pid.as_raw_nonzero().get()).ok());
        Ok(())
    }

    /// Nobody is there, and nobody can come.
    pub fn is_over(&self) -> bool {
        self.front.fd().is_none() && matches!(self.entrance, Entrance::Connected(_))
    }
}
