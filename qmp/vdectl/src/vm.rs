//! The VM that a word means: its monitor and its back end.
//!
//! Names and process ids are looked up in the registry of running VMs. The address of a monitor is taken as it is, whether the
//! VM is registered or not; if it is, by this address or by its process, its back end is known as well.

use std::fmt::Write;
use std::fs::canonicalize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use qmp::{Address, Client, Error};
use registry::{Entry, MONITOR, Maker, Record, entries, listener, running_domains};

use crate::Failure;
use crate::back_end::{BackEnd, sentence};

/// How long QEMU and a back end may take for an answer. A monitor is taken by one client at a time, and a link may be a switch
/// that thinks for long.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// How many VMs an error names.
const NAMED_MAX: usize = 12;

/// One VM.
#[derive(Clone, Debug)]
pub struct Vm {
    /// What people call it.
    pub name: String,
    /// Where its monitor listens.
    pub qmp: Address,
    /// Where its back ends listen for commands. It has one, or none, but for domains of the passt door: one for each NIC.
    pub controls: Vec<PathBuf>,
    /// What the registry has of it.
    pub entry: Option<Entry>,
}

impl Vm {
    /// Finds the VM by name, process id, or the address of its monitor.
    pub fn find(word: &str) -> Result<Self, Failure> {
        let entries = entries();
        match word.parse::<Address>() {
            Ok(qmp) if !entries.iter().any(|entry| entry.record.name.as_deref() == Some(word)) => {
                Ok(Self::at(word, qmp, entries))
            }
            _ => choose(word, entries).map(Self::from),
        }
    }

    /// All that are registered, oldest first.
    pub fn all() -> Vec<Self> {
        entries().into_iter().map(Self::from).collect()
    }

    /// The VM whose monitor has this address.
    fn at(word: &str, qmp: Address, entries: Vec<Entry>) -> Self {
        let entry = match qmp.absolute() {
            Address::Unix(path) => entry_at(&path, entries),
            place @ Address::Tcp(_) => {
                let place = place.to_string();
                entries.into_iter().find(|entry| entry.record.qmp.as_ref() == Some(&place))
            }
            // Its number is another VM's the next time.
            Address::Fd(_) => None,
        };
        let name = entry.as_ref().and_then(|entry| entry.record.name.clone());
        let controls = entry.as_ref().map(|entry| entry.controls.clone()).unwrap_or_default();
        Self { name: name.unwrap_or_else(|| word.into()), qmp, controls, entry }
    }

    /// Connects to its monitor.
    pub fn monitor(&self) -> Result<Client, Failure> {
        if let Some(record) = self.without_monitor() {
            let name = &self.name;
            return Err(Failure::new(match record.made_by {
                Maker::Libvirt => format!(
                    "libvirt keeps the monitor of '{name}' to itself; NICs are plugged in and out with vdectl libvirt attach \
                     and detach"
                ),
                Maker::Passt => format!(
                    "libvirt keeps the monitor of '{name}' to itself; NICs of the passt door are plugged in and out with virsh \
                     attach-device and detach-device"
                ),
                _ => format!(
                    "'{name}' was started without a monitor for vdectl; name it by a QMP socket of its own (-qmp)"
                ),
            }));
        }
        let client = Client::connect(&self.qmp, PATIENCE).map_err(|error| self.no_monitor(&error))?;
        // A back end says the same words, and is no QEMU.
        client.version().map_err(|error| self.no_monitor(&error))?;
        Ok(client)
    }

    /// Where the back end listens for commands that its NICs have in common, if it has one.
    pub fn control(&self) -> Option<&Path> {
        self.controls.first().map(PathBuf::as_path)
    }

    /// Connects to this back end.
    pub fn back_end(&self) -> Result<Option<BackEnd>, Failure> {
        self.control().map(BackEnd::connect).transpose()
    }

    /// Connects to all of its back ends, none of which may take longer than that for an answer.
    pub fn back_ends(&self, patience: Duration) -> Result<Vec<BackEnd>, Failure> {
        self.controls.iter().map(|control| BackEnd::connect_within(control, patience)).collect()
    }

    /// What the registry has of it, if there is no monitor of it for us.
    pub fn without_monitor(&self) -> Option<&Record> {
        let record = &self.entry.as_ref()?.record;
        (record.qmp.is_none() && self.is_of_entry()).then_some(record)
    }

    /// The monitor is the one in its directory, not one that was named.
    fn is_of_entry(&self) -> bool {
        let Self { qmp, entry, .. } = self;
        entry.as_ref().is_some_and(|entry| *qmp == Address::Unix(entry.directory.join(MONITOR)))
    }

    fn no_monitor(&self, error: &Error) -> Failure {
        let Self { name, qmp, .. } = self;
        Failure::new(match error {
            Error::TimedOut(_) => {
                format!("the monitor {qmp} of '{name}' does not greet: another client uses it, or QEMU hangs")
            }
            error => format!("the monitor {qmp} of '{name}' is of no use: {}", sentence(error)),
        })
    }
}

