//! `-netdev vde`: a netdev of our back end takes its place, under the same id.
//!
//! What uses the netdev decides how it is served, and stays as the user wrote it:
//!
//! | used by | becomes |
//! |---|---|
//! | `-device virtio-net-*`, `-net nic,netdev=` with virtio | a vhost-user netdev |
//! | any other NIC, a hubport | a stream netdev |
//! | a virtio NIC that a filter of QEMU listens to, or behind an IOMMU | a stream netdev |
//! | nobody on the command line | a vhost-user netdev, for a NIC that is plugged in later |
//!
//! A NIC is edited only where it would not work else: the model of a bare `-net nic`, `mq=on` for
//! several queue pairs, `vectors=0` for a QEMU that crashes with more.

use serde_json::Value;

use crate::argv::Token;
use crate::cli::Request;
use crate::error::Error;
use crate::legacy::Nic;
use crate::locator::Link;
use crate::machine::{Bus, Machine};
use crate::model::{Model, Protocol};
use crate::plan::NicPlan;
use crate::properties::Properties;
use crate::props::Props;
use crate::queues;
use crate::rewrite::Edits;
use crate::vde_words::VdeWords;
use crate::wiring::{NetdevForm, Wiring};

/// Why several queue pairs are refused.
pub const NO_QUEUES: &str =
    "several queue pairs are for virtio NICs that no filter listens to and no IOMMU holds; drop queues=";

/// A `-netdev vde`.
#[derive(Clone, Debug)]
pub struct Netdev {
    token: usize,
    id: String,
    link: Link,
    queues: u16,
    json: bool,
    user: Option<User>,
    model: Model,
    /// Why a virtio NIC is served frame by frame.
    held_back: Option<String>,
}

/// What a netdev is connected to.
#[derive(Clone, Debug)]
enum User {
    /// A `-device`.
    Device { token: usize, properties: Properties },
    /// A `-net nic,netdev=`.
    Nic { token: usize, props: Props },
    /// A hubport: whatever frames it hands on, it knows nothing of guest memory.
    Hub,
}

/// Reads all `-netdev vde`.
pub fn read(tokens: &[Token], machine: &Machine, request: &Request) -> Result<Vec<Netdev>, Error> {
    let mut netdevs = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if let Some(words) = VdeWords::read(token, "netdev")? {
            netdevs.push(Netdev::new(at, &words, tokens, machine, request)?);
        }
    }
    Ok(netdevs)
}

impl Netdev {
    fn new(
        token: usize,
        words: &VdeWords<'_>,
        tokens: &[Token],
        machine: &Machine,
        request: &Request,
    ) -> Result<Self, Error> {
        let link = words.link(&["id"], request.mode.as_deref())?;
        let Some(id) = words.properties.get("id") else {
            return Err(words.refuse(
                "id= is missing; write for example -netdev vde,id=net0 -device virtio-net-pci,netdev=net0",
            ));
        };
        let mut users = users(&id, tokens);
        if users.len() > 1 {
            return Err(words.refuse(format!(
                "netdev {id} is used {} times, but it serves one; give each NIC a -netdev vde of its own",
                users.len()
            )));
        }
        let user = users.pop();
        let mut model = match &user {
            Some(User::Device { properties, .. }) => {
                Model::of_driver(&properties.get("driver").unwrap_or_default())
            }
            Some(User::Nic { props, .. }) => {
                let model = Model::of(props.get("model"), request.default_model.as_deref(), machine);
                model.map_err(|problem| words.refuse(format!("its NIC: {problem}")))?
            }
            Some(User::Hub) => Model { device: None, protocol: Protocol::Stream },
            None => Model { device: None, protocol: Protocol::VhostUser },
        };
        let held_back = match &user {
            _ if !model.is_virtio() => None,
            _ if is_filtered(&id, tokens) => Some(filter_notice(&id)),
            Some(User::Device { properties, .. }) if properties.is_on("iommu_platform") => Some(format!(
                "the NIC of netdev {id} is behind an IOMMU by iommu_platform=on, so its frames pass one by one"
            )),
            _ => None,
        };
        if held_back.is_some() {
            model.protocol = Protocol::Stream;
        }
        let said = words.queues()?;
        if !model.is_virtio() && said.is_some_and(|queues| queues > 1) {
            return Err(words.refuse(NO_QUEUES));
        }
        let asks = matches!(&user, Some(User::Device { properties, .. }) if properties.is_on("mq"));
        let queues = said.or(request.queues).or_else(|| asks.then(|| queues::per_cpu(tokens)));
        let queues = queues.filter(|_| model.is_virtio()).unwrap_or(1);
        let json = matches!(words.properties, Properties::Json(_));
        Ok(Self { token, id, link, queues, json, user, model, held_back })
    }

    /// How the netdev is served.
    pub fn protocol(&self) -> Protocol {
        self.model.protocol
    }

    /// Its name, for messages.
    pub fn name(&self) -> String {
        format!("-netdev vde,id={}", self.id)
    }

