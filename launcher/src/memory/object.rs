//! Edits of one `-object memory-backend-…`, in QEMU's `key=value` form or in JSON.

use std::path::PathBuf;

use super::{Memory, Place};
use crate::argv::Token;
use crate::error::Error;
use crate::properties::Properties;
use crate::rewrite::Edits;
use crate::size;

/// Where the C library keeps POSIX shared memory.
const SHM_DIR: &str = "/dev/shm";

/// Bytes of an object; in JSON and outside of it alike a bare number counts bytes.
fn bytes(object: &Properties) -> Option<u64> {
    size::parse(&object.get("size")?, 1)
}

/// The object `id` and the place of its token.
pub(super) fn find(id: &str, tokens: &[Token]) -> Option<(usize, Properties)> {
    let objects = tokens.iter().enumerate().filter(|(_, token)| token.is("object"));
    let mut read =
        objects.filter_map(|(at, token)| Some((at, Properties::parse(token.text()?, "qom-type")?)));
    read.find(|(_, object)| object.get("id").as_deref() == Some(id))
}

/// Whether the object `id` is memory in a file, mapped privately.
pub(super) fn is_private_file(id: &str, tokens: &[Token]) -> bool {
    let file = |object: &Properties| object.get("qom-type").as_deref() == Some("memory-backend-file");
    find(id, tokens).is_some_and(|(_, object)| file(&object) && !object.is_on("share"))
}

/// Makes the object `id`, which `user` refers to, shareable.
pub(super) fn share(
    id: &str,
    user: &str,
    tokens: &[Token],
    edits: &mut Edits,
    memory: &mut Memory,
) -> Result<(), Error> {
    let Some((at, mut object)) = find(id, tokens) else {
        let unseen = match tokens.iter().any(|token| token.is("readconfig")) {
            true => " (what stands in -readconfig is not seen)",
            false => "",
        };
        return Err(Error::Memory(format!(
            "{user}={id} names an object that is not on the command line{unseen}; \
             add -object memory-backend-memfd,id={id},size=SIZE"
        )));
    };
    if object.is_off("share") {
        return Err(Error::Memory(format!(
            "memory '{id}' is private by share=off, but a VDE NIC needs shared memory; drop share=off or the VDE NIC"
        )));
    }
    let kind = object.get("qom-type").unwrap_or_default();
    let before = object.clone();
    match kind.as_str() {
        "memory-backend-memfd" => {
            if let Some(bytes) = bytes(&object).filter(|_| object.is_on("hugetlb")) {
                let page = object.get("hugetlbsize").and_then(|text| size::parse(&text, 1));
                memory.places.push(Place::HugePages { page, bytes });
            }
        }
        "memory-backend-shm" => {
            if let Some(bytes) = bytes(&object) {
                memory.places.push(Place::Path { path: SHM_DIR.into(), bytes });
            }
        }
        "memory-backend-file" => {
            refuse_template(id, &object)?;
            if !object.is_on("share") {
                object.set("share", true.into());
                memory.own_files.extend(object.get("mem-path").map(PathBuf::from));
                memory
                    .changes
                    .push(format!("memory '{id}' becomes shared: guest memory is written to its file"));
            }
            if let (Some(path), Some(bytes)) = (object.get("mem-path"), bytes(&object)) {
                memory.places.push(Place::Path { path: path.into(), bytes });
            }
        }
        // QEMU 7.2 calls RAM with share=on shared too, but it has no descriptor there.
        "memory-backend-ram" => {
            object.set("qom-type", "memory-backend-memfd".into());
            memory.changes.push(format!("memory '{id}' becomes a shared memfd"));
        }
        other => {
            return Err(Error::Memory(format!(
                "memory '{id}' is of type {other}, which vdeq cannot share; use memory-backend-memfd"
            )));
        }
    }
    if object.render() != before.render() {
        edits.replace(at, ["-object", &object.render()]);
    }
    Ok(())
}

/// A file that the user does not want written cannot be guest memory that a back end writes.
fn refuse_template(id: &str, object: &Properties) -> Result<(), Error> {
    // Persistent memory that its owner shares already is written by whoever maps it.
    let pmem = (!object.is_on("share")).then_some("pmem");
    match ["readonly", "rom"].into_iter().chain(pmem).find(|key| object.is_on(key)) {
        None => Ok(()),
        Some(key) => Err(Error::Memory(format!(
            "memory '{id}' has {key}=on and cannot be shared for writing; drop {key}=on or the VDE NIC"
        ))),
    }
}
