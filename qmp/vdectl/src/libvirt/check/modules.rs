//! What the security modules that confine libvirt have to be told of us, and have not been.
//!
//! AppArmor: the daemon has a profile, which has to let it run our programs, and each domain one that libvirt makes for it. The
//! sockets of the hook libvirt names in there itself, those of the other ways it does not know of. SELinux: there is one module
//! of ours for everything.

use std::fs;
use std::path::Path;

/// A part of each domain's profile: the file itself, and what administrators have beside it.
const ABSTRACTION: &str = "etc/apparmor.d/abstractions/libvirt-qemu";
/// libvirt 9.0 does not read it.
const FOLDER: &str = "etc/apparmor.d/abstractions/libvirt-qemu.d";
const FILE: &str = "etc/apparmor.d/local/abstractions/libvirt-qemu";

/// A way to a VDE network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The daemon runs the hook.
    Hook,
    /// QEMU's user runs the passt door, within the domain's profile.
    Door,
    /// The daemon asks `vdeq` what it can do, and runs it within the domain's profile.
    Emulator,
}

impl Way {
    /// What rules for the daemon speak of, if it runs a program of ours.
    fn of_daemon(self) -> Option<&'static str> {
        match self {
            Self::Hook => Some("vde-libvirt-hook"),
            Self::Door => None,
            Self::Emulator => Some("vdeq"),
        }
    }

    /// Files with rules for domains, and what these speak of.
    fn of_domains(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Hook => &[],
            Self::Door => &[("libvirt-qemu", "vhost-user-vde")],
            Self::Emulator => &[("libvirt-qemu", "vhost-user-vde"), ("vdeq", "bin/vdeq")],
        }
    }
}

/// Whether AppArmor confines the daemon, and with it its domains. `root` is that of the file system.
pub fn apparmor_confines(root: &Path, daemon: &str) -> bool {
    let profiles = read(root, "sys/kernel/security/apparmor/profiles");
    profiles
        .lines()
        .any(|line| line.ends_with("(enforce)") && line.split([' ', '/']).any(|word| word == daemon))
}

/// What of our rules they lack for one way. `program`: what the daemon runs, if that is known.
pub fn missing(root: &Path, daemon: &str, way: Way, program: Option<&Path>) -> Vec<String> {
    let mut missing = Vec::new();
    if apparmor_confines(root, daemon) {
        let local = format!("etc/apparmor.d/local/usr.sbin.{daemon}");
        let rules = rules(&read(root, &local));
        let of_ours = way.of_daemon().filter(|_| !program.is_some_and(is_of_system));
        missing.extend(of_ours.filter(|program| !rules.contains(program)).map(|program| {
            format!(
                "AppArmor: it lets {daemon} run no {program}: append libvirt/policy/apparmor/libvirtd of the sources to /{local}, \
                 and apparmor_parser -r /etc/apparmor.d/usr.sbin.{daemon}"
            )
        }));
        missing.extend(of_domains(root, way));
    }
    if read(root, "sys/fs/selinux/enforce").trim() == "1" && way != Way::Emulator {
        missing.extend(of_selinux(root));
    }
    missing
}

/// Whether a program, or what a link of its name leads to, is where the daemon may run everything: its own profile says so.
fn is_of_system(program: &Path) -> bool {
    let folder = fs::canonicalize(program).ok().and_then(|file| file.parent().map(Path::to_owned));
    folder.is_some_and(|folder| ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(Path::new).contains(&&*folder))
}

/// What the profiles of domains lack.
fn of_domains(root: &Path, way: Way) -> impl Iterator<Item = String> {
    let reads_folder = read(root, ABSTRACTION).contains("<abstractions/libvirt-qemu.d>");
    let files = fs::read_dir(root.join(FOLDER)).into_iter().flatten().flatten();
    let files =
        files.filter(|_| reads_folder).map(|file| fs::read_to_string(file.path()).unwrap_or_default());
    let rules = rules(&files.chain([read(root, FILE)]).collect::<Vec<_>>().join("\n"));
    let lacking = way.of_domains().iter().filter(move |(_, word)| !rules.contains(word));
    lacking.map(move |(name, _)| {
        let ours = format!("libvirt/policy/apparmor/{name}");
        let what = "AppArmor: the profiles of domains lack our rules";
        match reads_folder {
            true => format!("{what}: install -D -m 644 {ours} of the sources as /{FOLDER}/{name}"),
            false => format!("{what}: append {ours} of the sources to /{FILE}"),
        }
    })
}

