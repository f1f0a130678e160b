//! From an old command line to one that a present QEMU understands. No side effects.
//!
//! Each `-net` segment with a VDE link gets one of these roles:
//!
//! | segment | becomes |
//! |---|---|
//! | one virtio NIC, one or more links | chardev, vhost-user netdev and the NIC, at the NIC's place |
//! | one NIC of another model, one or more links | stream netdev and the NIC, at the NIC's place |
//! | links, no NIC | nothing, with a warning: QEMU would idle as well |
//! | anything that needs a hub | a refusal |
//!
//! The modern forms are in [`crate::modern`].
//!
//! A command line without any VDE option comes out exactly as it went in, and so does the outcome of
//! a rewriting.

use std::ffi::{OsStr, OsString};

use crate::argv::{Token, scan};
use crate::cli::Request;
use crate::error::Error;
use crate::legacy::{self, Nic, Segment, Segments};
use crate::locator::Link;
use crate::machine::Machine;
use crate::memory;
use crate::model::{Model, Protocol};
use crate::modern::Modern;
use crate::plan::{BackEnd, NicPlan, Plan};
use crate::props::Props;
use crate::version::QemuVersion;
use crate::wiring::{NetdevForm, Wiring};

/// What must be known beyond the command line, for a VM with a NIC of ours.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The version of the emulator.
    pub version: QemuVersion,
    /// Whether the host lets us use KVM.
    pub kvm_usable: bool,
    /// The directory for the sockets of this VM.
    pub private_dir: String,
    /// User and group that QEMU will run as, if it shall become somebody else.
    pub run_as: Option<(u32, u32)>,
}

/// A command line that was read and understood.
#[derive(Debug)]
pub struct Rewrite {
    tokens: Vec<Token>,
    machine: Machine,
    segments: Segments,
    served: Vec<Served>,
    modern: Modern,
    prefix: String,
    request: Request,
}

/// A segment with one NIC and at least one link.
#[derive(Debug)]
struct Served {
    vlan: u32,
    nic: Nic,
    links: Vec<(Option<usize>, Link)>,
    model: Model,
}

impl Rewrite {
    /// Reads a command line; `program` is the emulator's file name.
    pub fn read(program: &str, request: &Request) -> Result<Self, Error> {
        let tokens = scan(&request.args);
        let machine = Machine::read(program, &tokens);
        // Questions to QEMU, and the VM without anything that is used to ask them, stay as they are.
        let asks = machine.is_none() || tokens.iter().any(Token::is_query);
        let segments = match asks {
            true => Segments::new(),
            false => legacy::read(&tokens, request.sock.as_deref(), request.mode.as_deref())?,
        };
        let modern = match asks {
            true => Modern::default(),
            false => Modern::read(&tokens, &machine, request)?,
        };
        let has_vde = !modern.is_empty() || segments.values().any(|segment| !segment.links.is_empty());
        if let Some(last) = tokens.last().filter(|last| has_vde && last.lacks_value()) {
            return Err(Error::MissingValue(last.words()[0].to_string_lossy().into_owned()));
        }
        let mut served = Vec::new();
        for (&vlan, segment) in &segments {
            served.extend(serve(vlan, segment, &tokens, &machine, request.default_model.as_deref())?);
        }
        served.sort_by_key(|served| served.nic.token);
        let prefix = unused_prefix(&request.args);
        Ok(Self { tokens, machine, segments, served, modern, prefix, request: request.clone() })
    }

    /// Whether the VM gets a NIC that our back end serves: then [`Facts`] are needed.
    pub fn needs_back_end(&self) -> bool {
        !self.served.is_empty() || !self.modern.is_empty()
    }

