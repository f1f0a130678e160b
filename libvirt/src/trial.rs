//! Whether a domain's back end could join a network, found out by joining it.
//!
//! Only the network itself knows: a switch whether it takes this user, the kernel whether a tap is its. So a back end is
//! started as the hook would start it, with one NIC that no QEMU comes to, and ends as soon as it serves. We hold the other end
//! of the NIC's socket: when that is closed, also because we were killed, the back end has nobody left to serve, and nothing
//! is left of it.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Instant;

use crate::Failure;
use crate::back_end::{END_LIMIT, PAUSE, launch, pass_on};
use crate::policy::Granted;
use crate::sys::Identity;

/// What a network shows for us, as long as it lasts.
const DESCRIPTION: &str = "--description=vdectl libvirt check";

/// Joins a network with a program, as a user if not as ours, and leaves it.
///
/// # Errors
/// Why it cannot be joined.
pub fn join(program: &Path, network: &Granted, identity: Option<Identity>) -> Result<(), Failure> {
    let failed = |error| Failure::new(format!("no socket can be made to try it: {error}"));
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    pass_on(&theirs)?;
    let mut command = Command::new(program);
    command.args(["--fd", &theirs.as_raw_fd().to_string(), DESCRIPTION]);
    command.arg(format!("--link={}", network.locator)).stderr(Stdio::null());
    let mut back_end = launch(command, identity, network.privileged)?;
    drop((ours, theirs));
    let deadline = Instant::now() + END_LIMIT;
    while Instant::now() < deadline {
        // Who cannot be waited for is nobody's child any more.
        if !matches!(back_end.try_wait(), Ok(None)) {
            return Ok(());
        }
        sleep(PAUSE);
    }
    // It has served; what keeps it now is not the domain's.
    back_end.kill().ok();
    back_end.wait().map(drop).map_err(|error| Failure::new(format!("the back end does not end: {error}")))
}
