//! Edits of one `-object memory-backend-…`, in QEMU's `key=value` form or in JSON.

use serde_json::{Map, Value};

use super::{Memory, Place};
use crate::argv::Token;
use crate::error::Error;
use crate::props::Props;
use crate::rewrite::Edits;
use crate::size;

/// Where the C library keeps POSIX shared memory.
const SHM_DIR: &str = "/dev/shm";

/// An object in either form, behind one set of accessors.
#[derive(Clone)]
enum Object {
    Plain(Props),
    Json(Map<String, Value>),
}

impl Object {
    fn parse(text: &str) -> Option<Self> {
        if !text.starts_with('{') {
            return Some(Self::Plain(Props::parse(text, "qom-type")));
        }
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Some(Self::Json(map)),
            // QEMU reports broken JSON better than we could.
            _ => None,
        }
    }

    fn get(&self, key: &str) -> Option<String> {
        match self {
            Self::Plain(props) => props.get(key).map(str::to_owned),
            Self::Json(map) => match map.get(key)? {
                Value::String(text) => Some(text.clone()),
                Value::Bool(on) => Some(if *on { "on" } else { "off" }.into()),
                other => Some(other.to_string()),
            },
        }
    }

    fn is_on(&self, key: &str) -> bool {
        match self {
            Self::Plain(props) => props.is_on(key),
            Self::Json(_) => self.get(key).as_deref() == Some("on"),
        }
    }

    fn is_off(&self, key: &str) -> bool {
        match self {
            Self::Plain(props) => props.is_off(key),
            Self::Json(_) => self.get(key).as_deref() == Some("off"),
        }
    }

    fn set_share(&mut self) {
        match self {
            Self::Plain(props) => props.set("share", "on"),
            Self::Json(map) => {
                map.insert("share".into(), Value::Bool(true));
            }
        }
    }

    fn set_type(&mut self, kind: &str) {
        match self {
            Self::Plain(props) if props.keys().next() == Some("qom-type") => props.set_implied(kind),
            Self::Plain(props) => props.set("qom-type", kind),
            Self::Json(map) => {
                map.insert("qom-type".into(), Value::String(kind.into()));
            }
        }
    }

    fn render(&self) -> String {
        match self {
            Self::Plain(props) => props.render(),
            Self::Json(map) => Value::Object(map.clone()).to_string(),
        }
    }

    /// Bytes; in JSON and here alike a bare number counts bytes.
    fn bytes(&self) -> Option<u64> {
        size::parse(&self.get("size")?, 1)
    }
}

/// Makes the object `id`, which `user` refers to, shareable.
pub(super) fn share(
    id: &str,
    user: &str,
    tokens: &[Token],
    edits: &mut Edits,
    memory: &mut Memory,
) -> Result<(), Error> {
    let objects = tokens.iter().enumerate().filter(|(_, token)| token.is("object"));
    let found = objects
        .filter_map(|(at, token)| Some((at, Object::parse(token.text()?)?)))
        .find(|(_, object)| object.get("id").as_deref() == Some(id));
    let Some((at, mut object)) = found else {
        return Err(Error::Memory(format!(
            "{user}={id} names an object that is not on the command line; add -object memory-backend-memfd,id={id},size=SIZE"
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
            if let Some(bytes) = object.bytes().filter(|_| object.is_on("hugetlb")) {
                let page = object.get("hugetlbsize").and_then(|text| size::parse(&text, 1));
                memory.places.push(Place::HugePages { page, bytes });
            }
        }
        "memory-backend-shm" => {
            if let Some(bytes) = object.bytes() {
                memory.places.push(Place::Path { path: SHM_DIR.into(), bytes });
            }
        }
        "memory-backend-file" => {
            refuse_template(id, &object)?;
            if !object.is_on("share") {
                object.set_share();
                memory
                    .changes
                    .push(format!("memory '{id}' becomes shared: guest memory is written to its file"));
            }
            if let (Some(path), Some(bytes)) = (object.get("mem-path"), object.bytes()) {
                memory.places.push(Place::Path { path: path.into(), bytes });
            }
        }
        // QEMU 7.2 calls RAM with share=on shared too, but it has no descriptor there.
        "memory-backend-ram" => {
            object.set_type("memory-backend-memfd");
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
fn refuse_template(id: &str, object: &Object) -> Result<(), Error> {
    match ["readonly", "rom", "pmem"].into_iter().find(|key| object.is_on(key)) {
        None => Ok(()),
        Some(key) => Err(Error::Memory(format!(
            "memory '{id}' has {key}=on and cannot be shared for writing; drop {key}=on or the VDE NIC"
        ))),
    }
}
