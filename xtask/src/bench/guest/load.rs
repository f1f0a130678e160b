//! What guests are asked to do, and the figure that comes of it.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::network::Standing;
use crate::bench::end::LIMIT as END_LIMIT;
use crate::places;

/// For what takes as long as it was asked to, and the machine's other loads.
const MORE: Duration = Duration::from_secs(60);

const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// Bytes of a datagram of [`Load::Udp`], and of a frame of pktgen (which the guest's driver does not pad).
const SMALL: usize = 64;
const FRAME: usize = 60;

/// One load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// iperf3 from the first guest to its peer, or the other way.
    Tcp { streams: u32, reverse: bool },
    /// iperf3's datagrams of 64 bytes, as many as it sends: those that arrive.
    Udp,
    /// Pings, one after the other.
    Ping,
    /// A message of 14 bytes over TCP, and its answer.
    TcpRoundTrip,
    /// The kernel of the first guest sends as fast as it can: what arrives at a station on the switch.
    PktgenOut,
    /// A station on the switch sends as fast as it can: what the first guest's kernel gets.
    PktgenIn,
}

impl Load {
    pub fn name(self) -> String {
        match self {
            Self::Tcp { streams, reverse } => {
                let plural = if streams == 1 { "" } else { "s" };
                let back = if reverse { ", back" } else { "" };
                format!("TCP, {streams} stream{plural}{back}")
            }
            Self::Udp => format!("UDP, {SMALL} B"),
            Self::Ping => "ping".into(),
            Self::TcpRoundTrip => "TCP round trip".into(),
            Self::PktgenOut => "pktgen out".into(),
            Self::PktgenIn => "frames in".into(),
        }
    }

    pub const fn unit(self) -> &'static str {
        match self {
            Self::Tcp { .. } => "Mbit/s",
            Self::Udp | Self::PktgenOut | Self::PktgenIn => "frames/s",
            Self::Ping | Self::TcpRoundTrip => "us",
        }
    }

    /// One round.
    pub fn run(self, network: &mut Standing, time: Duration) -> Result<f64> {
        match self {
            Self::Tcp { streams, reverse } => Ok(tcp(network, streams, reverse, time)?.megabits),
            Self::Udp => udp(network, time),
            Self::Ping => ping(network),
            Self::TcpRoundTrip => round_trip(network, time),
            Self::PktgenOut => pktgen(network, time),
            Self::PktgenIn => frames_in(network, time),
        }
    }
}

/// What a transfer by TCP carried.
pub struct Carried {
    pub megabits: f64,
    pub bytes: f64,
}

/// A transfer from the first guest to its peer.
pub fn tcp(network: &mut Standing, streams: u32, reverse: bool, time: Duration) -> Result<Carried> {
    let back = if reverse { " -R" } else { "" };
    let report = iperf(network, &format!("-P {streams}{back}"), time)?;
    let sum = &report["end"]["sum_received"];
    Ok(Carried { megabits: number(sum, "bits_per_second")? / 1e6, bytes: number(sum, "bytes")? })
}

fn udp(network: &mut Standing, time: Duration) -> Result<f64> {
    let report = iperf(network, &format!("-u -b 0 -l {SMALL}"), time)?;
    let sum = &report["end"]["sum"];
    Ok((number(sum, "packets")? - number(sum, "lost_packets")?) / number(sum, "seconds")?)
}

fn iperf(network: &mut Standing, words: &str, time: Duration) -> Result<Value> {
    let command = format!("iperf3 -J -i 0 -t {} {words} -c 10.0.0.2", time.as_secs());
    let text = network.speaker()?.run_ok(&command, time + MORE)?;
    serde_json::from_str(&text).with_context(|| format!("iperf3 says something else: {text}"))
}

fn number(report: &Value, key: &str) -> Result<f64> {
    report[key].as_f64().with_context(|| format!("iperf3 does not say {key}"))
}

