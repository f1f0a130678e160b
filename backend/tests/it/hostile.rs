//! A virtual machine that does whatever it can against the process that serves it and against its neighbours: its rings
//! hold anything, and its front end says anything at any time. The neighbours notice nothing, and nothing is left of it.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::net::{RecvFlags, recv};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::driver::{
    CSUM, Driver, EVENT_IDX, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, INDIRECT, MEMORY, MRG_RXBUF, PACKED, Queue,
    SIZE, USER, VERSION_1,
};
use crate::shared::{MODERN, frame};
use crate::world::{Backend, LIMIT, wait_for};

/// How long an attack lasts.
const ATTACK: Duration = Duration::from_secs(2);
/// By how much the process may grow: what two queues may hold back, and buffers that are touched late.
const GROWTH_KIB: u64 = 24 << 10;

/// A number out of `/proc/PID/status`.
fn status(backend: &Backend, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", backend.child.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(backend: &Backend) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", backend.child.id())).unwrap().count()
}

fn features(rng: &mut Rng) -> u64 {
    let all =
        [EVENT_IDX, INDIRECT, MRG_RXBUF, PACKED, CSUM, CSUM | HOST_TSO4, GUEST_CSUM, GUEST_CSUM | GUEST_TSO4];
    all.iter().filter(|_| rng.bool()).fold(VERSION_1, |bits, more| bits | more)
}

/// Writes into a ring what a driver might, and what none would, and kicks.
fn spoil(queue: &mut Queue, rng: &mut Rng) {
    for _ in 0..rng.u8(1..40) {
        let addr = if rng.u8(..) < 8 { rng.u64(..) } else { rng.u64(..MEMORY) & !15 };
        let len = rng.choice([0u32, 1, 12, 13, 32, 74, 1526, 4096, 65562, u32::MAX]).unwrap();
        // In a packed ring these two are the id and the flags.
        let (flags, next) = (rng.u16(..8), rng.u16(..SIZE) | rng.choice([0, 0x80, 0x8000, 0x8080]).unwrap());
        let (flags, next) =
            if rng.bool() { (flags, next & 0xff) } else { (next & 0xff, flags | next & 0x8080) };
        queue.descriptor(None, rng.u16(..SIZE), addr, len, flags, next);
    }
    match rng.u8(..12) {
        // The available index, or the event suppression of a packed ring, and then the other's wishes.
        0 => queue.write(queue.base + 0x2000, &rng.u32(..).to_le_bytes()),
        1 => queue.write(queue.base + 0x2004 + 2 * u64::from(SIZE), &rng.u16(..).to_le_bytes()),
        2 => queue.write(rng.u64(..MEMORY - 64), &std::array::from_fn::<u8, 64, _>(|_| rng.u8(..))),
        _ => (0..rng.u16(1..SIZE)).for_each(|_| queue.offer(rng.u16(..SIZE + 2))),
    }
    queue.kick();
}

/// Says something to the back end. False: it does not listen any more.
fn say(stream: &UnixStream, rng: &mut Rng, fds: &[RawFd]) -> bool {
    let ring = u64::from(rng.u8(..3));
    let address = |rng: &mut Rng| (USER + rng.u64(..MEMORY + 0x1000)) & !15;
    let body: Vec<u64> = match rng.u8(..6) {
        0 => vec![ring | rng.u64(..) & 0x0001_8003_0000_0000],
        1 => vec![ring],
        2 => vec![ring | u64::from(rng.u8(..2)) << 32, address(rng), address(rng), address(rng), 0],
        3 => {
            vec![rng.choice([1, 128, 4096, 1 << 46, u64::MAX]).unwrap(), rng.choice([0, 8, 1 << 40]).unwrap()]
        }
        4 => vec![features(rng) | rng.choice([0, 1 << 26, 1 << 30]).unwrap()],
        _ => (0..rng.u8(..6)).map(|_| rng.u64(..)).collect(),
    };
    // Half of the time one of those that matter to a running ring.
    let request = if rng.bool() { rng.u32(2..=41) } else { rng.u32(8..=19) };
    let flags = 1 | u32::from(rng.u8(..)) & 8;
    let size = u32::try_from(8 * body.len()).unwrap();
    let mut bytes: Vec<u8> = [request, flags, size].iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend(body.iter().flat_map(|word| word.to_ne_bytes()));
    let count = if rng.bool() { 0 } else { rng.usize(..3) };
    let start = rng.usize(..fds.len() - 2);
    let sent = stream.send_with_fds(&[&bytes[..]], &fds[start..start + count]);
    while recv(stream, &mut [0u8; 4096], RecvFlags::DONTWAIT).is_ok_and(|(got, _)| got > 0) {}
    sent.is_ok()
}

/// Attacks until it is told to stop; returns how often it came.
fn attack(socket: &Path, seed: u64, over: &AtomicBool, talk: bool) -> usize {
    let mut rng = Rng::with_seed(seed);
    let mut visits = 0;
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x2000).unwrap();
    while !over.load(Ordering::Relaxed) {
        let mut driver = Driver::connect(socket, features(&mut rng), 1);
        visits += 1;
        let stream = driver.connection.try_clone().unwrap();
        let event = |queue: &Queue| [queue.kick.as_raw_fd(), queue.call.as_raw_fd()];
        let mut fds: Vec<_> = driver.queues.iter().flat_map(event).collect();
        fds.push(file.as_raw_fd());
        for _ in 0..rng.usize(1..200) {
            let queue = rng.usize(..2);
            spoil(&mut driver.queues[queue], &mut rng);
            if over.load(Ordering::Relaxed) || talk && rng.u8(..) < 64 && !say(&stream, &mut rng, &fds) {
                break;
            }
        }
    }
    visits
}

