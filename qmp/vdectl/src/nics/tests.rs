//! What QEMU says of its NICs, and what is made of it.

use super::*;

const NETWORK: &str = "hub 3\r\n \\ h1: u5: index=0,type=user,net=10.0.2.0,restrict=off\r\n \\ h0: eh: \
    index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:57\r\nnet0: index=0,type=nic,model=virtio-net-pci,\
    macaddr=52:54:00:12:34:56\r\n \\ n0: index=0,type=vhost-user,vhost-user0 to c0\r\nnet0: index=1,type=nic,\
    model=virtio-net-pci,macaddr=52:54:00:12:34:56\r\n \\ n0: index=1,type=vhost-user,vhost-user1 to c0\r\n\
    spare: index=0,type=stream,unix:/run/n1\r\nwaits: index=0,type=stream,connecting\r\n";

fn nic(id: Option<&str>, netdev: &str, mac: &str) -> Nic {
    Nic {
        path: format!("/machine/{mac}"),
        id: id.map(str::to_owned),
        model: "virtio-net-pci".into(),
        mac: mac.into(),
        netdev: Some(netdev.into()),
        bus: "/machine/i440fx/pci.0".into(),
        addr: Some("03.0".into()),
        hotplugged: false,
        carrier: None,
    }
}

fn served(id: &str, socket: &str) -> control::Nic {
    serde_json::from_value(serde_json::json!({
        "id": id, "socket-path": socket, "protocol": "vhost-user", "queues": 1, "connected": true, "pid": 1,
        "features": 0, "rings": [], "links": [], "counters": {}, "capturing": false,
    }))
    .unwrap()
}

fn nics() -> Nics {
    Nics {
        nics: vec![
            nic(Some("net0"), "n0", "52:54:00:00:00:01"),
            nic(Some("eh"), "h0", "52:54:00:00:00:02"),
            nic(None, "net0", "52:54:00:00:00:03"),
            nic(None, "waits", "52:54:00:00:00:03"),
        ],
        netdevs: read_network(NETWORK),
        chardevs: vec![("c0".into(), Some("/run/n0".into())), ("mon".into(), None)],
    }
}

#[test]
fn netdevs_are_read_from_what_people_are_told() {
    let found: Vec<_> = read_network(NETWORK)
        .into_iter()
        .map(|netdev| (netdev.chardev().map(str::to_owned), netdev.id, netdev.kind, netdev.hub))
        .collect();
    let row = |chardev: Option<&str>, id: &str, kind: &str, hub| {
        (chardev.map(str::to_owned), id.to_owned(), kind.to_owned(), hub)
    };
    assert_eq!(
        found,
        [
            row(None, "h1", "hubport", Some(3)),
            row(None, "u5", "user", Some(3)),
            row(None, "h0", "hubport", Some(3)),
            row(Some("c0"), "n0", "vhost-user", None),
            row(None, "spare", "stream", None),
            row(None, "waits", "stream", None),
        ]
    );
    assert_eq!(read_network("hub\n\\ \n: index=0\nx: index=0,type=\n").len(), 1);
}

#[test]
fn a_nic_is_found_by_its_names() {
    let nics = nics();
    let mac = |word| nics.find(word).map(|nic| nic.mac.as_str());
    assert_eq!(mac("n0"), Ok("52:54:00:00:00:01"));
    assert_eq!(mac("52:54:00:00:00:02"), Ok("52:54:00:00:00:02"));
    // A device's own id comes before the id of another one's netdev.
    assert_eq!(mac("net0"), Ok("52:54:00:00:00:01"));
    let sentence = |word| nics.find(word).unwrap_err().sentence;
    assert!(sentence("52:54:00:00:00:03").contains("more than one NIC"));
    assert!(sentence("x").contains("the VM has net0, eh, 52:54:00:00:00:03"));
}

#[test]
fn the_back_end_of_a_nic_is_known_by_socket_id_or_hub() {
    let nics = nics();
    let back_end = [served("u5", "/run/u5"), served("nic0", "/run/n0"), served("waits", "/run/w")];
    let ids: Vec<_> =
        nics.nics.iter().map(|nic| nics.served(nic, &back_end).map(|served| served.id.as_str())).collect();
    assert_eq!(ids, [Some("nic0"), Some("u5"), None, Some("waits")]);
    assert_eq!(nics.socket("spare"), Some(Path::new("/run/n1")));
    assert_eq!((nics.socket("waits"), nics.socket("h0")), (None, None));
}

#[test]
fn a_domain_of_libvirt_tells_its_nics_by_its_record() {
    let record = r#"{"program": "/q", "made-by": "libvirt", "since": 5,
        "nics": [{"id": "net0", "mac": "52:54:00:00:00:01", "model": "virtio"}]}"#;
    let record: registry::Record = serde_json::from_str(record).unwrap();
    let nics = Nics::known(record.nics.into_iter());
    let nic = nics.find("52:54:00:00:00:01").unwrap();
    assert_eq!(nics.find("net0"), Ok(nic));
    assert_eq!(nics.served(nic, &[served("net1", ""), served("net0", "")]).unwrap().id, "net0");
}

#[test]
fn sockets_of_chardevs() {
    let path = |filename| unix_socket(filename).map(|path| path.to_string_lossy().into_owned());
    assert_eq!(path("unix:/run/a,server=on").as_deref(), Some("/run/a"));
    assert_eq!(path("disconnected:unix:/run/b").as_deref(), Some("/run/b"));
    assert_eq!((path("pty:/dev/pts/3"), path("unix:")), (None, None));
}
