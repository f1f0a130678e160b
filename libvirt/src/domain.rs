//! What a domain's XML says that concerns us, as it says it; nothing is judged here.
//!
//! The text comes from libvirt, but much of it was written by whoever defined the domain. It is read event by event with a
//! bounded length, depth and number of interfaces; there are no document types and no entities but those that XML has
//! of itself. Elements of other namespaces are passed over with all that is in them, unknown ones in ours are mistakes.

use std::collections::BTreeMap;

use quick_xml::NsReader;
use quick_xml::XmlVersion;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::name::{Namespace, ResolveResult};

use crate::Failure;

/// Our namespace.
pub const NAMESPACE: &str = "urn:vde:libvirt:1";
/// Most bytes that a domain's XML may have.
pub const LENGTH_MAX: usize = 1 << 20;
/// A disk can be the last of 200 images, each an element within the one before.
const DEPTH_MAX: usize = 512;
/// Of the elements that mean something here.
const DEPTH_OF_OURS: usize = 6;
/// Of one element that does; each is compared with all before it.
const ATTRIBUTES_MAX: usize = 64;
const INTERFACES_MAX: usize = 256;
/// Of `<vde:nic>` and `<vde:join>` in a domain, and of `<vde:link>` in one of them.
const MEMBERS_MAX: usize = 32;

/// A domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub uuid: String,
    /// The program that runs it.
    pub emulator: String,
    /// Its memory is one that a back end can map.
    pub shared_memory: bool,
    /// A part of it says that it is not.
    pub private_memory: bool,
    /// Whom libvirt runs QEMU as, if it says so: `+UID:+GID` or names.
    pub dac_label: Option<String>,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
    /// Our metadata, if it has any.
    pub nics: Option<Nics>,
}

/// An `<interface>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its `type=`.
    pub kind: String,
    /// Its address, in lower case.
    pub mac: String,
    /// Its alias, if it has one yet.
    pub alias: Option<String>,
    /// The model of its device.
    pub model: Option<String>,
    /// `path=` of its source.
    pub path: Option<String>,
    /// `mode=` of its source.
    pub mode: Option<String>,
    /// `dev=` of its source.
    pub dev: Option<String>,
    /// `type=` of its back end, which libvirt starts.
    pub backend: Option<String>,
    /// `queues=` of its driver.
    pub queues: Option<String>,
    /// QEMU connects again when the connection breaks.
    pub reconnects: bool,
    /// The guest sees that its cable is pulled.
    pub pulled: bool,
}

/// `<vde:nics>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nics {
    /// Its attributes, which are about the back end as a whole.
    pub settings: BTreeMap<String, String>,
    /// The NICs in it.
    pub nics: Vec<Nic>,
    /// The joins in it: the locators of each.
    pub joins: Vec<Vec<String>>,
}

/// `<vde:nic>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// The address of its interface.
    pub mac: Option<String>,
    /// The alias of its interface.
    pub alias: Option<String>,
    /// Its networks.
    pub links: Vec<String>,
}

impl Domain {
    /// What makes its memory one that a back end can map.
    pub fn remedy_of_memory(&self) -> &'static str {
        match self.private_memory {
            true => "take memAccess='private' out of <cell>, and access='private' out of <memory>",
            false => "add these lines to <memoryBacking>: <source type='memfd'/> <access mode='shared'/>",
        }
    }

    /// Reads a domain's XML.
    ///
    /// # Errors
    /// It is no XML, or beyond the limits, or there is something in our namespace that we do not know.
    pub fn read(text: &str) -> Result<Self, Failure> {
        if text.len() > LENGTH_MAX {
            return Err(Failure::new(format!("its XML is longer than {LENGTH_MAX} bytes")));
        }
        let mut xml = NsReader::from_str(text);
        let mut reading = Reading::default();
        loop {
            let (namespace, event) = xml.read_resolved_event().map_err(|e| no_xml(&e))?;
            let place = Place::of(&namespace);
            match event {
                Event::Start(start) => {
                    reading.enter(place, &start)?;
                }
                Event::Empty(start) => {
                    reading.enter(place, &start)?;
                    reading.leave()?;
                }
                Event::End(_) => reading.leave()?,
                Event::Text(text) => reading.text.push_str(&text.xml10_content()),
                Event::CData(text) => reading.text.push_str(&text.xml10_content()),
                Event::GeneralRef(reference) => reading.text.push_str(&resolve(&reference)?),
                Event::DocType(_) => return Err(Failure::new("its XML has a document type")),
                Event::Eof => return reading.finish(),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            }
        }
    }
}

fn no_xml(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("its XML cannot be read: {error}"))
}

