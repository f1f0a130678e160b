//! What becomes of the segments of the old `-net` syntax.
//!
//! | segment | becomes |
//! |---|---|
//! | one NIC, one `vde`, or all networks of a `-sock` list | a NIC that the back end serves, on these networks |
//! | NICs and `vde`s, more than one of a kind | NICs that the back end serves, on a hub of its own that it joins to the networks |
//! | `vde` beside members that are QEMU's (`user`, `tap`, …), or without any NIC | a hub of QEMU's with netdevs that the back end serves ([`crate::hub`]) |
//! | no `vde`, a number other than 0 or a `dump` | a hub of QEMU's |
//! | no `vde`, number 0 | what it is, QEMU's hub 0, without `vlan=` |
//!
//! So the back end serves *ports*: NICs, and netdevs that stand before a hub of QEMU's. What they become
//! stands where the NIC or the `vde` stood, and they are numbered in that order.

use crate::argv::Token;
use crate::cli::Request;
use crate::error::Error;
use crate::hub::Hub;
use crate::legacy::{self, Foreign, Nic, Segment};
use crate::locator::{self, Link};
use crate::machine::Machine;
use crate::model::{Model, Protocol};
use crate::netdev::{filter_notice, is_filtered};
use crate::plan::{Join, NicPlan};
use crate::props::{Props, double};
use crate::rewrite::Edits;
use crate::version::QemuVersion;
use crate::wiring::{NetdevForm, Wiring};

/// All segments of a command line.
#[derive(Debug, Default)]
pub struct Segments {
    ports: Vec<Port>,
    joined: Vec<Joined>,
    hubs: Vec<Hub>,
    /// Tokens of QEMU's hub 0.
    plain: Vec<usize>,
    /// The queue pairs that the user asked for.
    queues: Option<u16>,
}

/// Something that the back end serves on a socket of its own.
#[derive(Debug)]
struct Port {
    vlan: u32,
    plug: Plug,
    network: Network,
    /// Whether a filter listens to a NIC that is virtio.
    filtered: bool,
}

/// What a port is for QEMU.
#[derive(Debug)]
enum Plug {
    Nic(Nic, Model),
    /// A netdev in the place of this token; behind the hubport of this number, unless it is alone.
    Netdev(Option<usize>, Option<usize>),
}

/// What a port is plugged into.
#[derive(Debug)]
enum Network {
    /// These networks; those with a token have it removed.
    Links(Vec<(Option<usize>, Link)>),
    /// The back end's hub for its segment.
    Hub,
}

/// A hub of the back end's and what it is joined to.
#[derive(Debug)]
struct Joined {
    vlan: u32,
    links: Vec<(Option<usize>, Link)>,
}

impl Network {
    /// What the user calls the netdev that leads to it.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Links(links) if links.len() == 1 => links[0].1.name.as_deref(),
            Self::Links(_) | Self::Hub => None,
        }
    }
}

impl Segments {
    /// Says what becomes of each segment.
    pub fn new(
        segments: legacy::Segments,
        tokens: &[Token],
        machine: &Machine,
        request: &Request,
    ) -> Result<Self, Error> {
        let mut all = Self { queues: request.queues, ..Self::default() };
        let model = |nic: &Nic| nic.model(tokens, machine, request.default_model.as_deref());
        for (vlan, segment) in segments {
            all.add(vlan, segment, tokens, &model)?;
        }
        all.ports.sort_by_key(Port::at);
        Ok(all)
    }

    fn add(
        &mut self,
        vlan: u32,
        segment: Segment,
        tokens: &[Token],
        model: &dyn Fn(&Nic) -> Result<Model, Error>,
    ) -> Result<(), Error> {
        let Segment { nics, links, foreign } = &segment;
        if links.is_empty() && vlan == 0 && !foreign.iter().any(Foreign::is_dump) {
            let nics = nics.iter().filter_map(|nic| nic.token);
            self.plain.extend(nics.chain(foreign.iter().map(|foreign| foreign.token)));
            return Ok(());
        }
        if links.is_empty() || nics.is_empty() || !foreign.is_empty() {
            let (hub, links) = Hub::new(vlan, segment, tokens, model)?;
            self.hubs.push(hub);
            self.ports.extend(links.into_iter().map(|(number, token, link)| Port {
                vlan,
                plug: Plug::Netdev(token, number),
                network: Network::Links(vec![(None, link)]),
                filtered: false,
            }));
            return Ok(());
        }
        let is_list = links.iter().all(|(token, _)| token.is_none());
        let direct = nics.len() == 1 && (links.len() == 1 || is_list);
        for nic in nics {
            let network = if direct { Network::Links(links.clone()) } else { Network::Hub };
            let mut model = model(nic)?;
            let filtered = model.is_virtio() && network.name().is_some_and(|name| is_filtered(name, tokens));
            if filtered {
                model.protocol = Protocol::Stream;
            }
            self.ports.push(Port { vlan, plug: Plug::Nic(nic.clone(), model), network, filtered });
        }
        if !direct {
            self.joined.push(Joined { vlan, links: segment.links });
        }
        Ok(())
    }

    /// Whether the back end has something to serve, that is, whether there is a VDE link at all.
    pub fn needs_back_end(&self) -> bool {
        !self.ports.is_empty()
    }

