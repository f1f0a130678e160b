//! A guest with a monitor, `vdectl` on it, and what is there before and after.

use std::path::PathBuf;
use std::time::Duration;

use qmp::{Address, Client};
use tempfile::TempDir;
use vde_tests::process::wait_until;
use vde_tests::vdectl::{self, Said};
use vde_tests::{Guest, Kernel, Machine, Qemu, Switch};

/// For whatever has to happen at once; machines are slow when many tests run.
pub const LIMIT: Duration = Duration::from_secs(60);

/// What QEMU has that a NIC is made of.
#[derive(Debug, PartialEq, Eq)]
pub struct State {
    pub devices: String,
    pub pci: String,
    pub network: String,
    pub chardevs: Vec<String>,
}

impl State {
    /// Asks for it.
    pub fn of(monitor: &mut Client) -> Self {
        let mut devices: Vec<String> =
            monitor.qom_list("/machine/peripheral").unwrap().into_iter().map(|child| child.name).collect();
        devices.sort();
        let mut chardevs: Vec<String> =
            monitor.query_chardev().unwrap().into_iter().map(|c| c.label).collect();
        chardevs.sort();
        // What the guest has put into registers is its own business.
        let pci = monitor.query_pci().unwrap();
        let mut ids = Vec::new();
        slots(&pci, &mut ids);
        let network = monitor.human_monitor_command("info network").unwrap();
        Self { devices: devices.join(" "), pci: ids.join(" "), network, chardevs }
    }
}

/// The devices on all buses, with their places.
fn slots(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Array(items) => items.iter().for_each(|item| slots(item, found)),
        serde_json::Value::Object(fields) => {
            if let (Some(id), Some(slot), Some(bus)) =
                (fields.get("qdev_id"), fields.get("slot"), fields.get("bus"))
            {
                found.push(format!("{bus}:{slot}:{id}"));
            }
            fields.values().for_each(|field| slots(field, found));
        }
        _ => {}
    }
}

/// A guest that runs.
pub struct Rig {
    pub guest: Guest,
    /// What `vdectl` calls it.
    vm: String,
    /// Its monitor, if it was started with one.
    pub socket: PathBuf,
    _folder: Option<TempDir>,
}

impl Rig {
    /// In memory that can be shared. `board` is a machine, with further arguments behind it.
    pub fn start(name: &str, qemu: Qemu, kernel: Kernel, board: &str) -> Self {
        let object = "memory-backend-memfd,id=pc.ram,size=256M,share=on";
        Self::boot(name, qemu, kernel, board, &["-object", object, "-machine", "memory-backend=pc.ram"])
    }

    /// In memory of QEMU's own.
    pub fn start_private(name: &str, qemu: Qemu, kernel: Kernel, board: &str) -> Self {
        Self::boot(name, qemu, kernel, board, &[])
    }

    fn boot(name: &str, qemu: Qemu, kernel: Kernel, board: &str, memory: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("hot").tempdir_in("/tmp").unwrap();
        let socket = folder.path().join("qmp");
        let mut machine = Machine::new().qemu(qemu).kernel(kernel).args(memory);
        machine = machine.args(&["-machine"]).args(&board.split(' ').collect::<Vec<_>>());
        if board.starts_with("q35") {
            machine = machine.args(&["-device", "pcie-root-port,id=vdeport0,chassis=1,slot=1"]);
        }
        machine = machine.args(&["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        let guest = Guest::start(name, &machine).unwrap();
        Self { guest, vm: format!("unix:{}", socket.display()), socket, _folder: Some(folder) }
    }

    /// A guest that `vdectl` knows by a name.
    pub fn of(guest: Guest, vm: &str) -> Self {
        Self { guest, vm: vm.into(), socket: PathBuf::new(), _folder: None }
    }

    /// The monitor; `vdectl` has to wait as long as somebody has it.
    pub fn monitor(&self) -> Client {
        Client::connect(&Address::Unix(self.socket.clone()), LIMIT).unwrap()
    }

    /// What QEMU has now.
    pub fn state(&self) -> State {
        State::of(&mut self.monitor())
    }

    fn vdectl(&self, command: &str, words: &[&str]) -> Said {
        vdectl::run(&[&[command, self.vm.as_str()][..], words].concat()).unwrap()
    }

    /// `vdectl attach` on a switch.
    pub fn attach(&self, switch: &Switch, words: &[&str]) -> Said {
        let locator = format!("vde://{}", switch.path().display());
        self.vdectl("attach", &[&[locator.as_str()][..], words].concat())
    }

    /// `vdectl detach`.
    pub fn detach(&self, words: &[&str]) -> Said {
        self.vdectl("detach", words)
    }

    /// The guest's name of the NIC with this address, once it has one.
    pub fn interface(&mut self, mac: &str) -> String {
        let command = format!("grep -l -i {mac} /sys/class/net/*/address");
        let file = wait_until("the interface in the guest", LIMIT, || {
            let output = self.guest.run(&command, LIMIT)?;
            Ok((output.status == 0).then_some(output.text))
        });
        let file = file.unwrap();
        file.trim().split('/').nth(4).unwrap().to_owned()
    }

    /// The guest has no NIC with this address.
    pub fn no_interface(&mut self, mac: &str) {
        let links = self.guest.run_ok("ip link", LIMIT).unwrap();
        assert!(!links.contains(mac), "{links}");
    }

    /// Brings a NIC up, and has it reach station `number`.
    pub fn ping(&mut self, nic: &str, number: u8) {
        let up = format!("ip addr add 10.0.0.1/24 dev {nic} && ip link set {nic} up");
        self.guest.run_ok(&up, LIMIT).unwrap();
        let ping = format!("ping -c 3 -i 0.2 -W 5 10.0.0.{number}");
        self.guest.run_ok(&ping, LIMIT).unwrap();
    }

    /// The back end that `vdectl` has started for this guest, and its directory.
    pub fn back_end(&self) -> (u32, PathBuf) {
        back_end(&self.vm).expect("a back end")
    }

    /// Waits until there is none any more.
    pub fn no_back_end(&self) {
        wait_until("the end of the back end", LIMIT, || Ok(back_end(&self.vm).is_none().then_some(())))
            .unwrap();
    }
}

/// The process and directory of the back end for the VM whose monitor has this address.
pub fn back_end(address: &str) -> Option<(u32, PathBuf)> {
    let line = format!("\"{address}\"");
    for entry in std::fs::read_dir("/run/vdeq").into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path().join("vm.json")).unwrap_or_default();
        if text.contains(&line) {
            let control = entry.path().join("control.sock");
            if let Some(pid) = process_with(control.to_str()?) {
                return Some((pid, entry.path()));
            }
        }
    }
    None
}

/// The process with this word in its command line.
pub fn process_with(word: &str) -> Option<u32> {
    let all = std::fs::read_dir("/proc").ok()?.flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).find(|number| {
        let line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    })
}

/// What `vdectl` printed, if it has done what was asked.
pub fn done(said: Said) -> String {
    assert_eq!((said.status, said.complaint.as_str()), (0, ""));
    said.text
}

/// How many descriptors a process has.
pub fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}
