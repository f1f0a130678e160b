//! `vdectl stats`: the counters of running VMs, as a table and for Prometheus.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use vde_tests::process::{Owned, wait_until};
use vde_tests::{BackEnd, Guest, Machine, Station, Switch, places, vdectl};

const LIMIT: Duration = Duration::from_secs(60);
const MAC: &str = "52:54:00:00:00:01";

/// A VM that does not run yet: its back end does.
fn resting(name: &str, switch: &Switch) -> Guest {
    let machine = Machine::new().through_vdeq().unwrap().vdeq_nic(&switch.path(), MAC).args(&["-S"]);
    let guest = Guest::spawn(name, &machine).unwrap();
    let vm = guest.pid().to_string();
    wait_until("a NIC that is served", LIMIT, || {
        let said = vdectl::run(&["stats", "--prometheus", &vm])?;
        let connected = |line: &str| line.starts_with("vde_nic_connected{") && line.ends_with("} 1");
        Ok(said.text.lines().any(connected).then_some(()))
    })
    .unwrap();
    guest
}

/// The value of the only sample of a metric that has all these words in its labels.
fn value(text: &str, metric: &str, labels: &[&str]) -> u64 {
    let samples =
        text.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{')?.rsplit_once("} "));
    let found: Vec<_> = samples.filter(|(all, _)| labels.iter().all(|label| all.contains(label))).collect();
    match found[..] {
        [(_, value)] => value.parse().unwrap(),
        _ => panic!("{metric} {labels:?} is there {} times in {text}", found.len()),
    }
}

#[test]
fn frames_are_counted_for_people_and_for_prometheus() {
    let switch = Switch::start().unwrap();
    let _peer = Station::start(&switch, 99).unwrap();
    let machine =
        Machine::new().through_vdeq().unwrap().vdeq_nic(&switch.path(), MAC).address(0, "10.0.0.1/24");
    let mut guest = Guest::start("stats", &machine).unwrap();
    guest.run_ok("ping -c 20 -i 0.1 10.0.0.99", LIMIT).unwrap();
    let vm = guest.pid().to_string();
    let text = vdectl::run_ok(&["stats", "--prometheus", &vm]).unwrap();
    assert_eq!((value(&text, "vde_up", &[]), value(&text, "vde_nic_connected", &[])), (1, 1));
    assert_eq!(value(&text, "vde_link_up", &[&format!("locator=\"{}\"", switch.path().display())]), 1);
    for direction in ["direction=\"tx\"", "direction=\"rx\""] {
        assert!(value(&text, "vde_nic_frames_total", &[direction]) >= 20, "{text}");
        assert!(value(&text, "vde_link_frames_total", &[direction]) >= 20, "{text}");
        assert!(value(&text, "vde_link_bytes_total", &[direction]) >= 20 * 98, "{text}");
    }
    // The driver keeps the receive queue filled.
    assert!(value(&text, "vde_queue_waiting", &["queue=\"0\"", "direction=\"rx\""]) > 0, "{text}");
    assert_eq!(value(&text, "vde_nic_dropped_total", &["reason=\"no_link\""]), 0);

    let table = vdectl::run_ok(&["stats", &vm]).unwrap();
    for (link, counter) in [("-", "tx_frames"), ("link0", "tx_frames"), ("link0", "rx_bytes")] {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let row = table.lines().map(words).find(|words| words[2..4] == [link, counter]);
        let row = row.unwrap_or_else(|| panic!("no {link} {counter} in {table}"));
        assert!(row[4].parse::<u64>().unwrap() >= 20, "{table}");
    }
    guest.power_off(LIMIT).unwrap();
}

/// The process that serves a VM.
fn back_end(vm: &Guest) -> Pid {
    let worker = BackEnd::of(vm.pid()).unwrap().worker().unwrap();
    Pid::from_raw(i32::try_from(worker).unwrap()).unwrap()
}

#[test]
fn a_back_end_that_hangs_is_down_and_hides_nobody() {
    let switch = Switch::start().unwrap();
    let (hangs, works) = (resting("stats-hangs", &switch), resting("stats-works", &switch));
    kill_process(back_end(&hangs), Signal::STOP).unwrap();
    let [hanging, working] = [&hangs, &works].map(|guest| guest.pid().to_string());
    let text = vdectl::run_ok(&["stats", "--prometheus", &hanging, &working]).unwrap();
    // People are told as well, after what there is to show.
    let said = vdectl::run(&["stats", &hanging, &working]).unwrap();
    kill_process(back_end(&hangs), Signal::CONT).unwrap();
    assert_eq!((said.status, said.complaint.lines().count()), (1, 1), "{said:?}");
    assert!(said.text.starts_with("VM "), "{said:?}");
    let ups: Vec<&str> = text.lines().filter(|line| line.starts_with("vde_up{")).collect();
    assert!(matches!(ups[..], [a, b] if a.ends_with("} 0") && b.ends_with("} 1")), "{text}");
    assert_eq!(value(&text, "vde_nic_connected", &[]), 1);
}

#[test]
fn a_full_disk_leaves_the_file_that_was_there() {
    let switch = Switch::start().unwrap();
    let guest = resting("stats-full", &switch);
    let vm = guest.pid().to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vde.prom");
    let said = vdectl::run_ok(&["stats", "--prometheus", &vm, "--output", file.to_str().unwrap()]).unwrap();
    assert_eq!(said, "");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    assert_eq!(value(&std::fs::read_to_string(&file).unwrap(), "vde_up", &[]), 1);

    // A disk of one page, which the old file takes; it is there for this shell only.
    let program = places::own_program("vdectl").unwrap();
    let script = format!(
        "mount -t tmpfs -o size=4k none '{0}' && cd '{0}' && echo old >vde.prom || exit 9; \
         '{1}' stats --prometheus {vm} --output vde.prom; echo $?; ls -A; cat vde.prom",
        dir.path().display(),
        program.display()
    );
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1\nvde.prom\nold\n", "{output:?}");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.starts_with("vdectl: cannot write vde.prom: "), "{complaint}");
}

fn scrape(path: &Path) -> String {
    let mut text = String::new();
    UnixStream::connect(path).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_socket_gives_the_text_to_everyone_until_a_signal() {
    let switch = Switch::start().unwrap();
    let guest = resting("stats-socket", &switch);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    for signal in [Signal::TERM, Signal::INT] {
        let mut command = Command::new(places::own_program("vdectl").unwrap());
        command.args(["stats", "--prometheus", &guest.pid().to_string(), "--listen"]).arg(&path);
        let mut server = Owned::new(command.stdin(Stdio::null()).spawn().unwrap(), "vdectl stats --listen");
        wait_until("the socket", LIMIT, || Ok(UnixStream::connect(&path).ok())).unwrap();
        // Some who never read hold up nobody.
        let _mute: Vec<_> = (0..4).map(|_| UnixStream::connect(&path).unwrap()).collect();
        for _ in 0..3 {
            assert_eq!(value(&scrape(&path), "vde_up", &[]), 1);
        }
        let other = vdectl::run(&["stats", "--prometheus", "--listen", path.to_str().unwrap()]).unwrap();
        assert!(other.status == 1 && other.complaint.contains("another process listens"), "{other:?}");
        server.signal(signal).unwrap();
        assert!(server.wait(LIMIT).unwrap().success());
        assert!(!path.exists());
    }
}
