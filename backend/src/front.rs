//! A NIC with whoever is connected to its socket, by what is spoken there.
//!
//! | protocol | who connects | what serves the frames |
//! |---|---|---|
//! | vhost-user | the front end of a virtio NIC | a worker per queue pair, on the guest's memory |
//! | stream | QEMU's `-netdev stream`, before a NIC of any model | a relay, on the socket itself |

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use vde_control::Ring;
use vdeplug::Link;
use vhost_user::{Connection, Error};
use virtio_net::LinkLost;

use crate::cli::{NicConfig, Protocol};
use crate::nic::Nic;
use crate::relay::Relay;

/// One NIC, and its connection while there is one.
#[derive(Debug)]
pub enum Front {
    /// A virtio NIC.
    VhostUser { nic: Nic, connection: Option<Connection> },
    /// Any other. The relay has the socket as well; ours tells of its end.
    Stream { relay: Relay, connection: Option<UnixStream> },
}

impl Front {
    /// Starts the threads. `offloads`: a guest that can may leave work to others; `poll`: how long each goes on looking for
    /// frames after the last one; `lost` makes each one's callback for dead links.
    pub fn new(
        name: &str,
        config: &NicConfig,
        offloads: bool,
        poll: Duration,
        lost: impl Fn() -> LinkLost,
    ) -> std::io::Result<Self> {
        Ok(match config.protocol {
            Protocol::VhostUser => Self::VhostUser {
                nic: Nic::new(name, config.queues, offloads, poll, lost)?,
                connection: None,
            },
            Protocol::Stream => Self::Stream { relay: Relay::spawn(name, poll, lost())?, connection: None },
        })
    }

    /// Plugs a link in, in place of one of the same number.
    pub fn set_link(&mut self, number: usize, link: &Arc<dyn Link>) {
        match self {
            Self::VhostUser { nic, .. } => nic.set_link(number, link),
            Self::Stream { relay, .. } => relay.set_link(number, link.clone()),
        }
    }

    /// Plugs a link in that takes the place of `old`, from which frames still come until it is unplugged.
    pub fn hand_over(&mut self, old: usize, number: usize, link: &Arc<dyn Link>) {
        match self {
            Self::VhostUser { nic, .. } => nic.hand_over(old, number, link),
            Self::Stream { relay, .. } => relay.hand_over(old, number, link),
        }
    }

    /// Pulls a link out.
    pub fn unplug(&mut self, number: usize) {
        match self {
            Self::VhostUser { nic, .. } => nic.unplug(number),
            Self::Stream { relay, .. } => relay.unplug(number),
        }
    }

    /// How full the rings are, by their numbers; a NIC that is not virtio has none.
    pub fn rings(&self) -> Vec<Ring> {
        match self {
            Self::VhostUser { nic, .. } => nic.rings(),
            Self::Stream { .. } => Vec::new(),
        }
    }

    /// What happened to frames so far.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::VhostUser { nic, .. } => nic.counters(),
            Self::Stream { relay, .. } => relay.counters().list(),
        }
    }

    /// The feature bits that the guest's driver acknowledged; 0 before it did, and of a NIC that is not virtio.
    pub fn features(&self) -> u64 {
        match self {
            Self::VhostUser { connection, .. } => connection.as_ref().map_or(0, Connection::features),
            Self::Stream { .. } => 0,
        }
    }

    /// The socket that is served.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::VhostUser { connection, .. } => connection.as_ref().map(AsFd::as_fd),
            Self::Stream { connection, .. } => connection.as_ref().map(AsFd::as_fd),
        }
    }

    /// What is to be watched on it.
    pub fn interest(&self) -> EventFlags {
        match self {
            Self::VhostUser { .. } => EventFlags::IN,
            // Bytes are the relay's; only its end is for us.
            Self::Stream { .. } => EventFlags::RDHUP | EventFlags::ET,
        }
    }

    /// Serves a connection; there must be none.
    pub fn connect(&mut self, name: &str, socket: UnixStream) -> Result<(), Error> {
        match self {
            Self::VhostUser { nic, connection } => *connection = Some(Connection::new(socket, name, nic)?),
            Self::Stream { relay, connection } => {
                socket.set_nonblocking(true).map_err(Error::Io)?;
                relay.connect(socket.try_clone().map_err(Error::Io)?);
                *connection = Some(socket);
            }
        }
        Ok(())
    }

    /// To be called when something happened on the socket: an error says that the connection is over.
    pub fn on_event(&mut self) -> Result<(), Error> {
        match self {
            Self::VhostUser { nic, connection } => connection.as_mut().map_or(Ok(()), |c| c.on_readable(nic)),
            Self::Stream { .. } => Err(Error::Closed),
        }
    }

    /// Forgets the connection.
    pub fn disconnect(&mut self) {
        match self {
            Self::VhostUser { nic, connection } => {
                if let Some(connection) = connection.take() {
                    connection.close(nic);
                }
            }
            Self::Stream { relay, connection } => {
                relay.disconnect();
                *connection = None;
            }
        }
    }
}
