//! `vde-source`: our back end with one network more, `source://SIZE`, which brings frames of that size as fast as the
//! guest has room for them, and swallows those that the guest sends.
//!
//! It is the whole of `vhost-user-vde` but for the link: what a front end receives from it is what the back end can do when no
//! network holds it up. A link of the library would be one that users could ask for, and nobody wants this one but
//! the bench.

#![deny(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Result, anyhow};
use clap::Parser;
use rustix::event::{EventfdFlags, eventfd};
use vdeplug::{Header, Link, LinkError, OpenError, OpenOptions, RxFrame, Sent, Stats, TxFrame};
use vhost_user_vde::cli::{Cli, Config};
use vhost_user_vde::{Inherited, Readiness, run};

/// For experiments within one's own network (IEEE 802).
const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];

fn main() -> Result<()> {
    let cli = Cli::parse();
    env_logger::Builder::new().filter_level(cli.log_level).init();
    #[expect(unsafe_code, reason = "descriptors are named by numbers on the command line")]
    // SAFETY: nothing was opened before, and no thread is started.
    let mut inherited = unsafe { Inherited::claim(&cli.descriptors()) };
    let failed = |failure: vhost_user_vde::Failure| anyhow!(failure.sentence);
    let mut ready = Readiness::new(cli.ready_fd, &mut inherited).map_err(failed)?;
    let mut config = Config::try_from(cli).map_err(failed)?;
    config.open = open;
    run(config, inherited, &mut ready).map(drop).map_err(failed)
}

fn open(locator: &str, options: &OpenOptions) -> Result<Arc<dyn Link>, OpenError> {
    match locator.strip_prefix("source://").map(str::parse) {
        Some(Ok(size)) => Ok(Arc::new(Source::new(size)?)),
        _ => vdeplug::open(locator, options),
    }
}

/// The link.
#[derive(Debug)]
struct Source {
    frame: Vec<u8>,
    /// Always readable and always writable.
    always: OwnedFd,
}

impl Source {
    fn new(size: usize) -> Result<Self, OpenError> {
        let mut frame = vec![0; size.max(14)];
        frame[..6].fill(0xff);
        frame[6] = 2;
        frame[12..14].copy_from_slice(&EXPERIMENTAL);
        let always = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| OpenError::System { what: "make an eventfd", source: errno.into() })?;
        Ok(Self { frame, always })
    }
}

impl Link for Source {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.always.as_fd()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn max_frame(&self) -> usize {
        self.frame.len().max(1514)
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        Ok(Sent { taken: frames.len(), ..Sent::default() })
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        for frame in &mut *frames {
            frame.fill(Header::NONE, &self.frame);
        }
        Ok(frames.len())
    }

    fn offloads(&self) -> bool {
        false
    }

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn check_control(&self) -> Result<(), LinkError> {
        Ok(())
    }
}
