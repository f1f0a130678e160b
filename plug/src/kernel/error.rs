//! Why an end in the kernel could not be opened.

use std::ffi::OsString;
use std::io;

use crate::error::OpenErrorKind;

/// Why a tap or a veth could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The word can name no interface.
    #[error("{name:?} can name no interface; use 1 to 15 bytes without '/', ':', '%' and blanks")]
    BadName {
        /// The word.
        name: OsString,
    },

    /// No interface has the name, and it was not said what to make.
    #[error(
        "there is no interface {name:?}; use one that `ip link` lists, or write veth://{name}[peer=NAME] or \
         veth://{name}[netns=NAME] to make a pair"
    )]
    NoInterface {
        /// The name.
        name: String,
    },

    /// An interface has the name and its other end is not the one that was asked for.
    #[error(
        "there is an interface {name:?} already, and it is not the other end of {peer:?}{}; leave peer= and netns= \
         out to use it as it is, or remove it with: ip link del {name}", place(.netns)
    )]
    OtherPeer {
        /// The name.
        name: String,
        /// The peer that was asked for.
        peer: String,
        /// The namespace that the peer should be in.
        netns: Option<String>,
    },

    /// The name for an interface is taken.
    #[error("there is an interface {name:?} already{}; choose another name, or remove it", place(.netns))]
    NameTaken {
        /// The name.
        name: String,
        /// The namespace that it is in, if not in ours.
        netns: Option<String>,
    },

    /// The interface is of a kind that carries no Ethernet frames.
    #[error(
        "the interface {name:?} carries no Ethernet frames; use one that `ip link` shows with link/ether"
    )]
    NotEthernet {
        /// The name.
        name: String,
    },

    /// The interface is no tap, or one of another make.
    #[error(
        "the interface {name:?} is no tap that can be opened {}; open it {} or make it with: ip tuntap add \
         dev {name} mode tap{}",
        if *.multi { "with [multi]" } else { "without [multi]" },
        if *.multi { "without [multi] if it has one queue," } else { "with [multi] if it has several queues," },
        if *.multi { " multi_queue" } else { "" }
    )]
    NotTap {
        /// The name.
        name: String,
        /// Whether several queues were asked for.
        multi: bool,
    },

    /// Somebody else is at the other end of the tap.
    #[error(
        "the tap {name:?} is in use by another program; end that one, or use another name, or open it as \
         tap://{name}[multi] everywhere"
    )]
    TapInUse {
        /// The name.
        name: String,
    },

    /// The system has no taps.
    #[error("there is no /dev/net/tun, by which taps are made; load the module with: modprobe tun")]
    NoTun {
        /// What the system says.
        source: io::Error,
    },

    /// No namespace has the name.
    #[error(
        "there is no network namespace {word:?}; use a name that `ip netns` lists, the number of a process that \
         runs, or the path of a namespace's file"
    )]
    NoNamespace {
        /// The word.
        word: String,
        /// What the system says.
        source: io::Error,
    },

    /// Something has the name that is no network namespace.
    #[error(
        "{word:?} is no network namespace; use what `ip netns` lists, or a path such as /proc/PID/ns/net"
    )]
    NotNamespace {
        /// The word.
        word: String,
    },

    /// The caller lacks a privilege.
    #[error("no permission to {what}; {remedy}")]
    NoPermission {
        /// What was being done.
        what: String,
        /// What would help.
        remedy: String,
    },

    /// The kernel refused for another reason.
    #[error("cannot {what}")]
    System {
        /// What was being done.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl KernelError {
    /// The coarse class of this error.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            Self::BadName { .. } | Self::NotTap { .. } | Self::NotEthernet { .. } => OpenErrorKind::Usage,
            Self::NoInterface { .. } | Self::NoNamespace { .. } | Self::NotNamespace { .. } => {
                OpenErrorKind::NotFound
            }
            Self::OtherPeer { .. } | Self::NameTaken { .. } => OpenErrorKind::Refused,
            Self::TapInUse { .. } => OpenErrorKind::Unavailable,
            Self::NoPermission { .. } => OpenErrorKind::Permission,
            Self::NoTun { .. } | Self::System { .. } => OpenErrorKind::System,
        }
    }
}

/// Makes the error of a call that failed while something was being done.
pub(super) fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> KernelError {
    lacking(what, "that needs root or CAP_NET_ADMIN")
}

/// The same, with what helps if a privilege is lacking.
pub(super) fn lacking(
    what: impl Into<String>,
    remedy: impl Into<String>,
) -> impl FnOnce(io::Error) -> KernelError {
    let (what, remedy) = (what.into(), remedy.into());
    move |source| match source.kind() {
        io::ErrorKind::PermissionDenied => KernelError::NoPermission { what, remedy },
        _ => KernelError::System { what, source },
    }
}

fn place(netns: &Option<String>) -> String {
    netns.as_ref().map_or_else(String::new, |netns| format!(" in the network namespace {netns:?}"))
}
