//! What AppArmor and SELinux are told compiles with the tools of each, in the places where it belongs; and the rules for AppArmor,
//! enforced by the kernel of a guest, let pass what they should, and nothing else.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vde_tests::apparmor::{self, denials, policy};
use vde_tests::libvirt::Version;
use vde_tests::places::{made, own_program, system_program};
use vde_tests::{Files, Guest, Kernel, Machine};

/// As libvirt names the profile of a domain.
const DOMAIN: &str = "libvirt-11111111-2222-3333-4444-555555555555";

/// `/etc/apparmor.d` as libvirt and AppArmor install it, with ours.
fn profiles(into: &Path) -> Result<()> {
    apparmor::profiles(Version::V11, into)?;
    fs::create_dir_all(into.join("abstractions/libvirt-qemu.d"))?;
    fs::copy(policy("apparmor/libvirt-qemu"), into.join("abstractions/libvirt-qemu.d/vde"))?;
    fs::copy(policy("apparmor/vdeq"), into.join("abstractions/libvirt-qemu.d/vdeq"))?;
    fs::copy(policy("apparmor/libvirtd"), into.join("local/usr.sbin.libvirtd"))?;
    // libvirt makes this file for each domain.
    let template = fs::read_to_string(into.join("libvirt/TEMPLATE.qemu"))?;
    fs::write(into.join("libvirt").join(DOMAIN), template.replace("LIBVIRT_TEMPLATE", DOMAIN))?;
    Ok(())
}

/// Compiles a profile and does not load it.
fn parse(folder: &Path, profile: &str, option: &str) -> Result<Output> {
    let mut command = Command::new(apparmor::parser()?);
    command.arg("--base").arg(folder).args(["--skip-cache", "--skip-kernel-load", option]);
    command.arg(folder.join(profile)).output().context("apparmor_parser")
}

