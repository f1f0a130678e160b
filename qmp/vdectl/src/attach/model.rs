//! What the guest sees: a virtio NIC, or one of another model whose frames pass through QEMU.

use qmp::{Client, Error, Version};
use vde_control::Protocol;

use crate::Failure;
use crate::back_end::sentence;

/// The oldest QEMU with a netdev that serves models other than virtio.
const STREAM: Version = Version { major: 7, minor: 2, micro: 0 };

/// A model that this QEMU has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The device's name for `device_add`.
    pub driver: String,
    /// How its netdev is served.
    pub protocol: Protocol,
    /// It is plugged into a PCI bus.
    pub is_pci: bool,
}

impl Model {
    /// Finds the model that a person means.
    pub fn find(word: &str, monitor: &mut Client) -> Result<Self, Failure> {
        let ask = |error: Error| Failure::new(format!("QEMU does not tell its models: {}", sentence(&error)));
        let driver = driver(word, &machine(monitor).map_err(ask)?);
        let known = match monitor.device_list_properties(&driver) {
            Ok(properties) => properties,
            Err(Error::Command { .. }) => Vec::new(),
            Err(error) => return Err(ask(error)),
        };
        let has = |name: &str| known.iter().any(|property| property.name == name);
        if !has("netdev") || !has("mac") {
            return Err(Failure::new(format!(
                "this QEMU has no NIC model '{word}'; virtio, e1000, e1000e and rtl8139 are common ones"
            )));
        }
        let is_virtio = driver.starts_with("virtio-net");
        let version = monitor.version().map_err(ask)?;
        if !is_virtio && version < STREAM {
            return Err(Failure::new(format!(
                "QEMU {version} has no netdev for model '{word}', 7.2 or newer has; take --model virtio"
            )));
        }
        let protocol = if is_virtio { Protocol::VhostUser } else { Protocol::Stream };
        Ok(Self { is_pci: has("addr") && has("multifunction"), driver, protocol })
    }

    /// It is one of the virtio family.
    pub fn is_virtio(&self) -> bool {
        self.protocol == Protocol::VhostUser
    }
}

/// The type of the machine: `pc-q35-10.0-machine`.
fn machine(monitor: &mut Client) -> Result<String, Error> {
    Ok(monitor.qom_get("/machine", "type")?.as_str().unwrap_or_default().to_owned())
}

/// The device of a model.
fn driver(word: &str, machine: &str) -> String {
    match word {
        "virtio" | "virtio-net" if machine.starts_with("s390-ccw") => "virtio-net-ccw",
        "virtio" | "virtio-net" => "virtio-net-pci",
        other => other,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_is_a_device_of_the_machine() {
        assert_eq!(driver("virtio", "pc-q35-10.0-machine"), "virtio-net-pci");
        assert_eq!(driver("virtio-net", "s390-ccw-virtio-10.0-machine"), "virtio-net-ccw");
        assert_eq!(driver("e1000", "pc-i440fx-7.2-machine"), "e1000");
    }
}