    /// The plan for a VM; `program` is the path of the emulator.
    pub fn plan(&self, program: &OsStr, facts: &Facts) -> Result<Plan, Error> {
        let mut edits = Edits::new(self.tokens.len());
        if self.segments.values().any(|segment| !segment.links.is_empty()) {
            self.drop_unused(&mut edits);
            self.free_foreign(&mut edits)?;
        }
        let wiring = Wiring {
            tokens: &self.tokens,
            machine: &self.machine,
            facts,
            prefix: &self.prefix,
            default_model: self.request.default_model.as_deref(),
        };
        let mut nics = Vec::new();
        for (index, served) in self.served.iter().enumerate() {
            if !served.model.is_virtio() && facts.version < QemuVersion::OLDEST_WITH_STREAM {
                return Err(Error::TooOldForModel {
                    program: program.to_string_lossy().into_owned(),
                    version: facts.version.to_string(),
                    model: served.model.name().to_owned(),
                });
            }
            nics.push(self.wire(served, index, &wiring, &mut edits));
        }
        self.modern.wire(&wiring, &mut nics, &mut edits);
        let mut plan = Plan { program: program.to_owned(), ..Plan::default() };
        if nics.iter().any(|nic| nic.protocol == Protocol::VhostUser) {
            plan.memory = Some(memory::share(&self.machine, &self.tokens, &mut edits)?);
        }
        if !nics.is_empty() {
            plan.qemu_version = Some(facts.version.to_string());
            let private_dir = facts.private_dir.clone();
            let (socket_owner, settings) = (facts.run_as, self.request.settings.clone());
            plan.back_end = Some(BackEnd { private_dir, socket_owner, settings, nics });
        }
        plan.arguments = edits.apply(&self.tokens);
        plan.notices = edits.notices;
        Ok(plan)
    }

    /// Takes links without a NIC off the command line.
    fn drop_unused(&self, edits: &mut Edits) {
        for (vlan, segment) in self.segments.iter().filter(|(_, segment)| segment.nics.is_empty()) {
            for (token, _) in &segment.links {
                let at = token.iter().copied();
                at.for_each(|at| edits.remove(at));
            }
            if !segment.links.is_empty() {
                edits.notice(format!(
                    "-net vde in vlan {vlan} has no NIC and is left out; add -net nic,vlan={vlan}"
                ));
            }
        }
        let network = |token: &Token| matches!(token.name(), Some("net" | "nic" | "netdev" | "nodefaults"));
        let left = self.tokens.iter().enumerate().any(|(at, token)| network(token) && !edits.is_removed(at));
        // Without any of these QEMU would add a NIC on its user network, which nobody asked for.
        if !left && self.served.is_empty() {
            edits.append(["-nic", "none"]);
        }
    }

    /// Makes a segment that has nothing to do with VDE acceptable to QEMU: one such segment can be
    /// QEMU's hub 0 whatever its number was.
    fn free_foreign(&self, edits: &mut Edits) -> Result<(), Error> {
        let mut plain = self.segments.iter().filter(|(_, segment)| segment.links.is_empty());
        let Some((_, segment)) = plain.next() else { return Ok(()) };
        if let Some((&vlan, _)) = plain.next() {
            return Err(Error::Segment {
                vlan,
                problem: "a second segment without VDE is not supported yet; write its members as -netdev TYPE,id=ID \
                          and -device MODEL,netdev=ID"
                    .into(),
            });
        }
        let nics = segment.nics.iter().filter_map(|nic| nic.token);
        for at in nics.chain(segment.foreign.iter().map(|foreign| foreign.token)) {
            let mut props = Props::parse(self.tokens[at].text().unwrap_or(""), "type");
            if props.get("vlan").is_some() || props.get("name").is_some() {
                props.remove("vlan");
                props.rename("name", "id");
                edits.replace(at, ["-net", &props.render()]);
            }
        }
        Ok(())
    }

    /// Turns a segment into a NIC that the back end serves.
    fn wire(&self, served: &Served, index: usize, wiring: &Wiring<'_>, edits: &mut Edits) -> NicPlan {
        let Served { nic, model, .. } = served;
        let id = wiring.id(index);
        let queues = self.request.queues.filter(|_| model.is_virtio()).unwrap_or(1);
        let mut words = wiring.netdev(model.protocol, index, NetdevForm { id: &id, queues, json: false });
        if !model.has_vectors() && nic.vectors.is_some() {
            edits.notice(format!("vectors= means nothing to {} and is ignored", model.name()));
        }
        words.extend(wiring.nic(nic, model, &id, queues));
        match nic.token {
            Some(at) => edits.replace(at, words),
            None => edits.prepend(words),
        }
        for (token, link) in &served.links {
            token.iter().for_each(|&at| edits.remove(at));
            for key in link.useless() {
                edits.notice(format!("{key}= means nothing to {} and is ignored", link.sock));
            }
        }
        wiring.remark("-net nic", nic, model).into_iter().for_each(|text| edits.notice(text));
        NicPlan {
            vlan: Some(served.vlan),
            model: model.device.clone(),
            macaddr: nic.macaddr.clone(),
            netdev: id,
            protocol: model.protocol,
            queues,
            socket: wiring.socket(index),
            links: served.links.iter().map(|(_, link)| link.locator()).collect(),
        }
    }
}

