//! What a domain's XML may ask for, where it is not its owner's own business.
//!
//! A session daemon runs as the user who writes the XML: everything is allowed that the user may do. The system daemon is
//! root, and others write the XML. Then back ends run as QEMU's user, and of locators only those are taken that can do no
//! more than send frames: neither do they run a program or load a plug-in, nor does the contents of a file decide what they
//! are. An administrator allows more in `/etc/vdeq/libvirt.conf`, which has a line for each permission:
//!
//! ```text
//! allow slirp://            locators that begin so
//! privileged tap://vm-      the same, with the right to make and change interfaces
//! capture /var/log/vde      files in this directory for capture=
//! ```
//!
//! A domain has one back end, so a right that one of its networks has is one of all. Where one is privileged, the others
//! must be too, unless they have no use for it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use rustix::process::geteuid;

use crate::Failure;

/// The administrator's file.
pub const FILE: &str = "/etc/vdeq/libvirt.conf";

/// Schemes that can do no more than send frames, whatever rights there are to interfaces.
const HARMLESS: [&str; 8] = ["vde", "switch", "hub", "multi", "bonding", "ptp", "udp", "null"];
/// Schemes that can do no more with the rights of QEMU's user, but very much with those to interfaces.
const OF_INTERFACES: [&str; 2] = ["tap", "veth"];

/// What may be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// What the user may do, who started the daemon.
    Session,
    /// What is harmless, and what the administrator allows.
    System(Allowed),
}

/// What the administrator allows besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    locators: Vec<String>,
    privileged: Vec<String>,
    captures: Vec<String>,
}

/// A locator that may be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// As the back end gets it.
    pub locator: String,
    /// With the right to make and change interfaces.
    pub privileged: bool,
}

impl Policy {
    /// That of the libvirt which is our user's: root's is the system's.
    ///
    /// # Errors
    /// As of [`Policy::system`].
    pub fn of_user() -> Result<Self, Failure> {
        if geteuid().is_root() { Self::system() } else { Ok(Self::Session) }
    }

    /// The system daemon's.
    ///
    /// # Errors
    /// The administrator's file cannot be read or understood, or is not only root's to write.
    pub fn system() -> Result<Self, Failure> {
        Self::read(Path::new(FILE)).map(Self::System)
    }

    fn read(path: &Path) -> Result<Allowed, Failure> {
        let failed = |error| Failure::new(format!("{} cannot be read: {error}", path.display()));
        let file = match fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Allowed::default()),
            opened => opened.map_err(failed)?,
        };
        let found = file.metadata().map_err(failed)?;
        if found.uid() != 0 || found.mode() & 0o022 != 0 {
            return Err(Failure::new(format!(
                "{} can be written by others than root; chown it to root and take their right away",
                path.display()
            )));
        }
        Allowed::parse(&io::read_to_string(file).map_err(failed)?)
            .map_err(|line| Failure::new(format!("{}: {line}", path.display())))
    }

    /// Whether a network may be named, and how the back end is told of it.
    ///
    /// # Errors
    /// It may not.
    pub fn grant(&self, locator: &str) -> Result<Granted, Failure> {
        let Self::System(allowed) = self else {
            return Ok(Granted { locator: locator.into(), privileged: false });
        };
        if locator.is_empty() {
            return Err(Failure::new("a link is empty; name its network, as vde:///run/switch"));
        }
        // With its scheme, a path is never taken for a file that names another network.
        let locator = match locator.contains("://") {
            true => locator.to_owned(),
            false => format!("vde://{locator}"),
        };
        let begins_so = |prefixes: &[String]| prefixes.iter().any(|prefix| locator.starts_with(prefix));
        let scheme = locator.split_once("://").map_or("", |(scheme, _)| scheme);
        let privileged = begins_so(&allowed.privileged);
        let harmless = HARMLESS.contains(&scheme) || OF_INTERFACES.contains(&scheme);
        if privileged || harmless || begins_so(&allowed.locators) {
            return Ok(Granted { locator, privileged });
        }
        Err(Failure::new(format!(
            "{locator} is not taken from a domain, because {scheme}:// is none of those that do no more than send frames \
             ({}); the administrator allows it with the line 'allow {scheme}://' in {FILE}",
            HARMLESS.iter().chain(&OF_INTERFACES).copied().collect::<Vec<_>>().join(", ")
        )))
    }

    /// Whether all these networks may be named in one domain, and whether its back end gets the right to make and change
    /// interfaces.
    ///
    /// # Errors
    /// One of them may not be named, or not beside a privileged one.
    pub fn grant_together<'a>(&self, locators: impl Iterator<Item = &'a String>) -> Result<bool, Failure> {
        let granted: Vec<Granted> = locators.map(|locator| self.grant(locator)).collect::<Result<_, _>>()?;
        let Some(privileged) = granted.iter().find(|granted| granted.privileged) else { return Ok(false) };
        let gains = |granted: &&Granted| {
            let scheme = granted.locator.split_once("://").map_or("", |(scheme, _)| scheme);
            !granted.privileged && !HARMLESS.contains(&scheme)
        };
        match granted.iter().find(gains) {
            None => Ok(true),
            Some(other) => Err(Failure::new(format!(
                "{} is not taken beside {}, whose right to change interfaces it would have too; the administrator allows \
                 that with a line such as 'privileged {}' in {FILE}",
                other.locator, privileged.locator, other.locator
            ))),
        }
    }

    /// Whether frames may be written to a file.
    ///
    /// # Errors
    /// They may not.
    pub fn grant_capture(&self, file: &str) -> Result<(), Failure> {
        let Self::System(allowed) = self else { return Ok(()) };
        let path = Path::new(file);
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if plain && allowed.captures.iter().any(|directory| path.parent() == Some(Path::new(directory))) {
            return Ok(());
        }
        Err(Failure::new(format!(
            "capture={file} is not taken from a domain; the administrator allows a directory with a line such as \
             'capture /var/log/vde' in {FILE}"
        )))
    }
}

