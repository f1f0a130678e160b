//! The value of an option that QEMU takes in two forms: `key=value,key=value`, or JSON.
//!
//! QEMU tells them apart by the first character. Its JSON also allows strings in single quotes, which
//! are made double before anything else. An option that nobody edits is never rendered, so its
//! spelling stays the user's.

use serde_json::{Map, Value};

use crate::props::{Props, double};

/// Properties in either form, behind one set of accessors.
#[derive(Clone, Debug, PartialEq)]
pub enum Properties {
    /// `key=value,key=value`.
    Plain(Props),
    /// A JSON object.
    Json(Map<String, Value>),
}

impl Properties {
    /// Reads a value; `implied` is the key that the first part may leave out. `None` for broken JSON, which
    /// QEMU reports better than we could.
    pub fn parse(text: &str, implied: &str) -> Option<Self> {
        if !text.starts_with('{') {
            return Some(Self::Plain(Props::parse(text, implied)));
        }
        match serde_json::from_str(&double_quotes(text)) {
            Ok(Value::Object(map)) => Some(Self::Json(map)),
            _ => None,
        }
    }

    /// The value of `key` as text; a switch is `on` or `off`.
    pub fn get(&self, key: &str) -> Option<String> {
        match self {
            Self::Plain(props) => props.get(key).map(str::to_owned),
            Self::Json(map) => match map.get(key)? {
                Value::String(text) => Some(text.clone()),
                Value::Bool(on) => Some(if *on { "on" } else { "off" }.into()),
                other => Some(other.to_string()),
            },
        }
    }

    /// Whether `key` is a switch that is on.
    pub fn is_on(&self, key: &str) -> bool {
        match self {
            Self::Plain(props) => props.is_on(key),
            Self::Json(_) => self.get(key).as_deref() == Some("on"),
        }
    }

    /// Whether `key` is a switch that was turned off by name.
    pub fn is_off(&self, key: &str) -> bool {
        match self {
            Self::Plain(props) => props.is_off(key),
            Self::Json(_) => self.get(key).as_deref() == Some("off"),
        }
    }

    /// All keys.
    pub fn keys(&self) -> Vec<&str> {
        match self {
            Self::Plain(props) => props.keys().collect(),
            Self::Json(map) => map.keys().map(String::as_str).collect(),
        }
    }

    /// Sets `key`, where it stands or else at the end.
    pub fn set(&mut self, key: &str, value: Value) {
        match self {
            Self::Plain(props) => props.set(key, &plain(&value)),
            Self::Json(map) => {
                map.insert(key.to_owned(), value);
            }
        }
    }

    /// The properties as QEMU reads them.
    pub fn render(&self) -> String {
        match self {
            Self::Plain(props) => props.render(),
            Self::Json(map) => Value::Object(map.clone()).to_string(),
        }
    }
}

/// Writes new properties in the form wanted. A dot in a key leads into a nested object; the first
/// pair's key is left out where that is possible.
pub fn write(pairs: &[(&str, Value)], json: bool) -> String {
    if json {
        let mut map = Map::new();
        for (key, value) in pairs {
            match key.split_once('.') {
                None => drop(map.insert((*key).to_owned(), value.clone())),
                Some((outer, inner)) => {
                    let nested = map.entry(outer).or_insert_with(|| Value::Object(Map::new()));
                    nested[inner] = value.clone();
                }
            }
        }
        return Value::Object(map).to_string();
    }
    let word = |(at, (key, value)): (usize, &(&str, Value))| match at {
        0 => double(&plain(value)),
        _ => format!("{key}={}", double(&plain(value))),
    };
    pairs.iter().enumerate().map(word).collect::<Vec<_>>().join(",")
}

/// A JSON value as the other form has it.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(on) => if *on { "on" } else { "off" }.into(),
        other => other.to_string(),
    }
}

/// Turns strings in single quotes into strings in double quotes.
fn double_quotes(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            // Only QEMU escapes a single quote.
            ('\\', Some(_)) => match chars.next() {
                Some('\'') => out.push('\''),
                escaped => out.extend(std::iter::once(c).chain(escaped)),
            },
            ('"', Some('\'')) => out.push_str("\\\""),
            (c, Some(open)) if c == open => {
                out.push('"');
                quote = None;
            }
            ('\'' | '"', None) => {
                out.push('"');
                quote = Some(c);
            }
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_both_forms_and_single_quotes() {
        for text in [
            "vde,id=a'b\"c,on=on,n=7",
            r#"{"type":"vde","id":"a'b\"c","on":true,"n":7}"#,
            r#"{'type': 'vde', "id": 'a\'b"c', 'on': true, 'n': 7}"#,
        ] {
            let properties = Properties::parse(text, "type").expect(text);
            assert_eq!(properties.get("type").as_deref(), Some("vde"), "{text}");
            assert_eq!(properties.get("id").as_deref(), Some("a'b\"c"), "{text}");
            assert_eq!(properties.get("n").as_deref(), Some("7"), "{text}");
            assert!(properties.is_on("on") && !properties.is_on("id"), "{text}");
        }
        for text in ["{", "{]", "{'a':'b}", "{'a'}"] {
            assert_eq!(Properties::parse(text, "type"), None, "{text}");
        }
    }

    #[test]
    fn write_both_forms() {
        let pairs = [
            ("type", Value::from("stream")),
            ("server", Value::from(false)),
            ("addr.type", Value::from("unix")),
            ("addr.path", Value::from("a,b")),
            ("queues", Value::from(2)),
        ];
        assert_eq!(write(&pairs, false), "stream,server=off,addr.type=unix,addr.path=a,,b,queues=2");
        let json = r#"{"addr":{"path":"a,b","type":"unix"},"queues":2,"server":false,"type":"stream"}"#;
        assert_eq!(write(&pairs, true), json);
    }

    #[test]
    fn set_keeps_the_rest() {
        let mut plain = Properties::parse("virtio-net-pci,netdev=n,,x,weird", "driver").expect("plain");
        plain.set("mq", true.into());
        assert_eq!(plain.render(), "virtio-net-pci,netdev=n,,x,weird,mq=on");
        let mut json =
            Properties::parse(r#"{"driver":"virtio-net-pci","vectors":3}"#, "driver").expect("JSON");
        json.set("vectors", 0.into());
        assert_eq!(json.render(), r#"{"driver":"virtio-net-pci","vectors":0}"#);
    }
}
