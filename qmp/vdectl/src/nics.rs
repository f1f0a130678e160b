//! The NICs of a VM, as its QEMU tells them, and which of them a back end serves.
//!
//! QEMU has no command that lists NICs or netdevs. The NICs are the devices with a property `netdev`: by `-device` with an id
//! they are in `/machine/peripheral`, without one in `/machine/peripheral-anon`, and those that `-net nic` and `-nic` make are
//! in `/machine/unattached`. Their netdevs are told only to people, by `info network`:
//!
//! ```text
//! hub 3
//!  \ h1: u5: index=0,type=user,net=10.0.2.0,restrict=off
//!  \ h0: eh: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:57
//! net0: index=0,type=nic,model=virtio-net-pci,macaddr=52:54:00:12:34:56
//!  \ n0: index=0,type=vhost-user,vhost-user0 to c0
//! spare: index=0,type=stream,unix:/run/n1
//! ```
//!
//! A NIC of several queue pairs has a line for each. A back end's NIC is known by the id of the netdev, or by the socket
//! of the netdev's chardev.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use qmp::{Client, Error};
use registry::Maker;
use serde_json::Value;
use vde_control as control;

use crate::Failure;
use crate::back_end::sentence;
use crate::libvirt::carrier::nics_of_door;
use crate::vm::Vm;

/// Where QEMU keeps devices.
const FOLDERS: [&str; 3] = ["/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached"];

/// A network device of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Its path in QEMU's object model, which `device_del` takes for an id.
    pub path: String,
    /// The id that it was given, if it was.
    pub id: Option<String>,
    /// QEMU's name of what it is: `virtio-net-pci`, `e1000`, ….
    pub model: String,
    /// Its MAC address.
    pub mac: String,
    /// The id of its netdev; none if it has no cable.
    pub netdev: Option<String>,
    /// The path of the bus that it is on.
    pub bus: String,
    /// Where on a PCI bus: `03.0`.
    pub addr: Option<String>,
    /// It was plugged into the running VM.
    pub hotplugged: bool,
    /// Whether the guest sees a cable, if somebody has told of it.
    pub carrier: Option<bool>,
}

/// What a NIC is, or can be, connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netdev {
    /// Its id.
    pub id: String,
    /// `vhost-user`, `stream`, `user`, ….
    pub kind: String,
    /// What QEMU says of it: `vhost-user0 to c0`, `unix:/run/n1`.
    pub detail: String,
    /// The number of the hub that it is in.
    pub hub: Option<u32>,
}

impl Nic {
    /// What `device_del` knows it by.
    pub fn handle(&self) -> &str {
        self.id.as_deref().unwrap_or(&self.path)
    }

    /// The name of its bus, as `device_add` takes it.
    pub fn bus_name(&self) -> &str {
        self.bus.rsplit('/').next().unwrap_or_default()
    }

    /// It is one of the virtio family.
    pub fn is_virtio(&self) -> bool {
        self.model.starts_with("virtio-net")
    }

    /// Whether a person means it by this word: the id of the device, the id of the netdev, the MAC address.
    fn is_called(&self, word: &str) -> bool {
        self.id.as_deref() == Some(word)
            || self.netdev.as_deref() == Some(word)
            || self.mac.eq_ignore_ascii_case(word)
    }
}

impl fmt::Display for Nic {
    /// The shortest word that names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id.as_deref().unwrap_or(&self.mac))
    }
}

impl Netdev {
    /// The chardev under a vhost-user netdev.
    pub fn chardev(&self) -> Option<&str> {
        (self.kind == "vhost-user").then(|| self.detail.split_once(" to ").map(|(_, label)| label))?
    }
}

/// The NICs and netdevs of one VM, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nics {
    /// The devices, those with ids first.
    pub nics: Vec<Nic>,
    /// All netdevs.
    pub netdevs: Vec<Netdev>,
    /// The chardevs by label, each with its socket if it is a Unix one.
    pub chardevs: Vec<(String, Option<PathBuf>)>,
}

