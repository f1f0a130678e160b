//! What the table and the JSON look like.

use serde_json::from_value;

use super::*;
use crate::nics::Netdev;

fn nic(id: Option<&str>, model: &str, mac: &str, netdev: Option<&str>) -> Nic {
    Nic {
        path: "/machine/peripheral/net0".into(),
        id: id.map(str::to_owned),
        model: model.into(),
        mac: mac.into(),
        netdev: netdev.map(str::to_owned),
        bus: "/machine/i440fx/pci.0".into(),
        addr: Some("03.0".into()),
        hotplugged: false,
        carrier: None,
    }
}

fn link(id: &str, locator: &str, reason: Option<&str>) -> Value {
    json!({
        "id": id, "locator": locator, "up": reason.is_none(), "reason": reason,
        "tx-frames": 12_345, "tx-bytes": 1_500_000, "tx-dropped": 0, "tx-big": 0,
        "rx-frames": 7, "rx-bytes": 420, "rx-dropped": 0, "rx-big": 0,
    })
}

fn served(id: &str, protocol: &str, links: &[Value]) -> Served {
    let running = json!({ "size": 256, "enabled": true, "waiting": 3 });
    from_value(json!({
        "id": id, "socket-path": format!("/run/{id}.sock"), "protocol": protocol, "queues": 1, "connected": true,
        "pid": 4711, "features": 1u64 << 32 | 1, "links": links, "capturing": false,
        "rings": if protocol == "stream" { json!([]) } else { json!([running, running]) },
        "counters": { "tx_frames": 12_345, "tx_refused": 2, "rx_overrun": 3, "rx_joined": 99 },
    }))
    .unwrap()
}

fn nics() -> Nics {
    let netdev = |id: &str, kind: &str, detail: &str| Netdev {
        id: id.into(),
        kind: kind.into(),
        detail: detail.into(),
        hub: None,
    };
    Nics {
        nics: vec![
            nic(Some("net0"), "virtio-net-pci", "52:54:00:00:00:01", Some("n0")),
            nic(None, "e1000", "52:54:00:00:00:02", Some("n1")),
            nic(Some("bad\x1b[2J"), "e1000", "52:54:00:00:00:03", Some("u0")),
            nic(Some("bare"), "e1000", "52:54:00:00:00:04", None),
        ],
        netdevs: vec![
            netdev("n0", "vhost-user", "vhost-user0 to c0"),
            netdev("n1", "stream", "unix:/run/n1.sock"),
            netdev("u0", "user", "net=10.0.2.0,restrict=off"),
        ],
        chardevs: vec![("c0".into(), Some("/run/n0.sock".into()))],
    }
}

const TABLE: &str = "\
NIC       MAC                MODEL           QUEUES  DRIVER  CARRIER  DROPPED  LINK   STATE  TX        RX     NETWORK
net0      52:54:00:00:00:01  virtio-net-pci       1  up      up             5  link0  up     12k/1.5M  7/420  vde:///tmp/a
net0      52:54:00:00:00:01  virtio-net-pci       1  up      up             5  link2  down   12k/1.5M  7/420  /tmp/b (it is gone)
n1        52:54:00:00:00:02  e1000                1  -       -              5  -      -      -         -      no cable
bad?[2J   52:54:00:00:00:03  e1000                -  -       -              -  -      -      -         -      user net=10.0.2.0,restrict=off
bare      52:54:00:00:00:04  e1000                -  -       -              -  -      -      -         -      no netdev
vdeq0v2p  -                  -                    1  -       -              5  link0  up     12k/1.5M  7/420  /tmp/c
join0     -                  join                 -  -       -              0  link0  up     12k/1.5M  7/420  hub:///run/h
join0     -                  join                 -  -       -              0  link1  up     12k/1.5M  7/420  /tmp/a
";

#[test]
fn a_table_shows_all_nics_and_their_links() {
    let nics = nics();
    let two = [link("link0", "vde:///tmp/a", None), link("link2", "/tmp/b", Some("it is gone"))];
    let served = [
        served("n0", "vhost-user", &two),
        served("n1", "stream", &[]),
        served("vdeq0v2p", "stream", &[link("link0", "/tmp/c", None)]),
    ];
    let joined = [link("link0", "hub:///run/h", None), link("link1", "/tmp/a", None)];
    let join = from_value(json!({ "id": "join0", "links": joined, "counters": { "rx_frames": 7 } })).unwrap();
    let carriers = [Some(true), None, None, None];
    let mut rows: Vec<Row<'_>> = (nics.nics.iter().zip(carriers))
        .map(|(nic, carrier)| Row { nic: Some(nic), served: nics.served(nic, &served), carrier })
        .collect();
    rows.push(Row { nic: None, served: served.last(), carrier: None });
    assert_eq!(table(&nics, &rows, std::slice::from_ref(&join), false).to_string(), TABLE);

    let wide = table(&nics, &rows[..1], &[], true).to_string();
    let last = "NETDEV  ADDR   PID  SOCKET        FEATURES";
    assert!(wide.lines().next().is_some_and(|line| line.ends_with(last)), "{wide}");
    assert!(wide.contains("n0      03.0  4711  /run/n0.sock  csum,version-1\n"), "{wide}");

    let vm = Vm { name: "vm1".into(), qmp: qmp::Address::Fd(0), controls: Vec::new(), entry: None };
    let json = as_json(&vm, &nics, &rows, &[join]);
    assert_eq!(json.pointer("/nics/0/features"), Some(&json!(["csum", "version-1"])));
    assert_eq!(json.pointer("/nics/0/netdev/socket"), Some(&json!("/run/n0.sock")));
    assert_eq!(json.pointer("/nics/0/back-end/links/1/reason"), Some(&json!("it is gone")));
    assert_eq!(json.pointer("/nics/2/netdev/kind"), Some(&json!("user")));
    assert_eq!(json.pointer("/nics/2/back-end"), Some(&Value::Null));
    assert_eq!(json.pointer("/nics/4/name"), Some(&json!("vdeq0v2p")));
    assert_eq!(json.pointer("/joins/0/links/1/locator"), Some(&json!("/tmp/a")));
}
