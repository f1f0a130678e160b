//! The words by which QEMU gets what the back end serves: a netdev on a socket, and a NIC on a netdev.
//!
//! The NIC stays a `-net nic` where that is possible, because QEMU creates those with the machine:
//! turned into `-device` it might land in another slot, and the guest would rename its interface.

use serde_json::Value;

use crate::argv::Token;
use crate::legacy::Nic;
use crate::machine::{Bus, Machine};
use crate::model::{Model, Protocol};
use crate::properties::{self, Properties};
use crate::props::double;
use crate::rewrite::Facts;

/// What the words depend on.
#[derive(Clone, Copy, Debug)]
pub struct Wiring<'a> {
    /// The command line.
    pub tokens: &'a [Token],
    /// Its machine.
    pub machine: &'a Machine,
    /// What else is known.
    pub facts: &'a Facts,
    /// How ids of ours begin.
    pub prefix: &'a str,
    /// The model that the user chose for NICs without one.
    pub default_model: Option<&'a str>,
}

/// How a netdev of ours is written.
#[derive(Clone, Copy, Debug)]
pub struct NetdevForm<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its queue pairs.
    pub queues: u16,
    /// Whether it is written in JSON.
    pub json: bool,
}

impl Wiring<'_> {
    /// The id of the netdev on socket `index`.
    pub fn id(&self, index: usize) -> String {
        format!("{}{index}n", self.prefix)
    }

    /// Socket `index`.
    pub fn socket(&self, index: usize) -> String {
        format!("{}/{index}.sock", self.facts.private_dir)
    }

    /// The chardev on socket `index`, if its netdev needs one.
    pub fn chardev(&self, index: usize) -> String {
        format!("{}{index}c", self.prefix)
    }

    /// The netdev on socket `index`, with all that it needs.
    pub fn netdev(&self, protocol: Protocol, index: usize, form: NetdevForm<'_>) -> Vec<String> {
        let socket = self.socket(index);
        let mut words = Vec::new();
        let mut pairs = match protocol {
            Protocol::VhostUser => {
                let (chardev, again) = (self.chardev(index), self.facts.version.reconnect());
                let backend = format!("socket,id={chardev},path={},{}={}", double(&socket), again.0, again.1);
                words.extend(["-chardev".to_owned(), backend]);
                vec![("type", "vhost-user".into()), ("id", form.id.into()), ("chardev", chardev.into())]
            }
            Protocol::Stream => vec![
                ("type", "stream".into()),
                ("id", form.id.into()),
                ("server", false.into()),
                ("addr.type", "unix".into()),
                ("addr.path", socket.into()),
            ],
        };
        match protocol {
            Protocol::VhostUser if form.queues > 1 => pairs.push(("queues", form.queues.into())),
            Protocol::VhostUser => {}
            Protocol::Stream => {
                let again = self.facts.version.stream_reconnect();
                pairs.extend(again.map(|(key, time)| (key, time.into())));
            }
        }
        words.extend(["-netdev".to_owned(), properties::write(&pairs, form.json)]);
        words
    }

    /// The number of a hub that nobody else on the command line names; 0 is that of `-net`.
    pub fn free_hub(&self, index: usize) -> u64 {
        let networks =
            self.tokens.iter().filter(|token| matches!(token.name(), Some("net" | "netdev" | "nic")));
        let options = networks.filter_map(|token| Properties::parse(token.text()?, "type"));
        let numbers =
            options.flat_map(|options| ["hubid", "vlan"].map(|key| options.get(key)?.parse::<u32>().ok()));
        numbers.flatten().max().map_or(0, u64::from) + 1 + index as u64
    }

    /// Whether this QEMU crashes when the NIC has interrupt vectors.
    pub fn crashes_with_vectors(&self, model: &Model) -> bool {
        let kvm = self.machine.wants_kvm() && self.facts.kvm_usable;
        model.is_virtio() && self.facts.version.crashes_with_msix() && !kvm
    }

    /// A NIC connected to the netdev `id`, of so many queue pairs.
    pub fn nic(&self, nic: &Nic, model: &Model, id: &str, queues: u16) -> [String; 2] {
        // `-net nic` knows nothing of queue pairs, and QEMU 10 ignores its addr=. A device that claims
        // a slot may collide with a NIC that is created before it.
        let placed = nic.addr.is_some() || self.tokens.iter().any(has_slot);
        let device =
            model.device.as_deref().filter(|_| placed || queues > 1 || model.is_device_only(self.machine));
        let vectors = nic.vectors.as_deref().or(self.crashes_with_vectors(model).then_some("0"));
        let number = |text: &str| text.parse::<u32>().map_or_else(|_| text.into(), Value::from);
        let mut pairs = match (device, &model.device) {
            (Some(device), _) => vec![("driver", device.into()), ("netdev", id.into())],
            (None, Some(device)) => {
                vec![("type", "nic".into()), ("netdev", id.into()), ("model", device.as_str().into())]
            }
            (None, None) => vec![("type", "nic".into()), ("netdev", id.into())],
        };
        let rest: [(&str, Option<Value>); 5] = [
            (if device.is_some() { "mac" } else { "macaddr" }, nic.macaddr.as_deref().map(Value::from)),
            ("vectors", vectors.filter(|_| model.has_vectors()).map(number)),
            ("mq", (queues > 1).then_some(Value::from(true))),
            ("addr", nic.addr.as_deref().map(Value::from)),
            ("id", nic.id.as_deref().map(Value::from)),
        ];
        pairs.extend(rest.into_iter().filter_map(|(key, value)| Some((key, value?))));
        // QEMU creates devices that are written in JSON, as libvirt writes them, behind all others.
        let json = device.is_some() && self.tokens.iter().any(|token| has_slot(token) && is_json(token));
        [if device.is_some() { "-device" } else { "-net" }.to_owned(), properties::write(&pairs, json)]
    }

    /// The id of a hubport.
    pub fn hubport_id(&self, vlan: u32, number: usize) -> String {
        format!("{}{vlan}h{number}", self.prefix)
    }

    /// A hubport of hub `vlan`; `netdev` is what stands behind it, if that is not a NIC.
    pub fn hubport(&self, vlan: u32, number: usize, netdev: Option<&str>) -> Vec<String> {
        let mut text = format!("hubport,id={},hubid={vlan}", self.hubport_id(vlan, number));
        if let Some(netdev) = netdev {
            text.push_str(&format!(",netdev={}", double(netdev)));
        }
        vec!["-netdev".into(), text]
    }

    /// The text of a token's value.
    pub fn text(&self, at: usize) -> &str {
        self.tokens[at].text().unwrap_or("")
    }

    /// What is to be said of the model of a NIC that `option` makes.
    pub fn remark(&self, option: &str, nic: &Nic, model: &Model) -> Option<String> {
        let name = model.name();
        if !model.is_virtio() {
            return Some(self.slow(model, "model=virtio"));
        }
        let chosen = nic.model.is_some() || nic.token.is_none() || self.default_model.is_some();
        (!chosen).then(|| format!("{option} without model= is {name}; write model= to choose another"))
    }

    /// What is to be said of a NIC that is not virtio; `faster` is how one that is would be written, on a machine
    /// that takes one.
    pub fn slow(&self, model: &Model, faster: &str) -> String {
        let takes_virtio =
            self.machine.board.as_ref().is_some_and(|board| !matches!(board.bus, Bus::Isa | Bus::OnBoard));
        let hint = match takes_virtio {
            true => format!("; {faster} is faster if the guest has a driver for it"),
            false => String::new(),
        };
        format!("{} is not virtio, its frames pass one by one{hint}", model.name())
    }
}

/// Whether its value is written in JSON.
fn is_json(token: &Token) -> bool {
    token.text().is_some_and(|text| text.starts_with('{'))
}

/// Whether this is a device in a slot chosen by the user.
fn has_slot(token: &Token) -> bool {
    let text = token.text().filter(|_| token.is("device")).unwrap_or("");
    Properties::parse(text, "driver").is_some_and(|properties| properties.get("addr").is_some())
}
