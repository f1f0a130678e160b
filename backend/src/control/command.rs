//! A request: which command, with which arguments; and why one is not carried out.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use vde_control::{CaptureStart, CaptureStop, LinkAdd, LinkRemove, LinkReplace, NicAdd, NicDel};

/// What can be asked for.
#[derive(Debug)]
pub enum Command {
    Capabilities,
    QueryNics,
    QueryJoins,
    NicAdd(NicAdd),
    NicDel(NicDel),
    LinkAdd(LinkAdd),
    LinkRemove(LinkRemove),
    LinkReplace(LinkReplace),
    CaptureStart(CaptureStart),
    CaptureStop(CaptureStop),
    Quit,
}

/// The kinds of errors, as QMP names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    CommandNotFound,
    DeviceNotFound,
    GenericError,
}

/// Why a request is not carried out.
#[derive(Debug)]
pub struct Refusal {
    class: Class,
    /// One sentence for a person.
    desc: String,
}

impl Refusal {
    /// Of that kind, with a sentence for a person.
    pub fn new(class: Class, desc: impl Into<String>) -> Self {
        Self { class, desc: desc.into() }
    }

    /// Its wire form.
    pub fn to_value(&self) -> Value {
        json!({ "class": format!("{:?}", self.class), "desc": self.desc })
    }
}

impl From<crate::Failure> for Refusal {
    fn from(failure: crate::Failure) -> Self {
        Self::new(Class::GenericError, failure.sentence)
    }
}

/// The members of a request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    execute: String,
    #[serde(default)]
    arguments: Map<String, Value>,
    /// Taken before.
    #[serde(rename = "id")]
    _id: Option<Value>,
}

/// A line's id, as far as it has one, and its command.
pub fn parse(line: &[u8]) -> (Option<Value>, Result<Command, Refusal>) {
    let refuse = |error: serde_json::Error| {
        Refusal::new(Class::GenericError, format!("a request is one line of JSON, as {EXAMPLE}: {error}"))
    };
    let value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(error) => return (None, Err(refuse(error))),
    };
    let id = value.get("id").cloned();
    (id, serde_json::from_value::<Members>(value).map_err(refuse).and_then(command))
}

const EXAMPLE: &str = r#"{"execute": "query-nics", "id": 1}"#;

fn command(members: Members) -> Result<Command, Refusal> {
    let Members { execute: name, arguments, .. } = members;
    match name.as_str() {
        "qmp_capabilities" => Ok(Command::Capabilities),
        "query-nics" => none(&name, &arguments).map(|()| Command::QueryNics),
        "query-joins" => none(&name, &arguments).map(|()| Command::QueryJoins),
        "nic-add" => read(&name, arguments).map(Command::NicAdd),
        "nic-del" => read(&name, arguments).map(Command::NicDel),
        "link-add" => read(&name, arguments).map(Command::LinkAdd),
        "link-remove" => read(&name, arguments).map(Command::LinkRemove),
        "link-replace" => read(&name, arguments).map(Command::LinkReplace),
        "capture-start" => read(&name, arguments).map(Command::CaptureStart),
        "capture-stop" => read(&name, arguments).map(Command::CaptureStop),
        "quit" => none(&name, &arguments).map(|()| Command::Quit),
        _ => Err(Refusal::new(Class::CommandNotFound, format!("there is no command {name:?}"))),
    }
}

fn read<T: DeserializeOwned>(name: &str, arguments: Map<String, Value>) -> Result<T, Refusal> {
    let refuse = |error| Refusal::new(Class::GenericError, format!("arguments of {name}: {error}"));
    serde_json::from_value(arguments.into()).map_err(refuse)
}

fn none(name: &str, arguments: &Map<String, Value>) -> Result<(), Refusal> {
    match arguments.keys().next() {
        None => Ok(()),
        Some(key) => {
            let desc = format!("arguments of {name}: it has none, and {key:?} is one");
            Err(Refusal::new(Class::GenericError, desc))
        }
    }
}
