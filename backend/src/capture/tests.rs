use super::*;

use vdeplug::{RxBuf, TxBuf};

/// A packet of the file: interface, direction, lengths, bytes.
type Packet = (u32, u32, usize, Vec<u8>);

fn number(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(bytes.try_into().unwrap())
}

/// Reads a file: the names of its interfaces, and its packets.
fn read(path: &Path) -> (Vec<String>, Vec<Packet>) {
    let bytes = std::fs::read(path).unwrap();
    let (mut rest, mut names, mut packets) = (&bytes[..], Vec::new(), Vec::new());
    while !rest.is_empty() {
        let (kind, len) = (number(&rest[..4]), number(&rest[4..8]) as usize);
        let body = &rest[8..len - 4];
        assert_eq!(number(&rest[len - 4..len]) as usize, len);
        assert_eq!(len % 4, 0);
        match kind {
            INTERFACE => {
                let name = u16::from_ne_bytes(body[10..12].try_into().unwrap());
                names.push(String::from_utf8(body[12..12 + usize::from(name)].to_vec()).unwrap());
            }
            PACKET => {
                let got = number(&body[12..16]) as usize;
                let flags = body.len() - 8;
                let direction = number(&body[flags..flags + 4]);
                let frame = body[20..20 + got].to_vec();
                packets.push((number(&body[..4]), direction, number(&body[16..20]) as usize, frame));
            }
            SECTION => assert_eq!(number(&body[..4]), 0x1a2b_3c4d),
            other => panic!("block {other}"),
        }
        rest = &rest[len..];
    }
    (names, packets)
}

/// Two ends of a cable.
fn cable(dir: &Path) -> [Arc<dyn Link>; 2] {
    let locator = format!("hub://{}", dir.join("hub").display());
    let first = vdeplug::open(&locator, &vdeplug::OpenOptions::default()).unwrap();
    let second = first.another(false).unwrap();
    [first, second]
}

#[test]
fn frames_of_both_ways_are_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c");
    let [near, far] = cable(dir.path());
    let capture = Capture::create(file.clone(), &["a,b".into(), "x".into()]).unwrap();
    let near = capture.tap(1, near);
    let frames = [vec![1; 61], vec![2; 60]];
    assert!(near.send_one(&frames[0]).unwrap());
    assert!(far.send_one(&frames[1]).unwrap());
    let mut room = [0; 2000];
    let rx = [RxBuf::new(&mut room)];
    let mut received = [RxFrame::new(&rx)];
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while near.recv(&mut received).unwrap() == 0 {
        assert!(std::time::Instant::now() < deadline, "the frame does not come");
        std::thread::yield_now();
    }
    let (names, packets) = read(&file);
    assert_eq!(names, ["a,b", "x"]);
    let [out, back] = frames;
    assert_eq!(packets, [(1, 2, 61, out), (1, 1, 60, back)]);
}

#[derive(Debug)]
struct Sink;

impl Receiver for Sink {
    fn deliver(&self, _frames: &[TxFrame<'_>]) {}
}

#[test]
fn delivered_frames_are_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c");
    let capture = Capture::create(file.clone(), &["x".into()]).unwrap();
    let notes = Notes { capture, number: 0 };
    let pieces = [TxBuf::new(&[5; 20]), TxBuf::new(&[6; 40])];
    TappedReceiver { receiver: Arc::new(Sink), notes }.deliver(&[TxFrame::new(&pieces)]);
    assert_eq!(read(&file).1, [(0, 1, 60, [[5; 20].as_slice(), &[6; 40]].concat())]);
}

#[test]
fn a_file_has_one_writer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c");
    let first = Capture::create(path.clone(), &["one".into()]).unwrap();
    let error = Capture::create(path.clone(), &["other".into()]).unwrap_err();
    assert_eq!(error.to_string(), "another capture is being written to it");
    assert_eq!(read(&path).0, ["one"]);
    drop(first);
    Capture::create(path.clone(), &["other".into()]).unwrap();
    assert_eq!(read(&path).0, ["other"]);
}

#[test]
fn full_disk_ends_the_capture_alone() {
    let dir = tempfile::tempdir().unwrap();
    let [near, _far] = cable(dir.path());
    // Takes nothing, as a full disk.
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let capture = Arc::new(Capture { path: "/dev/full".into(), file: Mutex::new(Some((full, 0))) });
    let tapped = capture.tap(0, near);
    assert!(tapped.send_one(&[1; 60]).unwrap(), "the frame goes its way");
    assert!(capture.is_over());
    assert!(tapped.send_one(&[1; 60]).unwrap());
}

#[test]
fn each_nic_has_a_file() {
    let asked = Path::new("/tmp/x.y/all.pcapng");
    assert_eq!(path(asked, 0, 1), asked);
    assert_eq!(path(asked, 1, 2), Path::new("/tmp/x.y/all.nic1.pcapng"));
    assert_eq!(path(Path::new("all"), 0, 2), Path::new("all.nic0"));
}
