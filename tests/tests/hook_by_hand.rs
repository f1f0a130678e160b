//! `vde-libvirt-hook` without libvirt: run by hand, by somebody who does not know it, and in a world that is full or odd.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use vde_tests::places::own_program;

/// A domain whose network needs nothing outside; its QEMU is a user that need not exist.
const DOMAIN: &str = "<domain><name>web</name><uuid>0-1</uuid><memoryBacking><access mode='shared'/></memoryBacking>\
    <metadata><nics xmlns='urn:vde:libvirt:1'><nic mac='02:00:00:00:00:01' link='null://'/></nics></metadata>\
    <devices><interface type='vhostuser'><mac address='02:00:00:00:00:01'/>\
    <source type='unix' path='/run/vdeq/libvirt/web/0.sock' mode='client'/></interface></devices>\
    <seclabel model='dac'><label>+64055:+64054</label></seclabel></domain>";

fn hook(words: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(own_program("vde-libvirt-hook").unwrap());
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    thread::scope(|scope| {
        // One that has nothing to read it for goes before all is written.
        scope.spawn(move || pipe.write_all(input).ok());
        child.wait_with_output().unwrap()
    })
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A script where `/run` is an empty memory disk with these options, and `$1` the hook, where every user reaches it. What it
/// starts ends with it.
fn in_a_world(options: &str, script: &str) -> Output {
    let xml = tempfile::NamedTempFile::new().unwrap();
    fs::write(&xml, DOMAIN).unwrap();
    let whole = format!(
        "mount -t tmpfs none /var/log && mount -t tmpfs -o {options} none /run && exec 3<\"$2\" && \
         mount --bind \"${{1%/*}}\" /mnt && set -- /mnt/vde-libvirt-hook \"$2\" && {script}"
    );
    Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", &whole, "sh"])
        .arg(own_program("vde-libvirt-hook").unwrap())
        .arg(xml.path())
        .env("LC_ALL", "C")
        .env("VDE_TEST_SECRET", "1")
        .output()
        .unwrap()
}

#[test]
fn by_hand_it_says_how_it_is_run() {
    for word in ["--help", "-h"] {
        let help = hook(&[word], b"");
        assert!(help.status.success() && text(&help.stdout).contains("/etc/libvirt/hooks/qemu.d/vde"));
    }
    let version = hook(&["--version"], b"");
    assert!(version.status.success() && text(&version.stdout).starts_with("vde-libvirt-hook "));
    for words in [&[][..], &["web"], &["web", "prepare"], &["--start"]] {
        let output = hook(words, DOMAIN.as_bytes());
        let said = text(&output.stderr);
        assert!(
            output.status.code() == Some(2) && said.contains("--help") && output.stdout.is_empty(),
            "{said}"
        );
    }
    // A domain may be called so.
    assert!(hook(&["--help", "prepare", "begin", "-"], b"<domain/>").stdout.is_empty());
    // Nobody types XML.
    let line = format!("{} web prepare begin -", own_program("vde-libvirt-hook").unwrap().display());
    let typed = Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
    assert!(typed.status.code() == Some(2) && text(&typed.stdout).contains("is a terminal"), "{typed:?}");
}

#[test]
fn without_standard_descriptors_it_does_what_it_does() {
    for words in ["web prepare begin -", "web release end -", "web what ever -", "web"] {
        let program = own_program("vde-libvirt-hook").unwrap();
        let line = format!("exec {} {words} <&- >&- 2>&-", program.display());
        let status = Command::new("sh").args(["-c", &line]).status().unwrap();
        assert_eq!(status.code(), Some(if words == "web" { 2 } else { 0 }), "{words}");
    }
}

/// libvirt takes no XML of more than 4 MiB.
#[test]
fn q_29_other_domains_lose_no_time_whatever_their_size() {
    let filling =
        "<disk type='file'><source file='/images/a'/><alias name='virtio-disk0'/></disk>\n".repeat(5 << 14);
    let xml = format!("<domain><name>web</name><devices>{filling}</devices></domain>");
    assert!(xml.len() > 5 << 20);
    let once = || {
        let begin = Instant::now();
        let output = hook(&["web", "prepare", "begin", "-"], xml.as_bytes());
        assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty());
        begin.elapsed()
    };
    // The machine is busy with other things now and then.
    let is_quick = |time: &Duration| *time < Duration::from_millis(20);
    let slow: Vec<_> = (0..100).map(|_| once()).take_while(|time| !is_quick(time)).collect();
    assert!(slow.len() < 100, "{slow:?}");
}

#[test]
fn where_run_is_full_nothing_is_left() {
    // Of its directories, of its record, of the control socket, of the NIC's.
    for files in 2..=6 {
        let options = format!("size=64k,nr_inodes={files}");
        let script = "\"$1\" web prepare begin - <&3; echo $? \"$(find /run -mindepth 3)\"";
        let output = in_a_world(&options, script);
        let said = text(&output.stderr);
        assert!(text(&output.stdout) == "1 \n" && said.contains("No space left"), "{files}: {output:?}");
    }
    // No place for what is in the record.
    let script = "head -c 64k /dev/zero >/run/full; \"$1\" web prepare begin - <&3; echo $? \"$(find /run -mindepth 3)\"";
    let output = in_a_world("size=64k", script);
    assert!(text(&output.stdout) == "1 \n" && text(&output.stderr).contains("vm.json"), "{output:?}");
}

/// Whatever libvirt was started with, and has open, its back ends begin anew.
#[test]
fn the_back_end_inherits_nothing() {
    let script = r#"
        trap '' TERM INT HUP PIPE
        exec 7>/run/precious
        "$1" web prepare begin - <&3 || exit
        pid=$(pgrep -x vhost-user-vde)
        tr '\0' ' ' </proc/$pid/environ; echo
        readlink /proc/$pid/fd/* /proc/$pid/cwd
        grep -E '^(Uid|Groups|CapEff|NoNewPrivs)' /proc/$pid/status
        ls -l /run/vdeq/libvirt/web
        kill $pid
        while pgrep -x vhost-user-vde >/run/pids; do :; done
        exec 3<"$2"
        "$1" web release end - <&3
        find /run -mindepth 3
    "#;
    let output = in_a_world("size=1m", script);
    let said = text(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(said.lines().next().unwrap().trim(), "PATH=/usr/local/bin:/usr/bin:/bin");
    assert!(!said.contains("precious") && said.lines().any(|line| line == "/"), "{said}");
    for line in
        ["Uid:\t64055\t64055\t64055\t64055", "Groups:\t64054 ", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"]
    {
        assert!(said.lines().any(|found| found == line), "{line} is not in {said}");
    }
    let (_, listing) = said.split_once("total ").unwrap();
    let listing: Vec<Vec<&str>> =
        listing.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let owners: Vec<_> = listing.iter().map(|row| (row[0], row[2], *row.last().unwrap())).collect();
    let expected = [
        ("srw-------", "64055", "0.sock"),
        ("srw-------", "root", "control.sock"),
        ("-rw-------", "root", "vm.json"),
    ];
    assert_eq!(owners, expected);
}
