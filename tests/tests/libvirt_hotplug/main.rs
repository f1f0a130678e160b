//! NICs that `vdectl libvirt` plugs into running domains of a real libvirt, and takes out again.

mod check;
mod cycles;
mod faults;
mod rig;
mod words;

use anyhow::{Result, ensure};
use rig::{DIRECTORY, HOST, LIMIT, MAC, bare, ping_by, refused, roomy, state, vdectl};
use vde_tests::libvirt::{Version, documented, reachable};
use vde_tests::{Console, Libvirt, Station};

/// In, its cable moved, saved and restored, out.
fn q_30(version: Version) -> Result<()> {
    let libvirt = Libvirt::with_hook(version)?;
    let _lab = libvirt.switch()?;
    let ((first, locator), (second, other)) = (reachable()?, reachable()?);
    let _hosts = [Station::start(&first, HOST)?, Station::start(&second, HOST)?];
    libvirt.define(&documented("web")?)?;
    libvirt.virsh(&["start", "web"])?;
    let mut console = Console::open(&libvirt.virsh(&["ttyconsole", "web"])?)?;
    console.until("true")?;
    let before = state(&libvirt, "web")?;
    ensure!(vdectl(&libvirt, &["libvirt", "check", "web"])?.contains("nothing is missing"));

    let said = vdectl(&libvirt, &["libvirt", "attach", "web", &locator, "--mac", MAC, "--config"])?;
    ensure!(said == format!("ua-vde0 {MAC} {DIRECTORY}/web/vde0.sock\n"), "{said}");
    let socket = libvirt.run_ok(&["stat", "-c", "%U %a", &format!("{DIRECTORY}/web/vde0.sock")])?;
    ensure!(socket.trim() == "libvirt-qemu 600", "{socket}");
    ping_by(&mut console, "eth1")?;
    let list = vdectl(&libvirt, &["list", "web"])?;
    ensure!(list.lines().any(|line| line.starts_with("ua-vde0 ") && line.contains(MAC)), "{list}");
    ensure!(vdectl(&libvirt, &["libvirt", "check", "web"])?.contains("nothing is missing"));
    for scope in [&["dumpxml", "web"][..], &["dumpxml", "--inactive", "web"]] {
        let xml = libvirt.virsh(scope)?;
        ensure!(xml.contains(&format!("mac='{MAC}' link='{locator}'")) || xml.contains(&locator), "{xml}");
        ensure!(xml.matches(MAC).count() == 2, "{xml}");
    }

    vdectl(&libvirt, &["link", "web", "ua-vde0", "replace", "link0", &other])?;
    ping_by(&mut console, "eth1")?;
    first.wait_ports("the host alone", LIMIT, |ports| ports.len() == 1)?;

    // The hook serves it from now on, where its metadata says.
    let file = "/var/lib/libvirt/qemu/save/web.save";
    libvirt.virsh(&["save", "web", file])?;
    libvirt.virsh(&["restore", file])?;
    let mut console = Console::open(&libvirt.virsh(&["ttyconsole", "web"])?)?;
    ping_by(&mut console, "eth1")?;

    vdectl(&libvirt, &["libvirt", "detach", "web", "ua-vde0", "--config"])?;
    console.until("! ip link show eth1 2>/dev/null")?;
    first.wait_ports("the host alone", LIMIT, |ports| ports.len() == 1)?;
    let after = state(&libvirt, "web")?;
    // A restored domain has another number, a console and a back end of its own.
    ensure!(
        after[1] == before[1] && after[2] == before[2] && !after[3].contains(MAC),
        "{after:?}\n{before:?}"
    );
    ensure!(!after[0].contains(MAC) && after[0].contains("52:54:00:5f:00:01"), "{}", after[0]);
    libvirt.virsh(&["destroy", "web"])?;
    libvirt.wait_nothing_left()
}

#[test]
fn q_30_a_nic_comes_moves_and_goes_on_libvirt_11() {
    q_30(Version::V11).unwrap();
}

#[test]
fn q_30_a_nic_comes_moves_and_goes_on_libvirt_9() {
    q_30(Version::V9).unwrap();
}

/// A domain without a network, whose guest is up.
fn running_bare() -> Result<(Libvirt, Console)> {
    let libvirt = Libvirt::with_hook(Version::V11)?;
    libvirt.define(&bare()?)?;
    libvirt.virsh(&["start", "bare"])?;
    let mut console = libvirt.console("bare")?;
    console.until("true")?;
    Ok((libvirt, console))
}

