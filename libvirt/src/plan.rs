//! From a domain and a policy to the back end that it needs. All that can be known before anything is made is judged here.

use std::path::{Path, PathBuf};

use crate::Failure;
use crate::domain::{Domain, Interface, NAMESPACE, Nic};
use crate::policy::Policy;

/// Longest path of a Unix socket.
const SOCKET_MAX: usize = 107;
/// Of a UUID as text.
const UUID_LENGTH: usize = 36;
/// Most queue pairs that a NIC can have.
pub const QUEUES_MAX: u16 = 16;
/// The back end's option for networks that cannot be opened yet.
const KEEP_GOING: &str = "--keep-going";
/// The options of the back end that `<vde:nics>` takes.
const SETTINGS: &str = "poll-us, offloads, keep-going, capture, description and log-level";

/// A back end, not started yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where its sockets are.
    pub directory: PathBuf,
    /// Its NICs.
    pub nics: Vec<NicPlan>,
    /// Its joins, as `--join` wants them.
    pub joins: Vec<String>,
    /// What concerns all of them, as words of its command line.
    pub options: Vec<String>,
    /// It makes or changes interfaces.
    pub privileged: bool,
    /// What will work, but not as well as it could.
    pub remarks: Vec<String>,
}

/// One NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicPlan {
    /// The socket's name in the directory.
    pub socket: String,
    /// Its alias, its address and its model, by which people know it.
    pub nic: registry::Nic,
    /// `queues=` and `link=` of `--nic`.
    pub words: String,
}

/// The directory of a domain below `base`: named as the domain, or by its UUID, whichever its interfaces say.
///
/// # Errors
/// Its name cannot be that of a directory.
pub fn directories(base: &Path, domain: &Domain) -> Result<[PathBuf; 2], Failure> {
    let [name, uuid] = [&domain.name, &domain.uuid];
    if [name, uuid].iter().any(|word| word.contains('/') || matches!(word.as_str(), "" | "." | "..")) {
        return Err(Failure::new("its name cannot be that of a directory; rename it"));
    }
    // The directory that another domain may have by its UUID.
    let is_uuid =
        name.len() == UUID_LENGTH && name.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
    if is_uuid && name != uuid {
        return Err(Failure::new("its name is a UUID, but not its own; rename it"));
    }
    Ok([base.join(name), base.join(uuid)])
}

impl Plan {
    /// The back end that the domain needs; `None` if it asks for none.
    ///
    /// # Errors
    /// What the domain asks for is not allowed, or does not fit together.
    pub fn new(domain: &Domain, base: &Path, policy: &Policy) -> Result<Option<Self>, Failure> {
        let Some(ours) = &domain.nics else { return Ok(None) };
        if ours.nics.is_empty() {
            return Err(Failure::new("<vde:nics> is empty; put a <vde:nic mac='...' link='...'/> into it"));
        }
        if !domain.shared_memory {
            return Err(Failure::new(format!(
                "the guest's memory is not shared; {}",
                domain.remedy_of_memory()
            )));
        }
        let mut plan = Self {
            directory: PathBuf::new(),
            nics: Vec::new(),
            joins: Vec::new(),
            options: options(domain, policy)?,
            privileged: false,
            remarks: Vec::new(),
        };
        let allowed = directories(base, domain)?;
        let (mut served, mut gone) = (Vec::new(), Vec::new());
        for nic in &ours.nics {
            let Some(index) = find(nic, &domain.interfaces)? else {
                gone.push(nic);
                continue;
            };
            if served.contains(&index) {
                return Err(Failure::new(format!(
                    "{} has two <vde:nic>; give it one with several links",
                    shown(nic)
                )));
            }
            served.push(index);
            plan.add(nic, index, domain, &allowed, policy)?;
        }
        for links in &ours.joins {
            if links.len() != 2 {
                return Err(Failure::new("a <vde:join> has two <vde:link> in it, no more and no less"));
            }
            plan.joins.push(link_words(links, policy)?);
        }
        let links = ours.nics.iter().filter(|nic| !gone.contains(nic)).flat_map(|nic| &nic.links);
        plan.privileged = policy.grant_together(links.chain(ours.joins.iter().flatten()))?;
        let all_served = waiting(domain, &served, base, &allowed).map_or(Ok(()), |(_, failure)| Err(failure));
        match gone.first() {
            Some(nic) if served.is_empty() || all_served.is_err() => {
                return Err(no_interface(nic, &domain.interfaces));
            }
            _ => all_served?,
        }
        plan.remarks.extend(gone.into_iter().map(|nic| passed_over(nic, &domain.interfaces)));
        Ok(Some(plan))
    }

