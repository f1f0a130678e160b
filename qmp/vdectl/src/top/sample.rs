//! Made-up answers of a back end, for tests.

use std::time::Duration;

use vde_control::{Link, Nic, Protocol, Ring, Traffic};

use super::model::{Answer, Model};

/// A NIC with one link and one queue pair, whose counters are all `count` times something.
pub fn nic(id: &str, count: u64) -> Nic {
    let traffic = Traffic {
        tx_frames: 10 * count,
        tx_bytes: 10_000 * count,
        tx_dropped: 0,
        tx_big: 5 * count,
        rx_frames: 30 * count,
        rx_bytes: 45_000 * count,
        rx_dropped: 0,
        rx_big: 0,
    };
    let counters = [
        ("tx_frames", 10),
        ("tx_bytes", 10_000),
        ("rx_frames", 10),
        ("rx_bytes", 45_000),
        ("rx_joined", 20),
        ("rx_overrun", 2),
        ("tx_refused", 1),
        ("rx_waited", 7),
    ];
    Nic {
        id: id.into(),
        socket_path: Some(format!("/run/vdeq/1234/{id}.sock").into()),
        protocol: Protocol::VhostUser,
        queues: 1,
        connected: true,
        pid: Some(1234),
        features: 0x1_3000_0003,
        rings: vec![
            Ring { size: 256, enabled: true, waiting: 250 },
            Ring { size: 256, enabled: true, waiting: 3 },
        ],
        links: vec![Link {
            id: "link0".into(),
            locator: "vde:///run/sw[7]".into(),
            up: true,
            reason: None,
            traffic,
        }],
        counters: counters.iter().map(|(name, each)| ((*name).to_owned(), each * count)).collect(),
        capturing: false,
    }
}

/// A model of the given VMs, which were found at the start.
pub fn model(vms: &[&str]) -> Model {
    let mut model = Model::default();
    let list: Vec<_> = vms.iter().map(|name| (format!("/run/{name}"), (*name).to_owned())).collect();
    model.running(Duration::ZERO, &list);
    model
}

/// An answer with these NICs.
pub fn answer(nics: &[Nic]) -> Result<Answer, String> {
    Ok(Answer { nics: nics.to_vec(), joins: Vec::new() })
}
