//! The networks that guests stand on.
//!
//! Our back end is started by ourselves, with the same words that `vdeq` would use, because its process is what other areas look at.
//! Every guest is the same machine (`vde_tests::Machine`): emulated, one CPU, Linux 6.1, one virtio NIC. The first one speaks,
//! at 10.0.0.1; its peer, a guest or a namespace, is at 10.0.0.2.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vde_tests::namespace::Namespace;
use vde_tests::{Guest, Machine, Switch, guest, places, process};

use crate::bench::back_end::{BackEnd, Nic};
use crate::bench::end::End;

const LIMIT: Duration = Duration::from_secs(30);

/// Where the servers of iperf3 and sockperf listen.
const PORTS: [u16; 2] = [5201, 11111];

/// How the guests, or a guest and a namespace, are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Our back end on Debian's switch.
    VdeSwitch,
    /// QEMU's own `-netdev vde` on Debian's switch.
    QemuVde,
    /// A network of this scheme that the first guest's back end serves.
    Node(&'static str),
    /// A cable between two back ends.
    Ptp,
    /// Both guests' NICs in one back end.
    TwoNics,
    /// QEMU's tap devices in a bridge of the kernel.
    Bridge,
    /// Two QEMUs connected by a stream socket.
    QemuStream,
    /// Two QEMUs connected by datagram sockets.
    QemuDgram,
    /// Our back end on a tap in the namespace.
    Tap,
    /// Our back end on a pair of interfaces whose other end is in the namespace.
    Veth,
    /// QEMU's tap device in the namespace.
    QemuTap,
}

impl Kind {
    pub fn title(self) -> String {
        match self {
            Self::VdeSwitch => "ours".into(),
            Self::QemuVde => "QEMU -netdev vde".into(),
            Self::Node(scheme) => format!("ours, {scheme}://"),
            Self::Ptp => "ours, ptp://".into(),
            Self::TwoNics => "ours, two NICs of one back end".into(),
            Self::Bridge => "QEMU tap and a bridge, offloads".into(),
            Self::QemuStream => "QEMU -netdev stream".into(),
            Self::QemuDgram => "QEMU -netdev dgram".into(),
            Self::Tap => "ours, tap://".into(),
            Self::Veth => "ours, veth://".into(),
            Self::QemuTap => "QEMU -netdev tap, vnet_hdr".into(),
        }
    }

    /// Whether it is what the others are the measure of.
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::VdeSwitch | Self::Node(_) | Self::Ptp | Self::TwoNics | Self::Tap | Self::Veth)
    }

    const fn has_namespace(self) -> bool {
        matches!(self, Self::Bridge | Self::Tap | Self::Veth | Self::QemuTap)
    }

    /// Whether the peer is a namespace and no guest.
    const fn has_one_guest(self) -> bool {
        matches!(self, Self::Tap | Self::Veth | Self::QemuTap)
    }
}

/// A network with everybody on it. Fields are dropped in this order.
pub struct Standing {
    /// Who speaks, and the peer unless that is a namespace.
    pub guests: Vec<Guest>,
    servers: Vec<process::Owned>,
    pub back_ends: Vec<BackEnd>,
    pub switch: Option<Switch>,
    space: Option<Namespace>,
    folder: TempDir,
}

