//! Links that are plugged in, pulled out and moved while frames pass.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use qmp::{Client, Error};
use serde_json::{Value, json};
use vde_control::Join;

use crate::control::{Rig, add, mute_switch, nics, refusal};
use crate::driver::{Driver, VERSION_1};
use crate::world::{LIMIT, Station, wait_for};

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

/// A broadcast frame from the guest's address with a number in it.
fn frame(number: u32) -> Vec<u8> {
    [&[0xff; 6], &MAC[..], &[0x88, 0xb5], &number.to_be_bytes(), &[0; 60]].concat()
}

fn number_of(frame: &[u8]) -> Option<u32> {
    (frame[12..14] == [0x88, 0xb5]).then(|| u32::from_be_bytes(frame[14..18].try_into().unwrap()))
}

fn send(driver: &mut Driver, number: u32) {
    driver.tx().send(&[0; 12], &frame(number), 2000);
    driver.tx().used();
}

/// What the guest gets when `act` has sent something to it.
fn receive(driver: &mut Driver, act: impl FnOnce()) -> Vec<u8> {
    let at = driver.rx().post(1, 2048)[0];
    driver.rx().kick();
    act();
    let (_, len) = driver.rx().used();
    driver.rx().bytes(at, len as usize)[12..].to_vec()
}

/// A network in which nothing is lost, because whoever sends to it waits for us.
fn network(rig: &Rig, name: &str) -> (String, Station) {
    let path = rig.path(name);
    let station = Station::on(Path::new(&format!("multi://{path}")));
    (path, station)
}

fn link(client: &mut Client, command: &str, arguments: Value) -> Result<String, Error> {
    client.execute(command, arguments).map(|value| value["id"].as_str().unwrap_or_default().to_owned())
}

fn ids(client: &mut Client) -> Vec<String> {
    nics(client)[0].links.iter().map(|link| link.id.clone()).collect()
}

fn events(client: &mut Client, names: &[&str]) {
    for name in names {
        let event = client.wait_for_event(LIMIT, |event| event.name.starts_with("LINK")).unwrap().unwrap();
        assert_eq!(event.name, *name, "{event:?}");
    }
}

#[test]
fn links_are_added_and_removed_under_a_guest() {
    let rig = Rig::start(&[]);
    let (mut client, mut other) = (rig.client(), rig.client());
    let ((a, on_a), (b, on_b)) = (network(&rig, "a"), network(&rig, "b"));
    let socket = rig.path("n0");
    let arguments = json!({ "id": "net0", "socket-path": socket, "links": [a], "queues": 2 });
    client.execute("nic-add", arguments).unwrap();
    let mut driver = Driver::connect(Path::new(&socket), VERSION_1, 2);
    let before = rig.holdings();
    for round in 1..10 {
        let id = link(&mut client, "link-add", json!({ "nic": "net0", "locator": b })).unwrap();
        assert_eq!(id, format!("link{round}"), "never one that was there");
        assert_eq!(ids(&mut client), ["link0", &id]);
        // From either queue pair to both networks, and from both to the guest.
        driver.queues[3].send(&[0; 12], &frame(round), 2000);
        driver.queues[3].used();
        assert_eq!(on_a.receive(LIMIT).unwrap(), frame(round));
        assert_eq!(on_b.receive(LIMIT).unwrap(), frame(round));
        assert_eq!(receive(&mut driver, || on_b.send(&frame(77))), frame(77));
        let word = if round % 2 == 0 { &id } else { &b };
        client.execute("link-remove", json!({ "nic": "net0", "link": word })).unwrap();
        assert_eq!(ids(&mut client), ["link0"]);
        events(&mut other, &["LINK_ADDED", "LINK_DELETED"]);
    }
    send(&mut driver, 50);
    assert_eq!(on_a.receive(LIMIT).unwrap(), frame(50));
    wait_for("the threads to end", || (rig.holdings() == before).then_some(()));
    // A NIC without any cable, and one again.
    client.execute("link-remove", json!({ "nic": "net0", "link": "link0" })).unwrap();
    send(&mut driver, 51);
    link(&mut client, "link-add", json!({ "nic": "net0", "locator": b })).unwrap();
    send(&mut driver, 52);
    assert_eq!(on_b.receive(LIMIT).unwrap(), frame(52));
    assert_eq!(nics(&mut client)[0].counters["tx_no_link"], 1);
}

