//! Which of QEMU's options are followed by a value.
//!
//! The union over QEMU 5.2 to 10, old ones that scripts still carry included. Without this table
//! `-append "-net vde"` would look like a VDE NIC. A `help`-like option that ends QEMU is listed in
//! [`is_query`].

use std::ffi::OsStr;

/// Whether an option is followed by a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// It stands alone.
    Flag,
    /// The next word is its value, whatever it looks like.
    Value,
    /// The table does not have it.
    Unknown,
}

const FLAGS: &[&str] = &[
    "?",
    "S",
    "alt-grab",
    "async-teardown",
    "audio-help",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-fips",
    "enable-kvm",
    "enable-nesting",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "igd-passthru",
    "jitdump",
    "localtime",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-kvm",
    "no-kvm-irqchip",
    "no-kvm-pit",
    "no-kvm-pit-reinjection",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "nouserconfig",
    "old-param",
    "one-insn-per-tick",
    "only-migratable",
    "perfmap",
    "portrait",
    "preconfig",
    "rtc-td-hack",
    "s",
    "sdl",
    "semihosting",
    "show-cursor",
    "singlestep",
    "snapshot",
    "tdf",
    "usb",
    "version",
    "virtfs_synth",
    "win2k-hack",
    "xen-attach",
    "xen-create",
    "xen-domid-restrict",
];

const VALUES: &[&str] = &[
    "D",
    "L",
    "M",
    "accel",
    "acpitable",
    "action",
    "add-fd",
    "append",
    "audio",
    "audiodev",
    "balloon",
    "bios",
    "blockdev",
    "boot",
    "bootp",
    "bt",
    "cdrom",
    "chardev",
    "chroot",
    "clock",
    "compat",
    "cpu",
    "d",
    "debugcon",
    "device",
    "dfilter",
    "display",
    "drive",
    "dtb",
    "dump-vmstate",
    "echr",
    "fda",
    "fdb",
    "fsdev",
    "fw_cfg",
    "g",
    "gdb",
    "global",
    "hda",
    "hdachs",
    "hdb",
    "hdc",
    "hdd",
    "icount",
    "incoming",
    "initrd",
    "iscsi",
    "k",
    "kernel",
    "loadvm",
    "m",
    "machine",
    "mem-path",
    "mon",
    "monitor",
    "msg",
    "mtdblock",
    "name",
    "net",
    "netdev",
    "nic",
    "numa",
    "object",
    "option-rom",
    "overcommit",
    "p",
    "parallel",
    "pcidevice",
    "pflash",
    "pidfile",
    "plugin",
    "prom-env",
    "qmp",
    "qmp-pretty",
    "qtest",
    "qtest-log",
    "readconfig",
    "realtime",
    "redir",
    "rotate",
    "rtc",
    "run-with",
    "runas",
    "sandbox",
    "sd",
    "seed",
    "semihosting-config",
    "serial",
    "set",
    "shim",
    "smb",
    "smbios",
    "smp",
    "soundhw",
    "spice",
    "startdate",
    "tb-size",
    "tftp",
    "tpmdev",
    "trace",
    "usbdevice",
    "uuid",
    "vga",
    "virtfs",
    "virtioconsole",
    "vnc",
    "watchdog",
    "watchdog-action",
    "writeconfig",
    "xen-domid",
];

/// What is known of the option `name`, given without its dashes.
pub fn arity(name: &str) -> Arity {
    if FLAGS.binary_search(&name).is_ok() {
        Arity::Flag
    } else if VALUES.binary_search(&name).is_ok() {
        Arity::Value
    } else {
        Arity::Unknown
    }
}

/// Whether this option makes QEMU print something and end, so that no VM will run.
pub fn is_query(name: &str, value: Option<&OsStr>) -> bool {
    if matches!(name, "h" | "help" | "?" | "version" | "audio-help") {
        return true;
    }
    // Free text may well be the word "help"; only options that QEMU parses are looked at.
    let parsed = matches!(
        name,
        "accel"
            | "M"
            | "machine"
            | "cpu"
            | "device"
            | "net"
            | "netdev"
            | "nic"
            | "chardev"
            | "object"
            | "soundhw"
            | "display"
            | "vga"
            | "watchdog"
            | "d"
            | "tpmdev"
            | "audio"
            | "audiodev"
            | "trace"
            | "g"
    );
    let Some(value) = value.and_then(OsStr::to_str).filter(|_| parsed) else { return false };
    // A doubled comma is one in a value.
    let value = value.replace(",,", " ");
    matches!(value.as_str(), "help" | "?")
        || value.split(',').skip(1).any(|part| matches!(part, "help" | "?" | "model=help" | "model=?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_disjoint() {
        assert!(FLAGS.is_sorted());
        assert!(VALUES.is_sorted());
        assert!(FLAGS.iter().all(|name| VALUES.binary_search(name).is_err()));
    }

    #[test]
    fn is_query_free_text_is_not_asked() {
        assert!(is_query("device", Some(OsStr::new("help"))));
        assert!(is_query("device", Some(OsStr::new("e1000,help"))));
        assert!(is_query("net", Some(OsStr::new("nic,model=?"))));
        assert!(is_query("version", None));
        assert!(!is_query("append", Some(OsStr::new("help"))));
        assert!(!is_query("net", Some(OsStr::new("nic,model=helper"))));
        assert!(!is_query("chardev", Some(OsStr::new("file,id=c,path=a,,help"))));
        assert!(is_query("device", Some(OsStr::new("x,y=a,,b,help"))));
    }
}
