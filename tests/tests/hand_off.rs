//! A cable that moves from one network to another while the guest works: `vdectl link VM NIC replace`.
//!
//! Both networks are real switches with a tap in a namespace, where a bridge joins them; so what is behind the bridge can be
//! reached through either.
//!
//! ```text
//!  guest ──┬── switch a ── tap a ──┐
//!          └── switch b ── tap b ──┴ bridge 10.0.0.2, 10.0.1.2
//! ```

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use vde_tests::namespace::Namespace;
use vde_tests::pinger::{Pinger, Request};
use vde_tests::process::{Owned, wait_until};
use vde_tests::{Guest, Machine, Switch, places, vdectl};

const LIMIT: Duration = Duration::from_secs(60);
const MAC: &str = "52:54:00:00:00:01";
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const SECOND_MAC: &str = "52:54:00:00:00:02";
const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);

/// Two switches, joined by a bridge in a namespace.
struct Networks {
    switches: [Switch; 2],
    _taps: Vec<Owned>,
    space: Namespace,
}

impl Networks {
    fn start() -> Self {
        let space = Namespace::new().unwrap();
        space.ip("link add bridge type bridge forward_delay 0").unwrap();
        space.ip("addr add 10.0.0.2/24 dev bridge").unwrap();
        space.ip("addr add 10.0.1.2/24 dev bridge").unwrap();
        let switches = [Switch::start().unwrap(), Switch::start().unwrap()];
        let mut taps = Vec::new();
        for (switch, tap) in switches.iter().zip(["tap0", "tap1"]) {
            space.ip(&format!("tuntap add dev {tap} mode tap")).unwrap();
            space.ip(&format!("link set {tap} master bridge up")).unwrap();
            let [program, words @ ..] = space.prefix();
            let mut plug = Command::new(program);
            plug.args(words)
                .arg(places::system_program("vde_plug2tap").unwrap())
                .arg("-s")
                .arg(switch.path());
            plug.arg(tap).stdin(Stdio::null()).stdout(Stdio::null());
            taps.push(Owned::new(plug.spawn().unwrap(), "vde_plug2tap"));
            switch.wait_ports("the tap on its switch", LIMIT, |ports| ports.len() == 1).unwrap();
        }
        space.ip("link set bridge up").unwrap();
        Self { switches, _taps: taps, space }
    }

    /// The locator of one of them.
    fn locator(&self, number: usize) -> String {
        format!("vde://{}", self.switches[number].path().display())
    }

    /// A guest with two NICs on the first.
    fn guest(&self, name: &str) -> Guest {
        let machine = Machine::new().through_vdeq().unwrap();
        let first = self.switches[0].path();
        let machine = machine.vdeq_nic(&first, MAC).address(0, "10.0.0.1/24");
        let machine = machine.vdeq_nic(&first, SECOND_MAC).address(1, "10.0.1.1/24");
        Guest::start(name, &machine).unwrap()
    }

    /// A server of iperf3 behind the bridge.
    fn serve(&self) -> Owned {
        let [program, words @ ..] = self.space.prefix();
        let mut command = Command::new(program);
        command.args(words).arg(places::system_program("iperf3").unwrap()).arg("-s").stdout(Stdio::null());
        let server = Owned::new(command.spawn().unwrap(), "iperf3 -s");
        wait_until("iperf3 to listen", LIMIT, || {
            let table = self.space.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp6")?))?;
            // Port 5201 in state "listen".
            Ok(table.lines().any(|line| line.contains(":1451 ") && line.contains(" 0A ")).then_some(()))
        })
        .unwrap();
        server
    }

    /// Pings an address of the guest once in each millisecond.
    fn ping(&self, mac: &str, address: Ipv4Addr) -> Pinger {
        // An address that is asked for meanwhile costs requests that nobody is to blame for.
        self.space.ip(&format!("neigh replace {address} lladdr {mac} dev bridge")).unwrap();
        let pinger = Pinger::start(&self.space, address, Duration::from_millis(1)).unwrap();
        pinger.wait_answers(100, LIMIT).unwrap();
        pinger
    }
}

/// Moves the guest's cable from one network to another; gives what was said of it.
fn replace(vm: &str, old: &str, new: &str) -> String {
    vdectl::run_ok(&["link", vm, MAC, "replace", old, new]).unwrap()
}

/// How often a cable is moved in a test.
const MOVES: usize = 10;