fn ping(network: &mut Standing) -> Result<f64> {
    let text = network.speaker()?.run_ok("ping -q -c 100 -i 0.01 10.0.0.2", MORE)?;
    mean_round_trip(&text).with_context(|| format!("ping says something else: {text}"))
}

/// Microseconds, of busybox's `round-trip min/avg/max = 0.513/0.734/1.205 ms`.
fn mean_round_trip(text: &str) -> Option<f64> {
    let times = text.lines().find(|line| line.starts_with("round-trip"))?.split(" = ").nth(1)?;
    Some(times.split('/').nth(1)?.parse::<f64>().ok()? * 1000.0)
}

fn round_trip(network: &mut Standing, time: Duration) -> Result<f64> {
    let command = format!("sockperf ping-pong --tcp --full-rtt -i 10.0.0.2 -p 11111 -t {}", time.as_secs());
    let text = network.speaker()?.run_ok(&command, time + MORE)?;
    sockperf_mean(&text).with_context(|| format!("sockperf says something else: {text}"))
}

/// Microseconds, of `sockperf: Summary: Round trip is 85.123 usec`.
fn sockperf_mean(text: &str) -> Option<f64> {
    let (_, rest) = text.split_once("Round trip is ")?;
    rest.split_whitespace().next()?.parse().ok()
}

fn pktgen(network: &mut Standing, time: Duration) -> Result<f64> {
    let mut station = network.station(&places::target("release/vde-load"), FRAME)?;
    // The switch learns where it is.
    station.ask("hello")?;
    let guest = network.speaker()?;
    let set = |file: &str, word: &str| format!("echo {word} >/proc/net/pktgen/{file}");
    let mut words = vec![set("kpktgend_0", "rem_device_all"), set("kpktgend_0", "'add_device eth0'")];
    let size = format!("'pkt_size {FRAME}'");
    words.extend(
        ["'count 0'", "'delay 0'", &size, "'dst 10.0.0.99'", "'dst_mac 02:00:00:00:00:63'"]
            .map(|word| set("eth0", word)),
    );
    guest.run_ok(&words.join(" && "), COMMAND_LIMIT)?;
    station.ask("mark")?;
    let (start, stop) = (set("pgctrl", "start"), set("pgctrl", "stop"));
    guest.run_ok(&format!("{start} & sleep {}; {stop}; wait", time.as_secs()), time + MORE)?;
    let arrived = station.ask("count")?;
    Ok(per_second(arrived.frames, arrived.nanoseconds))
}

fn frames_in(network: &mut Standing, time: Duration) -> Result<f64> {
    let mut station = network.station(&places::target("release/vde-load"), FRAME)?;
    station.ask("hello")?;
    let guest = network.speaker()?;
    // The switch learns where the guest is, and the guest stops nothing of it.
    guest.run_ok("ping -c 1 -W 10 10.0.0.2", COMMAND_LIMIT)?;
    let before = received(network)?;
    station.tell(&format!("send {}", time.as_millis()))?;
    let sent = station.answer("send", time + END_LIMIT)?;
    Ok(per_second(received(network)? - before, sent.nanoseconds))
}

fn received(network: &mut Standing) -> Result<u64> {
    let text = network.speaker()?.run_ok("cat /sys/class/net/eth0/statistics/rx_packets", MORE)?;
    text.trim().parse().with_context(|| format!("the guest does not count: {text}"))
}

fn per_second(frames: u64, nanoseconds: u64) -> f64 {
    if nanoseconds == 0 { 0.0 } else { frames as f64 * 1e9 / nanoseconds as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_round_trip_real_output_is_in_microseconds() {
        let text = "--- 10.0.0.2 ping statistics ---\n10 packets transmitted, 10 packets received, 0% packet loss\n\
            round-trip min/avg/max = 0.513/0.734/1.205 ms\n";
        assert_eq!(mean_round_trip(text), Some(734.0));
    }

    #[test]
    fn sockperf_mean_real_output_is_found() {
        let text = "sockperf: Summary: Round trip is 263.714 usec\nsockperf: Total 7566 observations";
        assert_eq!(sockperf_mean(text), Some(263.714));
    }
}
