//! Captures that begin and end while frames pass.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use qmp::{Client, Error, Event};
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};
use vde_control::{CaptureEnd, CaptureEnded, Ring};
use vhost::VhostBackend;

use crate::control::{Rig, nics, refusal};
use crate::driver::{Driver, VERSION_1};
use crate::pcapng::{Section, read};
use crate::world::{LIMIT, wait_for};

/// A frame that a guest sends, of 60 bytes.
fn frame(number: u8) -> Vec<u8> {
    [[0xff; 6], [2, 0, 0, 0, 0, number]].concat().into_iter().chain([number; 48]).collect()
}

fn start(client: &mut Client, arguments: Value, to: impl AsFd) -> Result<Value, Error> {
    client.execute_with("capture-start", arguments, &[to.as_fd()])
}

/// Waits for the end of a capture: reason, frames, lost.
fn ended(client: &mut Client) -> (CaptureEnd, u64, u64) {
    let event = client.wait_for_event(LIMIT, |event| event.name == "CAPTURE_ENDED").unwrap().unwrap();
    let CaptureEnded { nic, reason, error, frames, lost } = serde_json::from_value(event.data).unwrap();
    assert_eq!((nic.as_str(), error.is_some()), ("nic0", reason == CaptureEnd::Failed));
    (reason, frames, lost)
}

fn content(path: &Path) -> Section {
    read(&std::fs::read(path).unwrap()).unwrap()
}

/// One NIC on a network that nobody else is in, with its driver.
fn rig() -> (Rig, Driver) {
    let rig = Rig::start(&["--socket-path", "DIR/n0", "--link", "null://"]);
    let driver = Driver::connect(&rig.dir.path().join("n0"), VERSION_1, 1);
    (rig, driver)
}

/// Sends a frame and waits until it is gone.
fn send(driver: &mut Driver, number: u8) {
    driver.tx().send(&[0; 12], &frame(number), 2000);
    driver.tx().used();
}

/// One that no process of another test holds open.
fn pipe() -> (OwnedFd, OwnedFd) {
    pipe_with(PipeFlags::CLOEXEC).unwrap()
}

#[test]
fn what_passes_meanwhile_is_in_the_file() {
    let (rig, mut driver) = rig();
    let path = rig.dir.path().join("c");
    let mut client = rig.client();
    send(&mut driver, 1);
    assert!(!nics(&mut client)[0].capturing);
    start(&mut client, json!({ "nic": "nic0" }), File::create(&path).unwrap()).unwrap();
    assert!(nics(&mut client)[0].capturing);
    let second = start(&mut client, json!({ "nic": "nic0" }), File::create("/dev/null").unwrap());
    let sentence = "the frames of nic0 are being captured already; end that capture first";
    assert_eq!(refusal(second), ("GenericError".into(), sentence.into()));
    send(&mut driver, 2);
    send(&mut driver, 3);
    client.execute("capture-stop", json!({ "nic": "nic0" })).unwrap();
    assert_eq!(ended(&mut client), (CaptureEnd::Stopped, 2, 0));
    send(&mut driver, 4);
    assert!(!nics(&mut client)[0].capturing);
    let Section { interfaces, packets, statistics } = content(&path);
    let name = |interface: &crate::pcapng::Interface| (interface.name.clone(), interface.description.clone());
    assert_eq!(interfaces.iter().map(name).collect::<Vec<_>>(), [("null://".into(), "nic0 link0".into())]);
    let seen: Vec<_> = packets.iter().map(|p| (p.interface, p.direction, p.bytes.clone())).collect();
    assert_eq!(seen, [(0, 2, frame(2)), (0, 2, frame(3))]);
    assert!(packets.iter().all(|packet| packet.comment == "from guest via link0"));
    assert_eq!((statistics[0].received, statistics[0].dropped), (2, 0));
    let again = client.execute("capture-stop", json!({ "nic": "nic0" }));
    assert_eq!(refusal(again).1, "the frames of nic0 are not being captured");
}

