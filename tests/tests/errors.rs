//! What `vdeq` says when the network will not have the machine: one sentence, the documented status, no QEMU, nothing left.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use vde_tests::process::Owned;
use vde_tests::{Switch, executable, places};

const NETWORK: i32 = 3;

/// Runs `vdeq` with a QEMU that would tell if it was started; returns its exit status and what it said.
fn vdeq(program: &mut Command, scratch: &Path, vde: &str) -> (Option<i32>, String) {
    let witness = scratch.join("started");
    let pidfile = witness.to_str().unwrap();
    program
        .args(["qemu-system-x86_64", "-accel", "tcg", "-m", "32", "-display", "none", "-pidfile", pidfile])
        .args(["-net", "nic,model=virtio", "-net", vde])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = Owned::new(program.spawn().unwrap(), "vdeq");
    let private = format!("/run/vdeq/{}", child.pid());
    let status = child.wait(Duration::from_secs(30)).unwrap();
    let mut said = String::new();
    child.child().stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(!witness.exists(), "QEMU was started");
    assert!(!Path::new(&private).exists(), "{private} is left");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(!line.contains(&format!("{private}\0")), "left: {line}");
    }
    (status.code(), said)
}

fn check((status, text): &(Option<i32>, String), words: &[&str]) {
    assert_eq!(*status, Some(NETWORK), "{text}");
    assert!(text.starts_with("vdeq: ") && text.lines().count() == 1, "one sentence: {text}");
    for word in words {
        assert!(text.contains(word), "'{word}' in: {text}");
    }
}

fn nothing_but_ctl(switch: &Switch) {
    let names: Vec<_> = std::fs::read_dir(switch.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["ctl"], "files in the switch's directory");
}

#[test]
fn q_14_port_that_the_switch_does_not_have() {
    let (switch, scratch) = (Switch::start_with(&["-n", "4"]).unwrap(), tempfile::tempdir().unwrap());
    let vde = format!("vde,sock={},port=99", switch.path().display());
    let mut vdeq_command = Command::new(places::own_program("vdeq").unwrap());
    let output = vdeq(&mut vdeq_command, scratch.path(), &vde);
    check(&output, &["port 99", switch.path().to_str().unwrap()]);
    nothing_but_ctl(&switch);
}

#[test]
fn q_14_switch_that_never_answers() {
    let (switch, scratch) = (Switch::start().unwrap(), tempfile::tempdir().unwrap());
    let pid = Pid::from_raw(i32::try_from(switch.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let vde = format!("vde,sock={}", switch.path().display());
    let mut vdeq_command = Command::new(places::own_program("vdeq").unwrap());
    let output = vdeq(&mut vdeq_command, scratch.path(), &vde);
    kill_process(pid, Signal::CONT).unwrap();
    check(&output, &["did not answer", switch.path().to_str().unwrap()]);
}

#[test]
fn q_14_switch_that_belongs_to_somebody_else() {
    let (switch, scratch) = (Switch::start().unwrap(), tempfile::tempdir().unwrap());
    // Where another user can run them, and write.
    for name in ["vdeq", "vhost-user-vde"] {
        executable::copy(&places::own_program(name).unwrap(), &scratch.path().join(name)).unwrap();
    }
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let parent = switch.path().parent().unwrap().to_owned();
    std::fs::set_permissions(parent, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut other = Command::new(places::system_program("setpriv").unwrap());
    other.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(scratch.path().join("vdeq"));
    let output = vdeq(&mut other, scratch.path(), &format!("vde,sock={}", switch.path().display()));
    check(&output, &["permission", switch.path().to_str().unwrap()]);
    nothing_but_ctl(&switch);
}
