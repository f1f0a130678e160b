//! `virsh`, and the domains that it tells of.
//!
//! It is run without a shell; what people have chosen comes behind `--`, so that no name is taken for an option.

use std::cell::Cell;
use std::env;
use std::io::ErrorKind;
use std::process::Command;
use std::time::Duration;

use rustix::process::geteuid;
use vde_libvirt::domain::{Domain, NAMESPACE, Nics};

use super::call::{Patience, call};
use crate::Failure;
use crate::interrupt::Interrupt;

/// libvirt itself gives up after 30 s when something else is being done with a domain, and says what.
const LIMIT: Duration = Duration::from_secs(40);
/// What it may still take when the person has enough, or when it has taken too long before.
const GRACE: Duration = Duration::from_secs(5);

/// Where virsh looks for a URI, if it is told none.
const DEFAULTS: [&str; 2] = ["VIRSH_DEFAULT_CONNECT_URI", "LIBVIRT_DEFAULT_URI"];

/// What mends a machine q35 that is full, up to the domain's name.
const NO_SLOT: &str = "; unplug a device, or add a place to <devices> and start the domain anew: \
                       <controller type='pci' model='pcie-root-port'/> by virsh edit";

/// Which of a domain's two descriptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// That of the running domain.
    Live,
    /// That which it is started with the next time.
    Config,
}

impl Scope {
    fn option(self) -> &'static str {
        match self {
            Self::Live => "--live",
            Self::Config => "--config",
        }
    }
}

/// Whether a domain is there now, and later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// It has a QEMU.
    pub runs: bool,
    /// It can be started again.
    pub persists: bool,
}

/// How to call it.
#[derive(Debug)]
pub struct Virsh {
    uri: Option<String>,
    interrupt: Interrupt,
    /// It did not answer once.
    hangs: Cell<bool>,
}

impl Virsh {
    /// One that talks to this libvirt, of which the hooks and sockets are within our reach.
    pub fn new(uri: Option<&str>, interrupt: Interrupt) -> Result<Self, Failure> {
        let virsh = Self { uri: uri.map(str::to_owned), interrupt, hangs: Cell::new(false) };
        // libvirt itself would ask for a password, or say less.
        let of_environment =
            || DEFAULTS.into_iter().find_map(|name| env::var(name).ok().filter(|uri| !uri.is_empty()));
        let named = uri.map(str::to_owned).or_else(of_environment);
        named.as_deref().map_or(Ok(()), is_reachable)?;
        let uri = virsh.run("uri", &[], &[], "")?;
        is_reachable(uri.trim())?;
        Ok(virsh)
    }

    /// One that talks to the libvirt of our user, which is that of the domains in the registry.
    pub fn of_user() -> Result<Self, Failure> {
        let uri = if geteuid().is_root() { "qemu:///system" } else { "qemu:///session" };
        Self::new(Some(uri), Interrupt::watch()?)
    }

    /// Tells whether the person has enough.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Runs one of its commands, and gives what it prints.
    fn run(
        &self,
        command: &str,
        options: &[&str],
        operands: &[&str],
        input: &str,
    ) -> Result<String, Failure> {
        let mut virsh = Command::new("virsh");
        virsh.env("LC_ALL", "C").arg("--quiet");
        if let Some(uri) = &self.uri {
            virsh.arg(format!("--connect={uri}"));
        }
        virsh.arg(command).args(options);
        if !operands.is_empty() {
            virsh.arg("--").args(operands);
        }
        let limit = if self.hangs.get() { GRACE } else { LIMIT };
        let answer = call(&mut virsh, input, Patience { limit, grace: GRACE }, &self.interrupt);
        let answer = answer.map_err(|error| {
            Failure::new(match error.kind() {
                ErrorKind::NotFound => {
                    "virsh is not on PATH; install it (package libvirt-clients or libvirt-client)".into()
                }
                _ => format!("virsh cannot be run: {error}"),
            })
        })?;
        match answer {
            Some(answer) if answer.status.success() => Ok(answer.stdout),
            Some(answer) => Err(complaint(command, &answer.stderr)),
            None => {
                self.hangs.set(true);
                Err(Failure::new(match self.interrupt.has_come() {
                    true => format!("interrupted, and virsh {command} does not end"),
                    false => format!(
                        "virsh {command} has not ended within {} s; see whether libvirt hangs",
                        limit.as_secs()
                    ),
                }))
            }
        }
    }

    /// A domain by whatever virsh knows it by.
    pub fn domain(&self, word: &str, scope: Scope) -> Result<Domain, Failure> {
        let options: &[&str] = if scope == Scope::Config { &["--inactive"] } else { &[] };
        let text = self.run("dumpxml", options, &[word], "").map_err(|failure| unknown(word, failure))?;
        Domain::read(&text).map_err(|failure| Failure::new(format!("domain '{word}': {failure}")))
    }

    /// The name of a domain that libvirt is still starting: until QEMU has begun, nothing else can be asked of it.
    pub fn starting(&self, word: &str) -> Result<Option<String>, Failure> {
        let reason =
            self.run("domstate", &["--reason"], &[word], "").map_err(|failure| unknown(word, failure))?;
        match reason.trim_end().ends_with("(starting up)") {
            true => Ok(value(&self.run("dominfo", &[], &[word], "")?, "Name").map(str::to_owned)),
            false => Ok(None),
        }
    }

