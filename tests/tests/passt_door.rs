//! The passt door under a real libvirt: networks in `<source dev='...'/>`, by libvirt's own means from start to end.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use vde_tests::libvirt::{Version, documented};
use vde_tests::machine::Kernel;
use vde_tests::process::wait_until;
use vde_tests::{Console, Libvirt, Station, Switch, executable, places};

const LIMIT: Duration = Duration::from_secs(60);
/// The host on the switch that guests ping.
const HOST: u8 = 9;
const ADDRESS: &str = "10.0.0.9";
/// Where libvirt has passt's sockets and PID files.
const SOCKETS: &str = "/run/libvirt/qemu/passt";
/// The interface of the documentation's domain, up to what differs by model.
const VIRTIO: &str = "<interface type='vhostuser'>";

/// libvirt with the door, and a guest's kernel that has drivers of all models.
fn libvirt() -> Result<Libvirt> {
    let libvirt = Libvirt::start(Version::V11)?;
    for program in ["vhost-user-vde", "vde-passt"] {
        libvirt.install(program, program)?;
    }
    libvirt.run_ok(&["ln", "-s", "vde-passt", "/usr/local/bin/passt"])?;
    let image = Kernel::Linux6_1Full.image()?;
    for name in ["vmlinuz", "initrd"] {
        libvirt.run_ok(&["cp", &image.join(name).to_string_lossy(), vde_tests::libvirt::BOOT])?;
    }
    Ok(libvirt)
}

/// The switch of the documentation with the host on it.
fn network(libvirt: &Libvirt) -> Result<(Switch, Station)> {
    let switch = libvirt.switch()?;
    let host = Station::start(&switch, HOST)?;
    host.wait_plugged(&switch)?;
    Ok((switch, host))
}

fn console(libvirt: &Libvirt) -> Result<Console> {
    Console::open(&libvirt.virsh(&["ttyconsole", "desk"])?)
}

/// Waits until so many back ends are left, with their files, and the host with them on the switch.
fn wait_back_ends(libvirt: &Libvirt, switch: &Switch, count: usize) -> Result<()> {
    wait_until(&format!("{count} back ends"), LIMIT, || {
        let processes = libvirt.processes("vhost-user-vde")?.len();
        // A socket, one for commands, and a PID file.
        let files = libvirt.run_ok(&["find", SOCKETS, "-mindepth", "1"])?.lines().count();
        Ok((processes == count && files == 3 * count).then_some(()))
    })?;
    switch.wait_ports("them and the host on the switch", LIMIT, |ports| ports.len() == count + 1)?;
    Ok(())
}

/// An interface of another model, for hot-plug.
fn second_nic(libvirt: &Libvirt) -> Result<String> {
    let xml = "<interface type='user'><mac address='52:54:00:5f:00:0a'/><source dev='vde:///run/vde/lab'/>\
               <model type='e1000e'/><backend type='passt'/></interface>";
    libvirt.write("nic.xml", xml)
}

