//! A node's threads: one for a multi or a bonding, two for a hub or a switch.
//!
//! Theory of operation. All threads do the same, and take turns in it. Who holds the *intake* waits for what happens, takes
//! peers in and sees them off, and receives a batch of frames from one of them. Who holds the *outlet* sends such a batch
//! to whom it is for. A thread that received a full batch, behind which there is most likely another one, takes the outlet
//! and then gives up the intake: so the next batch is received by the other thread while this one is sent, on another
//! core, and yet all batches are sent in the order in which they were received. Each is received and sent by one
//! thread, in whose core's caches it stays. After a batch that was not full a thread keeps the intake, so that the other
//! one sleeps on while there is little to do, and on an idle node both do.
//!
//! With one thread a switch of two peers kept one core and a half of two busy: the thread was never idle, but shared its core
//! with one of the two ends. What a second one gave stands in `docs/bench.md`: up to 1.6 times the frames.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::error::NodeError;
use super::net::Net;
use super::peer::Peer;
use super::relay::Relay;
use super::server::{Server, Work};
use super::sys;

/// Stack of a thread, most of which holds batches of frames' headers.
const STACK: usize = 256 << 10;

/// The threads, which end when this is dropped.
#[derive(Debug)]
pub(super) struct Threads {
    /// Readable when they are to end.
    stop: OwnedFd,
    running: Vec<JoinHandle<()>>,
}

/// What they share.
struct Shared {
    net: Arc<Net>,
    intake: Mutex<Server>,
    /// Taken by who holds the intake.
    outlet: Mutex<()>,
}

impl Threads {
    /// Starts them. `stop` becomes readable when the server is to end.
    pub(super) fn start(net: Arc<Net>, server: Server, stop: OwnedFd) -> Result<Self, NodeError> {
        let count = if net.relays() { 2 } else { 1 };
        let shared = Arc::new(Shared { net, intake: Mutex::new(server), outlet: Mutex::default() });
        let mut threads = Self { stop, running: Vec::with_capacity(count) };
        for _ in 0..count {
            let shared = shared.clone();
            let builder = Builder::new().name("node".into()).stack_size(STACK);
            let thread = sys::without_signals(|| builder.spawn(move || shared.run()))
                .map_err(|source| NodeError::System { what: "start the network's threads", source })?;
            threads.running.push(thread);
        }
        Ok(threads)
    }
}

impl Drop for Threads {
    /// Ends the network: nothing is left of it when this returns.
    fn drop(&mut self) {
        // It cannot fail: nobody else writes there.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        for thread in self.running.drain(..) {
            if thread.join().is_err() {
                log::error!("a thread of a network panicked");
            }
        }
    }
}

impl Shared {
    /// Serves until the node is to end.
    fn run(&self) {
        let mut relay = Relay::new();
        let mut intake = lock(&self.intake);
        while let Some(work) = intake.next() {
            match work {
                Work::Frames(peer) => {
                    let more = relay.take(&peer);
                    let outlet = lock(&self.outlet);
                    if more {
                        drop(intake);
                        relay.pass_on(&self.net, &peer);
                        drop(outlet);
                        intake = lock(&self.intake);
                    } else {
                        relay.pass_on(&self.net, &peer);
                    }
                }
                Work::Leaves(peer) => {
                    self.hear_out(&peer, &mut relay);
                    intake.see_off(&peer);
                }
            }
        }
    }

    /// Has what a peer sent before it left go where it should.
    fn hear_out(&self, peer: &Peer, relay: &mut Relay) {
        // From here on nothing more comes, so the rest has an end.
        peer.hang_up();
        let mut more = self.net.relays();
        while more {
            more = relay.take(peer);
            let _outlet = lock(&self.outlet);
            relay.pass_on(&self.net, peer);
        }
    }
}

/// A panic in one thread leaves nothing half done that the other could stumble over.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
