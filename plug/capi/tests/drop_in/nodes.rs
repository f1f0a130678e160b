//! Networks without a switch: those that a program serves by opening them, with Debian's programs as owners and as peers, and
//! cables between two programs.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::{broadcast, open_dir, until};
use crate::library::{BOTH, Library, Original, Ours, Program, succeed};
use crate::process::{Plug, Running, framed};

/// A place for a network.
struct Site {
    _home: TempDir,
    path: PathBuf,
}

impl Site {
    fn new() -> Self {
        let home = open_dir();
        Self { path: home.path().join("net"), _home: home }
    }

    fn locator(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.path.display())
    }

    /// Waits until somebody listens. A connection to find out would be the end of the original's peace.
    fn wait(&self) {
        let name = format!(" {}/ctl", path(&self.path));
        until("the network is served", || {
            // Names of others need not be text.
            let sockets = std::fs::read("/proc/net/unix").expect("the kernel's list");
            let sockets = String::from_utf8_lossy(&sockets);
            // The fourth word is the flags, of which this one says that connections are accepted.
            let mut lines = sockets.lines().filter(|line| line.ends_with(&name));
            lines.any(|line| line.split_whitespace().nth(3) == Some("00010000"))
        });
    }

    /// Joins it.
    fn join(&self, library: Library) -> Plug {
        Plug::start(library, &[path(&self.path)])
    }
}

fn path(path: &Path) -> &str {
    path.to_str().expect("ASCII")
}

/// Sends until a frame has gone through: a peer is not told when the other one is there.
fn meet(from: &mut Plug, to: &Plug, mark: u8) {
    until("frames go through", || {
        from.send(&broadcast(mark, 60));
        to.has_frame(|frame| frame == broadcast(mark, 60))
    });
}

#[test]
fn vde_plug_serves_a_hub_and_a_switch() {
    for (scheme, owner, peers) in [
        ("switch", Ours, [Ours, Original]),
        ("hub", Ours, [Original, Ours]),
        ("switch", Original, [Ours, Ours]),
        ("hub", Original, [Ours, Ours]),
    ] {
        let site = Site::new();
        // The idiom for a network of its own.
        let mut served = Plug::start(owner, &["null://", &site.locator(scheme)]);
        site.wait();
        let [mut one, mut two] = peers.map(|library| site.join(library));
        meet(&mut one, &two, 1);
        meet(&mut two, &one, 2);
        // The owner ends tidily when it is told to, and its peers then.
        served.running.signal(Signal::TERM);
        assert_eq!(served.running.wait().code(), Some(0), "{scheme} of {owner:?}");
        assert!(!site.path.exists(), "{scheme} of {owner:?}: nothing is left");
        for (plug, library) in [one, two].iter_mut().zip(peers) {
            assert_eq!(plug.running.wait().code(), Some(0), "{scheme} of {owner:?}, peer on {library:?}");
        }
    }
}

#[test]
fn vde_plug_owns_a_multi() {
    for (owner, peer) in [(Ours, Original), (Original, Ours), (Ours, Ours)] {
        let site = Site::new();
        let mut host = Plug::start(owner, &[&site.locator("multi")]);
        site.wait();
        let mut guest = site.join(peer);
        meet(&mut guest, &host, 1);
        for len in [14, 60, 1514, 9018] {
            host.send(&broadcast(2, len));
            guest.receive(&broadcast(2, len));
            guest.send(&broadcast(3, len));
            host.receive(&broadcast(3, len));
        }
        // What is no frame goes nowhere, and is no frame for the owner either.
        guest.write(&framed(&[7; 13]));
        guest.send(&broadcast(4, 60));
        assert_eq!(
            host.expect("any frame", |frame| frame[6..11] != [2, 0, 0, 0, 0] || frame[11] != 1),
            broadcast(4, 60)
        );
        host.close();
        assert_eq!(host.running.wait().code(), Some(0), "{owner:?}");
        assert_eq!(guest.running.wait().code(), Some(0), "{peer:?}");
        assert!(!site.path.exists());
    }
}

#[test]
fn owner_that_was_killed_can_be_followed() {
    let site = Site::new();
    let mut killed = Plug::start(Ours, &["null://", &site.locator("hub")]);
    site.wait();
    killed.running.signal(Signal::KILL);
    killed.running.wait();
    assert!(site.path.exists(), "nobody could clean up");
    let _owner = Plug::start(Ours, &["null://", &site.locator("hub")]);
    site.wait();
    let [mut one, mut two] = [Ours, Ours].map(|library| site.join(library));
    meet(&mut one, &two, 1);
    // A second owner is refused, by either library, and disturbs nobody.
    for library in BOTH {
        let output = crate::library::run(library.command("vde_plug").arg(site.locator("hub")));
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).ends_with(": File exists\n"));
    }
    meet(&mut two, &one, 2);
}

