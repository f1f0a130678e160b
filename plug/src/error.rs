//! Why a link could not be opened: one sentence for each cause, and the coarse class that programs turn into
//! exit statuses.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::kernel::KernelError;
use crate::locator::{LocatorError, LocatorProblem, Port};
use crate::node::NodeError;
use crate::{CmdError, PluginError, PtpError, SeqPacketError, UdpError};

/// Why a link could not be opened. Each sentence names the word that was wrong and what would be right.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The locator cannot be read.
    #[error(transparent)]
    Locator(#[from] LocatorError),

    /// The locator's scheme is that of a plug-in, which could not be used or found.
    #[error(transparent)]
    Plugin(#[from] PluginError),

    /// A command could not be made a link.
    #[error(transparent)]
    Cmd(#[from] CmdError),

    /// A `ptp` link could not be opened.
    #[error(transparent)]
    Ptp(#[from] PtpError),

    /// A `udp` link could not be opened.
    #[error(transparent)]
    Udp(#[from] UdpError),

    /// An inherited socket could not be used.
    #[error(transparent)]
    SeqPacket(#[from] SeqPacketError),

    /// A network could not be served.
    #[error(transparent)]
    Node(#[from] NodeError),

    /// A file was named whose first line should have been a locator.
    #[error(
        "cannot take a locator from the first line of {path:?}; make it a readable line such as vde://PATH[PORT], \
         or name the switch's directory instead"
    )]
    LocatorFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// The locator that stands in a file could not be opened.
    #[error(
        "cannot open what the first line of {path:?} names; correct that line, or name the network itself"
    )]
    InFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Box<OpenError>,
    },

    /// An option given beside the locator is wrong.
    #[error("bad option: {0}")]
    Option(LocatorProblem),

    /// Nothing exists by this name.
    #[error("there is no switch {path:?}; start it with: vde_switch -s {path:?}")]
    NoSwitch {
        /// The name.
        path: PathBuf,
    },

    /// No switch was named and none runs where the default one would.
    #[error(
        "no switch was named and no default switch runs at /var/run/vde.ctl or /tmp/vde.ctl; start one with \
         vde_switch, or name one"
    )]
    NoDefaultSwitch,

    /// Something exists by this name, but not a switch.
    #[error("{path:?} is not a switch: {why}; name the directory that was given to vde_switch -s")]
    NotASwitch {
        /// The name.
        path: PathBuf,
        /// What is there instead.
        why: &'static str,
    },

    /// The switch has no group of ports of this name.
    #[error("the switch {path:?} has no port group {group:?}; use a number, or none for any free port")]
    NoPortGroup {
        /// Directory of the switch.
        path: PathBuf,
        /// The word in the port's place.
        group: String,
    },

    /// The caller may not use the switch.
    #[error(
        "no permission to use the switch {path:?}: {object}; become that user or join that group, or start \
             the switch with a wider --mode or with --group"
    )]
    NoPermission {
        /// Directory of the switch.
        path: PathBuf,
        /// What refused, with its owner and mode.
        object: String,
    },

    /// The switch's socket is there, but nobody listens on it.
    #[error(
        "the switch {path:?} is dead: nobody listens on {socket:?}; start it again with: vde_switch -s {path:?}"
    )]
    DeadSwitch {
        /// Directory of the switch.
        path: PathBuf,
        /// The socket that nobody listens on.
        socket: PathBuf,
    },

    /// The switch does not accept connections in time.
    #[error(
        "the switch {path:?} accepted no connection within {timeout:?}: it hangs or is stopped; wake it with \
         kill -CONT, or end it and start it again with: vde_switch -s {path:?}"
    )]
    BusySwitch {
        /// Directory of the switch.
        path: PathBuf,
        /// How long was waited.
        timeout: Duration,
    },

    /// The switch closed the connection instead of answering.
    #[error("the switch {path:?} refused {}", refusal(.port))]
    Refused {
        /// Directory of the switch.
        path: PathBuf,
        /// The port that was asked for.
        port: Port,
    },

    /// The switch did not answer in time.
    #[error("the switch {path:?} did not answer within {timeout:?}: {}", silence(.port))]
    NoAnswer {
        /// Directory of the switch.
        path: PathBuf,
        /// The port that was asked for.
        port: Port,
        /// How long was waited.
        timeout: Duration,
    },

    /// The switch answered something that is no socket's address.
    #[error(
        "what listens at {path:?} is no VDE switch: {why}; end it and start one with: vde_switch -s {path:?}"
    )]
    BadAnswer {
        /// Directory of the switch.
        path: PathBuf,
        /// What is wrong with the answer.
        why: String,
    },

    /// The switch named a data socket that cannot be connected to.
    #[error(
        "cannot connect to {socket:?}, which the switch {path:?} named as its end of the cable; start the switch \
         with a wider --mode or with --group if it may not be written, else start it again"
    )]
    BadPeer {
        /// Directory of the switch.
        path: PathBuf,
        /// The socket that it named.
        socket: PathBuf,
        /// Why not.
        source: io::Error,
    },

    /// The directory's name leaves no room for the names of sockets in it.
    #[error(
        "the name of the switch's directory {path:?} is too long: {len} bytes, of which the sockets in it leave \
         room for {max}; start the switch in a directory with a shorter name"
    )]
    NameTooLong {
        /// The directory, made absolute.
        path: PathBuf,
        /// Length of its name.
        len: usize,
        /// The longest one that fits.
        max: usize,
    },

    /// No group has this name.
    #[error("there is no group {group:?}; use a name that `getent group` lists, or a number")]
    UnknownGroup {
        /// The name.
        group: String,
    },

    /// Our data socket could not be given to the group.
    #[error("cannot give the data socket to the group {group:?}; use a group that you are a member of")]
    ChangeGroup {
        /// The group as it was named.
        group: String,
        /// Why not.
        source: io::Error,
    },

    /// Our data socket could not be made anywhere.
    #[error("cannot make a data socket, tried {}; make one of these directories writable", list(.tried))]
    NoDataSocket {
        /// The names that were tried.
        tried: Vec<OsString>,
        /// Why the last one failed.
        source: io::Error,
    },

    /// A tap or a veth could not be opened.
    #[error(transparent)]
    Kernel(#[from] KernelError),

    /// A system call failed for a reason that has nothing to do with the locator.
    #[error("cannot {what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Coarse class of an [`OpenError`], for exit statuses and for deciding whether to try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// The words are wrong: locator, option, scheme, group. Trying again is useless.
    Usage,
    /// There is no such network, or something else has its name.
    NotFound,
    /// It exists and may not be used.
    Permission,
    /// It exists and does not work: dead, stopped, or not speaking the protocol. It may come back.
    Unavailable,
    /// It works and refuses this port.
    Refused,
    /// This system failed: descriptors, memory, a directory that is not writable.
    System,
}

