//! What fails, hangs or is killed at any step: of the domain, of QEMU and of the back end nothing is left that was not there
//! before, or `vdectl` says with what command to finish, and that does it.

use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vde_tests::libvirt::{Version, documented};
use vde_tests::process::{self, wait_until};
use vde_tests::{Console, Libvirt, Switch};

use crate::rig::{LIMIT, MAC, refused, roomy, state, vdectl};

/// A `virsh` that spoils one of its calls.
const SPOILER: &str = r#"#!/bin/sh
number=$(($(cat "$COUNT") + 1))
echo $number >"$COUNT"
if [ $number = "$SPOIL" ]; then
    case $HOW in
        refuse) echo 'error: so it is' >&2; exit 1;;
        lose) /usr/bin/virsh "$@" >/dev/null 2>&1; echo 'error: so it is' >&2; exit 1;;
        kill-before) kill -9 $PPID; exit 1;;
        kill-after) /usr/bin/virsh "$@" >/dev/null 2>&1; kill -9 $PPID; exit 1;;
        daemon) pkill -9 -x libvirtd;;
        back-end) pkill -9 -x vhost-user-vde;;
        destroy) /usr/bin/virsh destroy web >/dev/null 2>&1;;
        hang) exec sleep 1000;;
    esac
fi
exec /usr/bin/virsh "$@"
"#;
/// What is plugged in and out.
const ATTACH: [&str; 6] = ["attach", "web", "/run/vde/lab", "--mac", MAC, "--config"];
const DETACH: [&str; 4] = ["detach", "web", MAC, "--config"];

/// A running guest, and that `virsh`.
struct Rig {
    libvirt: Libvirt,
    _switch: Switch,
    before: [String; 7],
}

impl Rig {
    fn start() -> Self {
        let libvirt = Libvirt::with_hook(Version::V11).unwrap();
        let switch = libvirt.switch().unwrap();
        libvirt.define(&roomy(&documented("web").unwrap())).unwrap();
        libvirt.virsh(&["start", "web"]).unwrap();
        let mut console = Console::open(&libvirt.virsh(&["ttyconsole", "web"]).unwrap()).unwrap();
        // The guest must be up to let go of anything.
        console.until("true").unwrap();
        let spoiler = libvirt.write("spoiler", SPOILER).unwrap();
        let bin = libvirt.folder().join("bin");
        libvirt
            .run_ok(&["install", "-D", "-m", "755", &spoiler, &bin.join("virsh").to_string_lossy()])
            .unwrap();
        let before = state(&libvirt, "web").unwrap();
        Self { libvirt, _switch: switch, before }
    }

    /// The words that run `vdectl libvirt` with a spoilt call; the file counts all.
    fn spoilt(&self, how: &str, call: usize, words: &[&str]) -> Vec<String> {
        self.libvirt.write("count", "0").unwrap();
        let folder = self.libvirt.folder().display();
        let path = format!("PATH={folder}/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        let env = [
            "env".into(),
            path,
            format!("COUNT={folder}/count"),
            format!("SPOIL={call}"),
            format!("HOW={how}"),
        ];
        let words = ["vdectl", "libvirt"].iter().chain(words).map(|word| (*word).to_owned());
        env.into_iter().chain(words).collect()
    }

    /// Runs it; gives its status, what it said, and whether there was such a call.
    fn run(&self, how: &str, call: usize, words: &[&str]) -> (Option<i32>, String, bool) {
        let words = self.spoilt(how, call, words);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = self.libvirt.run(&words).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Killed, nsenter does the same to itself.
        let status = output.status.code().filter(|_| output.status.signal().is_none());
        (status, said, self.calls() >= call)
    }

    fn calls(&self) -> usize {
        let text = std::fs::read_to_string(self.libvirt.folder().join("count")).unwrap();
        // Empty for a moment.
        text.trim().parse().unwrap_or(0)
    }

    /// Finishes what was left.
    fn finish(&self, of: &str) {
        let output = self.libvirt.run(&[&["vdectl", "libvirt"], &DETACH[..]].concat()).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{of}: {said}");
    }

    fn is_as_before(&self, of: &str) {
        for (now, before) in state(&self.libvirt, "web").unwrap().iter().zip(&self.before) {
            assert_eq!(now, before, "{of}");
        }
    }