impl Nics {
    /// Asks QEMU.
    pub fn of(monitor: &mut Client) -> Result<Self, Failure> {
        let ask = |error: Error| Failure::new(format!("QEMU does not list its NICs: {}", sentence(&error)));
        let netdevs = netdevs(monitor).map_err(ask)?;
        let chardevs = monitor.query_chardev().map_err(ask)?;
        let chardevs = chardevs.into_iter().map(|chardev| (chardev.label, unix_socket(&chardev.filename)));
        let nics = devices(monitor).map_err(ask)?;
        Ok(Self { nics, netdevs, chardevs: chardevs.collect() })
    }

    /// Asks the VM's QEMU, whose monitor comes with the answer; where there is none for us, the registry.
    pub fn of_vm(vm: &Vm) -> Result<(Self, Option<Client>), Failure> {
        if let Some(record) = vm.without_monitor() {
            let nics = match record.made_by {
                Maker::Passt => nics_of_door(record),
                _ => Self::known(record.nics.iter().cloned()),
            };
            return Ok((nics, None));
        }
        let mut monitor = vm.monitor()?;
        Ok((Self::of(&mut monitor)?, Some(monitor)))
    }

    /// The NICs that somebody else has told of.
    pub fn known(nics: impl Iterator<Item = registry::Nic>) -> Self {
        let nic = |known: registry::Nic| Nic {
            path: String::new(),
            id: Some(known.id.clone()),
            model: known.model,
            mac: known.mac,
            netdev: Some(known.id),
            bus: String::new(),
            addr: None,
            hotplugged: false,
            carrier: None,
        };
        Self { nics: nics.map(nic).collect(), ..Self::default() }
    }

    /// The NIC that a person means by a word.
    pub fn find(&self, word: &str) -> Result<&Nic, Failure> {
        let mut called: Vec<&Nic> = self.nics.iter().filter(|nic| nic.is_called(word)).collect();
        // The id of one may be the id of another one's netdev.
        if called.len() > 1 && called.iter().any(|nic| nic.id.as_deref() == Some(word)) {
            called.retain(|nic| nic.id.as_deref() == Some(word));
        }
        match called[..] {
            [nic] => Ok(nic),
            [] => Err(Failure::not_found(match self.nics.len() {
                0 => format!("there is no NIC '{word}': the VM has none at all"),
                _ => format!("there is no NIC '{word}'; the VM has {}", self.names(&self.nics)),
            })),
            _ => {
                let names: Vec<String> =
                    called.iter().map(|nic| nic.id.clone().unwrap_or(nic.path.clone())).collect();
                Err(Failure::not_found(format!("'{word}' is more than one NIC: {}", names.join(", "))))
            }
        }
    }

    fn names(&self, nics: &[Nic]) -> String {
        nics.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// The netdev with this id.
    pub fn netdev(&self, id: &str) -> Option<&Netdev> {
        self.netdevs.iter().find(|netdev| netdev.id == id)
    }

    /// The socket that a netdev connects to, as far as QEMU tells.
    pub fn socket(&self, netdev: &str) -> Option<&Path> {
        let netdev = self.netdev(netdev)?;
        match netdev.chardev() {
            Some(label) => self.chardevs.iter().find(|(name, _)| name == label)?.1.as_deref(),
            // What a stream netdev that has no connection wants to connect to is not told.
            None if netdev.kind == "stream" => netdev.detail.strip_prefix("unix:").map(Path::new),
            None => None,
        }
    }

    /// Which of a back end's NICs serves this one.
    pub fn served<'a>(&self, nic: &Nic, back_end: &'a [control::Nic]) -> Option<&'a control::Nic> {
        let netdev = nic.netdev.as_deref()?;
        let socket = self.socket(netdev);
        let by_socket =
            || back_end.iter().find(|served| socket.is_some() && served.socket_path.as_deref() == socket);
        let by_id = || back_end.iter().find(|served| served.id == netdev);
        by_socket().or_else(by_id).or_else(|| self.served_through_hub(netdev, back_end))
    }

    /// A NIC in a hub of QEMU's is served by way of another member of the hub, if it is one only.
    fn served_through_hub<'a>(&self, port: &str, back_end: &'a [control::Nic]) -> Option<&'a control::Nic> {
        let hub = self.netdev(port)?.hub?;
        let mut members = self.netdevs.iter().filter(|netdev| netdev.hub == Some(hub));
        members.find_map(|member| back_end.iter().find(|served| served.id == member.id))
    }
}

