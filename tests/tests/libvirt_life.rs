//! Whole lives of domains of a real libvirt, two on one switch: what a person does to them, and what they do themselves.

use std::time::Duration;

use anyhow::{Result, ensure};
use vde_tests::libvirt::{Version, documented, reachable};
use vde_tests::process::wait_until;
use vde_tests::{Console, Libvirt, Station, Switch};

const LIMIT: Duration = Duration::from_secs(60);
/// What a log may have after all that, of a few lines for each start.
const LOG_MAX: u64 = 16 << 10;

/// The documented domain, and a second one beside it.
fn web_and_db() -> Result<[String; 2]> {
    let web = documented("web")?;
    let db = web.replace("<name>web<", "<name>db<").replace("/libvirt/web/", "/libvirt/db/");
    let db = db.replace("52:54:00:5f:00:01", "52:54:00:5f:00:02").replace("10.0.0.1/24", "10.0.0.2/24");
    Ok([web, db])
}

/// The second NIC of a guest gets an address, once it is there.
fn set_up_second(console: &mut Console, address: &str) -> Result<()> {
    console.until("ip link set eth1 up")?;
    console.until(&format!("ip addr add {address} dev eth1"))
}

/// The guest is the one it was, and has both networks.
fn goes_on(console: &mut Console, kept: &str) -> Result<()> {
    console.until(&format!("[ \"$kept\" = {kept} ]"))?;
    console.ping("10.0.0.2")?;
    console.ping("10.0.1.2")
}

/// Nobody is left on a switch.
fn wait_empty(switch: &Switch) -> Result<()> {
    switch.wait_ports("nobody on the switch", LIMIT, <[_]>::is_empty).map(drop)
}

fn two_whole_lives(version: Version) -> Result<()> {
    let libvirt = Libvirt::with_hook(version)?;
    let lab = libvirt.switch()?;
    let ((first, first_name), (second, second_name)) = (reachable()?, reachable()?);
    for xml in web_and_db()? {
        libvirt.define(&xml)?;
    }
    libvirt.virsh(&["start", "db"])?;
    libvirt.virsh(&["start", "web"])?;
    let (mut web, mut db) = (libvirt.console("web")?, libvirt.console("db")?);
    web.ping("10.0.0.2")?;
    web.until("kept=before")?;

    // A second NIC each, on two switches; then the cable of one is moved to that of the other.
    libvirt.vdectl(&["libvirt", "attach", "web", &first_name, "--config"])?;
    libvirt.vdectl(&["libvirt", "attach", "db", &second_name])?;
    set_up_second(&mut web, "10.0.1.1/24")?;
    set_up_second(&mut db, "10.0.1.2/24")?;
    web.until("! ping -c 1 -W 1 10.0.1.2 >/dev/null")?;
    libvirt.vdectl(&["link", "web", "ua-vde0", "replace", "link0", &second_name])?;
    goes_on(&mut web, "before")?;
    wait_empty(&first)?;

    let file = "/var/lib/libvirt/qemu/save/web.save";
    libvirt.virsh(&["save", "web", file])?;
    lab.wait_ports("db alone", LIMIT, |ports| ports.len() == 1)?;
    libvirt.virsh(&["restore", file])?;
    // Cables stay where they were moved.
    let mut web = libvirt.console("web")?;
    goes_on(&mut web, "before")?;

    for domain in ["web", "db"] {
        libvirt.virsh(&["managedsave", domain])?;
    }
    libvirt.wait_nothing_left()?;
    [&lab, &first, &second].into_iter().try_for_each(wait_empty)?;
    for domain in ["web", "db"] {
        libvirt.virsh(&["start", domain])?;
    }
    let mut web = libvirt.console("web")?;
    goes_on(&mut web, "before")?;

    libvirt.virsh(&["suspend", "web"])?;
    libvirt.virsh(&["resume", "web"])?;
    goes_on(&mut web, "before")?;
    starts_again(&libvirt, &mut web)?;

    for domain in ["web", "db"] {
        libvirt.virsh(&["destroy", domain])?;
    }
    libvirt.wait_nothing_left()?;
    [&lab, &first, &second].into_iter().try_for_each(wait_empty)?;
    let log = libvirt.run_ok(&["stat", "-c", "%s", "/var/log/libvirt/qemu/web-vde.log"])?;
    ensure!(log.trim().parse::<u64>()? < LOG_MAX, "the log has {log} bytes");
    // With --config a NIC is there at the next start, without it not.
    for (domain, count) in [("web", 2), ("db", 1)] {
        libvirt.virsh(&["start", "--paused", domain])?;
        ensure!(libvirt.virsh(&["-q", "domiflist", domain])?.trim().lines().count() == count, "{domain}");
        libvirt.virsh(&["destroy", domain])?;
    }
    libvirt.wait_nothing_left()
}

