//! One attachment to a VDE network, as `-net vde` words it, and the locator made of it.
//!
//! The back end takes locators only: `/tmp/sw[7/group=vde/mode=0660]`. So `port=`, `group=` and
//! `mode=` move into the brackets, by the names that they have there. What the user wrote there by hand
//! wins, because the old wrapper passed the suboptions as defaults that the locator could override.

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
    /// What QEMU shall call it, where an option says so and it has a netdev of its own.
    pub name: Option<String>,
}

/// What a scheme has in brackets.
struct Form {
    /// All keys, in the order in which an abbreviation is looked up.
    keys: &'static [&'static str],
    /// Those that port, group and mode have, as far as there are such; the port's is also that of a bare word.
    port: Option<&'static str>,
    group: Option<&'static str>,
    mode: Option<&'static str>,
}

const SWITCH: Form = Form {
    keys: &["port", "portgroup", "group", "mode"],
    port: Some("port"),
    group: Some("group"),
    mode: Some("mode"),
};
const NODE: Form = Form {
    keys: &["mode", "dirmode", "grp", "hashsize", "hashseed", "expiretime"],
    port: None,
    group: Some("grp"),
    mode: Some("mode"),
};
const CABLE: Form =
    Form { keys: &["group", "mode", "form"], port: None, group: Some("group"), mode: Some("mode") };
const OTHER: Form = Form { keys: &[], port: None, group: None, mode: None };

impl Link {
    fn form(&self) -> Form {
        match self.sock.split_once("://").map_or("vde", |(scheme, _)| scheme) {
            "vde" => SWITCH,
            "multi" | "hub" | "switch" | "bonding" => NODE,
            "ptp" => CABLE,
            _ => OTHER,
        }
    }

    /// The suboptions that the locator's scheme has no use for.
    pub fn useless(&self) -> Vec<&'static str> {
        let form = self.form();
        let given = [
            ("port", form.port.is_none() && self.port.is_some()),
            ("group", form.group.is_none() && self.group.is_some()),
            ("mode", form.mode.is_none() && self.mode.is_some()),
        ];
        given.into_iter().filter_map(|(name, useless)| useless.then_some(name)).collect()
    }

    /// The locator for the back end.
    pub fn locator(&self) -> String {
        let form = self.form();
        let (path, own) = split_brackets(&self.sock);
        let own: Vec<&str> = own.split('/').filter(|part| !part.is_empty()).collect();
        let lacks = |key: &&str| !own.iter().any(|part| form.key_of(part) == Some(*key));
        let mut parts = Vec::new();
        if let (Some(port), Some(_)) = (self.port, form.port.filter(lacks)) {
            parts.push(port.to_string());
        }
        if let (Some(group), Some(key)) = (&self.group, form.group.filter(lacks)) {
            parts.push(format!("{key}={}", escape(group)));
        }
        if let (Some(mode), Some(key)) = (&self.mode, form.mode.filter(lacks)) {
            parts.push(format!("{key}={mode}"));
        }
        if parts.is_empty() {
            return self.sock.clone();
        }
        parts.extend(own.iter().map(|part| (*part).to_owned()));
        format!("{path}[{}]", parts.join("/"))
    }
}

impl Form {
    /// Which key a part of the brackets has. A bare word that is no key is the port.
    fn key_of(&self, part: &str) -> Option<&'static str> {
        let (word, has_value) = part.split_once('=').map_or((part, false), |(key, _)| (key, true));
        match self.keys.iter().find(|key| !word.is_empty() && key.starts_with(word)) {
            Some(&"portgroup") => Some("port"),
            None if !has_value => self.port,
            known => known.copied(),
        }
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

/// Keeps the characters that structure what stands in brackets out of a group's name.
fn escape(text: &str) -> String {
    escape_all(text, "/[]'\"\\%")
}

/// Keeps the characters that structure a locator out of a path.
pub fn escape_path(text: &str) -> String {
    escape_all(text, "[]{}'\"\\%")
}

fn escape_all(text: &str, special: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        if special.contains(c) {
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
        Link {
            sock: sock.into(),
            port: Some(7),
            group: Some("vde".into()),
            mode: Some("0660".into()),
            name: None,
        }
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
            ("multi:///tmp/m", "multi:///tmp/m[grp=vde/mode=0660]"),
            ("switch:///tmp/m[mode=0600]", "switch:///tmp/m[grp=vde/mode=0600]"),
            ("hub:///tmp/m[g=a/dirmode=0711]", "hub:///tmp/m[mode=0660/g=a/dirmode=0711]"),
            ("ptp:///tmp/p[f=seqpacket]", "ptp:///tmp/p[group=vde/mode=0660/f=seqpacket]"),
            ("tap://t0[mtu=9000]", "tap://t0[mtu=9000]"),
        ] {
            assert_eq!(link(sock).locator(), expected, "{sock}");
        }
        assert_eq!(Link { sock: "/tmp/sw[5]".into(), ..Link::default() }.locator(), "/tmp/sw[5]");
        assert_eq!(Link::default().locator(), "");
        assert_eq!(link("tap://t0").useless(), ["port", "group", "mode"]);
        assert_eq!(link("switch:///tmp/m").useless(), ["port"]);
        assert!(link("/tmp/sw").useless().is_empty());
    }
}
