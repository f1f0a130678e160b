//! What is done for a new NIC, step by step, and undone in reverse when a later step fails.
//!
//! | step | undone by |
//! |---|---|
//! | a back end is started, if the VM has none | `quit` |
//! | `nic-add` in the back end | `nic-del` |
//! | `chardev-add` (virtio) | `chardev-remove` |
//! | `netdev_add` | `netdev_del`, which removes the chardev too |
//! | `device_add` | `device_del`, and the guest's consent |
//!
//! A step that was refused has not happened. One without an answer may have: it is undone, and that there is nothing to undo
//! is then no error. When QEMU has gone, so have the steps in it; when it does not answer, undoing ends there: it may hang in
//! a step that waits for the back end, which must not be taken away under it.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use qmp::commands::Removal;
use qmp::{Client, Error};
use serde_json::{Value, json};
use vde_control::NicAdd;

use super::serving::Serving;
use crate::back_end::{BackEnd, refusal, sentence};
use crate::interrupt::Interrupt;
use crate::nics::{Netdev, netdevs};
use crate::vm::Vm;
use crate::{Failure, Status};

/// How long QEMU may take to connect to a socket that listens: it does so at once, or within the second after which it tries again.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Time between two questions whether it has.
const PAUSE: Duration = Duration::from_millis(10);
/// How soon QEMU connects again to a back end that was lost.
const RECONNECT: Duration = Duration::from_secs(1);
/// How long a guest may take to let go of a NIC that nobody wants any more.
const REMOVAL_LIMIT: Duration = Duration::from_secs(10);

/// How long a monitor that was closed may take to greet again.
const AGAIN_LIMIT: Duration = Duration::from_secs(5);

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Nic(String),
    Chardev(String),
    Netdev(String),
    Device(String),
}

impl Step {
    fn is_in_qemu(&self) -> bool {
        !matches!(self, Self::Nic(_))
    }

    /// What is there when it has been done.
    fn name(&self) -> String {
        match self {
            Self::Nic(id) => format!("the NIC {id} of the back end"),
            Self::Chardev(id) => format!("the chardev {id}"),
            Self::Netdev(id) => format!("the netdev {id}"),
            Self::Device(id) => format!("the device {id}"),
        }
    }
}

/// The steps so far, and whom they were done with.
#[derive(Debug)]
pub struct Steps<'a> {
    vm: &'a Vm,
    monitor: &'a mut Client,
    serving: Serving,
    interrupt: Interrupt,
    done: Vec<Step>,
}

impl<'a> Steps<'a> {
    /// None done yet, but that `serving` is there.
    pub fn new(vm: &'a Vm, monitor: &'a mut Client, serving: Serving, interrupt: Interrupt) -> Self {
        Self { vm, monitor, serving, interrupt, done: Vec::new() }
    }

    fn step(&mut self, step: Step, act: impl FnOnce(&mut Self) -> Result<(), Error>) -> Result<(), Failure> {
        self.interrupt.check()?;
        self.done.push(step);
        act(self).map_err(|error| {
            let is_in_qemu = self.done.last().is_some_and(Step::is_in_qemu);
            if let Error::Command { .. } = error {
                self.done.pop();
            }
            match error {
                Error::Closed if is_in_qemu => {
                    Failure::new("QEMU closed its monitor before the NIC was plugged in")
                }
                error if is_in_qemu => Failure::new(sentence(&error)),
                error => refusal("nic-add", &error),
            }
        })
    }

    /// Has the back end serve one more NIC; its networks are open and its socket listens then.
    pub fn serve(&mut self, nic: &NicAdd) -> Result<(), Failure> {
        self.step(Step::Nic(nic.id.clone()), |steps| {
            steps.serving.back_end.client().execute("nic-add", json!(nic)).map(|_| ())
        })
    }

    /// Has QEMU connect to the NIC's socket. QEMU would freeze in the next step if it could not.
    pub fn connect(&mut self, nic: &NicAdd, chardev: &str) -> Result<(), Failure> {
        let path = nic.socket_path.to_string_lossy().into_owned();
        self.step(Step::Chardev(chardev.into()), |steps| {
            steps.monitor.chardev_add_socket(chardev, &path, RECONNECT)
        })?;
        self.wait_connected(nic)
    }

