//! The back end that serves a VM's NICs: its own, or one that is started for a QEMU that has none.
//!
//! A back end of ours is a process of its own that outlives this one. It follows the QEMU that connects to it first, and ends
//! with that, or with its last NIC. Until then the registry has an entry for the VM, with its directory, so that the next
//! command finds it. It says on a pipe when it is ready; nothing of ours stays open in it.

use std::error::Error as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use qmp::{Address, Client};
use registry::{CONTROL, Directory, LONGEST_SOCKET, Lock, Maker, Process, Record};

use crate::Failure;
use crate::back_end::BackEnd;
use crate::vm::Vm;

/// It has nothing to wait for.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to end when it was told to.
const END_LIMIT: Duration = Duration::from_secs(5);
/// Time between two questions whether it has.
const PAUSE: Duration = Duration::from_millis(5);

/// A back end, and the directory of its sockets.
#[derive(Debug)]
pub struct Serving {
    /// Its control socket.
    pub back_end: BackEnd,
    directory: PathBuf,
    started: Option<Child>,
    /// Who finds the new entry waits until we have done what it was made for.
    _lock: Option<Lock>,
}

impl Serving {
    /// The back end that the VM has, or a new one.
    pub fn of(vm: &Vm, existing: Option<BackEnd>, monitor: &mut Client) -> Result<Self, Failure> {
        match (existing, vm.control().and_then(Path::parent)) {
            (Some(back_end), Some(directory)) => {
                Ok(Self { back_end, directory: directory.into(), started: None, _lock: None })
            }
            _ => start(vm, monitor),
        }
    }

    /// Where the socket of a new NIC shall be.
    pub fn socket(&self, nic: &str) -> Result<PathBuf, Failure> {
        let path = self.directory.join(format!("{nic}.sock"));
        match path.as_os_str().len().saturating_sub(LONGEST_SOCKET) {
            0 => Ok(path),
            over => Err(Failure::new(format!(
                "the name of the socket {} is too long by {over} characters; take a shorter --id",
                path.display()
            ))),
        }
    }

    /// It stays, whether we started it or not.
    pub fn keep(self) -> BackEnd {
        self.back_end
    }

    /// Ends a back end that was started for nothing; another one stays.
    pub fn end(mut self) -> Result<(), String> {
        let Some(mut child) = self.started.take() else { return Ok(()) };
        // It may have ended with its last NIC.
        self.back_end.quit().ok();
        let deadline = Instant::now() + END_LIMIT;
        while Instant::now() < deadline {
            match child.try_wait() {
                Ok(None) => std::thread::sleep(PAUSE),
                Ok(Some(_)) => return Ok(()),
                Err(error) => return Err(format!("the back end cannot be waited for: {error}")),
            }
        }
        Err(format!("the back end that was started for it, process {}, does not end", child.id()))
    }
}

/// Connects to the VM's back end, if it has one. One that was started for it by `vdectl` and died, with its supervisor, is as
/// good as none.
pub fn existing(vm: &Vm) -> Result<Option<BackEnd>, Failure> {
    let (Some(entry), Some(control)) = (&vm.entry, vm.control()) else { return vm.back_end() };
    if entry.record.made_by == Maker::Vdectl && registry::listener(control).is_none() {
        let left = |error| Failure::new(format!("{} cannot be removed: {error}", entry.directory.display()));
        registry::remove(&entry.directory).map_err(left)?;
        return Ok(None);
    }
    vm.back_end()
}

/// Starts a back end for a VM that has none.
fn start(vm: &Vm, monitor: &mut Client) -> Result<Serving, Failure> {
    let registered = |error: registry::Error| Failure::new(error.to_string());
    let directory = Directory::choose().map_err(registered)?;
    let path = PathBuf::from(directory.path());
    let control = path.join(CONTROL);
    let process = process_of(vm);
    let owner = process.as_ref().and_then(owner_of);
    let directory = directory.create(owner.is_some()).map_err(registered)?;
    let lock = directory.lock().map_err(registered)?;
    directory.record(&record(vm, monitor, process, &control)).map_err(registered)?;
    let child = launch(&path, owner)?;
    // From here on the directory is the back end's to remove.
    directory.hand_over();
    let back_end = BackEnd::connect(&control)?;
    Ok(Serving { back_end, directory: path, started: Some(child), _lock: Some(lock) })
}

/// The process of QEMU: who listens on its monitor.
fn process_of(vm: &Vm) -> Option<Process> {
    match vm.qmp.absolute() {
        Address::Unix(path) => registry::listener(&path)?.and_then(Process::of),
        Address::Tcp(_) | Address::Fd(_) => None,
    }
}

/// Whom the sockets have to belong to, if QEMU runs as somebody else than we.
fn owner_of(process: &Process) -> Option<(u32, u32)> {
    let found = fs::metadata(format!("/proc/{}", process.pid)).ok()?;
    let ours = rustix::process::geteuid();
    (ours.is_root() && found.uid() != ours.as_raw()).then(|| (found.uid(), found.gid()))
}

fn record(vm: &Vm, monitor: &mut Client, process: Option<Process>, control: &Path) -> Record {
    let name = monitor.execute("query-name", serde_json::json!({})).ok();
    let name = name.and_then(|answer| Some(answer.get("name")?.as_str()?.to_owned()));
    // The number of a descriptor means nothing to others.
    let qmp = Some(vm.qmp.absolute()).filter(|qmp| !matches!(qmp, Address::Fd(_)));
    let program = process.and_then(|process| fs::read_link(format!("/proc/{}/exe", process.pid)).ok());
    Record {
        name,
        program: program.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        process,
        qmp: qmp.map(|qmp| qmp.to_string()),
        control: Some(control.into()),
        nics: Vec::new(),
        made_by: Maker::Vdectl,
        since: Record::now(),
    }
}

/// Starts it, and waits until it is ready.
fn launch(directory: &Path, owner: Option<(u32, u32)>) -> Result<Child, Failure> {
    let failed = |error: vde_start::Error| {
        Failure::new(match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        })
    };
    let mut command = Command::new(vde_start::find().map_err(failed)?);
    command.arg("--control").arg(directory.join(CONTROL)).arg("--private-dir").arg(directory);
    command.args(["--follow-front-end", "--supervise"]);
    if let Some((user, group)) = owner {
        command.arg("--socket-owner").arg(format!("{user}:{group}"));
    }
    command.stderr(Stdio::null()).current_dir("/");
    vde_start::start(command, START_LIMIT).map_err(failed)
}
