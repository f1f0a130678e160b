//! Guest RAM that the back end can map.
//!
//! QEMU hands a vhost-user back end only RAM that has a file descriptor, and hands it over without a
//! word even if it is mapped privately: the NIC is then dead and nobody says so. So whatever way the
//! user gave memory, it ends as a shared, descriptor-backed object of the same size, NUMA layout,
//! page size and name; what cannot be changed without changing what the user asked for is refused.
//!
//! Mistakes that QEMU reports by itself (two kinds of memory at once, a missing NUMA node) are left
//! to QEMU. Objects themselves are edited in `object`.

mod object;

use std::path::PathBuf;

use serde::Serialize;

use crate::argv::Token;
use crate::error::Error;
use crate::machine::Machine;
use crate::properties::Properties;
use crate::props::{Props, double};
use crate::rewrite::Edits;
use crate::size;
use crate::version::QemuVersion;

/// Added to an object that replaces the machine's own RAM: machine types up to 4.0 name the block by
/// the object's path otherwise, which breaks migration.
const PLAIN_BLOCK_NAME: &str = "x-use-canonical-path-for-ramblock-id=off";

/// What to do where memory by `-m` cannot be replaced.
const REMEDY: &str =
    "give memory by -object memory-backend-memfd,id=ram0,size=SIZE -machine memory-backend=ram0";

/// What was done about guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Size of the RAM that `-m` asks for, where it had to be known.
    pub bytes: Option<u64>,
    /// What was changed, in words.
    pub changes: Vec<String>,
    /// Places that must have room for it.
    pub places: Vec<Place>,
    /// Files that become shared though nobody asked for that: two VMs on one of them would be in each other's memory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub own_files: Vec<PathBuf>,
}

/// A place where guest memory is going to live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A file, or a directory that gets a temporary one.
    Path {
        /// The path as given.
        path: PathBuf,
        /// Bytes of guest memory in it.
        bytes: u64,
    },
    /// Huge pages without a file system; the page size is the host's default unless given.
    HugePages {
        /// Size of one page.
        page: Option<u64>,
        /// Bytes of guest memory in them.
        bytes: u64,
    },
}

/// Makes all guest memory shareable by editing the command line.
pub fn share(
    machine: &Machine,
    version: QemuVersion,
    tokens: &[Token],
    edits: &mut Edits,
) -> Result<Memory, Error> {
    let mut memory = Memory::default();
    if machine.confidential {
        return Err(Error::Memory(
            "the memory of a confidential guest cannot be shared with a back end; \
             drop memory-encryption= or confidential-guest-support=, or the VDE NIC"
                .into(),
        ));
    }
    if machine.under_xen {
        return Err(Error::Memory(
            "the memory of a guest under Xen cannot be shared with a back end; \
             run it under another accelerator, or give the VDE NIC a model=e1000"
                .into(),
        ));
    }
    if machine.board.is_some() && machine.ram_id(version).is_none() {
        let kind = kind(machine);
        return Err(Error::Memory(format!(
            "{kind} of QEMU {version} makes its memory in a way of its own, which cannot be shared; \
             give the VDE NIC a model that is not virtio, or none"
        )));
    }
    let numa = numa_objects(tokens);
    if let Some(id) = &machine.memory_backend {
        object::share(id, "-machine memory-backend", tokens, edits, &mut memory)?;
    } else if !numa.is_empty() {
        for id in &numa {
            object::share(id, "-numa node,memdev", tokens, edits, &mut memory)?;
        }
    } else {
        replace_default(machine, version, tokens, edits, &mut memory)?;
    }
    for device in memory_devices(tokens) {
        let MemoryDevice { driver, property, id, persistent } = &device;
        // What a file keeps beyond this VM must not change behind its owner's back.
        if *persistent && object::is_private_file(id, tokens) {
            edits.notice(format!(
                "memory '{id}' of {driver} is left as it is: frames placed in it are lost unless it is given share=on"
            ));
        } else {
            object::share(id, &format!("-device {driver},{property}"), tokens, edits, &mut memory)?;
        }
    }
    Ok(memory)
}