/// A character by number, or one of the five names.
fn resolve(reference: &BytesRef<'_>) -> Result<String, Failure> {
    if let Some(character) = reference.resolve_char_ref().map_err(|e| no_xml(&e))? {
        return Ok(character.into());
    }
    let name = reference.xml10_content();
    resolve_predefined_entity(&name)
        .map(str::to_owned)
        .ok_or_else(|| Failure::new(format!("its XML has an entity, &{name};")))
}

/// Whose an element is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Libvirt,
    Ours,
    Others,
}

impl Place {
    fn of(namespace: &ResolveResult<'_>) -> Self {
        match namespace {
            ResolveResult::Unbound => Self::Libvirt,
            ResolveResult::Bound(Namespace(NAMESPACE)) => Self::Ours,
            ResolveResult::Bound(_) | ResolveResult::Unknown(_) => Self::Others,
        }
    }
}

type Attributes = BTreeMap<String, String>;

/// What was read so far.
#[derive(Default)]
struct Reading {
    domain: Domain,
    /// The names of the elements that we are in; ours begin with `vde:`, those of others are empty.
    path: Vec<String>,
    /// The text behind the last tag.
    text: String,
    /// Memory is shared unless a NUMA cell says otherwise.
    shared: bool,
    /// What NUMA cells say.
    cells: Vec<Option<String>>,
    /// A memory device says that it is private.
    private_device: bool,
    /// The `<seclabel>` that we are in, or were in last, is the one of users and groups.
    is_dac: bool,
}

impl Reading {
    fn enter(&mut self, place: Place, start: &BytesStart<'_>) -> Result<(), Failure> {
        let local = start.local_name();
        self.path.push(match place {
            Place::Libvirt => local.as_ref().to_owned(),
            Place::Ours => format!("vde:{}", local.as_ref()),
            Place::Others => String::new(),
        });
        self.text.clear();
        if self.path.len() > DEPTH_MAX {
            return Err(Failure::new(format!("its XML has more than {DEPTH_MAX} levels")));
        }
        if self.path.len() > DEPTH_OF_OURS {
            return Ok(());
        }
        let path = std::mem::take(&mut self.path);
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        let entered = self.enter_known(&words, start);
        self.path = path;
        entered
    }