impl OpenError {
    /// The coarse class of this error.
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            Self::InFile { source, .. } => source.kind(),
            Self::Node(error) => error.kind(),
            Self::Plugin(error) => error.kind(),
            Self::Ptp(error) => error.kind(),
            Self::Cmd(error) => error.kind(),
            Self::Udp(error) => error.kind(),
            Self::SeqPacket(error) => error.kind(),
            Self::Locator(_) | Self::Option(_) | Self::NameTooLong { .. } | Self::UnknownGroup { .. } => {
                OpenErrorKind::Usage
            }
            Self::NoSwitch { .. }
            | Self::NoDefaultSwitch
            | Self::NotASwitch { .. }
            | Self::NoPortGroup { .. } => OpenErrorKind::NotFound,
            Self::NoPermission { .. } | Self::ChangeGroup { .. } => OpenErrorKind::Permission,
            Self::DeadSwitch { .. }
            | Self::BusySwitch { .. }
            | Self::BadAnswer { .. }
            | Self::BadPeer { .. } => OpenErrorKind::Unavailable,
            // A Debian switch shows by silence that it refuses a port; that nobody answers a request for any
            // port at all is another matter.
            Self::NoAnswer { port: Port::Number(_), .. } | Self::Refused { .. } => OpenErrorKind::Refused,
            Self::NoAnswer { .. } => OpenErrorKind::Unavailable,
            Self::LocatorFile { source, .. } => match source.kind() {
                io::ErrorKind::InvalidData => OpenErrorKind::Usage,
                io::ErrorKind::PermissionDenied => OpenErrorKind::Permission,
                _ => OpenErrorKind::System,
            },
            Self::Kernel(error) => error.kind(),
            Self::NoDataSocket { .. } | Self::System { .. } => OpenErrorKind::System,
        }
    }
}

/// What a switch that closes the connection says by it.
fn refusal(port: &Port) -> String {
    match port {
        Port::Number(number) => format!(
            "port {number}: it has no port of that number, or another user has it; choose another, or none for \
             any free port"
        ),
        Port::Any | Port::Group(_) => {
            "the connection: all its ports are taken, or it may not read and write our data socket (then give \
             group= and mode=)"
                .into()
        }
        Port::Management => {
            "the connection to port 0: it may not read and write our data socket (then give group= and mode=)".into()
        }
    }
}

/// What a switch that stays silent may mean by it.
fn silence(port: &Port) -> String {
    match port {
        Port::Number(number) => format!(
            "Debian's vde_switch is silent when it has no port {number} or when another user has it; choose \
             another, or none for any free port"
        ),
        Port::Any | Port::Management | Port::Group(_) => {
            "it hangs or is stopped, or all its ports are taken (Debian's vde_switch is silent then)".into()
        }
    }
}

fn list(names: &[OsString]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}
