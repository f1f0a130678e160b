//! DPDK's virtio-user as a second real driver: it polls, never sleeps, and writes its rings in another order than Linux.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::world::{Backend, LIMIT, Station, Switch, wait_for};

/// `testpmd` sending back each frame that it gets, source and destination swapped.
struct Testpmd {
    child: Child,
    prefix: String,
}

impl Testpmd {
    fn start(socket: &Path, device: &str, queues: u16, log: &File) -> Self {
        let socket = socket.to_str().unwrap();
        let prefix = format!("vde{}", socket.replace('/', "-"));
        let child = Command::new("dpdk-testpmd")
            .args(["--no-huge", "-m", "128", "--no-pci", "--no-telemetry", "-l", "0,1"])
            .args(["--file-prefix", &prefix])
            .arg(format!("--vdev=net_virtio_user0,path={socket},queues={queues},{device}"))
            .args([
                "--",
                "--forward-mode=macswap",
                "--auto-start",
                "--total-num-mbufs=4096",
                "--no-lsc-interrupt",
            ])
            .args([format!("--rxq={queues}"), format!("--txq={queues}")])
            // It ends when its standard input does.
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log.try_clone().unwrap())
            .spawn()
            .expect("dpdk-testpmd is missing; cargo xtask test installs it");
        Self { child, prefix }
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        for _ in 0..500 {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What DPDK itself leaves behind, where root's programs have it.
        let _ = std::fs::remove_dir_all(Path::new("/var/run/dpdk").join(&self.prefix));
    }
}

/// Sends until something comes back: `testpmd` takes seconds to start, and says so only when it ends.
fn wait_until_it_echoes(station: &Station, testpmd: &mut Testpmd, log: &Path) {
    let probe = [[0xff; 6], [2, 0, 0, 0, 0, 2], [0x88, 0xb5, 0, 0, 0, 0]].concat();
    wait_for("testpmd to echo", || {
        let ended = testpmd.child.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?}: {}", std::fs::read_to_string(log).unwrap_or_default());
        station.send(&probe);
        station.receive(Duration::from_millis(100))
    });
    while station.receive(Duration::from_millis(300)).is_some() {}
}

/// Sends frames of many sizes and compares each with what comes back.
fn echo(device: &str, queues: u16) {
    let dir = tempfile::tempdir().unwrap();
    let switch = Switch::start(&dir.path().join("sw"));
    let socket = dir.path().join("n0");
    let nic = format!("socket-path={},link={},queues={queues}", socket.display(), switch.path.display());
    let _backend = Backend::start(&["--nic", &nic], &socket);
    let log = dir.path().join("testpmd.log");
    let mut testpmd = Testpmd::start(&socket, device, queues, &File::create(&log).unwrap());
    let station = switch.station();
    wait_until_it_echoes(&station, &mut testpmd, &log);
    let (here, there) = ([2, 0, 0, 0, 0, 1], [0xff; 6]);
    for round in 0..600usize {
        let len = 60 + round * 37 % 1455;
        let body: Vec<u8> = (0..len - 14).map(|at| (at * 7 + round).to_le_bytes()[0]).collect();
        let sent = [&there[..], &here, &[0x88, 0xb5], &body].concat();
        station.send(&sent);
        let mut got = Vec::new();
        // An echo of what it was probed with may come late; that is shorter.
        while got.len() < 60 {
            let next = station.receive(LIMIT);
            got = next.unwrap_or_else(|| panic!("{device}: frame {round} of {len} bytes"));
        }
        assert_eq!(got, [&here[..], &there, &[0x88, 0xb5], &body].concat(), "{device}: frame {round}");
    }
}

#[test]
fn dpdk_echoes_every_frame() {
    echo("queue_size=256,mrg_rxbuf=1", 1);
    echo("queue_size=1024,mrg_rxbuf=0", 1);
    echo("queue_size=256,mrg_rxbuf=1", 2);
}

#[test]
fn dpdk_echoes_every_frame_over_packed_rings() {
    // Without mergeable buffers its transmit chains are indirect tables.
    echo("packed_vq=1,queue_size=256,mrg_rxbuf=1", 1);
    echo("packed_vq=1,queue_size=1024,mrg_rxbuf=0", 1);
    echo("packed_vq=1,queue_size=256,mrg_rxbuf=1", 2);
}