fn of_selinux(root: &Path) -> Option<String> {
    let places = fs::read_dir(root.join("var/lib/selinux")).into_iter().flatten().flatten();
    let priorities =
        places.flat_map(|place| fs::read_dir(place.path().join("active/modules")).into_iter().flatten());
    let mut modules = priorities.flatten().map(|priority| priority.path().join("vde"));
    (!modules.any(|module| module.exists())).then(|| {
        "SELinux: our module is not there: make it of libvirt/policy/selinux of the sources, and semodule -i vde.pp".into()
    })
}

fn read(root: &Path, path: &str) -> String {
    fs::read_to_string(root.join(path)).unwrap_or_default()
}

/// Without comments, which name more than is allowed.
fn rules(text: &str) -> String {
    text.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let file = root.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    /// Of the policies that the sources have.
    fn policy(name: &str) -> String {
        let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../libvirt/policy/apparmor");
        fs::read_to_string(policies.join(name)).unwrap()
    }

    #[test]
    fn apparmor_has_to_confine_the_daemon() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        let profiles = "sys/kernel/security/apparmor/profiles";
        assert!(missing(root, "libvirtd", Way::Emulator, None).is_empty());
        write(root, profiles, "/usr/sbin/libvirtd (complain)\nvirtqemud//qemu_bridge_helper (enforce)\n");
        assert!(missing(root, "libvirtd", Way::Emulator, None).is_empty());
        for line in ["libvirtd (enforce)\n", "/usr/sbin/libvirtd (enforce)\n"] {
            write(root, profiles, line);
            let count = |way| missing(root, "libvirtd", way, None).len();
            assert_eq!([Way::Hook, Way::Door, Way::Emulator].map(count), [1, 1, 3], "{line}");
        }
    }

    #[test]
    fn apparmor_lets_the_daemon_run_what_packages_bring() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        write(root, "sys/kernel/security/apparmor/profiles", "libvirtd (enforce)\n");
        let link = |to: &str| {
            let link = root.join(to.replace('/', "-"));
            std::os::unix::fs::symlink(to, &link).unwrap();
            missing(root, "libvirtd", Way::Hook, Some(&link)).len()
        };
        let of_others = scratch.path().join("program");
        fs::write(&of_others, "").unwrap();
        assert_eq!((link("/usr/bin/env"), link(&of_others.to_string_lossy()), link("/nowhere")), (0, 1, 1));
        // A domain is let run nothing but what it is told.
        assert_eq!(missing(root, "libvirtd", Way::Emulator, Some(Path::new("/usr/bin/env"))).len(), 2);
    }

    #[test]
    fn apparmor_has_to_know_us_where_it_reads() {
        for (abstraction, place) in [
            ("include if exists <abstractions/libvirt-qemu.d>", "abstractions/libvirt-qemu.d/vde"),
            ("#include <local/abstractions/libvirt-qemu>", "local/abstractions/libvirt-qemu"),
        ] {
            let scratch = tempfile::tempdir().unwrap();
            let root = scratch.path();
            write(root, "sys/kernel/security/apparmor/profiles", "libvirtd (enforce)\n");
            write(root, ABSTRACTION, abstraction);
            write(root, "etc/apparmor.d/local/usr.sbin.libvirtd", "# /usr/local/bin/vde-libvirt-hook PUx,\n");
            let said = |way| missing(root, "libvirtd", way, None);
            assert!(said(Way::Hook)[0].contains("run no vde-libvirt-hook"));
            write(root, "etc/apparmor.d/local/usr.sbin.libvirtd", &policy("libvirtd"));
            assert!(said(Way::Hook).is_empty());
            // Where an old libvirt does not look.
            write(root, "etc/apparmor.d/abstractions/libvirt-qemu.d/other", &policy("libvirt-qemu"));
            let folder = place.contains("libvirt-qemu.d");
            assert_eq!(said(Way::Door).is_empty(), folder, "{place}");
            write(root, &format!("etc/apparmor.d/{place}"), &policy("libvirt-qemu"));
            assert!(said(Way::Door).is_empty());
            let of_vdeq = said(Way::Emulator);
            assert!(of_vdeq.len() == 1 && of_vdeq[0].contains(place.trim_end_matches("/vde")), "{of_vdeq:?}");
            write(root, &format!("etc/apparmor.d/{place}"), &(policy("libvirt-qemu") + &policy("vdeq")));
            assert!(said(Way::Emulator).is_empty());
        }
    }

    #[test]
    fn selinux_has_to_have_our_module() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        write(root, "sys/fs/selinux/enforce", "1");
        assert!(missing(root, "libvirtd", Way::Hook, None)[0].starts_with("SELinux: "));
        write(root, "var/lib/selinux/targeted/active/modules/400/vde/cil", "");
        assert!(missing(root, "libvirtd", Way::Hook, None).is_empty());
    }
}
