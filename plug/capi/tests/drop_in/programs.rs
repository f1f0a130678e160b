//! Debian's own programs, unmodified: on our library they do what they do on the original.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::harness::{RealSwitch, broadcast, need_root, until};
use crate::library::{BOTH, Library, Original, Ours, Program, run, succeed};
use crate::process::{Plug, Running};

/// Two `vde_plug` on a switch, each on one of the libraries.
fn pair(switch: &RealSwitch, libraries: [Library; 2]) -> [Plug; 2] {
    let plugs = libraries.map(|library| Plug::start(library, &[&switch.at("")]));
    until("both are plugged in", || switch.plugs() == 2);
    plugs
}

#[test]
fn c_23_vde_plug_carries_frames_both_ways() {
    for libraries in [[Ours, Ours], [Ours, Original], [Original, Ours]] {
        let switch = RealSwitch::start();
        let [mut one, mut two] = pair(&switch, libraries);
        for len in [14, 60, 1514] {
            one.send(&broadcast(1, len));
            two.receive(&broadcast(1, len));
            two.send(&broadcast(2, len));
            one.receive(&broadcast(2, len));
        }
        assert_eq!((one.left_over(), two.left_over()), (0, 0), "{libraries:?}");
    }
}

/// Frames pass both ways between two switches that a `vde_plug` with these arguments joins.
fn joins_two_switches(arguments: impl Fn(&[String; 2]) -> Vec<String>) {
    for library in BOTH {
        let switches = [RealSwitch::start(), RealSwitch::start()];
        let arguments = arguments(&switches.each_ref().map(|switch| switch.at("")));
        let _joint = Plug::start(library, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        let mut ends = switches.each_ref().map(|switch| Plug::start(library, &[&switch.at("[7]")]));
        until("all are plugged in", || switches.iter().all(|switch| switch.plugs() == 2));
        ends[0].send(&broadcast(1, 100));
        ends[1].receive(&broadcast(1, 100));
        ends[1].send(&broadcast(2, 1000));
        ends[0].receive(&broadcast(2, 1000));
    }
}

#[test]
fn vde_plug_bridges_two_switches() {
    joins_two_switches(|switches| switches.to_vec());
}

#[test]
fn vde_plug_plugs_into_a_command() {
    // The command is on the same library, as it inherits the environment.
    joins_two_switches(|[one, two]| [one, "=", "vde_plug", two].map(str::to_owned).to_vec());
}

#[test]
fn vde_plug_ends_as_on_the_original() {
    for library in BOTH {
        let switch = RealSwitch::start();
        let [mut closed, mut told] = pair(&switch, [library; 2]);
        // The switch shows a port before its client knows; who has a frame is through.
        closed.send(&broadcast(1, 60));
        told.receive(&broadcast(1, 60));
        closed.close();
        assert_eq!(closed.running.wait().code(), Some(0), "{library:?}: end of the standard input");
        until("its port is free", || switch.plugs() == 1);
        told.running.signal(Signal::TERM);
        assert_eq!(told.running.wait().code(), Some(0), "{library:?}: SIGTERM");
        until("its port is free", || switch.plugs() == 0);
        let [mut sender, mut orphan] = pair(&switch, [library; 2]);
        sender.send(&broadcast(1, 60));
        orphan.receive(&broadcast(1, 60));
        let mut switch = switch;
        switch.kill();
        assert_eq!(orphan.running.wait().code(), Some(0), "{library:?}: end of the switch");
    }
}

#[test]
fn vde_plug_says_why_it_cannot_plug_in() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let dir = dir.path().display().to_string();
    for (locator, reason) in [
        (format!("{dir}/nowhere"), "No such file or directory"),
        (dir, "No such file or directory"),
        ("vde:///etc/passwd".to_owned(), "Not a directory"),
        ("no-such-scheme://".to_owned(), "Protocol not supported"),
    ] {
        for library in BOTH {
            let output = run(library.command("vde_plug").arg(&locator));
            assert_eq!(output.status.code(), Some(1), "{library:?}");
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(said, format!("vde_open {locator}: {reason}\n"), "{library:?}");
        }
    }
}

#[test]
fn vde_plug_honours_group_mode_and_description() {
    for library in BOTH {
        let switch = RealSwitch::start();
        let args = ["-D", "seen by others", "-g", "root", "-m", "0770", "--port", "9", &switch.at("")];
        let _plug = Plug::start(library, &args);
        until("it is plugged in", || switch.plugs() == 1);
        let ports = switch.manage("port/print");
        assert!(ports.contains("Port 0009") && ports.contains(": seen by others user="), "{ports}");
    }
}

/// How `vdens` comes into its namespace.
const WAYS: [&str; 3] = ["--unshare", "--clone", "--iface=vde"];