    /// A new back end serves the NIC that was there before.
    fn has_a_back_end_again(&mut self) {
        let other = "52:54:00:5f:00:99";
        vdectl(&self.libvirt, &["libvirt", "attach", "web", "/run/vde/lab", "--mac", other]).unwrap();
        vdectl(&self.libvirt, &["libvirt", "detach", "web", other]).unwrap();
        let [.., record, process, _, _] = state(&self.libvirt, "web").unwrap();
        assert!(!record.contains(MAC) && record.contains("net0"), "{record}");
        (self.before[3], self.before[4]) = (record, process);
        wait_until("QEMU to be connected", LIMIT, || {
            Ok(self.libvirt.run(&["vdectl", "libvirt", "check", "web"])?.status.success().then_some(()))
        })
        .unwrap();
    }

    fn end(&self) {
        self.libvirt.virsh(&["destroy", "web"]).unwrap();
        self.libvirt.wait_nothing_left().unwrap();
    }
}

/// A call that fails, and one that succeeds though it says otherwise.
#[test]
fn q_30_what_virsh_refuses_is_undone_at_each_step() {
    let rig = Rig::start();
    for how in ["refuse", "lose"] {
        let mut call = 1;
        loop {
            let (status, said, spoilt) = rig.run(how, call, &ATTACH);
            let of = format!("{how} {call}: {said}");
            if !spoilt {
                assert_eq!(status, Some(0), "{of}");
                break;
            }
            assert!(status == Some(1) && said.contains("so it is") && !said.contains("undone"), "{of}");
            rig.is_as_before(&of);
            call += 1;
        }
        assert!(call > 8, "attach has {call} calls");
        // And out again: whatever fails, the same command finishes.
        let mut call = 1;
        loop {
            let (status, said, spoilt) = rig.run(how, call, &DETACH);
            let of = format!("{how} {call} of detach: {said}");
            if !spoilt {
                assert!(status == Some(0), "{of}");
                break;
            }
            if status == Some(0) {
                // It found out for itself that the call had been done.
                assert_eq!(how, "lose", "{of}");
            } else {
                assert!(status == Some(1) && said.contains("so it is"), "{of}");
            }
            rig.finish(&of);
            rig.is_as_before(&of);
            vdectl(&rig.libvirt, &[&["libvirt"], &ATTACH[..]].concat()).unwrap();
            call += 1;
        }
        rig.is_as_before(how);
    }
    rig.end();
}

#[test]
fn q_30_a_killed_vdectl_leaves_what_the_next_one_removes() {
    let rig = Rig::start();
    for how in ["kill-before", "kill-after"] {
        for words in [&ATTACH[..], &DETACH] {
            for call in 1.. {
                if words == DETACH {
                    vdectl(&rig.libvirt, &[&["libvirt"], &ATTACH[..]].concat()).unwrap();
                }
                let (status, said, spoilt) = rig.run(how, call, words);
                let of = format!("{how} {call} of {words:?}: {status:?} {said}");
                let check = rig.libvirt.run(&["vdectl", "libvirt", "check", "web"]).unwrap();
                let check = String::from_utf8_lossy(&check.stdout).into_owned();
                let of = format!("{of}; check: {check}");
                rig.finish(&of);
                rig.is_as_before(&of);
                if !spoilt {
                    assert_eq!(status, Some(0), "{of}");
                    break;
                }
                assert_ne!(status, Some(0), "{of}");
            }
        }
    }
    rig.end();
}

#[test]
fn q_30_libvirt_or_the_back_end_dies_at_any_step() {
    let mut rig = Rig::start();
    for (how, words) in [("daemon", &ATTACH[..]), ("daemon", &DETACH), ("back-end", &ATTACH)] {
        for call in 1.. {
            if words == DETACH {
                vdectl(&rig.libvirt, &[&["libvirt"], &ATTACH[..]].concat()).unwrap();
            }
            let (status, said, spoilt) = rig.run(how, call, words);
            let of = format!("{how} {call} of {words:?}: {status:?} {said}");
            if spoilt && how == "daemon" {
                rig.libvirt.start_daemon().unwrap();
            }
            rig.finish(&of);
            if spoilt && how == "back-end" {
                rig.has_a_back_end_again();
            }
            rig.is_as_before(&of);
            if !spoilt {
                assert_eq!(status, Some(0), "{of}");
                break;
            }
        }
    }
    rig.end();
}

