//! One attachment to a VDE network, as `-net vde` words it, and the locator made of it.
//!
//! The back end takes locators only: `/tmp/sw[7/group=vde/mode=0660]`. So `port=`, `group=` and
//! `mode=` move into the brackets. What the user wrote there by hand wins, because the old wrapper
//! passed the suboptions as defaults that the locator could override.

/// A link of a NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Locator text, empty for the default switch.
    pub sock: String,
    /// The switch port wanted; `None` for the next free one.
    pub port: Option<u32>,
    /// The group that the client socket shall belong to.
    pub group: Option<String>,
    /// Octal mode of the client socket.
    pub mode: Option<String>,
}

/// Keys of the brackets in the order in which an abbreviation is looked up.
const KEYS: [&str; 4] = ["port", "portgroup", "group", "mode"];

impl Link {
    /// Whether port, group and mode mean anything to this locator.
    pub fn is_switch(&self) -> bool {
        self.sock.split_once("://").is_none_or(|(scheme, _)| scheme == "vde")
    }

    /// The suboptions that the locator's scheme has no use for.
    pub fn useless(&self) -> Vec<&'static str> {
        if self.is_switch() {
            return Vec::new();
        }
        let given =
            [("port", self.port.is_some()), ("group", self.group.is_some()), ("mode", self.mode.is_some())];
        given.into_iter().filter_map(|(name, given)| given.then_some(name)).collect()
    }

    /// The locator for the back end.
    pub fn locator(&self) -> String {
        if !self.is_switch() {
            return self.sock.clone();
        }
        let (path, own) = split_brackets(&self.sock);
        let own: Vec<&str> = own.split('/').filter(|part| !part.is_empty()).collect();
        let has = |key: &str| own.iter().any(|part| key_of(part) == Some(key));
        let mut parts = Vec::new();
        if let Some(port) = self.port.filter(|_| !has("port")) {
            parts.push(port.to_string());
        }
        if let Some(group) = self.group.as_ref().filter(|_| !has("group")) {
            parts.push(format!("group={}", escape(group)));
        }
        if let Some(mode) = self.mode.as_ref().filter(|_| !has("mode")) {
            parts.push(format!("mode={mode}"));
        }
        if parts.is_empty() {
            return self.sock.clone();
        }
        parts.extend(own.iter().map(|part| (*part).to_owned()));
        format!("{path}[{}]", parts.join("/"))
    }
}

/// Splits `PATH[OPTIONS]` at the first bracket that is not quoted; a missing `]` is tolerated.
fn split_brackets(sock: &str) -> (&str, &str) {
    let Some(open) = find_unquoted(sock, '[') else { return (sock, "") };
    let inner = &sock[open + 1..];
    (&sock[..open], &inner[..inner.rfind(']').unwrap_or(inner.len())])
}

/// Finds `wanted` outside of quotes and not behind a backslash.
fn find_unquoted(text: &str, wanted: char) -> Option<usize> {
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match (c, quote) {
            ('\\', _) => {
                chars.next();
            }
            (c, Some(open)) if c == open => quote = None,
            (_, Some(_)) => {}
            ('\'' | '"', None) => quote = Some(c),
            (c, None) if c == wanted => return Some(at),
            _ => {}
        }
    }
    None
}

/// Which suboption a part of the brackets stands for. A bare word that is no key is the port.
fn key_of(part: &str) -> Option<&'static str> {
    let (word, has_value) = part.split_once('=').map_or((part, false), |(key, _)| (key, true));
    match KEYS.into_iter().find(|key| !word.is_empty() && key.starts_with(word)) {
        Some("portgroup") => Some("port"),
        None if !has_value => Some("port"),
        known => known,
    }
}

/// Keeps the characters that structure a locator out of a group's name.
fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        if matches!(c, '/' | '[' | ']' | '\'' | '"' | '\\' | '%') {
            out.push('\\');
        }
        out.push(c);
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(sock: &str) -> Link {
        Link { sock: sock.into(), port: Some(7), group: Some("vde".into()), mode: Some("0660".into()) }
    }

    #[test]
    fn locator_merges_brackets() {
        for (sock, expected) in [
            ("/tmp/sw", "/tmp/sw[7/group=vde/mode=0660]"),
            ("", "[7/group=vde/mode=0660]"),
            ("/tmp/sw[5]", "/tmp/sw[group=vde/mode=0660/5]"),
            ("/tmp/sw[]", "/tmp/sw[7/group=vde/mode=0660]"),
            ("/tmp/sw[m=0600/p=3", "/tmp/sw[group=vde/m=0600/p=3]"),
            ("/tmp/sw[portgroup=x/group=g/mode=1]", "/tmp/sw[portgroup=x/group=g/mode=1]"),
            ("vde:///run/sw[group=a]", "vde:///run/sw[7/mode=0660/group=a]"),
            ("'/tmp/a[b'[5]", "'/tmp/a[b'[group=vde/mode=0660/5]"),
            ("multi:///tmp/m", "multi:///tmp/m"),
        ] {
            assert_eq!(link(sock).locator(), expected, "{sock}");
        }
        assert_eq!(Link { sock: "/tmp/sw[5]".into(), ..Link::default() }.locator(), "/tmp/sw[5]");
        assert_eq!(Link::default().locator(), "");
        assert_eq!(link("tap://t0").useless(), ["port", "group", "mode"]);
    }
}
