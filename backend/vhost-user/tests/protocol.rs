//! One connection, driven by the `vhost` crate's own front end, and by bytes that no front end would send.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use vhost_user::{Connection, Device, Error, StartedRing};
use vmm_sys_util::eventfd::EventFd;
use vring::Direction;

const PROTOCOL_FEATURES: u64 = 1 << 30;
const LOG_ALL: u64 = 1 << 26;
const PACKED: u64 = 1 << 34;
const OFFERED: u64 = 1 << 32 | 1 << 29 | PACKED;
const USER: u64 = 0x7000_0000;

#[derive(Debug, PartialEq, Eq)]
enum Call {
    Start(u16, bool),
    Stop(u16),
    Called(u16, bool),
    Enable(u16, bool),
    Announce([u8; 6]),
}

/// Records what the protocol asks of it; each ring advances by three chains while it runs.
struct Recorder {
    calls: Sender<Call>,
    rings: [Option<StartedRing>; 4],
}

impl Device for Recorder {
    fn features(&self) -> u64 {
        OFFERED
    }
    fn ring_count(&self) -> u16 {
        4
    }
    fn queue_num(&self) -> u16 {
        2
    }
    fn direction(&self, ring: u16) -> Direction {
        if ring.is_multiple_of(2) { Direction::Rx } else { Direction::Tx }
    }
    fn start_ring(&mut self, ring: u16, mut started: StartedRing) {
        started.ring.enable_kicks();
        self.calls.send(Call::Start(ring, started.enabled)).unwrap();
        assert!(self.rings[usize::from(ring)].replace(started).is_none(), "it ran already");
    }
    fn stop_ring(&mut self, ring: u16) -> u16 {
        self.calls.send(Call::Stop(ring)).unwrap();
        let started = self.rings[usize::from(ring)].take().expect("only running rings are stopped");
        started.ring.next_avail() + 3
    }
    fn set_call(&mut self, ring: u16, call: Option<OwnedFd>) {
        self.calls.send(Call::Called(ring, call.is_some())).unwrap();
    }
    fn enable_ring(&mut self, ring: u16, enabled: bool) {
        self.calls.send(Call::Enable(ring, enabled)).unwrap();
    }
    fn announce(&mut self, mac: [u8; 6]) {
        self.calls.send(Call::Announce(mac)).unwrap();
    }
}

struct Peer {
    stream: UnixStream,
    calls: Receiver<Call>,
    server: JoinHandle<Error>,
}

fn serve() -> Peer {
    let (ours, theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    let (sender, calls) = channel();
    let server = std::thread::spawn(move || {
        let mut device = Recorder { calls: sender, rings: [const { None }; 4] };
        let mut connection = Connection::new(ours, "test", &device).unwrap();
        loop {
            let fd = connection.as_fd();
            poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).unwrap();
            if let Err(error) = connection.on_readable(&mut device) {
                connection.close(&mut device);
                assert!(device.rings.iter().all(Option::is_none), "close stops every ring");
                return error;
            }
        }
    });
    Peer { stream: theirs, calls, server }
}

fn memory_file() -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x10000).unwrap();
    file
}

fn region(file: &std::fs::File, guest: u64) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: guest,
        memory_size: 0x10000,
        userspace_addr: USER + guest,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    }
}

fn ring_addresses() -> VringConfigData {
    VringConfigData {
        queue_max_size: 256,
        queue_size: 256,
        flags: 0,
        desc_table_addr: USER,
        used_ring_addr: USER + 0x2000,
        avail_ring_addr: USER + 0x1000,
        log_addr: None,
    }
}

fn negotiated(peer: &Peer) -> Frontend {
    let mut frontend = Frontend::from_stream(peer.stream.try_clone().unwrap(), 4);
    assert_eq!(frontend.get_features().unwrap(), OFFERED | PROTOCOL_FEATURES | LOG_ALL);
    let protocol = frontend.get_protocol_features().unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK));
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_owner().unwrap();
    frontend.set_features(OFFERED & !PACKED | PROTOCOL_FEATURES).unwrap();
    frontend
}

