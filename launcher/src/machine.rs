//! What board the command line describes: its default RAM and how virtio devices are attached.
//!
//! QEMU would tell, but asking costs a process and 0.1 s; the boards that people run are listed here. What is not
//! listed is asked for by whoever may start processes, and handed in as an answer.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::argv::Token;
use crate::props::Props;
use crate::version::QemuVersion;

/// The RAM of RISC-V's virt, which the board made in a way of its own before QEMU 6.2.
const RISCV_VIRT_RAM: &str = "riscv_virt_board.ram";

/// How a virtio NIC is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bus {
    /// `virtio-net-pci`, also through `-net nic`.
    Pci,
    /// `virtio-net-pci` by `-device` alone: the board makes no PCI NIC of `-net nic`.
    BarePci,
    /// `virtio-net-device` on virtio-mmio.
    Mmio,
    /// `virtio-net-ccw`.
    Ccw,
    /// None: an ISA board, whose bare NIC is `ne2k_isa`.
    Isa,
    /// None: a board whose only NIC is its own.
    OnBoard,
}

/// Facts about one board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Board {
    /// The id that QEMU gives to RAM made by `-m`; an object that takes its place must have it too,
    /// or a migration from or to a plain QEMU fails. `None` for a board that makes its RAM in a way of its own.
    pub ram_id: Option<Cow<'static, str>>,
    /// RAM without `-m`, in bytes, where known.
    pub default_ram: Option<u64>,
    /// Where a virtio NIC goes.
    pub bus: Bus,
}

/// What an emulator tells of a machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// The architecture, by QEMU's name.
    pub arch: String,
    /// The type by its full name.
    pub kind: String,
    /// What the board is like.
    pub board: Board,
}

/// The machine as the command line has it, several `-machine` and `-M` merged.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The type, if named.
    pub kind: Option<String>,
    /// The board, if listed or asked for.
    pub board: Option<Board>,
    /// Whether the board is a listed one: those have no NIC of their own.
    pub is_listed: bool,
    /// Why the emulator did not tell about a board that is not listed.
    pub unanswered: Option<String>,
    /// `memory-backend=`.
    pub memory_backend: Option<String>,
    /// `memory.size=`, which `-m` sets too since QEMU 7.1, and which a bare number gives in bytes.
    pub memory_size: Option<String>,
    /// Guest memory is hidden from the host, therefore from the back end too.
    pub confidential: bool,
    /// The guest runs under Xen, which has its memory.
    pub under_xen: bool,
    /// The accelerators in the order of preference.
    accelerators: Vec<String>,
    /// Whether the guest's processor is another than the host's.
    foreign: bool,
}

impl Machine {
    /// Reads the machine off the tokens; `program` is the emulator's file name.
    pub fn read(program: &str, tokens: &[Token]) -> Self {
        let mut machine = Self::default();
        for token in tokens {
            let text = token.text().unwrap_or("");
            match token.name() {
                Some("machine" | "M") => machine.merge(&Props::parse(text, "type")),
                Some("accel") => {
                    machine.accelerators.extend(Props::parse(text, "accel").get("accel").map(str::to_owned))
                }
                Some("enable-kvm") => machine.accelerators.push("kvm".into()),
                _ => {}
            }
        }
        if machine.accelerators.is_empty() && matches!(program, "kvm" | "qemu-kvm") {
            machine.accelerators.push("kvm".into());
        }
        let arch = architecture(program);
        machine.foreign = !arch.is_empty() && !runs_natively(arch);
        machine.board = board(arch, machine.kind.as_deref());
        machine.is_listed = machine.board.is_some();
        let first = machine.accelerators.first().is_some_and(|first| first == "xen");
        machine.under_xen = first || machine.kind.as_ref().is_some_and(|kind| kind.starts_with("xen"));
        machine
    }

