//! `vdectl capture` on a guest that pings: files and pipes, read by tshark and tcpdump.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use vde_tests::process::Owned;
use vde_tests::{Guest, Machine, Qemu, Station, Switch, places, vdectl};

const LIMIT: Duration = Duration::from_secs(60);
const MAC: &str = "52:54:00:00:00:01";

/// A guest that can ping 10.0.0.99, and what is needed for that.
struct Rig {
    guest: Guest,
    _station: Station,
    _switch: Switch,
    vm: String,
    locator: String,
}

impl Rig {
    fn start(name: &str, qemu: Qemu) -> Self {
        let switch = Switch::start().unwrap();
        let station = Station::start(&switch, 99).unwrap();
        let vm = format!("{name}-{}", std::process::id());
        let machine = Machine::new().qemu(qemu).through_vdeq().unwrap().vdeq_nic(&switch.path(), MAC);
        let machine = machine.address(0, "10.0.0.1/24").args(&["-name", &vm]);
        let guest = Guest::start(name, &machine).unwrap();
        let locator = switch.path().to_str().unwrap().to_owned();
        Self { guest, _station: station, _switch: switch, vm, locator }
    }

    fn ping(&mut self, count: u32) {
        self.guest.ping(count, "10.0.0.99").unwrap();
    }
}

/// A `vdectl capture` that runs.
struct Capture {
    process: Owned,
    stderr: BufReader<ChildStderr>,
}

impl Capture {
    /// Starts it and waits until frames are written down.
    fn start(rig: &Rig, to: &str, more: &[&str], output: Stdio) -> (Self, Option<ChildStdout>) {
        let mut command = Command::new(places::own_program("vdectl").unwrap());
        command.args(["capture", &rig.vm, MAC, to]).args(more);
        let mut child = command.stdin(Stdio::null()).stdout(output).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (child.stdout.take(), BufReader::new(child.stderr.take().unwrap()));
        let mut capture = Self { process: Owned::new(child, "vdectl capture"), stderr };
        let mut line = String::new();
        capture.stderr.read_line(&mut line).unwrap();
        assert_eq!(line, format!("vdectl: capturing {MAC}, Ctrl-C ends it\n"));
        (capture, stdout)
    }

    /// Waits for its end: exit status, and the rest of what it says.
    fn end(mut self) -> (Option<i32>, String) {
        let status = self.process.wait(LIMIT).unwrap();
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

/// What tshark shows of pings: fields in lines.
fn pings(path: &Path) -> Vec<String> {
    let fields = ["frame.interface_name", "frame.packet_flags_direction", "icmp.type", "frame.comment"];
    let mut command = Command::new("tshark");
    command.arg("-r").arg(path).args(["-Y", "icmp", "-T", "fields"]);
    fields.iter().for_each(|field| {
        command.args(["-e", field]);
    });
    let output = command.output().expect("tshark is missing; cargo xtask test installs it");
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{complaint}");
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn pings_are_in_the_file(name: &str, qemu: Qemu) {
    let mut rig = Rig::start(name, qemu);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.pcapng");
    rig.ping(1);
    let (mut capture, _) = Capture::start(&rig, path.to_str().unwrap(), &[], Stdio::null());
    // A second one is refused, and the file that it would have emptied is as it was.
    let other = dir.path().join("other.pcapng");
    std::fs::write(&other, "precious").unwrap();
    let refused = vdectl::run(&["capture", &rig.vm, MAC, other.to_str().unwrap()]).unwrap();
    assert!(refused.status == 1 && refused.complaint.contains("captured already"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "precious");
    rig.ping(5);
    capture.process.signal(Signal::INT).unwrap();
    let (status, said) = capture.end();
    assert_eq!(status, Some(0), "{said}");
    assert!(said.starts_with("vdectl: ") && said.ends_with(" frames captured, 0 lost\n"), "{said}");
    rig.ping(1);
    let locator = &rig.locator;
    let line =
        |direction, kind, comment| format!("{locator}\t{direction}\t{kind}\t{comment} guest via link0");
    let expected = [line("0x00000002", 8, "from"), line("0x00000001", 0, "to")];
    let seen = pings(&path);
    assert_eq!(seen.len(), 10, "{seen:#?}");
    for pair in seen.chunks(2) {
        assert_eq!(pair, expected);
    }
    rig.guest.power_off(LIMIT).unwrap();
}

#[test]
fn pings_are_in_the_file_on_qemu_10() {
    pings_are_in_the_file("capture", Qemu::Installed);
}

#[test]
fn pings_are_in_the_file_on_qemu_7_2() {
    pings_are_in_the_file("capture-72", Qemu::V7_2);
}

/// Starts a program that reads the pipe and nobody else does.
fn read_with(program: &str, words: &[&str], pipe: Option<ChildStdout>) -> Child {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::from(pipe.unwrap())).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("{program}: {error}; cargo xtask test installs it"))
}

/// As in a shell: `vdectl capture VM NIC - | tcpdump -r - -c 4`. The reader has enough and goes.
#[test]
fn a_reader_that_goes_ends_it_quietly() {
    let mut rig = Rig::start("capture-pipe", Qemu::Installed);
    let (capture, stdout) = Capture::start(&rig, "-", &["--max-bytes", "10M"], Stdio::piped());
    let reader = read_with("tcpdump", &["-n", "-r", "-", "-c", "4", "icmp"], stdout);
    rig.ping(5);
    let output = reader.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let is_ping = |line: &str| line.contains("ICMP echo");
    assert_eq!(text.lines().filter(|line| is_ping(line)).count(), 4, "{text}");
    assert_eq!(capture.end(), (Some(0), String::new()));
    // And the other way round: we go, and the reader has all to the end.
    let (capture, stdout) = Capture::start(&rig, "-", &["--max-seconds", "10"], Stdio::piped());
    let reader = read_with("tshark", &["-r", "-", "-Y", "icmp"], stdout);
    rig.ping(2);
    let (status, said) = capture.end();
    assert!(status == Some(0) && said.ends_with(" frames captured, 0 lost\n"), "{said}");
    let output = reader.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("Echo (ping)")).count(), 4, "{text}");
    rig.guest.power_off(LIMIT).unwrap();
}
