//! Commands that plug links in and pull them out, and the hand-off.
//!
//! # Theory of operation
//! A link takes the place of another one as follows. The new one is opened; until then nothing has changed. Then each thread
//! of the NIC gets it in one step: what the guest sends goes to the old one up to some frame and to the new one from the next
//! on. With both to send to for a while, a frame would reach who hears both networks twice, and one that is full could not
//! make the guest wait. The new network hears where the guest is now, and what the others still sent to the old one, or the
//! old one had under way, is received meanwhile. Then the old one is closed, and the command answered.
//!
//! Where both networks meet, a frame of the guest that was late on the old one takes the word back: what is for the guest then
//! goes to the old one until the guest says something, and a guest that only answers says nothing. A switch on a busy machine was
//! seen to hold frames for more than a tenth of a second. So the word is given several times ([`ANNOUNCEMENTS`]), and the old
//! link stays until the last of them has had its time.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use serde_json::json;
use vde_control::{LinkAdd, LinkId, LinkRemove, LinkReplace};
use vdeplug::Link;

use super::{Answer, refuse};
use crate::control::{Class, Refusal, Ticket};
use crate::links;
use crate::nic;
use crate::server::Server;
use crate::tasks::{Aim, Prepared, Task, Work};
use crate::user::{Kind, User};

/// How often the new network hears where the guest is.
const ANNOUNCEMENTS: u32 = 5;
/// The time in which a network hears it, and what the old one has under way arrives.
const ROUND: Duration = Duration::from_millis(100);

/// A link that is received from only.
#[derive(Debug)]
pub struct HandOff {
    /// When the next announcement is due, or after the last one the end.
    pub until: Instant,
    /// Announcements that are still to come.
    left: u32,
    /// The guest's address, and where it is to be announced.
    guest: Option<([u8; 6], Weak<dyn Link>)>,
    user: usize,
    old: usize,
    new: usize,
    ticket: Ticket,
}

impl HandOff {
    /// The same after one more announcement.
    fn announced(mut self) -> Self {
        if let Some((mac, link)) = &self.guest
            && let Some(link) = link.upgrade()
        {
            nic::announce(&*link, *mac);
        }
        self.left -= 1;
        self.until = Instant::now() + ROUND;
        self
    }
}

impl Server {
    pub(crate) fn link_add(&mut self, ticket: Ticket, arguments: LinkAdd) {
        let LinkAdd { nic, locator } = arguments;
        match self.find_nic(&nic) {
            Ok(user) => self.open_link(ticket, user, locator.clone(), Aim::LinkAdd { user, locator }),
            Err(refusal) => self.answer(ticket, Err(refusal)),
        }
    }

    pub(crate) fn link_remove(&mut self, arguments: &LinkRemove) -> Answer {
        let user = self.find_nic(&arguments.nic)?;
        let Some(User { links, kind }) = self.users.get_mut(&user) else { return Ok(json!({})) };
        let number = links.find(&arguments.link)?;
        kind.unplug(number);
        self.forget_link(user, number);
        Ok(json!({}))
    }

    pub(crate) fn link_replace(&mut self, ticket: Ticket, arguments: LinkReplace) {
        let LinkReplace { nic, link, locator, mac } = arguments;
        let found = self.find(&nic).and_then(|user| {
            let old =
                self.users.get(&user).map(|user| user.links.find(&link)).transpose()?.unwrap_or_default();
            Ok((user, old, mac.as_deref().map(parse_mac).transpose()?))
        });
        match found {
            Ok((user, old, mac)) => {
                let aim = Aim::LinkReplace { user, old, locator: locator.clone(), mac };
                self.open_link(ticket, user, locator, aim);
            }
            Err(refusal) => self.answer(ticket, Err(refusal)),
        }
    }

    /// The number of the NIC of this name, whose links may be more or less.
    fn find_nic(&self, name: &str) -> Result<usize, Refusal> {
        let number = self.find(name)?;
        match self.users.get(&number) {
            Some(User { kind: Kind::Join(_), .. }) => refuse(
                Class::GenericError,
                format!("'{name}' is a join, which has two links at all times; link-replace moves one"),
            ),
            _ => Ok(number),
        }
    }

