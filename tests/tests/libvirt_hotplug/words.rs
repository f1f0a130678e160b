//! What `vdectl libvirt` says to people, and what it does when there is no guest to be asked.

use vde_tests::libvirt::{Version, documented, reachable};
use vde_tests::{Console, Libvirt, Station};

use crate::rig::{DIRECTORY, HOST, MAC, bare, ping_by, refused, roomy, vdectl};

/// A domain that does not run has its next start changed, and starts with it.
#[test]
fn q_30_config_is_for_a_domain_that_does_not_run_too() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let lab = libvirt.switch().unwrap();
    let _host = Station::start(&lab, HOST).unwrap();
    libvirt.define(&bare().unwrap()).unwrap();
    let before = libvirt.virsh(&["dumpxml", "bare"]).unwrap();
    let attach = ["attach", "bare", "/run/vde/lab", "--mac", MAC];
    let (_, said) = refused(&libvirt, &attach).unwrap();
    assert!(said.contains("'bare' does not run; with --config it is done for its next start"), "{said}");
    let (status, said) = refused(&libvirt, &[&attach[..], &["--config", "--wait"]].concat()).unwrap();
    assert!(status == 2 && said.contains("--wait is for a guest that runs"), "{said}");

    let said =
        vdectl(&libvirt, &[&["libvirt"], &attach[..], &["--config", "--id", "ua-lab"]].concat()).unwrap();
    assert_eq!(said, format!("ua-lab {MAC} {DIRECTORY}/bare/lab.sock\n"));
    let (_, said) =
        refused(&libvirt, &["attach", "bare", "/run/vde/lab", "--config", "--id", "lab"]).unwrap();
    assert!(said.contains("has a NIC 'ua-lab' already"), "{said}");
    assert!(vdectl(&libvirt, &["libvirt", "check", "bare"]).unwrap().contains("nothing is missing"));
    libvirt.virsh(&["start", "bare"]).unwrap();
    let mut console = Console::open(&libvirt.virsh(&["ttyconsole", "bare"]).unwrap()).unwrap();
    console.until("true").unwrap();
    ping_by(&mut console, "eth0").unwrap();
    assert!(vdectl(&libvirt, &["libvirt", "check", "bare"]).unwrap().contains("nothing is missing"));
    libvirt.virsh(&["destroy", "bare"]).unwrap();

    vdectl(&libvirt, &["libvirt", "detach", "bare", "ua-lab", "--config"]).unwrap();
    assert_eq!(without_metadata(&libvirt.virsh(&["dumpxml", "bare"]).unwrap()), without_metadata(&before));
    libvirt.wait_nothing_left().unwrap();
}

/// libvirt keeps the element around what was in it.
fn without_metadata(xml: &str) -> Vec<&str> {
    xml.lines().filter(|line| !line.contains("metadata")).collect()
}

/// The guest's driver is waited for, if one wants that, and not for ever.
#[test]
fn q_30_the_driver_is_waited_for() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let (_switch, locator) = reachable().unwrap();
    let file = libvirt.write("bare.xml", &roomy(&bare().unwrap())).unwrap();
    libvirt.virsh(&["create", &file]).unwrap();
    let mut console = Console::open(&libvirt.virsh(&["ttyconsole", "bare"]).unwrap()).unwrap();
    console.until("true").unwrap();
    let attach = ["attach", "bare", &locator];
    let (_, said) = refused(&libvirt, &[&attach[..], &["--config"]].concat()).unwrap();
    assert!(said.contains("'bare' is transient and has no next start"), "{said}");
    let said = vdectl(&libvirt, &[&["libvirt"], &attach[..], &["--wait"]].concat()).unwrap();
    assert!(said.starts_with("ua-vde0 "), "{said}");
    let list = vdectl(&libvirt, &["list", "bare", "--wide"]).unwrap();
    assert!(list.contains("mrg-rxbuf"), "{list}");

    libvirt.virsh(&["suspend", "bare"]).unwrap();
    let (status, said) = refused(&libvirt, &[&attach[..], &["--wait", "1"]].concat()).unwrap();
    assert!(status == 4 && said.contains("has not come up within 1 s; ua-vde1 stays plugged in"), "{said}");
    libvirt.virsh(&["resume", "bare"]).unwrap();
    libvirt.virsh(&["destroy", "bare"]).unwrap();
    libvirt.wait_nothing_left().unwrap();
}

