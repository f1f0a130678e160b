//! A monitor of the VM for `vdectl`, and the name by which people call the VM.
//!
//! QEMU drops its default monitor, the one behind `-nographic` and its Ctrl-A c, as soon as `-qmp`, `-mon` or `-monitor` stands
//! on the command line. It does not look at what `-readconfig` brings: so ours comes in a file, and everything that the user
//! has or has not asked for stays as it is.

use serde::Serialize;

use crate::argv::Token;
use crate::props::Props;
use crate::rewrite::Facts;

/// How the ids of the chardev and of the monitor end.
pub const IDS: [&str; 2] = ["-monitor", "-qmp"];

/// A monitor of our own, on a socket in the private directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Monitor {
    /// The file that QEMU reads.
    pub config: String,
    /// The socket that QEMU makes.
    pub socket: String,
    /// The id of its chardev.
    pub chardev: String,
    /// Its id.
    pub id: String,
}

impl Monitor {
    /// The monitor, where there can be one; `prefix` is how ids of ours begin.
    pub fn new(facts: &Facts, prefix: &str) -> Option<Self> {
        let file = |name| format!("{}/{name}", facts.private_dir);
        let (config, socket) = (file(registry::MONITOR_CONFIG), file(registry::MONITOR));
        // QEMU's files have no way to write these inside quotes.
        let can_be_written = !socket.contains(|c: char| c == '"' || c.is_control());
        // Who may pass through the directory to the NICs' sockets must not be let into the monitor by its mode.
        let is_ours_alone = facts.run_as.is_none() || facts.umask_is_strict;
        (can_be_written && is_ours_alone && socket.len() <= registry::LONGEST_SOCKET).then(|| Self {
            config,
            socket,
            chardev: format!("{prefix}{}", IDS[0]),
            id: format!("{prefix}{}", IDS[1]),
        })
    }

    /// The words that give it to QEMU.
    pub fn words(&self) -> [&str; 2] {
        ["-readconfig", &self.config]
    }

    /// What stands in the file.
    pub fn file(&self) -> String {
        let Self { socket, chardev, id, .. } = self;
        format!(
            "[chardev \"{chardev}\"]\n  backend = \"socket\"\n  path = \"{socket}\"\n  server = \"on\"\n  wait = \"off\"\n\
             [mon \"{id}\"]\n  chardev = \"{chardev}\"\n  mode = \"control\"\n"
        )
    }
}

/// What the VM is called: `-name NAME`, or `guest=` in it.
pub fn name(tokens: &[Token]) -> Option<String> {
    let names = tokens.iter().rev().filter(|token| token.is("name"));
    names.filter_map(Token::text).find_map(|text| Props::parse(text, "guest").get("guest").map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::argv::scan;
    use crate::version::QemuVersion;

    fn facts(private_dir: &str) -> Facts {
        let version = QemuVersion(10, 0, 2);
        let (kvm_usable, umask_is_strict) = (false, true);
        Facts { version, kvm_usable, private_dir: private_dir.into(), run_as: None, umask_is_strict }
    }

    #[test]
    fn there_is_none_where_it_could_not_be_written_or_kept_from_others() {
        let monitor = Monitor::new(&facts("/run/vdeq/1"), "vdeqx").expect("a monitor");
        assert_eq!(monitor.words(), ["-readconfig", "/run/vdeq/1/monitor.conf"]);
        assert!(monitor.file().contains("[mon \"vdeqx-qmp\"]\n  chardev = \"vdeqx-monitor\"\n"));
        for odd in ["/a\"b", "/a\nb", &format!("/{}", "x".repeat(100))] {
            assert_eq!(Monitor::new(&facts(odd), "vdeq"), None, "{odd}");
        }
        for (umask_is_strict, run_as, there) in
            [(false, None, true), (true, Some((5, 6)), true), (false, Some((5, 6)), false)]
        {
            let facts = Facts { umask_is_strict, run_as, ..facts("/run/vdeq/1") };
            assert_eq!(Monitor::new(&facts, "vdeq").is_some(), there, "{facts:?}");
        }
    }

    #[test]
    fn name_is_the_last_one_given() {
        for (line, expected) in [
            ("-m 64", None),
            ("-name vm1", Some("vm1")),
            ("-name guest=a,,b,debug-threads=on", Some("a,b")),
            ("-name vm1 --name process=q", Some("vm1")),
            ("-name vm1 -append -name -name vm2,process=q", Some("vm2")),
        ] {
            let words: Vec<std::ffi::OsString> = line.split(' ').map(Into::into).collect();
            assert_eq!(name(&scan(&words)).as_deref(), expected, "{line}");
        }
    }
}
