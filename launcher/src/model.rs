//! NIC models: which device one means on a board, and what its frames pass through.
//!
//! | model | protocol | netdev |
//! |---|---|---|
//! | virtio | vhost-user: the back end works on the guest's memory | `vhost-user` |
//! | any other | stream: QEMU hands over frame by frame | `stream` |
//!
//! Without a model it is what `--vde-default-model` says, else virtio. But a board that is not listed
//! (most boards of embedded machines) has a NIC soldered on: that one is meant there.
//!
//! A model that does not exist has to be found here: QEMU 10 starts such a VM without the NIC.

use serde::Serialize;

use crate::machine::{Bus, Machine};

/// What is spoken between QEMU and the back end, by the back end's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// For virtio.
    VhostUser,
    /// For all others.
    Stream,
}

/// A NIC's model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The device that QEMU knows; `None` for the one that QEMU gives this machine by itself.
    pub device: Option<String>,
    /// How it is served.
    pub protocol: Protocol,
}

/// The word for the NIC that a machine has by itself, in `--vde-default-model`.
pub const OWN: &str = "machine";

/// What `-net nic,model=` knows on a PC beside virtio, over QEMU 5.2 to 10, and usb-net, which we make by `-device`.
/// Other boards have others, and QEMU judges.
const ON_PC: [&str; 25] = [
    "e1000",
    "e1000-82544gc",
    "e1000-82545em",
    "e1000e",
    "i82550",
    "i82551",
    "i82557a",
    "i82557b",
    "i82557c",
    "i82558a",
    "i82558b",
    "i82559a",
    "i82559b",
    "i82559c",
    "i82559er",
    "i82562",
    "i82801",
    "igb",
    "ne2k_isa",
    "ne2k_pci",
    "pcnet",
    "rtl8139",
    "tulip",
    "usb-net",
    "vmxnet3",
];

impl Model {
    /// What `model=`, or the lack of it, means on a machine; or what is wrong with it. `default` is the model that the
    /// user chose for NICs without one.
    pub fn of(model: Option<&str>, default: Option<&str>, machine: &Machine) -> Result<Self, String> {
        let virtio = match machine.bus() {
            Bus::Pci | Bus::BarePci | Bus::Isa | Bus::OnBoard => "virtio-net-pci",
            Bus::Mmio => "virtio-net-device",
            Bus::Ccw => "virtio-net-ccw",
        };
        let is_bare = model.is_none();
        let (device, protocol) = match model.or(default) {
            None if machine.bus() == Bus::Isa => (Some("ne2k_isa"), Protocol::Stream),
            None if !machine.is_listed => (None, Protocol::Stream),
            Some("virtio" | "virtio-net") if machine.bus() == Bus::OnBoard => {
                let kind = machine.kind.as_deref().unwrap_or("this machine");
                return Err(format!(
                    "no virtio NIC fits {kind}, which has no PCI; leave model= out for its own"
                ));
            }
            None | Some("virtio" | "virtio-net") => (Some(virtio), Protocol::VhostUser),
            Some(OWN) if is_bare => (None, Protocol::Stream),
            Some(model) if is_virtio(model) => (Some(model), Protocol::VhostUser),
            Some(model) if machine.is_pc() && !ON_PC.contains(&model) => {
                let origin = if is_bare { " of --vde-default-model" } else { "" };
                let known = ON_PC.join(", ");
                return Err(format!("unknown model '{model}'{origin}; known are virtio, {known}"));
            }
            Some(model) => (Some(model), Protocol::Stream),
        };
        Ok(Self { device: device.map(str::to_owned), protocol })
    }

    /// The model of a device, by the name of its driver.
    pub fn of_driver(driver: &str) -> Self {
        let protocol = if is_virtio(driver) { Protocol::VhostUser } else { Protocol::Stream };
        Self { device: Some(driver.to_owned()), protocol }
    }

    /// Whether the back end works on the guest's memory.
    pub fn is_virtio(&self) -> bool {
        self.protocol == Protocol::VhostUser
    }

    /// Whether it may have interrupt vectors: of virtio devices only those on PCI have.
    pub fn has_vectors(&self) -> bool {
        self.device.as_deref().is_none_or(|device| !is_virtio(device) || device.starts_with("virtio-net-pci"))
    }

    /// Whether `-net nic` and `-nic` do not make it on this machine. They know models, not every device, and a board
    /// may know none but its own.
    pub fn is_device_only(&self, machine: &Machine) -> bool {
        let device = self.device.as_deref().unwrap_or("");
        let is_pci =
            device.starts_with("virtio-net-pci") || (ON_PC.contains(&device) && device != "ne2k_isa");
        // QEMU starts a board without a PCI bus that is given one as `-net nic`, but without the NIC.
        let makes_none = matches!(machine.bus(), Bus::BarePci | Bus::Mmio | Bus::Isa);
        device == "usb-net" || (is_virtio(device) && !is_pci) || (is_pci && makes_none)
    }

    /// Its name for people.
    pub fn name(&self) -> &str {
        self.device.as_deref().unwrap_or("the machine's own NIC")
    }
}

/// Whether this device, or alias of one, is of the kind that vhost-user serves.
fn is_virtio(driver: &str) -> bool {
    driver == "virtio-net" || driver.starts_with("virtio-net-")
}