#[test]
fn c_23_vdens_connects_two_namespaces() {
    need_root("to make network namespaces everywhere");
    for (library, way) in [(Original, WAYS[2]), (Ours, WAYS[0]), (Ours, WAYS[1]), (Ours, WAYS[2])] {
        let switch = RealSwitch::start();
        let namespace = |address: &str, work: &str| {
            let script = format!("ip addr add {address}/24 dev vde0 && ip link set vde0 up && exec {work}");
            let mut command = library.command("vdens");
            command.args([way, &switch.at(""), "sh", "-c", &script]).stdin(Stdio::piped());
            Running::start(command.stdout(Stdio::piped()))
        };
        let _server = namespace("10.8.0.1", "socat TCP-LISTEN:7777 EXEC:cat");
        let mut client = namespace("10.8.0.2", "socat - TCP:10.8.0.1:7777,retry=200,interval=0.1");
        let bytes: Vec<u8> = (0..2_000_000_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        let mut stdin = client.child.stdin.take().expect("a pipe");
        let mut stdout = client.child.stdout.take().expect("a pipe");
        // Nobody closes anything before all has come back: vdens takes its interface away when its program ends, whatever
        // that has still to send. Nor is its end waited for, which it misses now and then, on either library.
        let mut got = vec![0; bytes.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| stdin.write_all(&bytes).expect("write"));
            stdout.read_exact(&mut got).expect("read");
        });
        assert!(got == bytes, "{library:?} {way}");
    }
}

/// The DHCP message type of a frame that a client sends.
fn dhcp_type(frame: &[u8]) -> Option<u8> {
    let udp = frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17);
    let client = frame.get(34..38) == Some(&[0, 68, 0, 67]);
    let options = frame.get(14 + 20 + 8 + 240..).filter(|_| udp && client)?;
    options.windows(3).find(|window| window[..2] == [53, 1]).map(|window| window[2])
}

#[test]
fn c_23_qemu_netdev_vde_gets_an_address() {
    const DISCOVER: u8 = 1;
    const REQUEST: u8 = 3;
    for library in BOTH {
        let switch = RealSwitch::start();
        // The server is a plug-in, which the library has to load.
        let mut server = library.command("vde_plug");
        let server = server.args([&switch.at("[7]"), "slirp://"]).stdin(Stdio::null());
        let _server = Running::start(server);
        let listener = Plug::start(Original, &[&switch.at("[8]")]);
        until("both are plugged in", || switch.plugs() == 2);
        let mut qemu = library.command("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-m", "64", "-display", "none", "-monitor", "none", "-serial", "none"])
            .args(["-nodefaults", "-boot", "n", "-device", "virtio-net-pci,netdev=n"])
            .args(["-netdev", &format!("vde,id=n,sock={}", switch.at("")), "-sandbox", "on"])
            .stdin(Stdio::null());
        let mut qemu = Running::start(&mut qemu);
        listener.expect("DHCPDISCOVER", |frame| dhcp_type(frame) == Some(DISCOVER));
        // It requests only what it was offered.
        listener.expect("DHCPREQUEST", |frame| dhcp_type(frame) == Some(REQUEST));
        qemu.signal(Signal::TERM);
        assert!(qemu.wait().success(), "{library:?}");
        until("its port is free", || switch.plugs() == 2);
    }
}

#[test]
fn c_23_vdeq_relays_between_switch_and_emulator() {
    let emulator = Program::compile("emulator", Ours, &[]);
    for library in BOTH {
        let switch = RealSwitch::start();
        let mut plug = Plug::start(library, &[&switch.at("[7]")]);
        until("it is plugged in", || switch.plugs() == 1);
        let mut vdeq = library.command("vdeq");
        let net = format!("vde,sock={},port=5", switch.at(""));
        vdeq.arg(emulator.path()).args(["-net", &net]).stdin(Stdio::null());
        let mut vdeq = Running::start(vdeq.stdout(Stdio::null()).stderr(Stdio::null()));
        until("vdeq is plugged in", || switch.plugs() == 2);
        assert!(switch.manage("port/print").contains(": vdeqemu user="), "{library:?}");
        for len in [60, 1514] {
            let frame = broadcast(1, len);
            plug.send(&frame);
            plug.expect("the echo", |got| {
                got.len() == len && got[..6] == frame[6..12] && got[14..] == frame[14..]
            });
        }
        // Told to end, not left to see the end of its emulator: that it misses now and then, on either library.
        vdeq.signal(Signal::TERM);
        assert_eq!(vdeq.wait().code(), Some(0), "{library:?}");
        until("its port is free", || switch.plugs() == 1);
    }
}

#[test]
fn stacks_of_libvdestack_talk_over_a_switch() {
    let program = Program::compile("stacks", Ours, &["-lvdestack"]);
    for library in BOTH {
        let switch = RealSwitch::start();
        let mut command: Command = library.command("timeout");
        succeed(command.arg("60").arg(program.path()).args([switch.at(""), switch.at("")]));
    }
}
