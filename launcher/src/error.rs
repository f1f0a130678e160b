//! Everything that keeps `vdeq` from starting QEMU, as one sentence each.
//!
//! A sentence names the word that is wrong and what to write instead, because it is all that the
//! user of a script sees. [`Error::status`] gives the exit status that belongs to it.

use std::io;
use std::path::PathBuf;

use crate::exit::ExitStatus;

/// Why QEMU is not started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A wrapper option without the word that must follow it.
    #[error("{option} needs a value: {example}")]
    OptionValue {
        /// The option as written.
        option: String,
        /// What a right one looks like.
        example: &'static str,
    },
    /// A file mode that is not octal.
    #[error("'{value}' is not an octal file mode; write for example {option}0660")]
    Mode {
        /// The text given.
        value: String,
        /// The option up to its value, for the example.
        option: &'static str,
    },
    /// A value of an option of ours that it does not take.
    #[error("{option} {value}: {right}")]
    BadValue {
        /// The option.
        option: String,
        /// The text given.
        value: String,
        /// What a right one is.
        right: &'static str,
    },
    /// A word that begins like an option of ours.
    #[error(
        "there is no option '{option}'; there are --vde-{known}, each followed by its value as the next word if it has one"
    )]
    UnknownOption {
        /// The word as written.
        option: String,
        /// Those that there are.
        known: String,
    },
    /// An option where the program's name should stand.
    #[error(
        "'{0}' is not an option of vdeq, and QEMU's options stand behind the program; write for example vdeq qemu {0}"
    )]
    OptionForProgram(String),
    /// Options of ours, and nothing behind them.
    #[error("there is no program to run after {0}; write for example vdeq -sock /run/vde.ctl qemu -m 512")]
    NoProgram(String),
    /// An option of ours among those of QEMU.
    #[error("{0} stands among the options of QEMU; write it before the program's name or right after it")]
    Misplaced(String),
    /// A user for QEMU that does not exist.
    #[error("there is no user '{0}' for QEMU to become; give the name of one, or UID:GID")]
    UnknownUser(String),
    /// The last option of the list lacks its value, so nothing may be appended to the list.
    #[error("{0} at the end of the command line needs a value")]
    MissingValue(String),
    /// A `-net` word that cannot be understood.
    #[error("-net {word}: {problem}")]
    Net {
        /// The word after `-net`.
        word: String,
        /// What is wrong with it and what to write instead.
        problem: String,
    },
    /// A `-netdev vde` or `-nic vde` that cannot be understood.
    #[error("-{option} {word}: {problem}")]
    Vde {
        /// The option.
        option: &'static str,
        /// The word after it.
        word: String,
        /// What is wrong with it and what to write instead.
        problem: String,
    },
    /// A machine type that the emulator does not have.
    #[error("{program}: {said}; name one by -M that {program} -M help lists")]
    Machine {
        /// The emulator.
        program: String,
        /// What it says.
        said: String,
    },
    /// An option that holds a bad size.
    #[error("-{option} {value}: '{part}' is not a memory size; write for example 512M or 2G")]
    Size {
        /// The option's name.
        option: String,
        /// Its whole value.
        value: String,
        /// The part that is wrong.
        part: String,
    },
    /// Guest memory that cannot be shared with the back end.
    #[error("{0}")]
    Memory(String),
    /// Not enough room where guest memory shall live.
    #[error("guest memory of {wanted} does not fit on {path}, where {free} are free: {remedy}")]
    Space {
        /// The file or directory that holds the memory.
        path: String,
        /// Bytes wanted, for reading.
        wanted: String,
        /// Bytes free, for reading.
        free: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A place for guest memory that cannot even be looked at.
    #[error(
        "{path}, where guest memory shall live, cannot be used: {source}; name a file or directory that you may use, in a directory that exists"
    )]
    MemoryPath {
        /// The file or directory given.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// A file that another VM has its memory in.
    #[error(
        "{path} is the memory of another VM; a VDE NIC makes it shared memory, so give each VM a file of its own"
    )]
    MemoryTaken {
        /// The file.
        path: String,
    },
    /// A QEMU that lacks what a vhost-user NIC needs.
    #[error(
        "{program} is QEMU {version}, but a VDE NIC needs 5.2 or newer; name a newer program (by VDEQ_QEMU if PROGRAM is qemu or kvm)"
    )]
    TooOld {
        /// The program asked.
        program: String,
        /// Its version.
        version: String,
    },
    /// A QEMU that lacks what a NIC of another model needs beside others.
    #[error(
        "{program} is QEMU {version}, which takes a NIC that is not virtio to one VDE network only and needs to be 7.2 or newer for more; use model=virtio in vlan {vlan}, or give each NIC and each network in it a vlan= of its own"
    )]
    TooOldForStream {
        /// The program asked.
        program: String,
        /// Its version.
        version: String,
        /// The number of the legacy segment.
        vlan: u32,
    },
    /// A program that does not answer `--version` as QEMU does.
    #[error("{program} --version does not name a QEMU version ({answer}); give a QEMU system emulator")]
    NoVersion {
        /// The program asked.
        program: String,
        /// What it did instead.
        answer: String,
    },
    /// No such program.
    #[error("{program} not found{hint}")]
    NotFound {
        /// The name looked for.
        program: String,
        /// Where it was looked for, or what to install.
        hint: String,
    },
    /// A link to this program as the emulator that it shall start.
    #[error("VDEQ_QEMU is '{0}', which is vdeq itself; set it to an emulator, or unset it")]
    NamesItself(String),
    /// A program that may not be executed.
    #[error("{program} cannot be executed: {source}; give the path of an emulator that you may execute")]
    NotExecutable {
        /// The program's path.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The back end program is nowhere.
    #[error("vhost-user-vde not found beside vdeq or on PATH; install it, or set VDEQ_BACKEND to its path")]
    BackEndMissing,
    /// The back end that the user chose does not exist.
    #[error(
        "back end '{program}', named by {by}, not found; set {by} to the path of vhost-user-vde, or leave it out"
    )]
    BackEndNotFound {
        /// The program as named.
        program: String,
        /// Where it was named.
        by: &'static str,
    },
    /// The back end could not be started.
    #[error(
        "back end {program} cannot be started: {source}; install it again, or set VDEQ_BACKEND to the path of one that works"
    )]
    BackEndStart {
        /// Its path.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The back end ended before it said anything.
    #[error("back end {0} ended before it was ready; start it by hand with --help to see whether it works")]
    BackEndDied(String),
    /// The back end said nothing in time.
    #[error("back end {program} was not ready after {seconds} s; see whether the VDE switch answers at all")]
    BackEndSilent {
        /// Its path.
        program: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A signal came while the back end started. It ends the process before anybody reads this.
    #[error("a signal ended the start")]
    Interrupted,
    /// The back end refused, in its own words.
    #[error("{sentence}")]
    BackEndRefused {
        /// Its exit status.
        status: u8,
        /// Its sentence.
        sentence: String,
    },
    /// The private directory could not be made, or belongs to somebody else.
    #[error(transparent)]
    PrivateDir(#[from] registry::Error),
    /// A socket name that does not fit into a socket address.
    #[error("socket path {0} is longer than 107 bytes; set XDG_RUNTIME_DIR to a shorter directory")]
    SocketPath(PathBuf),
    /// A system call that does not fail on a healthy machine.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

impl Error {
    /// The exit status that this error ends in.
    pub fn status(&self) -> u8 {
        use ExitStatus as E;
        match self {
            Self::OptionValue { .. }
            | Self::Mode { .. }
            | Self::BadValue { .. }
            | Self::UnknownOption { .. }
            | Self::OptionForProgram(_)
            | Self::NoProgram(_)
            | Self::Misplaced(_)
            | Self::UnknownUser(_)
            | Self::NamesItself(_)
            | Self::Machine { .. }
            | Self::MissingValue(_)
            | Self::Net { .. }
            | Self::Vde { .. }
            | Self::Size { .. } => E::CommandLine,
            Self::Memory(_) | Self::Space { .. } | Self::MemoryPath { .. } | Self::MemoryTaken { .. } => {
                E::Memory
            }
            Self::TooOld { .. } | Self::TooOldForStream { .. } | Self::NoVersion { .. } => E::QemuVersion,
            Self::NotFound { .. } => E::NotFound,
            Self::NotExecutable { .. } => E::NotExecutable,
            Self::BackEndRefused { status, .. } => return *status,
            Self::BackEndMissing
            | Self::BackEndNotFound { .. }
            | Self::BackEndStart { .. }
            | Self::BackEndDied(_)
            | Self::Interrupted
            | Self::BackEndSilent { .. }
            | Self::PrivateDir(_)
            | Self::SocketPath(_)
            | Self::System { .. } => E::BackEnd,
        }
        .code()
    }
}
