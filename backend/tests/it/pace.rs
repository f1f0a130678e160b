//! When a worker works, when it sleeps, and how long a full link may stop it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::driver::{Driver, EVENT_IDX, Queue, VERSION_1};
use crate::world::{Backend, Switch, wait_for};

/// A frame with its number in the sender's address, behind the header.
fn numbered(number: u16, len: usize) -> Vec<u8> {
    let [high, low] = number.to_be_bytes();
    let mut bytes = [&[0; 12][..], &[0xff; 6], &[0x52, 0x54, 0, 0, high, low, 0x88, 0xb5]].concat();
    bytes.resize(12 + len, 0x5a);
    bytes
}

/// Offers such a frame and does not kick.
fn offer(tx: &mut Queue, number: u16, len: usize) {
    let at = tx.buffer(1012);
    tx.send_at(at, &numbered(number, len), number % 256);
}

/// What the first queue pair's thread cost so far: how often it went to sleep, and its time in hundredths of a second.
fn cost(backend: &Backend) -> (u64, u64) {
    let tasks = fs::read_dir(format!("/proc/{}/task", backend.child.id())).unwrap();
    let mut paths = tasks.map(|task| task.unwrap().path());
    let is_worker = |path: &Path| fs::read_to_string(path.join("comm")).unwrap().trim() == "nic0.0";
    let task = paths.find(|path| is_worker(path)).unwrap();
    let status = fs::read_to_string(task.join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    let stat = fs::read_to_string(task.join("stat")).unwrap();
    // The name in brackets is the second field; user and system time are the 14th and 15th.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let time: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    (line.unwrap().trim().parse().unwrap(), time)
}

/// Fails if the thread is not at rest from now on.
fn assert_rests(backend: &Backend) {
    // It may have told of its last frame, and not have come to sleep yet.
    let before = wait_for("its rest", || {
        let seen = cost(backend);
        std::thread::sleep(Duration::from_millis(100));
        (cost(backend) == seen).then_some(seen)
    });
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(cost(backend), before, "an idle worker sleeps, once, and uses no time");
}

fn on_null(dir: &Path, more: &[&str]) -> (Backend, Driver) {
    let socket = dir.join("n0");
    let args = ["--socket-path", socket.to_str().unwrap(), "--link", "null://"];
    let backend = Backend::start(&[&args[..], more].concat(), &socket);
    (backend, Driver::connect(&socket, VERSION_1 | EVENT_IDX, 1))
}

#[test]
fn polling_takes_frames_without_a_kick_and_then_rests() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, mut driver) = on_null(dir.path(), &["--poll-us", "500000"]);
    offer(driver.tx(), 0, 60);
    driver.tx().kick();
    driver.tx().used();
    let (sleeps, _) = cost(&backend);
    let (mut last, mut is_late) = (Instant::now(), false);
    for number in 1..40 {
        offer(driver.tx(), number, 60);
        // A test that was kept from running for as long as it polls has to wake it up.
        if last.elapsed() > Duration::from_millis(400) {
            is_late = true;
            driver.tx().kick();
        }
        last = Instant::now();
        assert_eq!(driver.tx().used().0, number);
    }
    assert!(is_late || cost(&backend).0 == sleeps, "it did not sleep in between");
    wait_for("its sleep", || (cost(&backend).0 > sleeps).then_some(()));
    assert_rests(&backend);
    offer(driver.tx(), 40, 60);
    driver.tx().kick();
    assert_eq!(driver.tx().used().0, 40);
}

#[test]
fn who_does_not_poll_rests_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, mut driver) = on_null(dir.path(), &[]);
    for number in 0..3 {
        let (sleeps, _) = cost(&backend);
        offer(driver.tx(), number, 60);
        driver.tx().kick();
        assert_eq!(driver.tx().used().0, number);
        wait_for("its sleep", || (cost(&backend).0 > sleeps).then_some(()));
    }
    assert_rests(&backend);
}

#[test]
fn a_stream_of_frames_is_taken_in_batches() {
    const FRAMES: u16 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let (backend, mut driver) = on_null(dir.path(), &[]);
    let (sleeps, _) = cost(&backend);
    let tx = driver.tx();
    let mut kicks = 0;
    for number in 0..FRAMES {
        offer(tx, number, 60);
        kicks += u16::from(tx.kick_if_asked());
        wait_for("room", || (tx.used_idx() + 200 > number).then_some(()));
    }
    wait_for("the rest", || (tx.used_idx() == FRAMES).then_some(()));
    let sleeps = cost(&backend).0 - sleeps;
    // The driver takes a few microseconds for each. Without rests nearly each one had its kick.
    assert!(kicks < FRAMES / 4, "{kicks} kicks");
    assert!(sleeps < u64::from(FRAMES / 4), "{sleeps} sleeps");
    assert_rests(&backend);
}

#[test]
fn a_switch_that_hangs_stops_the_guest_for_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let args = ["--socket-path", socket.to_str().unwrap(), "--link", switch.path.to_str().unwrap()];
    let mut backend = Backend::start(&[&args[..], &["--log-level", "info"]].concat(), &socket);
    let mut driver = Driver::connect(&socket, VERSION_1 | EVENT_IDX, 1);
    let station = switch.station();
    switch.signal(Signal::STOP);
    let since = Instant::now();
    let tx = driver.tx();
    (0..250).for_each(|number| offer(tx, number, 1000));
    tx.kick();
    wait_for("a full switch", || (tx.used_idx() > 50).then_some(()));
    wait_for("the end of patience", || (tx.used_idx() == 250).then_some(()));
    assert!(since.elapsed() >= Duration::from_secs(1), "{:?}", since.elapsed());
    // From now on frames are lost as fast as they come.
    tx.seen = 250;
    (250..450).for_each(|number| {
        offer(tx, number, 1000);
        tx.kick();
        tx.used();
    });
    switch.signal(Signal::CONT);
    let mut number = 450;
    wait_for("frames to pass again", || {
        offer(tx, number, 1000);
        tx.kick();
        tx.used();
        number += 1;
        let got = station.receive(Duration::from_millis(20))?;
        (u16::from_be_bytes([got[10], got[11]]) >= 450).then_some(())
    });
    drop(driver);
    let counters = loop {
        let line = backend.stderr_line();
        assert!(!line.is_empty(), "its counters are logged when the front end leaves");
        if line.contains("tx_frames=") {
            break line;
        }
    };
    let count = |name: &str| -> u16 {
        let value = counters.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.map_or(0, |value| value.parse().unwrap())
    };
    assert!(count("tx_link_full") > 200, "{counters}");
    assert_eq!(count("tx_frames") + count("tx_link_full"), number, "{counters}");
}
