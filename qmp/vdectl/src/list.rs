//! `vdectl list`: the NICs of a VM, with their links.
//!
//! QEMU knows the devices and their netdevs, the back end the links and what passes. A NIC that is served by somebody else is shown
//! with the kind of its netdev, one of the back end's that no device uses without a device, so that nothing is hidden.

use qmp::Client;
use serde_json::{Value, json};
use vde_control::{Join, Link, Nic as Served, Protocol};

use crate::Failure;
use crate::cli::List;
use crate::counters::{Kind, kind};
use crate::features;
use crate::nics::{Nic, Nics};
use crate::table::{Table, short};
use crate::vm::{PATIENCE, Vm};

/// A device with what serves it; one of both may be missing.
struct Row<'a> {
    nic: Option<&'a Nic>,
    served: Option<&'a Served>,
    /// Whether the guest sees a cable; `None`: nobody tells.
    carrier: Option<bool>,
}

/// Carries it out. What either of both does not tell is left out, and complained of at the end.
pub fn run(args: &List) -> Result<(), Failure> {
    let vm = Vm::find(&args.vm)?;
    let devices = Nics::of_vm(&vm);
    let links = links(&vm);
    let (nics, mut monitor, no_devices) = match devices {
        Ok((nics, monitor)) => (nics, monitor, None),
        Err(failure) => (Nics::default(), None, Some(failure)),
    };
    let ((served, joins), no_links) = match links {
        Ok(links) => (links, None),
        Err(failure) => (Default::default(), Some(failure)),
    };
    if no_devices.is_none() || !served.is_empty() {
        let rows = rows(monitor.as_mut(), &nics, &served);
        let text = match args.json {
            true => format!("{:#}\n", as_json(&vm, &nics, &rows, &joins)),
            false => table(&nics, &rows, &joins, args.wide).to_string(),
        };
        crate::print(&text)?;
    }
    no_devices.or(no_links).map_or(Ok(()), Err)
}

/// What its back end says.
fn links(vm: &Vm) -> Result<(Vec<Served>, Vec<Join>), Failure> {
    let (mut nics, mut joins) = (Vec::new(), Vec::new());
    for mut back_end in vm.back_ends(PATIENCE)? {
        nics.extend(back_end.query_nics()?);
        joins.extend(back_end.query_joins()?);
    }
    Ok((nics, joins))
}

fn rows<'a>(mut monitor: Option<&mut Client>, nics: &'a Nics, served: &'a [Served]) -> Vec<Row<'a>> {
    let mut rows: Vec<Row> = Vec::new();
    // QEMU tells them in no order at all; the guest numbers them by their places.
    let mut devices: Vec<&Nic> = nics.nics.iter().collect();
    devices.sort_by_key(|nic| (&nic.bus, &nic.addr, &nic.path));
    for nic in devices {
        let served = nics.served(nic, served);
        let asked = nic.carrier;
        let asked = asked.or_else(|| monitor.as_deref_mut().and_then(|monitor| carrier(monitor, nics, nic)));
        let carrier = asked.or_else(|| served.is_some_and(runs).then_some(true));
        rows.push(Row { nic: Some(nic), served, carrier });
    }
    let is_shown = |id: &str| rows.iter().any(|row| row.served.is_some_and(|served| served.id == id));
    let others: Vec<_> = served.iter().filter(|served| !is_shown(&served.id)).collect();
    rows.extend(others.into_iter().map(|served| Row { nic: None, served: Some(served), carrier: None }));
    rows
}

/// Whether the guest sees a cable. QEMU has no words for that; but once the guest's driver is there, it lets the rings of a
/// vhost-user NIC run if, and only if, it shows a cable.
fn carrier(monitor: &mut Client, nics: &Nics, nic: &Nic) -> Option<bool> {
    let netdev = nics.netdev(nic.netdev.as_deref()?)?;
    if !nic.is_virtio() || netdev.kind != "vhost-user" {
        return None;
    }
    let path = format!("{}/virtio-backend", nic.path);
    let status = monitor.execute("x-query-virtio-status", json!({ "path": path })).ok()?;
    let is = |key| status.get(key).and_then(Value::as_bool);
    let reached = status.pointer("/status/statuses").and_then(Value::as_array)?;
    let is_ready = reached.iter().filter_map(Value::as_str).any(|text| text.contains("DRIVER_OK"));
    (is_ready && is("vm-running")?).then(|| is("vhost-started"))?
}

