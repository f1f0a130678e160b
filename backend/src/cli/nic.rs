//! A NIC as the command line describes it, or a command of the control socket.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use vde_control as wire;

use super::{split_commas, usage};
use crate::Failure;

/// Most queue pairs that one NIC can have.
const MAX_QUEUES: u16 = 16;
/// Longest name of a NIC.
const MAX_NAME: usize = 128;

/// Where front ends come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Door {
    /// We listen there.
    Path(PathBuf),
    /// Somebody made the socket for us.
    Fd(RawFd),
}

impl Door {
    /// Where we listen, if we do.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) => Some(path),
            Self::Fd(_) => None,
        }
    }

    /// The number of the descriptor, if it was made for us.
    pub fn fd(&self) -> Option<RawFd> {
        match self {
            Self::Path(_) => None,
            Self::Fd(fd) => Some(*fd),
        }
    }
}

/// What is spoken on a NIC's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub enum Protocol {
    /// A virtio NIC's: the guest's virtqueues are served.
    #[default]
    VhostUser,
    /// QEMU's netdev stream, for a NIC of any other model: QEMU hands over frame by frame.
    Stream,
}

impl From<wire::Protocol> for Protocol {
    fn from(protocol: wire::Protocol) -> Self {
        match protocol {
            wire::Protocol::VhostUser => Self::VhostUser,
            wire::Protocol::Stream => Self::Stream,
        }
    }
}

impl From<Protocol> for wire::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::VhostUser => Self::VhostUser,
            Protocol::Stream => Self::Stream,
        }
    }
}

/// One NIC to be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicConfig {
    /// Its name, if it is not to be called by its position.
    pub id: Option<String>,
    /// Its socket.
    pub door: Door,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Its networks, as VDE locators; an empty one is the user's default network.
    pub links: Vec<String>,
    /// Its queue pairs.
    pub queues: u16,
}

/// Checks each NIC, and that they get along.
pub(super) fn check_all(nics: &[NicConfig]) -> Result<(), Failure> {
    for (index, nic) in nics.iter().enumerate() {
        nic.check()?;
        let mut before = nics.iter().enumerate().take(index);
        if let Some((_, before)) = before.clone().find(|(_, n)| n.door == nic.door) {
            let name = match &before.door {
                Door::Path(path) => format!("socket {}", path.display()),
                Door::Fd(fd) => format!("descriptor {fd}"),
            };
            return usage(format!("{name} is given to two NICs; each needs its own"));
        }
        let name = nic.name(index);
        if before.any(|(index, before)| before.name(index) == name) {
            return usage(format!("two NICs are called '{name}'; give one of them another id="));
        }
    }
    Ok(())
}

impl NicConfig {
    /// Its name, if it is NIC `index`.
    pub fn name(&self, index: usize) -> String {
        self.id.clone().unwrap_or_else(|| format!("nic{index}"))
    }

    /// Checks what can be checked of it alone.
    pub fn check(&self) -> Result<(), Failure> {
        let Self { id, protocol, queues, .. } = self;
        if *queues == 0 || *queues > MAX_QUEUES {
            return usage(format!("queues={queues}: a NIC has 1 to {MAX_QUEUES} queue pairs"));
        }
        if *protocol == Protocol::Stream && *queues > 1 {
            return usage(format!("queues={queues}: with protocol=stream a NIC has 1; drop queues="));
        }
        match id {
            Some(id) if !is_name(id) => usage(format!(
                "'{}' cannot be the name of a NIC: give 1 to {MAX_NAME} characters of ASCII without spaces",
                id.escape_debug()
            )),
            _ => Ok(()),
        }
    }
}

/// Whether it can be shown and typed everywhere.
fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// `socket-path=PATH,link=LOCATOR,…` with QEMU's rules: `,,` is a comma inside a value.
pub(super) fn parse(spec: &str) -> Result<NicConfig, Failure> {
    let (mut id, mut door, mut protocol) = (None, None, Protocol::default());
    let (mut links, mut queues) = (Vec::new(), 1);
    for word in split_commas(spec) {
        let Some((key, value)) = word.split_once('=') else {
            return usage(format!("--nic {spec}: '{word}' is not of the form KEY=VALUE"));
        };
        let number = || format!("--nic {spec}: '{word}' wants a number");
        match key {
            "socket-path" | "fd" if door.is_some() => {
                return usage(format!("--nic {spec}: '{word}' is a second socket; a NIC has one"));
            }
            "socket-path" => door = Some(Door::Path(value.into())),
            "fd" => match value.parse() {
                Ok(fd) => door = Some(Door::Fd(fd)),
                Err(_) => return usage(number()),
            },
            "id" => id = Some(value.to_owned()),
            "link" => links.push(value.to_owned()),
            "queues" => match value.parse() {
                Ok(count) => queues = count,
                Err(_) => return usage(number()),
            },
            "protocol" => match Protocol::from_str(value, false) {
                Ok(known) => protocol = known,
                Err(_) => {
                    return usage(format!(
                        "--nic {spec}: '{word}' names no protocol; known are vhost-user and stream"
                    ));
                }
            },
            _ => {
                return usage(format!(
                    "--nic {spec}: unknown word '{key}'; known are socket-path, fd, link, queues, protocol and id"
                ));
            }
        }
    }
    match door {
        None => usage(format!("--nic {spec}: socket-path= or fd= is missing")),
        Some(_) if links.is_empty() => usage(format!("--nic {spec}: link= is missing")),
        Some(door) => Ok(NicConfig { id, door, protocol, links, queues }),
    }
}