    fn add(
        &mut self,
        nic: &Nic,
        index: usize,
        domain: &Domain,
        allowed: &[PathBuf; 2],
        policy: &Policy,
    ) -> Result<(), Failure> {
        let failed = |sentence: String| Err(Failure::new(format!("{}: {sentence}", shown(nic))));
        let Some(interface) = domain.interfaces.get(index) else { return Ok(()) };
        if nic.links.is_empty() {
            return failed("it has no network; add link='LOCATOR', or <vde:link>LOCATOR</vde:link>".into());
        }
        let path = Path::new(match usable(interface, &allowed[0]) {
            Ok(path) => path,
            Err(sentence) => return failed(sentence),
        });
        let (directory, socket) = match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
            (Some(directory), Some(name)) if allowed.iter().any(|ours| ours == directory) => {
                (directory, name)
            }
            _ => {
                return failed(format!(
                    "its socket {} is not in the domain's directory; call it {}/{index}.sock",
                    path.display(),
                    allowed[0].display()
                ));
            }
        };
        let number = socket.strip_suffix(".sock").filter(|number| !number.is_empty());
        if number
            .is_none_or(|number| !number.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'))
            || socket == registry::CONTROL
        {
            return failed(format!("its socket {socket} has an odd name; call it {index}.sock"));
        }
        if path.as_os_str().len() > SOCKET_MAX {
            return failed(format!(
                "the path of its socket is longer than {SOCKET_MAX} bytes; use the domain's UUID in it: {}/{index}.sock",
                allowed[1].display()
            ));
        }
        if !self.nics.is_empty() && self.directory != directory {
            return failed("its socket is in another directory than that of the NIC before".into());
        }
        if self.nics.iter().any(|before| before.socket == socket) {
            return failed(format!("its socket {socket} is that of another NIC, too"));
        }
        let queues = interface.queues.as_deref().unwrap_or("1");
        if !queues.parse().is_ok_and(|number: u16| (1..=QUEUES_MAX).contains(&number)) {
            return failed(format!(
                "queues='{queues}' of its <driver>: a NIC has 1 to {QUEUES_MAX} queue pairs"
            ));
        }
        if !interface.reconnects {
            self.remarks.push(format!(
                "{}: it stays without a network once its back end was started again; add <reconnect enabled='yes' \
                 timeout='1'/> to its <source>",
                shown(nic)
            ));
        }
        self.directory = directory.into();
        let links = link_words(&nic.links, policy)?;
        let known = registry::Nic {
            id: name(index, &domain.interfaces),
            mac: interface.mac.clone(),
            model: interface.model.clone().unwrap_or_else(|| "virtio".into()),
        };
        let words = format!("queues={queues},{links}");
        self.nics.push(NicPlan { socket: socket.into(), nic: known, words });
        Ok(())
    }

    /// The back end shall serve though a network cannot be opened: there is a guest that may have it back later.
    pub fn keep_going(&mut self) {
        // The domain may have said so itself, and the option is not taken twice.
        if !self.options.iter().any(|option| option == KEEP_GOING) {
            self.options.push(KEEP_GOING.into());
        }
    }
}

/// `link=A,link=B`.
fn link_words(links: &[String], policy: &Policy) -> Result<String, Failure> {
    let word = |link: &String| Ok(format!("link={}", doubled(&policy.grant(link)?.locator)));
    let words: Vec<String> = links.iter().map(word).collect::<Result<_, _>>()?;
    Ok(words.join(","))
}

/// The interface's socket, if a back end can serve it.
fn usable<'a>(interface: &'a Interface, directory: &Path) -> Result<&'a str, String> {
    if interface.kind != "vhostuser" {
        return Err(format!("its interface has type='{}'; it must be type='vhostuser'", interface.kind));
    }
    let model = interface.model.as_deref().unwrap_or("virtio");
    if !matches!(model, "virtio" | "virtio-transitional" | "virtio-non-transitional") {
        return Err(format!("its interface has the model '{model}'; only virtio can be served"));
    }
    let source = format!(
        "<source type='unix' path='{}/0.sock' mode='client'><reconnect enabled='yes' timeout='1'/></source>",
        directory.display()
    );
    match (&interface.path, interface.mode.as_deref()) {
        (None, _) => Err(format!("its interface has no socket; add {source}")),
        (Some(_), mode) if mode != Some("client") => {
            let mode = mode.unwrap_or_default();
            Err(format!("its interface has mode='{mode}', where QEMU waits for us; write {source}"))
        }
        (Some(path), _) => Ok(path),
    }
}

/// A socket of ours at which an interface waits though no `<vde:nic>` is about it, and what to say of that: QEMU would wait
/// for ever, or come to another domain's back end.
pub fn waiting<'a>(
    domain: &'a Domain,
    served: &[usize],
    base: &Path,
    allowed: &[PathBuf; 2],
) -> Option<(&'a Path, Failure)> {
    let others = domain.interfaces.iter().enumerate().filter(|(index, _)| !served.contains(index));
    others.filter(|(_, interface)| interface.kind == "vhostuser").find_map(|(index, interface)| {
        let socket = Path::new(interface.path.as_deref()?);
        let mac = &interface.mac;
        socket.starts_with(base).then(|| {
            let failure = Failure::new(match is_within(socket, allowed) {
                true => format!(
                    "the interface {mac} has the socket {}, and <metadata> does not say where it leads to; add \
                     <vde:nic mac='{mac}' link='vde:///run/switch'/> to <vde:nics xmlns:vde='{NAMESPACE}'>",
                    socket.display()
                ),
                false => format!(
                    "the interface {mac} has the socket {}, in the directory of another domain; call it {}/{index}.sock",
                    socket.display(),
                    allowed[0].display()
                ),
            });
            (socket, failure)
        })
    })
}