#[test]
fn link_commands_that_cannot_be_are_refused_and_change_nothing() {
    let rig = Rig::start(&["--join", "link=hub://DIR/hub,link=null://"]);
    let mut client = rig.client();
    let void = "null://";
    add(&mut client, "net0", &rig.path("n0"), &[void, void]).unwrap();
    add(&mut client, "net1", &rig.path("n1"), &[]).unwrap_err();
    let before = (nics(&mut client), rig.holdings());
    let none = rig.path("none");
    let cases = [
        ("link-add", json!({ "nic": "net7", "locator": void }), "DeviceNotFound", "'net7'"),
        ("link-add", json!({ "nic": "join0", "locator": void }), "GenericError", "join"),
        ("link-add", json!({ "nic": "net0", "locator": none }), "GenericError", none.as_str()),
        ("link-add", json!({ "nic": "net0" }), "GenericError", "locator"),
        ("link-remove", json!({ "nic": "net0", "link": "link7" }), "DeviceNotFound", "link0 (null://)"),
        ("link-remove", json!({ "nic": "net0", "link": void }), "GenericError", "link0 or link1"),
        ("link-remove", json!({ "nic": "join0", "link": void }), "GenericError", "join"),
        (
            "link-replace",
            json!({ "nic": "net0", "link": "link7", "locator": void }),
            "DeviceNotFound",
            "link7",
        ),
        ("link-replace", json!({ "nic": "net0", "link": "link0", "locator": none }), "GenericError", "none"),
        (
            "link-replace",
            json!({ "nic": "net0", "link": "link0", "locator": void, "mac": "01:00:00:00:00:00" }),
            "GenericError",
            "01:00:00:00:00:00",
        ),
        (
            "link-replace",
            json!({ "nic": "net0", "link": "link0", "locator": void, "mac": "+2:é:0" }),
            "GenericError",
            "+2:",
        ),
    ];
    for (command, arguments, class, word) in cases {
        let (got, desc) = refusal(client.execute(command, arguments.clone()));
        assert!(got == class && desc.contains(word), "{command} {arguments}: {got} {desc}");
    }
    assert_eq!(nics(&mut client), before.0);
    wait_for("the threads to end", || (rig.holdings() == before.1).then_some(()));
}

#[test]
fn links_that_are_down_are_removed_with_their_threads() {
    let rig = Rig::start(&[]);
    let mut client = rig.client();
    add(&mut client, "net0", &rig.path("n0"), &["null://"]).unwrap();
    let before = rig.holdings();
    let mut ids = Vec::new();
    for name in ["a", "b", "c", "d"] {
        // A switch has 32 ports.
        let switch = rig.switch(name);
        let arguments = json!({ "nic": "net0", "locator": switch.path });
        ids.extend((0..25).map(|_| link(&mut client, "link-add", arguments.clone()).unwrap()));
        drop(switch);
        let down = |client: &mut Client| nics(client)[0].links[1..].iter().all(|link| !link.up);
        wait_for("the links to go down", || down(&mut client).then_some(()));
    }
    assert!(rig.holdings().1 > before.1 + 90, "a thread each");
    for id in ids {
        client.execute("link-remove", json!({ "nic": "net0", "link": id })).unwrap();
    }
    wait_for("the threads to end", || (rig.holdings() == before).then_some(()));
    assert_eq!(nics(&mut client)[0].links.len(), 1);
}