#[test]
fn q_31_a_network_in_source_dev_is_joined_hot_plugged_and_left() {
    let libvirt = libvirt().unwrap();
    let (switch, _host) = network(&libvirt).unwrap();
    libvirt.define(&documented("desk").unwrap()).unwrap();
    libvirt.virsh(&["start", "desk"]).unwrap();
    let mut guest = console(&libvirt).unwrap();
    guest.ping(ADDRESS).unwrap();
    wait_back_ends(&libvirt, &switch, 1).unwrap();
    let pid = libvirt.processes("vhost-user-vde").unwrap()[0];
    let file = libvirt.run_ok(&["sh", "-c", &format!("cat {SOCKETS}/*.pid")]).unwrap();
    assert_eq!(file.trim(), pid.to_string());
    let owner = libvirt.run_ok(&["ps", "-o", "user=", "-p", &pid.to_string()]).unwrap();
    assert!(owner.starts_with("libvirt"), "{owner}");

    // Its control socket tells of it, and root may ask.
    let ask = r#"printf '{"execute":"qmp_capabilities"}\n{"execute":"query-nics"}\n' | socat -t 5 - UNIX:$(echo "$1"/*.control)"#;
    let nics = libvirt.run_ok(&["sh", "-c", ask, "sh", SOCKETS]).unwrap();
    assert!(nics.contains("vde:///run/vde/lab"), "{nics}");

    // libvirt alone plugs a NIC of another model in and out, twice.
    let nic = second_nic(&libvirt).unwrap();
    for _ in 0..2 {
        libvirt.virsh(&["attach-device", "desk", &nic, "--live"]).unwrap();
        wait_back_ends(&libvirt, &switch, 2).unwrap();
        guest.until("ip link set eth0 down && ip link set eth1 up").unwrap();
        guest
            .until("{ ip address add 10.0.0.2/24 dev eth1; ip address show dev eth1 | grep -q 10.0.0.2; }")
            .unwrap();
        guest.ping(ADDRESS).unwrap();
        libvirt.virsh(&["detach-device", "desk", &nic, "--live"]).unwrap();
        wait_back_ends(&libvirt, &switch, 1).unwrap();
        guest.until("! ip link show dev eth1 2>/dev/null && ip link set eth0 up").unwrap();
        guest.ping(ADDRESS).unwrap();
    }
    libvirt.virsh(&["destroy", "desk"]).unwrap();
    wait_back_ends(&libvirt, &switch, 0).unwrap();

    // A QEMU that is killed takes its back end with it.
    libvirt.virsh(&["start", "--paused", "desk"]).unwrap();
    wait_back_ends(&libvirt, &switch, 1).unwrap();
    libvirt.run_ok(&["pkill", "-9", "-f", "^/usr/bin/qemu-system-x86_64.*guest=desk"]).unwrap();
    wait_back_ends(&libvirt, &switch, 0).unwrap();
}

#[test]
fn q_31_other_models_are_saved_and_restored_and_have_a_log() {
    let libvirt = libvirt().unwrap();
    let (switch, _host) = network(&libvirt).unwrap();
    let log = libvirt.folder().join("door.log");
    let with_log = format!("<backend type='passt' logFile='{}'/>", log.display());
    let xml = documented("desk").unwrap().replace(VIRTIO, "<interface type='user'>");
    let xml = xml.replace("<model type='virtio'/>", "<model type='e1000'/>");
    libvirt.define(&xml.replace("<backend type='passt'/>", &with_log)).unwrap();
    libvirt.virsh(&["start", "desk"]).unwrap();
    console(&libvirt).unwrap().ping(ADDRESS).unwrap();
    let file = "/var/lib/libvirt/qemu/save/desk.save";
    libvirt.virsh(&["save", "desk", file]).unwrap();
    wait_back_ends(&libvirt, &switch, 0).unwrap();
    libvirt.virsh(&["restore", file]).unwrap();
    console(&libvirt).unwrap().ping(ADDRESS).unwrap();
    libvirt.virsh(&["destroy", "desk"]).unwrap();
    wait_back_ends(&libvirt, &switch, 0).unwrap();
    let said = std::fs::read_to_string(&log).unwrap();
    assert_eq!(said.matches("front end connected").count(), 2, "{said}");
}

#[test]
fn q_31_what_is_wrong_stands_in_virshs_error() {
    let libvirt = libvirt().unwrap();
    let xml = documented("desk").unwrap();
    let file = libvirt.write("documented.xml", &xml).unwrap();
    libvirt.run_ok(&["virt-xml-validate", &file, "domain"]).unwrap();
    let refused = |old: &str, new: &str, word: &str| {
        assert!(xml.contains(old), "{old}");
        let file = libvirt.write("bad.xml", &xml.replace(old, new)).unwrap();
        let said = libvirt.virsh(&["create", &file]).unwrap_err().to_string();
        assert!(said.contains(word), "{new} gave {said}");
        let left = libvirt.run_ok(&["find", SOCKETS, "-mindepth", "1"]).unwrap();
        assert!(left.is_empty() && libvirt.processes("vhost-user-vde").unwrap().is_empty(), "{left}");
    };
    refused("desk</name>", "desk</name>", "there is no switch \"/run/vde/lab\"");
    let switch = libvirt.switch().unwrap();
    let address = "<ip family='ipv4' address='10.0.0.2' prefix='24'/><backend type='passt'/>";
    refused("<backend type='passt'/>", address, "'--address' is for the network that passt itself makes");
    let ports = "<portForward proto='tcp'><range start='2022' to='22'/></portForward><backend type='passt'/>";
    refused("<backend type='passt'/>", ports, "'--tcp-ports' is for the network that passt itself makes");
    let log = "<backend type='passt' logFile='/nowhere/log'/>";
    refused("<backend type='passt'/>", log, "/nowhere/log");
    // A switch that is root's alone.
    std::fs::set_permissions(switch.path().join("ctl"), Permissions::from_mode(0o600)).unwrap();
    refused("desk</name>", "desk</name>", "ermission");
}

