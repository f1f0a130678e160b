//! The command line of a guest.
//!
//! Everything that TCG needs to be dependable is set here once: the CPU without the four features that QEMU emulates
//! slowly or wrongly for these kernels, and `vectors=0` on QEMU 7.2, which without KVM crashes when a
//! vhost-user NIC with MSI-X starts.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::namespace::Namespace;
use crate::places;

/// Which QEMU runs the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qemu {
    /// The installed one, 10.0 or newer.
    Installed,
    /// 7.2, unpacked under `target/`; goes with [`Kernel::Linux6_1`] only.
    V7_2,
}

impl Qemu {
    /// The program.
    pub fn program(self) -> Result<PathBuf> {
        match self {
            Self::Installed => places::system_program("qemu-system-x86_64"),
            Self::V7_2 => places::made("qemu-7.2/qemu-system-x86_64"),
        }
    }
}

/// Which kernel the guest boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Debian 12's; boots soonest.
    Linux6_1,
    /// That of the backports.
    Linux6_12,
    /// Debian 12's for real machines, with drivers of NICs that are not virtio.
    Linux6_1Full,
}

impl Kernel {
    /// The folder with `vmlinuz` and `initrd`.
    pub fn image(self) -> Result<PathBuf> {
        match self {
            Self::Linux6_1 => places::made("image/6.1"),
            Self::Linux6_12 => places::made("image/6.12"),
            Self::Linux6_1Full => places::made("image/6.1-full"),
        }
    }
}

/// A guest that is not started yet.
#[derive(Debug, Clone)]
pub struct Machine {
    qemu: Qemu,
    kernel: Kernel,
    line: String,
    launcher: Vec<String>,
    memory: u32,
    arguments: Vec<String>,
    addresses: Vec<String>,
    nics: u32,
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Machine {
    /// 256 MiB, one CPU, no NIC, the installed QEMU, Linux 6.1.
    pub fn new() -> Self {
        Self {
            qemu: Qemu::Installed,
            kernel: Kernel::Linux6_1,
            // On a busy machine an emulated timer seems broken to a kernel that looks for such, and it panics.
            line: "console=ttyS0 quiet panic=-1 no_timer_check vde.shell=ttyS1".to_owned(),
            launcher: Vec::new(),
            memory: 256,
            arguments: Vec::new(),
            addresses: Vec::new(),
            nics: 0,
        }
    }

    /// Another QEMU. 7.2 brings Linux 6.1 with it: it panics 6.12 now and then.
    pub fn qemu(mut self, qemu: Qemu) -> Self {
        self.qemu = qemu;
        self
    }

    /// Another kernel.
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.kernel = kernel;
        self
    }

    /// A further word of the kernel's line.
    pub fn kernel_word(mut self, word: &str) -> Self {
        self.line.push(' ');
        self.line.push_str(word);
        self
    }

    /// Memory in MiB.
    pub fn memory(mut self, mebibytes: u32) -> Self {
        self.memory = mebibytes;
        self
    }

