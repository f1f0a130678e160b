//! Several NICs and several networks on a hub of the process: what a `vlan` of the old QEMU was.

use std::path::Path;

use rustix::process::Signal;

use crate::driver::Driver;
use crate::offload::{RX, TCPV4, TX, assert_segments, frame as large_frame, pattern};
use crate::shared::{MODERN, frame, pass};
use crate::world::{Backend, LIMIT, Station, Switch};

/// Two NICs with these features on a hub that is joined to these switches.
fn hub(dir: &Path, switches: &[&Switch], features: u64) -> (Backend, Vec<Driver>) {
    let hub = format!("hub://{}", dir.join("hub").display());
    let sockets = [0, 1].map(|nic| dir.join(format!("n{nic}")));
    let nics = sockets.each_ref().map(|socket| format!("socket-path={},link={hub}", socket.display()));
    let joins = switches.iter().map(|switch| format!("link={hub},link={}", switch.path.display()));
    let mut args = vec!["--nic".to_owned(), nics[0].clone(), "--nic".to_owned(), nics[1].clone()];
    args.extend(joins.flat_map(|join| ["--join".to_owned(), join]));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let backend = Backend::start(&args, &sockets[1]);
    let drivers = sockets.iter().map(|socket| Driver::connect(socket, features, 1)).collect();
    (backend, drivers)
}

/// Receives on a NIC what `act` has sent to it.
fn receive(nic: &mut Driver, act: impl FnOnce()) -> Vec<u8> {
    let at = nic.rx().post(1, 2048)[0];
    nic.rx().kick();
    act();
    let (_, len) = nic.rx().used();
    nic.rx().bytes(at, len as usize)[12..].to_vec()
}

fn heard(station: &Station, expected: &[u8]) {
    assert_eq!(station.receive(LIMIT).as_deref(), Some(expected));
}

#[test]
fn nics_and_networks_of_one_hub_all_hear_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let switches = ["a", "b"].map(|name| Switch::start(&dir.path().join(name)));
    let (mut backend, mut nics) = hub(dir.path(), &switches.each_ref(), MODERN);
    let [a, b] = switches.each_ref().map(Switch::station);
    pass(&mut nics, 0, &frame(9, 1), &[1]);
    heard(&a, &frame(9, 1));
    heard(&b, &frame(9, 1));
    let at = nics[1].rx().post(1, 2048)[0];
    nics[1].rx().kick();
    assert_eq!(receive(&mut nics[0], || a.send(&frame(8, 2))), frame(8, 2));
    let (_, len) = nics[1].rx().used();
    assert_eq!(nics[1].rx().bytes(at, len as usize)[12..], frame(8, 2));
    heard(&b, &frame(8, 2));
    // Nobody hears himself.
    b.send(&frame(7, 3));
    heard(&a, &frame(7, 3));
    drop(nics);
    assert_eq!(backend.terminate(), Some(0));
    assert!(!dir.path().join("hub").exists());
}

#[test]
fn large_frames_reach_a_joined_network_in_segments() {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("a"));
    let (_backend, mut nics) = hub(dir.path(), &[&switch], TX | RX);
    let station = switch.station();
    let payload = pattern(20_000);
    let (header, bytes) = large_frame(TCPV4, &payload, 1448);
    let at = nics[1].rx().post(1, 66_000)[0];
    nics[1].rx().kick();
    nics[0].tx().send(&header.encode(0), &bytes, 2000);
    // The other NIC gets it whole, the network does not.
    let (_, len) = nics[1].rx().used();
    assert_eq!(nics[1].rx().bytes(at, len as usize)[12..], bytes);
    let segments: Vec<_> = (0..14).map(|_| station.receive(LIMIT).unwrap()).collect();
    assert_segments(&segments, &payload, 1448);
}

#[test]
fn joined_network_that_hangs_or_ends_is_no_matter_to_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| dir.path().join(name));
    let (first, second) = (Switch::start(&paths[0]), Switch::start(&paths[1]));
    let (mut backend, mut nics) = hub(dir.path(), &[&first, &second], MODERN);
    let a = first.station();
    second.signal(Signal::STOP);
    // The switch learns where they come from: nothing is for any of them.
    for number in 0..200 {
        pass(&mut nics, 0, &frame(250, number), &[1]);
        heard(&a, &frame(250, number));
    }
    second.signal(Signal::CONT);
    drop(second);
    assert!(backend.stderr_line().contains("join1: link '"));
    assert_eq!(receive(&mut nics[0], || a.send(&frame(8, 2))), frame(8, 2));
    let second = Switch::start(&paths[1]);
    let line = backend.stderr_line();
    assert!(line.contains("join1") && line.contains("is up again"), "{line}");
    let b = second.station();
    assert_eq!(receive(&mut nics[0], || b.send(&frame(251, 4))), frame(251, 4));
    heard(&a, &frame(251, 4));
}