/// The path in a chardev's description.
pub fn unix_socket(filename: &str) -> Option<PathBuf> {
    let place = filename.strip_prefix("disconnected:").unwrap_or(filename).strip_prefix("unix:")?;
    let path = place.strip_suffix(",server=on").unwrap_or(place);
    // QEMU 7.2 names the client's end of a connection, which has no name.
    (!path.is_empty()).then(|| path.into())
}

/// All devices with a netdev.
fn devices(monitor: &mut Client) -> Result<Vec<Nic>, Error> {
    let mut nics = Vec::new();
    // One answer tells for all devices of a type that they are none.
    let mut others = HashSet::new();
    for folder in FOLDERS {
        for child in monitor.qom_list(folder)? {
            let kind = child.kind.strip_prefix("child<").and_then(|kind| kind.strip_suffix('>'));
            let Some(model) = kind.filter(|kind| !others.contains(*kind)) else { continue };
            let path = format!("{folder}/{}", child.name);
            let netdev = match monitor.qom_get(&path, "netdev") {
                Ok(netdev) => netdev,
                // It is no NIC, or it has gone since.
                Err(Error::Command { .. }) => {
                    others.insert(model.to_owned());
                    continue;
                }
                Err(error) => return Err(error),
            };
            let id = (folder == "/machine/peripheral").then(|| child.name.clone());
            nics.push(Nic {
                id,
                model: model.to_owned(),
                mac: property(monitor, &path, "mac")?.and_then(text).unwrap_or_default(),
                netdev: text(netdev),
                bus: property(monitor, &path, "parent_bus")?.and_then(text).unwrap_or_default(),
                addr: property(monitor, &path, "legacy-addr")?.and_then(text),
                hotplugged: property(monitor, &path, "hotplugged")? == Some(Value::Bool(true)),
                carrier: None,
                path,
            });
        }
    }
    Ok(nics)
}

/// A property that not every device has.
pub fn property(monitor: &mut Client, path: &str, name: &str) -> Result<Option<Value>, Error> {
    match monitor.qom_get(path, name) {
        Ok(value) => Ok(Some(value)),
        Err(Error::Command { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A text that is not empty.
fn text(value: Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

/// All netdevs.
pub fn netdevs(monitor: &mut Client) -> Result<Vec<Netdev>, Error> {
    Ok(read_network(&monitor.human_monitor_command("info network")?))
}

/// The netdevs in what `info network` says.
fn read_network(text: &str) -> Vec<Netdev> {
    let mut netdevs: Vec<Netdev> = Vec::new();
    let mut hub = None;
    for line in text.lines() {
        let inner = line.trim_start().strip_prefix("\\ ");
        if inner.is_none() {
            hub = line.strip_prefix("hub ").and_then(|number| number.trim().parse().ok());
        }
        let Some((names, options)) = inner.unwrap_or(line).split_once(": index=") else { continue };
        let Some((_, options)) = options.split_once(",type=") else { continue };
        let (kind, detail) = options.split_once(',').unwrap_or((options, ""));
        // In a hub the port stands before what is plugged into it.
        let (port, name) = match names.split_once(": ").filter(|_| hub.is_some()) {
            Some((port, name)) => (Some(port), name),
            None => (None, names),
        };
        let mut found = |id: &str, kind: &str, detail: &str| {
            if !netdevs.iter().any(|netdev| netdev.id == id) {
                netdevs.push(Netdev {
                    id: id.into(),
                    kind: kind.into(),
                    detail: detail.trim_end().into(),
                    hub,
                });
            }
        };
        if let Some(port) = port {
            found(port, "hubport", "");
        }
        if kind != "nic" {
            found(name, kind, detail);
        }
    }
    netdevs
}

#[cfg(test)]
mod tests;