/// Puts a shared object where QEMU would make private RAM by itself.
fn replace_default(
    machine: &Machine,
    version: QemuVersion,
    tokens: &[Token],
    edits: &mut Edits,
    memory: &mut Memory,
) -> Result<(), Error> {
    let (Some(board), Some(ram_id)) = (&machine.board, machine.ram_id(version)) else {
        let said = machine.unanswered.as_deref().map(|said| format!(" ({said})")).unwrap_or_default();
        let kind = kind(machine);
        return Err(Error::Memory(format!(
            "the memory of {kind} in this emulator is not known{said}; {REMEDY}"
        )));
    };
    if object::find(ram_id, tokens).is_some() {
        // Its name is reserved for what -m makes: QEMU refuses it with an explanation.
        return Ok(());
    }
    let bytes = match ram_size(machine, tokens)? {
        Some(bytes) => bytes,
        None if tokens.iter().any(|token| token.is("readconfig")) => {
            return Err(Error::Memory(
                "the size of guest memory may hide in -readconfig; give it by -m as well".into(),
            ));
        }
        None => board.default_ram.ok_or_else(|| {
            Error::Memory(format!(
                "the machine's default memory size is not known; give -m, or {}",
                &REMEDY[5..]
            ))
        })?,
    };
    memory.bytes = Some(bytes);
    let paths: Vec<usize> = (0..tokens.len()).filter(|&at| tokens[at].is("mem-path")).collect();
    let object = match paths.last().and_then(|&at| tokens[at].text()) {
        Some(path) => {
            paths.iter().for_each(|&at| edits.remove(at));
            memory.places.push(Place::Path { path: path.into(), bytes });
            memory.own_files.push(path.into());
            memory
                .changes
                .push(format!("-mem-path {path} becomes a shared file: guest memory is written to it"));
            format!(
                "memory-backend-file,id={ram_id},size={bytes},mem-path={},share=on,{PLAIN_BLOCK_NAME}",
                double(path)
            )
        }
        None if !paths.is_empty() => {
            return Err(Error::Memory(
                "-mem-path is not text; give the memory by -object memory-backend-file".into(),
            ));
        }
        None => {
            memory.changes.push("guest memory becomes a shared memfd".into());
            format!("memory-backend-memfd,id={ram_id},size={bytes},share=on,{PLAIN_BLOCK_NAME}")
        }
    };
    edits.append(["-object", &object, "-machine", &format!("memory-backend={ram_id}")]);
    Ok(())
}

/// The machine's type in a sentence.
fn kind(machine: &Machine) -> String {
    machine.kind.as_ref().map_or("the default machine".to_owned(), |kind| format!("machine {kind}"))
}

/// The size that all `-m` and `-machine memory.size=` together ask for; `None` if that is the machine's
/// default. A `-m` counts more than a `-machine`, wherever it stands, unless it says 0.
fn ram_size(machine: &Machine, tokens: &[Token]) -> Result<Option<u64>, Error> {
    let mut wanted = None;
    for token in tokens.iter().filter(|token| token.is("m")) {
        let text = token.text().unwrap_or("");
        let Some(part) = Props::parse(text, "size").get("size").map(str::to_owned) else { continue };
        let bytes = size::parse(&part, 1 << 20).and_then(size::round_up);
        let bad = || Error::Size { option: "m".into(), value: text.to_owned(), part };
        wanted = Some(bytes.ok_or_else(bad)?);
    }
    if let Some(bytes) = wanted.filter(|&bytes| bytes != 0) {
        return Ok(Some(bytes));
    }
    let Some(part) = machine.memory_size.clone() else { return Ok(None) };
    let bytes = size::parse(&part, 1).and_then(size::round_up);
    let bad = || Error::Size { option: "machine".into(), value: format!("memory.size={part}"), part };
    Ok(Some(bytes.ok_or_else(bad)?))
}

/// The objects that `-numa node,memdev=` names.
fn numa_objects(tokens: &[Token]) -> Vec<String> {
    let nodes = tokens.iter().filter(|token| token.is("numa")).filter_map(Token::text);
    nodes.filter_map(|text| Props::parse(text, "type").get("memdev").map(str::to_owned)).collect()
}

/// A device that gives the guest memory beside the machine's own.
struct MemoryDevice {
    driver: String,
    property: &'static str,
    id: String,
    persistent: bool,
}

/// What memory devices have for their objects, and whether it outlives the VM.
const MEMORY_DEVICES: [(&str, &str, bool); 6] = [
    ("pc-dimm", "memdev", false),
    ("virtio-mem", "memdev", false),
    ("cxl-type3", "volatile-memdev", false),
    ("nvdimm", "memdev", true),
    ("virtio-pmem", "memdev", true),
    ("cxl-type3", "persistent-memdev", true),
];

/// All memory devices, in the order of [`MEMORY_DEVICES`] for one that has several objects.
fn memory_devices(tokens: &[Token]) -> Vec<MemoryDevice> {
    let texts = tokens.iter().filter(|token| token.is("device")).filter_map(Token::text);
    let devices = texts.filter_map(|text| Properties::parse(text, "driver")).flat_map(|device| {
        let driver = device.get("driver").unwrap_or_default();
        // virtio-mem-pci, virtio-mem-ccw and so on are virtio-mem.
        let is = |name: &str| {
            driver.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        let known = MEMORY_DEVICES.iter().filter(|(name, ..)| is(name));
        let found = known.filter_map(|&(_, property, persistent)| {
            Some(MemoryDevice { driver: driver.clone(), property, id: device.get(property)?, persistent })
        });
        found.collect::<Vec<_>>()
    });
    devices.collect()
}
