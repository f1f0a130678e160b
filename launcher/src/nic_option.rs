//! `-nic vde`: network and NIC in one option.
//!
//! QEMU makes the NICs of `-nic` first, then those of `-net nic`, then devices; the order decides about
//! slots and MAC addresses. So ours becomes a netdev and a `-net nic` if no other NIC comes between, and
//! else a `-nic` again, at the same place: of type `vhost-user`, or a port of a hub of its own with our
//! stream netdev on the other port, because `-nic` has no way to say where a stream goes. A virtio NIC that stays has no
//! interrupt vectors, as QEMU gives none to the NICs of `-nic`; one that leaves has.

use crate::argv::Token;
use crate::cli::Request;
use crate::error::Error;
use crate::legacy::Nic;
use crate::locator::Link;
use crate::machine::Machine;
use crate::model::{Model, Protocol};
use crate::netdev::{NO_QUEUES, filter_notice, is_filtered};
use crate::plan::NicPlan;
use crate::props::{Props, double};
use crate::rewrite::Edits;
use crate::vde_words::VdeWords;
use crate::wiring::{NetdevForm, Wiring};

/// A `-nic vde`.
#[derive(Clone, Debug)]
pub struct NicOption {
    token: usize,
    nic: Nic,
    /// The netdev's id, if the user gave it one.
    id: Option<String>,
    link: Link,
    queues: u16,
    model: Model,
    /// Whether a filter listens to a NIC that is virtio.
    filtered: bool,
    /// Whether it must stay a `-nic`.
    stays: bool,
}

/// Reads all `-nic vde`.
pub fn read(tokens: &[Token], machine: &Machine, request: &Request) -> Result<Vec<NicOption>, Error> {
    let mut options = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if let Some(words) = VdeWords::read(token, "nic")? {
            options.push(NicOption::new(at, &words, tokens, machine, request)?);
        }
    }
    // From the last one on: what stays keeps those before it from leaving.
    let ours: Vec<usize> = options.iter().map(|option| option.token).collect();
    let net_nic = tokens.iter().position(is_net_nic);
    let mut last_nic =
        tokens.iter().enumerate().rposition(|(at, token)| is_nic(token) && !ours.contains(&at));
    for option in options.iter_mut().rev() {
        let at = option.token;
        option.stays = last_nic.is_some_and(|last| at < last) || net_nic.is_some_and(|first| first < at);
        if option.stays {
            last_nic = last_nic.max(Some(at));
        }
    }
    Ok(options)
}

impl NicOption {
    fn new(
        token: usize,
        words: &VdeWords<'_>,
        tokens: &[Token],
        machine: &Machine,
        request: &Request,
    ) -> Result<Self, Error> {
        let link = words.link(&["id", "model", "mac"], request.mode.as_deref())?;
        let nic = Nic {
            token: Some(token),
            model: words.properties.get("model"),
            macaddr: words.properties.get("mac"),
            ..Nic::default()
        };
        let model = Model::of(nic.model.as_deref(), request.default_model.as_deref(), machine);
        let mut model = model.map_err(|problem| words.refuse(problem))?;
        let id = words.properties.get("id");
        let filtered = model.is_virtio() && id.as_ref().is_some_and(|id| is_filtered(id, tokens));
        if filtered {
            model.protocol = Protocol::Stream;
        }
        let said = words.queues()?;
        if !model.is_virtio() && said.is_some_and(|queues| queues > 1) {
            return Err(words.refuse(NO_QUEUES));
        }
        let queues = said.or(request.queues).filter(|_| model.is_virtio()).unwrap_or(1);
        Ok(Self { token, nic, id, link, queues, model, filtered, stays: false })
    }

    /// How the NIC is served.
    pub fn protocol(&self) -> Protocol {
        self.model.protocol
    }

    /// Its name, for messages.
    pub fn name(&self) -> String {
        format!("-nic vde,model={}", self.model.name())
    }

    /// Puts a NIC of our back end on socket `index` in its place.
    pub fn wire(&self, wiring: &Wiring<'_>, index: usize, edits: &mut Edits) -> NicPlan {
        let ours = wiring.id(index);
        let stays = self.stays && self.queues == 1 && !self.model.is_device_only(wiring.machine);
        let on_hub = stays && !self.model.is_virtio();
        // The id that the user gave is that of what the NIC is connected to.
        let netdev = self.id.as_ref().filter(|_| !on_hub).unwrap_or(&ours);
        let form = NetdevForm { id: netdev, queues: self.queues, json: false };
        let mut words = wiring.netdev(self.model.protocol, index, form);
        if !stays {
            words.extend(wiring.nic(&self.nic, &self.model, netdev, self.queues));
        } else if on_hub {
            let (port, hub) = (format!("{ours}h"), wiring.free_hub(index));
            words.extend(["-netdev".to_owned(), format!("hubport,id={port},hubid={hub},netdev={netdev}")]);
            words.extend(self.as_nic(&format!("hubport,hubid={hub}"), self.id.as_deref()));
        } else {
            // The chardev is the same; the netdev comes with the NIC.
            words.truncate(2);
            words.extend(self.as_nic(&format!("vhost-user,chardev={}", wiring.chardev(index)), Some(netdev)));
        }
        edits.replace(self.token, words);
        let remark = match self.filtered {
            true => Some(filter_notice(self.id.as_deref().unwrap_or(&ours))),
            false => wiring.remark("-nic vde", &self.nic, &self.model),
        };
        remark.into_iter().for_each(|text| edits.notice(text));
        for key in self.link.useless() {
            edits.notice(format!("{key}= means nothing to {} and is ignored", self.link.sock));
        }
        NicPlan {
            vlan: None,
            model: self.model.device.clone(),
            macaddr: self.nic.macaddr.clone(),
            netdev: netdev.clone(),
            protocol: self.model.protocol,
            queues: self.queues,
            socket: wiring.socket(index),
            links: vec![self.link.locator()],
        }
    }

    /// The NIC as a `-nic` of this type.
    fn as_nic(&self, kind: &str, id: Option<&str>) -> [String; 2] {
        let mut text = kind.to_owned();
        let rest =
            [("id", id), ("model", self.model.device.as_deref()), ("mac", self.nic.macaddr.as_deref())];
        for (key, value) in rest {
            if let Some(value) = value {
                text.push_str(&format!(",{key}={}", double(value)));
            }
        }
        ["-nic".to_owned(), text]
    }
}

/// Whether this is a `-nic` that makes a NIC.
fn is_nic(token: &Token) -> bool {
    token.is("nic") && Props::parse(token.text().unwrap_or(""), "type").get("type") != Some("none")
}

fn is_net_nic(token: &Token) -> bool {
    token.is("net") && Props::parse(token.text().unwrap_or(""), "type").get("type") == Some("nic")
}
