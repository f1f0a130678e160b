//! Schemes that installed plug-ins open, each with frames that really pass. They need Debian's packages
//! `libvdeplug2`, `libvdeplug-slirp`, `-vlan`, `-agno` and `-pcap`, and root for network namespaces.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use vdeplug::{Link, OpenError, OpenErrorKind, PluginError, RxBuf, RxFrame, TxBuf, TxFrame};

use crate::harness::{
    RealSwitch, broadcast, impatient, in_child, need_root, open, open_dir, readable, receive, send, until,
};

/// Where Debian puts plug-ins.
const INSTALLED: &str = "/usr/lib/x86_64-linux-gnu/vdeplug";

/// Set in a process that `strace` watches.
const TRACED: &str = "VDEPLUG_TEST_TRACED";

/// Makes a process run in a network namespace of its own, with loopback.
fn in_namespace(command: Command) -> Command {
    need_root("to make a network namespace");
    let mut outer = Command::new("unshare");
    outer.args(["--net", "--", "sh", "-c", "ip link set lo up multicast on && exec \"$0\" \"$@\""]);
    outer.arg(command.get_program());
    outer
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip (package iproute2)");
    assert!(status.success(), "ip {arguments}");
}

/// Another network namespace, which lives as long as this.
struct Namespace {
    keeper: Child,
}

impl Namespace {
    fn new() -> Self {
        let keeper = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "ip link set lo up && echo ready && read line"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut keeper = keeper.expect("unshare (package util-linux)");
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().expect("piped")).read_line(&mut line).expect("a word");
        assert_eq!(line, "ready\n");
        Self { keeper }
    }

    fn pid(&self) -> u32 {
        self.keeper.id()
    }

    /// Does something inside.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).expect("namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), network).expect("setns");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its shell ends with its standard input.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// Takes what waits on a link, which may be a plug-in's own affairs and no frame.
fn take(link: &dyn Link) -> Vec<Vec<u8>> {
    let mut rooms = vec![[0; 10_000]; 8];
    let bufs: Vec<_> = rooms.iter_mut().map(|room| [RxBuf::new(room)]).collect();
    let mut frames: Vec<_> = bufs.iter().map(|bufs| RxFrame::new(bufs)).collect();
    let got = link.recv(&mut frames).expect("a living link");
    let lens: Vec<_> = frames.iter().take(got).map(|frame| frame.len).collect();
    rooms.iter().zip(lens).map(|(room, len)| room[..len].to_vec()).collect()
}

/// Sends a frame again and again, as a network may lose it, until one as wanted arrives.
fn pass(from: &dyn Link, frame: &[u8], to: &dyn Link, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut found = None;
    until("the frame arrives", || {
        from.send(&[TxFrame::new(&[TxBuf::new(frame)])]).expect("a living link");
        // Own affairs, as of a node that lets peers in.
        take(from);
        found = take(to).into_iter().find(|got| wanted(got));
        found.is_some()
    });
    found.expect("found above")
}

/// A request for the hardware address of 10.0.2.2 by 10.0.2.15.
fn arp_request() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame
        .extend_from_slice(&[2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 2, 15]);
    frame.extend_from_slice(&[0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    frame.resize(60, 0);
    frame
}

fn plugin_error(locator: &str) -> PluginError {
    match vdeplug::open(locator, &impatient()).expect_err(locator) {
        OpenError::Plugin(error) => error,
        other => panic!("{locator}: {other}"),
    }
}

#[test]
fn c_22_unknown_schemes_name_what_there_is() {
    for (locator, message) in [
        (
            "nosuch://x",
            "the scheme \"nosuch\" is not supported: there is no plug-in libvdeplug_nosuch.so; schemes of",
        ),
        ("vdesl://x", "install the package libvdeplug-vdesl"),
        ("../../tmp/x://y", "is no scheme"),
        ("://y", "is no scheme"),
    ] {
        let error = plugin_error(locator);
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.kind(), OpenErrorKind::Usage, "{error}");
    }
}

#[test]
fn c_22_plugin_path_is_all_that_is_searched() {
    let home = open_dir();
    let log = home.path().join("trace");
    let prepare = |command: Command| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-e", "trace=file", "-o"]).arg(&log).arg(command.get_program());
        strace.env("VDEPLUGIN_PATH", "/nowhere/a:/nowhere/b").env(TRACED, "1");
        strace
    };
    in_child("plugins::c_22_plugin_path_is_all_that_is_searched", prepare, || {
        let error = plugin_error("slirp://");
        assert!(error.to_string().contains("\"/nowhere/a:/nowhere/b\", the only ones"), "{error}");
    });
    if std::env::var_os(TRACED).is_none() {
        let text = fs::read_to_string(&log).expect("what strace wrote");
        let lines: Vec<_> = text.lines().filter(|line| line.contains("libvdeplug")).collect();
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert!(lines[0].contains("/nowhere/a/libvdeplug_slirp.so"), "{lines:#?}");
        assert!(lines[1].contains("/nowhere/b/libvdeplug_slirp.so"), "{lines:#?}");
    }
}

