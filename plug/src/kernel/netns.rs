//! Network namespaces, by the words that users have for them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, fstat, open, stat};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{KernelError, sys};

/// Where `ip netns` keeps names; the second is where they were when `/run` did not exist.
const NAMES: [&str; 2] = ["/run/netns", "/var/run/netns"];

/// Opens a namespace: of a process if the word is a number, by its file if it holds a slash, else by its name.
pub(super) fn find(word: &str) -> Result<OwnedFd, KernelError> {
    let mut outcome = Err(Errno::NOENT);
    for path in paths(word) {
        // Whatever it is, opening it shall neither wait nor do anything.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        outcome = open(&path, flags, Mode::empty());
        if !matches!(outcome, Err(Errno::NOENT)) {
            break;
        }
    }
    let file = outcome.map_err(|errno| match errno {
        Errno::ACCESS | Errno::PERM => KernelError::NoPermission {
            what: format!("enter the network namespace {word:?}"),
            remedy: "that needs root, or to be the owner of that process".into(),
        },
        _ => KernelError::NoNamespace { word: word.into(), source: io::Error::from(errno) },
    })?;
    if sys::is_net_namespace(file.as_fd()) {
        Ok(file)
    } else {
        Err(KernelError::NotNamespace { word: word.into() })
    }
}

/// Does something in a namespace, or in ours if there is none.
pub(super) fn inside<T: Send + 'static>(
    netns: Option<BorrowedFd<'_>>,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let Some(netns) = netns else { return work() };
    // It is threads that move to namespaces, so this is one of its own.
    let netns = netns.try_clone_to_owned()?;
    let thread = std::thread::Builder::new().spawn(move || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    })?;
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
}

/// Whether it is the namespace of this thread.
pub(super) fn is_ours(netns: BorrowedFd<'_>) -> io::Result<bool> {
    let (this, ours) = (fstat(netns)?, stat("/proc/thread-self/ns/net")?);
    Ok((this.st_dev, this.st_ino) == (ours.st_dev, ours.st_ino))
}

fn paths(word: &str) -> Vec<PathBuf> {
    if word.contains('/') {
        vec![word.into()]
    } else if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()) {
        vec![format!("/proc/{word}/ns/net").into()]
    } else if matches!(word, "" | "." | "..") {
        Vec::new()
    } else {
        NAMES.iter().map(|dir| PathBuf::from(dir).join(word)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_by_each_word() {
        find(&std::process::id().to_string()).expect("our own, by number");
        let ours = find("/proc/thread-self/ns/net").expect("our own, by its file");
        assert!(is_ours(ours.as_fd()).expect("stat"));
        for word in ["", "..", "no-such-space", "4000000000", "/nowhere/space"] {
            assert!(matches!(find(word), Err(KernelError::NoNamespace { .. })), "{word}");
        }
        for word in ["/proc/self/ns/uts", "/dev/null", "/"] {
            assert!(matches!(find(word), Err(KernelError::NotNamespace { .. })), "{word}");
        }
    }
}