#[test]
fn q_30_a_domain_without_a_network_gets_one_and_a_back_end() {
    let (libvirt, mut console) = running_bare().unwrap();
    let (switch, locator) = reachable().unwrap();
    let _host = Station::start(&switch, HOST).unwrap();
    let before = libvirt.virsh(&["dumpxml", "bare"]).unwrap();
    let (status, said) = refused(&libvirt, &["check", "bare"]).unwrap();
    assert!(status == 1 && said.contains("there is no <vde:nic>") && said.contains("one thing is"), "{said}");

    vdectl(&libvirt, &["libvirt", "attach", "bare", &locator, "--mac", MAC]).unwrap();
    console
        .until(&format!(
            "ip link set eth0 up; ip addr add 10.0.0.1/24 dev eth0 2>/dev/null; ping -c 1 -W 1 10.0.0.{HOST} >/dev/null"
        ))
        .unwrap();
    vdectl(&libvirt, &["libvirt", "detach", "bare", MAC]).unwrap();
    libvirt.wait_nothing_left().unwrap();
    let without_metadata = |xml: String| {
        xml.lines().filter(|line| !line.contains("metadata")).map(str::to_owned).collect::<Vec<_>>()
    };
    let after = libvirt.virsh(&["dumpxml", "bare"]).unwrap();
    assert_eq!(without_metadata(after), without_metadata(before));
    libvirt.virsh(&["destroy", "bare"]).unwrap();
}

#[test]
fn q_30_a_guest_that_does_not_let_go_keeps_its_nic_until_it_does() {
    let (libvirt, _console) = running_bare().unwrap();
    let (switch, locator) = reachable().unwrap();
    let _host = Station::start(&switch, HOST).unwrap();
    vdectl(&libvirt, &["libvirt", "attach", "bare", &locator, "--mac", MAC]).unwrap();
    libvirt.virsh(&["suspend", "bare"]).unwrap();
    for _ in 0..2 {
        let (status, said) = refused(&libvirt, &["detach", "bare", MAC, "--wait", "1"]).unwrap();
        assert!(status == 4 && said.contains("has not let go within 1 s"), "{status}: {said}");
        let nics = vdectl(&libvirt, &["list", "bare"]).unwrap();
        assert!(nics.contains(MAC), "{nics}");
    }
    libvirt.virsh(&["resume", "bare"]).unwrap();
    vdectl(&libvirt, &["libvirt", "detach", "bare", MAC]).unwrap();
    libvirt.wait_nothing_left().unwrap();
    libvirt.virsh(&["destroy", "bare"]).unwrap();
}

/// And what virsh alone has unplugged is cleaned up, by name.
#[test]
fn q_30_sessions_have_it_as_well() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let (switch, locator) = reachable().unwrap();
    let _host = Station::start(&switch, HOST).unwrap();
    let file = libvirt.write("bare.xml", &roomy(&bare().unwrap())).unwrap();
    libvirt.virsh_of_user(&["create", &file]).unwrap();
    let mut console = Console::open(&libvirt.virsh_of_user(&["ttyconsole", "bare"]).unwrap()).unwrap();
    console.until("true").unwrap();
    let vdectl = |words: &[&str]| {
        let words = [&["vdectl", "libvirt", "--connect", "qemu:///session"], words].concat();
        libvirt.run_ok(&libvirt.as_user(&words)).unwrap()
    };
    let directory = "/run/user/64066/vdeq/libvirt/bare";
    for (name, mac) in [("vde0", MAC), ("vde1", "52:54:00:5f:00:78")] {
        let said = vdectl(&["attach", "bare", &locator, "--mac", mac]);
        assert_eq!(said, format!("ua-{name} {mac} {directory}/{name}.sock\n"));
    }
    console
        .until(&format!(
            "ip link set eth0 up; ip addr add 10.0.0.1/24 dev eth0 2>/dev/null; ping -c 1 -W 1 10.0.0.{HOST} >/dev/null"
        ))
        .unwrap();
    libvirt.virsh_of_user(&["detach-interface", "bare", "vhostuser", "--mac", MAC, "--live"]).unwrap();
    console.until("! ip link show eth0 2>/dev/null").unwrap();
    vdectl(&["detach", "bare", "ua-vde0"]);
    let files = libvirt.run_ok(&["sh", "-c", &format!("ls {directory}")]).unwrap();
    assert_eq!(files, "control.sock\nvde1.sock\nvm.json\n");
    let xml = libvirt.virsh_of_user(&["dumpxml", "bare"]).unwrap();
    assert!(!xml.contains(MAC) && xml.contains("52:54:00:5f:00:78"), "{xml}");
    vdectl(&["detach", "bare", "52:54:00:5F:00:78"]);
    // Its networks are joined as the user.
    let web = documented("web").unwrap().replace("/run/vdeq/libvirt", "/run/user/64066/vdeq/libvirt");
    let file = libvirt.write("web.xml", &web.replace("vde:///run/vde/lab", &locator)).unwrap();
    libvirt.virsh_of_user(&["define", &file]).unwrap();
    assert_eq!(vdectl(&["check", "web"]), "web: nothing is missing\n");
    assert!(libvirt.run(&["ls", directory]).unwrap().stdout.is_empty());
    assert!(libvirt.processes("vhost-user-vde").unwrap().is_empty());
    libvirt.virsh_of_user(&["destroy", "bare"]).unwrap();
}

