//! Where a NIC can be plugged into a running VM.
//!
//! | machine | place |
//! |---|---|
//! | `pc` and others whose first bus is conventional PCI | any slot of that; QEMU picks a free one |
//! | `q35`, `virt` and others with PCI Express | a port with nothing behind it; else a PCI bridge |
//! | without PCI (`microvm`) | none |
//!
//! On a PCI Express root bus itself nothing can be plugged in while the VM runs. A bus is known to `device_add` by its name,
//! which is that of its port if that was given an id, and of no use otherwise: all others are called `pcie.0`.

use qmp::{Client, Error};
use serde_json::Value;

use crate::Failure;
use crate::back_end::sentence;
use crate::nics::property;

const PERIPHERAL: &str = "/machine/peripheral";
/// Slots of a conventional bus behind a bridge; a hot-plug controller takes one.
const BRIDGE_SLOTS: usize = 31;

/// A bus, its name and its path in QEMU's object model.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bus {
    name: String,
    path: String,
    express: bool,
    /// How many devices are on it.
    taken: usize,
}

/// A port or bridge and the bus behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bridge {
    bus: Bus,
    /// Its own place, to take them in their order.
    order: i64,
    chassis: u64,
    hotplug: bool,
}

/// The name of a bus that takes one more PCI device.
pub fn find(monitor: &mut Client) -> Result<String, Failure> {
    let ask =
        |error: Error| Failure::new(format!("QEMU does not tell where there is room: {}", sentence(&error)));
    let roots = roots(monitor).map_err(ask)?;
    if let Some(conventional) = roots.iter().find(|bus| !bus.express) {
        return Ok(conventional.name.clone());
    }
    if roots.is_empty() {
        let machine = monitor.qom_get("/machine", "type").map_err(ask)?;
        let machine = machine.as_str().unwrap_or("machine").trim_end_matches("-machine");
        return Err(Failure::new(format!(
            "a {machine} has no PCI bus, and takes no NIC while it runs; start the VM with the NIC, or as a pc or q35"
        )));
    }
    choose(bridges(monitor).map_err(ask)?)
}

/// The first free port, else the first bridge with room.
fn choose(mut bridges: Vec<Bridge>) -> Result<String, Failure> {
    bridges.sort_by(|a, b| (a.order, &a.bus.name).cmp(&(b.order, &b.bus.name)));
    let has_room = |bridge: &&Bridge| {
        bridge.hotplug && bridge.bus.taken < if bridge.bus.express { 1 } else { BRIDGE_SLOTS }
    };
    let (ports, conventional): (Vec<&Bridge>, Vec<&Bridge>) =
        bridges.iter().partition(|bridge| bridge.bus.express);
    if let Some(bridge) = ports.iter().copied().chain(conventional).find(has_room) {
        return Ok(bridge.bus.name.clone());
    }
    let state = match ports.iter().filter(|port| port.hotplug).count() {
        0 => "the VM has no pcie-root-port with an id".to_owned(),
        1 => "the only pcie-root-port of the VM is in use".to_owned(),
        count => format!("all {count} pcie-root-ports of the VM are in use"),
    };
    let next = bridges.iter().map(|bridge| bridge.chassis).max().unwrap_or(0) + 1;
    let is_free = |id: &String| bridges.iter().all(|bridge| bridge.bus.name != *id);
    let id = (0..).map(|number| format!("vdeport{number}")).find(is_free).unwrap_or_default();
    Err(Failure::new(format!(
        "there is no place for the NIC: {state}; start QEMU with -device \
        pcie-root-port,id={id},chassis={next},slot={next}, one for each NIC to come"
    )))
}

/// The first buses of the machine: those of its host bridges.
fn roots(monitor: &mut Client) -> Result<Vec<Bus>, Error> {
    let mut found = Vec::new();
    for folder in ["/machine", "/machine/unattached"] {
        for child in monitor.qom_list(folder)? {
            let kind = child.kind.to_ascii_lowercase();
            if kind.starts_with("child<") && (kind.contains("pcihost") || kind.contains("pci-host")) {
                found.extend(buses(monitor, &format!("{folder}/{}", child.name))?);
            }
        }
    }
    Ok(found)
}

/// The ports and bridges that have an id.
fn bridges(monitor: &mut Client) -> Result<Vec<Bridge>, Error> {
    let mut found = Vec::new();
    for child in monitor.qom_list(PERIPHERAL)? {
        if !child.kind.starts_with("child<") {
            continue;
        }
        let path = format!("{PERIPHERAL}/{}", child.name);
        for bus in buses(monitor, &path)? {
            let on = |value: Option<Value>| value.and_then(|value| value.as_bool());
            let hotplug = match bus.express {
                true => on(property(monitor, &path, "hotplug")?).unwrap_or(false),
                // By ACPI, or by a controller of its own.
                false => {
                    property(monitor, &bus.path, "acpi-pcihp-bsel")?.is_some()
                        || on(property(monitor, &path, "shpc")?).unwrap_or(false)
                }
            };
            let number = |value: Option<Value>| value.and_then(|value| value.as_i64());
            found.push(Bridge {
                bus,
                order: number(property(monitor, &path, "addr")?).unwrap_or(i64::MAX),
                chassis: number(property(monitor, &path, "chassis")?)
                    .and_then(|number| number.try_into().ok())
                    .unwrap_or(0),
                hotplug,
            });
        }
    }
    Ok(found)
}

/// The PCI buses that a device has.
fn buses(monitor: &mut Client, device: &str) -> Result<Vec<Bus>, Error> {
    let mut found = Vec::new();
    let children = match monitor.qom_list(device) {
        Ok(children) => children,
        // It has gone since.
        Err(Error::Command { .. }) => return Ok(found),
        Err(error) => return Err(error),
    };
    for child in children {
        let express = child.kind == "child<PCIE>";
        if express || child.kind == "child<PCI>" {
            let path = format!("{device}/{}", child.name);
            let taken = monitor.qom_list(&path)?.iter().filter(|at| at.name.starts_with("child[")).count();
            found.push(Bus { name: child.name, path, express, taken });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge(name: &str, express: bool, taken: usize, order: i64, hotplug: bool) -> Bridge {
        let bus = Bus { name: name.into(), path: String::new(), express, taken };
        Bridge { bus, order, chassis: 4, hotplug }
    }

    #[test]
    fn the_first_free_port_comes_first() {
        let used = || bridge("a", true, 1, 16, true);
        let fixed = || bridge("b", true, 0, 24, false);
        let slots = || bridge("c", false, 30, 8, true);
        let free = || bridge("d", true, 0, 40, true);
        let chosen = |bridges: Vec<Bridge>| choose(bridges).map_err(|failure| failure.sentence);
        let later = bridge("e", true, 0, 48, true);
        assert_eq!(chosen(vec![later, slots(), free(), used(), fixed()]).as_deref(), Ok("d"));
        assert_eq!(chosen(vec![used(), fixed(), slots()]).as_deref(), Ok("c"));
        let none = chosen(vec![used(), fixed(), bridge("c", false, 31, 8, true)]).unwrap_err();
        assert!(none.contains("the only pcie-root-port of the VM is in use"), "{none}");
        assert!(none.contains("pcie-root-port,id=vdeport0,chassis=5,slot=5"), "{none}");
        let none = chosen(vec![bridge("vdeport0", true, 1, 16, true)]).unwrap_err();
        assert!(none.contains("pcie-root-port,id=vdeport1,chassis=5,slot=5"), "{none}");
        assert!(chosen(vec![]).unwrap_err().contains("has no pcie-root-port with an id"));
    }
}