/// Reset from outside and from inside, the guest boots again with the same NICs. libvirt tells no hook of it.
fn starts_again(libvirt: &Libvirt, web: &mut Console) -> Result<()> {
    let before = libvirt.processes("vhost-user-vde")?;
    for from_inside in [false, true] {
        web.until("kept=before")?;
        match from_inside {
            true => web.say("reboot -f")?,
            false => libvirt.virsh(&["reset", "web"]).map(drop)?,
        }
        web.until("[ -z \"$kept\" ]")?;
        set_up_second(web, "10.0.1.1/24")?;
        goes_on(web, "\"\"")?;
    }
    ensure!(libvirt.processes("vhost-user-vde")? == before, "the back ends were started again");
    Ok(())
}

#[test]
fn q_28_two_domains_ping_and_live_whole_lives_on_libvirt_11() {
    two_whole_lives(Version::V11).unwrap();
}

#[test]
fn q_28_two_domains_ping_and_live_whole_lives_on_libvirt_9() {
    two_whole_lives(Version::V9).unwrap();
}

#[test]
fn a_switch_that_is_missing_costs_no_saved_domain() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let lab = libvirt.switch().unwrap();
    let host = Station::start(&lab, 2).unwrap();
    host.wait_plugged(&lab).unwrap();
    libvirt.define(&documented("web").unwrap()).unwrap();
    libvirt.virsh(&["start", "web"]).unwrap();
    libvirt.console("web").unwrap().until("kept=before").unwrap();
    libvirt.virsh(&["managedsave", "web"]).unwrap();
    libvirt.run_ok(&["mv", "/run/vde/lab", "/run/vde/away"]).unwrap();
    let said = libvirt.virsh(&["start", "web"]).unwrap_err().to_string();
    assert!(said.contains("there is no switch \"/run/vde/lab\""), "{said}");
    libvirt.wait_nothing_left().unwrap();
    libvirt.run_ok(&["mv", "/run/vde/away", "/run/vde/lab"]).unwrap();
    libvirt.virsh(&["start", "web"]).unwrap();
    let mut web = libvirt.console("web").unwrap();
    web.until("[ \"$kept\" = before ]").unwrap();
    web.ping("10.0.0.2").unwrap();

    // QEMU remembers that there was no back end; a person may tell it better.
    libvirt.run_ok(&["pkill", "-9", "vhost-user-vde"]).unwrap();
    web.until("[ $(cat /sys/class/net/eth0/carrier) = 0 ]").unwrap();
    libvirt.virsh(&["managedsave", "web"]).unwrap();
    libvirt.virsh(&["start", "web"]).unwrap();
    let mut web = libvirt.console("web").unwrap();
    web.until("[ $(cat /sys/class/net/eth0/carrier) = 0 ]").unwrap();
    libvirt.virsh(&["qemu-monitor-command", "--hmp", "web", "set_link net0 on"]).unwrap();
    web.ping("10.0.0.2").unwrap();
    libvirt.virsh(&["destroy", "web"]).unwrap();
    libvirt.wait_nothing_left().unwrap();
}