impl From<Entry> for Vm {
    fn from(entry: Entry) -> Self {
        let qmp = entry.record.qmp.as_deref().and_then(|qmp| qmp.parse().ok());
        Self {
            name: name(&entry),
            qmp: qmp.unwrap_or_else(|| Address::Unix(entry.directory.join(MONITOR))),
            controls: entry.controls.clone(),
            entry: Some(entry),
        }
    }
}

/// What people call a VM: by its process, if it has no name; by its directory, if that is not known either.
fn name(entry: &Entry) -> String {
    let of_process = || entry.pid.map(|pid| pid.to_string());
    let of_directory = || entry.directory.file_name().map(|name| name.to_string_lossy().into_owned());
    entry.record.name.clone().or_else(of_process).or_else(of_directory).unwrap_or_default()
}

/// The VM that has a monitor, or its back end's control socket, at this path.
fn entry_at(path: &Path, mut entries: Vec<Entry>) -> Option<Entry> {
    let real = |path: &Path| canonicalize(path).ok();
    let asked = real(path)?;
    let is_there = |entry: &Entry| {
        let monitor = entry.record.qmp.as_deref().and_then(|qmp| qmp.strip_prefix("unix:")).map(Path::new);
        let sockets = monitor.into_iter().chain(entry.controls.iter().map(PathBuf::as_path));
        sockets.filter_map(real).any(|socket| socket == asked)
    };
    let at = entries.iter().position(is_there).or_else(|| {
        // Another monitor of the same process. Asking takes a place in its queue, which is short.
        let pid = entries.iter().any(|entry| entry.pid.is_some()).then(|| listener(path)).flatten().flatten();
        entries.iter().position(|entry| pid.is_some() && entry.pid == pid)
    })?;
    Some(entries.swap_remove(at))
}