impl Allowed {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut allowed = Self::default();
        for line in text.lines().map(str::trim) {
            let words: Vec<&str> =
                line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
            match words.as_slice() {
                [] => {}
                ["allow", prefix] if prefix.contains("://") => allowed.locators.push((*prefix).into()),
                ["privileged", prefix] if prefix.contains("://") => allowed.privileged.push((*prefix).into()),
                ["capture", path] if path.starts_with('/') => allowed.captures.push((*path).into()),
                _ => {
                    return Err(format!(
                        "'{line}' is not understood; a line is 'allow SCHEME://...', 'privileged SCHEME://...' or \
                         'capture /DIRECTORY'"
                    ));
                }
            }
        }
        Ok(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Policy {
        Policy::System(Allowed::parse(text).unwrap())
    }

    #[test]
    fn grant_takes_from_strangers_what_only_sends_frames() {
        let none = policy("");
        for (locator, told) in [
            ("/run/sw[7]", "vde:///run/sw[7]"),
            ("vde:///run/sw", "vde:///run/sw"),
            ("switch:///run/vm/net", "switch:///run/vm/net"),
            ("tap://t0", "tap://t0"),
        ] {
            assert_eq!(none.grant(locator).unwrap(), Granted { locator: told.into(), privileged: false });
        }
        for bad in [
            "",
            "cmd://id",
            "seqpacket://3",
            "slirp://",
            "vlan://5{/run/sw}",
            "CMD://id",
            "://x",
            "x cmd://id",
        ] {
            let said = none.grant(bad).unwrap_err().to_string();
            assert!(said.contains(bad), "{said}");
        }
        assert!(none.grant("slirp://").unwrap_err().to_string().contains("'allow slirp://'"));
        assert_eq!(Policy::Session.grant("cmd://id").unwrap().locator, "cmd://id");
        assert_eq!(Policy::Session.grant("").unwrap().locator, "");
    }

    #[test]
    fn grant_heeds_the_administrator() {
        let some = policy("# ours\n\nallow slirp:// # a b\n  privileged tap://vm-\ncapture /var/log/vde\n");
        assert!(!some.grant("slirp://").unwrap().privileged);
        assert!(some.grant("tap://vm-1").unwrap().privileged);
        assert!(!some.grant("tap://t0").unwrap().privileged);
        some.grant("vlan://5{slirp://}").unwrap_err();
        some.grant_capture("/var/log/vde/a.pcapng").unwrap();
        for bad in
            ["/var/log/vde/../shadow", "/var/log/vde/a/b", "/var/log/vde", "/etc/x", "x", "/var/log/vdex/y"]
        {
            some.grant_capture(bad).unwrap_err();
        }
        policy("").grant_capture("/tmp/x").unwrap_err();
        Policy::Session.grant_capture("x").unwrap();
    }

    #[test]
    fn grant_together_shares_no_privilege() {
        let some = policy("allow vlan://\nprivileged veth://vm-\nprivileged tap://vm-\n");
        let together = |locators: &[&str]| {
            let locators: Vec<String> = locators.iter().map(|locator| (*locator).to_owned()).collect();
            some.grant_together(locators.iter())
        };
        assert_eq!(together(&[]), Ok(false));
        assert_eq!(together(&["tap://t0", "veth://eth0", "vlan://5{tap://t1}", "/run/sw"]), Ok(false));
        assert_eq!(together(&["veth://vm-1", "tap://vm-1", "/run/sw", "switch:///run/n"]), Ok(true));
        for other in ["veth://eth0", "tap://t0", "tap://", "vlan://5{veth://eth0}"] {
            for both in [["veth://vm-1", other], [other, "tap://vm-1"]] {
                let said = together(&both).unwrap_err().to_string();
                assert!(said.contains(&format!("{other} is not taken beside")), "{said}");
            }
        }
        assert!(together(&["veth://vm-1", "cmd://id"]).unwrap_err().to_string().contains("'allow cmd://'"));
    }

    #[test]
    fn parse_names_a_bad_line() {
        for line in ["allow", "allow slirp", "forbid x://", "capture here", "allow a://b c"] {
            assert!(Allowed::parse(line).unwrap_err().contains(line), "{line}");
        }
    }

    #[test]
    fn read_takes_no_file_of_others() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("conf");
        assert_eq!(Policy::read(&path).unwrap(), Allowed::default());
        fs::write(&path, "allow slirp://\n").unwrap();
        let mode =
            |mode| fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        mode(0o666);
        assert!(Policy::read(&path).unwrap_err().to_string().contains("others than root"));
        mode(0o644);
        assert_eq!(Policy::read(&path).unwrap().locators, ["slirp://"]);
        std::os::unix::fs::chown(&path, Some(65534), None).expect("chown: run the tests as root");
        Policy::read(&path).unwrap_err();
    }
}