#[test]
fn bad_requests_start_nothing() {
    let rig =
        Rig::start(&["--socket-path", "DIR/n0", "--link", "null://", "--join", "link=null://,link=null://"]);
    let mut client = rig.client();
    let before = rig.holdings();
    let null = File::create("/dev/null").unwrap();
    let reader = File::open("/dev/null").unwrap();
    let none: &[BorrowedFd<'_>] = &[];
    let cases = [
        (json!({ "nic": "nic0" }), none, "comes with one descriptor, and not with 0"),
        (json!({ "nic": "nic0" }), &[null.as_fd(), null.as_fd()], "and not with 2"),
        (json!({ "nic": "nic0" }), &[reader.as_fd()], "not open for writing"),
        (json!({ "nic": "nic7" }), &[null.as_fd()], "no NIC or join 'nic7'"),
        (json!({ "nic": "join0" }), &[null.as_fd()], "'join0' is a join"),
        (json!({ "nic": "nic0", "link": "link7" }), &[null.as_fd()], "nic0 has no link 'link7'"),
        (json!({ "nic": "nic0", "max-bytes": -1 }), &[null.as_fd()], "arguments of capture-start"),
        (json!({ "nic": "nic0", "bytes": 1 }), &[null.as_fd()], "`bytes`"),
    ];
    for (arguments, descriptors, word) in cases {
        let (_, desc) = refusal(client.execute_with("capture-start", arguments.clone(), descriptors));
        assert!(desc.contains(word), "{arguments}: {desc}");
        assert!(!nics(&mut client)[0].capturing);
    }
    assert_eq!(rig.holdings(), before);
}

#[test]
fn links_are_chosen_by_id_and_by_locator() {
    let (rig, mut driver) = rig();
    let mut client = rig.client();
    for link in ["link0", "null://"] {
        let path = rig.dir.path().join("c");
        let file = File::create(&path).unwrap();
        start(&mut client, json!({ "nic": "nic0", "link": link }), file).unwrap();
        send(&mut driver, 1);
        client.execute("capture-stop", json!({ "nic": "nic0" })).unwrap();
        assert_eq!(ended(&mut client), (CaptureEnd::Stopped, 1, 0));
    }
}

#[test]
fn limits_end_it() {
    let (rig, mut driver) = rig();
    let path = rig.dir.path().join("c");
    let mut client = rig.client();
    start(&mut client, json!({ "nic": "nic0", "max-bytes": 1000 }), File::create(&path).unwrap()).unwrap();
    let (reason, frames, _) = wait_for("the limit", || {
        send(&mut driver, 1);
        (!nics(&mut client)[0].capturing).then(|| ended(&mut client))
    });
    assert_eq!((reason, content(&path).packets.len() as u64), (CaptureEnd::MaxBytes, frames));
    assert!(std::fs::metadata(&path).unwrap().len() <= 1000);
    start(&mut client, json!({ "nic": "nic0", "max-seconds": 1 }), File::create(&path).unwrap()).unwrap();
    assert_eq!(ended(&mut client), (CaptureEnd::MaxSeconds, 0, 0));
    assert_eq!(content(&path).statistics.len(), 1);
}

/// What stops a capture from outside leaves the NIC alone, and nothing behind.
#[test]
fn ends_from_outside_end_the_capture_alone() {
    let (rig, mut driver) = rig();
    let mut client = rig.client();
    let before = rig.holdings();
    // The reader goes.
    let (reader, writer) = pipe();
    start(&mut client, json!({ "nic": "nic0" }), &writer).unwrap();
    drop(writer);
    send(&mut driver, 1);
    drop(reader);
    assert_eq!(ended(&mut client).0, CaptureEnd::ReaderGone);
    // The disk is full.
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    start(&mut client, json!({ "nic": "nic0" }), full).unwrap();
    assert_eq!(ended(&mut client), (CaptureEnd::Failed, 0, 0));
    // Whoever asked for it goes.
    let path = rig.dir.path().join("c");
    let mut other = rig.client();
    start(&mut other, json!({ "nic": "nic0" }), File::create(&path).unwrap()).unwrap();
    send(&mut driver, 2);
    drop(other);
    assert_eq!(ended(&mut client), (CaptureEnd::Stopped, 1, 0));
    assert_eq!(content(&path).statistics.len(), 1);
    send(&mut driver, 3);
    wait_for("all to be closed", || (rig.holdings() == before).then_some(()));
    // The NIC goes.
    start(&mut client, json!({ "nic": "nic0" }), File::create(&path).unwrap()).unwrap();
    send(&mut driver, 4);
    client.execute("nic-del", json!({ "id": "nic0" })).unwrap();
    assert_eq!(ended(&mut client), (CaptureEnd::NicDeleted, 1, 0));
}

/// A reader that sleeps does not hold up the guest, nor the back end's other clients, nor its end.
#[test]
fn sleeping_readers_hold_up_nobody() {
    let (mut rig, mut driver) = rig();
    let mut client = rig.client();
    let (reader, writer) = pipe();
    start(&mut client, json!({ "nic": "nic0" }), &writer).unwrap();
    drop(writer);
    // More than the pipe holds.
    (0..2000).for_each(|_| send(&mut driver, 1));
    assert_eq!(nics(&mut client)[0].links[0].traffic.tx_frames, 2000);
    client.execute("quit", json!({})).unwrap();
    let (reason, frames, lost) = ended(&mut client);
    assert_eq!((reason, frames + lost), (CaptureEnd::Stopped, 2000));
    assert!(lost > 0);
    assert!(client.wait_for_event(LIMIT, |Event { name, .. }| name == "SHUTDOWN").unwrap().is_some());
    wait_for("its end", || rig.backend.child.try_wait().unwrap());
    let mut bytes = Vec::new();
    File::from(reader).read_to_end(&mut bytes).unwrap();
    assert!(!bytes.is_empty());
}

#[test]
fn a_file_of_the_command_line_is_whole_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c");
    let args = ["--socket-path", "DIR/n0", "--link", "null://", "--capture", path.to_str().unwrap()];
    let mut rig = Rig::start(&args);
    let mut driver = Driver::connect(&rig.dir.path().join("n0"), VERSION_1, 1);
    assert!(nics(&mut rig.client())[0].capturing);
    send(&mut driver, 1);
    assert_eq!(rig.backend.terminate(), Some(0));
    let Section { packets, statistics, .. } = content(&path);
    assert_eq!((packets.len(), statistics.len()), (1, 1));
}