/// The VM with this name or process id.
fn choose(word: &str, entries: Vec<Entry>) -> Result<Entry, Failure> {
    let pid = word.parse::<u32>().ok();
    let is_meant = |entry: &Entry| {
        entry.record.name.as_deref() == Some(word) || pid.is_some_and(|pid| entry.pid == Some(pid))
    };
    let (mut meant, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(is_meant);
    match (meant.pop(), meant.is_empty()) {
        (Some(entry), true) => Ok(entry),
        (Some(entry), false) => {
            meant.push(entry);
            Err(Failure::not_found(ambiguous(word, &meant)))
        }
        (None, _) if running_domains().iter().any(|domain| domain == word) => {
            Err(Failure::not_found(without_back_end(word)))
        }
        (None, _) => Err(Failure::not_found(missing(word, pid.is_some(), &others))),
    }
}

fn ambiguous(word: &str, meant: &[Entry]) -> String {
    let mut text = format!("'{word}' means {} VMs:", meant.len());
    for (number, entry) in meant.iter().take(NAMED_MAX).enumerate() {
        let comma = if number == 0 { "" } else { "," };
        match entry.pid {
            Some(pid) => write!(text, "{comma} process {pid}"),
            None => write!(text, "{comma} one"),
        }
        .ok();
        write!(text, " at {}", entry.record.qmp.as_deref().unwrap_or("no QMP socket")).ok();
    }
    text.push_str("; name one by its process id or its QMP socket");
    text
}

/// A domain that libvirt runs, and that has no back end, or no longer.
fn without_back_end(word: &str) -> String {
    format!(
        "nothing serves the domain '{word}', which libvirt runs; what it lacks is told by: vdectl libvirt check {word}"
    )
}

fn missing(word: &str, is_pid: bool, others: &[Entry]) -> String {
    let mut text = match is_pid {
        true => format!("no VM that is known here is process {word}; name it by its QMP socket, unix:PATH"),
        false => format!("there is no VM '{word}'"),
    };
    let names: Vec<String> = others.iter().take(NAMED_MAX).map(name).collect();
    match others.len().saturating_sub(names.len()) {
        _ if names.is_empty() => text.push_str("; none runs that vdeq has started as this user"),
        0 => text.push_str(&format!("; running: {}", names.join(", "))),
        more => text.push_str(&format!("; running: {} and {more} more", names.join(", "))),
    }
    text
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::Status;

    fn entry(name: Option<&str>, pid: Option<u32>) -> Entry {
        let directory = format!("/run/vdeq/{}", pid.unwrap_or(7));
        let record = Record {
            name: name.map(str::to_owned),
            program: "/usr/bin/qemu".into(),
            process: None,
            qmp: Some(format!("unix:{directory}/qmp.sock")),
            control: Some(format!("{directory}/control.sock").into()),
            nics: Vec::new(),
            made_by: Maker::Vdeq,
            since: 0,
        };
        let controls = record.control.iter().cloned().collect();
        Entry { directory: directory.into(), record, controls, pid }
    }

    fn entries() -> Vec<Entry> {
        vec![
            entry(Some("a"), Some(1)),
            entry(Some("twin"), Some(2)),
            entry(Some("twin"), Some(3)),
            entry(Some("1"), Some(4)),
            entry(Some("77"), None),
            entry(None, Some(6)),
        ]
    }

    #[test]
    fn a_word_is_a_name_or_a_process() {
        let pid = |word| choose(word, entries()).unwrap().pid;
        assert_eq!([pid("a"), pid("3"), pid("77"), pid("6")], [Some(1), Some(3), None, Some(6)]);
        assert_eq!(name(&choose("6", entries()).unwrap()), "6");
        assert_eq!(Vm::from(choose("a", entries()).unwrap()).qmp.to_string(), "unix:/run/vdeq/1/qmp.sock");
    }

    #[test]
    fn a_word_that_means_none_or_several_is_refused() {
        let sentence = |word, entries| {
            let failure = choose(word, entries).unwrap_err();
            assert_eq!(failure.status, Status::NotFound);
            failure.sentence
        };
        let twins = sentence("twin", entries());
        let both = "process 2 at unix:/run/vdeq/2/qmp.sock, process 3 at unix:/run/vdeq/3/qmp.sock; name one";
        assert!(twins.contains("'twin' means 2 VMs") && twins.contains(both), "{twins}");
        assert!(sentence("1", entries()).contains("'1' means 2 VMs: process 1 at"));
        assert_eq!(sentence("b", entries()), "there is no VM 'b'; running: a, twin, twin, 1, 77, 6");
        let text = sentence("99", entries());
        assert!(text.contains("is process 99; name it by its QMP socket"), "{text}");
        assert_eq!(
            sentence("b", Vec::new()),
            "there is no VM 'b'; none runs that vdeq has started as this user"
        );
        let many = (0..20).map(|pid| entry(None, Some(pid))).collect();
        assert!(sentence("b", many).ends_with("10, 11 and 8 more"));
    }

    #[test]
    fn an_address_finds_the_back_end_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let listen = |name: &str| std::os::unix::net::UnixListener::bind(path(name)).unwrap();
        let _sockets = [listen("qmp"), listen("control"), listen("other")];
        std::os::unix::fs::symlink(dir.path(), path("link")).unwrap();
        let known = |pid| {
            let mut entry = entry(Some("a"), pid);
            entry.record.qmp = Some(format!("unix:{}", path("qmp").display()));
            entry.controls = vec![path("control")];
            vec![entry]
        };
        for (name, pid, found) in [
            ("qmp", None, true),
            ("link/qmp", None, true),
            ("control", None, true),
            ("other", None, false),
            // It is we who listen.
            ("other", Some(std::process::id()), true),
            ("nobody", None, false),
        ] {
            let vm = Vm::at("word", Address::Unix(path(name)), known(pid));
            assert_eq!((!vm.controls.is_empty(), vm.entry.is_some()), (found, found), "{name}");
            assert_eq!(vm.name, if found { "a" } else { "word" });
            assert_eq!(vm.qmp, Address::Unix(path(name)));
        }
    }

    #[test]
    fn nobody_is_asked_who_he_is_where_nobody_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        for entries in [Vec::new(), vec![entry(Some("a"), None)]] {
            assert!(entry_at(&path, entries).is_none());
            assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn a_descriptor_is_the_vm_that_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let (stream, pair) = (UnixStream::connect(&path).unwrap(), UnixStream::pair().unwrap());
        let is_known = |socket: &UnixStream, qmp: String| {
            let mut entry = entry(Some("a"), None);
            entry.record.qmp = Some(qmp);
            let vm = Vm::at("word", Address::Fd(socket.as_raw_fd()), vec![entry]);
            assert_eq!(vm.qmp, Address::Fd(socket.as_raw_fd()));
            vm.entry.is_some()
        };
        assert!(is_known(&stream, format!("unix:{}", path.display())));
        // Another VM was reached by the same number before.
        assert!(!is_known(&stream, format!("fd:{}", stream.as_raw_fd())));
        assert!(!is_known(&pair.0, format!("fd:{}", pair.0.as_raw_fd())));
    }

    #[test]
    fn a_vm_without_a_monitor_says_so() {
        let mut without = entry(Some("a"), Some(1));
        without.record.qmp = None;
        let sentence = Vm::from(without).monitor().unwrap_err().sentence;
        assert!(sentence.contains("'a' was started without a monitor"), "{sentence}");
        let mut domain = entry(Some("a"), None);
        domain.record = Record { qmp: None, made_by: Maker::Libvirt, ..domain.record };
        let sentence = Vm::from(domain).monitor().unwrap_err().sentence;
        assert!(sentence.contains("libvirt keeps the monitor of 'a'"), "{sentence}");
    }
}
