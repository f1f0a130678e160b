//! QEMU's `key=value,key=value` lists.
//!
//! A comma inside a value is written twice. The first part may lack its key, which is then implied
//! by the option (`-net nic` is `type=nic`); a later part without `=` is a switch that is on. Parts
//! that nobody edits are kept as they were written, doubled commas, odd spellings and all.

/// A list of properties, editable in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Props {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    key: String,
    value: String,
    raw: String,
}

impl Props {
    /// Reads a list whose first part may leave out the key `implied`. Never fails: QEMU itself is
    /// the judge of what a key may be.
    pub fn parse(text: &str, implied: &str) -> Self {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let stop = rest.find(['=', ',']).unwrap_or(rest.len());
            let (key, value_at) = if rest[stop..].starts_with('=') {
                (&rest[..stop], Some(stop + 1))
            } else if parts.is_empty() && !implied.is_empty() {
                (implied, Some(0))
            } else {
                (&rest[..stop], None)
            };
            let (value, end) = match value_at {
                Some(at) => {
                    let (value, length) = take_value(&rest[at..]);
                    (value, at + length)
                }
                None => ("on".to_owned(), stop),
            };
            parts.push(Part { key: key.to_owned(), value, raw: rest[..end].to_owned() });
            rest = rest[end..].strip_prefix(',').unwrap_or("");
        }
        Self { parts }
    }

    /// The value of `key`; the last one counts, as in QEMU.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.parts.iter().rev().find(|part| part.key == key).map(|part| part.value.as_str())
    }

    /// Whether `key` is a switch that is on.
    pub fn is_on(&self, key: &str) -> bool {
        matches!(self.get(key), Some("on" | "yes" | "true" | "y"))
    }

    /// Whether `key` is a switch that was turned off by name.
    pub fn is_off(&self, key: &str) -> bool {
        matches!(self.get(key), Some("off" | "no" | "false" | "n"))
    }

    /// All keys in the order written.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|part| part.key.as_str())
    }

    /// Sets `key`, where it stands or else at the end. A key that was left out stays left out.
    pub fn set(&mut self, key: &str, value: &str) {
        let mut part =
            Part { key: key.to_owned(), value: value.to_owned(), raw: format!("{key}={}", double(value)) };
        match self.parts.iter_mut().rev().find(|old| old.key == key) {
            Some(old) => {
                if old.raw == double(&old.value) {
                    part.raw = double(value);
                }
                *old = part;
            }
            None => self.parts.push(part),
        }
    }

    /// Gives every part called `old` the name `new`, value and place kept.
    pub fn rename(&mut self, old: &str, new: &str) {
        for part in self.parts.iter_mut().filter(|part| part.key == old) {
            part.key = new.to_owned();
            part.raw = format!("{new}={}", double(&part.value));
        }
    }

    /// Removes every part called `key`.
    pub fn remove(&mut self, key: &str) {
        self.parts.retain(|part| part.key != key);
    }

    /// The list as QEMU reads it.
    pub fn render(&self) -> String {
        self.parts.iter().map(|part| part.raw.as_str()).collect::<Vec<_>>().join(",")
    }
}

/// Writes a value so that its commas are not taken for separators.
pub fn double(value: &str) -> String {
    value.replace(',', ",,")
}

/// Reads a value up to a single comma; gives it and how many bytes it took.
fn take_value(text: &str) -> (String, usize) {
    let mut value = String::new();
    let mut at = 0;
    loop {
        let stop = text[at..].find(',').map_or(text.len(), |found| at + found);
        value.push_str(&text[at..stop]);
        if !text[stop..].starts_with(",,") {
            return (value, stop);
        }
        value.push(',');
        at = stop + 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parse_implied_key_and_doubled_commas() {
        let props = Props::parse("socket,path=a,,b.sock,server,wait=off", "backend");
        assert_eq!(props.get("backend"), Some("socket"));
        assert_eq!(props.get("path"), Some("a,b.sock"));
        assert!(props.is_on("server") && props.is_off("wait"));
        assert_eq!(Props::parse("a,,b", "type").get("type"), Some("a,b"));
        assert_eq!(Props::parse("type=x,type=y", "type").get("type"), Some("y"));
    }

    #[test]
    fn set_keeps_the_other_parts_as_written() {
        let mut props = Props::parse("memory-backend-file,id=m,mem-path=/a,,b,weird", "qom-type");
        props.set("share", "on");
        props.set("id", "n,m");
        props.remove("weird");
        assert_eq!(props.render(), "memory-backend-file,id=n,,m,mem-path=/a,,b,share=on");
        props.set("qom-type", "a,b");
        assert_eq!(props.render(), "a,,b,id=n,,m,mem-path=/a,,b,share=on");
    }

    proptest! {
        #[test]
        fn render_unedited_text_is_the_same(text in "[a-c=,\"é]{0,24}") {
            let rendered = Props::parse(&text, "type").render();
            // A single comma at the very end separates nothing.
            prop_assert!(rendered == text || format!("{rendered},") == text, "{rendered:?} {text:?}");
        }

        #[test]
        fn set_then_parse_gives_the_value(value in ".{0,16}") {
            let mut props = Props::parse("x", "type");
            props.set("key", &value);
            let again = Props::parse(&props.render(), "type");
            prop_assert_eq!(again.get("key"), Some(value.as_str()));
        }
    }
}