/// With a domain goes what was plugged into it; what its next start shall have is as it was, or finished.
#[test]
fn q_30_the_domain_ends_at_any_step() {
    let rig = Rig::start();
    for (words, calls) in [(&ATTACH[..], 4..=8), (&DETACH, 5..=7)] {
        for call in calls {
            if words == DETACH {
                vdectl(&rig.libvirt, &[&["libvirt"], &ATTACH[..]].concat()).unwrap();
            }
            let (status, said, spoilt) = rig.run("destroy", call, words);
            let of = format!("{call} of {words:?}: {status:?} {said}");
            assert!(spoilt && (words == DETACH || !said.contains("undone")), "{of}");
            rig.libvirt.wait_nothing_left().unwrap();
            rig.finish(&of);
            let next = rig.libvirt.virsh(&["dumpxml", "--inactive", "web"]).unwrap();
            assert!(!next.contains(MAC), "{of}: {next}");
            rig.libvirt.virsh(&["start", "web"]).unwrap();
            let mut console = Console::open(&rig.libvirt.virsh(&["ttyconsole", "web"]).unwrap()).unwrap();
            console.until("true").unwrap();
        }
    }
    rig.end();
}

/// Ctrl-C, and its like, while a step does not end.
#[test]
fn q_30_ctrl_c_undoes_it() {
    let rig = Rig::start();
    for (call, signal) in [(1, Signal::INT), (5, Signal::TERM), (6, Signal::INT), (7, Signal::HUP)] {
        let words = rig.spoilt("hang", call, &ATTACH);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = rig.libvirt.command(&words);
        command.stderr(Stdio::piped());
        let mut child = process::Owned::new(command.spawn().unwrap(), "vdectl");
        wait_until("the call that hangs", LIMIT, || Ok((rig.calls() >= call).then_some(()))).unwrap();
        let pid = rig.libvirt.processes("vdectl").unwrap()[0];
        let begin = Instant::now();
        rig.libvirt.run_ok(&["kill", &format!("-{}", signal.as_raw()), &pid.to_string()]).unwrap();
        let status = child.wait(LIMIT).unwrap();
        assert!(status.code() == Some(1) && begin.elapsed() < Duration::from_secs(30), "{call}: {status}");
        rig.is_as_before(&format!("{call}"));
        // One is the test's own, which waits for orphans.
        assert!(rig.libvirt.processes("sleep").unwrap().len() < 2, "what hung is left");
    }
    // A guest that is waited for keeps its NIC; others have had their turn meanwhile.
    vdectl(&rig.libvirt, &[&["libvirt"], &ATTACH[..]].concat()).unwrap();
    rig.libvirt.virsh(&["suspend", "web"]).unwrap();
    let words = rig.spoilt("nothing", 0, &[&DETACH[..], &["--wait", "1000"]].concat());
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut child = process::Owned::new(rig.libvirt.command(&words).spawn().unwrap(), "vdectl");
    // The fifth asks the guest, the next looks whether it has let go.
    wait_until("the guest to be waited for", LIMIT, || Ok((rig.calls() >= 6).then_some(()))).unwrap();
    rig.libvirt.run_ok(&["flock", "--nonblock", "/run/vdeq/libvirt", "true"]).unwrap();
    let pid = rig.libvirt.processes("vdectl").unwrap()[0];
    rig.libvirt.run_ok(&["kill", "-INT", &pid.to_string()]).unwrap();
    assert_eq!(child.wait(LIMIT).unwrap().code(), Some(4));
    rig.libvirt.virsh(&["resume", "web"]).unwrap();
    rig.finish("interrupted while the guest was waited for");
    rig.is_as_before("interrupted while the guest was waited for");
    rig.end();
}

/// A libvirt that hangs is waited for, but not for ever; a QEMU that does so, neither.
#[test]
fn q_30_who_hangs_is_named_and_all_is_finished_later() {
    let rig = Rig::start();
    rig.libvirt.run_ok(&["pkill", "-STOP", "-x", "libvirtd"]).unwrap();
    let begin = Instant::now();
    let (status, said) = refused(&rig.libvirt, &ATTACH).unwrap();
    assert!(status == 1 && said.contains("virsh uri has not ended within 40 s"), "{said}");
    assert!(begin.elapsed() < Duration::from_secs(60));
    rig.libvirt.run_ok(&["pkill", "-CONT", "-x", "libvirtd"]).unwrap();
    rig.is_as_before("libvirtd goes on");

    rig.libvirt.run_ok(&["pkill", "-STOP", "qemu-system"]).unwrap();
    let (status, said) = refused(&rig.libvirt, &ATTACH).unwrap();
    let finish = format!("finish with: vdectl libvirt detach web {MAC} --config");
    assert!(status == 1 && said.contains("virsh attach-device") && said.contains(&finish), "{said}");
    rig.libvirt.run_ok(&["pkill", "-CONT", "qemu-system"]).unwrap();
    rig.finish("QEMU goes on");
    rig.is_as_before("QEMU goes on");
    rig.end();
}
