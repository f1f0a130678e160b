//! What the control socket's commands do (`docs/control.md`).
//!
//! Those that need a network begin a task (module `tasks`) and are answered by [`Server::finish`]; all others are answered
//! at once.

mod links;

use std::os::fd::OwnedFd;
use std::path::Path;

pub use links::HandOff;
use serde_json::{Value, json};
use vde_control::{NicAdd, NicDel};

use crate::Failure;
use crate::cli::{Door, NicConfig, Protocol};
use crate::control::{Class, Command, Event, Refusal, Request, Ticket};
use crate::journal::Numbers;
use crate::server::Server;
use crate::socket::{self, Entrance};
use crate::tasks::{Aim, Prepared, Task, Threshold, Work};
use crate::user::{Kind, User};

/// What a command returns.
pub(crate) type Answer = Result<Value, Refusal>;

pub(crate) fn refuse<T>(class: Class, desc: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(class, desc))
}

/// The socket that comes with `nic-add`, from somebody who may make it where we may not.
fn given(descriptors: Vec<OwnedFd>) -> Result<Option<Entrance>, Refusal> {
    if descriptors.len() > 1 {
        let desc = format!("nic-add comes with one descriptor at most, and not with {}", descriptors.len());
        return refuse(Class::GenericError, desc);
    }
    let taken = descriptors.into_iter().next().map(socket::listening).transpose()?;
    Ok(taken)
}

impl Server {
    /// Carries out a request, or begins to.
    pub(crate) fn carry_out(&mut self, request: Request) {
        let Request { ticket, command, descriptors } = request;
        let answer = match command {
            Err(refusal) => Err(refusal),
            Ok(Command::Capabilities) => Ok(json!({})),
            Ok(Command::QueryNics) => Ok(self.query(User::describe_nic)),
            Ok(Command::QueryJoins) => Ok(self.query(User::describe_join)),
            Ok(Command::NicAdd(arguments)) => return self.nic_add(ticket, arguments, descriptors),
            Ok(Command::NicDel(arguments)) => self.nic_del(&arguments),
            Ok(Command::LinkAdd(arguments)) => return self.link_add(ticket, arguments),
            Ok(Command::LinkRemove(arguments)) => self.link_remove(&arguments),
            Ok(Command::LinkReplace(arguments)) => return self.link_replace(ticket, arguments),
            Ok(Command::CaptureStart(arguments)) => self.capture_start(ticket.client, arguments, descriptors),
            Ok(Command::CaptureStop(arguments)) => self.capture_stop(&arguments),
            Ok(Command::Quit) => {
                self.end = Some("ended by a command");
                Ok(json!({}))
            }
        };
        self.answer(ticket, answer);
    }

    pub(crate) fn answer(&mut self, ticket: Ticket, answer: Answer) {
        // Who hears that something is done may count on it.
        self.note_change();
        if let Some(control) = &mut self.control {
            control.answer(ticket, answer);
        }
    }

    fn query<T: serde::Serialize>(&self, describe: impl Fn(&User) -> Option<T>) -> Value {
        json!(self.users.values().filter_map(describe).collect::<Vec<T>>())
    }

    /// The number of the NIC or join of this name.
    pub(crate) fn find(&self, name: &str) -> Result<usize, Refusal> {
        match self.users.iter().find(|(_, user)| user.name() == name) {
            Some((number, _)) => Ok(*number),
            None => {
                let known: Vec<&str> = self.users.values().map(User::name).collect();
                let known = if known.is_empty() { "none".into() } else { known.join(", ") };
                refuse(
                    Class::DeviceNotFound,
                    format!("there is no NIC or join '{name}'; those that are there: {known}"),
                )
            }
        }
    }

    fn nic_add(&mut self, ticket: Ticket, arguments: NicAdd, descriptors: Vec<OwnedFd>) {
        let checked = self.check_nic(arguments).and_then(|config| Ok((config, given(descriptors)?)));
        let (config, given) = match checked {
            Ok(checked) => checked,
            Err(refusal) => return self.answer(ticket, Err(refusal)),
        };
        let work = Work {
            networks: self.networks.clone(),
            locators: config.links.clone(),
            options: self.options(config.protocol == Protocol::VhostUser),
            door: match given {
                Some(entrance) => Some(Threshold::There(entrance)),
                None => {
                    let make = |path: &Path| Threshold::Make(path.into(), self.config.socket_owner);
                    config.door.path().map(make)
                }
            },
        };
        self.begin(Task { ticket, aim: Aim::NicAdd(config) }, work);
    }