#[test]
fn frames_of_a_guest_all_go_to_the_old_or_the_new_network() {
    let rig = Rig::start(&[]);
    let mut client = rig.client();
    let networks = [network(&rig, "a"), network(&rig, "b")];
    let socket = rig.path("n0");
    add(&mut client, "net0", &socket, &[&networks[0].0]).unwrap();
    let mut driver = Driver::connect(Path::new(&socket), VERSION_1, 1);
    let over = AtomicBool::new(false);
    let paths = networks.each_ref().map(|(path, _)| path.clone());
    let (sent, heard) = std::thread::scope(|scope| {
        let listen = |station: &Station| {
            let mut heard = Vec::new();
            loop {
                // Looked at first: what was sent before is still read.
                let last = over.load(Ordering::Relaxed);
                let patience = Duration::from_millis(if last { 3000 } else { 20 });
                match station.receive(patience) {
                    Some(frame) => heard.extend(number_of(&frame)),
                    None if last => return heard,
                    None => {}
                }
            }
        };
        let listeners = networks.each_ref().map(|(_, station)| scope.spawn(move || listen(station)));
        let mover = scope.spawn(|| {
            for turn in 1..=10 {
                let (from, to) = (&paths[(turn + 1) % 2], &paths[turn % 2]);
                let arguments =
                    json!({ "nic": "net0", "link": from, "locator": to, "mac": "52:54:00:01:02:03" });
                assert_eq!(link(&mut client, "link-replace", arguments).unwrap(), format!("link{turn}"));
            }
            over.store(true, Ordering::Relaxed);
        });
        let mut sent = 0;
        while !over.load(Ordering::Relaxed) {
            // As many at once as make a network full now and then.
            let tx = driver.tx();
            for head in 0..64 {
                let at = tx.base + 0x1_0000 + 256 * u64::from(head);
                tx.send_at(at, &[&[0; 12][..], &frame(sent)].concat(), head);
                sent += 1;
            }
            tx.kick();
            (0..64).for_each(|_| assert!(tx.used().0 < 64));
        }
        mover.join().unwrap();
        (sent, listeners.map(|listener| listener.join().unwrap()))
    });
    for heard in &heard {
        assert!(heard.is_sorted_by(|a, b| a < b), "none came twice or late");
        assert!(!heard.is_empty());
    }
    let all: BTreeSet<u32> = heard.iter().flatten().copied().collect();
    assert_eq!(all.len(), heard[0].len() + heard[1].len(), "none went to both");
    let lost: Vec<u32> = (0..sent).filter(|number| !all.contains(number)).collect();
    assert!(lost.is_empty(), "{} of {sent} are lost, from {:?}", lost.len(), lost.first());
}

#[test]
fn guest_gets_what_the_old_network_still_brings_and_is_announced_on_the_new_one() {
    let rig = Rig::start(&[]);
    let (mut client, mut other) = (rig.client(), rig.client());
    let ((a, on_a), (b, on_b)) = (network(&rig, "a"), network(&rig, "b"));
    let socket = rig.path("n0");
    add(&mut client, "net0", &socket, &[&a]).unwrap();
    let mut driver = Driver::connect(Path::new(&socket), VERSION_1, 1);
    driver.rx().post(200, 256);
    driver.rx().kick();
    let announced = std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let arguments =
                json!({ "nic": "net0", "link": "link0", "locator": b, "mac": "52:54:00:01:02:03" });
            assert_eq!(link(&mut client, "link-replace", arguments).unwrap(), "link1");
        });
        let mut unheard = Instant::now();
        let announced = loop {
            on_a.send(&frame(0));
            let (_, len) = driver.rx().used();
            assert_eq!(len as usize, 12 + frame(0).len());
            match on_b.receive(Duration::from_millis(20)) {
                Some(announced) => break announced,
                None => unheard = Instant::now(),
            }
            assert!(driver.rx().seen < 190, "no sign of the guest");
        };
        // What the old network brings now still counts; a test that was kept from running cannot tell whether it does.
        on_a.send(&frame(1));
        if unheard.elapsed() < Duration::from_millis(80) {
            driver.rx().used();
        }
        mover.join().unwrap();
        announced
    });
    assert_eq!(
        (&announced[..6], &announced[6..12], &announced[12..14]),
        (&[0xff; 6][..], &MAC[..], &[0x80, 0x35][..])
    );
    events(&mut other, &["LINK_ADDED", "LINK_DELETED"]);
    assert_eq!(ids(&mut client), ["link1"]);
    // A frame that the old network had kept for long would take the word back.
    for _ in 1..5 {
        assert_eq!(on_b.receive(LIMIT).as_ref(), Some(&announced));
    }
    send(&mut driver, 500);
    // It may be announced more than once.
    let numbers = || number_of(&on_b.receive(LIMIT).unwrap());
    assert_eq!(wait_for("a frame of the guest's", numbers), 500);
    assert_eq!(on_a.receive(Duration::from_millis(50)), None);
}