    fn open_link(&mut self, ticket: Ticket, user: usize, locator: String, aim: Aim) {
        let Some(user) = self.users.get(&user) else { return };
        let work = Work {
            networks: self.networks.clone(),
            locators: vec![locator],
            options: user.links.options().clone(),
            door: None,
        };
        self.begin(Task { ticket, aim }, work);
    }

    /// The link of a `link-add` is open. Its user is there, or the task would not be.
    pub(crate) fn finish_link(&mut self, user: usize, locator: String, prepared: Prepared) -> Answer {
        let Some(User { links, kind }) = self.users.get_mut(&user) else { return Ok(json!({})) };
        let (number, link) = links.add(locator, prepared.links.into_iter().next());
        if let Some(link) = link {
            kind.set_link(number, &link);
        }
        self.tell_of_link("LINK_ADDED", user, number);
        Ok(json!(LinkId { id: links::id(number) }))
    }

    /// The link of a `link-replace` is open.
    pub(crate) fn finish_replacement(
        &mut self,
        (ticket, user, old): (Ticket, usize, usize),
        (locator, mac): (String, Option<[u8; 6]>),
        prepared: Prepared,
    ) {
        let Some(User { links, kind }) = self.users.get_mut(&user) else { return };
        if !links.has(old) {
            let desc =
                format!("{} of {} was removed before {locator} had answered", links::id(old), links.name());
            return self.answer(ticket, refuse(Class::GenericError, desc));
        }
        let (new, link) = links.add(locator, prepared.links.into_iter().next());
        links.leave(old);
        if let Some(link) = &link {
            kind.hand_over(old, new, link);
        }
        self.tell_of_link("LINK_ADDED", user, new);
        // Not earlier: what is sent to the old one would take the word back.
        let guest = mac.zip(link.as_ref().map(Arc::downgrade));
        let hand_off = HandOff { until: Instant::now(), left: ANNOUNCEMENTS, guest, user, old, new, ticket };
        self.hand_offs.push(hand_off.announced());
    }

    /// Announces guests again, and closes the old links whose time is up.
    pub(crate) fn end_hand_offs(&mut self) {
        // They are in the order of their times, which are all one round apart.
        while self.hand_offs.first().is_some_and(|hand_off| hand_off.until <= Instant::now()) {
            let hand_off = self.hand_offs.remove(0);
            if hand_off.left > 0 {
                self.hand_offs.push(hand_off.announced());
                continue;
            }
            let HandOff { user, old, new, ticket, .. } = hand_off;
            if let Some(User { kind, .. }) = self.users.get_mut(&user) {
                kind.unplug(old);
            }
            self.forget_link(user, old);
            self.answer(ticket, Ok(json!(LinkId { id: links::id(new) })));
        }
    }

    /// The tickets of those who wait for something of a user that is gone.
    pub(crate) fn forget_commands(&mut self, gone: usize) -> Vec<Ticket> {
        let (of_it, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.hand_offs).into_iter().partition(|hand_off| hand_off.user == gone);
        self.hand_offs = others;
        let opening = self.tasks.give_up_for(gone);
        opening.into_iter().chain(of_it.into_iter().map(|hand_off| hand_off.ticket)).collect()
    }

    /// A link is there no longer.
    fn forget_link(&mut self, user: usize, number: usize) {
        self.tell_of_link("LINK_DELETED", user, number);
        if let Some(user) = self.users.get_mut(&user) {
            user.links.remove(number);
        }
    }

    fn tell_of_link(&mut self, name: &'static str, user: usize, number: usize) {
        if let Some(event) = self.users.get(&user).and_then(|user| user.links.event(name, number)) {
            self.announce(event);
        }
    }
}

/// Six pairs of hexadecimal digits, of a single station.
fn parse_mac(text: &str) -> Result<[u8; 6], Refusal> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|pair| u8::from_str_radix(pair, 16).ok().filter(|_| pair.len() == 2 && !pair.starts_with('+')))
        .collect();
    match bytes.as_deref().map(<[u8; 6]>::try_from) {
        Some(Ok(mac @ [first, ..])) if first & 1 == 0 => Ok(mac),
        _ => refuse(
            Class::GenericError,
            format!("mac '{}' is not the address of a NIC, as 52:54:00:12:34:56", text.escape_debug()),
        ),
    }
}