    /// What `virsh version` says of libvirt's daemon.
    pub fn version(&self) -> Result<String, Failure> {
        self.run("version", &["--daemon"], &[], "")
    }

    /// Whether a domain runs, and whether it is more than that.
    pub fn state(&self, domain: &Domain) -> Result<State, Failure> {
        Ok(state(&self.run("dominfo", &[], &[&domain.uuid], "")?))
    }

    /// Whether a domain that ran does so no longer.
    pub fn has_ended(&self, domain: &Domain) -> Result<bool, Failure> {
        match self.state(domain) {
            Ok(state) => Ok(!state.runs),
            Err(failure) if is_unknown(&failure) => Ok(true),
            Err(failure) => Err(failure),
        }
    }

    /// Replaces our metadata, or removes it.
    pub fn set_metadata(&self, domain: &Domain, scope: Scope, nics: Option<&Nics>) -> Result<(), Failure> {
        let text = nics.map(Nics::to_plain_xml);
        let mut options = vec!["--uri", NAMESPACE];
        match &text {
            Some(text) => options.extend(["--key", "vde", "--set", text]),
            None => options.push("--remove"),
        }
        options.push(scope.option());
        self.run("metadata", &options, &[&domain.uuid], "").map(drop)
    }

    /// Has the guest see that the cable of an interface is plugged in, or not.
    pub fn set_carrier(&self, domain: &Domain, mac: &str, up: bool) -> Result<(), Failure> {
        let state = if up { "up" } else { "down" };
        self.run("domif-setlink", &[], &[&domain.uuid, mac, state], "").map(drop)
    }

    /// Plugs a device in.
    pub fn attach_device(&self, domain: &Domain, scope: Scope, xml: &str) -> Result<(), Failure> {
        self.device("attach-device", domain, scope, xml).map_err(|failure| {
            match failure.sentence.contains("No more available PCI slots") {
                true => Failure::new(format!("{}{NO_SLOT} {}", failure.sentence, domain.name)),
                false => failure,
            }
        })
    }

    /// Asks for a device back. That of a running guest has not gone yet then.
    pub fn detach_device(&self, domain: &Domain, scope: Scope, xml: &str) -> Result<(), Failure> {
        match self.device("detach-device", domain, scope, xml) {
            Err(failure) if failure.sentence.contains("in the process of unplug") => Ok(()),
            asked => asked,
        }
    }

    fn device(&self, command: &str, domain: &Domain, scope: Scope, xml: &str) -> Result<(), Failure> {
        self.run(command, &[scope.option()], &[&domain.uuid, "/dev/stdin"], xml).map(drop)
    }
}

/// Fails for a libvirt that is not on this machine, or not ours.
pub fn is_reachable(uri: &str) -> Result<(), Failure> {
    if !uri.starts_with("qemu:///") {
        return Err(Failure::new(format!(
            "{uri} is no libvirt of this machine; name one with --connect qemu:///system or qemu:///session"
        )));
    }
    if uri.starts_with("qemu:///system") && !geteuid().is_root() {
        return Err(Failure::new(format!(
            "the back ends of {uri} are root's; run vdectl as root, or name your own libvirt with --connect qemu:///session"
        )));
    }
    Ok(())
}

/// libvirt knows no such domain.
fn is_unknown(failure: &Failure) -> bool {
    failure.sentence.contains("failed to get domain")
}

/// The failure of a command about a domain.
fn unknown(word: &str, failure: Failure) -> Failure {
    match is_unknown(&failure) {
        true => Failure::not_found(format!("libvirt has no domain '{word}'; virsh list --all shows all")),
        false => failure,
    }
}

/// What `virsh dominfo` says of one thing.
fn value<'a>(said: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = said.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| *found == key).map(|(_, value)| value.trim())
}

/// What `virsh dominfo` says.
fn state(said: &str) -> State {
    let runs =
        value(said, "State").is_some_and(|state| !matches!(state, "shut off" | "crashed" | "no state"));
    State { runs, persists: value(said, "Persistent") == Some("yes") }
}

/// What virsh says of a failure, in one line.
fn complaint(command: &str, said: &str) -> Failure {
    let lines = said.lines().map(|line| line.strip_prefix("error: ").unwrap_or(line).trim());
    let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    Failure::new(format!("virsh {command}: {}", lines.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_is_one_line() {
        let said = "error: Failed to attach device from /dev/stdin\nerror: internal error: no\n\n";
        let sentence = complaint("attach-device", said).sentence;
        assert_eq!(
            sentence,
            "virsh attach-device: Failed to attach device from /dev/stdin; internal error: no"
        );
    }

    #[test]
    fn state_reads_what_virsh_writes() {
        let said = "Id:             -\nName:           a\nState:          shut off\nPersistent:     yes\nSecurity DOI:   0\n";
        assert_eq!(state(said), State { runs: false, persists: true });
        let said = "State:          in shutdown\nPersistent:     no\n";
        assert_eq!(state(said), State { runs: true, persists: false });
        assert_eq!(state(""), State { runs: false, persists: false });
    }

    #[test]
    fn libvirts_of_others_are_refused() {
        for uri in ["test:///default", "qemu+ssh://host/system", "xen:///system", ""] {
            assert!(is_reachable(uri).unwrap_err().sentence.contains("no libvirt of this machine"), "{uri}");
        }
        is_reachable("qemu:///session").unwrap();
    }
}