    fn enter_known(&mut self, path: &[&str], start: &BytesStart<'_>) -> Result<(), Failure> {
        match path {
            ["domain", "devices", "interface", rest @ ..] => self.enter_interface(rest, attributes(start)?),
            ["domain", "metadata", "vde:nics", rest @ ..] => self.enter_ours(rest, attributes(start)?),
            ["domain", "memoryBacking", "access"] => {
                self.shared = attributes(start)?.get("mode").is_some_and(|mode| mode == "shared");
                Ok(())
            }
            ["domain", "cpu", "numa", "cell"] => {
                self.cells.push(attributes(start)?.remove("memAccess"));
                Ok(())
            }
            ["domain", "devices", "memory"] => {
                self.private_device |=
                    attributes(start)?.get("access").is_some_and(|access| access == "private");
                Ok(())
            }
            ["domain", "seclabel"] => {
                self.is_dac = attributes(start)?.get("model").is_some_and(|model| model == "dac");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn enter_interface(&mut self, path: &[&str], mut attributes: Attributes) -> Result<(), Failure> {
        let interfaces = &mut self.domain.interfaces;
        if path.is_empty() {
            if interfaces.len() == INTERFACES_MAX {
                return Err(Failure::new(format!("it has more than {INTERFACES_MAX} interfaces")));
            }
            let kind = attributes.remove("type").unwrap_or_default();
            interfaces.push(Interface { kind, ..Interface::default() });
            return Ok(());
        }
        let Some(interface) = interfaces.last_mut() else { return Ok(()) };
        match path {
            ["mac"] => interface.mac = attributes.remove("address").unwrap_or_default().to_lowercase(),
            ["alias"] => interface.alias = attributes.remove("name"),
            ["model"] => interface.model = attributes.remove("type"),
            ["link"] => interface.pulled = attributes.get("state").is_some_and(|state| state == "down"),
            ["backend"] => interface.backend = attributes.remove("type"),
            ["driver"] => interface.queues = attributes.remove("queues"),
            ["source"] => {
                interface.path = attributes.remove("path");
                interface.mode = attributes.remove("mode");
                interface.dev = attributes.remove("dev");
            }
            ["source", "reconnect"] => {
                interface.reconnects = attributes.get("enabled").is_some_and(|enabled| enabled == "yes");
            }
            _ => {}
        }
        Ok(())
    }

    /// Something in `<vde:nics>`.
    fn enter_ours(&mut self, path: &[&str], mut attributes: Attributes) -> Result<(), Failure> {
        if path.is_empty() {
            if self.domain.nics.is_some() {
                return Err(Failure::new("it has two <vde:nics>; it can have one"));
            }
            self.domain.nics = Some(Nics { settings: attributes, ..Nics::default() });
            return Ok(());
        }
        let Some(ours) = &mut self.domain.nics else { return Ok(()) };
        match path {
            ["vde:nic"] => {
                let mac = attributes.remove("mac").map(|mac| mac.to_lowercase());
                let alias = attributes.remove("alias");
                let links = attributes.remove("link").iter().map(|link| link.trim().to_owned()).collect();
                ours.nics.push(Nic { mac, alias, links });
                none_left("nic", "mac, alias and link", &attributes)?;
            }
            ["vde:join"] => {
                ours.joins.push(Vec::new());
                none_left("join", "no attributes, two <vde:link> in it instead", &attributes)?;
            }
            ["vde:nic" | "vde:join", "vde:link"] => {
                none_left("link", "no attributes, the locator as its text instead", &attributes)?;
            }
            [.., other] => {
                let other = if other.is_empty() { "an element of another namespace" } else { other };
                return Err(Failure::new(format!(
                    "there is {other} in <vde:nics>; known are <vde:nic> and <vde:join>, and <vde:link> in these"
                )));
            }
            [] => {}
        }
        match ours.nics.len().max(ours.joins.len()) > MEMBERS_MAX {
            true => Err(Failure::new(format!("it has more than {MEMBERS_MAX} <vde:nic> or <vde:join>"))),
            false => Ok(()),
        }
    }

    fn leave(&mut self) -> Result<(), Failure> {
        let path: Vec<&str> = self.path.iter().take(DEPTH_OF_OURS + 1).map(String::as_str).collect();
        let text = self.text.trim();
        match path.as_slice() {
            // To the letter: "web " is another domain than "web".
            ["domain", "name"] => self.domain.name.clone_from(&self.text),
            ["domain", "uuid"] => self.domain.uuid.clone_from(&self.text),
            ["domain", "devices", "emulator"] => self.domain.emulator = text.into(),
            ["domain", "seclabel", "label"] if self.is_dac => self.domain.dac_label = Some(text.into()),
            ["domain", "metadata", "vde:nics", kind, "vde:link"] => {
                let ours = self.domain.nics.as_mut();
                let links = ours.and_then(|ours| match *kind {
                    "vde:nic" => ours.nics.last_mut().map(|nic| &mut nic.links),
                    _ => ours.joins.last_mut(),
                });
                if let Some(links) = links {
                    if links.len() == MEMBERS_MAX {
                        return Err(Failure::new(format!("a NIC has more than {MEMBERS_MAX} links")));
                    }
                    links.push(text.into());
                }
            }
            _ => {}
        }
        self.path.pop();
        self.text.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<Domain, Failure> {
        if !self.path.is_empty() || self.domain.name.is_empty() || self.domain.uuid.is_empty() {
            return Err(Failure::new("its XML is not that of a whole domain"));
        }
        let says_shared = |cell: &Option<String>| cell.as_ref().map(|access| access == "shared");
        let is_shared = match self.cells.is_empty() {
            true => self.shared,
            false => self.cells.iter().all(|cell| says_shared(cell).unwrap_or(self.shared)),
        };
        // Devices are as their cell, if they do not say.
        self.domain.shared_memory = is_shared && !self.private_device;
        let is_private = |cell: &Option<String>| says_shared(cell) == Some(false);
        self.domain.private_memory = self.private_device || self.cells.iter().any(is_private);
        Ok(self.domain)
    }
}

/// An element's attributes, without those that name namespaces.
fn attributes(start: &BytesStart<'_>) -> Result<Attributes, Failure> {
    let mut attributes = Attributes::new();
    for (number, attribute) in start.attributes().enumerate() {
        if number == ATTRIBUTES_MAX {
            return Err(Failure::new(format!(
                "its XML has more than {ATTRIBUTES_MAX} attributes in one element"
            )));
        }
        let attribute = attribute.map_err(|e| no_xml(&e))?;
        let key = attribute.key.as_ref().to_owned();
        if key != "xmlns" && !key.starts_with("xmlns:") {
            let value = attribute.normalized_value(XmlVersion::Implicit1_0).map_err(|e| no_xml(&e))?;
            attributes.insert(key, value.into_owned());
        }
    }
    Ok(attributes)
}

fn none_left(element: &str, known: &str, attributes: &Attributes) -> Result<(), Failure> {
    match attributes.keys().next() {
        Some(key) => Err(Failure::new(format!("<vde:{element}> has {key}=; known are {known}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
