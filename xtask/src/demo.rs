//! `cargo xtask demo`: two guests talk over a VDE network through `vdeq`, next to the same pair on QEMU's own
//! `-netdev vde`.
//!
//! One switch, four guests: a pair of each kind. The pairs take turns in the throughput rounds, because a machine that
//! grows warmer or busier meanwhile must not favour one of them; while a pair works, the other sleeps. The figure of
//! a pair is the median of its rounds.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vde_tests::{Guest, Machine, Switch, guest};

use crate::{deps, image, interrupt, programs, step};

const ROUNDS: usize = 3;
const ROUND_SECONDS: u64 = 5;
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
const ROUND_LIMIT: Duration = Duration::from_secs(ROUND_SECONDS + 30);

/// Options of `cargo xtask demo`.
#[derive(clap::Args, Clone)]
#[group(skip)]
pub struct Args {
    #[command(flatten)]
    deps: deps::Args,
}

/// Two guests of one kind.
struct Pair {
    title: &'static str,
    guests: Vec<Guest>,
    /// The address of the second guest, whom the first one talks to.
    peer: String,
    /// From the start of both to the first answer to a ping.
    booted: Duration,
    ping: String,
    megabits: Vec<f64>,
}

/// Brings what is missing, and shows it.
pub fn run(args: &Args) -> Result<()> {
    step::timed("packages", || deps::run(&args.deps))?;
    interrupt::watch()?;
    step::timed("our programs", programs::build)?;
    step::timed("test guests", || image::run(&image::Args::default()))?;
    interrupt::check()?;
    let start = Instant::now();
    let switch = Switch::start()?;
    say(start, &format!("vde_switch runs on {}", switch.path().display()));
    let ours = Machine::new().through_vdeq()?;
    let mut pairs = vec![
        Pair::start(start, "vdeq", 1, |number, mac| {
            ours.clone().vdeq_nic(&switch.path(), mac).address(0, number)
        })?,
        Pair::start(start, "-netdev vde", 3, |number, mac| {
            Machine::new().native_nic(&switch.path(), mac).address(0, number)
        })?,
    ];
    for pair in &mut pairs {
        interrupt::check()?;
        pair.ping(start)?;
        pair.listen()?;
    }
    say(start, "in another terminal, what passes is seen with: target/release/vdectl top");
    for round in 1..=ROUNDS {
        for pair in &mut pairs {
            interrupt::check()?;
            let megabits = pair.throughput()?;
            say(start, &format!("TCP round {round} of {ROUNDS}, {}: {megabits:.0} Mbit/s", pair.title));
        }
    }
    let text = summary(&pairs);
    say(start, "turning the guests off");
    for guest in pairs.into_iter().flat_map(|pair| pair.guests) {
        guest.power_off(COMMAND_LIMIT)?;
    }
    switch.wait_ports("every guest has left the switch", COMMAND_LIMIT, <[_]>::is_empty)?;
    say(start, "nothing is left on the switch; done");
    println!("{text}");
    Ok(())
}

impl Pair {
    /// Boots both guests; `machine` makes one from its address and its Ethernet address.
    fn start(
        start: Instant,
        title: &'static str,
        first: u8,
        machine: impl Fn(&str, &str) -> Machine,
    ) -> Result<Self> {
        interrupt::check()?;
        say(start, &format!("two guests boot, their NICs by {title}"));
        let make =
            |number: u8| machine(&format!("10.0.0.{number}/24"), &format!("52:54:00:00:00:{number:02x}"));
        let machines = [make(first), make(first + 1)];
        let names = [format!("demo-{first}"), format!("demo-{}", first + 1)];
        let since = Instant::now();
        let guests = Guest::start_all(&[(&names[0], &machines[0]), (&names[1], &machines[1])])?;
        let peer = format!("10.0.0.{}", first + 1);
        let mut pair =
            Self { title, guests, peer, booted: Duration::ZERO, ping: String::new(), megabits: Vec::new() };
        pair.guests[0].run_ok(&format!("ping -c 1 -W 5 {}", pair.peer), COMMAND_LIMIT)?;
        pair.booted = since.elapsed();
        say(start, &format!("both are up and hear each other after {:.1} s", pair.booted.as_secs_f64()));
        Ok(pair)
    }

