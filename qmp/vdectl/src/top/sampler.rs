//! The threads that ask: one looks which VMs run, and one for each of them asks its back end.
//!
//! A back end that hangs holds up its own thread and nothing else. What they find goes through one bounded channel to the view, with
//! a byte on a socket that wakes it; a view that cannot keep up (a terminal that takes nothing) makes them wait.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::model::Answer;
use crate::Failure;
use crate::back_end::BackEnd;

/// How long a back end may take for an answer. The view says much earlier that it is late.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many messages wait at most.
const WAITING_MAX: usize = 64;
/// How often is looked which VMs run, at most. Looking costs the monitor of a VM in the background a connection.
const LOOK: Duration = Duration::from_secs(2);

/// A VM with a back end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// What people call it.
    pub name: String,
    /// Where its back ends listen for commands; no other VM has these.
    pub controls: Vec<PathBuf>,
}

impl Watched {
    /// What it is called in the model.
    pub fn key(&self) -> String {
        self.controls.iter().map(|control| control.display().to_string()).collect::<Vec<_>>().join(" ")
    }
}

/// What threads tell the view.
#[derive(Debug)]
pub enum News {
    /// These run.
    Running(Vec<Watched>),
    /// What the back end of one answered, and when.
    Heard(String, Instant, Result<Answer, String>),
}

/// The way to the view.
#[derive(Clone)]
struct Post {
    sender: SyncSender<News>,
    wake: Arc<UnixStream>,
    interval: Arc<AtomicU64>,
}

impl Post {
    /// False when nobody reads any more.
    fn send(&self, news: News) -> bool {
        let sent = self.sender.send(news).is_ok();
        // Full: it is awake already.
        let _ = (&*self.wake).write(&[0]);
        sent
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.interval.load(Ordering::Relaxed))
    }
}

struct Asker {
    thread: Thread,
    stop: Arc<AtomicBool>,
}

/// All of them.
pub struct Samplers {
    post: Post,
    askers: BTreeMap<String, Asker>,
}

impl Samplers {
    /// Begins to look with `look`. Gives what they tell, and the socket that becomes readable then.
    pub fn start(
        interval: Duration,
        mut look: impl FnMut() -> Vec<Watched> + Send + 'static,
    ) -> io::Result<(Self, Receiver<News>, UnixStream)> {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let (woken, wake) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let post = Post { sender, wake: Arc::new(wake), interval: Arc::default() };
        let samplers = Self { post: post.clone(), askers: BTreeMap::new() };
        samplers.set_interval(interval);
        thread::Builder::new().name("look".into()).spawn(move || {
            while post.send(News::Running(look())) {
                thread::sleep(LOOK.max(post.interval()));
            }
        })?;
        Ok((samplers, receiver, woken))
    }

    /// Asks so often from now on.
    pub fn set_interval(&self, interval: Duration) {
        let milliseconds = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        self.post.interval.store(milliseconds, Ordering::Relaxed);
        self.askers.values().for_each(|asker| asker.thread.unpark());
    }

    /// Asks the back ends of these VMs, and no others. Gives those that cannot be asked now, and why; they are tried again the next time.
    pub fn watch(&mut self, vms: &[Watched]) -> Vec<(String, io::Error)> {
        self.askers.retain(|key, asker| {
            let kept = vms.iter().any(|vm| vm.key() == *key);
            asker.stop.store(!kept, Ordering::Relaxed);
            asker.thread.unpark();
            kept
        });
        let mut failed = Vec::new();
        for vm in vms.iter().filter(|vm| !self.askers.contains_key(&vm.key())).collect::<Vec<_>>() {
            match asker(self.post.clone(), vm) {
                Ok(asker) => drop(self.askers.insert(vm.key(), asker)),
                Err(error) => failed.push((vm.key(), error)),
            }
        }
        failed
    }
}

fn asker(post: Post, vm: &Watched) -> io::Result<Asker> {
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, key, controls) = (stop.clone(), vm.key(), vm.controls.clone());
    let ask_on = move || {
        let mut connections = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            let began = Instant::now();
            let answer = ask(&mut connections, &controls);
            if !post.send(News::Heard(key.clone(), Instant::now(), answer)) {
                return;
            }
            wait(&post, began, &stopped);
        }
    };
    let handle = thread::Builder::new().name("ask".into()).spawn(ask_on)?;
    Ok(Asker { thread: handle.thread().clone(), stop })
}

/// Until it is time to ask again; whoever changes that wakes us.
fn wait(post: &Post, began: Instant, stopped: &AtomicBool) {
    while !stopped.load(Ordering::Relaxed) {
        let left = post.interval().saturating_sub(began.elapsed());
        if left.is_zero() {
            return;
        }
        thread::park_timeout(left);
    }
}

/// Asks on the connections that there are, or on new ones.
fn ask(connections: &mut Vec<BackEnd>, controls: &[PathBuf]) -> Result<Answer, String> {
    let asked = ask_all(connections, controls);
    if asked.is_err() {
        connections.clear();
    }
    asked.map_err(|failure| failure.to_string())
}

fn ask_all(connections: &mut Vec<BackEnd>, controls: &[PathBuf]) -> Result<Answer, Failure> {
    for control in controls.iter().skip(connections.len()) {
        connections.push(BackEnd::connect_within(control, PATIENCE)?);
    }
    let mut answer = Answer { nics: Vec::new(), joins: Vec::new() };
    for back_end in connections {
        answer.nics.extend(back_end.query_nics()?);
        answer.joins.extend(back_end.query_joins()?);
    }
    Ok(answer)
}