#[test]
fn hand_off_of_what_goes_meanwhile_is_refused_and_leaves_nothing() {
    let rig = Rig::start(&[]);
    let (mute, _listener) = mute_switch(&rig, "mute");
    let mut client = rig.client();
    add(&mut client, "net0", &rig.path("n0"), &["null://", "null://"]).unwrap();
    let mut waiting = rig.raw();
    let replace = |link: &str, id: u32| {
        json!({ "execute": "link-replace", "id": id,
            "arguments": { "nic": "net0", "link": link, "locator": mute } })
    };
    writeln!(waiting, "{}\n{}", json!({ "execute": "qmp_capabilities" }), replace("link0", 1)).unwrap();
    writeln!(
        waiting,
        "{}",
        json!({ "execute": "link-add", "id": 2,
        "arguments": { "nic": "net0", "locator": mute } })
    )
    .unwrap();
    wait_for("threads that open", || (rig.opening() == 2).then_some(()));
    client.execute("link-remove", json!({ "nic": "net0", "link": "link0" })).unwrap();
    client.execute("nic-del", json!({ "id": "net0" })).unwrap();
    let mut answers = crate::control::lines(&waiting).filter(|line| line.get("id").is_some());
    for _ in 0..2 {
        let answer = answers.next().unwrap();
        assert!(answer["error"]["desc"].as_str().unwrap().contains("deleted meanwhile"), "{answer}");
    }
    // In the middle of the hand-off itself.
    add(&mut client, "net0", &rig.path("n0"), &["null://"]).unwrap();
    let line = json!({ "execute": "link-replace", "id": 3,
        "arguments": { "nic": "net0", "link": "link0", "locator": "null://" } });
    writeln!(waiting, "{line}").unwrap();
    wait_for("the new link", || (nics(&mut client)[0].links.len() == 2).then_some(()));
    let (_, desc) = refusal(client.execute("link-remove", json!({ "nic": "net0", "link": "link0" })));
    assert!(desc.contains("link1"), "{desc}");
    client.execute("nic-del", json!({ "id": "net0" })).unwrap();
    let answer = answers.next().unwrap();
    assert!(answer.get("return").is_some() || answer.to_string().contains("deleted meanwhile"), "{answer}");
}