    /// Takes what the emulator told of a board that was not found in the list: with an emulator of another name, or
    /// with its default machine, it may be there after all.
    pub fn answer(&mut self, answer: Result<Told, String>) {
        match answer {
            Ok(Told { arch, kind, board: told }) => {
                let listed = board(&arch, Some(&kind));
                self.is_listed = listed.is_some();
                self.foreign = !runs_natively(&arch);
                self.board = Some(listed.unwrap_or(told));
            }
            Err(reason) => self.unanswered = Some(reason),
        }
    }

    /// What the emulator says of a type that it does not have, or that it has to be given one.
    pub fn refusal(&self) -> Option<String> {
        let said = self.unanswered.as_deref()?;
        let named = said.starts_with("unsupported machine type");
        match &self.kind {
            // QEMU 7.2 does not repeat the word.
            Some(kind) if named && !said.contains(kind.as_str()) => Some(format!("{said}: \"{kind}\"")),
            _ => (named || said.starts_with("No machine specified")).then(|| said.to_owned()),
        }
    }

    fn merge(&mut self, props: &Props) {
        // QEMU takes an underscore for a dash here.
        let get = |name: &str| {
            let key = props.keys().filter(|key| key.replace('_', "-") == name).last()?;
            props.get(key).map(str::to_owned)
        };
        self.kind = get("type").or(self.kind.take());
        self.memory_backend = get("memory-backend").or(self.memory_backend.take());
        self.memory_size = get("memory.size").or(self.memory_size.take());
        if let Some(list) = get("accel") {
            self.accelerators = list.split(':').map(str::to_owned).collect();
        }
        self.confidential |=
            ["memory-encryption", "confidential-guest-support"].iter().any(|key| get(key).is_some());
    }

    /// Whether the user chose an accelerator.
    pub fn names_accelerator(&self) -> bool {
        !self.accelerators.is_empty()
    }

    /// Whether the guest would run under KVM if the host has it.
    pub fn wants_kvm(&self) -> bool {
        !self.foreign && self.accelerators.first().is_some_and(|first| first == "kvm")
    }

    /// A machine without RAM and devices, made to ask QEMU questions.
    pub fn is_none(&self) -> bool {
        self.kind.as_deref() == Some("none")
    }

    /// The id of the RAM that `-m` makes, if the board is known and takes an object in its place. One that does not
    /// takes it too, and leaves it lie.
    pub fn ram_id(&self, version: QemuVersion) -> Option<&str> {
        let id = self.board.as_ref()?.ram_id.as_deref()?;
        let since = if id == RISCV_VIRT_RAM { QemuVersion(6, 2, 0) } else { QemuVersion::OLDEST };
        Some(id).filter(|_| version >= since)
    }

    /// A PC, with PCI or without.
    pub fn is_pc(&self) -> bool {
        self.board.as_ref().and_then(|board| board.ram_id.as_ref()).is_some_and(|id| id == "pc.ram")
    }

    /// Where a virtio NIC goes; PCI if nothing better is known.
    pub fn bus(&self) -> Bus {
        self.board.as_ref().map_or(Bus::Pci, |board| board.bus)
    }
}

/// The architecture in the emulator's name.
fn architecture(program: &str) -> &str {
    match program {
        "kvm" | "qemu-kvm" => std::env::consts::ARCH,
        _ => program.strip_prefix("qemu-system-").unwrap_or(""),
    }
}

/// Whether KVM of this host runs guests of an architecture, by QEMU's name for it.
fn runs_natively(arch: &str) -> bool {
    match std::env::consts::ARCH {
        "x86_64" => matches!(arch, "x86_64" | "i386"),
        "aarch64" => matches!(arch, "aarch64" | "arm"),
        "powerpc64" => matches!(arch, "ppc64" | "ppc"),
        host => arch == host,
    }
}