#[test]
fn rings_tell_how_full_they_are() {
    let (rig, mut driver) = rig();
    let mut client = rig.client();
    let ring = |waiting| Ring { size: 256, enabled: true, waiting };
    assert_eq!(nics(&mut client)[0].rings, [ring(0), ring(0)]);
    driver.rx().post(5, 2000);
    send(&mut driver, 1);
    assert_eq!(nics(&mut client)[0].rings, [ring(5), ring(0)]);
    driver.frontend.get_vring_base(1).unwrap();
    let stopped = Ring::default();
    assert_eq!(nics(&mut client)[0].rings, [ring(5), stopped]);
}

#[test]
fn links_that_come_later_are_in_the_file() {
    let (rig, mut driver) = rig();
    let path = rig.dir.path().join("c");
    let mut client = rig.client();
    start(&mut client, json!({ "nic": "nic0" }), File::create(&path).unwrap()).unwrap();
    client.execute("link-add", json!({ "nic": "nic0", "locator": "null://" })).unwrap();
    send(&mut driver, 1);
    let replace = json!({ "nic": "nic0", "link": "link1", "locator": "null://" });
    client.execute("link-replace", replace).unwrap();
    client.execute("link-remove", json!({ "nic": "nic0", "link": "link0" })).unwrap();
    send(&mut driver, 2);
    client.execute("capture-stop", json!({ "nic": "nic0" })).unwrap();
    assert_eq!(ended(&mut client), (CaptureEnd::Stopped, 3, 0));
    let Section { interfaces, packets, statistics } = content(&path);
    let names: Vec<_> = interfaces.iter().map(|interface| interface.description.as_str()).collect();
    assert_eq!(names, ["nic0 link0", "nic0 link1", "nic0 link2"]);
    let mut seen: Vec<_> = packets.iter().map(|p| (p.interface, p.bytes[11], p.comment.as_str())).collect();
    seen.sort_unstable();
    let expected =
        [(0, 1, "from guest via link0"), (1, 1, "from guest via link1"), (2, 2, "from guest via link2")];
    assert_eq!(seen, expected);
    assert!(statistics.iter().all(|statistics| (statistics.received, statistics.dropped) == (1, 0)));
}
