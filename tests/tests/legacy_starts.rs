//! What of the old syntax starts on which QEMU, and what is connected to what then, as QEMU itself says. No guest runs.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use vde_tests::process::Owned;
use vde_tests::{Qemu, Switch, executable, places};

const LIMIT: Duration = Duration::from_secs(60);

/// Options, in which A and B are switches, and the connections they make. A NIC is named by its model, a network by its
/// type; vhost-user and stream are ours.
const LINES: [(&str, &[&str]); 30] = [
    ("-net nic -net vde,sock=A", &["virtio-net-pci - vhost-user"]),
    ("-net nic,model=e1000 -net vde,sock=A", &["e1000 - stream"]),
    // Comma and quote rules of the old wrapper; what is superfluous does no harm.
    ("-net nic,model=virtio -net vde,,vlan=0,,sock=\"A\",", &["virtio-net-pci - vhost-user"]),
    ("-net nic,vlan=1,name=lan,vectors=3 -net vde,vlan=1,sock=A", &["virtio-net-pci - vhost-user"]),
    ("-net nic,vlan=1,addr=9,name=lan -net vde,vlan=1,sock=A", &["virtio-net-pci - vhost-user"]),
    (
        "-net nic,vlan=0 -net nic,vlan=1,model=rtl8139 -net vde,vlan=0,sock=A -net vde,vlan=1,sock=B,port=10",
        &["rtl8139 - stream", "virtio-net-pci - vhost-user"],
    ),
    // More than one of a kind: the hub is ours.
    ("-net nic -net nic -net vde,sock=A", &["virtio-net-pci - vhost-user", "virtio-net-pci - vhost-user"]),
    ("-net nic -net vde,sock=A -net vde,sock=B", &["virtio-net-pci - vhost-user"]),
    (
        "-net vde,vlan=9,sock=A -net nic,vlan=9,model=ne2k_pci -net nic,vlan=9 -net vde,vlan=9,sock=B",
        &["ne2k_pci - stream", "virtio-net-pci - vhost-user"],
    ),
    ("-sock A,B", &["virtio-net-pci - vhost-user"]),
    ("-sock A,B -net nic,model=pcnet", &["pcnet - stream"]),
    ("-sock A -net nic -net nic", &["virtio-net-pci - vhost-user", "virtio-net-pci - vhost-user"]),
    ("-sock A -net user", &["hub 0: stream user virtio-net-pci"]),
    ("-sock A -net nic,vlan=1 -net user,vlan=1", &["e1000 - user", "virtio-net-pci - vhost-user"]),
    // Members that are QEMU's: the hub is QEMU's.
    ("-net nic -net vde,sock=A -net user", &["hub 0: stream user virtio-net-pci"]),
    (
        "-net nic,vlan=2,model=e1000 -net nic,vlan=2 -net vde,vlan=2,sock=A -net user,vlan=2,hostfwd=tcp:127.0.0.1:0-:22",
        &["hub 2: e1000 stream user virtio-net-pci"],
    ),
    ("-net nic -net vde,sock=A -net socket,listen=127.0.0.1:0", &["hub 0: socket stream virtio-net-pci"]),
    (
        "-net nic -net vde,sock=A -net vde,sock=B -net socket,udp=127.0.0.1:9,localaddr=127.0.0.1:0",
        &["hub 0: socket stream stream virtio-net-pci"],
    ),
    (
        "-net nic -net vde,sock=A -net tap,ifname=TAP,script=no,downscript=no",
        &["hub 0: stream tap virtio-net-pci"],
    ),
    ("-net nic -net vde,sock=A -net dump,file=DUMP,len=64k", &["hub 0: stream virtio-net-pci"]),
    (
        "-net nic,vlan=1 -net vde,vlan=1,sock=A -net nic -net user",
        &["hub 0: e1000 user", "virtio-net-pci - vhost-user"],
    ),
    // No NIC: the connection stands.
    ("-net vde,sock=A", &["stream"]),
    ("-net vde,vlan=3,sock=A,port=7 -net user", &["hub 0: user", "stream"]),
    ("-net vde,sock=A -net vde,sock=B", &["hub 0: stream stream"]),
    // Segments without VDE, as many as there are.
    ("-net nic,vlan=3 -net user,vlan=3", &["e1000 - user"]),
    (
        "-net nic,vlan=3 -net user,vlan=3,name=one -net nic,vlan=4,model=pcnet,name=x -net user,vlan=4,name=two",
        &["e1000 - user", "pcnet - user"],
    ),
    ("-net nic,vlan=1 -net nic,vlan=1 -net user,vlan=1", &["hub 1: e1000 e1000 user"]),
    ("-net user,vlan=3", &["hub 3: user"]),
    ("-net nic -net user -net dump,file=DUMP", &["hub 0: e1000 user"]),
    ("-net dump,vlan=2,file=DUMP", &[]),
];

