//! Asking the emulator about a machine type that is not listed in [`crate::machine`], once for all starts.
//!
//! The machine is made as the user named it, but paused and without devices; it takes 0.1 to 0.2 s and a few
//! megabytes, whatever the guest is to get. A board that does not come up like this (some want firmware
//! first) is still in the list of all machines, which an emulator without any board gives: that has the
//! name of its memory, though not its size. The accelerator that only tests use would start sooner, but
//! distributions leave it out.
//!
//! | question | answers |
//! |---|---|
//! | `qom-get` of the machine's `type` | its full name, under which it may be listed after all |
//! | `query-machines` | `default-ram-id`: how the memory of `-m` is called |
//! | `query-memory-size-summary` | how much there is without `-m` |
//! | `query-target`, `query-pci`, `qom-list` | where a virtio NIC can be attached |

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use qmp::Client;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::{Value, json};

use crate::error::Error;
use crate::machine::{Board, Bus, Told};
use crate::props::double;
use crate::spawn::probe::read_until;
use crate::spawn::sys::HeldSignals;
use crate::spawn::{cache, sys};

/// An answer takes milliseconds once the machine is up; a loaded host may take a while.
const LIMIT: Duration = Duration::from_secs(10);

/// How long what it says on stderr is read when it has ended.
const REMARKS_LIMIT: Duration = Duration::from_secs(1);

/// How long it may take to leave.
const END_LIMIT: Duration = Duration::from_secs(2);

/// What `program` tells about the machine type `kind`, or its default one; an error is a reason in few words.
pub fn told(program: &Path, kind: Option<&str>) -> Result<Told, String> {
    let question = format!("-machine {}", kind.unwrap_or("default"));
    let kept = cache::answer(program, &question, || {
        ask(program, kind).and_then(|told| serde_json::to_string(&told).map_err(|error| error.to_string()))
    })?;
    // What cannot be read is not what was kept there.
    serde_json::from_str(&kept).or_else(|_| ask(program, kind))
}

fn ask(program: &Path, kind: Option<&str>) -> Result<Told, String> {
    // Who is ended now would leave a paused VM behind.
    let held = HeldSignals::new().map_err(|error| error.to_string())?;
    let machine = kind.map(|kind| ["-machine".to_owned(), format!("type={}", double(kind))]);
    let words: Vec<&str> = machine.iter().flatten().map(String::as_str).collect();
    let refusal = match Emulator::start(program, &words, &held).and_then(|mut emulator| emulator.tell()) {
        Ok(told) => return Ok(told),
        Err(refusal) => refusal,
    };
    let Some(kind) = kind else { return Err(refusal) };
    let listed = Emulator::start(program, &["-machine", "none"], &held).and_then(|mut emulator| {
        let machines = emulator.question("query-machines", json!({}))?;
        Ok((emulator.architecture()?, ram_id(&machines, kind)?))
    });
    let told = |(arch, ram_id): (String, Option<String>)| Told {
        arch,
        kind: kind.to_owned(),
        board: Board { ram_id: ram_id.map(Cow::Owned), default_ram: None, bus: Bus::BarePci },
    };
    listed.map(told).map_err(|_| refusal)
}

/// An emulator that answers questions; it ends with this value.
struct Emulator {
    child: Child,
    client: Client,
    /// Its stderr, which ends when nobody is left who has it.
    errors: File,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // What was started may be a script, and what answers a child of it that a signal would not reach.
        self.client.execute("quit", json!({})).ok();
        read_until(&mut self.errors, END_LIMIT);
        end(&mut self.child);
    }
}