fn table(nics: &Nics, rows: &[Row<'_>], joins: &[Join], is_wide: bool) -> Table {
    let mut heading: Vec<&str> =
        "NIC MAC MODEL QUEUES DRIVER CARRIER DROPPED LINK STATE TX RX NETWORK".split(' ').collect();
    if is_wide {
        heading.extend(["NETDEV", "ADDR", "PID", "SOCKET", "FEATURES"]);
    }
    let mut table = Table::new(&heading);
    for row in rows {
        let (before, behind) = (row.fields(), if is_wide { row.wide_fields(nics) } else { Vec::new() });
        let mut add = |link: [String; 5]| table.row(before.iter().chain(&link).chain(&behind));
        match row.served.map(|served| &served.links[..]) {
            None => add(link_fields_without(&row.foreign(nics))),
            Some([]) => add(link_fields_without("no cable")),
            Some(links) => links.iter().for_each(|link| add(link_fields(link))),
        }
    }
    for join in joins {
        let dropped = dropped(join.counters.iter()).to_string();
        for link in &join.links {
            let before = [&join.id, "", "join", "", "", "", &dropped].map(str::to_owned);
            table.row(before.iter().chain(&link_fields(link)));
        }
    }
    table
}

impl Row<'_> {
    /// What a person calls it.
    fn name(&self) -> &str {
        match (self.nic, self.served) {
            (Some(nic), _) => nic.id.as_deref().or(nic.netdev.as_deref()).unwrap_or(&nic.mac),
            (None, Some(served)) => &served.id,
            (None, None) => "",
        }
    }

    fn queues(&self) -> Option<u16> {
        self.served.map(|served| served.queues)
    }

    /// The guest's driver lets frames pass. Of a NIC that is not virtio QEMU alone knows.
    fn driver(&self) -> &'static str {
        match self.served {
            Some(served) if !served.connected => "absent",
            Some(served) if served.protocol == Protocol::Stream => "",
            Some(served) if runs(served) => "up",
            Some(_) => "down",
            None => "",
        }
    }

    fn fields(&self) -> Vec<String> {
        let of_nic = |get: fn(&Nic) -> &str| self.nic.map(get).unwrap_or_default().to_owned();
        let dropped = self.served.map(|served| dropped(served.counters.iter()).to_string());
        vec![
            self.name().to_owned(),
            of_nic(|nic| &nic.mac),
            of_nic(|nic| &nic.model),
            self.queues().map(|queues| queues.to_string()).unwrap_or_default(),
            self.driver().to_owned(),
            self.carrier.map(up_or_down).unwrap_or_default().to_owned(),
            dropped.unwrap_or_default(),
        ]
    }

    fn wide_fields(&self, nics: &Nics) -> Vec<String> {
        let netdev = self.nic.and_then(|nic| nic.netdev.clone());
        let served = self.served;
        let socket = served.and_then(|served| served.socket_path.as_deref());
        let socket = socket.or_else(|| nics.socket(netdev.as_deref()?));
        let pid = served.and_then(|served| served.pid);
        vec![
            netdev.clone().unwrap_or_default(),
            self.nic.and_then(|nic| nic.addr.clone()).unwrap_or_default(),
            pid.map(|pid| pid.to_string()).unwrap_or_default(),
            socket.map(|socket| socket.display().to_string()).unwrap_or_default(),
            served.map(|served| features::words(served.features).join(",")).unwrap_or_default(),
        ]
    }

    /// What a NIC that our back end does not serve is connected to.
    fn foreign(&self, nics: &Nics) -> String {
        let Some(id) = self.nic.and_then(|nic| nic.netdev.as_deref()) else { return "no netdev".into() };
        match nics.netdev(id) {
            Some(netdev) => format!("{} {}", netdev.kind, netdev.detail),
            None => format!("netdev {id}"),
        }
    }

    fn json(&self, nics: &Nics) -> Value {
        let netdev = self.nic.and_then(|nic| nics.netdev(nic.netdev.as_deref()?));
        json!({
            "name": self.name(),
            "id": self.nic.and_then(|nic| nic.id.as_deref()),
            "path": self.nic.map(|nic| &nic.path),
            "model": self.nic.map(|nic| &nic.model),
            "mac": self.nic.map(|nic| &nic.mac),
            "addr": self.nic.and_then(|nic| nic.addr.as_deref()),
            "hotplugged": self.nic.map(|nic| nic.hotplugged),
            "netdev": netdev.map(|netdev| json!({
                "id": netdev.id, "kind": netdev.kind, "detail": netdev.detail, "socket": nics.socket(&netdev.id),
            })),
            "carrier": self.carrier,
            "features": self.served.map(|served| features::words(served.features)),
            "back-end": self.served,
        })
    }
}

fn as_json(vm: &Vm, nics: &Nics, rows: &[Row<'_>], joins: &[Join]) -> Value {
    let rows: Vec<Value> = rows.iter().map(|row| row.json(nics)).collect();
    json!({ "vm": vm.name, "nics": rows, "joins": joins })
}

fn link_fields(link: &Link) -> [String; 5] {
    let passed = |frames, bytes| format!("{}/{}", short(frames), short(bytes));
    let traffic = link.traffic;
    let network = match &link.reason {
        Some(reason) => format!("{} ({reason})", link.locator),
        None => link.locator.clone(),
    };
    [
        link.id.clone(),
        up_or_down(link.up).to_owned(),
        passed(traffic.tx_frames, traffic.tx_bytes),
        passed(traffic.rx_frames, traffic.rx_bytes),
        network,
    ]
}

/// The same for a NIC that has none.
fn link_fields_without(network: &str) -> [String; 5] {
    ["", "", "", "", network].map(str::to_owned)
}

/// The guest's driver lets frames pass.
fn runs(served: &Served) -> bool {
    served.rings.iter().any(|ring| ring.size > 0 && ring.enabled)
}

fn up_or_down(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

/// The frames among all counters that were dropped.
fn dropped<'a>(counters: impl Iterator<Item = (&'a String, &'a u64)>) -> u64 {
    let drops = counters.filter(|(name, _)| matches!(kind(name), Kind::Drop(..)));
    drops.map(|(_, count)| *count).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests;
