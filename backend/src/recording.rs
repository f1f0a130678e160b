//! Commands that have a NIC's frames written down.
//!
//! A capture that a client asked for lives as long as the client's connection; one of the command line as long as we do.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use vde_control::{CaptureEnd, CaptureStart, CaptureStop};

use crate::capture::{Ended, Order};
use crate::commands::{Answer, refuse};
use crate::control::{Class, Refusal};
use crate::links;
use crate::news::News;
use crate::server::Server;
use crate::user::{Kind, Nic, User};
use crate::{Failure, sentence};

impl Server {
    /// Writes what passes through a NIC to a file, for as long as there is room in it. `resumes`: behind what somebody wrote who
    /// died over it.
    pub(crate) fn capture_all(
        &mut self,
        number: usize,
        (path, file): (PathBuf, File),
        resumes: bool,
    ) -> Result<(), Failure> {
        let ended = self.capture_ended();
        let Some(User { links, kind: Kind::Nic(nic) }) = self.users.get_mut(&number) else { return Ok(()) };
        let links = links.names().collect();
        let order = Order { to: file.into(), resumes, links, only: None, max_bytes: None, max_time: None };
        let failed = |error| Failure::system("cannot capture frames", sentence(&error));
        nic.recorder.start(order, ended).map_err(failed)?;
        nic.capture_file = Some(path);
        Ok(())
    }

    pub(crate) fn capture_start(
        &mut self,
        client: usize,
        arguments: CaptureStart,
        descriptors: Vec<OwnedFd>,
    ) -> Answer {
        let CaptureStart { nic, link, max_bytes, max_seconds } = arguments;
        let [to] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|descriptors| {
            let desc = format!("capture-start comes with one descriptor, and not with {}", descriptors.len());
            Refusal::new(Class::GenericError, desc)
        })?;
        let ended = self.capture_ended();
        let (links, nic) = self.find_captured(&nic)?;
        let only = link.map(|word| links.find(&word)).transpose()?.map(links::id);
        let max_time = max_seconds.map(Duration::from_secs);
        let links = links.names().collect();
        let order = Order { to, resumes: false, links, only, max_bytes, max_time };
        match nic.recorder.start(order, ended) {
            Ok(()) => {
                nic.captured_for = Some(client);
                // The end of the one before is told before the answer.
                self.read_news();
                Ok(json!({}))
            }
            Err(error) => refuse(Class::GenericError, sentence(&error)),
        }
    }

    pub(crate) fn capture_stop(&mut self, arguments: &CaptureStop) -> Answer {
        let CaptureStop { nic: name } = arguments;
        let (_, nic) = self.find_captured(name)?;
        if !nic.recorder.is_on() {
            return refuse(Class::GenericError, format!("the frames of {name} are not being captured"));
        }
        nic.recorder.stop(CaptureEnd::Stopped);
        nic.capture_file = None;
        Ok(json!({}))
    }

    /// Ends the captures of clients that have gone.
    pub(crate) fn stop_orphaned_captures(&mut self) {
        let Some(control) = &self.control else { return };
        for nic in self.users.values_mut().filter_map(User::nic) {
            if nic.captured_for.take_if(|client| !control.has_client(*client)).is_some() {
                nic.recorder.stop(CaptureEnd::Stopped);
            }
        }
    }

    /// Ends all captures, and waits until they are written: we end.
    pub(crate) fn finish_captures(&mut self) {
        // All at once first, so that those that nobody reads are given up together.
        for nic in self.users.values_mut().filter_map(User::nic) {
            nic.recorder.stop(CaptureEnd::Stopped);
        }
        for nic in self.users.values_mut().filter_map(User::nic) {
            nic.recorder.finish();
        }
        self.read_news();
    }

    /// What the thread of a capture calls at its end.
    fn capture_ended(&self) -> Ended {
        let reporter = self.reporter.clone();
        Box::new(move |ended| reporter.tell(News::Captured(ended)))
    }

    /// The NIC of this name, with its links.
    fn find_captured(&mut self, name: &str) -> Result<(&links::Links, &mut Nic), Refusal> {
        let number = self.find(name)?;
        match self.users.get_mut(&number) {
            Some(User { links, kind: Kind::Nic(nic) }) => Ok((links, nic)),
            _ => refuse(Class::GenericError, format!("'{name}' is a join; the frames of NICs are captured")),
        }
    }
}
