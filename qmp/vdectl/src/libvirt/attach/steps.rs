//! What is done for a new NIC of a domain, step by step, and undone in reverse when a later step fails.
//!
//! | step | undone by |
//! |---|---|
//! | the back end is started, if there is none | ending it, if it serves no other NIC |
//! | if it serves others: a socket, `nic-add`, the registry's record | the reverse |
//! | the running domain's metadata | the metadata before |
//! | `virsh attach-device --live`, and QEMU is connected | `virsh detach-device --live`, and the guest's consent |
//! | `--config`: both for the next start | the same |
//!
//! A step may have been done though it failed: its answer was lost, or did not come in time. So it is undone as well, by looking
//! for what is there of it. A domain that has ended meanwhile has nothing left to be undone.
//!
//! A guest that does not let go keeps its NIC with all that belongs to it: QEMU would wait for ever for what it connects to.
//! For the same reason all stays where libvirt does not say whether the guest has it.

use std::path::Path;
use std::time::{Duration, Instant};

use vde_libvirt::back_end;
use vde_libvirt::domain::{Domain, Nics};

use super::Wanted;
use crate::Failure;
use crate::back_end::BackEnd;
use crate::interrupt::Interrupt;
use crate::libvirt::detach::wait_gone;
use crate::libvirt::serving;
use crate::libvirt::target::Target;
use crate::libvirt::virsh::{Scope, Virsh};

/// How long QEMU may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a guest may take to let go of what nobody wants any more.
const REMOVAL_LIMIT: Duration = Duration::from_secs(10);
/// Time between two questions.
const PAUSE: Duration = Duration::from_millis(20);

/// What has been done, or may have been.
enum Done<'a> {
    BackEnd,
    Served,
    Metadata(Scope, &'a Domain),
    Device(Scope, &'a Domain),
}

/// The steps so far.
pub struct Steps<'a> {
    virsh: &'a Virsh,
    target: &'a Target,
    wanted: &'a Wanted,
    done: Vec<Done<'a>>,
}

impl<'a> Steps<'a> {
    /// None done yet.
    pub fn new(virsh: &'a Virsh, target: &'a Target, wanted: &'a Wanted) -> Self {
        Self { virsh, target, wanted, done: Vec::new() }
    }

    /// Does all of them, or none. Gives the back end that serves the NIC, if the domain runs.
    pub fn carry_out(mut self) -> Result<Option<BackEnd>, Failure> {
        match self.plug() {
            Ok(back_end) => Ok(back_end),
            Err(failure) => Err(self.undo(failure)),
        }
    }

    fn plug(&mut self) -> Result<Option<BackEnd>, Failure> {
        let Target { live, next, .. } = self.target;
        let mut back_end = None;
        if let Some(domain) = live {
            self.serve(domain)?;
            self.tell(domain, Scope::Live)?;
            back_end = Some(self.wait_connected()?);
        }
        if let Some(next) = next {
            self.tell(next, Scope::Config)?;
        }
        Ok(back_end)
    }

    /// Has the domain's back end serve the NIC.
    fn serve(&mut self, domain: &'a Domain) -> Result<(), Failure> {
        let Wanted { directories, plan, plan_before, .. } = self.wanted;
        self.virsh.interrupt().check()?;
        let mut entry = serving::entry(directories);
        if entry.is_none() {
            if self.virsh.has_ended(domain)? {
                return Err(Failure::new(format!("domain '{}' has ended meanwhile", domain.name)));
            }
            self.done.push(Done::BackEnd);
            let Some(before) = plan_before else {
                let plan = plan.as_ref().ok_or_else(|| Failure::new("the domain asks for no network"))?;
                return serving::start(plan, domain);
            };
            // It has died. The NICs that it served shall not depend on whether this one can be had.
            let mut before = before.clone();
            before.keep_going();
            serving::start(&before, domain)?;
            entry = serving::entry(directories);
        }
        let entry = entry.ok_or_else(|| Failure::new("the back end has ended meanwhile"))?;
        self.done.push(Done::Served);
        serving::add(entry, domain, &self.wanted.nic_add()?, self.wanted.known())
    }

    /// Tells libvirt of the NIC: what network it leads to, and that there is an interface.
    fn tell(&mut self, domain: &'a Domain, scope: Scope) -> Result<(), Failure> {
        self.virsh.interrupt().check()?;
        let mut nics = domain.nics.clone().unwrap_or_default();
        nics.nics.push(self.wanted.nic.clone());
        self.done.push(Done::Metadata(scope, domain));
        self.virsh.set_metadata(domain, scope, Some(&nics))?;
        self.virsh.interrupt().check()?;
        if scope == Scope::Live {
            self.is_served()?;
        }
        self.done.push(Done::Device(scope, domain));
        self.virsh.attach_device(domain, scope, &self.wanted.served.to_xml())
    }

