//! Networks that we serve ourselves: `multi://`, `hub://`, `switch://`, `bonding://` (VDE facts, section 4).
//!
//! Theory of operation. A node is a directory with a socket `ctl` that speaks the protocol of a VDE switch, so that every
//! VDE program can join it. Who opens it is the *owner*; who joins is a *peer*.
//!
//! | | the owner's frames go to | a peer's frames go to |
//! |---|---|---|
//! | multi | all peers | the owner |
//! | bonding | the peers in turn | the owner |
//! | hub | all peers | all others and the owner |
//! | switch | the peer that was seen to have the address, else all | the same, or the owner |
//!
//! ```text
//!  settings ─ place (directory) ─ threads ─┬─ server ─ request ─ peer (two sockets)
//!                                          └─ relay ─ net (who gets what) ─┬─ table (addresses)
//!                           owner ── send, recv ───────┘                   └─ local ─ inbox (for the owner)
//! ```
//!
//! A thread of the node takes peers in and sees them off, so nobody has to call anything for that, and a process can join
//! its own node. In a multi and a bonding the owner reads and writes the peers' sockets itself: no thread stands between.
//! In a hub and a switch two threads move frames between peers and leave the owner's share in an inbox; and the owner may
//! have several ports, between which frames pass without any thread or system call.
//!
//! Nobody ever waits for a peer: a frame that one does not take is lost for that one, and counted there. So the owner's
//! frames are all taken at once, and the data descriptor is never writable because it never needs to be.
//!
//! Runts are dropped; a frame of any length up to 64 KiB is passed on whole, unpadded and with its tags. Between programs of
//! this project big frames pass undone; for all others they are completed and segmented.

mod error;
mod inbox;
mod local;
mod net;
mod peer;
mod place;
mod relay;
mod request;
mod server;
mod settings;
mod sys;
mod table;
mod threads;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

pub use error::NodeError;
pub(crate) use net::Kind;
#[cfg(feature = "fuzzing")]
pub use request::{ClientName, REQUEST_MAX, Reading, Request, decode, encode_answer};

use crate::OpenOptions;
use crate::error::OpenError;
use crate::link::{BIG_FRAME_MAX, Link, LinkError, Receiver, RxFrame, Sent, Stats, TxFrame};

use local::Local;
use net::Net;
use place::Place;
use server::Server;
use settings::Settings;
use threads::Threads;

/// A network that this process serves. It ends with the last of the process's ports on it.
#[derive(Debug)]
struct Node {
    net: Arc<Net>,
    _threads: Threads,
}

/// A port of this process on such a network: the owner's link.
#[derive(Debug)]
pub(crate) struct NodeLink {
    node: Arc<Node>,
    local: Arc<Local>,
}

impl NodeLink {
    /// Makes the network. What the locator says wins over the options.
    pub(crate) fn open(kind: Kind, argument: &str, options: &OpenOptions) -> Result<Self, OpenError> {
        let Settings { path, access, table } = Settings::parse(argument, options)?;
        let system = |what| move |errno: rustix::io::Errno| NodeError::System { what, source: errno.into() };
        let net = Net::new(kind, options.offloads, &table).map_err(system("make a descriptor"))?;
        let net = Arc::new(net);
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let stop = stop.map_err(system("make a descriptor"))?;
        let local = port(&net, options.offloads).map_err(system("make a descriptor"))?;
        let (place, listener) = Place::take(&path, &access)?;
        let server = Server::new(net.clone(), place, listener, &stop).map_err(system("make a descriptor"))?;
        let threads = Threads::start(net.clone(), server, stop)?;
        Ok(Self { node: Arc::new(Node { net, _threads: threads }), local })
    }
}

/// A new port of this process.
fn port(net: &Net, big: bool) -> Result<Arc<Local>, Errno> {
    let local = Arc::new(Local::new(net.new_port(), big)?);
    if net.relays() {
        net.plug_local(&local);
    }
    Ok(local)
}

impl Drop for NodeLink {
    /// Ends the port.
    fn drop(&mut self) {
        self.node.net.remove(self.local.port);
    }
}

impl Link for NodeLink {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.node.net.sockets().unwrap_or_else(|| self.local.ready())
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn max_frame(&self) -> usize {
        BIG_FRAME_MAX
    }

    fn offloads(&self) -> bool {
        self.local.is_big()
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        Ok(self.node.net.send(self.local.port, frames, self.local.meter()))
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        let Self { node, local } = self;
        if node.net.relays() {
            return Ok(local.recv(frames));
        }
        node.net.recv(frames, local.meter()).map_err(|errno| LinkError::Io(errno.into()))
    }

    fn stats(&self) -> Stats {
        self.node.net.stats(self.local.meter().read())
    }

    fn check_control(&self) -> Result<(), LinkError> {
        Ok(())
    }

    fn another(&self, offloads: bool) -> Option<Arc<dyn Link>> {
        let node = &self.node;
        if !node.net.relays() {
            return None;
        }
        match port(&node.net, offloads) {
            Ok(local) => Some(Arc::new(Self { node: node.clone(), local })),
            Err(errno) => {
                log::warn!("cannot make another port: {errno}");
                None
            }
        }
    }

    fn deliver_to(&self, receiver: &Arc<dyn Receiver>) -> bool {
        self.node.net.relays() && self.local.deliver_to(receiver)
    }
}
