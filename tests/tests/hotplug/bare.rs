//! A machine that never runs its guest, with a monitor behind a proxy.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use qmp::{Address, Client};
use tempfile::TempDir;
use vde_tests::Qemu;
use vde_tests::process::{Owned, wait_until};
use vde_tests::vdectl::{self, Said};

use crate::proxy::Proxy;
use crate::rig::{LIMIT, State, back_end};

/// Memory that can be shared, as QEMU 10 and 7.2 take it.
pub const SHARED: [&str; 4] =
    ["-object", "memory-backend-memfd,id=pc.ram,size=32M,share=on", "-machine", "memory-backend=pc.ram"];

/// A machine that is paused from the start.
pub struct Bare {
    pub proxy: Proxy,
    pub machine: Owned,
    /// The monitor itself.
    pub socket: PathBuf,
    _folder: TempDir,
}

impl Bare {
    /// Of 32 MiB that others can map.
    pub fn start(qemu: Qemu, board: &str, words: &[&str]) -> Self {
        Self::start_in(qemu, board, &[&SHARED[..], words].concat(), &[])
    }

    /// The same without any words about memory; `prefix` is the program that runs QEMU.
    pub fn start_in(qemu: Qemu, board: &str, words: &[&str], prefix: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("bare").tempdir_in("/tmp").unwrap();
        // QEMU may be somebody else, who makes a socket there.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(folder.path(), open).unwrap();
        let socket = folder.path().join("real");
        let program = qemu.program().unwrap();
        let mut line = prefix.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        line.push(program.to_str().unwrap().to_owned());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).args(["-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-m", "32"]);
        command.args(["-machine", board, "-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        let machine = Owned::new(command.args(words).stdin(Stdio::null()).spawn().unwrap(), "QEMU");
        let connect = || Ok(Client::connect(&Address::Unix(socket.clone()), LIMIT).ok());
        drop(wait_until("the monitor", LIMIT, connect).unwrap());
        let proxy = Proxy::start(&socket);
        Self { proxy, machine, socket, _folder: folder }
    }

    /// `vdectl` on the proxy.
    pub fn vdectl(&self, command: &str, words: &[&str]) -> Said {
        let vm = self.proxy.address.as_str();
        vdectl::run(&[&[command, vm][..], words].concat()).unwrap()
    }

    /// The monitor itself; `vdectl` has to wait as long as somebody has it.
    pub fn monitor(&self) -> Client {
        Client::connect(&Address::Unix(self.socket.clone()), LIMIT).unwrap()
    }

    /// Resets the machine, and waits until it is: QEMU has told of all that left with that, and nobody else has to hear of it.
    pub fn reset(&self) {
        let mut monitor = self.monitor();
        monitor.execute("system_reset", serde_json::json!({})).unwrap();
        assert!(monitor.wait_for_event(LIMIT, |event| event.name == "RESET").unwrap().is_some());
    }

    /// What QEMU has now.
    pub fn state(&self) -> State {
        State::of(&mut self.monitor())
    }

    /// No back end is there for it, nor will be.
    pub fn no_back_end(&self) {
        let gone = || Ok(back_end(&self.proxy.address).is_none().then_some(()));
        wait_until("the end of the back end", LIMIT, gone).unwrap();
    }
}