/// Who may not change the system's domains is told so, and how to change the own.
#[test]
fn q_30_the_systems_domains_are_roots() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    libvirt.define(&bare().unwrap()).unwrap();
    let default = "LIBVIRT_DEFAULT_URI=qemu:///system";
    for words in
        [&["vdectl", "libvirt", "--connect", "qemu:///system"][..], &["env", default, "vdectl", "libvirt"]]
    {
        for command in [&["attach", "bare", "/run/vde/lab"][..], &["detach", "bare", MAC], &["check", "bare"]]
        {
            let output = libvirt.run(&libvirt.as_user(&[words, command].concat())).unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("run vdectl as root") && said.contains("qemu:///session"), "{said}");
        }
    }
}

/// What a session takes, the system need not.
#[test]
fn q_30_xml_of_a_user_warns_of_the_system() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let said = |locator: &str| {
        let output = libvirt.run(&libvirt.as_user(&["vdectl", "libvirt", "xml", locator])).unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains(&format!("link='{locator}'")), "{text}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(said("vde:///run/vde/lab"), "");
    let warning = said("cmd://id");
    assert!(warning.contains("qemu:///session only") && warning.contains("'allow cmd://'"), "{warning}");
    // The system's sockets are elsewhere.
    let of_system = ["vdectl", "libvirt", "--connect", "qemu:///system", "xml", "/run/vde/lab"];
    let output = libvirt.run(&libvirt.as_user(&of_system)).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("run vdectl as root"), "{said}");
}

#[test]
fn q_30_a_machine_without_a_free_place_is_told_how_to_have_more() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let _lab = libvirt.switch().unwrap();
    libvirt.define(&bare().unwrap()).unwrap();
    libvirt.virsh(&["start", "--paused", "bare"]).unwrap();
    let attach = ["vdectl", "libvirt", "attach", "bare", "/run/vde/lab"];
    let full = (0..8).find_map(|_| libvirt.run_ok(&attach).err()).unwrap().to_string();
    let mend = "<controller type='pci' model='pcie-root-port'/> by virsh edit bare";
    assert!(full.contains("No more available PCI slots") && full.contains(mend), "{full}");
    libvirt.virsh(&["destroy", "bare"]).unwrap();
    libvirt.wait_nothing_left().unwrap();
}

/// Each line has what mends it.
#[test]
fn q_30_check_names_what_is_missing_and_what_mends_it() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let _lab = libvirt.switch().unwrap();
    libvirt.define(&documented("web").unwrap()).unwrap();
    assert!(vdectl(&libvirt, &["libvirt", "check", "web"]).unwrap().contains("nothing is missing"));
    let lacks = |spoil: &str, mend: &str, line: &str| {
        libvirt.run_ok(&["sh", "-c", spoil]).unwrap();
        let (status, said) = refused(&libvirt, &["check", "web"]).unwrap();
        assert!(status == 1 && said.contains(line) && said.contains("one thing is"), "{spoil}: {said}");
        libvirt.run_ok(&["sh", "-c", mend]).unwrap();
        if mend.contains("pkill") {
            libvirt.start_daemon().unwrap();
        }
        let said = vdectl(&libvirt, &["libvirt", "check", "web"]).unwrap();
        assert!(said.contains("nothing is missing"), "{mend}: {said}");
    };
    let (bin, hook) = ("/usr/local/bin", "/etc/libvirt/hooks/qemu.d/vde");
    let away = format!("mv {bin}/vhost-user-vde {bin}/away");
    lacks(
        &away,
        &format!("mv {bin}/away {bin}/vhost-user-vde"),
        "install -m 755 vhost-user-vde /usr/local/bin",
    );
    let mend = format!("chmod a+rx {bin}/vhost-user-vde");
    lacks(&format!("chmod 700 {bin}/vhost-user-vde"), &mend, &mend);
    lacks("mv /run/vde/lab /run/vde/away", "mv /run/vde/away /run/vde/lab", "vde_switch -s \"/run/vde/lab\"");
    let link = format!("ln -s {bin}/vde-libvirt-hook {hook}");
    let restart = "pkill -9 -x libvirtd";
    lacks(&format!("rm {hook}"), &format!("{link}; {restart}"), &link);
    lacks(&format!("rm {hook}; {link}"), restart, "systemctl restart libvirtd");

    // What somebody has left who wrote the metadata and then no interface.
    libvirt.virsh(&["start", "--paused", "web"]).unwrap();
    let nics = format!(
        "<nics><nic mac='52:54:00:5f:00:01' link='/run/vde/lab'/><nic mac='{MAC}' link='/run/vde/lab'/></nics>"
    );
    let metadata = ["metadata", "web", "--uri", "urn:vde:libvirt:1", "--key", "vde", "--set", &nics];
    for (scope, config) in [("--live", ""), ("--config", " --config")] {
        libvirt.virsh(&[&metadata[..], &[scope]].concat()).unwrap();
        let mend = format!("vdectl libvirt detach web {MAC}{config}");
        let (_, said) = refused(&libvirt, &["check", "web"]).unwrap();
        assert!(said.contains(&mend) && said.contains("one thing is"), "{said}");
        let (_, said) =
            refused(&libvirt, &["attach", "web", "/run/vde/lab", "--config", "--mac", MAC]).unwrap();
        assert!(
            said.contains(&format!(
                "no <interface> for it; remove it first: vdectl libvirt detach web {MAC}"
            )),
            "{said}"
        );
        libvirt.run_ok(&mend.split(' ').collect::<Vec<_>>()).unwrap();
        assert!(vdectl(&libvirt, &["libvirt", "check", "web"]).unwrap().contains("nothing is missing"));
    }
    libvirt.virsh(&["destroy", "web"]).unwrap();
}

