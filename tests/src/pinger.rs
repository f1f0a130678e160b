//! A ping that knows of each request what became of it.

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrV4, SocketType, connect, ipproto, recv, send, socket,
};

use crate::namespace::Namespace;
use crate::process::wait_until;

/// How long the last answers may take.
const LAST: Duration = Duration::from_secs(3);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// When it was sent.
    pub sent: Instant,
    /// How long its first answer took; none came if there is none.
    pub answer: Option<Duration>,
}

/// A ping that runs until [`Pinger::finish`].
#[derive(Debug)]
pub struct Pinger {
    progress: Arc<Progress>,
    thread: JoinHandle<Result<Vec<Request>>>,
}

#[derive(Debug, Default)]
struct Progress {
    stop: AtomicBool,
    answered: AtomicUsize,
}

impl Pinger {
    /// Pings from a namespace, once in each `interval`.
    pub fn start(space: &Namespace, target: Ipv4Addr, interval: Duration) -> Result<Self> {
        let socket = space.enter(|| {
            let socket = socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
            connect(&socket, &SocketAddrV4::new(target, 0))?;
            Ok(socket)
        })?;
        let progress = Arc::<Progress>::default();
        let ours = progress.clone();
        let thread = std::thread::spawn(move || Run::new(socket, ours).run(interval));
        Ok(Self { progress, thread })
    }

    /// Waits until so many more answers came.
    pub fn wait_answers(&self, count: usize, limit: Duration) -> Result<()> {
        let answered = || self.progress.answered.load(Ordering::Relaxed);
        let enough = answered() + count;
        wait_until("answers to a ping", limit, || Ok((answered() >= enough).then_some(())))
    }

    /// Sends no more, and waits for the last answers.
    pub fn finish(self) -> Result<Vec<Request>> {
        self.progress.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(requests) => requests,
            Err(_) => bail!("the thread of a ping panicked"),
        }
    }
}

struct Run {
    socket: OwnedFd,
    requests: Vec<Request>,
    progress: Arc<Progress>,
}

impl Run {
    fn new(socket: OwnedFd, progress: Arc<Progress>) -> Self {
        Self { socket, requests: Vec::new(), progress }
    }

    fn run(mut self, interval: Duration) -> Result<Vec<Request>> {
        while !self.progress.stop.load(Ordering::Relaxed) {
            self.send()?;
            // Who was kept from running does not make up for it: many at once are more than old programs hold.
            self.receive(Instant::now() + interval, false)?;
        }
        self.receive(Instant::now() + LAST, true)?;
        Ok(self.requests)
    }

    fn send(&mut self) -> Result<()> {
        let number = u32::try_from(self.requests.len()).context("a ping has an end")?;
        let mut packet = vec![ECHO_REQUEST, 0, 0, 0];
        packet.extend(std::process::id().to_be_bytes());
        packet.extend(number.to_be_bytes());
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        self.requests.push(Request { sent: Instant::now(), answer: None });
        match send(&self.socket, &packet, SendFlags::empty()) {
            // No route to it for the moment is a loss, and counted.
            Ok(_) | Err(Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NOBUFS) => Ok(()),
            Err(errno) => Err(errno).context("a ping cannot be sent"),
        }
    }

    /// Receives until `deadline`, or until nothing is left to be waited for.
    fn receive(&mut self, deadline: Instant, last: bool) -> Result<()> {
        loop {
            if last && self.requests.iter().all(|request| request.answer.is_some()) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let limit =
                Timespec { tv_sec: i64::try_from(left.as_secs())?, tv_nsec: left.subsec_nanos().into() };
            poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit))?;
            let mut packet = [0; 128];
            match recv(&self.socket, &mut packet[..], RecvFlags::DONTWAIT) {
                Ok((_, length)) => self.take(&packet[..length.min(packet.len())]),
                Err(Errno::AGAIN) => {}
                Err(errno) if std::io::Error::from(errno).kind() == ErrorKind::HostUnreachable => {}
                Err(errno) => return Err(errno).context("no answer can be received"),
            }
        }
    }

    /// Takes an IP packet, if it is an answer to one of ours.
    fn take(&mut self, packet: &[u8]) {
        let header = packet.first().map_or(0, |first| usize::from(first & 15) * 4);
        let Some(&[ECHO_REPLY, _, _, _, a, b, c, d, e, f, g, h]) = packet.get(header..header + 12) else {
            return;
        };
        if [a, b, c, d] != std::process::id().to_be_bytes() {
            return;
        }
        let number = usize::try_from(u32::from_be_bytes([e, f, g, h])).unwrap_or(usize::MAX);
        if let Some(Request { sent, answer: answer @ None }) = self.requests.get_mut(number) {
            *answer = Some(sent.elapsed());
            self.progress.answered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The Internet's checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(0)
}