    /// Puts our netdev on socket `index` in its place.
    pub fn wire(&self, wiring: &Wiring<'_>, index: usize, edits: &mut Edits) -> NicPlan {
        let form = NetdevForm { id: &self.id, queues: self.queues, json: self.json };
        edits.replace(self.token, wiring.netdev(self.model.protocol, index, form));
        let macaddr = match &self.user {
            Some(User::Device { token, properties }) => {
                self.adapt_device(*token, properties, wiring, edits);
                properties.get("mac")
            }
            Some(User::Nic { token, props }) => {
                self.adapt_nic(*token, props, wiring, edits);
                props.get("macaddr").map(str::to_owned)
            }
            Some(User::Hub) | None => None,
        };
        self.remark(wiring, edits);
        for key in self.link.useless() {
            edits.notice(format!("{key}= means nothing to {} and is ignored", self.link.sock));
        }
        NicPlan {
            vlan: None,
            model: self.model.device.clone(),
            macaddr,
            netdev: self.id.clone(),
            protocol: self.model.protocol,
            queues: self.queues,
            socket: wiring.socket(index),
            links: vec![self.link.locator()],
        }
    }

    fn adapt_device(&self, token: usize, properties: &Properties, wiring: &Wiring<'_>, edits: &mut Edits) {
        let driver = properties.get("driver").unwrap_or_default();
        let mut edited = properties.clone();
        if self.queues > 1 && properties.get("mq").is_none() {
            edited.set("mq", Value::Bool(true));
        }
        let pci = driver.starts_with("virtio-net-pci")
            || (driver == "virtio-net" && wiring.machine.bus() != Bus::Ccw);
        if pci && properties.get("vectors").is_none() && wiring.crashes_with_vectors(&self.model) {
            edited.set("vectors", 0.into());
        }
        if edited != *properties {
            edits.replace(token, ["-device", &edited.render()]);
        }
    }

    fn adapt_nic(&self, token: usize, props: &Props, wiring: &Wiring<'_>, edits: &mut Edits) {
        let nic = Nic::new(token, props);
        if self.model.is_device_only(wiring.machine) || self.queues > 1 {
            edits.replace(token, wiring.nic(&nic, &self.model, &self.id, self.queues));
            return;
        }
        let mut edited = props.clone();
        // `-net nic` knows virtio-net by no other name than these two.
        let has_name = nic.model.as_deref().is_some_and(|model| model != "virtio-net");
        if let Some(device) = self.model.device.as_ref().filter(|_| !has_name) {
            edited.set("model", device);
        }
        if nic.vectors.is_none() && wiring.crashes_with_vectors(&self.model) {
            edited.set("vectors", "0");
        }
        edited.rename("name", "id");
        // A NIC with a netdev= was in no segment, whatever it said.
        edited.remove("vlan");
        if edited != *props {
            edits.replace(token, ["-net", &edited.render()]);
        }
    }

    fn remark(&self, wiring: &Wiring<'_>, edits: &mut Edits) {
        let id = &self.id;
        if let Some(text) = &self.held_back {
            edits.notice(text.clone());
            return;
        }
        match &self.user {
            Some(User::Nic { token, props }) => {
                let remark = wiring.remark("-net nic", &Nic::new(*token, props), &self.model);
                remark.into_iter().for_each(|text| edits.notice(text));
            }
            Some(User::Device { .. }) if !self.model.is_virtio() => {
                edits.notice(wiring.slow(&self.model, "virtio-net-pci"));
            }
            Some(User::Device { .. }) => {}
            Some(User::Hub) => {
                edits.notice(format!("netdev {id} is in a hub of QEMU, its frames pass one by one"));
            }
            None => edits.notice(format!(
                "netdev {id} has no NIC; only virtio-net devices can be plugged into it later"
            )),
        }
    }
}

/// All that is connected to the netdev `id`.
fn users(id: &str, tokens: &[Token]) -> Vec<User> {
    let mut users = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let Some(text) = token.text() else { continue };
        let named = |implied| {
            Properties::parse(text, implied)
                .filter(|properties| properties.get("netdev").as_deref() == Some(id))
        };
        match token.name() {
            Some("device") => {
                users.extend(named("driver").map(|properties| User::Device { token: at, properties }));
            }
            Some("net") => {
                let props = Props::parse(text, "type");
                if props.get("type") == Some("nic") && props.get("netdev") == Some(id) {
                    users.push(User::Nic { token: at, props });
                }
            }
            Some("netdev") => users.extend(named("type").map(|_| User::Hub)),
            _ => {}
        }
    }
    users
}

/// What is to be said of a virtio NIC whose netdev a filter listens to.
pub fn filter_notice(id: &str) -> String {
    format!(
        "a filter listens to netdev {id}, so its frames pass one by one; without -object filter-... it is faster"
    )
}

/// Whether a filter object listens to the netdev. QEMU has none on vhost-user, whose frames it never sees.
pub fn is_filtered(id: &str, tokens: &[Token]) -> bool {
    let objects = tokens.iter().filter(|token| token.is("object")).filter_map(Token::text);
    objects.filter_map(|text| Properties::parse(text, "qom-type")).any(|object| {
        let kind = object.get("qom-type").unwrap_or_default();
        kind.starts_with("filter-") && object.get("netdev").as_deref() == Some(id)
    })
}