    /// The back end, if it serves the NIC. QEMU would hang, and its guest with it, if it found nobody.
    fn is_served(&self) -> Result<(BackEnd, bool), Failure> {
        let gone = || Failure::new("the back end has ended meanwhile");
        let mut back_end = serving::connect(&serving::entry(&self.wanted.directories).ok_or_else(gone)?)?;
        let nics = back_end.query_nics()?;
        let nic = nics.iter().find(|nic| nic.id == self.wanted.alias).ok_or_else(gone)?;
        Ok((back_end, nic.connected))
    }

    /// Waits until QEMU is on the NIC's socket.
    fn wait_connected(&self) -> Result<BackEnd, Failure> {
        let deadline = Instant::now() + CONNECT_LIMIT;
        while Instant::now() < deadline {
            self.virsh.interrupt().check()?;
            if let (back_end, true) = self.is_served()? {
                return Ok(back_end);
            }
            std::thread::sleep(PAUSE);
        }
        Err(Failure::new(format!("QEMU has not connected to {}", self.wanted.served.path)))
    }

    /// Has QEMU find whom it looks for, so that it can be asked to let go.
    fn serve_again(&self) -> Result<(), Failure> {
        let Wanted { directories, plan, .. } = self.wanted;
        match (&self.target.live, plan) {
            (Some(domain), Some(plan)) if serving::entry(directories).is_none() => {
                let mut plan = plan.clone();
                plan.keep_going();
                serving::start(&plan, domain)
            }
            _ => Ok(()),
        }
    }

    /// Undoes everything, and says what of it could not be.
    fn undo(mut self, mut failure: Failure) -> Failure {
        while let Some(done) = self.done.pop() {
            if let Err(problem) = self.undo_one(&done) {
                let config = if self.target.next.is_some() { " --config" } else { "" };
                failure.sentence = format!(
                    "{}; it could not be undone: {}; finish with: vdectl libvirt detach {} {}{config}",
                    failure.sentence,
                    problem.sentence,
                    self.target.name(),
                    self.wanted.served.mac
                );
                break;
            }
        }
        failure
    }

    fn undo_one(&self, done: &Done<'_>) -> Result<(), Failure> {
        let Wanted { served, alias, directories, .. } = self.wanted;
        match *done {
            Done::BackEnd => self.end_for_nobody(),
            Done::Served => serving::remove(directories, alias, Some(Path::new(&served.path))),
            Done::Metadata(scope, domain) => self.restore(domain, scope),
            Done::Device(scope, domain) => {
                // A libvirt that waits for QEMU cannot say.
                if scope == Scope::Live && !self.virsh.has_ended(domain).unwrap_or(false) {
                    self.serve_again()?;
                }
                self.unplug(domain, scope)
            }
        }
    }

    /// Ends a back end that was started for nothing. It stays for the NICs that were there before, unless the domain has ended.
    fn end_for_nobody(&self) -> Result<(), Failure> {
        let Wanted { directories, plan_before, .. } = self.wanted;
        let has_ended = || self.target.live.as_ref().map_or(Ok(true), |domain| self.virsh.has_ended(domain));
        match plan_before.is_some() && !has_ended()? {
            true => Ok(()),
            false => Ok(directories.iter().try_for_each(|directory| back_end::end(directory))?),
        }
    }

    /// The domain as it is now; none if it ran and has ended.
    fn now(&self, domain: &Domain, scope: Scope) -> Result<Option<Domain>, Failure> {
        if scope == Scope::Live && self.virsh.has_ended(domain)? {
            return Ok(None);
        }
        self.virsh.domain(&domain.uuid, scope).map(Some)
    }

    fn restore(&self, domain: &Domain, scope: Scope) -> Result<(), Failure> {
        let before: Option<&Nics> = domain.nics.as_ref();
        match self.now(domain, scope)? {
            Some(now) if now.nics.as_ref() != before => self.virsh.set_metadata(domain, scope, before),
            _ => Ok(()),
        }
    }

    fn unplug(&self, domain: &Domain, scope: Scope) -> Result<(), Failure> {
        let mac = &self.wanted.served.mac;
        let is_there = |now: &Domain| now.interfaces.iter().any(|interface| interface.mac == *mac);
        if !self.now(domain, scope)?.is_some_and(|now| is_there(&now)) {
            return Ok(());
        }
        self.virsh.detach_device(domain, scope, &self.wanted.served.to_xml())?;
        match scope {
            Scope::Config => Ok(()),
            Scope::Live => wait_gone(self.virsh, domain, mac, REMOVAL_LIMIT, &Interrupt::default()),
        }
    }
}
