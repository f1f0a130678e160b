//! A thread of a NIC, and the handle by which its owner commands it.
//!
//! Commands go through a channel; an eventfd wakes the thread, which has it among what it waits for. Dropping the handle
//! closes the channel, wakes the thread and waits for its end.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, eventfd};

/// These threads keep what is large in boxes.
const STACK: usize = 256 * 1024;

/// Handle of a thread that carries out commands of type `C`. Dropping it ends the thread.
pub struct Thread<C> {
    /// `None` once the thread is to end.
    commands: Option<Sender<C>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl<C: Send + 'static> Thread<C> {
    /// Starts a thread named `name`. `build` gets the thread's end of the commands, and returns what the thread does: it
    /// returns when [`Commands::next`] says that the owner is gone.
    pub fn spawn<B>(
        name: &str,
        build: impl FnOnce(Commands<C>) -> std::io::Result<B>,
    ) -> std::io::Result<Self>
    where
        B: FnOnce() + Send + 'static,
    {
        let (sender, receiver) = channel();
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let body = build(Commands { receiver, wake: wake.clone() })?;
        let builder = std::thread::Builder::new().name(name.into()).stack_size(STACK);
        Ok(Self { commands: Some(sender), wake, thread: Some(builder.spawn(body)?) })
    }

    /// Gives a command and does not wait.
    pub fn tell(&self, command: C) {
        if let Some(commands) = &self.commands {
            let _ = commands.send(command);
        }
        self.wake();
    }

    /// Gives a command and waits until it was answered. `None`: the thread is gone.
    pub fn ask<T>(&self, command: impl FnOnce(SyncSender<T>) -> C) -> Option<T> {
        let (reply, answer) = sync_channel(1);
        self.tell(command(reply));
        answer.recv().ok()
    }
}

impl<C> Thread<C> {
    fn wake(&self) {
        // A full eventfd is readable already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl<C> std::fmt::Debug for Thread<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Thread").field("thread", &self.thread).finish_non_exhaustive()
    }
}

impl<C> Drop for Thread<C> {
    fn drop(&mut self) {
        self.commands = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The thread's end of the commands.
pub struct Commands<C> {
    receiver: Receiver<C>,
    wake: Arc<OwnedFd>,
}

/// The handle was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerGone;

impl<C> Commands<C> {
    /// Readable when there are commands; whoever writes to it wakes the thread.
    pub fn wake(&self) -> &Arc<OwnedFd> {
        &self.wake
    }

    /// Makes the descriptor unreadable until it is written to again: before the commands are taken.
    pub fn awake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
    }

    /// The next command, if there is one.
    pub fn next(&self) -> Result<Option<C>, OwnerGone> {
        match self.receiver.try_recv() {
            Ok(command) => Ok(Some(command)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(OwnerGone),
        }
    }
}