#[test]
fn q_31_sessions_have_the_door_as_well() {
    let libvirt = libvirt().unwrap();
    let (switch, _host) = network(&libvirt).unwrap();
    let file = libvirt.write("session.xml", &documented("desk").unwrap()).unwrap();
    libvirt.virsh_of_user(&["create", &file]).unwrap();
    let terminal = libvirt.virsh_of_user(&["ttyconsole", "desk"]).unwrap();
    Console::open(&terminal).unwrap().ping(ADDRESS).unwrap();
    let owner = libvirt.run_ok(&["ps", "-o", "uid=", "-C", "vhost-user-vde"]).unwrap();
    assert_eq!(owner.trim(), libvirt.user().1.to_string());
    libvirt.virsh_of_user(&["destroy", "desk"]).unwrap();
    wait_until("the end of the back end", LIMIT, || {
        let sockets = format!("/run/user/{}/libvirt/qemu/run/passt", libvirt.user().1);
        let left = libvirt.run_ok(&["find", &sockets, "-mindepth", "1"])?;
        Ok((libvirt.processes("vhost-user-vde")?.is_empty() && left.is_empty()).then_some(()))
    })
    .unwrap();
    switch.wait_ports("the host alone on the switch", LIMIT, |ports| ports.len() == 1).unwrap();
}

#[test]
fn fifty_lives_through_the_door_leave_nothing() {
    let libvirt = libvirt().unwrap();
    let (mut switch, _host) = network(&libvirt).unwrap();
    libvirt.define(&documented("desk").unwrap()).unwrap();
    for _ in 0..50 {
        libvirt.virsh(&["start", "--paused", "desk"]).unwrap();
        assert_eq!(libvirt.processes("vhost-user-vde").unwrap().len(), 1);
        libvirt.virsh(&["destroy", "desk"]).unwrap();
    }
    wait_back_ends(&libvirt, &switch, 0).unwrap();
    assert_eq!(std::fs::read_dir(switch.path()).unwrap().count(), 2, "ctl, and the host's socket");

    // A NIC that is plugged in without its network is not there, and the domain goes on.
    libvirt.virsh(&["start", "--paused", "desk"]).unwrap();
    switch.stop().unwrap();
    let nic = second_nic(&libvirt).unwrap();
    let said = libvirt.virsh(&["attach-device", "desk", &nic, "--live"]).unwrap_err().to_string();
    assert!(said.contains("vde-passt: "), "{said}");
    assert_eq!(libvirt.processes("vhost-user-vde").unwrap().len(), 1);
    assert_eq!(libvirt.virsh(&["domiflist", "desk"]).unwrap().matches("52:54:00").count(), 1);
    libvirt.virsh(&["destroy", "desk"]).unwrap();
    assert!(libvirt.run_ok(&["find", SOCKETS, "-mindepth", "1"]).unwrap().is_empty());
}

#[test]
fn q_31_several_queues_are_served() {
    let libvirt = libvirt().unwrap();
    let (switch, _host) = network(&libvirt).unwrap();
    let xml = documented("desk").unwrap().replace("<vcpu>1</vcpu>", "<vcpu>2</vcpu>");
    let file =
        libvirt.write("queues.xml", &xml.replace("<backend ", "<driver queues='2'/><backend ")).unwrap();
    libvirt.virsh(&["create", &file]).unwrap();
    let mut guest = console(&libvirt).unwrap();
    guest.until("[ -d /sys/class/net/eth0/queues/rx-1 ]").unwrap();
    guest.ping(ADDRESS).unwrap();
    libvirt.virsh(&["destroy", "desk"]).unwrap();
    wait_back_ends(&libvirt, &switch, 0).unwrap();
}

