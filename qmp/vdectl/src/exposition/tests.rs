//! The text is read back by a reader that is as strict as the description of the format.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{from_value, json};

use super::*;
use crate::Failure;

/// Name, labels, value.
type Sample = (String, Vec<(String, String)>, u64);

/// Reads a text, and fails on whatever the format does not allow.
fn read(text: &str) -> Vec<Sample> {
    assert!(text.ends_with('\n'), "the last line has an end");
    let (mut samples, mut types, mut current) = (Vec::new(), BTreeMap::new(), String::new());
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            current = rest.split_once(' ').unwrap().0.to_owned();
            assert!(!types.contains_key(&current), "{current} stands together");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, current, "HELP and TYPE belong together");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            types.insert(name.to_owned(), kind.to_owned());
        } else {
            let sample = read_sample(line);
            assert!(types.contains_key(&sample.0) && sample.0 == current, "{line} follows its TYPE");
            assert!(seen.insert((sample.0.clone(), sample.1.clone())), "{line} is there once");
            samples.push(sample);
        }
    }
    samples
}

fn read_sample(line: &str) -> Sample {
    let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
    let (name, mut rest) = line.split_once('{').unwrap();
    assert!(!name.is_empty() && name.chars().all(is_word), "{name}");
    let mut labels = Vec::new();
    loop {
        let (label, behind) = rest.split_once("=\"").unwrap();
        assert!(!label.is_empty() && label.chars().all(is_word), "{label}");
        let (mut value, mut chars) = (String::new(), behind.chars());
        loop {
            match chars.next().expect("the value has an end") {
                '"' => break,
                '\\' => value.push(match chars.next() {
                    Some('n') => '\n',
                    Some(c @ ('\\' | '"')) => c,
                    other => panic!("no such escape: {other:?}"),
                }),
                c => value.push(c),
            }
        }
        labels.push((label.to_owned(), value));
        rest = chars.as_str();
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => break,
        }
    }
    (name.to_owned(), labels, rest.strip_prefix("} ").unwrap().parse().unwrap())
}

fn snapshots() -> Vec<Snapshot> {
    let link = json!({
        "id": "link0", "locator": "vde:///tmp/\"a\\\nb\"", "up": true,
        "tx-frames": 3, "tx-bytes": 180, "tx-dropped": 1, "tx-big": 0,
        "rx-frames": 5, "rx-bytes": 300, "rx-dropped": 0, "rx-big": 2,
    });
    let nic: vde_control::Nic = from_value(json!({
        "id": "net0", "socket-path": null, "protocol": "vhost-user", "queues": 1, "connected": true, "pid": 7,
        "features": 0, "links": [link], "capturing": false,
        "rings": [{ "size": 256, "enabled": true, "waiting": 255 }, { "size": 256, "enabled": true, "waiting": 0 }],
        "counters": { "tx_frames": 3, "rx_bytes": 300, "rx_no_buffer": 4, "rx_joined": 6, "bad_chains": 0 },
    }))
    .unwrap();
    let join: vde_control::Join =
        from_value(json!({ "id": "join0", "links": [], "counters": { "tx_frames": 1 } })).unwrap();
    vec![
        Snapshot { vm: "a".into(), seen: Ok(vec![nic.into(), join.into()]) },
        Snapshot { vm: "b".into(), seen: Err(Failure::new("it is mute")) },
    ]
}

#[test]
fn the_text_holds_what_was_counted() {
    let samples = read(&text(&snapshots()));
    let value = |name: &str, labels: &[(&str, &str)]| {
        let is_so = |sample: &&Sample| {
            let has =
                |(label, value): &(&str, &str)| sample.1.contains(&(label.to_string(), value.to_string()));
            sample.0 == name && sample.1.len() == labels.len() && labels.iter().all(has)
        };
        samples.iter().find(is_so).unwrap_or_else(|| panic!("no {name} {labels:?}")).2
    };
    assert_eq!(value("vde_up", &[("vm", "a")]), 1);
    assert_eq!(value("vde_up", &[("vm", "b")]), 0);
    let (vm, nic) = (("vm", "a"), ("nic", "net0"));
    assert_eq!(value("vde_nic_connected", &[vm, nic]), 1);
    assert_eq!(value("vde_nic_frames_total", &[vm, nic, ("direction", "tx")]), 3);
    assert_eq!(value("vde_nic_bytes_total", &[vm, nic, ("direction", "rx")]), 300);
    let reason = ("reason", "no_buffer");
    assert_eq!(value("vde_nic_dropped_total", &[vm, nic, ("direction", "rx"), reason]), 4);
    assert_eq!(value("vde_nic_events_total", &[vm, nic, ("event", "rx_joined")]), 6);
    assert_eq!(value("vde_queue_waiting", &[vm, nic, ("queue", "0"), ("direction", "rx")]), 255);
    assert_eq!(value("vde_queue_size", &[vm, nic, ("queue", "0"), ("direction", "tx")]), 256);
    let link = ("link", "link0");
    assert_eq!(value("vde_link_up", &[vm, nic, link, ("locator", "vde:///tmp/\"a\\\nb\"")]), 1);
    assert_eq!(value("vde_link_dropped_total", &[vm, nic, link, ("direction", "tx")]), 1);
    assert_eq!(value("vde_link_big_total", &[vm, nic, link, ("direction", "rx")]), 2);
    assert_eq!(value("vde_nic_frames_total", &[vm, ("nic", "join0"), ("direction", "tx")]), 1);
    // Of who does not answer there is nothing else, and of a join no front end.
    assert_eq!(samples.iter().filter(|sample| sample.1.contains(&("vm".into(), "b".into()))).count(), 1);
    assert_eq!(samples.iter().filter(|sample| sample.0 == "vde_nic_connected").count(), 1);
}

#[test]
fn no_vm_is_an_empty_text() {
    assert_eq!(text(&[]), "");
}
