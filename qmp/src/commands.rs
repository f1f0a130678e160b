//! The commands that concern network devices: typed arguments, typed answers.
//!
//! What an answer holds beyond these fields passes by unseen; fields that some QEMU since 5.2 lacks are optional. Errors
//! of QEMU come as [`Error::Command`], with its own sentence.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::client::{Client, Version};
use crate::{Error, Event};

/// QEMU counts the pauses between attempts to connect in milliseconds since then, and in seconds before.
const RECONNECT_MS: Version = Version { major: 9, minor: 2, micro: 0 };

/// A character device.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Chardev {
    /// Its id.
    pub label: String,
    /// Where it leads, with its state: `unix:/run/n0`, `disconnected:unix:/run/n0,server=on`.
    pub filename: String,
    /// Whether a device or a netdev uses it.
    pub frontend_open: bool,
}

/// A piece of guest memory.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Memdev {
    /// Its id; a piece that QEMU made by itself may have none.
    pub id: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Whether another process can map it. QEMU says so since 6.1.
    pub share: Option<bool>,
}

/// A property of an object of QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct QomProperty {
    /// Its name.
    pub name: String,
    /// Its type: `string`, `bool`, `child<virtio-net-pci>`, `link<…>`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// How the attempt to remove a device has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// The device is gone.
    Done,
    /// The guest has refused.
    Refused,
    /// The guest has not answered yet. The device may still go, at its next reset at the latest.
    Pending,
}

impl Client {
    fn ask<T: DeserializeOwned>(&mut self, command: &'static str, arguments: Value) -> Result<T, Error> {
        let answer = self.execute(command, arguments)?;
        serde_json::from_value(answer).map_err(|error| Error::Answer { command, reason: error.to_string() })
    }

    fn tell(&mut self, command: &'static str, arguments: Value) -> Result<(), Error> {
        self.execute(command, arguments).map(|_| ())
    }

    /// What the VM does: `running`, `paused`, `prelaunch`, ….
    pub fn query_status(&mut self) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Status {
            status: String,
        }
        Ok(self.ask::<Status>("query-status", json!({}))?.status)
    }

    /// All character devices.
    pub fn query_chardev(&mut self) -> Result<Vec<Chardev>, Error> {
        self.ask("query-chardev", json!({}))
    }

    /// All pieces of guest memory that have an object.
    pub fn query_memdev(&mut self) -> Result<Vec<Memdev>, Error> {
        self.ask("query-memdev", json!({}))
    }

    /// The PCI buses with their devices, as QEMU describes them.
    pub fn query_pci(&mut self) -> Result<Value, Error> {
        self.execute("query-pci", json!({}))
    }

    /// The properties of an object, its children among them.
    pub fn qom_list(&mut self, path: &str) -> Result<Vec<QomProperty>, Error> {
        self.ask("qom-list", json!({ "path": path }))
    }

    /// A property of an object.
    pub fn qom_get(&mut self, path: &str, property: &str) -> Result<Value, Error> {
        self.execute("qom-get", json!({ "path": path, "property": property }))
    }

    /// The properties of a type of device; QEMU answers with an error if it has no such type.
    pub fn device_list_properties(&mut self, kind: &str) -> Result<Vec<QomProperty>, Error> {
        self.ask("device-list-properties", json!({ "typename": kind }))
    }

    /// Whether the guest runs on KVM.
    pub fn query_kvm(&mut self) -> Result<bool, Error> {
        #[derive(Deserialize)]
        struct Kvm {
            enabled: bool,
        }
        Ok(self.ask::<Kvm>("query-kvm", json!({}))?.enabled)
    }

    /// What QEMU's monitor for people answers, as text.
    pub fn human_monitor_command(&mut self, line: &str) -> Result<String, Error> {
        self.ask("human-monitor-command", json!({ "command-line": line }))
    }

    /// Adds a character device that connects to a Unix socket, and again, after a pause, whenever it is lost. QEMU 9.1 and older
    /// count the pause in whole seconds, of which it will be one at least.
    ///
    /// A netdev on top of it makes QEMU wait for the other end's answers, and everything with it. So make sure first that
    /// someone listens there.
    pub fn chardev_add_socket(&mut self, id: &str, path: &str, reconnect: Duration) -> Result<(), Error> {
        let millis = u64::try_from(reconnect.as_millis()).unwrap_or(u64::MAX).max(1);
        let (key, pause) = match self.version()? < RECONNECT_MS {
            true => ("reconnect", millis.div_ceil(1000)),
            false => ("reconnect-ms", millis),
        };
        let mut data = Map::new();
        data.insert("addr".into(), json!({ "type": "unix", "data": { "path": path } }));
        data.insert("server".into(), false.into());
        data.insert(key.into(), pause.into());
        let backend = json!({ "type": "socket", "data": data });
        self.tell("chardev-add", json!({ "id": id, "backend": backend }))
    }

    /// Removes a character device; fails while something uses it.
    pub fn chardev_remove(&mut self, id: &str) -> Result<(), Error> {
        self.tell("chardev-remove", json!({ "id": id }))
    }

    /// Adds a netdev; `options` is an object with `type`, `id` and what belongs to the type.
    pub fn netdev_add(&mut self, options: Value) -> Result<(), Error> {
        self.tell("netdev_add", options)
    }

    /// Removes a netdev, and the character device that a vhost-user one has.
    ///
    /// It succeeds while a NIC still uses the netdev, and leaves a NIC that can never work again: remove that before.
    pub fn netdev_del(&mut self, id: &str) -> Result<(), Error> {
        self.tell("netdev_del", json!({ "id": id }))
    }

    /// Adds a device; `options` is an object with `driver` and its properties.
    pub fn device_add(&mut self, options: Value) -> Result<(), Error> {
        self.tell("device_add", options)
    }

    /// Asks the guest to let go of a device, and returns at once.
    pub fn device_del(&mut self, id: &str) -> Result<(), Error> {
        self.tell("device_del", json!({ "id": id }))
    }

    /// Waits until a device is gone that was asked for.
    pub fn wait_for_removal(&mut self, id: &str, wait: Duration) -> Result<Removal, Error> {
        // The first of two such events is about a part of the device, and names no device.
        let about = |event: &Event, name: &str| event.name == name && event.text("device") == Some(id);
        let end = self.wait_for_event(wait, |event| {
            about(event, "DEVICE_DELETED") || about(event, "DEVICE_UNPLUG_GUEST_ERROR")
        })?;
        Ok(match end {
            Some(event) if event.name == "DEVICE_DELETED" => Removal::Done,
            Some(_) => Removal::Refused,
            None => Removal::Pending,
        })
    }

    /// Sets the carrier of a NIC, by the id of the device or the netdev.
    pub fn set_link(&mut self, name: &str, up: bool) -> Result<(), Error> {
        self.tell("set_link", json!({ "name": name, "up": up }))
    }

    /// Gives QEMU a descriptor under a name, for netdevs that take one. Needs a Unix socket.
    pub fn getfd(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error> {
        self.execute_with("getfd", json!({ "fdname": name }), &[fd]).map(|_| ())
    }
}