/// The connections in the answer to `info network`.
fn connections(info: &str) -> Vec<String> {
    let mut groups: Vec<(bool, Vec<String>)> = Vec::new();
    for line in info.lines() {
        let property = |key: &str| {
            line.split(&[',', ' '][..]).find_map(|word| word.strip_prefix(key)).map(str::to_owned)
        };
        let name = property("model=").or_else(|| property("type=")).unwrap_or_else(|| line.to_owned());
        match groups.last_mut().filter(|_| line.starts_with(" \\")) {
            Some((_, members)) => members.push(name),
            None => groups.push((line.starts_with("hub"), vec![name])),
        }
    }
    let words = groups.into_iter().map(|(is_hub, mut members)| {
        if !is_hub {
            return members.join(" - ");
        }
        members[1..].sort();
        format!("{}: {}", members[0], members[1..].join(" "))
    });
    let mut words: Vec<String> = words.collect();
    words.sort();
    words
}

/// Starts a paused VM and asks it; gives the connections, and what was said.
fn start(qemu: &Path, home: &Path, line: &str) -> (Vec<String>, String) {
    let mut options: Vec<&str> = line.split(' ').collect();
    let own = options.iter().position(|word| *word != "-sock").filter(|at| *at > 0).map_or(0, |at| at + 1);
    let options = options.split_off(own);
    let own: Vec<&str> = line.split(' ').take(own).collect();
    let mut child = Command::new(places::own_program("vdeq").unwrap())
        .args(own)
        .arg(qemu)
        .args(["-accel", "tcg", "-m", "32", "-S", "-display", "none", "-qmp", "stdio"])
        .args(options)
        .env("HOME", home)
        .current_dir(home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut child = Owned::new(child, line);
    let ask = r#"{"execute":"human-monitor-command","arguments":{"command-line":"info network"}}"#;
    // A command line that is refused reads nothing.
    let _ = writeln!(input, "{{\"execute\":\"qmp_capabilities\"}}\n{ask}\n{{\"execute\":\"quit\"}}");
    let status = child.wait(LIMIT).unwrap();
    let (mut output, mut said) = (String::new(), String::new());
    child.child().stdout.take().unwrap().read_to_string(&mut output).unwrap();
    child.child().stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(status.success(), "{line}: {said}");
    let answers = output.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let info = answers.filter_map(|answer| answer["return"].as_str().map(str::to_owned)).next().unwrap();
    (connections(&info.replace('\r', "")), said)
}

/// Starts each line; 7.2 is the oldest QEMU with the netdevs that hubs need.
fn all_lines_start(qemu: Qemu, name: &str) {
    let (first, second) = (Switch::start().unwrap(), Switch::start().unwrap());
    let (home, program) = (tempfile::tempdir().unwrap(), qemu.program().unwrap());
    let [a, b] = [&first, &second].map(|switch| format!("sock={}", switch.path().display()));
    let list = |text: &str| text.replace("sock=", "");
    for (line, expected) in LINES {
        let words = line
            .replace("sock=\"A\"", &format!("sock=\"{}\"", list(&a)))
            .replace("sock=A", &a)
            .replace("sock=B", &b)
            .replace("-sock A,B", &format!("-sock {},{}", list(&a), list(&b)))
            .replace("-sock A", &format!("-sock {}", list(&a)))
            .replace("TAP", &format!("lg{name}{}", std::process::id()))
            .replace("DUMP", "frames.pcap");
        let (connections, said) = start(&program, home.path(), &words);
        assert_eq!(connections, expected, "{words}: {said}");
        // A warning of QEMU's would be about a NIC or a network that got lost.
        let warnings = said.lines().filter(|text| text.contains("warning:"));
        let harmless = |text: &str| text.contains("with no nics") || text.contains("has no peer");
        for warning in warnings {
            assert!(!line.contains("-net nic") && harmless(warning), "{words}: {warning}");
        }
    }
    for switch in [first, second] {
        switch.wait_ports("nobody on the switch", LIMIT, <[_]>::is_empty).unwrap();
    }
}

#[test]
fn q_12_old_lines_connect_what_they_say_on_qemu_10() {
    all_lines_start(Qemu::Installed, "10");
}

#[test]
fn q_12_old_lines_connect_what_they_say_on_qemu_7_2() {
    all_lines_start(Qemu::V7_2, "7");
}

#[test]
fn qemu_without_stream_uses_its_own_client() {
    let switch = Switch::start().unwrap();
    let home = tempfile::tempdir().unwrap();
    let (program, sock) = (home.path().join("qemu-system-x86_64"), switch.path().display().to_string());
    let script =
        "#!/bin/sh\n[ \"$1\" = --version ] && exec echo QEMU emulator version 6.2.0\nexec QEMU \"$@\"\n";
    let script = script.replace("QEMU \"", &format!("{} \"", Qemu::V7_2.program().unwrap().display()));
    executable::script(&program, &script).unwrap();
    for (line, expected) in [
        ("-net nic,model=e1000 -net vde,sock=A,port=7,mode=0660,group=root", "e1000 - vde"),
        ("-net nic,model=virtio -net vde,sock=A -net user", "hub 0: user vde virtio-net-pci"),
        ("-net nic,model=virtio -net vde,sock=A", "virtio-net-pci - vhost-user"),
    ] {
        let (connections, said) = start(&program, home.path(), &line.replace('A', &sock));
        assert_eq!(connections, [expected], "{line}: {said}");
        assert_eq!(said.contains("VDE client of QEMU itself"), expected.contains("vde"), "{line}: {said}");
    }
}