fn start(frontend: &mut Frontend, ring: usize) {
    frontend.set_vring_num(ring, 256).unwrap();
    frontend.set_vring_base(ring, 10).unwrap();
    frontend.set_vring_addr(ring, &ring_addresses()).unwrap();
    frontend.set_vring_call(ring, &EventFd::new(0).unwrap()).unwrap();
    frontend.set_vring_kick(ring, &EventFd::new(0).unwrap()).unwrap();
}

#[test]
fn ring_runs_from_kick_to_get_base() {
    let peer = serve();
    let mut frontend = negotiated(&peer);
    assert_eq!(frontend.get_queue_num().unwrap(), 2);
    frontend.set_mem_table(&[region(&memory_file(), 0)]).unwrap();
    start(&mut frontend, 0);
    assert_eq!(peer.calls.recv().unwrap(), Call::Start(0, false));
    frontend.set_vring_call(0, &EventFd::new(0).unwrap()).unwrap();
    assert_eq!(peer.calls.recv().unwrap(), Call::Called(0, true), "QEMU sets it after the start");
    frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(peer.calls.recv().unwrap(), Call::Enable(0, true));
    assert_eq!(frontend.get_vring_base(0).unwrap(), 13);
    assert_eq!(peer.calls.recv().unwrap(), Call::Stop(0));
    assert_eq!(frontend.get_vring_base(0).unwrap(), 13, "of a stopped ring too");
    drop((frontend, peer.stream));
    assert!(matches!(peer.server.join().unwrap(), Error::Closed));
    assert!(peer.calls.try_recv().is_err());
}

#[test]
fn memory_change_restarts_running_rings_where_they_were() {
    let peer = serve();
    let mut frontend = negotiated(&peer);
    let (first, second) = (memory_file(), memory_file());
    frontend.add_mem_region(&region(&first, 0)).unwrap();
    start(&mut frontend, 1);
    assert_eq!(peer.calls.recv().unwrap(), Call::Start(1, false));
    frontend.add_mem_region(&region(&second, 0x10_0000)).unwrap();
    assert_eq!(peer.calls.recv().unwrap(), Call::Stop(1));
    assert_eq!(peer.calls.recv().unwrap(), Call::Start(1, false));
    frontend.remove_mem_region(&region(&second, 0x10_0000)).unwrap();
    assert_eq!(frontend.get_vring_base(1).unwrap(), 10 + 3 * 3);
    assert_eq!(frontend.get_max_mem_slots().unwrap(), 509);
    drop((frontend, peer.stream));
    peer.server.join().unwrap();
}

/// As QEMU 7.2 does: each queue pair tells of all regions.
#[test]
fn regions_may_come_and_go_once_for_each_queue_pair() {
    let peer = serve();
    let mut frontend = negotiated(&peer);
    let (first, second) = (memory_file(), memory_file());
    for _ in 0..2 {
        frontend.add_mem_region(&region(&first, 0)).unwrap();
        frontend.add_mem_region(&region(&second, 0x10_0000)).unwrap();
    }
    let moved = VhostUserMemoryRegionInfo { userspace_addr: USER, ..region(&second, 0x10_0000) };
    assert!(frontend.add_mem_region(&moved).is_err(), "another one in its place");
    for _ in 0..2 {
        frontend.remove_mem_region(&region(&second, 0x10_0000)).unwrap();
    }
    start(&mut frontend, 0);
    assert_eq!(peer.calls.recv().unwrap(), Call::Start(0, false), "the first one is still there");
    drop((frontend, peer.stream));
    peer.server.join().unwrap();
}

#[test]
fn ring_whose_memory_is_taken_away_and_given_again_goes_on() {
    let peer = serve();
    let mut frontend = negotiated(&peer);
    let file = memory_file();
    frontend.add_mem_region(&region(&file, 0)).unwrap();
    start(&mut frontend, 0);
    assert_eq!(peer.calls.recv().unwrap(), Call::Start(0, false));
    frontend.remove_mem_region(&region(&file, 0)).unwrap();
    assert_eq!(peer.calls.recv().unwrap(), Call::Stop(0));
    frontend.set_vring_enable(0, true).unwrap();
    frontend.add_mem_region(&region(&file, 0)).unwrap();
    assert_eq!(peer.calls.recv().unwrap(), Call::Start(0, true));
    drop((frontend, peer.stream));
    peer.server.join().unwrap();
}

