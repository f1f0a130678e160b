//! What `vdeq` adds to a start of QEMU.
//!
//! The emulator is the real one, and its last word is an option that it does not know: it ends as soon as it has read
//! its command line, long before it would have made a machine. So the time from start to end is the same with
//! `vdeq` and without, but for what `vdeq` does before it becomes QEMU. Each round starts all sides once; what is shown is
//! each side's time less that of plain QEMU in the same round.
//!
//! All of it, the switch too, has real-time priority: a start is several processes that wait for each other, and on a busy
//! machine each of them would wait for a processor as well, for longer than all that they do.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use vde_tests::process::wait_until;
use vde_tests::{Qemu, Switch, places};

use super::Bench;
use super::line::{Line, Side, Wanted};
use crate::{interrupt, step};

pub const NAME: &str = "start of QEMU through vdeq";

/// Above everything that has none.
const PRIORITY: &str = "10";

/// A back end leaves sooner than this.
const LIMIT: Duration = Duration::from_secs(10);

/// How QEMU is started.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Plain,
    /// Through `vdeq`, without anything for it to do.
    NoNic,
    /// Through `vdeq`, with a NIC on a switch.
    Nic,
    /// The same, and nobody has asked QEMU for its version before.
    FirstNic,
}

const WAYS: [(Way, &str, Option<f64>); 4] = [
    (Way::Plain, "plain QEMU, to its end", None),
    (Way::NoNic, "added without a VDE NIC", Some(5.0)),
    (Way::Nic, "added with a NIC on vde_switch", Some(15.0)),
    (Way::FirstNic, "added with a NIC, the first time", None),
];

/// Measures the line.
pub fn run(bench: &mut Bench) -> Result<()> {
    let switch = Switch::start()?;
    step::run(Command::new("chrt").args(["-r", "-p", PRIORITY, &switch.pid().to_string()]))?;
    let cache = tempfile::tempdir()?;
    let mut sides = WAYS.map(|(_, title, most)| Side { limit: most.map(Wanted::AtMost), ..Side::new(title) });
    // What is in no cache of the kernel or of ours yet is not what is asked for.
    for (way, _, _) in WAYS {
        time(way, &switch, cache.path())?;
    }
    for round in 0..bench.rounds(40) {
        interrupt::check()?;
        let mut times = [0.0; WAYS.len()];
        for turn in 0..WAYS.len() {
            let number = (round + turn) % WAYS.len();
            times[number] = time(WAYS[number].0, &switch, cache.path())?;
        }
        for (number, side) in sides.iter_mut().enumerate() {
            side.rounds.push(if number == 0 { times[0] } else { times[number] - times[0] });
        }
    }
    bench.add(Line { name: NAME.into(), unit: "ms", sides: sides.into(), comparisons: Vec::new() })
}

/// Starts QEMU, and gives the milliseconds to its end.
fn time(way: Way, switch: &Switch, cache: &Path) -> Result<f64> {
    let mut command = Command::new("chrt");
    command.args(["-r", PRIORITY]);
    if way != Way::Plain {
        command.arg(places::own_program("vdeq")?);
    }
    command.arg(Qemu::Installed.program()?).args(["-nodefaults", "-display", "none", "-m", "64"]);
    if matches!(way, Way::Nic | Way::FirstNic) {
        command.args(["-net", "nic,model=virtio", "-net", &format!("vde,sock={}", switch.path().display())]);
    }
    if way == Way::FirstNic {
        std::fs::remove_dir_all(cache.join("vdeq"))?;
    }
    command.arg("-no-such-option").env("XDG_CACHE_HOME", cache);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begin = Instant::now();
    let mut child = command.spawn()?;
    let status = child.wait()?;
    let taken = begin.elapsed().as_secs_f64() * 1000.0;
    ensure!(status.code() == Some(1), "QEMU was to refuse its last word, but: {status}");
    // The back end leaves by itself; until then it is in the next one's way.
    let private = Path::new("/run/vdeq").join(child.id().to_string());
    wait_until("the end of the back end", LIMIT, || Ok((!private.exists()).then_some(())))?;
    Ok(taken)
}