/// It goes into a domain as it is printed, by hand and by `virsh`.
#[test]
fn q_30_what_xml_prints_is_taken_as_it_is() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let lab = libvirt.switch().unwrap();
    let _host = Station::start(&lab, HOST).unwrap();
    let xml = |words: &[&str]| {
        vdectl(&libvirt, &[&["libvirt", "xml", "/run/vde/lab[3]", "--domain", "bare"], words].concat())
            .unwrap()
    };
    let text = xml(&["--mac", MAC]);
    let (of_domain, of_devices) = text.split_once("\n\n").unwrap();
    let backing =
        "<memoryBacking>\n    <source type='memfd'/>\n    <access mode='shared'/>\n  </memoryBacking>";
    let plain = bare().unwrap();
    assert!(plain.contains(backing), "{plain}");
    let whole = plain
        .replace(backing, "")
        .replace("<vcpu>", &format!("{of_domain}\n<vcpu>"))
        .replace("<serial", &format!("{of_devices}\n<serial"));
    let file = libvirt.write("whole.xml", &whole).unwrap();
    libvirt.run_ok(&["virt-xml-validate", &file, "domain"]).unwrap();
    libvirt.virsh(&["define", "--validate", &file]).unwrap();
    assert!(vdectl(&libvirt, &["libvirt", "check", "bare"]).unwrap().contains("nothing is missing"));
    // As an editor would do it.
    libvirt.run_ok(&["env", "VISUAL=sed -i s/256/200/", "virsh", "edit", "bare"]).unwrap();
    libvirt.virsh(&["start", "bare"]).unwrap();
    let mut console = Console::open(&libvirt.virsh(&["ttyconsole", "bare"]).unwrap()).unwrap();
    console.until("true").unwrap();
    ping_by(&mut console, "eth0").unwrap();
    libvirt.virsh(&["destroy", "bare"]).unwrap();

    // Part by part, into one that has nothing.
    libvirt.virsh(&["undefine", "bare"]).unwrap();
    libvirt.define(&bare().unwrap()).unwrap();
    let interface = xml(&["--mac", MAC, "--id", "nic", "--queues", "2", "--part", "interface"]);
    let file = libvirt.write("interface.xml", &interface).unwrap();
    libvirt.virsh(&["attach-device", "bare", &file, "--config"]).unwrap();
    let nics = xml(&["--mac", MAC, "--id", "nic", "--part", "metadata"]);
    let words =
        ["metadata", "bare", "--uri", "urn:vde:libvirt:1", "--key", "vde", "--config", "--set", &nics];
    libvirt.virsh(&words).unwrap();
    assert!(vdectl(&libvirt, &["libvirt", "check", "bare"]).unwrap().contains("nothing is missing"));
    libvirt.virsh(&["start", "--paused", "bare"]).unwrap();
    libvirt.virsh(&["destroy", "bare"]).unwrap();
}
