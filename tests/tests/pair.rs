//! Two guests started through `vdeq` talk over one `vde_switch`: every kind of traffic, on each QEMU and kernel.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vde_tests::guest::IPERF_SERVER;
use vde_tests::{Guest, Kernel, Machine, Qemu, Switch};

const PING_LIMIT: Duration = Duration::from_secs(60);
const COPY_LIMIT: Duration = Duration::from_secs(240);
const END_LIMIT: Duration = Duration::from_secs(60);
/// What is copied by TCP and compared by SHA-256.
const COPY_MEBIBYTES: u32 = 64;

fn machine(switch: &Switch, number: u8, qemu: Qemu, kernel: Kernel) -> Result<Machine> {
    Ok(Machine::new()
        .through_vdeq()?
        .qemu(qemu)
        .kernel(kernel)
        .vdeq_nic(&switch.path(), &format!("52:54:00:00:00:{number:02x}"))
        .address(0, &format!("10.0.0.{number}/24"))
        .address(0, &format!("fd00::{number}/64")))
}

/// Pings of all sizes, both ways, by both protocols; neighbours are found by ARP and by IPv6 neighbour discovery.
fn pings(guests: &mut [Guest]) -> Result<()> {
    for (guest, other) in guests.iter_mut().zip([2, 1]) {
        guest.ping(10, &format!("10.0.0.{other}"))?;
        for size in [1472, 20_000] {
            guest.ping(3, &format!("-s {size} 10.0.0.{other}"))?;
        }
        for size in [56, 20_000] {
            guest.ping(3, &format!("-6 -s {size} fd00::{other}"))?;
        }
        let neighbours = guest.run_ok("ip neigh", PING_LIMIT)?;
        let mac = format!("52:54:00:00:00:{other:02x}");
        for address in [format!("10.0.0.{other}"), format!("fd00::{other}")] {
            let known = |line: &str| line.starts_with(&address) && line.contains(&mac);
            ensure!(neighbours.lines().any(known), "{address} is not {mac} in: {neighbours}");
        }
        // All-nodes multicast: the other guest answers from its link-local address.
        let text = guest.run_ok("ping -6 -c 2 -W 5 -I eth0 ff02::1", PING_LIMIT)?;
        ensure!(text.contains(&format!("fe80::5054:ff:fe00:{other:x}")), "multicast: {text}");
    }
    Ok(())
}

/// Copies random bytes by TCP and compares their hashes.
fn copy(guests: &mut [Guest]) -> Result<()> {
    let [sender, receiver] = guests else { anyhow::bail!("two guests") };
    // busybox's nc ends with its standard input, so that is a pipe which nobody closes.
    receiver.run_ok("mkfifo /tmp/open", PING_LIMIT)?;
    let listen = receiver.start_job("nc -l -p 5000 <>/tmp/open | sha256sum")?;
    sender.run_ok(&format!("dd if=/dev/urandom of=/tmp/data bs=1M count={COPY_MEBIBYTES}"), COPY_LIMIT)?;
    sender.run_ok("nc 10.0.0.2 5000 </tmp/data", COPY_LIMIT)?;
    let sent = sender.run_ok("sha256sum </tmp/data", COPY_LIMIT)?;
    let received = receiver.finish_job(listen, COPY_LIMIT)?.text;
    ensure!(sent.len() > 64 && sent == received, "sent {sent}, received {received}");
    Ok(())
}

/// Datagrams of which next to none may be lost, at a rate far below what the guests can do: the queue of Debian's switch, some
/// 90 frames long, then lasts for a second in which somebody does not come to run.
fn datagrams(guests: &mut [Guest]) -> Result<()> {
    let [sender, receiver] = guests else { anyhow::bail!("two guests") };
    receiver.run_ok(IPERF_SERVER, PING_LIMIT)?;
    let report = sender.run_ok("iperf3 -u -b 1M -t 3 -f m -c 10.0.0.2", PING_LIMIT)?;
    // "[  5]   0.00-3.00   sec  0.36 MBytes  1.00 Mbits/sec  0.029 ms  0/259 (0%)  receiver"
    let line = report.lines().find(|l| l.contains("receiver")).context("iperf3 has no last line")?;
    let counts = line.split_whitespace().find_map(|word| word.split_once('/')?.1.parse::<u32>().ok());
    let lost = line.split_whitespace().find_map(|word| word.split_once('/')?.0.parse::<u32>().ok());
    let (lost, counts) = (lost.context("no loss")?, counts.context("no count")?);
    ensure!(counts > 100 && lost * 20 < counts, "{lost} of {counts} lost: {line}");
    Ok(())
}

fn all_traffic(name: &str, qemu: Qemu, kernel: Kernel) -> Result<()> {
    let switch = Switch::start()?;
    let (first, second) = (machine(&switch, 1, qemu, kernel)?, machine(&switch, 2, qemu, kernel)?);
    let names = [format!("{name}-1"), format!("{name}-2")];
    let mut guests = Guest::start_all(&[(&names[0], &first), (&names[1], &second)])?;
    let ports = switch.ports()?;
    ensure!(ports.len() == 2 && ports.iter().all(|p| p.endpoints[0].starts_with("vdeqemu ")), "{ports:?}");
    pings(&mut guests)?;
    datagrams(&mut guests)?;
    copy(&mut guests)?;
    for guest in guests {
        ensure!(guest.power_off(END_LIMIT)?.success(), "QEMU's exit status");
    }
    switch.wait_ports("no guest on the switch", END_LIMIT, <[_]>::is_empty)?;
    Ok(())
}

#[test]
fn pair_on_installed_qemu_with_6_12() {
    all_traffic("pair-6.12", Qemu::Installed, Kernel::Linux6_12).unwrap();
}

#[test]
fn pair_on_installed_qemu_with_6_1() {
    all_traffic("pair-6.1", Qemu::Installed, Kernel::Linux6_1).unwrap();
}

#[test]
fn pair_on_qemu_7_2() {
    all_traffic("pair-7.2", Qemu::V7_2, Kernel::Linux6_1).unwrap();
}
