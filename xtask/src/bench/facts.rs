//! The machine that was measured on.

use std::fmt;
use std::time::SystemTime;

use anyhow::{Context, Result};
use rustix::system::uname;

use crate::{places, step};

/// What a figure is worth nothing without.
#[derive(serde::Serialize)]
pub struct Facts {
    /// Days since 1970, as a date.
    date: String,
    commit: String,
    cpu: String,
    cores: usize,
    kernel: String,
    /// How busy the machine was before we began: 1 is one core.
    load_average: String,
    /// What stands beside ours, with its version.
    peers: Vec<(&'static str, String)>,
}

/// Debian's packages of what is compared with.
const PEERS: [(&str, &str); 5] = [
    ("QEMU", "qemu-system-x86"),
    ("vde_switch", "vde-switch"),
    ("libvdeplug", "libvdeplug2"),
    ("DPDK", "dpdk-dev"),
    ("Open vSwitch", "openvswitch-switch-dpdk"),
];

/// Reads them.
pub fn read() -> Result<Facts> {
    let cpu_text = std::fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpu_text.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let in_root = |words: &[&str]| {
        let mut command = std::process::Command::new(words[0]);
        step::output(command.current_dir(places::root()).args(&words[1..])).map(|text| text.trim().to_owned())
    };
    let version = |(name, package)| {
        let version = in_root(&["dpkg-query", "-W", "-f", "${Version}", package]);
        (name, version.unwrap_or_else(|_| "not a Debian package".into()))
    };
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("the clock is wrong")?;
    Ok(Facts {
        date: date(since.as_secs() / 86_400),
        commit: in_root(&["git", "describe", "--always", "--dirty"]).unwrap_or_else(|_| "unknown".into()),
        cpu: cpu.trim_start_matches([' ', '\t', ':']).to_owned(),
        cores: std::thread::available_parallelism()?.get(),
        kernel: uname().release().to_string_lossy().into_owned(),
        load_average: load_average()?,
        peers: PEERS.map(version).to_vec(),
    })
}

/// How busy the machine was in the last minute.
pub fn load_average() -> Result<String> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().unwrap_or("unknown").to_owned())
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, commit {}", self.date, self.commit)?;
        let Self { cpu, cores, kernel, load_average, .. } = self;
        writeln!(f, "{cores} cores of {cpu}, Linux {kernel}, load average {load_average} before the start")?;
        let peers = self.peers.iter().map(|(name, version)| format!("{name} {version}"));
        writeln!(f, "{}", peers.collect::<Vec<_>>().join(", "))
    }
}

/// The date so many days after 1 January 1970, in the Gregorian calendar.
fn date(days: u64) -> String {
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut left) = (1970, days);
    loop {
        let len = if is_leap(year) { 366 } else { 365 };
        if left < len {
            break;
        }
        (year, left) = (year + 1, left - len);
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < len {
            break;
        }
        (month, left) = (month + 1, left - len);
    }
    format!("{year}-{month:02}-{:02}", left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_known_days_are_right() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(59), "1970-03-01");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(20_453), "2025-12-31");
    }
}
