//! A segment as a hub of QEMU's, which is what every `vlan=N` was until QEMU 3.0.
//!
//! Such a hub exists only as the hubports that name it by `hubid=N`. Each network is a netdev behind a
//! hubport, each NIC stands before one. A `dump` is no member: it records what passes the first hubport,
//! and that is everything, because a hub sends each frame to all. One NIC and one network need no hub.
//!
//! VDE networks come in through netdevs that the back end serves frame by frame: in front of a vhost-user
//! netdev a hub carries nothing.

use crate::argv::Token;
use crate::error::Error;
use crate::legacy::{Foreign, Nic, Segment};
use crate::locator::Link;
use crate::model::Model;
use crate::props::{Props, double};
use crate::rewrite::Edits;
use crate::size;
use crate::wiring::Wiring;

/// A hub and its members, but for those that the back end serves.
#[derive(Debug)]
pub struct Hub {
    vlan: u32,
    members: Vec<Member>,
    /// One NIC and one network.
    is_pair: bool,
    notice: Option<String>,
}

/// A member, with the number of its hubport.
#[derive(Debug)]
enum Member {
    /// A NIC beside VDE.
    Nic(usize, Nic, Model),
    /// A NIC whose segment alone is our business, by its token.
    Plain(usize, usize),
    /// A network of QEMU's, by its token.
    Network(usize, usize),
    /// A recording, by its token; and whether there is a hubport.
    Dump(usize, bool),
}

/// A VDE link in a hub: the number of its hubport, unless it is alone, its token, and itself.
pub type Numbered = (Option<usize>, Option<usize>, Link);

impl Hub {
    /// Makes a hub of a segment; the links are for the back end.
    pub fn new(
        vlan: u32,
        segment: Segment,
        tokens: &[Token],
        model: &dyn Fn(&Nic) -> Result<Model, Error>,
    ) -> Result<(Self, Vec<Numbered>), Error> {
        let notice = notice(vlan, &segment);
        let Segment { nics, links, foreign } = segment;
        let (dumps, networks): (Vec<Foreign>, Vec<_>) = foreign.into_iter().partition(Foreign::is_dump);
        let link_count = links.len();
        let counts = (nics.len(), networks.len(), link_count, dumps.len());
        let is_alone = counts == (0, 0, 1, 0);
        let numbered = links.into_iter().enumerate();
        let links =
            numbered.map(|(number, (token, link))| ((!is_alone).then_some(number), token, link)).collect();
        let mut members = Vec::new();
        let mut numbers = link_count..;
        for (nic, number) in nics.into_iter().zip(&mut numbers) {
            nic.check(tokens)?;
            members.push(match nic.token.filter(|_| link_count == 0) {
                Some(at) => Member::Plain(number, at),
                None => Member::Nic(number, nic.clone(), model(&nic)?),
            });
        }
        members.extend(
            networks.iter().zip(numbers).map(|(member, number)| Member::Network(number, member.token)),
        );
        let has_ports = link_count > 0 || !members.is_empty();
        members.extend(dumps.iter().map(|dump| Member::Dump(dump.token, has_ports)));
        Ok((Self { vlan, members, is_pair: counts == (1, 1, 0, 0), notice }, links))
    }

    /// Puts the members into words.
    pub fn wire(&self, wiring: &Wiring<'_>, edits: &mut Edits) -> Result<(), Error> {
        for member in &self.members {
            match member {
                Member::Nic(number, nic, model) => {
                    let mut words = wiring.hubport(self.vlan, *number, None);
                    let id = wiring.hubport_id(self.vlan, *number);
                    words.extend(wiring.nic(nic, model, &id, 1));
                    let remark = wiring.remark("-net nic", nic, model).filter(|_| model.is_virtio());
                    remark.into_iter().for_each(|text| edits.notice(text));
                    edits.put(nic.token, words);
                }
                Member::Plain(number, at) => edits.put(Some(*at), self.plain_nic(*number, *at, wiring)),
                Member::Network(number, at) => edits.put(Some(*at), self.network(*number, *at, wiring)),
                Member::Dump(at, true) => edits.put(Some(*at), self.dump(*at, wiring)?),
                Member::Dump(at, false) => {
                    edits.notice(format!(
                        "-net dump in vlan {} has nothing to record and is left out",
                        self.vlan
                    ));
                    // Without any -net QEMU would add a NIC that nobody asked for.
                    edits.put(Some(*at), ["-nic".to_owned(), "none".to_owned()]);
                }
            }
        }
        self.notice.iter().for_each(|text| edits.notice(text.clone()));
        Ok(())
    }

