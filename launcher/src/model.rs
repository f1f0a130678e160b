//! NIC models: which device one means on a board, and what its frames pass through.
//!
//! | model | protocol | netdev |
//! |---|---|---|
//! | virtio | vhost-user: the back end works on the guest's memory | `vhost-user` |
//! | any other | stream: QEMU hands over frame by frame | `stream` |
//!
//! A model that does not exist has to be found here: QEMU 10 starts such a VM without the NIC.

use serde::Serialize;

use crate::error::Error;
use crate::legacy::Nic;
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
    /// The device that QEMU knows.
    pub device: String,
    /// How it is served.
    pub protocol: Protocol,
}

/// What `-net nic,model=` knows on a PC beside virtio, over QEMU 5.2 to 10. Other boards have others, and QEMU judges.
const ON_PC: [&str; 24] = [
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
    "vmxnet3",
];

impl Model {
    /// The model of a NIC, which `word` describes, on a machine.
    pub fn of(nic: &Nic, word: &str, machine: &Machine) -> Result<Self, Error> {
        let bus = machine.bus();
        let virtio = match bus {
            Bus::Pci | Bus::Isa => "virtio-net-pci",
            Bus::Mmio => "virtio-net-device",
            Bus::Ccw => "virtio-net-ccw",
        };
        let (device, protocol) = match nic.model.as_deref() {
            None if bus == Bus::Isa => ("ne2k_isa", Protocol::Stream),
            None | Some("virtio" | "virtio-net") => (virtio, Protocol::VhostUser),
            Some(model) if model.starts_with("virtio-net-") => (model, Protocol::VhostUser),
            Some(model) if machine.is_pc() && !ON_PC.contains(&model) => {
                let known = ON_PC.join(", ");
                let problem = format!("unknown model '{model}'; known are virtio, {known}");
                return Err(Error::Net { word: word.to_owned(), problem });
            }
            Some(model) => (model, Protocol::Stream),
        };
        Ok(Self { device: device.to_owned(), protocol })
    }

    /// Whether the back end works on the guest's memory.
    pub fn is_virtio(&self) -> bool {
        self.protocol == Protocol::VhostUser
    }
}