/// Its directory is called as the domain, or by its UUID, which it keeps when it is renamed.
#[test]
fn domains_are_renamed_made_anew_and_end_as_they_like() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let lab = libvirt.switch().unwrap();
    let host = Station::start(&lab, 2).unwrap();
    host.wait_plugged(&lab).unwrap();
    let start_and_end = |name: &str, end: &dyn Fn()| {
        libvirt.virsh(&["start", "--paused", name]).unwrap();
        assert_eq!(libvirt.processes("vhost-user-vde").unwrap().len(), 1);
        end();
        libvirt.wait_nothing_left().unwrap();
    };
    let destroy = |name: &str| libvirt.virsh(&["destroy", name]).map(drop).unwrap();

    libvirt.define(&documented("web").unwrap()).unwrap();
    libvirt.virsh(&["domrename", "web", "www"]).unwrap();
    let said = libvirt.virsh(&["start", "www"]).unwrap_err().to_string();
    assert!(said.contains("call it /run/vdeq/libvirt/www/0.sock"), "{said}");
    let uuid = libvirt.virsh(&["domuuid", "www"]).unwrap().trim().to_owned();
    let by_uuid =
        libvirt.virsh(&["dumpxml", "www"]).unwrap().replace("libvirt/web/0", &format!("libvirt/{uuid}/0"));
    libvirt.define(&by_uuid).unwrap();
    let long = "n".repeat(100);
    for (old, new) in [("www", "ein Name mit Ümlauten"), ("ein Name mit Ümlauten", &*long), (&*long, "web")]
    {
        libvirt.virsh(&["domrename", old, new]).unwrap();
        start_and_end(new, &|| destroy(new));
    }

    // The same name, another UUID; and a definition that goes while the domain runs.
    let xml = libvirt.virsh(&["dumpxml", "web"]).unwrap();
    libvirt.virsh(&["undefine", "web"]).unwrap();
    let other = "11111111-2222-4333-8444-555555555555";
    libvirt.define(&xml.replace(&uuid, other)).unwrap();
    start_and_end("web", &|| {
        libvirt.virsh(&["undefine", "web"]).unwrap();
        destroy("web");
    });

    // A transient one that ends itself where others would boot again.
    let once = documented("web").unwrap().replace("<devices>", "<on_reboot>destroy</on_reboot><devices>");
    let file = libvirt.write("once.xml", &once).unwrap();
    libvirt.virsh(&["create", &file]).unwrap();
    let mut web = libvirt.console("web").unwrap();
    web.ping("10.0.0.2").unwrap();
    web.say("reboot -f").unwrap();
    libvirt.wait_nothing_left().unwrap();
    lab.wait_ports("the host alone", LIMIT, |ports| ports.len() == 1).unwrap();

    // Started with the daemon, as after a boot of the host.
    libvirt.define(&documented("web").unwrap()).unwrap();
    libvirt.virsh(&["autostart", "web"]).unwrap();
    libvirt.run_ok(&["sh", "-c", "pkill -9 -x libvirtd; rm -f /run/libvirt/qemu/autostarted"]).unwrap();
    libvirt.start_daemon().unwrap();
    wait_until("the domain to be started", LIMIT, || {
        Ok(libvirt.virsh(&["domstate", "web"])?.contains("running").then_some(()))
    })
    .unwrap();
    libvirt.console("web").unwrap().ping("10.0.0.2").unwrap();
    destroy("web");
    libvirt.wait_nothing_left().unwrap();
}

/// libvirt leaves the metadata of a NIC that it unplugs; nobody may lose a domain by that.
#[test]
fn a_nic_that_virsh_alone_has_unplugged_costs_no_saved_domain() {
    let libvirt = Libvirt::with_hook(Version::V11).unwrap();
    let mut lab = libvirt.switch().unwrap();
    let host = Station::start(&lab, 2).unwrap();
    host.wait_plugged(&lab).unwrap();
    libvirt.define(&documented("web").unwrap()).unwrap();
    libvirt.virsh(&["start", "web"]).unwrap();
    let mut web = libvirt.console("web").unwrap();
    web.until("kept=before").unwrap();
    libvirt.vdectl(&["libvirt", "attach", "web", "vde:///run/vde/lab"]).unwrap();
    web.until("[ -e /sys/class/net/eth1 ]").unwrap();
    libvirt.virsh(&["detach-device-alias", "web", "ua-vde0", "--live"]).unwrap();
    wait_until("the NIC to be gone", LIMIT, || {
        Ok((!libvirt.virsh(&["domiflist", "web"])?.contains("vde0.sock")).then_some(()))
    })
    .unwrap();
    libvirt.virsh(&["managedsave", "web"]).unwrap();
    libvirt.virsh(&["start", "web"]).unwrap();
    let mut web = libvirt.console("web").unwrap();
    web.until("[ \"$kept\" = before ]").unwrap();
    web.ping("10.0.0.2").unwrap();
    let log = libvirt.run_ok(&["cat", "/var/log/libvirt/qemu/web-vde.log"]).unwrap();
    assert!(log.contains("it is passed over; if it was unplugged, remove its <vde:nic>"), "{log}");

    // Everything but the guest is gone, the switch as well: its network comes back when that does.
    lab.kill().unwrap();
    libvirt.run_ok(&["pkill", "-9", "-x", "libvirtd|vhost-user-vde"]).unwrap();
    libvirt.start_daemon().unwrap();
    wait_until("the back end to be there again", LIMIT, || {
        Ok((libvirt.processes("vhost-user-vde")?.len() == 1).then_some(()))
    })
    .unwrap();
    lab.restart(&["-m", "0666"]).unwrap();
    let _host = Station::start(&lab, 2).unwrap();
    web.ping("10.0.0.2").unwrap();
    libvirt.virsh(&["destroy", "web"]).unwrap();
    libvirt.wait_nothing_left().unwrap();
}