impl Emulator {
    fn start(program: &Path, machine: &[&str], held: &HeldSignals) -> Result<Self, String> {
        let failed = |error: std::io::Error| error.to_string();
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let (errors, errors_writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let mut command = Command::new(program);
        command
            .args(["-S", "-no-user-config", "-nodefaults", "-display", "none", "-qmp", "stdio"])
            .args(machine);
        command.stdin(OwnedFd::from(theirs.try_clone().map_err(failed)?)).stdout(OwnedFd::from(theirs));
        sys::bind_to_us(&mut command);
        let mut child = command.stderr(errors_writer).spawn().map_err(failed)?;
        // The command holds our copies of the child's ends.
        drop(command);
        let mut errors = errors.into();
        // One that is mute is not waited for by who is to end.
        if held.come_before(&ours, LIMIT) {
            end(&mut child);
            return Err(Error::Interrupted.to_string());
        }
        match Client::new(ours.into(), LIMIT) {
            Ok(client) => Ok(Self { child, client, errors }),
            Err(error) => {
                end(&mut child);
                let (said, _) = read_until(&mut errors, REMARKS_LIMIT);
                Err(refusal(program, &said).unwrap_or(error.to_string()))
            }
        }
    }

    fn question(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        self.client.execute(command, arguments).map_err(|error| error.to_string())
    }

    fn architecture(&mut self) -> Result<String, String> {
        let target = self.question("query-target", json!({}))?;
        Ok(target["arch"].as_str().unwrap_or_default().to_owned())
    }

    fn tell(&mut self) -> Result<Told, String> {
        let kind = self.question("qom-get", json!({ "path": "/machine", "property": "type" }))?;
        let kind = kind.as_str().unwrap_or_default();
        let kind = kind.strip_suffix("-machine").unwrap_or(kind).to_owned();
        let machines = self.question("query-machines", json!({}))?;
        let ram_id = ram_id(&machines, &kind)?;
        let summary = self.question("query-memory-size-summary", json!({}))?;
        let default_ram = summary["base-memory"].as_u64().filter(|&bytes| bytes != 0);
        let arch = self.architecture()?;
        let bus = self.bus(&arch)?;
        Ok(Told { arch, kind, board: Board { ram_id: ram_id.map(Cow::Owned), default_ram, bus } })
    }

    fn bus(&mut self, arch: &str) -> Result<Bus, String> {
        let is_filled = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
        if arch == "s390x" {
            return Ok(Bus::Ccw);
        }
        // An emulator built without PCI does not know the command.
        if self.question("query-pci", json!({})).is_ok_and(|buses| is_filled(&buses)) {
            return Ok(Bus::BarePci);
        }
        let devices = self.question("qom-list", json!({ "path": "/machine/unattached" }))?;
        let mut kinds = devices.as_array().into_iter().flatten().map(|device| &device["type"]);
        Ok(if kinds.any(|kind| kind == "child<virtio-mmio>") { Bus::Mmio } else { Bus::OnBoard })
    }
}

/// The name of a machine's memory, if `-m` makes that, in the answer to `query-machines`.
fn ram_id(machines: &Value, kind: &str) -> Result<Option<String>, String> {
    let list = machines.as_array().into_iter().flatten();
    let mut named = list.filter(|machine| machine["name"] == kind || machine["alias"] == kind);
    let machine = named.next().ok_or_else(|| format!("it has no machine {kind}"))?;
    Ok(machine["default-ram-id"].as_str().map(str::to_owned))
}

/// The line in which QEMU says why it ends, without its name.
fn refusal(program: &Path, said: &str) -> Option<String> {
    let name = program.file_name()?.to_string_lossy();
    let own = said.lines().find_map(|line| line.split_once(&*name)?.1.strip_prefix(": "));
    let line = own.or_else(|| said.lines().next())?;
    Some(line.chars().take(200).collect())
}

fn end(child: &mut Child) {
    // One that has ended cannot be killed; both errors mean that there is nothing left to do.
    child.kill().ok();
    child.wait().ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_id_by_name_and_alias() {
        let machines = json!([
            {"name": "virt-7.2", "alias": "virt", "default-ram-id": "mach-virt.ram"},
            {"name": "old", "cpu-max": 1},
        ]);
        for (kind, id) in
            [("virt", Some("mach-virt.ram")), ("virt-7.2", Some("mach-virt.ram")), ("old", None)]
        {
            assert_eq!(ram_id(&machines, kind), Ok(id.map(str::to_owned)), "{kind}");
        }
        assert!(ram_id(&machines, "new").expect_err("no machine").contains("no machine new"));
    }

    #[test]
    fn refusal_is_qemus_own_line() {
        let said = "warning: library\nqemu-system-arm: unsupported machine type: \"x\"\nUse -machine help";
        let line = refusal(Path::new("/usr/bin/qemu-system-arm"), said);
        assert_eq!(line.as_deref(), Some("unsupported machine type: \"x\""));
        assert_eq!(
            refusal(Path::new("/x/kvm"), "Segmentation fault\n").as_deref(),
            Some("Segmentation fault")
        );
        assert_eq!(refusal(Path::new("/x/kvm"), ""), None);
    }
}