/// Whether a socket is directly in the domain's directory.
pub fn is_within(socket: &Path, allowed: &[PathBuf; 2]) -> bool {
    allowed.iter().any(|directory| socket.parent() == Some(directory))
}

/// What a `<vde:nic>` is called.
fn shown(nic: &Nic) -> String {
    match (&nic.mac, &nic.alias) {
        (Some(mac), _) => format!("NIC {mac}"),
        (None, Some(alias)) => format!("NIC {alias}"),
        (None, None) => "a NIC".into(),
    }
}

/// The interface that a `<vde:nic>` means, by its number, if there is one.
///
/// # Errors
/// There are two, or it cannot be told.
pub fn find(nic: &Nic, interfaces: &[Interface]) -> Result<Option<usize>, Failure> {
    let fits = |index: usize| match (&nic.mac, &nic.alias) {
        (Some(mac), None) => interfaces.get(index).is_some_and(|interface| interface.mac == *mac),
        (None, Some(alias)) => name(index, interfaces) == *alias,
        _ => false,
    };
    if nic.mac.is_some() == nic.alias.is_some() {
        return Err(Failure::new(format!(
            "{} is to have either mac= or alias= of its interface",
            shown(nic)
        )));
    }
    let mut found = (0..interfaces.len()).filter(|index| fits(*index));
    match (found.next(), found.next()) {
        (found, None) => Ok(found),
        (_, Some(_)) => Err(Failure::new(format!("there are two <interface> for the {}", shown(nic)))),
    }
}

fn no_interface(nic: &Nic, interfaces: &[Interface]) -> Failure {
    let macs: Vec<&str> = interfaces.iter().map(|interface| interface.mac.as_str()).collect();
    Failure::new(match (&nic.mac, macs.is_empty()) {
        (Some(mac), _) if !is_mac(mac) => format!("mac='{mac}' is no address, as 52:54:00:12:34:56 is one"),
        (_, true) => format!("there is no <interface> for the {}: the domain has none", shown(nic)),
        (_, false) => {
            format!("there is no <interface> for the {}; the domain's have {}", shown(nic), macs.join(", "))
        }
    })
}

/// libvirt leaves metadata alone when it unplugs a NIC, or when the guest has let go of one at last. A domain that was saved
/// so must not be lost.
fn passed_over(nic: &Nic, interfaces: &[Interface]) -> String {
    let missing = no_interface(nic, interfaces);
    format!("{missing}; it is passed over; if it was unplugged, remove its <vde:nic> as well")
}

fn is_mac(text: &str) -> bool {
    let octets: Vec<&str> = text.split(':').collect();
    octets.len() == 6
        && octets.iter().all(|octet| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The alias of an interface. Those that have none yet get net0, net1, ... from libvirt in their order, but for devices of the
/// host, which are counted by themselves and never ours.
fn name(index: usize, interfaces: &[Interface]) -> String {
    let counts = |interface: &&Interface| interface.alias.is_none() && interface.kind != "hostdev";
    let before = interfaces.iter().take(index).filter(counts).count();
    match interfaces.get(index) {
        Some(Interface { alias: Some(alias), .. }) => alias.clone(),
        Some(Interface { kind, .. }) if kind == "hostdev" => kind.clone(),
        _ => format!("net{before}"),
    }
}

/// The words for the attributes of `<vde:nics>`.
fn options(domain: &Domain, policy: &Policy) -> Result<Vec<String>, Failure> {
    let mut words = Vec::new();
    let description = format!("libvirt domain {}", domain.name);
    let settings = domain.nics.as_ref().map(|ours| &ours.settings);
    if !settings.is_some_and(|settings| settings.contains_key("description")) {
        words.push(format!("--description={description}"));
    }
    for (key, value) in settings.into_iter().flatten() {
        let odd = |right: &str| Err(Failure::new(format!("{key}='{value}' in <vde:nics>: {right}")));
        match (key.as_str(), value.as_str()) {
            ("offloads", "yes") | ("keep-going", "no") => {}
            ("offloads", "no") => words.push("--no-offloads".into()),
            ("keep-going", "yes") => words.push(KEEP_GOING.into()),
            ("offloads" | "keep-going", _) => return odd("it is yes or no"),
            ("poll-us", number) if !number.parse().is_ok_and(|number: u32| number <= 1_000_000) => {
                return odd("it is a number of microseconds, up to 1000000");
            }
            ("log-level", level) if !matches!(level, "off" | "error" | "warn" | "info" | "debug") => {
                return odd("it is off, error, warn, info or debug");
            }
            ("capture", file) => {
                policy.grant_capture(file)?;
                words.push(format!("--capture={file}"));
            }
            ("poll-us" | "log-level" | "description", value) => words.push(format!("--{key}={value}")),
            _ => return odd(&format!("there is no such attribute; known are {SETTINGS}")),
        }
    }
    Ok(words)
}

/// A value in `--nic` and `--join`.
pub fn doubled(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests;
