//! Names for what is plugged in: ids that QEMU takes and nothing else has, MAC addresses that no other NIC has.
//!
//! A NIC `vde0` has the netdev `vde0n` and the chardev `vde0c`, as those that `vdeq` makes: with one name for all, a command
//! like `set_link` would not know which is meant.

use std::collections::HashSet;

use qmp::{Client, Error};

use crate::Failure;
use crate::back_end::sentence;
use crate::nics::{Netdev, Nics};

/// The ids of one NIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Of the device.
    pub device: String,
    /// Of the netdev, and of the NIC in the back end.
    pub netdev: String,
    /// Of the chardev.
    pub chardev: String,
}

impl Names {
    /// The names that go with that of a device.
    pub fn of(device: &str) -> Self {
        Self { device: device.into(), netdev: format!("{device}n"), chardev: format!("{device}c") }
    }
}

/// What has a name already.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    devices: HashSet<String>,
    netdevs: HashSet<String>,
    chardevs: HashSet<String>,
}

impl Taken {
    /// Asks QEMU. `served` are the NICs of the back end.
    pub fn of(monitor: &mut Client, nics: &Nics, served: &[vde_control::Nic]) -> Result<Self, Failure> {
        let ask =
            |error: Error| Failure::new(format!("QEMU does not list its devices: {}", sentence(&error)));
        let devices = monitor.qom_list("/machine/peripheral").map_err(ask)?;
        let netdevs = nics.netdevs.iter().map(|Netdev { id, .. }| id.clone());
        Ok(Self {
            devices: devices.into_iter().map(|device| device.name).collect(),
            netdevs: netdevs.chain(served.iter().map(|nic| nic.id.clone())).collect(),
            chardevs: nics.chardevs.iter().map(|(label, _)| label.clone()).collect(),
        })
    }

    /// Who has one of these names, and what it is.
    fn holder(&self, names: &Names) -> Option<(&'static str, String)> {
        let each = [
            ("device", &self.devices, &names.device),
            ("netdev", &self.netdevs, &names.netdev),
            ("chardev", &self.chardevs, &names.chardev),
        ];
        each.into_iter()
            .find(|(_, taken, name)| taken.contains(*name))
            .map(|(what, _, name)| (what, name.clone()))
    }

    /// The names of a NIC that was given one, or the first free ones.
    pub fn choose(&self, asked: Option<&str>) -> Result<Names, Failure> {
        let Some(id) = asked else {
            let mut free = (0_u32..).map(|number| Names::of(&format!("vde{number}")));
            let free = free.find(|names| self.holder(names).is_none());
            return free.ok_or_else(|| Failure::new("all names from vde0 on are taken"));
        };
        let names = Names::of(id);
        match self.holder(&names) {
            None => Ok(names),
            Some(("device", _)) => {
                Err(Failure::new(format!("the VM has a device '{id}' already; take another --id")))
            }
            Some((what, name)) => Err(Failure::new(format!(
                "the {what} '{name}' is there already; take another --id, or clean up with: vdectl detach VM {id}"
            ))),
        }
    }
}

/// The longest id. QEMU knows no limit, but the NIC's socket is named for it, and its path has one.
const LONGEST: usize = 32;

/// Reads an id that QEMU takes.
pub fn read_id(text: &str) -> Result<String, String> {
    let is_well_formed = text.len() <= LONGEST
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    is_well_formed.then(|| text.to_owned()).ok_or_else(|| {
        format!("an id is a letter, then letters, digits, '-', '.' and '_', {LONGEST} at most")
    })
}

/// A MAC address that no NIC of the VM has: the one that was asked for, or one by chance.
pub fn mac(asked: Option<&str>, nics: &Nics) -> Result<String, Failure> {
    let taken = |mac: &str| nics.nics.iter().find(|nic| nic.mac.eq_ignore_ascii_case(mac));
    let Some(asked) = asked else {
        let mut by_chance = std::iter::repeat_with(|| {
            let [a, b, c, _] = fastrand::u32(..).to_be_bytes();
            format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
        });
        return by_chance
            .find(|mac| taken(mac).is_none())
            .ok_or_else(|| Failure::new("no MAC address is free"));
    };
    match taken(asked) {
        None => Ok(asked.into()),
        Some(nic) => Err(Failure::new(format!(
            "{nic} of the VM has the MAC address {asked} already; take another --mac"
        ))),
    }
}

/// Reads a MAC address of a NIC, which comes out as QEMU writes it.
pub fn read_mac(text: &str) -> Result<String, String> {
    let refuse = |why: &str| why.to_owned();
    let mut octets = Vec::new();
    for word in text.split([':', '-']) {
        let digits = (1..=2).contains(&word.len()) && word.chars().all(|c| c.is_ascii_hexdigit());
        let octet = digits.then(|| u8::from_str_radix(word, 16).ok()).flatten();
        octets.push(octet.ok_or_else(|| refuse("write six octets as 52:54:00:12:34:56"))?);
    }
    match octets[..] {
        [0, 0, 0, 0, 0, 0] => Err(refuse("it is all zero")),
        [first, _, _, _, _, _] if first & 1 == 1 => {
            Err(refuse("its first octet is odd, which means a group"))
        }
        [a, b, c, d, e, f] => Ok(format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")),
        _ => Err(refuse("write six octets as 52:54:00:12:34:56")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(devices: &[&str], netdevs: &[&str], chardevs: &[&str]) -> Taken {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Taken { devices: set(devices), netdevs: set(netdevs), chardevs: set(chardevs) }
    }

    #[test]
    fn ids_are_free_and_well_formed() {
        let taken = taken(&["vde0", "net1"], &["vde1n", "leftn"], &["vde2c"]);
        assert_eq!(taken.choose(None), Ok(Names::of("vde3")));
        assert_eq!(taken.choose(Some("net0")).unwrap().netdev, "net0n");
        let sentence = |id| taken.choose(Some(id)).unwrap_err().sentence;
        assert!(sentence("net1").contains("a device 'net1' already"));
        assert!(sentence("left").contains("the netdev 'leftn' is there already"));
        assert_eq!(read_id("net-0.a_b").as_deref(), Ok("net-0.a_b"));
        let long = "a".repeat(33);
        for id in ["", "0net", "-a", "a b", "ä", "a/b", "a,b", "a=b", long.as_str()] {
            assert!(read_id(id).is_err(), "{id}");
        }
    }

    #[test]
    fn mac_addresses_are_unicast_and_free() {
        let nics = Nics::default();
        assert_eq!(read_mac("52:54:0:AB:cd:1").as_deref(), Ok("52:54:00:ab:cd:01"));
        assert_eq!(read_mac("52-54-00-12-34-56").as_deref(), Ok("52:54:00:12:34:56"));
        let by_chance = mac(None, &nics).unwrap();
        assert_eq!(read_mac(&by_chance), Ok(by_chance));
        for (text, why) in [
            ("01:00:5e:00:00:01", "means a group"),
            ("00:00:00:00:00:00", "all zero"),
            ("52:54:00:12:34", "six octets"),
            ("52:54:00:12:34:56:78", "six octets"),
            ("52:54:00:12:34:+6", "six octets"),
            ("52:54:00:12:34:gg", "six octets"),
            ("", "six octets"),
        ] {
            let sentence = read_mac(text).unwrap_err();
            assert!(sentence.contains(why), "{sentence}");
        }
    }
}
