//! What `vdectl libvirt check` says of domains that do not start, or would not.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use vde_tests::libvirt::{Version, documented};
use vde_tests::process::{self, wait_until};
use vde_tests::{Libvirt, Switch};

use crate::rig::{LIMIT, refused, vdectl};

/// libvirt gives nobody the XML of a domain that it is starting.
#[test]
fn q_30_check_knows_a_start_that_hangs() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let _lab = libvirt.switch().unwrap();
    libvirt.define(&documented("web").unwrap()).unwrap();
    // Nobody serves the socket that QEMU waits for.
    libvirt.run_ok(&["rm", "/etc/libvirt/hooks/qemu.d/vde"]).unwrap();
    let start = libvirt.command(&["virsh", "start", "web"]).stderr(Stdio::null()).spawn().unwrap();
    let mut start = process::Owned::new(start, "virsh start");
    wait_until("libvirt to wait for QEMU", LIMIT, || {
        let state = libvirt.virsh(&["domstate", "--reason", "web"])?;
        Ok(state.contains("starting up").then_some(()))
    })
    .unwrap();
    let begin = Instant::now();
    let (status, said) = refused(&libvirt, &["check", "web"]).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(20), "libvirt itself gives up after 30 s");
    for word in ["hook: there is none of ours", "start: ", "2 things are missing"] {
        assert!(status == 1 && said.contains(word), "{said}");
    }
    let (_, mend) = said.split_once("virsh destroy ").unwrap();
    assert!(mend.starts_with("web\n"), "{said}");
    libvirt.virsh(&["destroy", "web"]).unwrap();
    assert!(!start.wait(LIMIT).unwrap().success());
    let (status, said) = refused(&libvirt, &["check", "nobody"]).unwrap();
    assert!(status == 3 && said.contains("libvirt has no domain 'nobody'"), "{said}");
}

/// Whatever the hook would be told by a network is known before anybody starts the domain, in the same words.
#[test]
fn q_30_check_joins_the_networks_as_the_hook_would() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let lab = libvirt.switch().unwrap();
    let shut = Switch::start_with(&["-m", "0600"]).unwrap();
    std::fs::set_permissions(shut.path().parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    libvirt.run_ok(&["ln", "-s", &shut.path().to_string_lossy(), "/run/vde/shut"]).unwrap();
    let define = |xml: &str| {
        libvirt.run(&["virsh", "undefine", "web"]).unwrap();
        libvirt.define(xml).unwrap();
    };
    let web = documented("web").unwrap();
    for (link, word) in [
        ("vde:///run/vde/shut", "ermission"),
        ("vde:///run/vde/none", "vde_switch -s \"/run/vde/none\""),
        ("vde:///run/vde/lab[prt=3]", "there is no option \"prt\""),
        ("lab", "there is no switch \"lab\""),
        ("switch:///run/vde/net", "cannot make \"/run/vde/net\""),
        ("tap://nobodys", "no permission to make the tap \"nobodys\""),
        ("veth://nobodys", "there is no interface \"nobodys\""),
    ] {
        define(&web.replace("vde:///run/vde/lab", link));
        let (status, said) = refused(&libvirt, &["check", "web"]).unwrap();
        assert!(status == 1 && said.contains("one thing is"), "{link}: {said}");
        assert!(said.starts_with(&format!("network {link}: ")) && said.contains(word), "{link}: {said}");
        assert_eq!(said.contains("has to begin with /"), link == "lab", "{said}");
        let started = libvirt.virsh(&["start", "--paused", "web"]).unwrap_err().to_string();
        assert!(started.contains(word), "{link}: {started}");
    }
    define(
        &web.replace("</vde:nics>", "<vde:nic mac='52:54:00:5f:00:77' link='null://'/></vde:nics>").replace(
            "<serial",
            "<interface type='vhostuser'><mac address='52:54:00:5f:00:77'/><source type='unix' \
         path='/run/vdeq/libvirt/web/0.sock' mode='client'><reconnect enabled='yes' timeout='1'/></source>\
         <model type='virtio'/></interface><serial",
        ),
    );
    let (_, said) = refused(&libvirt, &["check", "web"]).unwrap();
    assert!(
        said.contains("its socket 0.sock is that of another NIC, too") && said.contains("one thing is"),
        "{said}"
    );

    // What can be joined is left as it was.
    let name = format!("lv{}", libvirt.pid());
    let tap = format!("tap://{name}");
    libvirt
        .run_ok(&[
            "sh",
            "-c",
            "mkdir /etc/vdeq /run/vde/own; chown libvirt-qemu: /run/vde/own; \
             echo 'privileged tap://lv' >/etc/vdeq/libvirt.conf",
        ])
        .unwrap();
    for link in ["vde:///run/vde/lab", "switch:///run/vde/own/net", "ptp:///run/vde/own/ptp", "null://", &tap]
    {
        define(&web.replace("vde:///run/vde/lab", link));
        let said = vdectl(&libvirt, &["libvirt", "check", "web"]).unwrap();
        assert_eq!(said, "web: nothing is missing\n", "{link}");
        assert!(libvirt.processes("vhost-user-vde").unwrap().is_empty(), "{link}");
    }
    assert_eq!(libvirt.run_ok(&["find", "/run/vde/own", "-mindepth", "1"]).unwrap(), "");
    assert!(!Path::new("/sys/class/net").join(&name).exists());
    lab.wait_ports("nobody", LIMIT, |ports| ports.is_empty()).unwrap();

    libvirt.run_ok(&["sh", "-c", "echo 'user = \"nobodys\"' >>/etc/libvirt/qemu.conf"]).unwrap();
    let (status, said) = refused(&libvirt, &["check", "web"]).unwrap();
    let word = "user: there is no user or group 'nobodys', which /etc/libvirt/qemu.conf names";
    assert!(status == 1 && said.contains(word), "{said}");
}