/// Looks a board up. Names of PC boards say their architecture; others are the same on several.
fn board(arch: &str, kind: Option<&str>) -> Option<Board> {
    const MIB: u64 = 1 << 20;
    let versioned = |name: &str| {
        kind.is_some_and(|kind| kind == name || kind.strip_prefix(name).is_some_and(|v| v.starts_with('-')))
    };
    let one =
        |ram_id, default_ram, bus| Some(Board { ram_id: Some(Cow::Borrowed(ram_id)), default_ram, bus });
    let x86 = matches!(arch, "x86_64" | "i386");
    let old_pc = kind
        .and_then(|kind| kind.strip_prefix("pc-"))
        .is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()));

    match kind {
        Some("microvm") => return one("microvm.ram", Some(128 * MIB), Bus::Mmio),
        Some("isapc") => return one("pc.ram", Some(128 * MIB), Bus::Isa),
        Some("pc" | "q35") => return one("pc.ram", Some(128 * MIB), Bus::Pci),
        None if x86 => return one("pc.ram", Some(128 * MIB), Bus::Pci),
        _ => {}
    }
    if old_pc || versioned("pc-i440fx") || versioned("pc-q35") {
        return one("pc.ram", Some(128 * MIB), Bus::Pci);
    }
    match arch {
        "arm" | "aarch64" if versioned("virt") => one("mach-virt.ram", Some(128 * MIB), Bus::Pci),
        "aarch64" if versioned("sbsa-ref") => one("sbsa-ref.ram", Some(1024 * MIB), Bus::Pci),
        "riscv32" | "riscv64" if versioned("virt") => one(RISCV_VIRT_RAM, Some(128 * MIB), Bus::BarePci),
        "loongarch64" if kind.is_none() || versioned("virt") => {
            one("loongarch.ram", Some(1024 * MIB), Bus::Pci)
        }
        "ppc64" if kind.is_none() || versioned("pseries") => one("ppc_spapr.ram", Some(512 * MIB), Bus::Pci),
        "s390x" if kind.is_none() || versioned("s390-ccw-virtio") => {
            one("s390.ram", Some(128 * MIB), Bus::Ccw)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::argv::scan;
    use std::ffi::OsString;

    fn read(program: &str, line: &str) -> Machine {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        Machine::read(program, &scan(&words))
    }

    #[test]
    fn read_boards() {
        for (program, line, ram) in [
            ("qemu-system-x86_64", "", Some("pc.ram")),
            ("qemu-system-i386", "-M pc-1.3", Some("pc.ram")),
            ("qemu-system-x86_64", "-machine type=pc-q35-9.2", Some("pc.ram")),
            ("qemu-system-x86_64", "-M q35 -machine microvm,acpi=off", Some("microvm.ram")),
            ("my-emulator", "-M q35", Some("pc.ram")),
            ("my-emulator", "", None),
            ("my-emulator", "-M virt", None),
            ("qemu-system-aarch64", "-M virt-9.2,gic-version=3", Some("mach-virt.ram")),
            ("qemu-system-aarch64", "-M virtual", None),
            ("qemu-system-aarch64", "-M raspi3b", None),
            ("qemu-system-riscv64", "-machine virt", Some("riscv_virt_board.ram")),
            ("qemu-system-ppc64", "-accel tcg", Some("ppc_spapr.ram")),
            ("qemu-system-s390x", "", Some("s390.ram")),
            ("qemu-system-x86_64", "-M xenfv", None),
        ] {
            let id = read(program, line).board.and_then(|board| board.ram_id);
            assert_eq!(id.as_deref(), ram, "{program} {line}");
        }
    }

    #[test]
    fn read_accelerators() {
        for (line, kvm) in [
            ("-enable-kvm", true),
            ("--enable-kvm", true),
            ("-accel kvm,kernel-irqchip=split -accel tcg", true),
            ("-machine pc,accel=kvm:tcg", true),
            ("-machine accel=tcg:kvm", false),
            ("-accel tcg", false),
            ("", false),
        ] {
            assert_eq!(read("qemu-system-x86_64", line).wants_kvm(), kvm, "{line}");
        }
    }
}
