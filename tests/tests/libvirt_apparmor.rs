//! A libvirt that AppArmor confines, as Debian has it: daemon, helper and domains under the profiles of its packages, enforced by
//! a guest's kernel, and our rules by the very commands of the documentation.
//!
//! Guests of these domains are emulated twice over, so they stand still from the start: it is libvirt, QEMU and our programs that
//! are confined. The guest has no systemd: daemons are started by hand, with the PATH that systemd gives, and no control groups.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vde_tests::apparmor::{self, denials, policy};
use vde_tests::libvirt::{Version, documented};
use vde_tests::places::{made, own_program, system_program};
use vde_tests::{Files, Guest, Kernel, Machine};

/// One that starts has its profile loaded half a dozen times, each of which takes the emulated compiler 2 s on an idle machine.
const LIMIT: Duration = Duration::from_secs(600);
const OWN_PROGRAMS: [&str; 5] = ["vhost-user-vde", "vde-libvirt-hook", "vde-passt", "vdeq", "vdectl"];
const PACKAGED: [&str; 6] = [
    "usr/sbin/libvirtd",
    "usr/sbin/virtlogd",
    "usr/bin/virsh",
    "usr/lib/libvirt/virt-aa-helper",
    "usr/lib/libvirt/libvirt_iohelper",
    "usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",
];
const FIRMWARE: [&str; 4] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/kvmvapic.bin",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/lib/ipxe/qemu/efi-virtio.rom",
];