#[test]
fn broken_plugins_are_named() {
    let home = open_dir();
    fs::write(home.path().join("libvdeplug_text.so"), "no library").expect("write");
    // A library, but no plug-in.
    let library = fs::canonicalize("/usr/lib/x86_64-linux-gnu/libvdeplug_mod.so.2").expect("libvdeplug2");
    fs::copy(library, home.path().join("libvdeplug_other.so")).expect("copy");
    let prepare = |mut command: Command| {
        command.env("VDEPLUGIN_PATH", home.path());
        command
    };
    in_child("plugins::broken_plugins_are_named", prepare, || {
        for (locator, why) in [("text://", "file too short"), ("other://", "no symbol vdeplug_ops")] {
            let error = plugin_error(locator);
            assert!(error.to_string().contains(why), "{error}");
            assert_eq!(error.kind(), OpenErrorKind::System);
        }
    });
}

#[test]
fn c_28_plugins_of_debian_load() {
    let home = open_dir();
    // Under names that are not native here.
    for (original, name) in [("null", "null1"), ("tap", "tap1"), ("hub", "hub1")] {
        let from = format!("{INSTALLED}/libvdeplug_{original}.so");
        fs::copy(from, home.path().join(format!("libvdeplug_{name}.so"))).expect("libvdeplug2");
    }
    let prepare = |command: Command| {
        let mut command = in_namespace(command);
        command.env("VDEPLUGIN_PATH", home.path());
        command
    };
    in_child("plugins::c_28_plugins_of_debian_load", prepare, || {
        let null = open("null1://");
        send(&*null, &broadcast(1, 60));
        let tap = open("tap1://plug0");
        ip("link set plug0 up");
        send(&*tap, &broadcast(1, 60));
        // The first figures are bytes and frames that were received.
        until("the interface counts the frame", || {
            let text = fs::read_to_string("/proc/thread-self/net/dev").expect("figures");
            let line = text.lines().find_map(|line| line.trim().strip_prefix("plug0:"));
            line.expect("the interface").split_whitespace().nth(1) == Some("1")
        });
        let dir = open_dir();
        let node = dir.path().join("hub").display().to_string();
        let hub = open(format!("hub1://{node}"));
        let peer = std::thread::spawn(move || open(node));
        until("the hub lets the peer in", || {
            take(&*hub);
            peer.is_finished()
        });
        let peer = peer.join().expect("the peer");
        let (frame, back) = (broadcast(7, 1514), broadcast(8, 60));
        assert_eq!(pass(&*hub, &frame, &*peer, |got| got == frame), frame);
        assert_eq!(pass(&*peer, &back, &*hub, |got| got == back), back);
    });
}