#[test]
fn owner_ends_in_the_middle_of_traffic() {
    for scheme in ["hub", "switch", "multi"] {
        for _ in 0..5 {
            let site = Site::new();
            let other = Site::new();
            // Its signal handler closes both networks, wherever it interrupts.
            let mut owner = Plug::start(Ours, &[&site.locator(scheme), &other.locator(scheme)]);
            site.wait();
            other.wait();
            let (mut one, two) = (site.join(Ours), other.join(Ours));
            meet(&mut one, &two, 1);
            let burst: Vec<u8> = (0..300).flat_map(|_| framed(&broadcast(2, 60))).collect();
            for _ in 0..20 {
                one.write(&burst);
            }
            two.receive(&broadcast(2, 60));
            owner.running.signal(Signal::TERM);
            assert_eq!(owner.running.wait().code(), Some(0), "{scheme}");
            assert!(!site.path.exists() && !other.path.exists(), "{scheme}");
        }
    }
}

#[test]
fn stacks_of_libvdestack_talk_over_a_network_of_their_own() {
    let program = Program::compile("stacks", Ours, &["-lvdestack"]);
    for library in BOTH {
        for scheme in ["multi", "hub", "switch"] {
            let site = Site::new();
            let mut command = library.command("timeout");
            command.arg("60").arg(program.path()).args([&site.locator(scheme), path(&site.path)]);
            succeed(&mut command);
        }
    }
}

#[test]
fn c_29_nested_plug_in_opens_a_network_of_ours() {
    let site = Site::new();
    let mut host = Plug::start(Ours, &[&site.locator("multi")]);
    site.wait();
    // Untagged here is VLAN 5 there.
    let mut guest = Plug::start(Ours, &[&format!("vlan://5{{{}}}", path(&site.path))]);
    let plain = broadcast(1, 60);
    let tagged = [&plain[..12], &[0x81, 0, 0, 5], &plain[12..]].concat();
    until("frames go through", || {
        guest.send(&plain);
        host.has_frame(|frame| frame == tagged)
    });
    host.send(&tagged);
    guest.receive(&plain);
}

#[test]
fn vde_plug_at_both_ends_of_a_cable() {
    let site = Site::new();
    let cable = site.locator("ptp");
    let mut one = Plug::start(Ours, &[&cable]);
    until("the first end is there", || site.path.exists());
    for round in 0..2 {
        // That the other end comes and goes is no end of the connection.
        let mut two = Plug::start(Ours, &[&cable]);
        meet(&mut two, &one, round);
        meet(&mut one, &two, round + 10);
        two.close();
        assert_eq!(two.running.wait().code(), Some(0));
    }
    one.close();
    assert_eq!(one.running.wait().code(), Some(0));
    assert!(!site.path.exists());
}

#[test]
fn vde_plug_reaches_a_network_through_a_command() {
    let site = Site::new();
    let _served = Plug::start(Ours, &["null://", &site.locator("hub")]);
    site.wait();
    let mut near = Plug::start(Ours, &[&format!("cmd://vde_plug {}", path(&site.path))]);
    let mut far = site.join(Ours);
    meet(&mut near, &far, 1);
    meet(&mut far, &near, 2);
    near.close();
    assert_eq!(near.running.wait().code(), Some(0));
}

#[test]
fn vdens_serves_a_network_from_its_small_stack() {
    let site = Site::new();
    let script =
        "ip addr add 10.6.0.1/24 dev vde0 && ip link set vde0 up && exec socat TCP-LISTEN:7777 EXEC:cat";
    let mut owner = Ours.command("vdens");
    owner.args(["--clone", &site.locator("switch"), "sh", "-c", script]);
    let _owner = Running::start(owner.stdin(Stdio::null()));
    site.wait();
    let program = Program::compile("echoed", Ours, &["-lvdestack"]);
    let mut peer = Ours.command("timeout");
    succeed(peer.arg("60").arg(program.path()).arg(&site.path));
}

/// The network is closed by another process than opened it, one that shares its memory.
#[test]
fn vdens_takes_its_network_away() {
    let site = Site::new();
    let mut owner = Ours.command("vdens");
    // Its interface stays down: vdens misses its program's end if a frame comes at that moment.
    owner.args(["--clone", &site.locator("switch"), "sh", "-c", "echo up; read line"]);
    let mut owner = Running::start(owner.stdin(Stdio::piped()).stdout(Stdio::piped()));
    let mut up = [0; 3];
    owner.child.stdout.as_mut().expect("a pipe").read_exact(&mut up).expect("the program starts");
    assert!(site.path.exists());
    drop(owner.child.stdin.take());
    assert!(owner.wait().success());
    assert!(!site.path.exists(), "vdens leaves its network behind");
}
