//! What will be run: plain data, printable as shell lines and as JSON.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use serde::{Serialize, Serializer};

use crate::memory::Memory;
use crate::model::Protocol;
use crate::monitor::Monitor;
use crate::props::double;
use crate::settings::Settings;

/// Name under which the switch lists our connections, as the old wrapper's did.
pub const DESCRIPTION: &str = "vdeqemu";

/// A VM about to be started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Path of the emulator.
    #[serde(serialize_with = "as_one_text")]
    pub program: OsString,
    /// Its arguments.
    #[serde(serialize_with = "as_text")]
    pub arguments: Vec<OsString>,
    /// Its version, if it had to be known.
    pub qemu_version: Option<String>,
    /// What the VM is called.
    pub name: Option<String>,
    /// Its monitor for `vdectl`, if it has a NIC of ours and can have one.
    pub monitor: Option<Monitor>,
    /// The back end, if the VM has a NIC of ours.
    pub back_end: Option<BackEnd>,
    /// What became of guest memory.
    pub memory: Option<Memory>,
    /// What the user is told.
    pub notices: Vec<String>,
}

/// The back end of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackEnd {
    /// Directory of its sockets, removed when the VM ends.
    pub private_dir: String,
    /// Socket on which it takes commands, if its name is not too long.
    pub control: Option<String>,
    /// User and group that QEMU will run as: they may connect to the sockets again.
    pub socket_owner: Option<(u32, u32)>,
    /// What it is told for all NICs.
    pub settings: Settings,
    /// The NICs it serves.
    pub nics: Vec<NicPlan>,
    /// The hubs of its own that it joins to networks.
    pub joins: Vec<Join>,
}

/// A hub of the back end's, for a segment with several NICs, and the networks that it is joined to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Join {
    /// The legacy segment.
    pub vlan: u32,
    /// Locator of the hub, which is a link of the segment's NICs.
    pub hub: String,
    /// Locators of the networks.
    pub links: Vec<String>,
}

/// One NIC that the back end serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NicPlan {
    /// The legacy segment that it was in.
    pub vlan: Option<u32>,
    /// What its netdev is for: the device that the guest sees, if it has a name, or a hubport.
    pub model: Option<String>,
    /// Its MAC address, if given.
    pub macaddr: Option<String>,
    /// Its netdev, the name for QMP.
    pub netdev: String,
    /// What is spoken on its socket.
    pub protocol: Protocol,
    /// Its queue pairs.
    pub queues: u16,
    /// Its socket.
    pub socket: String,
    /// Locators of its networks.
    pub links: Vec<String>,
}

impl BackEnd {
    /// The back end's arguments, the two descriptors excepted.
    pub fn arguments(&self) -> Vec<String> {
        let mut words = vec![
            "--private-dir".into(),
            self.private_dir.clone(),
            "--description".into(),
            DESCRIPTION.into(),
        ];
        if let Some(control) = &self.control {
            words.extend(["--control".into(), control.clone()]);
        }
        if let Some((uid, gid)) = self.socket_owner {
            words.extend(["--socket-owner".into(), format!("{uid}:{gid}")]);
        }
        words.extend(self.settings.arguments());
        for nic in &self.nics {
            let mut value = format!("socket-path={},id={}", double(&nic.socket), double(&nic.netdev));
            for link in &nic.links {
                value.push_str(&format!(",link={}", double(link)));
            }
            if nic.queues > 1 {
                value.push_str(&format!(",queues={}", nic.queues));
            }
            if nic.protocol == Protocol::Stream {
                value.push_str(",protocol=stream");
            }
            words.extend(["--nic".into(), value]);
        }
        for Join { hub, links, .. } in &self.joins {
            let pair = |link| format!("link={},link={}", double(hub), double(link));
            words.extend(links.iter().flat_map(|link| ["--join".into(), pair(link)]));
        }
        words
    }
}

impl Plan {
    /// The plan as lines for a shell: the back end in the background, then QEMU.
    pub fn shell(&self) -> String {
        let mut lines = String::new();
        if let Some(back_end) = &self.back_end {
            lines.push_str("vhost-user-vde");
            for word in back_end.arguments() {
                lines.push(' ');
                lines.push_str(&quote(OsStr::new(&word)));
            }
            lines.push_str(" &\n");
        }
        lines.push_str(&quote(&self.program));
        for word in &self.arguments {
            lines.push(' ');
            lines.push_str(&quote(word));
        }
        lines.push('\n');
        lines
    }

    /// The plan as JSON. Words that are not text are shown with replacement characters.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_else(|error| format!("{{\"error\": \"{error}\"}}"))
    }
}

fn as_one_text<S: Serializer>(word: &OsString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&word.to_string_lossy())
}

fn as_text<S: Serializer>(words: &[OsString], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(words.iter().map(|word| word.to_string_lossy()))
}

/// Quotes a word so that a shell reads it as it is.
fn quote(word: &OsStr) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(byte);
    match word.to_str() {
        Some(text) if !text.is_empty() && text.bytes().all(|byte| plain(&byte)) => text.to_owned(),
        Some(text) => format!("'{}'", text.replace('\'', r"'\''")),
        None => {
            let bytes = word.as_bytes().iter();
            let escaped: String = bytes
                .map(
                    |byte| if plain(byte) { char::from(*byte).to_string() } else { format!("\\x{byte:02x}") },
                )
                .collect();
            format!("$'{escaped}'")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quote_words() {
        for (word, quoted) in
            [("a,b=c", "a,b=c"), ("", "''"), ("a b", "'a b'"), ("it's", r"'it'\''s'"), ("$x", "'$x'")]
        {
            assert_eq!(quote(OsStr::new(word)), quoted);
        }
        assert_eq!(quote(OsStr::from_bytes(b"a\xff'")), r"$'a\xff\x27'");
    }

    #[test]
    fn arguments_double_commas() {
        let nic = NicPlan {
            vlan: Some(0),
            model: Some("virtio-net-pci".into()),
            macaddr: None,
            netdev: "vdeq0n".into(),
            protocol: Protocol::VhostUser,
            queues: 1,
            socket: "/run/a,b/0.sock".into(),
            links: vec!["/tmp/x,y".into(), String::new()],
        };
        let settings = Settings { poll_us: Some(50), ..Settings::default() };
        let socket_owner = Some((5, 6));
        let (nics, joins) = (vec![nic], Vec::new());
        let (private_dir, control) = ("/run/a,b".into(), Some("/run/a,b/c".into()));
        let back_end = BackEnd { private_dir, control, socket_owner, settings, nics, joins };
        let expected = "--private-dir|/run/a,b|--description|vdeqemu|--control|/run/a,b/c|--socket-owner|5:6|--poll-us|50|--nic";
        let arguments = back_end.arguments();
        assert_eq!(arguments[..11].join("|"), expected);
        assert_eq!(arguments[11], "socket-path=/run/a,,b/0.sock,id=vdeq0n,link=/tmp/x,,y,link=");
    }
}