/// Sends a frame from one to the other and to everybody, the attacker among them, whose own frames come in between.
fn pass(nics: &mut [Driver]) -> bool {
    let mut bytes = frame(2, 1);
    bytes[0] = 3;
    nics[0].tx().send(&[0; 12], &bytes, 2000);
    nics[0].tx().used();
    let rx = nics[1].rx();
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        let at = rx.post(1, 0x1_1000)[0];
        rx.kick();
        let (_, len) = rx.used();
        if rx.bytes(at, len as usize)[12..] == bytes {
            return true;
        }
    }
    false
}

/// Ends the attack, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Two neighbours talk while a third NIC of their network attacks.
fn neighbours_talk(scheme: &str, seed: u64, talk: bool) {
    let dir = tempfile::tempdir().unwrap();
    let sockets: Vec<_> = (0..3).map(|nic| dir.path().join(format!("n{nic}"))).collect();
    let nic = |socket: &std::path::PathBuf| {
        format!("socket-path={},link={scheme}://{}", socket.display(), dir.path().join("net").display())
    };
    let args: Vec<_> = sockets.iter().flat_map(|socket| ["--nic".into(), nic(socket)]).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut backend = Backend::start(&args, sockets.last().unwrap());
    let mut log = backend.child.stderr.take().unwrap();
    let log = std::thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut log, &mut text).map(|_| text)
    });
    let mut nics: Vec<_> = sockets[..2].iter().map(|socket| Driver::connect(socket, MODERN, 1)).collect();
    let before = (status(&backend, "Threads"), descriptors(&backend));
    let memory = status(&backend, "RssAnon");
    let over = AtomicBool::new(false);
    let mut passed = 0;
    let visits = std::thread::scope(|scope| {
        let attack = scope.spawn(|| attack(&sockets[2], seed, &over, talk));
        let end = Over(&over);
        let start = Instant::now();
        while start.elapsed() < ATTACK && !attack.is_finished() {
            if !pass(&mut nics) {
                break;
            }
            passed += 1;
        }
        let lasted = start.elapsed();
        drop(end);
        let visits = attack.join().unwrap();
        assert!(lasted >= ATTACK, "frame {passed} did not pass");
        visits
    });
    assert!(visits > 0 && passed > 0);
    let grown = status(&backend, "RssAnon").saturating_sub(memory);
    assert!(grown < GROWTH_KIB, "the process grew by {grown} KiB");
    wait_for("everything of the attacker to go", || {
        ((status(&backend, "Threads"), descriptors(&backend)) == before).then_some(())
    });
    assert_eq!(backend.terminate(), Some(0));
    let text = log.join().unwrap().unwrap();
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn neighbours_of_a_hostile_guest_talk_on() {
    neighbours_talk("switch", 13, false);
}

#[test]
fn neighbours_of_a_hostile_front_end_talk_on() {
    neighbours_talk("hub", 23, true);
}

#[test]
fn refusals_without_end_do_not_fill_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("n0");
    let mut backend =
        Backend::start(&["--socket-path", socket.to_str().unwrap(), "--link", "null://"], &socket);
    let driver = Driver::connect(&socket, VERSION_1, 1);
    // An unknown request that wants a reply, and a ring that there is none of.
    let unknown = [999u32, 9, 0].map(u32::to_ne_bytes).concat();
    let no_ring = [18u32, 9, 8, 77, 1].map(u32::to_ne_bytes).concat();
    for _ in 0..500 {
        for request in [&unknown, &no_ring] {
            (&driver.connection).write_all(request).unwrap();
            let mut reply = [0; 20];
            (&driver.connection).read_exact(&mut reply).unwrap();
            assert_eq!(reply[12..], 1u64.to_ne_bytes());
        }
    }
    assert_eq!(backend.terminate(), Some(0));
    let lines = backend.stderr().lines().count();
    assert!((1..40).contains(&lines), "{lines} lines");
}

#[test]
fn visits_without_end_do_not_fill_the_log() {
    const VISITS: u32 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("n0");
    let args = ["--socket-path", socket.to_str().unwrap(), "--link", "null://", "--log-level", "info"];
    let mut backend = Backend::start(&args, &socket);
    let mut stderr = backend.child.stderr.take().unwrap();
    let log = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).map(|_| text)
    });
    let begin = Instant::now();
    for _ in 0..VISITS {
        let mut visit = UnixStream::connect(&socket).unwrap();
        visit.write_all(&[0xff; 12]).unwrap();
        // Until it is thrown out.
        let _ = visit.read(&mut [0; 64]);
    }
    let seconds = begin.elapsed().as_secs();
    assert_eq!(backend.terminate(), Some(0));
    let text = log.join().unwrap().unwrap();
    let lines = u64::try_from(text.lines().count()).unwrap();
    // Two for each visit; one more in a second, and one that says how many were left out.
    assert!((1000..=1010 + 2 * seconds).contains(&lines), "{lines} lines in {seconds} s");
    assert!(text.contains("front end connected") && text.contains("front end disconnected"), "{text}");
}