#[test]
fn files_are_no_notification_descriptors() {
    use std::os::fd::{FromRawFd, IntoRawFd};
    let peer = serve();
    let mut frontend = negotiated(&peer);
    frontend.set_mem_table(&[region(&memory_file(), 0)]).unwrap();
    start(&mut frontend, 0);
    // SAFETY: the descriptor is the file's own, given up by it.
    let file = unsafe { EventFd::from_raw_fd(memory_file().into_raw_fd()) };
    assert!(frontend.set_vring_call(0, &file).is_err());
    assert!(frontend.set_vring_kick(0, &file).is_err());
}

#[test]
fn wrong_requests_are_refused_and_the_connection_lives() {
    let peer = serve();
    let mut frontend = negotiated(&peer);
    assert!(frontend.set_vring_num(3, 255).is_err());
    assert!(frontend.set_features(OFFERED | 1 << 50 | PROTOCOL_FEATURES).is_err());
    assert!(frontend.set_vring_kick(0, &EventFd::new(0).unwrap()).is_err(), "no address yet");
    let short = memory_file();
    short.set_len(0x1000).unwrap();
    assert!(frontend.set_mem_table(&[region(&short, 0)]).is_err());
    let file = memory_file();
    assert!(frontend.set_mem_table(&[region(&file, 0), region(&file, 0x8000)]).is_err(), "overlap");
    frontend.set_mem_table(&[region(&file, 0x10_0000), region(&file, 0)]).unwrap();
    assert!(frontend.remove_mem_region(&region(&file, 0x4000)).is_err());
    assert_eq!(frontend.get_queue_num().unwrap(), 2);
    drop((frontend, peer.stream));
    assert!(matches!(peer.server.join().unwrap(), Error::Closed));
}

#[test]
fn base_of_a_packed_ring_has_two_halves() {
    let mut peer = serve();
    let mut frontend = negotiated(&peer);
    assert!(frontend.set_vring_base(0, 0x8003).is_ok());
    let wide = message(10, 1 | 8, &[0, 0, 0, 0, 3, 0x80, 3, 0x80]);
    peer.stream.write_all(&wide).unwrap();
    let mut reply = [0; 20];
    peer.stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[12..], 1u64.to_ne_bytes(), "a split ring's index has 16 bits");
    frontend.set_features(OFFERED | PROTOCOL_FEATURES).unwrap();
    // DPDK's virtio-user leaves the upper half 0.
    for upper in [[3, 0x80], [0, 0]] {
        peer.stream.write_all(&message(10, 1, &[0, 0, 0, 0, 3, 0x80, upper[0], upper[1]])).unwrap();
        assert_eq!(frontend.get_vring_base(0).unwrap(), 0x8003_8003);
    }
    frontend.set_mem_table(&[region(&memory_file(), 0)]).unwrap();
    start(&mut frontend, 2);
    assert_eq!(peer.calls.recv().unwrap(), Call::Start(2, false));
    assert_eq!(frontend.get_vring_base(2).unwrap(), 13 << 16 | 13);
}

#[test]
fn writes_are_logged_while_all_of_it_is_asked_for() {
    let peer = serve();
    let mut frontend = negotiated(&peer);
    let (memory, log) = (memory_file(), memory_file());
    frontend.set_mem_table(&[region(&memory, 0)]).unwrap();
    let logged = |what: &str, expected: u8| {
        let mut byte = [0];
        log.read_exact_at(&mut byte, 0).unwrap();
        log.write_all_at(&[0], 0).unwrap();
        assert_eq!(byte[0], expected, "{what}");
    };
    start(&mut frontend, 0);
    logged("no log", 0);
    let area = VhostUserDirtyLogRegion { mmap_size: 4096, mmap_offset: 0, mmap_handle: log.as_raw_fd() };
    frontend.set_log_base(0, Some(area)).unwrap();
    logged("a log, but not asked for", 0);
    frontend.set_features(OFFERED & !PACKED | PROTOCOL_FEATURES | LOG_ALL).unwrap();
    // The recorder asks a ring for kicks whenever it gets one, which writes to the used ring.
    logged("buffers alone", 0);
    frontend.set_vring_addr(0, &VringConfigData { flags: 1, log_addr: Some(0), ..ring_addresses() }).unwrap();
    logged("the used ring", 0b100);
    frontend.add_mem_region(&region(&memory_file(), 0x10_0000)).unwrap();
    logged("after a change of the memory table", 0b100);
    frontend.set_features(OFFERED & !PACKED | PROTOCOL_FEATURES).unwrap();
    logged("no more", 0);
}

