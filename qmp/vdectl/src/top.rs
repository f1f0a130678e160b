//! `vdectl top`: what passes, live.
//!
//! ```text
//!  sampler   threads that ask the back ends ──▶ model   the latest answers, and rates
//!  keys      what the terminal sends        ──▶ view    what is chosen
//!                                               rows, columns, details, draw ──▶ screen
//!  session   the loop
//! ```
//!
//! One loop sleeps until a key, a signal, an answer or the next moment to draw comes; what does not touch the terminal is
//! pure. Input is read and understood here (`keys`) and not by crossterm, whose reader spins for ever on a terminal that has gone.

mod columns;
mod details;
mod draw;
mod keys;
mod model;
mod number;
mod rate;
mod rows;
#[cfg(test)]
mod sample;
mod sampler;
mod screen;
mod session;
mod view;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use qmp::{Address, Client};

use crate::back_end::sentence;
use crate::cli::Top;
use crate::vm::Vm;
use crate::{Failure, Status};
use sampler::Watched;
use session::{End, Session};
use view::INTERVALS;

/// How long something at a path may take to say what it is.
const GREETING: Duration = Duration::from_secs(3);

/// Carries it out.
pub fn run(args: &Top) -> Result<(), Failure> {
    let interval = interval(args.interval)?;
    screen::check()?;
    let look = looker(&args.vms)?;
    let failed = |error: io::Error| Failure::new(format!("the terminal is of no use: {error}"));
    let end = Session::start(interval, look).and_then(|mut session| session.serve()).map_err(failed)?;
    if let End::Signal(number) = end {
        // Whoever sent it sees that we died of it.
        signal_hook::low_level::emulate_default_handler(number).map_err(failed)?;
    }
    Ok(())
}

fn interval(seconds: f64) -> Result<Duration, Failure> {
    let (shortest, longest) = INTERVALS;
    let fits = |interval: &Duration| (shortest..=longest).contains(interval);
    Duration::try_from_secs_f64(seconds).ok().filter(fits).ok_or_else(|| {
        let (shortest, longest) = (shortest.as_secs_f64(), longest.as_secs());
        let sentence = format!("--interval {seconds} is not between {shortest} and {longest} seconds");
        Failure { status: Status::Usage, sentence }
    })
}

/// What finds the VMs that these words mean, or all. A word that means none at the start is an error; a VM that goes later is
/// just gone, and may come again.
fn looker(words: &[String]) -> Result<impl FnMut() -> Vec<Watched> + Send + use<>, Failure> {
    let mut alone = Vec::new();
    let mut names = Vec::new();
    for word in words {
        match Vm::find(word)? {
            Vm { controls, .. } if !controls.is_empty() => names.push(word.clone()),
            Vm { qmp: Address::Unix(path), entry: None, .. } => alone.push(back_end_alone(word, path)?),
            _ => return Err(Failure::new(format!("'{word}' has no back end for VDE NICs"))),
        }
    }
    let all = words.is_empty();
    Ok(move || {
        let vms = match all {
            true => Vm::all(),
            false => names.iter().filter_map(|name| Vm::find(name).ok()).collect(),
        };
        let vms = vms.into_iter().filter(|vm| !vm.controls.is_empty());
        let watched = vms.map(|Vm { name, controls, .. }| Watched { name, controls });
        // Two words may mean one VM.
        let by_socket = watched.chain(alone.iter().cloned()).map(|vm| (vm.controls.clone(), vm));
        by_socket.collect::<BTreeMap<_, _>>().into_values().collect()
    })
}

/// A path may be the control socket of a back end that was started by hand.
fn back_end_alone(word: &str, path: PathBuf) -> Result<Watched, Failure> {
    let address = Address::Unix(path.clone());
    let client = Client::connect(&address, GREETING)
        .map_err(|error| Failure::new(format!("{word} does not answer: {}", sentence(&error))))?;
    if client.version().is_ok() {
        return Err(Failure::new(format!("the QEMU at {word} has no back end for VDE NICs")));
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Watched { name, controls: vec![path] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_is_within_reason() {
        assert_eq!(interval(0.5).unwrap(), Duration::from_millis(500));
        for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e300, 0.01, 3601.0] {
            let failure = interval(seconds).unwrap_err();
            assert_eq!(failure.status, Status::Usage);
            assert!(failure.sentence.ends_with("is not between 0.1 and 3600 seconds"), "{failure}");
        }
    }
}
