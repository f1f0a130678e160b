use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use vdeplug::{Header, TxBuf, TxFrame};

use super::*;

#[path = "../../tests/it/pcapng.rs"]
mod pcapng_reader;
use pcapng_reader::{Packet, Section, Statistics, read};

const LIMIT: Duration = Duration::from_secs(20);

fn name(id: &str) -> Name {
    Name { id: id.into(), locator: format!("vde:///{id}") }
}

/// An order for all frames of link `a`, and of whatever comes later.
fn order(to: impl Into<OwnedFd>) -> Order {
    Order {
        to: to.into(),
        resumes: false,
        links: vec![name("a")],
        only: None,
        max_bytes: None,
        max_time: None,
    }
}

fn start(recorder: &mut Recorder, order: Order) -> Receiver<CaptureEnded> {
    let (tell, hear) = channel();
    recorder.start(order, Box::new(move |ended| tell.send(ended).unwrap())).unwrap();
    hear
}

fn note(recorder: &Recorder, link: &str, way: Way, len: usize) {
    let bytes = vec![len.to_le_bytes()[0]; len];
    recorder.tap().note(way, &name(link), &[TxFrame::new(&[TxBuf::new(&bytes)])]);
}

fn ended(hear: &Receiver<CaptureEnded>) -> (CaptureEnd, u64, u64) {
    let CaptureEnded { nic, reason, error, frames, lost } = hear.recv_timeout(LIMIT).unwrap();
    assert_eq!((nic.as_str(), error.is_some()), ("net0", reason == CaptureEnd::Failed));
    (reason, frames, lost)
}

fn until(what: &str, mut seen: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !seen() {
        assert!(Instant::now() < deadline, "waited {LIMIT:?} for {what}");
        std::thread::yield_now();
    }
}

fn content(path: &Path) -> Section {
    read(&std::fs::read(path).unwrap()).unwrap()
}

fn pipe() -> [File; 2] {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map(|(read, write)| [read.into(), write.into()])
        .unwrap()
}

#[test]
fn frames_of_both_ways_and_of_later_links_are_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c");
    let mut recorder = Recorder::new("net0");
    note(&recorder, "a", Way::Inbound, 99);
    assert!(!recorder.is_on());
    let hear = start(&mut recorder, order(File::create(&path).unwrap()));
    assert!(recorder.is_on());
    note(&recorder, "a", Way::Outbound, 61);
    // Written while the capture goes on.
    until("the frame", || read(&std::fs::read(&path).unwrap()).is_some_and(|file| file.packets.len() == 1));
    let big = Header { gso_type: 1, flags: 1, gso_size: 1448, ..Header::NONE };
    let pieces = [TxBuf::new(&[5; 20]), TxBuf::new(&[6; 40])];
    let frames =
        [big, Header { gso_type: 0, ..big }].map(|header| TxFrame { header, ..TxFrame::new(&pieces) });
    recorder.tap().note(Way::Inbound, &name("b"), &frames);
    recorder.stop(CaptureEnd::Stopped);
    assert_eq!(ended(&hear), (CaptureEnd::Stopped, 3, 0));
    assert!(!recorder.is_on());
    note(&recorder, "a", Way::Inbound, 99);
    let Section { interfaces, packets, statistics } = content(&path);
    let interfaces: Vec<_> = interfaces.into_iter().map(|i| (i.name, i.description)).collect();
    let named = |id: &str| (format!("vde:///{id}"), format!("net0 {id}"));
    assert_eq!(interfaces, [named("a"), named("b")]);
    let packet = |interface, direction, bytes: &[u8], comment: &str| Packet {
        interface,
        direction,
        len: bytes.len(),
        bytes: bytes.to_vec(),
        comment: comment.into(),
    };
    let joined = [[5; 20].as_slice(), &[6; 40]].concat();
    let expected = [
        packet(0, 2, &[61; 61], "from guest via a"),
        packet(1, 1, &joined, "to guest via b, left to be cut into segments of 1448 bytes"),
        packet(1, 1, &joined, "to guest via b, checksum left to be completed"),
    ];
    assert_eq!(packets, expected);
    let count = |interface, received| Statistics { interface, received, dropped: 0 };
    assert_eq!(statistics, [count(0, 1), count(1, 2)]);
}

#[test]
fn one_link_may_be_meant_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c");
    let mut recorder = Recorder::new("net0");
    let links = vec![name("a"), name("b")];
    let to = File::create(&path).unwrap();
    let hear = start(&mut recorder, Order { links, only: Some("b".into()), ..order(to) });
    ["a", "b", "c"].iter().for_each(|link| note(&recorder, link, Way::Inbound, 60));
    recorder.finish();
    assert_eq!(ended(&hear), (CaptureEnd::Stopped, 1, 0));
    let Section { interfaces, packets, .. } = content(&path);
    assert_eq!((interfaces.len(), interfaces[0].name.as_str(), packets.len()), (1, "vde:///b", 1));
}

#[test]
fn one_capture_at_a_time() {
    let mut recorder = Recorder::new("net0");
    let [reader, writer] = pipe();
    let hear = start(&mut recorder, order(writer));
    let refused = recorder.start(order(tempfile::tempfile().unwrap()), Box::new(|_| {})).unwrap_err();
    assert_eq!(refused.to_string(), "the frames of net0 are being captured already; end that capture first");
    drop(reader);
    // Without a frame that could not be written.
    assert_eq!(ended(&hear), (CaptureEnd::ReaderGone, 0, 0));
    let hear = start(&mut recorder, order(tempfile::tempfile().unwrap()));
    drop(recorder);
    assert_eq!(ended(&hear), (CaptureEnd::NicDeleted, 0, 0));
}