    fn check_nic(&self, arguments: NicAdd) -> Result<NicConfig, Refusal> {
        let NicAdd { id, socket_path, links, protocol, queues } = arguments;
        let reserved = |known: &NicConfig| known.id.as_ref() == Some(&id);
        if self.find(&id).is_ok() || self.tasks.nics().any(reserved) {
            return refuse(Class::GenericError, format!("there is a NIC or join '{id}' already"));
        }
        if links.is_empty() {
            return refuse(
                Class::GenericError,
                format!("NIC '{id}' has no links; give one locator at least"),
            );
        }
        if !socket_path.is_absolute() {
            let desc = format!("socket-path '{}' does not begin with /", socket_path.display());
            return refuse(Class::GenericError, desc);
        }
        let door = Door::Path(socket_path);
        let config = NicConfig { id: Some(id), door, protocol: protocol.into(), links, queues };
        config.check()?;
        Ok(config)
    }

    fn nic_del(&mut self, arguments: &NicDel) -> Answer {
        let NicDel { id } = arguments;
        // One that is not there yet will not come.
        let adding = |task: &Task| matches!(&task.aim, Aim::NicAdd(config) if config.id.as_ref() == Some(id));
        if let Some(ticket) = self.tasks.give_up(adding).pop() {
            let desc = format!("NIC '{id}' was deleted before its networks had answered");
            self.answer(ticket, refuse(Class::GenericError, desc));
            return Ok(json!({}));
        }
        let number = self.find(id)?;
        if let Some(User { kind: Kind::Join(_), .. }) = self.users.get(&number) {
            return refuse(
                Class::GenericError,
                format!("'{id}' is a join, not a NIC, and cannot be deleted"),
            );
        }
        self.part(number);
        self.users.remove(&number);
        for ticket in self.forget_commands(number) {
            self.answer(ticket, refuse(Class::GenericError, format!("NIC '{id}' was deleted meanwhile")));
        }
        log::info!("{id}: deleted");
        self.announce(Event::nic("NIC_DELETED", id));
        let is_last = !self.users.values_mut().any(|user| user.nic().is_some());
        if self.follow.is_some() && is_last && self.tasks.nics().next().is_none() {
            self.end = Some("the last NIC was deleted");
        }
        Ok(json!({}))
    }

    pub(crate) fn begin(&mut self, task: Task, work: Work) {
        if let Err((ticket, refusal)) = self.tasks.start(task, work, &self.reporter) {
            self.answer(ticket, Err(refusal));
        }
    }

    /// What a task waited for is there, or will not be: does what it was for, and answers.
    pub(crate) fn finish(&mut self, task: usize, outcome: Result<Prepared, Failure>) {
        let Some(Task { ticket, aim }) = self.tasks.take(task) else { return };
        let answer = match (outcome, aim) {
            (Err(failure), _) => Err(failure.into()),
            (Ok(prepared), Aim::NicAdd(config)) => self.finish_nic(config, prepared),
            (Ok(prepared), Aim::LinkAdd { user, locator }) => self.finish_link(user, locator, prepared),
            (Ok(prepared), Aim::LinkReplace { user, old, locator, mac }) => {
                return self.finish_replacement((ticket, user, old), (locator, mac), prepared);
            }
        };
        self.answer(ticket, answer);
    }

    fn finish_nic(&mut self, config: NicConfig, prepared: Prepared) -> Answer {
        let Prepared { links, entrance: Some((entrance, name)) } = prepared else {
            return refuse(Class::GenericError, "the socket was not made");
        };
        let id = config.id.clone().unwrap_or_default();
        let links = links.into_iter().map(Some).collect();
        let numbers = Numbers::of(config.links.len());
        let number = self.add_nic(config, numbers, links, (entrance, name))?;
        if let Err(failure) = self.open_door(number) {
            self.users.remove(&number);
            return Err(failure.into());
        }
        log::info!("{id}: added");
        self.announce(Event::nic("NIC_ADDED", &id));
        Ok(json!({}))
    }

    /// Gives up what nobody waits for any more.
    pub(crate) fn give_up_orphans(&mut self) {
        let control = self.control.as_ref();
        self.tasks.give_up(|task| !control.is_some_and(|control| control.has_client(task.ticket.client)));
    }
}
