//! What the control thread does before it serves, and how a NIC comes in, then or later.

use std::sync::Arc;

use vde_control::{create_capture_file_soon, resume_capture_file};
use vdeplug::{Link, OpenOptions};

use super::Server;
use crate::Failure;
use crate::capture::{Recorder, Tap};
use crate::cli::{NicConfig, Protocol};
use crate::control::Control;
use crate::front::Front;
use crate::join::Join;
use crate::journal::{self, Numbers, Served};
use crate::links::Links;
use crate::open::Missing;
use crate::socket::{self, Entrance, OwnName};
use crate::source::Source;
use crate::sys::Inherited;
use crate::user::{Kind, Nic, User};

impl Server {
    /// Serves what the command line names, or what a predecessor did. Nobody can come in before all is open.
    pub(super) fn start(
        &mut self,
        served: Served,
        again: bool,
        inherited: &mut Inherited,
    ) -> Result<(), Failure> {
        let missing = match (again, self.config.keep_going) {
            (true, _) => Missing::Expected,
            (false, true) => Missing::Retried,
            (false, false) => Missing::Refused,
        };
        for nic in served.nics {
            let name = nic.config.name(0);
            match self.start_nic(nic, missing, inherited) {
                // The others are not to go without a network for it.
                Err(failure) if again => log::error!("{name} is not served any more: {}", failure.sentence),
                outcome => outcome?,
            }
        }
        for join in served.joins {
            self.start_join(join, missing)?;
        }
        let numbers: Vec<usize> = self.users.keys().copied().collect();
        numbers.into_iter().try_for_each(|number| self.open_door(number))?;
        if let (Some(follow), Some(process)) = (&mut self.follow, served.followed) {
            follow.resume(process);
        }
        if let Some(place) = &self.config.control {
            let (door, word) = (Source::Control.pack(), |client| Source::Client(client).pack());
            self.control = Some(Control::new(place, inherited, self.epoll.clone(), door, word)?);
        }
        Ok(())
    }

    fn start_nic(
        &mut self,
        nic: journal::Nic,
        missing: Missing,
        inherited: &mut Inherited,
    ) -> Result<(), Failure> {
        let journal::Nic { config, numbers, capture } = nic;
        let again = missing == Missing::Expected;
        // Nothing ends us but what we hear of later.
        let open_file = if again { resume_capture_file } else { create_capture_file_soon };
        let file = match capture {
            Some(path) => match open_file(&path) {
                Ok(file) => Some((path, file)),
                Err(error) if again => {
                    log::error!("the capture in {} does not go on: {error}", path.display());
                    None
                }
                Err(error) => {
                    return Err(Failure::system(&format!("cannot write to {}", path.display()), error));
                }
            },
            None => None,
        };
        let options = self.options(config.protocol == Protocol::VhostUser);
        let opened = self.networks.open_all(&config.links, &options, missing)?;
        let door = socket::open(&config.door, self.config.socket_owner, inherited)?;
        let number = self.add_nic(config, numbers, opened, door)?;
        file.map_or(Ok(()), |file| self.capture_all(number, file, again))
    }

    fn start_join(&mut self, join: journal::Join, missing: Missing) -> Result<(), Failure> {
        let journal::Join { name, links: locators, numbers } = join;
        let opened = self.networks.open_all(&locators, &self.options(true), missing)?;
        let lost = || self.reporter.lost(self.next);
        let join = Join::spawn(&name, lost).map_err(|e| Failure::system("cannot start a thread", e))?;
        let links = self.no_links(name, true, &Arc::default());
        self.add_user(User { links, kind: Kind::Join(join) }, (locators, numbers), opened);
        Ok(())
    }

    /// What links are opened with, of who has headers that say what is left to be done, or has not.
    pub(crate) fn options(&self, headers: bool) -> OpenOptions {
        OpenOptions {
            description: self.config.description.clone(),
            offloads: self.config.offloads && headers,
            ..OpenOptions::default()
        }
    }

    /// One more NIC, which has a name, with all that it needs; its door is still closed.
    pub(crate) fn add_nic(
        &mut self,
        config: NicConfig,
        numbers: Numbers,
        opened: Vec<Option<Arc<dyn Link>>>,
        (entrance, own_name): (Entrance, Option<OwnName>),
    ) -> Result<usize, Failure> {
        let (number, name) = (self.next, config.name(self.next));
        let lost = || self.reporter.lost(number);
        let front = Front::new(&name, &config, self.config.offloads, self.config.poll, lost)
            .map_err(|e| Failure::system("cannot start a worker", e))?;
        let recorder = Recorder::new(&name);
        let links = self.no_links(name, config.protocol == Protocol::VhostUser, recorder.tap());
        let plugged = (config.links.clone(), numbers);
        let (peer, captured_for, capture_file) = (None, None, None);
        let nic =
            Nic { config, front, entrance, _own_name: own_name, peer, recorder, captured_for, capture_file };
        let kind = Kind::Nic(Box::new(nic));
        self.add_user(User { links, kind }, plugged, opened);
        Ok(number)
    }

    /// For the links of the next user.
    fn no_links(&self, name: String, headers: bool, tap: &Arc<Tap>) -> Links {
        let options = self.options(headers);
        Links::new(name, self.next, options, self.networks.clone(), self.reporter.clone(), tap.clone())
    }

    fn add_user(
        &mut self,
        mut user: User,
        (locators, numbers): (Vec<String>, Numbers),
        opened: Vec<Option<Arc<dyn Link>>>,
    ) {
        for ((locator, opened), number) in locators.into_iter().zip(opened).zip(numbers.used) {
            user.links.set_next(number);
            if let (number, Some(link)) = user.links.add(locator, opened) {
                user.kind.set_link(number, &link);
            }
        }
        user.links.set_next(numbers.next);
        self.users.insert(self.next, user);
        self.next += 1;
    }
}
