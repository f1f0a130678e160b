//! Domains of a real libvirt that move from one host to another while they run, with networks that both hosts reach.
//!
//! The hosts are two libvirts on one machine, each in a world of its own. They talk by Unix sockets, as do the QEMUs.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use vde_tests::libvirt::{Version, documented, reachable};
use vde_tests::process::{Owned, wait_until};
use vde_tests::{Console, Libvirt, Station, Switch};

const LIMIT: Duration = Duration::from_secs(60);
/// The host on the switch that guests ping.
const HOST: u8 = 9;
/// Slow enough that something can be done meanwhile: the guest has 256 MiB.
const SLOWLY: [&str; 2] = ["--bandwidth", "1"];

/// Two hosts, a switch that both have where the documentation has it, and somebody on it.
struct Hosts {
    home: Libvirt,
    away: Libvirt,
    switch: Switch,
    _station: Station,
}

impl Hosts {
    fn start(version: Version) -> Result<Self> {
        let home = Libvirt::with_hook(version)?;
        let away = home.another_host(version)?;
        let switch = home.switch()?;
        away.place(&switch)?;
        let station = Station::start(&switch, HOST)?;
        station.wait_plugged(&switch)?;
        Ok(Self { home, away, switch, _station: station })
    }

    /// The documented domain runs at home, and reaches its network.
    fn start_web(&self) -> Result<Console> {
        self.home.define(&documented("web")?)?;
        self.home.virsh(&["start", "web"])?;
        let mut web = self.home.console("web")?;
        ping(&mut web)?;
        Ok(web)
    }

    /// All is as it was before an attempt to move: the guest runs on with its network, and nothing of it is away.
    fn stayed(&self, web: &mut Console) -> Result<()> {
        ensure!(self.home.virsh(&["domstate", "web"])?.trim() == "running");
        let is_empty = || Ok(self.away.virsh(&["list", "--all", "--name"])?.trim().is_empty().then_some(()));
        wait_until("no domain to be left", LIMIT, is_empty)?;
        self.away.wait_nothing_left()?;
        self.switch.wait_ports("the host and one NIC", LIMIT, |ports| ports.len() == 2)?;
        ping(web)
    }
}

fn ping(console: &mut Console) -> Result<()> {
    console.ping(&format!("10.0.0.{HOST}"))
}

/// The words that move a domain.
fn words(to: &Libvirt, options: &[&str], domain: &str) -> Vec<String> {
    let start = ["virsh", "migrate", "--live"].iter().chain(options).map(|word| (*word).to_owned());
    let socket = format!("unix://{}/migration", to.folder().display());
    start.chain([domain.into(), to.uri(), "--migrateuri".into(), socket]).collect()
}

fn migrate(from: &Libvirt, to: &Libvirt, options: &[&str]) -> Result<()> {
    migrate_domain("web", from, to, options)
}