#[test]
fn apparmor_compiles_what_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    profiles(folder.path()).unwrap();
    let domain = format!("libvirt/{DOMAIN}");
    for profile in ["usr.sbin.libvirtd", &domain] {
        let output = parse(folder.path(), profile, "--skip-read-cache").unwrap();
        assert!(output.status.success(), "{profile}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let names = parse(folder.path(), &domain, "--names").unwrap();
    let names = String::from_utf8(names.stdout).unwrap();
    assert!(names.lines().any(|line| line == format!("{DOMAIN}//vde")), "{names}");
    // All files are read where they lie: what is wrong in them is found.
    for (profile, file) in [
        ("usr.sbin.libvirtd", "local/usr.sbin.libvirtd"),
        (&domain, "abstractions/libvirt-qemu.d/vde"),
        (&domain, "abstractions/libvirt-qemu.d/vdeq"),
    ] {
        let path = folder.path().join(file);
        let ours = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{ours}  no rule\n")).unwrap();
        assert!(!parse(folder.path(), profile, "--skip-read-cache").unwrap().status.success(), "{file}");
        fs::write(&path, ours).unwrap();
    }
}

#[test]
fn selinux_compiles_what_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let source = policy("selinux/vde.te");
    let output = Command::new(made("libvirt-11/usr/bin/checkmodule").unwrap())
        .args(["-M", "-m", "-o"])
        .arg(folder.path().join("vde.mod"))
        .arg(&source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Files have a type of ours, or passt's.
    let text = fs::read_to_string(&source).unwrap();
    for line in fs::read_to_string(policy("selinux/vde.fc")).unwrap().lines() {
        let (_, context) = line.rsplit_once('\t').unwrap();
        let kind = context.split(':').nth(2).unwrap();
        assert!(kind == "passt_exec_t" || text.contains(&format!("type {kind};")), "{line}");
    }
}

const LIMIT: Duration = Duration::from_secs(60);

/// What is done in the guest first. The profiles of the daemon and of a domain are loaded; there is a switch where rules have it,
/// and everybody may make another one there, or in `/opt`.
const SET_UP: &str = r#"
set -e
mount -t securityfs none /sys/kernel/security
mount -t tmpfs none /run
for profile in usr.sbin.libvirtd libvirt/$1; do
    apparmor_parser --skip-cache --replace /etc/apparmor.d/$profile
done
mkdir -p /run/vde /run/libvirt/qemu/passt /var/log/libvirt/qemu /opt
chown libvirt-qemu /run/libvirt/qemu/passt
chmod 1777 /run/vde /opt
vde_switch -d -m 666 -s /run/vde/lab
until [ -e /run/vde/lab/ctl ]; do :; done
cat /sys/kernel/security/apparmor/profiles
"#;

/// What a domain may name.
const NETWORKS: [&str; 5] = [
    "vde:///run/vde/lab",
    "switch:///run/vde/net",
    "multi:///run/vde/m",
    "/etc/vde/desk",
    "udp://5000->127.0.0.1:5001",
];

/// A guest with AppArmor, the door, the hook, and a client that stands for QEMU.
fn guest_with_apparmor(folder: &Path) -> Result<Guest> {
    let (rules, disk) = (folder.join("rules"), folder.join("initrd"));
    fs::create_dir(&rules)?;
    profiles(&rules)?;
    let mut files = Files::new();
    files.tree(Path::new("etc/apparmor.d"), &rules)?;
    for name in ["vde-passt", "vhost-user-vde", "vde-libvirt-hook"] {
        files.program(&format!("usr/local/bin/{name}"), &own_program(name)?)?;
    }
    files.link("usr/local/bin/passt", "vde-passt")?;
    files.link("etc/libvirt/hooks/qemu.d/vde", "/usr/local/bin/vde-libvirt-hook")?;
    files.program("usr/bin/vde_switch", &system_program("vde_switch")?)?;
    files.program("usr/bin/passt", &made("libvirt-11/usr/bin/passt")?)?;
    files.program("usr/bin/qemu-system-x86_64", &system_program("socat")?)?;
    files.program("usr/sbin/apparmor_parser", &apparmor::parser()?)?;
    files.text("etc/passwd", "root:x:0:0::/:/bin/sh\nlibvirt-qemu:x:64055:64055::/:/bin/sh\n")?;
    files.text("etc/group", "root:x:0:\nlibvirt-qemu:x:64055:\n")?;
    files.text("etc/vde/desk", "vde:///run/vde/lab\n")?;
    files.text(
        "root/web.xml",
        "<domain><name>web</name><uuid>0-1</uuid><memoryBacking><access mode='shared'/></memoryBacking>\
         <metadata><nics xmlns='urn:vde:libvirt:1'><nic mac='02:00:00:00:00:01' link='/run/vde/lab'/></nics></metadata>\
         <devices><interface type='vhostuser'><mac address='02:00:00:00:00:01'/>\
         <source type='unix' path='/run/vdeq/libvirt/web/0.sock' mode='client'/></interface></devices></domain>",
    )?;
    files.text("root/set-up.sh", SET_UP)?;
    files.write(Kernel::Linux6_1, &disk)?;
    let machine = Machine::new().memory(768).kernel_word("apparmor=1").kernel_word("security=apparmor");
    let mut guest = Guest::start("apparmor", &machine.args(&["-initrd", &disk.to_string_lossy()]))?;
    let loaded = guest.run_ok(&format!("sh /root/set-up.sh {DOMAIN}"), LIMIT)?;
    ensure!(loaded.contains(&format!("{DOMAIN}//vde (enforce)")), "{loaded}");
    Ok(guest)
}

/// The words that run a command as libvirt does, in a profile.
fn confined(user: &str, profile: &str, command: &str) -> String {
    format!(
        "su -s /bin/sh {user} -c 'printf \"changeprofile {profile}\" >/proc/self/attr/current && exec {command}'"
    )
}

/// The door under the rules of a domain, the hook under those of the daemon.
#[test]
fn apparmor_lets_pass_what_it_is_told_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut guest = guest_with_apparmor(folder.path()).unwrap();
    let files = "/run/libvirt/qemu/passt/1-desk-net0";
    let door = |words: &str| {
        let line = format!("/usr/local/bin/passt --socket {files}.socket --pid {files}.pid {words}");
        confined("libvirt-qemu", DOMAIN, &line)
    };
    let connect = |socket: &str| {
        let line = format!("/usr/bin/qemu-system-x86_64 -u OPEN:/dev/null UNIX-CONNECT:{socket}");
        confined("libvirt-qemu", DOMAIN, &line)
    };
    let daemon = |command: &str| confined("root", "libvirtd", command);
    denials(&mut guest).unwrap();

    for network in NETWORKS {
        let words = format!("--vhost-user --one-off --interface \"{network}\"");
        guest.run_ok(&door(&words), LIMIT).unwrap();
        let profile = guest.run_ok(&format!("cat /proc/$(cat {files}.pid)/attr/current"), LIMIT).unwrap();
        assert_eq!(profile.trim(), format!("{DOMAIN}//vde (enforce)"));
        guest.run_ok(&connect(&format!("{files}.socket")), LIMIT).unwrap();
        guest.run_ok(&format!("until [ ! -e {files}.pid ]; do :; done"), LIMIT).unwrap();
    }
    // libvirt asks whether it is there, and ends it.
    guest.run_ok(&door("--vhost-user --interface /run/vde/lab"), LIMIT).unwrap();
    guest
        .run_ok(&daemon(&format!("sh -c \"kill -0 $(cat {files}.pid) && kill $(cat {files}.pid)\"")), LIMIT)
        .unwrap();
    guest.run_ok(&format!("until [ ! -e {files}.pid ]; do :; done"), LIMIT).unwrap();
    let version =
        guest.run_ok(&confined("libvirt-qemu", DOMAIN, "/usr/local/bin/passt --version"), LIMIT).unwrap();
    assert!(version.contains("Red Hat"), "{version}");

    let hook =
        |operation: &str| daemon(&format!("/etc/libvirt/hooks/qemu.d/vde web {operation} - </root/web.xml"));
    guest.run_ok(&hook("prepare begin"), LIMIT).unwrap();
    let owner = guest.run_ok("stat -c %U /run/vdeq/libvirt/web/0.sock", LIMIT).unwrap();
    assert_eq!(owner.trim(), "libvirt-qemu");
    guest.run_ok(&connect("/run/vdeq/libvirt/web/0.sock"), LIMIT).unwrap();
    guest.run_ok(&hook("release end"), LIMIT).unwrap();
    assert_eq!(guest.run_ok("find /run/vdeq/libvirt -mindepth 1", LIMIT).unwrap(), "");
    assert_eq!(denials(&mut guest).unwrap(), [""; 0]);

    // Within reach of the user, out of that of the profile. (Connecting to a socket by its path is no matter of rules on this
    // kernel.)
    let refused = guest.run(&door("--vhost-user --interface switch:///opt/net"), LIMIT).unwrap();
    assert!(refused.status == 1 && refused.text.contains("ermission denied"), "{refused:?}");
    let denied = denials(&mut guest).unwrap();
    assert!(denied.iter().any(|line| line.contains("//vde\"") && line.contains("/opt/net")), "{denied:?}");
    guest.power_off(LIMIT).unwrap();
}