#[test]
fn q_31_all_else_is_the_real_passts() {
    let libvirt = libvirt().unwrap();
    let xml = documented("desk").unwrap().replace(VIRTIO, "<interface type='user'>");
    let file = libvirt.write("user.xml", &xml.replace("<source dev='vde:///run/vde/lab'/>", "")).unwrap();
    libvirt.virsh(&["create", &file]).unwrap();
    let pid = libvirt.run_ok(&["sh", "-c", &format!("cat {SOCKETS}/*.pid")]).unwrap();
    let program = libvirt.run_ok(&["readlink", &format!("/proc/{}/exe", pid.trim())]).unwrap();
    assert!(program.starts_with("/usr/bin/passt"), "{program}");
    libvirt.virsh(&["destroy", "desk"]).unwrap();
    assert!(libvirt.processes("vhost-user-vde").unwrap().is_empty());
}

/// Other callers than libvirt hand descriptors over, and want signals to be what they were.
#[test]
fn q_31_descriptors_and_signals_come_to_the_real_passt_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().join("passt");
    let text = "#!/bin/sh\nreadlink /proc/self/fd/7; exec grep -E '^Sig(Ign|Blk)' /proc/self/status\n";
    executable::script(&real, text).unwrap();
    let run = |program: &std::path::Path| {
        let mut command = Command::new("sh");
        command
            .args(["-c", "trap '' INT USR1; exec 7</etc/hostname; exec \"$1\" --version", "sh"])
            .arg(program);
        let output =
            command.env("PATH", format!("{}:/usr/bin:/bin", folder.path().display())).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let direct = run(&real);
    assert!(direct.starts_with("/etc/hostname\nSigBlk:"), "{direct}");
    assert_eq!(run(&places::own_program("vde-passt").unwrap()), direct);
}

/// Runs the door under the name `passt`, with a directory of its own first on PATH and `behind` after it.
fn door(behind: &std::path::Path, words: &[&str]) -> Result<(i32, String)> {
    let own = tempfile::tempdir()?;
    std::os::unix::fs::symlink(places::own_program("vde-passt")?, own.path().join("passt"))?;
    // Twice, so that there is one of ours behind ours.
    let again = tempfile::tempdir()?;
    std::os::unix::fs::symlink(own.path().join("passt"), again.path().join("passt"))?;
    let path = std::env::join_paths([own.path(), again.path(), behind])?;
    let output = Command::new(own.path().join("passt")).args(words).env("PATH", path).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8(text)?))
}

#[test]
fn q_31_words_for_the_real_passt_come_to_it_untouched() {
    let folder = tempfile::tempdir().unwrap();
    let real = folder.path().join("passt");
    let none = door(folder.path(), &["--version"]).unwrap();
    assert!(none.0 == 1 && none.1.contains("install passt"), "{none:?}");
    let script = |text: &str| executable::script(&real, text);
    script("#!/bin/sh\nfor word; do printf '<%s>' \"$word\"; done\nexit 7\n").unwrap();
    for words in [&["--interface", "eth0", "--socket", "a b", ""][..], &["--help"], &["--version"], &[]] {
        let expected: String = words.iter().map(|word| format!("<{word}>")).collect();
        assert_eq!(door(folder.path(), words).unwrap(), (7, expected), "{words:?}");
    }
    // What looks like an option of the back end is none.
    let (status, said) = door(folder.path(), &["--socket", "/nowhere/s", "--interface", "--help/x"]).unwrap();
    assert!(status == 1 && said.contains("no switch \"--help/x\""), "{said}");
    // One that calls us back is found out.
    script("#!/bin/sh\nexec passt \"$@\"\n").unwrap();
    let (status, said) = door(folder.path(), &["--version"]).unwrap();
    assert!(status == 1 && said.contains("is not the real passt"), "{said}");
}