#[test]
fn links_of_a_nic_that_is_not_virtio_move_too() {
    let rig = Rig::start(&[]);
    let mut client = rig.client();
    let ((a, on_a), (b, on_b)) = (network(&rig, "a"), network(&rig, "b"));
    let socket = rig.path("n0");
    let arguments = json!({ "id": "net0", "socket-path": socket, "links": [a], "protocol": "stream" });
    client.execute("nic-add", arguments).unwrap();
    let mut qemu = UnixStream::connect(&socket).unwrap();
    qemu.set_read_timeout(Some(LIMIT)).unwrap();
    let mut send = |number| {
        let frame = frame(number);
        qemu.write_all(&[&u32::try_from(frame.len()).unwrap().to_be_bytes(), &frame[..]].concat()).unwrap();
    };
    send(1);
    assert_eq!(on_a.receive(LIMIT).unwrap(), frame(1));
    link(&mut client, "link-add", json!({ "nic": "net0", "locator": b })).unwrap();
    send(2);
    assert_eq!((on_a.receive(LIMIT), on_b.receive(LIMIT)), (Some(frame(2)), Some(frame(2))));
    client.execute("link-remove", json!({ "nic": "net0", "link": b })).unwrap();
    send(3);
    assert_eq!(on_a.receive(LIMIT).unwrap(), frame(3));
    link(&mut client, "link-replace", json!({ "nic": "net0", "link": a, "locator": b })).unwrap();
    send(4);
    assert_eq!(on_b.receive(LIMIT).unwrap(), frame(4));
    on_b.send(&frame(5));
    let mut got = vec![0; 4 + frame(5).len()];
    qemu.read_exact(&mut got).unwrap();
    assert_eq!(got[4..], frame(5));
    assert_eq!(on_a.receive(Duration::from_millis(50)), None);
}

#[test]
fn ends_of_a_join_move() {
    let rig = Rig::start(&["--join", "link=hub://DIR/hub,link=null://"]);
    let mut client = rig.client();
    let hub = format!("hub://{}", rig.path("hub"));
    let ((a, on_a), (b, on_b)) = (network(&rig, "a"), network(&rig, "b"));
    let on_hub = Station::on(Path::new(&rig.path("hub")));
    let before = rig.holdings();
    for (from, to, station) in [("null://", &a, &on_a), (&a, &b, &on_b), (&b, &a, &on_a)] {
        let arguments = json!({ "nic": "join0", "link": from, "locator": to });
        link(&mut client, "link-replace", arguments).unwrap();
        on_hub.send(&frame(1));
        assert_eq!(station.receive(LIMIT).unwrap(), frame(1));
        station.send(&frame(2));
        assert_eq!(on_hub.receive(LIMIT).unwrap(), frame(2));
        let joins = client.execute("query-joins", json!({})).unwrap();
        let [join]: [Join; 1] = serde_json::from_value(joins).unwrap();
        let mut locators: Vec<String> = join.links.into_iter().map(|link| link.locator).collect();
        locators.sort();
        let mut expected = [to.clone(), hub.clone()];
        expected.sort();
        assert_eq!(locators, expected);
    }
    let arguments = json!({ "nic": "join0", "link": a, "locator": "null://" });
    link(&mut client, "link-replace", arguments).unwrap();
    wait_for("nothing to be left", || (rig.holdings() == before).then_some(()));
}

#[test]
fn network_of_ours_is_shared_with_who_comes_later() {
    let rig = Rig::start(&[]);
    let mut client = rig.client();
    let switch = format!("switch://{}", rig.path("net"));
    let sockets = [rig.path("n0"), rig.path("n1")];
    add(&mut client, "net0", &sockets[0], &[&switch]).unwrap();
    add(&mut client, "net1", &sockets[1], &["null://"]).unwrap();
    link(&mut client, "link-replace", json!({ "nic": "net1", "link": "link0", "locator": switch })).unwrap();
    let [mut one, mut other] = sockets.each_ref().map(|path| Driver::connect(Path::new(path), VERSION_1, 1));
    assert_eq!(receive(&mut other, || send(&mut one, 1)), frame(1));
    // Who made it goes; the network stays.
    client.execute("nic-del", json!({ "id": "net0" })).unwrap();
    let station = Station::on(Path::new(&rig.path("net")));
    send(&mut other, 2);
    assert_eq!(station.receive(LIMIT).unwrap(), frame(2));
    client.execute("link-remove", json!({ "nic": "net1", "link": "link1" })).unwrap();
    wait_for("the network to end", || (!Path::new(&rig.path("net")).exists()).then_some(()));
}