#[test]
fn c_29_vlan_tags_what_the_switch_sees() {
    let switch = RealSwitch::start();
    switch.manage("vlan/create 5");
    let tagged = open(switch.at("[2]"));
    switch.manage("vlan/addport 5 2");
    let inner = open(format!("vlan://5{{{}}}", switch.at("[1]")));
    switch.manage("vlan/addport 5 1");
    assert_eq!(switch.plugs(), 2);
    let frame = broadcast(1, 60);
    let outside = [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat();
    send(&*inner, &frame);
    assert_eq!(receive(&*tagged), outside);
    send(&*tagged, &outside);
    assert_eq!(receive(&*inner), frame);
    // Its end is that of the nested network.
    assert!(inner.control_fd().is_some());
    inner.check_control().expect("a living switch");
    drop(switch);
    assert!(readable(inner.control_fd().expect("a switch has one")));
    inner.check_control().expect_err("a dead switch");
}

#[test]
fn vlan_changes_tags_and_keeps_lengths() {
    let switch = RealSwitch::start();
    // Tag 7 inside is tag 9 outside, and 8 is 8.
    let inner = open(format!("vlan://[tag=7-9:8]{{{}}}", switch.at("[1]")));
    let outer = open(switch.at("[2]"));
    for tag in [8, 9] {
        switch.manage(&format!("vlan/create {tag}"));
        switch.manage(&format!("vlan/addport {tag} 1"));
        switch.manage(&format!("vlan/addport {tag} 2"));
    }
    let tagged = |tag: u8| {
        let mut frame = broadcast(1, 118);
        frame[12..20].copy_from_slice(&[0x81, 0, 0, tag, 8, 0, 0x45, 0]);
        frame[20..22].copy_from_slice(&[0, 100]);
        frame
    };
    for (inside, outside) in [(7, 9), (8, 8)] {
        send(&*inner, &tagged(inside));
        assert_eq!(receive(&*outer), tagged(outside));
        send(&*outer, &tagged(outside));
        assert_eq!(receive(&*inner), tagged(inside));
    }
}

#[test]
fn nested_errors_are_found_out() {
    let error = plugin_error("vlan://5{/nowhere/sw}");
    assert_eq!(error.kind(), OpenErrorKind::NotFound);
    assert!(error.to_string().contains("cannot open \"vlan://5{/nowhere/sw}\""), "{error}");
}

#[test]
fn slirp_answers() {
    for _ in 0..10 {
        let link = open("slirp://");
        send(&*link, &arp_request());
        let answer = receive(&*link);
        assert_eq!(answer[..6], [2, 0, 0, 0, 0, 1]);
        assert_eq!((&answer[12..14], answer[21], &answer[28..32]), (&[8, 6][..], 2, &[10, 0, 2, 2][..]));
        let total = link.stats().total;
        assert_eq!((total.tx_frames, total.tx_bytes, total.rx_frames), (1, 60, 1));
    }
}

#[test]
fn agno_passes_and_hides() {
    let switch = RealSwitch::start();
    let home = open_dir();
    let key = home.path().join("key");
    fs::write(&key, "0123456789abcdef").expect("write");
    let locator = format!("agno://{}{{{}}}", key.display(), switch.at(""));
    let (a, b, other) = (open(&locator), open(&locator), open(switch.at("")));
    let frame = broadcast(0x5a, 100);
    assert_eq!(pass(&*a, &frame, &*b, |got| got == frame), frame);
    let seen = receive(&*other);
    assert_eq!(seen[12..14], [0xa6, 0xde]);
    assert!(!seen.windows(8).any(|bytes| bytes == [0x5a; 8]), "readable: {seen:02x?}");
}

#[test]
fn pcap_captures_and_injects() {
    in_child("plugins::pcap_captures_and_injects", in_namespace, || {
        ip("link add plug0 type veth peer name plug1");
        ip("link set plug0 up");
        ip("link set plug1 up");
        let (a, b) = (open("pcap://plug0"), open("pcap://plug1"));
        let frame = broadcast(1, 200);
        assert_eq!(pass(&*a, &frame, &*b, |got| got == frame), frame);
        let back = broadcast(2, 1514);
        assert_eq!(pass(&*b, &back, &*a, |got| got == back), back);
    });
}

#[test]
fn vxvde_joins_processes_of_a_host() {
    in_child("plugins::vxvde_joins_processes_of_a_host", in_namespace, || {
        ip("route add 239.0.0.0/8 dev lo");
        let (a, b) = (open("vxvde://239.1.2.3"), open("vxvde://239.1.2.3"));
        both_ways(&a, &b);
    });
}

#[test]
fn vxlan_joins_hosts() {
    in_child("plugins::vxlan_joins_hosts", in_namespace, || {
        let other = Namespace::new();
        ip(&format!("link add plug0 type veth peer name plug1 netns {}", other.pid()));
        ip("address add 192.0.2.1/24 dev plug0");
        ip("link set plug0 up");
        ip("route add 239.0.0.0/8 dev plug0");
        let a = open("vxlan://239.1.2.3/vni=42");
        let b = other.inside(|| {
            ip("address add 192.0.2.2/24 dev plug1");
            ip("link set plug1 up");
            ip("route add 239.0.0.0/8 dev plug1");
            open("vxlan://239.1.2.3/vni=42")
        });
        both_ways(&a, &b);
    });
}

fn both_ways(a: &Arc<dyn Link>, b: &Arc<dyn Link>) {
    let (there, back) = (broadcast(1, 60), broadcast(2, 1400));
    assert_eq!(pass(&**a, &there, &**b, |got| got == there), there);
    assert_eq!(pass(&**b, &back, &**a, |got| got == back), back);
    let mut unicast = broadcast(2, 300);
    unicast[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    assert_eq!(pass(&**b, &unicast, &**a, |got| got == unicast), unicast);
}

#[test]
fn missing_group_is_the_plug_ins_to_judge() {
    let home: PathBuf = open_dir().path().join("gone");
    let options = vdeplug::OpenOptions { group: Some("a\0b".into()), ..impatient() };
    let error = vdeplug::open(&format!("vlan://5{{{}}}", home.display()), &options).expect_err("a zero byte");
    assert!(matches!(error, OpenError::Plugin(PluginError::Nul)), "{error}");
}