#[test]
fn what_cannot_be_written_to_is_refused() {
    let mut recorder = Recorder::new("net0");
    let [reader, _writer] = pipe();
    for to in [reader, File::open("/dev/null").unwrap()] {
        let refused = recorder.start(order(to), Box::new(|_| {})).unwrap_err();
        assert!(
            matches!(&refused, StartError::System(cause) if cause.to_string() == "it is not open for writing")
        );
        assert!(!recorder.is_on());
    }
}

#[test]
fn limits_end_it_within_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c");
    for max_bytes in [0, 100, 500, 1000, 1001, 1002, 1003, 5000] {
        let mut recorder = Recorder::new("net0");
        let to = File::create(&path).unwrap();
        let hear = start(&mut recorder, Order { max_bytes: Some(max_bytes), ..order(to) });
        until("the limit", || {
            note(&recorder, "a", Way::Outbound, 60);
            !recorder.is_on()
        });
        let (reason, frames, lost) = ended(&hear);
        assert_eq!((reason, lost), (CaptureEnd::MaxBytes, 0));
        let len = std::fs::metadata(&path).unwrap().len();
        assert!(len <= max_bytes, "{len} bytes of {max_bytes}");
        // No more than a frame is missing.
        assert!(max_bytes < 500 || len + 150 > max_bytes, "{len} bytes of {max_bytes}");
        let Section { packets, statistics, interfaces } = content(&path);
        assert_eq!((packets.len() as u64, statistics.len()), (frames, interfaces.len()));
    }
    let mut recorder = Recorder::new("net0");
    let max_time = Some(Duration::from_millis(50));
    let hear = start(&mut recorder, Order { max_time, ..order(File::create(&path).unwrap()) });
    assert_eq!(ended(&hear), (CaptureEnd::MaxSeconds, 0, 0));
    assert_eq!(content(&path).statistics.len(), 1);
}

/// A reader that does not read costs frames, and nobody's time.
#[test]
fn slow_readers_lose_frames() {
    let (near, far) = UnixStream::pair().unwrap();
    let [reader, writer] = pipe();
    let ends: [(OwnedFd, File); 2] = [(writer.into(), reader), (near.into(), File::from(OwnedFd::from(far)))];
    for (to, mut from) in ends {
        let mut recorder = Recorder::new("net0");
        let hear = start(&mut recorder, order(to));
        let began = Instant::now();
        (0..1000).for_each(|_| note(&recorder, "a", Way::Outbound, 60_000));
        assert!(began.elapsed() < LIMIT);
        // From now on it reads, so the end of the file comes.
        let reader = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            read(&bytes).unwrap()
        });
        recorder.stop(CaptureEnd::Stopped);
        let (reason, frames, lost) = ended(&hear);
        let Section { packets, statistics, .. } = reader.join().unwrap();
        assert_eq!((reason, packets.len() as u64, frames + lost), (CaptureEnd::Stopped, frames, 1000));
        assert!(lost > 0);
        assert_eq!(statistics, [Statistics { interface: 0, received: 1000, dropped: lost }]);
    }
}

/// Whoever stopped reading does not keep the capture from its end.
#[test]
fn stuck_readers_are_given_up() {
    let [_reader, writer] = pipe();
    let mut recorder = Recorder::new("net0");
    let hear = start(&mut recorder, order(writer));
    (0..10).for_each(|_| note(&recorder, "a", Way::Outbound, 60_000));
    recorder.finish();
    let (reason, frames, lost) = ended(&hear);
    assert_eq!((reason, frames + lost), (CaptureEnd::Stopped, 10));
    assert!(lost > 0);
}

#[test]
fn full_disk_ends_the_capture_alone() {
    let mut recorder = Recorder::new("net0");
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let hear = start(&mut recorder, order(full));
    let (reason, frames, _) = ended(&hear);
    assert_eq!((reason, frames), (CaptureEnd::Failed, 0));
    note(&recorder, "a", Way::Outbound, 60);
}

/// A file that cannot grow ends with its last whole block.
#[test]
fn a_file_that_cannot_grow_stays_whole() {
    const ROOM: u64 = 64 << 10;
    // A file in memory whose size is sealed is a disk that is full.
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(rustix::fs::memfd_create("full", flags).unwrap());
    file.set_len(ROOM).unwrap();
    rustix::fs::fcntl_add_seals(&file, rustix::fs::SealFlags::GROW).unwrap();
    let mut recorder = Recorder::new("net0");
    // Something is there already, as when a shell appends.
    file.write_all(&[7; 1000]).unwrap();
    let hear = start(&mut recorder, order(file.as_fd().try_clone_to_owned().unwrap()));
    until("the end of the room", || {
        note(&recorder, "a", Way::Outbound, 1000);
        !recorder.is_on()
    });
    let (reason, frames, _) = ended(&hear);
    assert_eq!(reason, CaptureEnd::Failed);
    let len = file.metadata().unwrap().len();
    assert!(len < ROOM && len + 2000 > ROOM, "{len} bytes");
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert_eq!(bytes[..1000], [7; 1000]);
    assert_eq!(read(&bytes[1000..]).unwrap().packets.len() as u64, frames);
}

#[test]
fn each_nic_has_a_file() {
    let asked = Path::new("/tmp/x.y/all.pcapng");
    assert_eq!(path(asked, 0, 1), asked);
    assert_eq!(path(asked, 1, 2), Path::new("/tmp/x.y/all.nic1.pcapng"));
    assert_eq!(path(Path::new("all"), 0, 2), Path::new("all.nic0"));
}
