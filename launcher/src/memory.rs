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
use crate::props::{Props, double};
use crate::rewrite::Edits;
use crate::size;

/// Added to an object that replaces the machine's own RAM: machine types up to 4.0 name the block by
/// the object's path otherwise, which breaks migration.
const PLAIN_BLOCK_NAME: &str = "x-use-canonical-path-for-ramblock-id=off";

/// What was done about guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Size of the RAM that `-m` asks for, where it had to be known.
    pub bytes: Option<u64>,
    /// What was changed, in words.
    pub changes: Vec<String>,
    /// Places that must have room for it.
    pub places: Vec<Place>,
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
pub fn share(machine: &Machine, tokens: &[Token], edits: &mut Edits) -> Result<Memory, Error> {
    let mut memory = Memory::default();
    if machine.confidential {
        return Err(Error::Memory(
            "the memory of a confidential guest cannot be shared with a back end; \
             drop memory-encryption= or confidential-guest-support=, or the VDE NIC"
                .into(),
        ));
    }
    let numa = numa_objects(tokens);
    if let Some(id) = &machine.memory_backend {
        object::share(id, "-machine memory-backend", tokens, edits, &mut memory)?;
    } else if !numa.is_empty() {
        for id in &numa {
            object::share(id, "-numa node,memdev", tokens, edits, &mut memory)?;
        }
    } else {
        replace_default(machine, tokens, edits, &mut memory)?;
    }
    for (id, volatile) in dimm_objects(tokens) {
        if volatile {
            object::share(&id, "memdev", tokens, edits, &mut memory)?;
        } else {
            edits.notice(format!("memory '{id}' of an nvdimm is left as it is: frames placed in it are lost unless it is shared"));
        }
    }
    Ok(memory)
}

/// Puts a shared object where QEMU would make private RAM by itself.
fn replace_default(
    machine: &Machine,
    tokens: &[Token],
    edits: &mut Edits,
    memory: &mut Memory,
) -> Result<(), Error> {
    const REMEDY: &str =
        "give memory by -object memory-backend-memfd,id=ram0,size=SIZE -machine memory-backend=ram0";
    let Some(board) = machine.board else {
        let kind = machine.kind.as_deref().unwrap_or("the default machine");
        return Err(Error::Memory(format!(
            "vdeq does not know the memory of {kind} in this emulator; {REMEDY}"
        )));
    };
    let bytes = match ram_size(tokens)? {
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
    let ram_id = board.ram_id;
    let paths: Vec<usize> = (0..tokens.len()).filter(|&at| tokens[at].is("mem-path")).collect();
    let object = match paths.last().and_then(|&at| tokens[at].text()) {
        Some(path) => {
            paths.iter().for_each(|&at| edits.remove(at));
            memory.places.push(Place::Path { path: path.into(), bytes });
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

/// The size that all `-m` together ask for; `None` if that is the machine's default.
fn ram_size(tokens: &[Token]) -> Result<Option<u64>, Error> {
    let mut bytes = None;
    for token in tokens.iter().filter(|token| token.is("m")) {
        let text = token.text().unwrap_or("");
        let Some(wanted) = Props::parse(text, "size").get("size").map(str::to_owned) else { continue };
        let parsed = size::parse(&wanted, 1 << 20).and_then(size::round_up);
        let bad = || Error::Size { option: "m".into(), value: text.to_owned(), part: wanted.clone() };
        bytes = Some(parsed.ok_or_else(bad)?);
    }
    Ok(bytes.filter(|&bytes| bytes != 0))
}

/// The objects that `-numa node,memdev=` names.
fn numa_objects(tokens: &[Token]) -> Vec<String> {
    let nodes = tokens.iter().filter(|token| token.is("numa")).filter_map(Token::text);
    nodes.filter_map(|text| Props::parse(text, "type").get("memdev").map(str::to_owned)).collect()
}

/// The objects behind memory devices, and whether each is ordinary RAM.
fn dimm_objects(tokens: &[Token]) -> Vec<(String, bool)> {
    let devices = tokens.iter().filter(|token| token.is("device")).filter_map(Token::text);
    devices
        .filter_map(|text| {
            let (driver, memdev) = if text.starts_with('{') {
                let json: serde_json::Value = serde_json::from_str(text).ok()?;
                (json.get("driver")?.as_str()?.to_owned(), json.get("memdev")?.as_str()?.to_owned())
            } else {
                let props = Props::parse(text, "driver");
                (props.get("driver")?.to_owned(), props.get("memdev")?.to_owned())
            };
            let volatile = driver == "pc-dimm" || driver.starts_with("virtio-mem");
            let persistent = driver == "nvdimm" || driver.starts_with("virtio-pmem");
            (volatile || persistent).then_some((memdev, volatile))
        })
        .collect()
}
