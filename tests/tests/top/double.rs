//! Something that says fixed numbers on a control socket, as `docs/control.md` describes it: a real back end's numbers are never the
//! same twice, and a layout has to be.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;

use serde_json::{Value, json};
use vde_control::{Join, Link, Nic, Protocol, Ring, Traffic};

/// Serves everyone who connects to `path`, for as long as the test runs.
pub fn serve(path: &Path) {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // A client that goes is no failure.
            thread::spawn(move || answer(&client));
        }
    });
}

fn answer(mut client: &UnixStream) -> std::io::Result<()> {
    let greeting = json!({ "QMP": { "version": { "package": "double" }, "capabilities": [] } });
    writeln!(client, "{greeting}")?;
    for line in BufReader::new(client).lines() {
        let command: Value = serde_json::from_str(&line?)?;
        let value = match command["execute"].as_str() {
            Some("query-nics") => json!([nic("net0", true), nic("net1", false)]),
            Some("query-joins") => json!([join()]),
            _ => json!({}),
        };
        writeln!(client, "{}", json!({ "return": value, "id": command["id"] }))?;
    }
    Ok(())
}

fn links(second_is_up: bool) -> Vec<Link> {
    let traffic = Traffic {
        tx_frames: 1_000,
        tx_bytes: 1_234_567,
        tx_big: 400,
        rx_frames: 2_000,
        rx_bytes: 98_765_432,
        ..Traffic::default()
    };
    let link = |id: &str, locator: &str, up: bool| Link {
        id: id.into(),
        locator: locator.into(),
        up,
        reason: (!up).then(|| "Connection refused".into()),
        traffic,
    };
    vec![link("link0", "vde:///run/net/lan[7]", true), link("link1", "tap://t0", second_is_up)]
}

fn nic(id: &str, all_is_well: bool) -> Nic {
    let ring = |waiting| Ring { size: 256, enabled: true, waiting };
    let counters = [
        ("tx_frames", 1_000),
        ("tx_bytes", 1_234_567),
        ("rx_frames", 700),
        ("rx_bytes", 98_765_432),
        ("rx_joined", 1_300),
        ("rx_overrun", if all_is_well { 0 } else { 42 }),
    ];
    Nic {
        id: id.into(),
        socket_path: None,
        protocol: Protocol::VhostUser,
        queues: 2,
        connected: true,
        pid: Some(1234),
        features: 1 << 32 | 1 << 29 | 1 << 15 | 1,
        rings: vec![ring(256), ring(0), ring(if all_is_well { 200 } else { 3 }), ring(250)],
        links: links(all_is_well),
        counters: counters.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
        capturing: !all_is_well,
    }
}

fn join() -> Join {
    Join { id: "vlan0".into(), links: links(true), counters: Default::default() }
}