    /// A NIC before its hubport, or before the only network.
    fn plain_nic(&self, number: usize, at: usize, wiring: &Wiring<'_>) -> Vec<String> {
        let mut props = Props::parse(wiring.text(at), "type");
        props.remove("vlan");
        props.rename("name", "id");
        let other = self.members.iter().find_map(|member| match member {
            Member::Network(number, at) if self.is_pair => Some(self.network_id(*number, *at, wiring)),
            _ => None,
        });
        let mut words = match other {
            Some(_) => Vec::new(),
            None => wiring.hubport(self.vlan, number, None),
        };
        props.set("netdev", &other.unwrap_or_else(|| wiring.hubport_id(self.vlan, number)));
        words.extend(["-net".into(), props.render()]);
        words
    }

    /// A network of QEMU's as a netdev, behind its hubport.
    fn network(&self, number: usize, at: usize, wiring: &Wiring<'_>) -> Vec<String> {
        let id = self.network_id(number, at, wiring);
        let mut props = Props::parse(wiring.text(at), "type");
        props.remove("vlan");
        props.remove("name");
        props.set("id", &id);
        let mut words = vec!["-netdev".into(), props.render()];
        if !self.is_pair {
            words.extend(wiring.hubport(self.vlan, number, Some(&id)));
        }
        words
    }

    /// The id of a network: the name that the user gave it, or one of ours.
    fn network_id(&self, number: usize, at: usize, wiring: &Wiring<'_>) -> String {
        let props = Props::parse(wiring.text(at), "type");
        let given = props.get("name").or_else(|| props.get("id")).map(str::to_owned);
        given.unwrap_or_else(|| format!("{}{}m{number}", wiring.prefix, self.vlan))
    }

    /// `-net dump[,file=][,len=]` as the filter that took its place.
    fn dump(&self, at: usize, wiring: &Wiring<'_>) -> Result<Vec<String>, Error> {
        let Self { vlan, .. } = self;
        let word = wiring.text(at);
        let props = Props::parse(word, "type");
        let file = props.get("file").map_or_else(|| format!("qemu-vlan{vlan}.pcap"), str::to_owned);
        let (id, netdev) = (format!("{}{vlan}d{at}", wiring.prefix), wiring.hubport_id(*vlan, 0));
        let mut text = format!("filter-dump,id={id},netdev={netdev},file={}", double(&file));
        if let Some(len) = props.get("len") {
            let bytes = size::parse(len, 1).ok_or_else(|| Error::Net {
                word: word.to_owned(),
                problem: format!("'{len}' is not a number of bytes; write for example len=65536"),
            })?;
            text.push_str(&format!(",maxlen={bytes}"));
        }
        Ok(vec!["-object".into(), text])
    }
}

/// What the user is told of a hub with VDE.
fn notice(vlan: u32, segment: &Segment) -> Option<String> {
    let Segment { nics, links, foreign } = segment;
    match foreign.first() {
        _ if links.is_empty() => None,
        None => Some(format!("-net vde in vlan {vlan} has no NIC; add -net nic,vlan={vlan}")),
        Some(_) if nics.is_empty() => None,
        Some(Foreign { kind, .. }) if kind == "dump" && foreign.len() == 1 => Some(format!(
            "-net dump records vlan {vlan} in QEMU, so frames pass one by one; --vde-capture FILE is faster"
        )),
        Some(Foreign { kind, .. }) => Some(format!(
            "-net {kind} shares vlan {vlan} with -net vde, so frames pass one by one; a vlan= for each is faster"
        )),
    }
}
