//! Whom libvirt runs QEMU as, which is whom its back end runs as and whose the sockets are.
//!
//! The domain's security label says it if there is one already; else `/etc/libvirt/qemu.conf`; else it is the user that
//! distributions make for it.

use std::fs;

use rustix::process::geteuid;

use crate::Failure;
use crate::domain::Domain;
use crate::sys::{self, Identity, User};

/// The configuration of libvirt's driver.
const CONFIGURATION: &str = "/etc/libvirt/qemu.conf";
/// The user's name in Debian and in Fedora.
const USUAL: [&str; 2] = ["libvirt-qemu", "qemu"];

/// Whom the domain's back end has to run as, if not as us: the system's libvirt is root's, a session's its user's.
///
/// # Errors
/// It cannot be told.
pub fn of_back_end(domain: &Domain) -> Result<Option<Identity>, Failure> {
    geteuid().is_root().then(|| of(domain)).transpose()
}

/// Whom the domain's QEMU runs as.
///
/// # Errors
/// It cannot be told.
fn of(domain: &Domain) -> Result<Identity, Failure> {
    if let Some(label) = &domain.dac_label {
        return identity(label).ok_or_else(|| unknown(label, "the domain's <seclabel>"));
    }
    let text = fs::read_to_string(CONFIGURATION).unwrap_or_default();
    let group = setting(&text, "group").map_or(String::new(), |group| format!(":{group}"));
    if let Some(user) = setting(&text, "user") {
        let label = user + &group;
        return identity(&label).ok_or_else(|| unknown(&label, CONFIGURATION));
    }
    let Some(user) = USUAL.iter().find(|name| identity(name).is_some()) else {
        return Err(Failure::new(format!(
            "it cannot be told whom libvirt runs QEMU as; set user= and group= in {CONFIGURATION}"
        )));
    };
    let label = (*user).to_owned() + &group;
    identity(&label).ok_or_else(|| unknown(&label, CONFIGURATION))
}

fn unknown(label: &str, place: &str) -> Failure {
    Failure::new(format!("there is no user or group '{label}', which {place} names for QEMU"))
}

/// `USER` or `USER:GROUP`; numbers may have a plus before them.
fn identity(label: &str) -> Option<Identity> {
    let (user, group) = label.split_once(':').map_or((label, None), |(user, group)| (user, Some(group)));
    let number = |word: &str| word.strip_prefix('+').unwrap_or(word).parse::<u32>().ok();
    let named = (!user.starts_with('+')).then(|| sys::user_by_name(user)).flatten();
    let known: Option<User> = named.or_else(|| sys::user_by_uid(number(user)?));
    let uid = known.as_ref().map(|known| known.uid).or_else(|| number(user))?;
    let gid = match group {
        Some(group) => sys::group_by_name(group).or_else(|| number(group))?,
        None => known.as_ref()?.gid,
    };
    // As QEMU has them: libvirt's label may name another group than the user's own, which is no loss of that one.
    let mut groups = known.map_or(Vec::new(), |known| sys::groups_of(&known));
    if !groups.contains(&gid) {
        groups.push(gid);
    }
    Some(Identity { uid, gid, groups })
}

/// The value of `KEY = "VALUE"` in libvirt's configuration, which has three kinds of quotes; comments begin with `#`.
fn setting(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once('=')?;
        let value = value.trim();
        let quoted = |quote: &str| Some(value.strip_prefix(quote)?.split_once(quote)?.0);
        let plain = ["\"\"\"", "\"", "'"].into_iter().find_map(quoted).unwrap_or(value);
        (found.trim() == key && !plain.is_empty()).then(|| plain.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_knows_labels_of_all_forms() {
        let root = identity("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
        for label in ["root:root", "+0:+0", "0:0", "root:0"] {
            assert_eq!(identity(label).map(|found| (found.uid, found.gid)), Some((0, 0)), "{label}");
        }
        for label in ["nobody:root", "+65534:+0"] {
            let nobody = identity(label).unwrap();
            assert_eq!(nobody.gid, 0);
            assert!(nobody.groups.contains(&0) && nobody.groups.contains(&65534), "{nobody:?}");
        }
        let stranger = Identity { uid: 3_999_999, gid: 3_999_998, groups: vec![3_999_998] };
        assert_eq!(identity("+3999999:+3999998"), Some(stranger));
        for label in ["", ":", "no-such-user", "root:no-such-group", "+3999999", "+x:+0", "-1:0"] {
            assert_eq!(identity(label), None, "{label}");
        }
    }

    #[test]
    fn setting_reads_what_libvirt_reads() {
        let text = "#user = \"root\"\n\n user = \"libvirt-qemu\" # ours\ngroup=\"\"\nuser_x = \"y\"\nnumber = 5\n\
             one = '+0' # \"a'\nthree=\"\"\"x y\"\"\"\n";
        assert_eq!(setting(text, "user").as_deref(), Some("libvirt-qemu"));
        assert_eq!(setting(text, "group"), None);
        for (key, value) in [("number", "5"), ("one", "+0"), ("three", "x y")] {
            assert_eq!(setting(text, key).as_deref(), Some(value));
        }
    }
}
