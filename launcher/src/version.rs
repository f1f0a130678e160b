//! QEMU's version, and what depends on it.

use std::fmt;

use serde::Serialize;

/// The first three numbers of a QEMU version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct QemuVersion(pub u32, pub u32, pub u32);

impl QemuVersion {
    /// The oldest one whose `-netdev vhost-user` and memory backends do what is needed here.
    pub const OLDEST: Self = Self(5, 2, 0);

    /// The oldest one that has `-netdev stream`.
    pub const OLDEST_WITH_STREAM: Self = Self(7, 2, 0);

    /// Finds `emulator version A.B[.C]` in what `qemu --version` printed. Warnings before it, of the
    /// versions of libraries too, do no harm.
    pub fn find(text: &str) -> Option<Self> {
        text.match_indices("emulator version ").find_map(|(at, word)| {
            let mut numbers = text[at + word.len()..].split(|c: char| !c.is_ascii_digit());
            let major = numbers.next()?.parse().ok()?;
            let minor = numbers.next()?.parse().ok()?;
            let micro = numbers.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            Some(Self(major, minor, micro))
        })
    }

    /// The chardev property, and its value, that makes QEMU connect again a second after a connection broke.
    /// `reconnect=` is deprecated since 9.2, where `reconnect-ms=` began.
    pub fn reconnect(self) -> (&'static str, u64) {
        if self >= Self(9, 2, 0) { ("reconnect-ms", 1000) } else { ("reconnect", 1) }
    }

    /// The same for `-netdev stream`, which could not do that before 8.0.
    pub fn stream_reconnect(self) -> Option<(&'static str, u64)> {
        (self >= Self(8, 0, 0)).then(|| self.reconnect())
    }

    /// Whether a vhost-user NIC with MSI-X crashes this QEMU when it runs without KVM.
    pub fn crashes_with_msix(self) -> bool {
        self < Self(8, 0, 0)
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_versions() {
        let debian = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022";
        assert_eq!(QemuVersion::find(debian), Some(QemuVersion(7, 2, 22)));
        assert_eq!(
            QemuVersion::find("warning: library version 2.74\nQEMU emulator version 10.0"),
            Some(QemuVersion(10, 0, 0))
        );
        assert_eq!(QemuVersion::find("hello"), None);
        assert_eq!(QemuVersion::find("emulator version 99999999999.1"), None);
        assert_eq!(QemuVersion(9, 1, 9).reconnect(), ("reconnect", 1));
        assert_eq!(QemuVersion(10, 0, 2).reconnect(), ("reconnect-ms", 1000));
        assert_eq!(QemuVersion(7, 2, 22).stream_reconnect(), None);
        assert_eq!(QemuVersion(8, 0, 0).stream_reconnect(), Some(("reconnect", 1)));
    }
}