impl Standing {
    /// Starts everything and waits until the first guest reaches its peer. `number` keeps the logs of several apart.
    pub fn start(kind: Kind, number: usize) -> Result<Self> {
        // A short name: the paths of sockets are limited to 107 bytes.
        let folder = tempfile::Builder::new().prefix("vdeg").tempdir_in("/tmp")?;
        let switch = matches!(kind, Kind::VdeSwitch | Kind::QemuVde).then(Switch::start).transpose()?;
        let space = kind.has_namespace().then(Namespace::new).transpose()?;
        let mut network =
            Self { guests: Vec::new(), servers: Vec::new(), back_ends: Vec::new(), switch, space, folder };
        network.prepare(kind)?;
        let count = if kind.has_one_guest() { 1 } else { 2 };
        let machines: Vec<Machine> =
            (1..=count).map(|guest| network.machine(kind, guest)).collect::<Result<_>>()?;
        let names: Vec<String> = (1..=count).map(|guest| format!("bench-{number}-{guest}")).collect();
        let named: Vec<(&str, &Machine)> = names.iter().map(String::as_str).zip(&machines).collect();
        network.guests = Guest::start_all(&named)?;
        network.finish(kind)?;
        Ok(network)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What must be there before the guests.
    fn prepare(&mut self, kind: Kind) -> Result<()> {
        let program = places::own_program("vhost-user-vde")?;
        let node = self.path("n").display().to_string();
        let nic = |network: &Self, guest: u8, link: &str| Nic {
            socket: network.socket(guest),
            link: link.to_owned(),
            queues: 1,
        };
        let links: Vec<String> = match kind {
            Kind::VdeSwitch => {
                let switch = self.switch.as_ref().context("a switch was started")?.path();
                vec![switch.display().to_string(); 2]
            }
            Kind::Node(scheme) => vec![format!("{scheme}://{node}"), node],
            Kind::TwoNics => vec![format!("switch://{node}"); 2],
            Kind::Ptp => vec![format!("ptp://{node}"); 2],
            Kind::Tap => vec![format!("tap://eth0[netns={}/up]", self.space()?.name())],
            Kind::Veth => {
                let (own, space) = (std::process::id(), self.space()?.name());
                vec![format!("veth://vb{own}[netns={space}/peer=eth0/up]")]
            }
            Kind::QemuTap => return self.space()?.ip("tuntap add eth0 mode tap").map(drop),
            Kind::Bridge => return self.bridge(),
            Kind::QemuVde | Kind::QemuStream | Kind::QemuDgram => return Ok(()),
        };
        let nics: Vec<Nic> = (1..).zip(&links).map(|(guest, link)| nic(self, guest, link)).collect();
        if kind == Kind::TwoNics {
            self.back_ends.push(BackEnd::start(&program, &[], &nics)?);
        } else {
            for nic in nics {
                self.back_ends.push(BackEnd::start(&program, &[], &[nic])?);
            }
        }
        Ok(())
    }

    fn bridge(&self) -> Result<()> {
        let space = self.space()?;
        space.ip("link add br0 type bridge")?;
        space.ip("link set br0 up")?;
        for tap in ["t1", "t2"] {
            space.ip(&format!("tuntap add {tap} mode tap"))?;
            space.ip(&format!("link set {tap} master br0 up"))?;
        }
        Ok(())
    }

    fn space(&self) -> Result<&Namespace> {
        self.space.as_ref().context("a namespace was made")
    }

    fn socket(&self, guest: u8) -> PathBuf {
        self.path(&format!("s{guest}"))
    }

    fn machine(&self, kind: Kind, guest: u8) -> Result<Machine> {
        // Addresses as the ends of `vde-load` have them, who speak to guests by number.
        let mac = format!("02:00:00:00:00:{guest:02x}");
        let machine = Machine::new().address(0, &format!("10.0.0.{guest}/24"));
        let other = if guest == 1 { 2 } else { 1 };
        let own_netdev = |netdev: String| {
            let device = format!("virtio-net-pci,netdev=n0,mac={mac}");
            Machine::args(machine.clone(), &["-netdev", &netdev, "-device", &device])
        };
        let path = |guest: u8| self.path(&format!("q{guest}")).display().to_string();
        let tap = |name: &str| format!("tap,id=n0,ifname={name},script=no,downscript=no,vhost=off");
        Ok(match kind {
            Kind::QemuVde => {
                machine.native_nic(&self.switch.as_ref().context("a switch was started")?.path(), &mac)
            }
            Kind::QemuStream if guest == 1 => {
                own_netdev(format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", path(1)))
            }
            Kind::QemuStream => own_netdev(format!(
                "stream,id=n0,server=off,addr.type=unix,addr.path={},reconnect-ms=100",
                path(1)
            )),
            Kind::QemuDgram => own_netdev(format!(
                "dgram,id=n0,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                path(guest),
                path(other)
            )),
            Kind::Bridge => own_netdev(tap(&format!("t{guest}"))).inside(self.space()?),
            Kind::QemuTap => own_netdev(tap("eth0")).inside(self.space()?),
            _ => machine.vhost_user_nic(&self.socket(guest), &mac, ""),
        })
    }

    /// What is done when the guests are there: addresses, servers, and a first answer.
    fn finish(&mut self, kind: Kind) -> Result<()> {
        for guest in &mut self.guests {
            // A guest that is not talked to says nothing: no router is looked for.
            guest.run_ok("echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6", LIMIT)?;
        }
        if kind.has_one_guest() {
            self.serve_in_namespace()?;
        } else {
            let server = self.guests.get_mut(1).context("two guests")?;
            server.run_ok(guest::IPERF_SERVER, LIMIT)?;
            server.start_job(&format!("sockperf server --tcp -p {}", PORTS[1]))?;
            server.run_ok(
                &format!("until netstat -ltn | grep -q ':{} '; do sleep 0.1; done", PORTS[1]),
                LIMIT,
            )?;
        }
        let first = self.guests.first_mut().context("a guest")?;
        first.run_ok("ping -c 1 -W 10 10.0.0.2", LIMIT)?;
        Ok(())
    }

    fn serve_in_namespace(&mut self) -> Result<()> {
        let space = self.space()?;
        space.ip("address add 10.0.0.2/24 dev eth0")?;
        space.ip("link set eth0 up")?;
        let mut servers = Vec::new();
        for words in [&["iperf3", "-s"][..], &["sockperf", "server", "--tcp", "-p", "11111"]] {
            let [program, arguments @ ..] = &space.prefix()[..] else { continue };
            let mut command = Command::new(program);
            let child = command.args(arguments).args(words).stdin(Stdio::null()).stdout(Stdio::null());
            servers.push(process::Owned::new(child.stderr(Stdio::null()).spawn()?, words[0]));
        }
        process::wait_until("the servers in the namespace", LIMIT, || {
            let table = space.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp")?))?;
            let table =
                table + &space.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp6")?))?;
            // Local address and port, remote one, and the state: 0A listens.
            let listens = |port: u16| {
                let port = format!(":{port:04X}");
                let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
                table.lines().map(words).any(|words| {
                    words.get(1).is_some_and(|local| local.ends_with(&port))
                        && words.get(3).is_some_and(|state| state == "0A")
                })
            };
            Ok(PORTS.iter().all(|port| listens(*port)).then_some(()))
        })?;
        self.servers = servers;
        Ok(())
    }

    /// A further member of the switch, number 99 of its network, who sends frames of `size` bytes to the first guest.
    pub fn station(&self, load: &Path, size: usize) -> Result<End> {
        let switch = self.switch.as_ref().context("only a switch has room for one more")?;
        let mut command = Command::new(load);
        command.arg("plug").arg(switch.path()).args([&size.to_string(), "99", "1"]);
        End::start(&mut command)
    }

    /// Whoever speaks.
    pub fn speaker(&mut self) -> Result<&mut Guest> {
        ensure!(!self.guests.is_empty(), "there is no guest");
        Ok(&mut self.guests[0])
    }
}