    /// Waits until the back end has QEMU on the NIC's socket.
    pub fn wait_connected(&mut self, nic: &NicAdd) -> Result<(), Failure> {
        let deadline = Instant::now() + CONNECT_LIMIT;
        loop {
            self.interrupt.check()?;
            let nics = self.serving.back_end.query_nics()?;
            if nics.iter().any(|served| served.id == nic.id && served.connected) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Failure::new(format!(
                    "QEMU does not connect to {}, where the back end listens: it may run as another user, or in another place \
                    (chroot, container)",
                    nic.socket_path.display()
                )));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Adds the netdev.
    pub fn add_netdev(&mut self, id: &str, options: Value) -> Result<(), Failure> {
        self.step(Step::Netdev(id.into()), |steps| steps.monitor.netdev_add(options))
    }

    /// Adds the device.
    pub fn add_device(&mut self, id: &str, options: Value) -> Result<(), Failure> {
        self.step(Step::Device(id.into()), |steps| steps.monitor.device_add(options))
    }

    /// All is done, and stays.
    pub fn keep(self) -> BackEnd {
        self.serving.keep()
    }

    /// Undoes everything after a failure, and says if something could not be.
    pub fn undo(mut self, mut failure: Failure) -> Failure {
        let (mut is_gone, mut is_again) = (false, false);
        while let Some(step) = self.done.last() {
            let undone = match step {
                Step::Nic(id) => match self.serving.back_end.nic_del(id) {
                    Err(kept) if kept.status != Status::NotFound => {
                        return self.left(failure, &kept.sentence);
                    }
                    _ => Ok(()),
                },
                _ if is_gone => Ok(()),
                step => undo(step, self.monitor),
            };
            match undone {
                Ok(()) => {
                    self.done.pop();
                }
                Err(Error::Closed) if !is_again => {
                    is_again = true;
                    match Client::connect(&self.vm.qmp, AGAIN_LIMIT) {
                        Ok(monitor) => *self.monitor = monitor,
                        Err(error) if is_over(&error) => is_gone = true,
                        Err(error) => return self.left(failure, &sentence(&error)),
                    }
                }
                Err(error) => return self.left(failure, &sentence(&error)),
            }
        }
        if let Err(problem) = self.serving.end() {
            failure.sentence = format!("{}; {problem}", failure.sentence);
        }
        failure
    }

    /// What has to stay as it is.
    fn left(self, mut failure: Failure, why: &str) -> Failure {
        let names: Vec<String> = self.done.iter().rev().map(Step::name).collect();
        failure.sentence = format!(
            "{}; then {} could not be removed ({why}); remove it with: vdectl detach",
            failure.sentence,
            names.join(", ")
        );
        self.serving.keep();
        failure
    }
}

/// Undoes one step in QEMU.
fn undo(step: &Step, monitor: &mut Client) -> Result<(), Error> {
    let undone = match step {
        Step::Nic(_) => Ok(()),
        Step::Chardev(id) => monitor.chardev_remove(id),
        Step::Netdev(id) => settled(monitor, id).and_then(|()| monitor.netdev_del(id)),
        Step::Device(id) => {
            monitor.device_del(id).and_then(|()| match monitor.wait_for_removal(id, REMOVAL_LIMIT)? {
                Removal::Done => Ok(()),
                Removal::Refused | Removal::Pending => Err(Error::TimedOut(REMOVAL_LIMIT)),
            })
        }
    };
    match undone {
        // What had to be removed has gone already.
        Err(error) if error.is_not_found() => Ok(()),
        undone => undone,
    }
}

/// Waits until a stream netdev has connected: QEMU 7.2 dies of one that is removed meanwhile.
fn settled(monitor: &mut Client, id: &str) -> Result<(), Error> {
    let deadline = Instant::now() + CONNECT_LIMIT;
    // 7.2 tells nothing of it before that, later ones say what they do.
    let connects = |detail: &str| detail.is_empty() || detail.starts_with("connecting");
    let is_on_its_way =
        |netdev: &Netdev| netdev.id == id && netdev.kind == "stream" && connects(&netdev.detail);
    while netdevs(monitor)?.iter().any(is_on_its_way) && Instant::now() < deadline {
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// QEMU has ended: nobody listens where its monitor was.
fn is_over(error: &Error) -> bool {
    match error {
        Error::Closed => true,
        Error::Io(error) => matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound),
        _ => false,
    }
}
