//! vdeq with the real QEMU, the real back end and a real switch.

mod rig;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rig::{LIMIT, Rig, finish_child, gone, spawn, stderr, until};

/// vdeq without the fake QEMU in its way.
fn vdeq(rig: &Rig) -> Command {
    let mut command = rig.vdeq();
    command.env("PATH", std::env::var("PATH").unwrap_or_default());
    command.args(["qemu-system-x86_64", "-nodefaults", "-display", "none"]);
    command
}

fn main_loop_runs(mut qmp: UnixStream) -> bool {
    qmp.set_read_timeout(Some(LIMIT)).expect("time limit");
    writeln!(qmp, "{{\"execute\": \"qmp_capabilities\"}}").expect("write");
    let mut lines = BufReader::new(qmp).lines().map_while(Result::ok);
    lines.any(|line| line.contains("\"return\""))
}

#[test]
fn c_48_q_16_pid_pidfile_port_and_status_are_qemus() {
    let mut rig = Rig::new();
    let switch = rig.switch();
    let pidfile = rig.text("pid");
    let mut command = vdeq(&rig);
    command.args([
        "-m",
        "64",
        "-pidfile",
        &pidfile,
        "-qmp",
        &format!("unix:{},server=on,wait=off", rig.text("qmp")),
    ]);
    command.args(["-net", "nic,model=virtio", "-net"]);
    let child = spawn(command.arg(format!("vde,sock={switch},port=7")));
    let pid = child.id();
    // Commands are carried out by the main loop, and only once that runs QEMU catches signals.
    until("QEMU answers", || UnixStream::connect(rig.path("qmp")).is_ok_and(main_loop_runs));
    assert_eq!(rig.read("pid").trim(), pid.to_string());

    let ports = rig.ports("sw");
    assert!(ports.contains("Port 0007") && ports.contains("vdeqemu user="), "{ports}");

    let target = rustix::process::Pid::from_raw(i32::try_from(pid).expect("a PID")).expect("not 0");
    rustix::process::kill_process(target, rustix::process::Signal::TERM).expect("kill");
    let output = finish_child(child);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    gone(pid);
}

#[test]
fn a_network_without_nic_or_with_another_model_starts() {
    let mut rig = Rig::new();
    let switch = rig.switch();
    for (words, said) in [
        (&["-net", "vde,sock=SW"][..], "has no NIC"),
        (&["-net", "nic,model=e1000,name=lan", "-net", "vde,sock=SW"], "e1000 is not virtio"),
        (&["-net", "nic,model=rtl8139,addr=9", "-net", "vde,sock=SW"], "rtl8139 is not virtio"),
        (
            &[
                "-net",
                "nic,vlan=1,addr=9,name=lan",
                "-net",
                "vde,vlan=1,sock=SW",
                "-net",
                "nic",
                "-net",
                "user",
            ],
            "is virtio-net-pci",
        ),
    ] {
        let mut command = vdeq(&rig);
        command
            .args(["-m", "64", "-S", "-monitor", "stdio"])
            .args(words.iter().map(|word| word.replace("SW", &switch)));
        let mut child = spawn(command.stdin(Stdio::piped()));
        let pid = child.id();
        child.stdin.take().expect("stdin").write_all(b"quit\n").expect("write");
        let output = finish_child(child);
        assert!(output.status.success() && stderr(&output).contains(said), "{words:?}: {}", stderr(&output));
        gone(pid);
    }
}