/// Decides who serves a segment; `None` if nobody has to.
fn serve(
    vlan: u32,
    segment: &Segment,
    tokens: &[Token],
    machine: &Machine,
    default_model: Option<&str>,
) -> Result<Option<Served>, Error> {
    let refuse = |problem: String| Err(Error::Segment { vlan, problem });
    if segment.links.is_empty() {
        return Ok(None);
    }
    if let Some(foreign) = segment.foreign.first() {
        let kind = &foreign.kind;
        return refuse(format!(
            "-net {kind} beside -net vde is not supported yet; give it a NIC of its own: \
             -netdev {kind},id=other -device virtio-net-pci,netdev=other"
        ));
    }
    let nic = match segment.nics.as_slice() {
        [] => return Ok(None),
        [nic] => nic.clone(),
        _ => {
            return refuse(
                "several NICs on one -net vde are not supported yet; give each its own -net vde with another vlan=".into(),
            );
        }
    };
    nic.check(tokens)?;
    let model = Model::of(nic.model.as_deref(), default_model, machine).map_err(|problem| Error::Net {
        word: nic.token.and_then(|at| tokens[at].text()).unwrap_or("nic").to_owned(),
        problem,
    })?;
    Ok(Some(Served { vlan, nic, links: segment.links.clone(), model }))
}

/// A beginning of ids that no word of the user contains.
fn unused_prefix(args: &[OsString]) -> String {
    let mut prefix = String::from("vdeq");
    let taken = |prefix: &str| args.iter().any(|word| word.to_string_lossy().contains(&format!("{prefix}0")));
    while taken(&prefix) {
        prefix.push('x');
    }
    prefix
}

/// Changes to the argument list, kept apart from it so that every other word stays as it was.
#[derive(Debug)]
pub struct Edits {
    front: Vec<OsString>,
    replaced: Vec<Option<Vec<OsString>>>,
    back: Vec<OsString>,
    notices: Vec<String>,
}

impl Edits {
    fn new(tokens: usize) -> Self {
        Self { front: Vec::new(), replaced: vec![None; tokens], back: Vec::new(), notices: Vec::new() }
    }

    /// Puts words in the place of a token.
    pub fn replace<S: AsRef<str>>(&mut self, at: usize, words: impl IntoIterator<Item = S>) {
        self.replaced[at] = Some(words.into_iter().map(|word| word.as_ref().into()).collect());
    }

    /// Takes a token away.
    pub fn remove(&mut self, at: usize) {
        self.replaced[at] = Some(Vec::new());
    }

    /// Adds words behind everything else.
    pub fn append<S: AsRef<str>>(&mut self, words: impl IntoIterator<Item = S>) {
        self.back.extend(words.into_iter().map(|word| OsString::from(word.as_ref())));
    }

    /// Tells the user something before QEMU starts.
    pub fn notice(&mut self, text: String) {
        if !self.notices.contains(&text) {
            self.notices.push(text);
        }
    }

    fn prepend<S: AsRef<str>>(&mut self, words: impl IntoIterator<Item = S>) {
        self.front.extend(words.into_iter().map(|word| OsString::from(word.as_ref())));
    }

    fn is_removed(&self, at: usize) -> bool {
        self.replaced[at].as_ref().is_some_and(Vec::is_empty)
    }

    fn apply(&self, tokens: &[Token]) -> Vec<OsString> {
        let middle = tokens.iter().zip(&self.replaced);
        let middle = middle.flat_map(|(token, new)| new.as_deref().unwrap_or(token.words()));
        self.front.iter().chain(middle).chain(&self.back).cloned().collect()
    }
}
