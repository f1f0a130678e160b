//! Several NICs of one process on a network that the process serves.

use std::path::Path;

use crate::driver::{Driver, EVENT_IDX, INDIRECT, MRG_RXBUF, VERSION_1};
use crate::world::{Backend, LIMIT, Station};

pub const MODERN: u64 = VERSION_1 | EVENT_IDX | INDIRECT | MRG_RXBUF;

/// One process with `count` NICs on one network, and the network's directory.
fn nics(dir: &Path, scheme: &str, count: usize) -> (Backend, Vec<Driver>) {
    let sockets: Vec<_> = (0..count).map(|nic| dir.join(format!("n{nic}"))).collect();
    let nic = |socket: &std::path::PathBuf| {
        format!("socket-path={},link={scheme}://{}", socket.display(), dir.join("net").display())
    };
    let args: Vec<_> = sockets.iter().flat_map(|socket| ["--nic".into(), nic(socket)]).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let backend = Backend::start(&args, sockets.last().unwrap());
    let drivers = sockets.iter().map(|socket| Driver::connect(socket, MODERN, 1)).collect();
    (backend, drivers)
}

pub fn frame(to: u8, from: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5];
    frame.extend((0..100).map(|at| at ^ from));
    frame
}

/// Sends a frame and sees that each of `to` gets it.
pub fn pass(drivers: &mut [Driver], from: usize, frame: &[u8], to: &[usize]) {
    let posted: Vec<_> = to.iter().map(|nic| drivers[*nic].rx().post(1, 2048)[0]).collect();
    to.iter().for_each(|nic| drivers[*nic].rx().kick());
    drivers[from].tx().send(&[0; 12], frame, 2000);
    drivers[from].tx().used();
    for (nic, at) in to.iter().zip(posted) {
        let rx = drivers[*nic].rx();
        let (_, len) = rx.used();
        assert_eq!(rx.bytes(at, len as usize)[12..], *frame, "NIC {nic}");
    }
}

#[test]
fn nics_of_one_switch_reach_each_other_and_the_outside() {
    let dir = tempfile::tempdir().unwrap();
    let (_backend, mut nics) = nics(dir.path(), "switch", 3);
    let station = Station::on(&dir.path().join("net"));
    // Where nobody was heard before, everybody hears.
    pass(&mut nics, 0, &frame(2, 1), &[1, 2]);
    assert_eq!(station.receive(LIMIT).unwrap(), frame(2, 1));
    pass(&mut nics, 1, &frame(1, 2), &[0]);
    pass(&mut nics, 0, &frame(2, 1), &[1]);
    station.send(&frame(1, 9));
    let at = nics[0].rx().post(1, 2048)[0];
    nics[0].rx().kick();
    let (_, len) = nics[0].rx().used();
    assert_eq!(nics[0].rx().bytes(at, len as usize)[12..], frame(1, 9));
    pass(&mut nics, 2, &frame(9, 3), &[]);
    assert_eq!(station.receive(LIMIT).unwrap(), frame(9, 3));
}

#[test]
fn nics_of_one_hub_hear_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (_backend, mut nics) = nics(dir.path(), "hub", 3);
    pass(&mut nics, 0, &frame(2, 1), &[1, 2]);
    pass(&mut nics, 1, &frame(1, 2), &[0, 2]);
}