#[test]
fn device_is_reset_to_what_the_connection_began_with() {
    let peer = serve();
    let mut frontend = negotiated(&peer);
    frontend.set_mem_table(&[region(&memory_file(), 0)]).unwrap();
    start(&mut frontend, 0);
    frontend.set_vring_enable(0, true).unwrap();
    frontend.reset_device().unwrap();
    assert_eq!(frontend.get_vring_base(0).unwrap(), 0);
    let calls: Vec<Call> = peer.calls.try_iter().collect();
    assert_eq!(calls, [Call::Start(0, false), Call::Enable(0, true), Call::Stop(0)]);
    frontend.set_features(OFFERED & !PACKED | PROTOCOL_FEATURES).unwrap();
    start(&mut frontend, 0);
    assert_eq!(peer.calls.recv().unwrap(), Call::Start(0, false), "the memory is still there");
}

#[test]
fn guest_is_announced_and_its_mtu_checked() {
    let mut peer = serve();
    let frontend = negotiated(&peer);
    for (request, value, answer) in
        [(19u32, 0x0605_0403_0201u64, 0u64), (20, 67, 1), (20, 68, 0), (20, 65535, 0), (20, 65536, 1)]
    {
        peer.stream.write_all(&message(request, 1 | 8, &value.to_le_bytes())).unwrap();
        let mut reply = [0; 20];
        peer.stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[12..], answer.to_ne_bytes(), "{request} {value:#x}");
    }
    assert_eq!(peer.calls.recv().unwrap(), Call::Announce([1, 2, 3, 4, 5, 6]));
    drop(frontend);
}

fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap();
    let mut bytes: Vec<u8> = [request, flags, size].iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(body);
    bytes
}

#[test]
fn enable_is_answered_before_any_features() {
    // What QEMU's NIC does at device creation, and what the stock handlers refuse.
    let mut peer = serve();
    peer.stream.write_all(&message(16, 1, &8u64.to_ne_bytes())).unwrap(); // SET_PROTOCOL_FEATURES: REPLY_ACK
    peer.stream.write_all(&message(18, 1 | 8, &[0, 0, 0, 0, 1, 0, 0, 0])).unwrap();
    let mut reply = [0; 20];
    peer.stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..], message(18, 1 | 4, &0u64.to_ne_bytes()));
}

#[test]
fn messages_may_come_byte_by_byte() {
    let mut peer = serve();
    for byte in message(1, 1, &[]) {
        peer.stream.write_all(&[byte]).unwrap();
        std::thread::yield_now();
    }
    let mut reply = [0; 20];
    peer.stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[12..], (OFFERED | PROTOCOL_FEATURES | LOG_ALL).to_ne_bytes());
}

#[test]
fn broken_messages_end_the_connection() {
    let cases: [(&str, Vec<u8>); 9] = [
        ("version", message(1, 2, &[])),
        ("reply", message(1, 1 | 4, &[])),
        ("endless body", [1u32, 1, u32::MAX].iter().flat_map(|w| w.to_ne_bytes()).collect()),
        ("unknown request", message(4711, 1, &[])),
        ("not offered", message(24, 1, &[0; 12])),
        ("short body", message(8, 1, &[0; 4])),
        ("no such ring", message(8, 1, &[4, 0, 0, 0, 0, 1, 0, 0])),
        ("regions without descriptors", message(5, 1, &[1, 0, 0, 0, 0, 0, 0, 0])),
        ("kick without descriptor", message(12, 1, &(1u64 << 8).to_ne_bytes())),
    ];
    for (what, bytes) in cases {
        let mut peer = serve();
        peer.stream.write_all(&bytes).unwrap();
        let error = peer.server.join().unwrap();
        assert!(matches!(error, Error::Protocol(_)), "{what}: {error}");
    }
}

#[test]
fn a_peer_that_stops_in_the_middle_is_just_gone() {
    let mut peer = serve();
    peer.stream.write_all(&message(8, 1, &[0; 8])[..15]).unwrap();
    drop(peer.stream);
    assert!(matches!(peer.server.join().unwrap(), Error::Closed));
}