/// Requests that were lost though the machine was quick: those of another ping at that time were all answered at once.
fn lost(requests: &[Request], others: &[Request]) -> Vec<Request> {
    let near = |other: &&Request, sent: Instant| {
        let (early, late) = (other.sent.min(sent), other.sent.max(sent));
        late - early < Duration::from_millis(300)
    };
    let is_quick = |other: &Request| other.answer.is_some_and(|time| time < Duration::from_millis(10));
    let is_ours = |sent: Instant| {
        let mut around = others.iter().filter(|other| near(other, sent)).peekable();
        around.peek().is_some() && around.all(is_quick)
    };
    requests.iter().filter(|request| request.answer.is_none() && is_ours(request.sent)).copied().collect()
}

/// A second NIC, whose cable stays, shows what is lost because the machine has too much to do: old programs drop what they do
/// not take within ten milliseconds.
#[test]
fn a_ping_each_millisecond_loses_nothing() {
    let networks = Networks::start();
    let guest = networks.guest("handoff-ping");
    let vm = guest.pid().to_string();
    let (moved, staying) = (networks.ping(MAC, GUEST), networks.ping(SECOND_MAC, SECOND));
    for number in 0..MOVES {
        let (old, new) = (networks.locator(number % 2), networks.locator((number + 1) % 2));
        let said = replace(&vm, &old, &new);
        assert!(said.starts_with(&format!("{MAC}: link")) && said.contains(&new), "{said}");
        // A network that has not heard where the guest is would wait until the guest asks for something, after five seconds.
        moved.wait_answers(100, Duration::from_millis(4500)).unwrap();
    }
    let (moved, staying) = (moved.finish().unwrap(), staying.finish().unwrap());
    let lost = lost(&moved, &staying);
    assert!(lost.is_empty(), "{} of {}: {lost:?}", lost.len(), moved.len());
    // Their taps, and on the first the guest.
    for (switch, count) in networks.switches.iter().zip([3, 1]) {
        switch.wait_ports("the ports in use", LIMIT, |ports| ports.len() == count).unwrap();
    }
    guest.power_off(LIMIT).unwrap();
}

/// Whether bytes passed in each half second of a transfer, which lasted for at least so many, as iperf3 tells in JSON. After it
/// had to wait for the processor, it counts again at once: such an interval has no length, and proves nothing.
fn went_on(text: &str, seconds: f64) -> bool {
    let report: Value = serde_json::from_str(text).unwrap();
    let intervals = report["intervals"].as_array().unwrap_or_else(|| panic!("{text}"));
    let number = |interval: &Value, what: &str| interval["sum"][what].as_f64().unwrap();
    let last = intervals.last().map(|interval| number(interval, "end")).unwrap_or_default();
    let passed = |interval| number(interval, "bytes") > 0.0 || number(interval, "seconds") < 0.25;
    last >= seconds && intervals.iter().all(passed)
}

#[test]
fn a_tcp_transfer_goes_on_and_survives_the_old_switch() {
    let mut networks = Networks::start();
    let mut guest = networks.guest("handoff-tcp");
    let vm = guest.pid().to_string();
    let _server = networks.serve();
    for direction in ["", "-R"] {
        let job = guest.start_job(&format!("iperf3 -J -i 0.5 -t 16 {direction} -c 10.0.0.2")).unwrap();
        // Once it runs: nobody else sends so much.
        for number in 0..4 {
            let switch = &networks.switches[number % 2];
            let before = passed(switch);
            switch.wait_ports("a transfer", LIMIT, |_| passed(switch) > before + (1 << 20)).unwrap();
            replace(&vm, &networks.locator(number % 2), &networks.locator((number + 1) % 2));
        }
        let output = guest.finish_job(job, LIMIT).unwrap();
        assert!(output.status == 0 && went_on(&output.text, 15.5), "{direction}: {}", output.text);
    }

    let job = guest.start_job("iperf3 -J -i 0.5 -t 4 -c 10.0.0.2").unwrap();
    let before = passed(&networks.switches[0]);
    wait_until(
        "a transfer",
        LIMIT,
        || Ok((passed(&networks.switches[0]) > before + (1 << 20)).then_some(())),
    )
    .unwrap();
    replace(&vm, &networks.locator(0), &networks.locator(1));
    networks.switches[0].kill().unwrap();
    let output = guest.finish_job(job, LIMIT).unwrap();
    assert!(output.status == 0 && went_on(&output.text, 3.5), "{}", output.text);
    drop(networks.ping(MAC, GUEST).finish().unwrap());
    guest.power_off(LIMIT).unwrap();
}

/// Bytes that came into a switch, by all its ports.
fn passed(switch: &Switch) -> u64 {
    switch.ports().unwrap().iter().map(|port| port.received.1).sum()
}