/// A domain that needs no hook is not told to have one.
#[test]
fn q_31_check_knows_the_passt_door_and_vdeq() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let _lab = libvirt.switch().unwrap();
    for program in ["vde-passt", "vdeq"] {
        libvirt.install(program, program).unwrap();
    }
    libvirt.run_ok(&["rm", "/etc/libvirt/hooks/qemu.d/vde"]).unwrap();
    libvirt.define(&documented("desk").unwrap()).unwrap();
    let way = "NIC 52:54:00:5f:00:02 goes through the passt door to vde:///run/vde/lab\n";
    let is_well = |name: &str| {
        let said = vdectl(&libvirt, &["libvirt", "check", name]).unwrap();
        assert!(said.ends_with(&format!("\n{name}: nothing is missing\n")), "{said}");
        said
    };
    let lacks = |name: &str, line: &str| {
        let (status, said) = refused(&libvirt, &["check", name]).unwrap();
        assert!(status == 1 && said.contains(line) && said.contains("one thing is"), "{line}: {said}");
    };
    lacks("desk", "passt door: ");
    libvirt.run_ok(&["ln", "-s", "vde-passt", "/usr/local/bin/passt"]).unwrap();
    assert!(is_well("desk").starts_with(way));
    let away = |from: &str, to: &str| libvirt.run_ok(&["mv", from, to]).unwrap();
    let (program, put_away) = ("/usr/local/bin/vhost-user-vde", "/usr/local/away");
    away(program, put_away);
    lacks("desk", "install -m 755 vhost-user-vde /usr/local/bin");
    away(put_away, program);
    away("/run/vde/lab", "/run/vde/away");
    lacks("desk", "network vde:///run/vde/lab: there is no switch");
    away("/run/vde/away", "/run/vde/lab");

    libvirt.virsh(&["start", "--paused", "desk"]).unwrap();
    assert!(is_well("desk").starts_with(way));
    // libvirt starts it again, and QEMU connects again; that fails without the switch.
    let killed = libvirt.processes("vhost-user-vde").unwrap();
    libvirt.run_ok(&["pkill", "-9", "-x", "vhost-user-vde"]).unwrap();
    let ask = "printf '{\"execute\":\"qmp_capabilities\"}\\n{\"execute\":\"query-nics\"}\\n' | \
               socat -t 5 - UNIX:$(echo /run/libvirt/qemu/passt/*.control)";
    wait_until("another back end, and QEMU on it", LIMIT, || {
        let said = libvirt.run(&["sh", "-c", ask])?.stdout;
        let is_on_it = String::from_utf8_lossy(&said).contains("\"connected\":true");
        Ok((is_on_it && libvirt.processes("vhost-user-vde")? != killed).then_some(()))
    })
    .unwrap();
    is_well("desk");
    away("/run/vde/lab", "/run/vde/away");
    libvirt.run_ok(&["pkill", "-9", "-x", "vhost-user-vde"]).unwrap();
    wait_until("its end", LIMIT, || Ok(libvirt.processes("vhost-user-vde")?.is_empty().then_some(())))
        .unwrap();
    lacks("desk", "NIC 52:54:00:5f:00:02: its back end does not run");
    away("/run/vde/away", "/run/vde/lab");
    libvirt.virsh(&["destroy", "desk"]).unwrap();

    // That of a vhostuser interface, libvirt itself does not define without.
    let private = documented("desk").unwrap().replace("<access mode='shared'/>", "");
    libvirt.virsh(&["undefine", "desk"]).unwrap();
    libvirt.define(&private.replace("type='vhostuser'", "type='user'")).unwrap();
    is_well("desk");

    libvirt.run_ok(&["ln", "-s", "vdeq", "/usr/local/bin/vdeqemu-system-x86_64"]).unwrap();
    libvirt.define(&documented("old").unwrap()).unwrap();
    assert!(is_well("old").starts_with("the emulator is /usr/local/bin/vdeqemu-system-x86_64, "));
    away(program, put_away);
    lacks("old", "install -m 755 vhost-user-vde /usr/local/bin");
}

/// The registry has forgotten it; libvirt has not.
#[test]
fn q_30_a_domain_whose_back_end_died_is_not_unknown() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let _lab = libvirt.switch().unwrap();
    let said = vdectl(&libvirt, &["vms"]).unwrap();
    assert!(said.ends_with("as this user\n"), "{said}");
    libvirt.define(&documented("web").unwrap()).unwrap();
    libvirt.virsh(&["start", "--paused", "web"]).unwrap();
    libvirt.run_ok(&["pkill", "-9", "-x", "vhost-user-vde"]).unwrap();
    let hint = "vdectl libvirt check web\n";
    wait_until("the back end to be missed", LIMIT, || {
        Ok(vdectl(&libvirt, &["vms"])?.ends_with(hint).then_some(()))
    })
    .unwrap();
    let output = libvirt.run(&["vdectl", "list", "web"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(3) && said.ends_with(hint), "{said}");
    let (_, said) = refused(&libvirt, &["check", "web"]).unwrap();
    assert!(said.contains("back end: it does not run; restart libvirt"), "{said}");
    libvirt.virsh(&["destroy", "web"]).unwrap();
}
