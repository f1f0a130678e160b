//! Counters in the text format of Prometheus (exposition format 0.0.4).
//!
//! | metric | labels | what |
//! |---|---|---|
//! | `vde_up` | `vm` | 1 if the VM's back end answers; of one that does not there is nothing else |
//! | `vde_nic_connected` | `vm`, `nic` | 1 if a front end is there |
//! | `vde_nic_frames_total`, `vde_nic_bytes_total` | `vm`, `nic`, `direction` | what left the guest and what entered it |
//! | `vde_nic_dropped_total` | `vm`, `nic`, `direction`, `reason` | frames that did not |
//! | `vde_nic_events_total` | `vm`, `nic`, `event` | the counters that are neither |
//! | `vde_queue_size`, `vde_queue_waiting` | `vm`, `nic`, `queue`, `direction` | of a virtqueue, 0 if it does not run |
//! | `vde_link_up` | `vm`, `nic`, `link`, `locator` | 1 if it carries frames |
//! | `vde_link_frames_total`, `_bytes_total`, `_dropped_total`, `_big_total` | `vm`, `nic`, `link`, `direction` | of a link |
//!
//! `direction` is `tx` for what leaves the guest and `rx` for what enters it; of a join, which has no guest, it is what the link
//! sends and receives, `nic` is the join's name, and its counters are under `vde_nic_` as well. Reasons and events are the names
//! in `man vhost-user-vde` without their direction.

use std::collections::BTreeMap;
use std::fmt::Write;

use vde_control::{Link, Ring, Traffic};

use crate::counters::{Kind, kind};
use crate::snapshot::{Holder, Snapshot};

/// A metric: its name, its type, its help.
type Metric = (&'static str, &'static str, &'static str);

const UP: Metric = ("vde_up", "gauge", "Whether the back end of the VM answers.");
const CONNECTED: Metric = ("vde_nic_connected", "gauge", "Whether a front end uses the NIC.");
const FRAMES: Metric =
    ("vde_nic_frames_total", "counter", "Frames that left (tx) or entered (rx) the guest.");
const BYTES: Metric = ("vde_nic_bytes_total", "counter", "Bytes that left (tx) or entered (rx) the guest.");
const DROPPED: Metric = ("vde_nic_dropped_total", "counter", "Frames that were dropped.");
const EVENTS: Metric =
    ("vde_nic_events_total", "counter", "What else happened to the NIC's frames and rings.");
const SIZE: Metric = ("vde_queue_size", "gauge", "Descriptors of the virtqueue, 0 if it does not run.");
const WAITING: Metric = ("vde_queue_waiting", "gauge", "Buffers that the driver offers and nobody took yet.");
const LINK_UP: Metric = ("vde_link_up", "gauge", "Whether the link carries frames.");
const LINK_FRAMES: Metric = ("vde_link_frames_total", "counter", "Frames that passed through the link.");
const LINK_BYTES: Metric = ("vde_link_bytes_total", "counter", "Bytes that passed through the link.");
const LINK_DROPPED: Metric =
    ("vde_link_dropped_total", "counter", "Frames that the link did not take or spoiled.");
const LINK_BIG: Metric =
    ("vde_link_big_total", "counter", "Frames that passed through the link unsegmented.");

/// All metrics, in the order in which they are written.
const METRICS: [Metric; 13] = [
    UP,
    CONNECTED,
    FRAMES,
    BYTES,
    DROPPED,
    EVENTS,
    SIZE,
    WAITING,
    LINK_UP,
    LINK_FRAMES,
    LINK_BYTES,
    LINK_DROPPED,
    LINK_BIG,
];

/// The lines of each metric, by its name: what belongs to one has to stand together.
#[derive(Debug, Default)]
struct Lines(BTreeMap<&'static str, String>);

impl Lines {
    fn add(&mut self, metric: Metric, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let line = format!("{}{{{}}} {value}\n", metric.0, labels.join(","));
        self.0.entry(metric.0).or_default().push_str(&line);
    }
}

/// The value of a label, as it may stand between quotation marks.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The text for these VMs.
pub fn text(snapshots: &[Snapshot]) -> String {
    let mut lines = Lines::default();
    for Snapshot { vm, seen } in snapshots {
        lines.add(UP, &[("vm", vm)], u64::from(seen.is_ok()));
        for holder in seen.iter().flatten() {
            add_holder(&mut lines, vm, holder);
        }
    }
    let mut text = String::new();
    for (name, kind, help) in METRICS {
        if let Some(lines) = lines.0.get(name) {
            // Writing to a string does not fail.
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}");
        }
    }
    text
}

fn add_holder(lines: &mut Lines, vm: &str, holder: &Holder) {
    let (vm, nic) = (("vm", vm), ("nic", &*holder.id));
    if let Some(connected) = holder.connected {
        lines.add(CONNECTED, &[vm, nic], connected.into());
    }
    for (name, value) in &holder.counters {
        match kind(name) {
            Kind::Frames(direction) => lines.add(FRAMES, &[vm, nic, ("direction", direction.word())], *value),
            Kind::Bytes(direction) => lines.add(BYTES, &[vm, nic, ("direction", direction.word())], *value),
            Kind::Drop(direction, reason) => {
                lines.add(DROPPED, &[vm, nic, ("direction", direction.word()), ("reason", reason)], *value);
            }
            Kind::Event => lines.add(EVENTS, &[vm, nic, ("event", name)], *value),
        }
    }
    for (index, Ring { size, waiting, .. }) in holder.rings.iter().enumerate() {
        let (queue, direction) = ((index / 2).to_string(), if index % 2 == 0 { "rx" } else { "tx" });
        let labels = [vm, nic, ("queue", &*queue), ("direction", direction)];
        lines.add(SIZE, &labels, (*size).into());
        lines.add(WAITING, &labels, (*waiting).into());
    }
    for Link { id, locator, up, traffic, .. } in &holder.links {
        let link = ("link", &**id);
        lines.add(LINK_UP, &[vm, nic, link, ("locator", locator)], (*up).into());
        let Traffic { tx_frames, tx_bytes, tx_dropped, tx_big, rx_frames, rx_bytes, rx_dropped, rx_big } =
            *traffic;
        let both = [
            (LINK_FRAMES, tx_frames, rx_frames),
            (LINK_BYTES, tx_bytes, rx_bytes),
            (LINK_DROPPED, tx_dropped, rx_dropped),
            (LINK_BIG, tx_big, rx_big),
        ];
        for (metric, tx, rx) in both {
            lines.add(metric, &[vm, nic, link, ("direction", "tx")], tx);
            lines.add(metric, &[vm, nic, link, ("direction", "rx")], rx);
        }
    }
}

#[cfg(test)]
mod tests;