    /// Puts all of them into words; gives what the back end serves, and what it joins. `program` is the
    /// emulator, for messages.
    pub fn wire(
        &self,
        program: &str,
        wiring: &Wiring<'_>,
        edits: &mut Edits,
    ) -> Result<(Vec<NicPlan>, Vec<Join>), Error> {
        let nics = self.ports.iter().enumerate();
        let nics = nics
            .filter_map(|(index, port)| port.wire(program, index, self.queues, wiring, edits).transpose());
        let nics = nics.collect::<Result<_, Error>>()?;
        let joins = self.joined.iter().map(|joined| joined.wire(wiring, edits)).collect();
        for hub in &self.hubs {
            hub.wire(wiring, edits)?;
        }
        for &at in &self.plain {
            let mut props = Props::parse(wiring.text(at), "type");
            if props.get("vlan").is_some() || props.get("name").is_some() {
                props.remove("vlan");
                props.rename("name", "id");
                edits.replace(at, ["-net", &props.render()]);
            }
        }
        Ok((nics, joins))
    }
}

impl Port {
    /// Where its words go.
    fn at(&self) -> Option<usize> {
        match &self.plug {
            Plug::Nic(nic, _) => nic.token,
            Plug::Netdev(token, _) => *token,
        }
    }

    fn protocol(&self) -> Protocol {
        match &self.plug {
            Plug::Nic(_, model) => model.protocol,
            Plug::Netdev(..) => Protocol::Stream,
        }
    }

    /// Puts it into words; gives what the back end serves, which is nothing where QEMU's own VDE client stands in.
    fn wire(
        &self,
        program: &str,
        index: usize,
        queues: Option<u16>,
        wiring: &Wiring<'_>,
        edits: &mut Edits,
    ) -> Result<Option<NicPlan>, Error> {
        let (protocol, version) = (self.protocol(), wiring.facts.version);
        let id = self.network.name().map_or_else(|| wiring.id(index), str::to_owned);
        let queues = queues.filter(|_| protocol == Protocol::VhostUser).unwrap_or(1);
        let is_native = protocol == Protocol::Stream && version < QemuVersion::OLDEST_WITH_STREAM;
        let mut words = match &self.network {
            _ if !is_native => wiring.netdev(protocol, index, NetdevForm { id: &id, queues, json: false }),
            Network::Links(links) if links.len() == 1 => native_netdev(&links[0].1, &id),
            _ => {
                let (program, version) = (program.to_owned(), version.to_string());
                return Err(Error::TooOldForStream { program, version, vlan: self.vlan });
            }
        };
        let links = match &self.network {
            Network::Links(links) => take_links(links, edits),
            Network::Hub => vec![hub_locator(self.vlan, wiring)],
        };
        let (model, macaddr) = match &self.plug {
            Plug::Nic(nic, model) => {
                if !model.has_vectors() && nic.vectors.is_some() {
                    edits.notice(format!("vectors= means nothing to {} and is ignored", model.name()));
                }
                let remark = match self.filtered {
                    true => Some(filter_notice(&id)),
                    false => wiring.remark("-net nic", nic, model),
                };
                remark.into_iter().for_each(|text| edits.notice(text));
                words.extend(wiring.nic(nic, model, &id, queues));
                (model.device.clone(), nic.macaddr.clone())
            }
            Plug::Netdev(_, number) => {
                let hubport = number.map(|number| wiring.hubport(self.vlan, number, Some(&id)));
                words.extend(hubport.unwrap_or_default());
                (Some("hubport".into()), None)
            }
        };
        edits.put(self.at(), words);
        let (vlan, socket) = (Some(self.vlan), wiring.socket(index));
        let nic = NicPlan { vlan, model, macaddr, netdev: id, protocol, queues, socket, links };
        if is_native {
            edits.notice(format!(
                "vlan {} is left to the VDE client of QEMU itself, because {version} has no -netdev stream; 7.2 has",
                self.vlan
            ));
        }
        Ok((!is_native).then_some(nic))
    }
}

impl Joined {
    fn wire(&self, wiring: &Wiring<'_>, edits: &mut Edits) -> Join {
        let socks: Vec<&str> = self.links.iter().map(|(_, link)| link.sock.as_str()).collect();
        if let Some((_, sock)) = socks.iter().enumerate().find(|(at, sock)| socks[..*at].contains(sock)) {
            let (vlan, name) = (self.vlan, if sock.is_empty() { "the default switch" } else { sock });
            edits.notice(format!(
                "vlan {vlan} joins {name} with itself: frames go round without end unless its ports are in different VLANs"
            ));
        }
        for name in self.links.iter().filter_map(|(_, link)| link.name.as_ref()) {
            edits.notice(format!(
                "name={name} is ignored, because the networks of vlan {} meet in the back end",
                self.vlan
            ));
        }
        Join { vlan: self.vlan, hub: hub_locator(self.vlan, wiring), links: take_links(&self.links, edits) }
    }
}

/// A link in the words of QEMU's own VDE client.
fn native_netdev(link: &Link, id: &str) -> Vec<String> {
    let mut text = format!("vde,id={}", double(id));
    let port = link.port.map(|port| port.to_string());
    let sock = Some(&link.sock).filter(|sock| !sock.is_empty());
    let pairs = [
        ("sock", sock),
        ("port", port.as_ref()),
        ("group", link.group.as_ref()),
        ("mode", link.mode.as_ref()),
    ];
    for (key, value) in pairs {
        text.extend(value.map(|value| format!(",{key}={}", double(value))));
    }
    vec!["-netdev".into(), text]
}

/// Takes links off the command line; gives their locators.
fn take_links(links: &[(Option<usize>, Link)], edits: &mut Edits) -> Vec<String> {
    for (token, link) in links {
        token.iter().for_each(|&at| edits.remove(at));
        for key in link.useless() {
            edits.notice(format!("{key}= means nothing to {} and is ignored", link.sock));
        }
    }
    links.iter().map(|(_, link)| link.locator()).collect()
}

/// The back end's hub for a segment.
fn hub_locator(vlan: u32, wiring: &Wiring<'_>) -> String {
    format!("hub://{}/hub{vlan}", locator::escape_path(&wiring.facts.private_dir))
}
