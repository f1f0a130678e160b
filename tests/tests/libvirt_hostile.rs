//! Domains of a real libvirt that are defined by somebody who means harm to others of the same libvirt.

use anyhow::Result;
use vde_tests::Libvirt;
use vde_tests::libvirt::{Version, documented, reachable};

/// The documented domain with this name and more in it, its socket in `directory`.
fn domain(name: &str, directory: &str, more: &str) -> Result<String> {
    let xml = documented("web")?.replace("<name>web<", &format!("<name>{name}<"));
    let xml = xml.replace("/run/vdeq/libvirt/web/", &format!("/run/vdeq/libvirt/{directory}/"));
    Ok(xml.replace("</domain>", &format!("{more}</domain>")))
}

fn create(libvirt: &Libvirt, xml: &str) -> Result<()> {
    let file = libvirt.write("domain.xml", xml)?;
    libvirt.virsh(&["create", "--paused", &file]).map(drop)
}

/// libvirt takes names that differ in white space only, and names of directories.
#[test]
fn a_name_that_is_nearly_anothers_gets_nothing_of_it() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let _switch = libvirt.switch().unwrap();
    create(&libvirt, &domain("web", "web", "").unwrap()).unwrap();
    let victim = libvirt.processes("vhost-user-vde").unwrap();
    assert_eq!(victim.len(), 1);
    for name in ["web ", " web", "web&#160;", "web&#9;", "web&#10;"] {
        let said = create(&libvirt, &domain(name, "web", "").unwrap()).unwrap_err().to_string();
        assert!(said.contains("is not in the domain's directory"), "{name:?}: {said}");
        assert_eq!(libvirt.processes("vhost-user-vde").unwrap(), victim, "{name:?}");
    }
    for name in [".", ".."] {
        let said = create(&libvirt, &domain(name, name, "").unwrap()).unwrap_err().to_string();
        assert!(said.contains("rename it"), "{said}");
    }
    // In a directory of its own each lives and ends beside the other.
    for name in ["web ", "..web", "-c", "$(id)", "\u{fc}ber\u{202e}"] {
        create(&libvirt, &domain(name, name, "").unwrap()).unwrap();
        assert_eq!(libvirt.processes("vhost-user-vde").unwrap().len(), 2, "{name:?}");
        libvirt.virsh(&["destroy", "--domain", name]).unwrap();
        assert_eq!(libvirt.processes("vhost-user-vde").unwrap(), victim, "{name:?}");
    }
    let left = libvirt.run_ok(&["find", "/run/vdeq/libvirt", "-mindepth", "1"]).unwrap();
    assert_eq!(left.lines().count(), 4, "a directory, two sockets, a record: {left}");
}

/// A label may name any user, root too, and QEMU is that user with all its rights. The back end has none but the user's name.
#[test]
fn a_label_gives_the_back_end_a_user_and_no_capability() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    // Of those users, alice is in no group that a switch is for.
    let (switch, _) = reachable().unwrap();
    libvirt.place(&switch).unwrap();
    for (label, uid) in [("root:root", 0), ("alice:alice", 64066), (" +64066:+64066", 64066)] {
        let label =
            format!("<seclabel type='static' model='dac' relabel='no'><label>{label}</label></seclabel>");
        create(&libvirt, &domain("web", "web", &label).unwrap()).unwrap();
        let pid = libvirt.processes("vhost-user-vde").unwrap()[0];
        let status = libvirt.run_ok(&["cat", &format!("/proc/{pid}/status")]).unwrap();
        let ids = format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n");
        for line in [&*ids, "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n", "NoNewPrivs:\t1\n"] {
            assert!(status.contains(line), "{label}: {line} is not in {status}");
        }
        // Not even its own user's other processes, QEMU the first of them, may look into it.
        let descriptors = libvirt.run_ok(&["stat", "-c", "%u", &format!("/proc/{pid}/fd")]).unwrap();
        assert_eq!(descriptors.trim(), "0", "{label}");
        let socket = libvirt.run_ok(&["stat", "-c", "%u %a", "/run/vdeq/libvirt/web/0.sock"]).unwrap();
        assert_eq!(socket.trim(), format!("{uid} 600"));
        libvirt.virsh(&["destroy", "web"]).unwrap();
        assert!(libvirt.processes("vhost-user-vde").unwrap().is_empty());
    }
}
