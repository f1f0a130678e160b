//! VDE networks for domains of libvirt, which knows no VDE: the hook that it runs when a domain starts and ends.
//!
//! ```text
//!  domain    what the domain's XML says
//!  policy    what a domain may ask for, if its author is not its owner
//!  plan      the back end that the domain needs, or why there can be none
//!  owner     whom libvirt runs QEMU as
//!  back_end  starting and ending it
//!  trial     joining a network for a moment, for vdectl, which tells what a domain lacks
//!  fragment  the XML that a network takes, for vdectl, which plugs NICs into running domains
//!  sys       users, and starting a program as one of them
//! ```
//!
//! # Theory of operation
//! A domain has ordinary interfaces of type `vhostuser`, and in its metadata our elements, which say what network each of
//! them leads to. libvirt runs the hook with the name of an operation, and the XML on its standard input. At `prepare` the
//! back end is started, with all sockets listening, before there is a QEMU; at `release` it is ended; at `reconnect`, when
//! libvirt itself was started again, it is started again if it is gone. All other operations are none of our business.
//!
//! The hook never calls libvirt, which waits for it. Domains without our namespace cost reading their XML, not parsing it.
//!
//! The system's daemon is root, and its back ends run as QEMU's user: a network is within reach of a domain if it is
//! within reach of that user. Directory and control socket stay root's, so that a QEMU that was broken out of cannot
//! tell its back end what to do; the sockets of NICs are its user's.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

pub mod back_end;
pub mod domain;
pub mod fragment;
pub mod owner;
pub mod plan;
pub mod policy;
pub mod sys;
pub mod trial;

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use registry::CONTROL;
use rustix::fs::Mode;

use domain::{Domain, LENGTH_MAX, NAMESPACE};
use plan::Plan;
use policy::Policy;

/// Why the hook refuses: one sentence for a person, without a full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// The sentence.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

impl fmt::Display for Failure {
    /// Much of it was written by others: no control characters reach a terminal or a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| write!(f, "{}", if c.is_control() { ' ' } else { c }))
    }
}

/// What libvirt is about to do, as far as it concerns us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Start a domain: new, restored, or coming from another host.
    Prepare,
    /// Take notice of a domain that runs, after its own start.
    Reconnect,
    /// Forget a domain that has ended, or did not start.
    Release,
}

impl Operation {
    /// By its name and its part, the second and third argument.
    pub fn of(operation: &str, part: &str) -> Option<Self> {
        match (operation, part) {
            ("prepare", "begin") => Some(Self::Prepare),
            ("reconnect", "begin") => Some(Self::Reconnect),
            ("release", "end") => Some(Self::Release),
            _ => None,
        }
    }
}

/// Does what an operation needs. `input` is read to its end in any case: libvirt is writing there.
///
/// # Errors
/// The domain cannot be started, or its back end not ended.
pub fn run(operation: Option<Operation>, mut input: impl Read) -> Result<(), Failure> {
    let mut text = Vec::new();
    let limit = u64::try_from(LENGTH_MAX).unwrap_or(u64::MAX);
    // What cannot be read is no XML of ours.
    let _ = input.by_ref().take(limit + 1).read_to_end(&mut text);
    let _ = io::copy(&mut input, &mut io::sink());
    let Some(operation) = operation else { return Ok(()) };
    if !has(&text, NAMESPACE) {
        return match (operation, of_place(text)) {
            (Operation::Prepare, Some((domain, base))) => forgotten(&domain, &base),
            (Operation::Release, Some((domain, base))) if is_ours(&domain, &base) => release(&domain, &base),
            _ => Ok(()),
        };
    }
    let text = String::from_utf8(text).map_err(|_| Failure::new("its XML is not UTF-8 text"))?;
    let domain = Domain::read(&text)?;
    let named = |Failure(sentence)| Failure(format!("domain {}: {sentence}", domain.name));
    carry_out(operation, &domain).map_err(named)
}

/// Whether a word is in the XML; libvirt writes our namespace and paths out as they are.
fn has(text: &[u8], word: &str) -> bool {
    text.windows(word.len()).any(|window| window == word.as_bytes())
}

/// A domain without our elements whose XML names the place of domains' sockets, and that place.
fn of_place(text: Vec<u8>) -> Option<(Domain, PathBuf)> {
    let base = registry::domains()?;
    if !has(&text, &base.to_string_lossy()) {
        return None;
    }
    Some((Domain::read(&String::from_utf8(text).ok()?).ok()?, base))
}

/// Somebody may serve a socket in the domain's own directory by hand.
fn forgotten(domain: &Domain, base: &Path) -> Result<(), Failure> {
    let Ok(allowed) = plan::directories(base, domain) else { return Ok(()) };
    match plan::waiting(domain, &[], base, &allowed) {
        Some((socket, Failure(sentence)))
            if !plan::is_within(socket, &allowed) || registry::listener(socket).is_none() =>
        {
            Err(Failure(format!("domain {}: {sentence}", domain.name)))
        }
        _ => Ok(()),
    }
}

fn carry_out(operation: Operation, domain: &Domain) -> Result<(), Failure> {
    // What we make is ours alone.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let base = registry::domains().ok_or_else(|| Failure::new("there is no place for sockets"))?;
    if operation == Operation::Release {
        return release(domain, &base);
    }
    let policy = Policy::of_user()?;
    let Some(mut plan) = Plan::new(domain, &base, &policy)? else { return Ok(()) };
    if operation == Operation::Reconnect {
        if back_end::answers(&plan.directory) {
            return Ok(());
        }
        plan.keep_going();
    }
    back_end::start(&plan, domain, owner::of_back_end(domain)?)
}

/// Whether there is a directory of the domain that was made by us, not by hand.
fn is_ours(domain: &Domain, base: &Path) -> bool {
    let directories = plan::directories(base, domain);
    directories.is_ok_and(|directories| directories.iter().any(|directory| directory.join(CONTROL).exists()))
}

/// Not asking what the metadata says: it may have been changed or removed meanwhile.
fn release(domain: &Domain, base: &Path) -> Result<(), Failure> {
    let directories: [PathBuf; 2] = plan::directories(base, domain)?;
    directories.iter().try_for_each(|directory| back_end::end(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What there is of domains of others does not concern us, whatever it is.
    #[test]
    fn run_is_harmless_for_others() {
        let garbage: [&[u8]; 4] = [b"", b"\xff\xfe<", b"<domain>", &[b'<'; 3 << 20]];
        for text in garbage {
            for operation in [Operation::Prepare, Operation::Reconnect, Operation::Release] {
                run(Some(operation), text).unwrap();
            }
        }
        run(None, NAMESPACE.as_bytes()).unwrap();
        let failure = run(Some(Operation::Prepare), NAMESPACE.as_bytes()).unwrap_err();
        assert!(failure.to_string().starts_with("its XML"), "{failure}");
        let long = [NAMESPACE.as_bytes(), &[b' '; LENGTH_MAX]].concat();
        assert!(run(Some(Operation::Prepare), &*long).unwrap_err().to_string().contains("longer than"));
    }

    #[test]
    fn of_knows_what_libvirt_calls() {
        assert_eq!(Operation::of("prepare", "begin"), Some(Operation::Prepare));
        assert_eq!(Operation::of("release", "end"), Some(Operation::Release));
        for other in ["start", "started", "stopped", "migrate", "restore", "attach", ""] {
            assert_eq!(Operation::of(other, "begin"), None);
        }
    }
}