    /// Words that come before the QEMU program: `vdeq` and its options.
    pub fn launcher(mut self, words: &[&str]) -> Self {
        self.launcher = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Starts the guest through our own `vdeq`.
    pub fn through_vdeq(self) -> Result<Self> {
        let program = places::own_program("vdeq")?;
        // vdeq looks for its back end beside itself.
        places::own_program("vhost-user-vde")?;
        Ok(self.launcher(&[&program.to_string_lossy()]))
    }

    /// Starts it in a network namespace.
    pub fn inside(mut self, space: &Namespace) -> Self {
        self.launcher.splice(0..0, space.prefix().map(str::to_owned));
        self
    }

    /// Further arguments of QEMU.
    pub fn args<S: AsRef<str>>(mut self, words: &[S]) -> Self {
        self.arguments.extend(words.iter().map(|word| word.as_ref().to_owned()));
        self
    }

    /// A virtio NIC on QEMU's own `-netdev vde`.
    pub fn native_nic(mut self, switch: &Path, mac: &str) -> Self {
        let id = format!("native{}", self.nics);
        self.nics += 1;
        let vectors = if self.qemu == Qemu::V7_2 { ",vectors=0" } else { "" };
        let netdev = format!("vde,id={id},sock={}", switch.display());
        let device = format!("virtio-net-pci,netdev={id},mac={mac}{vectors}");
        self.args(&["-netdev", &netdev, "-device", &device])
    }

    /// A NIC as people write it for `vdeq`: `-net nic` and `-net vde`, joined by their `vlan=`.
    pub fn vdeq_nic(self, switch: &Path, mac: &str) -> Self {
        self.vdeq_nic_on(&format!("nic,macaddr={mac}"), &[switch])
    }

    /// A NIC for `vdeq` by the words after `-net`, on all of these switches.
    pub fn vdeq_nic_on(mut self, nic: &str, switches: &[&Path]) -> Self {
        let vlan = self.nics;
        self.nics += 1;
        self = self.args(&["-net", &format!("{nic},vlan={vlan}")]);
        for switch in switches {
            self = self.args(&["-net", &format!("vde,vlan={vlan},sock={}", switch.display())]);
        }
        self
    }

    /// NICs by words of one's own; no word at all if it is QEMU, or its launcher, that adds one.
    pub fn nics<S: AsRef<str>>(mut self, words: &[S]) -> Self {
        self.nics += 1;
        self.args(words)
    }

    /// A NIC of any model on a stream socket that somebody listens on.
    pub fn stream_nic(mut self, socket: &Path, model: &str, mac: &str) -> Self {
        let id = format!("stream{}", self.nics);
        self.nics += 1;
        let again = if self.qemu == Qemu::V7_2 { "" } else { ",reconnect-ms=100" };
        let address = format!("server=off,addr.type=unix,addr.path={}", socket.display());
        let device = format!("{model},netdev={id},mac={mac}");
        self.args(&["-netdev", &format!("stream,id={id},{address}{again}"), "-device", &device])
    }

    /// A NIC on a vhost-user socket that somebody listens on; memory that can be shared comes with it.
    pub fn vhost_user_nic(mut self, socket: &Path, mac: &str, options: &str) -> Self {
        let id = format!("vu{}", self.nics);
        if self.nics == 0 {
            let object = format!("memory-backend-memfd,id=pc.ram,size={}M,share=on", self.memory);
            self = self.args(&["-object", &object, "-machine", "memory-backend=pc.ram"]);
        }
        self.nics += 1;
        let again = if self.qemu == Qemu::V7_2 { "reconnect=1" } else { "reconnect-ms=1000" };
        let vectors = if self.qemu == Qemu::V7_2 { ",vectors=0" } else { "" };
        let chardev = format!("socket,id=c{id},path={},{again}", socket.display());
        let netdev = format!("vhost-user,id={id},chardev=c{id}");
        let comma = if options.is_empty() { "" } else { "," };
        let device = format!("virtio-net-pci,netdev={id},mac={mac}{vectors}{comma}{options}");
        self.args(&["-chardev", &chardev, "-netdev", &netdev, "-device", &device])
    }

    /// An address that the guest gives its NIC `eth{nic}` at boot, with its prefix length.
    pub fn address(mut self, nic: u32, address: &str) -> Self {
        self.addresses.push(format!("eth{nic}:{address}"));
        self
    }

    /// The whole command line, with the kernel's messages going to the file `console`.
    pub fn words(&self, console: &Path) -> Result<Vec<String>> {
        if self.qemu == Qemu::V7_2 && self.kernel == Kernel::Linux6_12 {
            bail!("QEMU 7.2 without KVM panics Linux 6.12 now and then; use Kernel::Linux6_1");
        }
        let image = self.kernel.image()?;
        let mut line = self.line.clone();
        if !self.addresses.is_empty() {
            line.push_str(" vde.ip=");
            line.push_str(&self.addresses.join(","));
        }
        let mut words = self.launcher.clone();
        words.push(self.qemu.program()?.to_string_lossy().into_owned());
        let fixed =
            ["-accel", "tcg", "-cpu", "max,-erms,-fsrm,-smap,-smep", "-display", "none", "-no-reboot"];
        words.extend(fixed.map(str::to_owned));
        words.extend(["-m".to_owned(), self.memory.to_string()]);
        words.extend(["-monitor", "none", "-serial"].map(str::to_owned));
        words.extend([format!("file:{}", console.display()), "-serial".to_owned(), "stdio".to_owned()]);
        words.extend(["-kernel".to_owned(), image.join("vmlinuz").to_string_lossy().into_owned()]);
        words.extend(["-initrd".to_owned(), image.join("initrd").to_string_lossy().into_owned()]);
        words.extend(["-append".to_owned(), line]);
        if self.nics == 0 {
            words.extend(["-nic", "none"].map(str::to_owned));
        }
        words.extend(self.arguments.iter().cloned());
        Ok(words)
    }
}