    fn ping(&mut self, start: Instant) -> Result<()> {
        let text = self.guests[0].run_ok(&format!("ping -c 10 -i 0.2 {}", self.peer), COMMAND_LIMIT)?;
        self.ping = ping_result(&text).with_context(|| format!("ping says something else: {text}"))?;
        say(start, &format!("ping from guest to guest, {}: {}", self.title, self.ping));
        Ok(())
    }

    /// Starts iperf3's server in the second guest, and waits until it listens.
    fn listen(&mut self) -> Result<()> {
        self.guests[1].run_ok(guest::IPERF_SERVER, COMMAND_LIMIT).map(drop)
    }

    fn throughput(&mut self) -> Result<f64> {
        let command = format!("iperf3 -f m -t {ROUND_SECONDS} -c {}", self.peer);
        let text = self.guests[0].run_ok(&command, ROUND_LIMIT)?;
        let megabits = received(&text).with_context(|| format!("iperf3 says something else: {text}"))?;
        self.megabits.push(megabits);
        Ok(megabits)
    }

    fn median(&self) -> f64 {
        let mut sorted = self.megabits.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}

fn say(start: Instant, text: &str) {
    eprintln!("{:6.1} s  {text}", start.elapsed().as_secs_f64());
}

/// Loss and mean time of busybox's ping.
fn ping_result(text: &str) -> Option<String> {
    let loss = text.lines().find(|line| line.contains("packet loss"))?.split(", ").last()?;
    let times = text.lines().find(|line| line.starts_with("round-trip"))?.split(" = ").nth(1)?;
    Some(format!("{} lost, {} ms", loss.strip_suffix(" packet loss")?, times.split('/').nth(1)?))
}

/// The figure of the line that ends in "receiver".
fn received(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.trim_end().ends_with("receiver"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let unit = words.iter().position(|word| *word == "Mbits/sec")?;
    words.get(unit.checked_sub(1)?)?.parse().ok()
}

fn summary(pairs: &[Pair]) -> String {
    let mut text = String::from("\nTwo QEMU guests on one vde_switch, CPUs emulated (TCG)\n\n");
    let mut row = |name: &str, cell: &dyn Fn(&Pair) -> String| {
        let cells: Vec<String> = pairs.iter().map(|pair| format!("{:>24}", cell(pair))).collect();
        let _ = writeln!(text, "  {name:<28}{}", cells.concat());
    };
    row("", &|pair| pair.title.to_owned());
    row("from start to first ping", &|pair| format!("{:.1} s", pair.booted.as_secs_f64()));
    row("ping", &|pair| pair.ping.clone());
    row("TCP, guest to guest", &|pair| format!("{:.0} Mbit/s", pair.median()));
    if let [ours, native] = pairs
        && native.median() > 0.0
    {
        let _ = writeln!(
            text,
            "\n  TCP through vdeq is {:.1} times QEMU's own.",
            ours.median() / native.median()
        );
    }
    text.push_str(
        "\nEach guest of the left column was started like this, and its NIC is served by vhost-user-vde:\n\n  \
         target/release/vdeq qemu-system-x86_64 -m 256 ... -net nic -net vde,sock=/tmp/sw\n\n\
         Add --vde-print-plan before the program's name to see what that becomes.",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_result_real_output_gives_loss_and_mean() {
        let text = "--- 10.0.0.2 ping statistics ---\n10 packets transmitted, 10 packets received, 0% packet loss\n\
            round-trip min/avg/max = 0.513/0.734/1.205 ms\n";
        assert_eq!(ping_result(text).as_deref(), Some("0% lost, 0.734 ms"));
    }

    #[test]
    fn received_real_output_gives_the_receivers_figure() {
        let text = "[  5]   0.00-5.00   sec   602 MBytes  1010 Mbits/sec    0             sender\n\
            [  5]   0.00-5.00   sec   600 MBytes  1007 Mbits/sec                  receiver\n";
        assert_eq!(received(text), Some(1007.0));
    }
}