fn migrate_domain(domain: &str, from: &Libvirt, to: &Libvirt, options: &[&str]) -> Result<()> {
    let words = words(to, options, domain);
    from.run_ok(&words.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
}

/// There and back, with a NIC that was plugged in and its cable moved, while the guest pings.
fn there_and_back(version: Version) -> Result<()> {
    let hosts = Hosts::start(version)?;
    let Hosts { home, away, .. } = &hosts;
    let mut web = hosts.start_web()?;
    let ((_first, before), (second, locator)) = (reachable()?, reachable()?);
    let _station = Station::start(&second, 8)?;
    home.vdectl(&["libvirt", "attach", "web", &before])?;
    home.vdectl(&["link", "web", "ua-vde0", "replace", "link0", &locator])?;
    web.until("ip link set eth1 up && ip addr add 10.0.0.2/32 dev eth1 && ip route add 10.0.0.8 dev eth1")?;
    web.ping("10.0.0.8")?;

    // Of 10 seconds, less than 2 are lost.
    web.say(&format!("ping -i 0.1 -c 100 10.0.0.{HOST} >/tmp/pings &"))?;
    web.until("grep -q seq= /tmp/pings")?;
    migrate(home, away, &["--p2p"])?;
    home.wait_nothing_left()?;
    let mut web = away.console("web")?;
    web.until("grep 'packets received' /tmp/pings")?;
    web.until("[ $(grep -c seq= /tmp/pings) -gt 80 ]")?;
    web.ping("10.0.0.8")?;
    second.wait_ports("its host and the NIC", LIMIT, |ports| ports.len() == 2)?;
    let list = away.vdectl(&["list", "web"])?;
    ensure!(list.contains("ua-vde0") && list.contains(&locator), "{list}");
    ensure!(away.vdectl(&["libvirt", "check", "web"])?.contains("nothing is missing"));

    // Back by virsh itself instead of by the daemons, for good; the second NIC has gone before.
    away.vdectl(&["libvirt", "detach", "web", "ua-vde0"])?;
    migrate(away, home, &["--persistent", "--undefinesource"])?;
    away.wait_nothing_left()?;
    let mut web = home.console("web")?;
    ping(&mut web)?;
    home.virsh(&["destroy", "web"])?;
    home.wait_nothing_left()?;
    hosts.switch.wait_ports("the host alone", LIMIT, |ports| ports.len() == 1).map(drop)
}

#[test]
fn q_28_a_domain_moves_to_another_host_and_back_on_libvirt_11() {
    there_and_back(Version::V11).unwrap();
}

#[test]
fn q_28_a_domain_moves_to_another_host_and_back_on_libvirt_9() {
    there_and_back(Version::V9).unwrap();
}

#[test]
fn q_28_a_domain_that_cannot_move_stays_with_its_network() {
    let hosts = Hosts::start(Version::V11).unwrap();
    let Hosts { home, away, .. } = &hosts;
    let mut web = hosts.start_web().unwrap();

    away.run_ok(&["rm", "/run/vde/lab"]).unwrap();
    let said = migrate(home, away, &["--p2p"]).unwrap_err().to_string();
    assert!(said.contains("domain web: there is no switch \"/run/vde/lab\""), "{said}");
    hosts.stayed(&mut web).unwrap();
    away.place(&hosts.switch).unwrap();

    // The directory of its sockets is named for it.
    let said = migrate(home, away, &["--p2p", "--dname", "web2"]).unwrap_err().to_string();
    assert!(said.contains("call it /run/vdeq/libvirt/web2/0.sock"), "{said}");
    hosts.stayed(&mut web).unwrap();

    let said = migrate(home, away, &["--p2p", "--postcopy"]).unwrap_err().to_string();
    assert!(said.contains("vhost-user backend not capable of postcopy"), "{said}");
    hosts.stayed(&mut web).unwrap();

    // Half-way: somebody thinks better of it, the other QEMU dies.
    for breaks in [
        |home: &Libvirt, _: &Libvirt| home.virsh(&["domjobabort", "web"]).map(drop),
        |_: &Libvirt, away: &Libvirt| away.run_ok(&["pkill", "-9", "qemu-system"]).map(drop),
    ] {
        half_way(home, away, breaks).unwrap();
        hosts.stayed(&mut web).unwrap();
    }
    migrate(home, away, &["--p2p"]).unwrap();
    ping(&mut away.console("web").unwrap()).unwrap();
    home.wait_nothing_left().unwrap();
    away.virsh(&["destroy", "web"]).unwrap();
    away.wait_nothing_left().unwrap();
}

/// Begins to move the domain, and does something when memory is on its way.
fn half_way(
    home: &Libvirt,
    away: &Libvirt,
    breaks: impl FnOnce(&Libvirt, &Libvirt) -> Result<()>,
) -> Result<()> {
    let words = words(away, &[&["--p2p"][..], &SLOWLY].concat(), "web");
    let mut command = home.command(&words.iter().map(String::as_str).collect::<Vec<_>>());
    command.stderr(Stdio::null());
    let mut moving = Owned::new(command.spawn()?, "virsh migrate");
    wait_until("memory on its way", LIMIT, || {
        let info = home.run(&["virsh", "domjobinfo", "web"])?;
        Ok(String::from_utf8_lossy(&info.stdout).contains("Memory processed").then_some(()))
    })?;
    ensure!(away.processes("vhost-user-vde")?.len() == 1, "no back end waits for it");
    breaks(home, away)?;
    ensure!(!moving.wait(LIMIT)?.success(), "it has moved all the same");
    Ok(())
}

/// What is called otherwise there is told by the XML that goes along.
#[test]
fn a_domain_may_find_another_name_and_network_where_it_goes() {
    let hosts = Hosts::start(Version::V11).unwrap();
    let Hosts { home, away, .. } = &hosts;
    hosts.start_web().unwrap();
    away.run_ok(&["mv", "/run/vde/lab", "/run/vde/there"]).unwrap();
    let xml = home.virsh(&["dumpxml", "--migratable", "web"]).unwrap();
    let changed = xml.replace("vde:///run/vde/lab", "vde:///run/vde/there");
    let changed = changed.replace("/run/vdeq/libvirt/web/", "/run/vdeq/libvirt/web2/");
    let file = home.write("there.xml", &changed).unwrap();
    migrate(home, away, &["--p2p", "--dname", "web2", "--xml", &file]).unwrap();
    home.wait_nothing_left().unwrap();
    ping(&mut away.console("web2").unwrap()).unwrap();
    away.virsh(&["destroy", "web2"]).unwrap();
    away.wait_nothing_left().unwrap();
}

/// The passt door, and vdeq as the emulator.
#[test]
fn the_other_ways_move_as_well() {
    let hosts = Hosts::start(Version::V11).unwrap();
    let Hosts { home, away, .. } = &hosts;
    for host in [home, away] {
        for (program, name) in [("vde-passt", "passt"), ("vdeq", "vdeq"), ("vdeq", "vdeqemu-system-x86_64")] {
            host.install(program, name).unwrap();
        }
    }
    for domain in ["desk", "old"] {
        let file = home.write("domain.xml", &documented(domain).unwrap()).unwrap();
        home.virsh(&["create", &file]).unwrap();
        let mut guest = home.console(domain).unwrap();
        ping(&mut guest).unwrap();
        guest.until("kept=before").unwrap();
        migrate_domain(domain, home, away, &["--p2p"]).unwrap();
        let mut guest = away.console(domain).unwrap();
        guest.until("[ \"$kept\" = before ]").unwrap();
        ping(&mut guest).unwrap();
        home.wait_nothing_left().unwrap();
        away.virsh(&["destroy", domain]).unwrap();
        away.wait_nothing_left().unwrap();
    }
    let left = home.run_ok(&["find", "/run/libvirt/qemu/passt", "-type", "s"]).unwrap();
    assert!(left.is_empty(), "{left}");
}