#[test]
fn q_30_what_fails_leaves_nothing() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let _lab = libvirt.switch().unwrap();
    libvirt.define(&documented("web").unwrap()).unwrap();
    let (status, said) = refused(&libvirt, &["attach", "web", "/run/vde/lab"]).unwrap();
    assert!(status == 1 && said.contains("'web' does not run"), "{said}");
    let (status, said) = refused(&libvirt, &["attach", "--", "--nobody", "/run/vde/lab"]).unwrap();
    assert!(status == 3 && said.contains("libvirt has no domain '--nobody'"), "{said}");
    libvirt.define(&bare().unwrap().replace("<access mode='shared'/>", "")).unwrap();
    libvirt.virsh(&["start", "web"]).unwrap();
    libvirt.virsh(&["start", "bare"]).unwrap();
    let before = [state(&libvirt, "web").unwrap(), state(&libvirt, "bare").unwrap()];
    let refuse = |words: &[&str], word: &str| {
        let (_, said) = refused(&libvirt, &[&["attach"], words].concat()).unwrap();
        assert!(said.contains(word), "{words:?} gave {said}");
        assert_eq!([state(&libvirt, "web").unwrap(), state(&libvirt, "bare").unwrap()], before, "{words:?}");
    };
    refuse(&["bare", "/run/vde/lab"], "memory is not shared");
    refuse(&["web", "vde:///no/such"], "there is no switch");
    refuse(&["web", "cmd://id"], "'allow cmd://'");
    refuse(&["web", "/run/vde/lab", "--mac", "52:54:00:5f:00:01"], "has the MAC address");
    refuse(&["web", "/run/vde/lab", "--queues", "17"], "1 to 16 queue pairs");
    for word in ["--mac=zz", "--queues=0", "--id=a/b"] {
        let (status, said) = refused(&libvirt, &["attach", "web", "/run/vde/lab", word]).unwrap();
        assert_eq!(status, 2, "{word}: {said}");
    }
    refuse(&["web", "/run/vde/lab", "--connect", "test:///default"], "no libvirt of this machine");

    // A virsh that fails in the middle: everything before is undone by the real one.
    let fake = "#!/bin/sh\ncase \" $* \" in *\" attach-device \"*\"$FAIL\"*) echo 'error: so it is' >&2; exit 1;; esac\n\
                exec /usr/bin/virsh \"$@\"\n";
    let file = libvirt.write("virsh", fake).unwrap();
    libvirt.run_ok(&["install", "-m", "755", &file, "/usr/local/bin/virsh"]).unwrap();
    for step in ["--live", "--config"] {
        let fail = format!("FAIL={step}");
        let words = ["env", &fail, "vdectl", "libvirt", "attach", "web", "/run/vde/lab", "--config"];
        // The guest must be up to let go.
        let mut console = Console::open(&libvirt.virsh(&["ttyconsole", "web"]).unwrap()).unwrap();
        console.until("true").unwrap();
        let said = libvirt.run_ok(&words).unwrap_err().to_string();
        assert!(said.contains("virsh attach-device: so it is") && !said.contains("undone"), "{said}");
        assert_eq!(state(&libvirt, "web").unwrap(), before[0], "{step}");
    }
    libvirt.run_ok(&["sh", "-c", "rm /usr/local/bin/virsh; mv /usr/bin/virsh /usr/bin/virsh.away"]).unwrap();
    let (_, said) = refused(&libvirt, &["attach", "web", "/run/vde/lab"]).unwrap();
    assert!(said.contains("virsh is not on PATH"), "{said}");
    libvirt.run_ok(&["mv", "/usr/bin/virsh.away", "/usr/bin/virsh"]).unwrap();

    // A hook that cannot be run, and a socket that is anybody's.
    let spoil = format!("chmod 666 {DIRECTORY}/web/0.sock; rm /etc/libvirt/hooks/qemu.d/vde");
    libvirt.run_ok(&["sh", "-c", &spoil]).unwrap();
    let (_, said) = refused(&libvirt, &["check", "web"]).unwrap();
    for word in ["its mode is 666", "hook: there is none of ours", "2 things are missing"] {
        assert!(said.contains(word), "{said}");
    }
}