/// As systemd has it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is done in the guest before the daemons start. `/sbin` is where packages have it; the compiler of profiles leaves out an
/// optimization that takes half its time, and changes nothing in what it makes of these.
const SET_UP: &str = r#"
set -e
mount -t securityfs none /sys/kernel/security
mount -t tmpfs -o mode=755 none /run
mv /sbin/* /usr/sbin
rmdir /sbin
ln -s usr/sbin /sbin
ln -s /run /var/run
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
chmod 1777 /tmp
mkdir -p /run/vde /run/lock /var/lib/libvirt/boot /var/log/libvirt/qemu /var/cache/libvirt/qemu /etc/libvirt/hooks/qemu.d
chown libvirt-qemu: /var/lib/libvirt/qemu
hostname debian
echo 'kernel, later' >/var/lib/libvirt/boot/initrd
echo Optimize=no-expr-simplify >>/etc/apparmor/parser.conf
for profile in usr.sbin.libvirtd usr.lib.libvirt.virt-aa-helper usr.bin.passt; do
    apparmor_parser -r /etc/apparmor.d/$profile
done
for name in lab other; do
    vde_switch -d -m 660 -g kvm -s /run/vde/$name
    until [ -e /run/vde/$name/ctl ]; do :; done
done
"#;

/// Starts the daemon, also again.
const DAEMON: &str = r#"
for pid in $(pidof libvirtd); do
    kill $pid
    while [ -e /proc/$pid ]; do :; done
done
libvirtd -d
until virsh version >/dev/null 2>&1; do :; done
"#;

/// What the documentation has commands for.
const PARTS: [&str; 4] = ["daemon", "door", "vdeq", "old-libvirt"];

/// The commands that the documentation has for AppArmor, for each of its parts.
fn documented_commands() -> Result<[String; 4]> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/libvirt.md"))?;
    let section = text.split("\n### ").find(|section| section.starts_with("AppArmor"));
    let blocks = section.context("docs/libvirt.md has a section about AppArmor")?.split("\n\n");
    let blocks: Vec<String> = blocks.filter(|block| block.starts_with("    ")).map(str::to_owned).collect();
    <[String; 4]>::try_from(blocks).ok().context("four blocks of commands")
}

/// A guest with a confined libvirt and our programs, of whom AppArmor has not been told.
struct Debian(Guest);

impl Debian {
    fn start(name: &str, version: Version) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let (profiles, disk) = (folder.path().join("profiles"), folder.path().join("initrd"));
        fs::create_dir(&profiles)?;
        apparmor::profiles(version, &profiles)?;
        let mut files = Files::new();
        files.tree(Path::new("etc/apparmor.d"), &profiles)?;
        files.tree(Path::new("root/apparmor"), &policy("apparmor"))?;
        programs(&mut files, version)?;
        files.text(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nlibvirt-qemu:x:64055:64054::/var/lib/libvirt:/bin/sh\n",
        )?;
        files.text("etc/group", "root:x:0:\ntty:x:5:\nkvm:x:64054:\nlibvirt-qemu:x:64055:libvirt-qemu\n")?;
        files.text("etc/machine-id", "0123456789abcdef0123456789abcdef\n")?;
        files.text("root/set-up.sh", SET_UP)?;
        files.text("root/daemon.sh", DAEMON)?;
        for (part, commands) in PARTS.iter().zip(documented_commands()?) {
            files.text(&format!("root/{part}.commands"), &commands)?;
        }
        // A guest that stands still lets go of a device where the slot itself is asked, and has never been switched on.
        let hot_plug = "<qemu:commandline><qemu:arg value='-global'/>\
                        <qemu:arg value='ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off'/></qemu:commandline></domain>";
        let xmlns = "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ";
        let web = documented("web")?.replace("<domain ", xmlns).replace("</domain>", hot_plug);
        files.text("root/web.xml", &web)?;
        files.text(
            "root/nic.xml",
            "<interface type='user'><mac address='52:54:00:5f:00:04'/><source dev='vde:///run/vde/lab'/>\
             <model type='virtio'/><backend type='passt'/></interface>",
        )?;
        for domain in ["desk", "old"] {
            files.text(&format!("root/{domain}.xml"), &documented(domain)?)?;
        }
        files.write(Kernel::Linux6_1, &disk)?;
        let machine = Machine::new().memory(1536).kernel_word("apparmor=1").kernel_word("security=apparmor");
        let guest = Guest::start(name, &machine.args(&["-initrd", &disk.to_string_lossy()]))?;
        let mut debian = Self(guest);
        debian.ok("sh /root/set-up.sh && virtlogd -d && sh /root/daemon.sh")?;
        let profile = debian.ok("cat /proc/$(pidof libvirtd)/attr/current")?;
        ensure!(profile.trim() == "libvirtd (enforce)", "{profile}");
        denials(&mut debian.0)?;
        Ok(debian)
    }

    /// Runs a command that must succeed, and gives what it says.
    fn ok(&mut self, command: &str) -> Result<String> {
        self.0.run_ok(&format!("export PATH={PATH}; {command}"), LIMIT)
    }

    /// Runs a command that must fail, and gives what it says.
    fn refused(&mut self, command: &str) -> Result<String> {
        let output = self.0.run(&format!("export PATH={PATH}; {command}"), LIMIT)?;
        ensure!(output.status != 0, "\"{command}\" is expected to fail: {}", output.text);
        Ok(output.text)
    }

    /// Carries out the commands of one part, where the sources have the policies.
    fn tell(&mut self, part: &str) -> Result<()> {
        self.ok(&format!("cd /root && sh -e {part}.commands")).map(drop)
    }

    /// Starts a domain whose guest stands still, and gives the name of its profile, which its QEMU is in.
    fn run(&mut self, domain: &str) -> Result<String> {
        self.ok(&format!("virsh start --paused {domain}"))?;
        let status =
            self.ok(&format!("virsh qemu-monitor-command {domain} '{{\"execute\":\"query-status\"}}'"))?;
        ensure!(status.contains("\"running\":false") && status.contains("\"return\""), "{status}");
        let uuid = self.ok(&format!("virsh domuuid {domain}"))?;
        let profile = format!("libvirt-{}", uuid.trim());
        let found = self.ok(&format!("cat /proc/$(cat /run/libvirt/qemu/{domain}.pid)/attr/current"))?;
        ensure!(found.trim() == format!("{profile} (enforce)"), "{found}");
        Ok(profile)
    }

    /// Plugs a NIC into a domain, whose profile has to name its socket then.
    fn attach(&mut self, domain: &str, network: &str) -> Result<()> {
        let attached = self.ok(&format!("vdectl libvirt attach {domain} {network}"))?;
        let socket = attached.split_whitespace().nth(2).context("the socket is the third word")?;
        self.ok(&format!("grep -F '\"{socket}\"' /etc/apparmor.d/libvirt/*.files")).map(drop)
    }

    /// The profile of the only back end, all of its processes.
    fn back_end(&mut self) -> Result<String> {
        let profiles = "for one in $(pidof vhost-user-vde); do cat /proc/$one/attr/current; done | sort -u";
        Ok(self.ok(profiles)?.trim().to_owned())
    }

    /// Waits until no domain has a back end, or left anything of it.
    fn wait_nothing_left(&mut self) -> Result<()> {
        let files = "find /run/vdeq/libvirt /run/libvirt/qemu/passt /tmp/vdeq-64055 -mindepth 1 2>/dev/null";
        self.ok(&format!("while pidof vhost-user-vde || {files} | grep .; do :; done")).map(drop)
    }

    /// Ends it all, if nothing was denied.
    fn end(mut self) -> Result<()> {
        let mut denied = denials(&mut self.0)?;
        // QEMU 10 asks for it, and is younger than the profile of libvirt 9.0.
        denied.retain(|line| !line.contains("name=\"/proc/sys/vm/max_map_count\""));
        ensure!(denied.is_empty(), "{denied:#?}");
        self.0.power_off(Duration::from_secs(60)).map(drop)
    }
}

fn programs(files: &mut Files, version: Version) -> Result<()> {
    let tree = version.tree()?;
    for path in PACKAGED {
        files.unpacked(&tree, path)?;
    }
    for directory in ["etc/libvirt", "usr/share/libvirt/cpu_map", "var/lib/libvirt"] {
        files.tree(Path::new(directory), &tree.join(directory))?;
    }
    let of_apparmor = made("libvirt-11")?;
    files.unpacked(&of_apparmor, "usr/sbin/apparmor_parser")?;
    for directory in ["etc/apparmor", "usr/share/apparmor-features"] {
        files.tree(Path::new(directory), &of_apparmor.join(directory))?;
    }
    for name in ["qemu-system-x86_64", "vde_switch", "install"] {
        files.program(&format!("usr/bin/{name}"), &system_program(name)?)?;
    }
    for path in FIRMWARE {
        files.copy(path.trim_start_matches('/'), Path::new(path))?;
    }
    for name in OWN_PROGRAMS {
        files.program(&format!("usr/local/bin/{name}"), &own_program(name)?)?;
    }
    files.link("usr/local/bin/passt", "vde-passt")?;
    files.link("usr/local/bin/vdeqemu-system-x86_64", "vdeq")?;
    let kernel = Kernel::Linux6_1.image()?.join("vmlinuz");
    files.copy("var/lib/libvirt/boot/vmlinuz", &kernel)
}

#[test]
fn a_confined_libvirt_11_runs_the_hook_and_its_domain_lives() {
    let mut debian = Debian::start("apparmor-hook", Version::V11).unwrap();
    debian.ok("ln -s /usr/local/bin/vde-libvirt-hook /etc/libvirt/hooks/qemu.d/vde").unwrap();
    debian.ok("sh /root/daemon.sh && virsh define /root/web.xml").unwrap();
    let refused = debian.refused("virsh start web").unwrap();
    assert!(
        refused.contains("cannot execute binary /etc/libvirt/hooks/qemu.d/vde: Permission denied"),
        "{refused}"
    );
    let missing = debian.refused("vdectl libvirt check web").unwrap();
    assert!(missing.contains("AppArmor: it lets libvirtd run no vde-libvirt-hook"), "{missing}");
    assert!(missing.contains("one thing is missing"), "{missing}");
    let denied = denials(&mut debian.0).unwrap();
    assert!(denied.iter().all(|line| line.contains("/usr/local/bin/vde-libvirt-hook")), "{denied:#?}");
    assert!(!denied.is_empty());

    debian.tell("daemon").unwrap();
    debian.ok("vdectl libvirt check web").unwrap();
    let profile = debian.run("web").unwrap();
    assert_eq!(debian.back_end().unwrap(), "unconfined");
    debian.attach("web", "vde:///run/vde/lab").unwrap();
    debian.ok("vdectl link web net0 replace link0 vde:///run/vde/other").unwrap();
    let list = debian.ok("vdectl list web").unwrap();
    assert!(list.contains("ua-vde0") && list.contains("/run/vde/other"), "{list}");
    // Nothing is missing: QEMU is on both sockets, and both links are up.
    debian.ok("vdectl libvirt check web").unwrap();
    debian.ok("vdectl libvirt detach web ua-vde0").unwrap();
    debian.ok("virsh save web /var/lib/libvirt/web.save").unwrap();
    debian.wait_nothing_left().unwrap();
    debian.ok("virsh restore --paused /var/lib/libvirt/web.save").unwrap();
    let list = debian.ok("vdectl list web").unwrap();
    assert!(list.contains("52:54:00:5f:00:01") && list.contains("/run/vde/other"), "{list}");
    debian.ok("vdectl libvirt check web").unwrap();
    assert_eq!(denials(&mut debian.0).unwrap(), [""; 0]);

    // Its profile names its own socket, which cannot be opened as a file; not what another domain of the same user has.
    debian.ok("mkdir /run/vdeq/libvirt/desk && : >/run/vdeq/libvirt/desk/0.sock").unwrap();
    debian.ok("chown -R libvirt-qemu: /run/vdeq/libvirt/desk").unwrap();
    for (file, answer) in [("web", "No such device"), ("desk", "Permission denied")] {
        let open = format!(
            "printf \"changeprofile {profile}\" >/proc/self/attr/current; : </run/vdeq/libvirt/{file}/0.sock"
        );
        let said = debian.refused(&format!("su libvirt-qemu -c '{open}'")).unwrap();
        assert!(said.contains(answer), "{file}: {said}");
    }
    let denied = denials(&mut debian.0).unwrap();
    assert!(denied.len() == 1 && denied[0].contains("/run/vdeq/libvirt/desk/0.sock"), "{denied:#?}");
    debian.ok("rm -r /run/vdeq/libvirt/desk && virsh destroy web").unwrap();
    debian.wait_nothing_left().unwrap();
    debian.end().unwrap();
}

#[test]
fn a_confined_libvirt_11_takes_the_door_and_vdeq() {
    let mut debian = Debian::start("apparmor-door", Version::V11).unwrap();
    let refused = debian.refused("virsh define /root/old.xml").unwrap();
    assert!(refused.contains("vdeqemu-system-x86_64: Permission denied"), "{refused}");
    debian.ok("virsh define /root/desk.xml").unwrap();
    let missing = debian.refused("vdectl libvirt check desk").unwrap();
    assert!(missing.contains("profiles of domains lack our rules: install -D -m 644"), "{missing}");
    debian.tell("daemon").unwrap();
    debian.tell("door").unwrap();
    // The helper that makes its profile wants the path of a socket.
    let refused = debian.refused("virsh start desk").unwrap();
    assert!(refused.contains("cannot load AppArmor profile"), "{refused}");
    let missing = debian.refused("vdectl libvirt check desk").unwrap();
    assert!(
        missing.contains("write <interface type='user'>") && missing.contains("one thing is missing"),
        "{missing}"
    );
    debian.ok("virsh undefine desk && sed -i \"s/type='vhostuser'/type='user'/\" /root/desk.xml").unwrap();
    debian.ok("virsh define /root/desk.xml && vdectl libvirt check desk").unwrap();
    denials(&mut debian.0).unwrap();

    let profile = debian.run("desk").unwrap();
    assert_eq!(debian.back_end().unwrap(), format!("{profile}//vde (enforce)"));
    debian.ok("vdectl link desk net0 replace link0 vde:///run/vde/other").unwrap();
    let list = debian.ok("vdectl list desk").unwrap();
    assert!(list.contains("52:54:00:5f:00:02") && list.contains("/run/vde/other"), "{list}");
    debian.ok("virsh attach-device desk /root/nic.xml").unwrap();
    let list = debian.ok("vdectl list desk").unwrap();
    assert!(list.contains("52:54:00:5f:00:04"), "{list}");
    debian.ok("vdectl libvirt check desk").unwrap();
    debian.ok("virsh destroy desk").unwrap();
    debian.wait_nothing_left().unwrap();

    debian.ok("virsh define /root/old.xml").unwrap();
    let missing = debian.refused("vdectl libvirt check old").unwrap();
    assert!(missing.contains("apparmor/vdeq") && missing.contains("one thing is missing"), "{missing}");
    debian.tell("vdeq").unwrap();
    debian.ok("vdectl libvirt check old").unwrap();
    old_lives(&mut debian).unwrap();
    debian.end().unwrap();
}

/// The domain whose emulator is `vdeq`, from start to end.
fn old_lives(debian: &mut Debian) -> Result<()> {
    let profile = debian.run("old")?;
    let back_end = debian.back_end()?;
    ensure!(back_end == format!("{profile}//vde (enforce)"), "{back_end}");
    let list = debian.ok("su libvirt-qemu -c 'vdectl list old'")?;
    ensure!(list.contains("52:54:00:5f:00:03") && list.contains("/run/vde/lab"), "{list}");
    debian.ok("virsh destroy old")?;
    debian.wait_nothing_left()
}

#[test]
fn a_confined_libvirt_9_runs_the_hook_and_vdeq() {
    let mut debian = Debian::start("apparmor-9", Version::V9).unwrap();
    debian.tell("daemon").unwrap();
    debian.ok("ln -s /usr/local/bin/vde-libvirt-hook /etc/libvirt/hooks/qemu.d/vde").unwrap();
    debian.ok("sh /root/daemon.sh && virsh define /root/web.xml && virsh define /root/old.xml").unwrap();
    // It reads another file, and no directory.
    debian.tell("door").unwrap();
    debian.tell("vdeq").unwrap();
    let missing = debian.refused("vdectl libvirt check old").unwrap();
    assert!(missing.contains("append libvirt/policy/apparmor/vdeq"), "{missing}");
    debian.tell("old-libvirt").unwrap();
    debian.ok("vdectl libvirt check old").unwrap();

    debian.run("web").unwrap();
    debian.attach("web", "vde:///run/vde/other").unwrap();
    debian.ok("vdectl libvirt check web").unwrap();
    debian.ok("virsh destroy web").unwrap();
    debian.wait_nothing_left().unwrap();
    old_lives(&mut debian).unwrap();
    debian.end().unwrap();
}
