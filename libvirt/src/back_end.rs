//! Starting and ending the back end of a domain.
//!
//! All sockets are made here and handed over: those of the NICs are given to QEMU's user, that of commands stays ours. The
//! back end says on a pipe when it serves, or why it does not; then this program ends, and the back end goes on by itself, owned
//! by init. What it says later goes beside QEMU's log.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, lchown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use qmp::{Address, Client};
use registry::{CONTROL, Directory, Maker, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fchmod};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Failure;
use crate::domain::Domain;
use crate::plan::{Plan, doubled};
use crate::sys::{self, Identity};

/// The back end gives a switch that does not answer up earlier.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to end by itself.
pub(crate) const END_LIMIT: Duration = Duration::from_secs(3);
/// Time between two looks at whether it has.
pub(crate) const PAUSE: Duration = Duration::from_millis(5);
/// A socket takes in so many connections before they are accepted.
const BACKLOG: i32 = 16;
/// Where a back end that is not its starter's finds programs, if it is allowed any.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Starts the back end of a domain, and waits until it serves. One that is left from an earlier life of the domain is ended.
/// With an `identity` it runs as that user.
///
/// # Errors
/// A network cannot be opened, or something cannot be made; nothing is left then.
pub fn start(plan: &Plan, domain: &Domain, identity: Option<Identity>) -> Result<(), Failure> {
    end(&plan.directory)?;
    let name = plan.directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let directory = Directory::of_domain(name).and_then(|directory| directory.create(identity.is_some()));
    let directory = directory.map_err(|error| Failure::new(error.to_string()))?;
    let control_path = plan.directory.join(CONTROL);
    let record = Record {
        name: Some(domain.name.clone()),
        program: domain.emulator.clone(),
        process: None,
        qmp: None,
        control: Some(control_path.clone()),
        nics: plan.nics.iter().map(|planned| planned.nic.clone()).collect(),
        made_by: Maker::Libvirt,
        since: Record::now(),
    };
    directory.record(&record).map_err(|error| Failure::new(error.to_string()))?;

    let control = make_socket(&control_path)?;
    let mut words = vec!["--control-fd".into(), control.as_raw_fd().to_string()];
    let mut sockets = vec![control];
    for nic in &plan.nics {
        let path = plan.directory.join(&nic.socket);
        let socket = make_socket_of(&path, identity.as_ref())?;
        let (fd, id) = (socket.as_raw_fd(), doubled(&nic.nic.id));
        words.extend(["--nic".into(), format!("fd={fd},id={id},{}", nic.words)]);
        sockets.push(socket);
    }
    words.extend(plan.joins.iter().map(|join| format!("--join={join}")));
    words.extend(plan.options.iter().cloned());
    run(&words, &sockets, plan, domain, identity)?;
    directory.hand_over();
    Ok(())
}

/// Runs the program until it says that it serves. It outlives us, and init waits for it then.
fn run(
    words: &[String],
    sockets: &[OwnedFd],
    plan: &Plan,
    domain: &Domain,
    identity: Option<Identity>,
) -> Result<(), Failure> {
    let mut command = Command::new(vde_start::find().map_err(|error| sentence(&error))?);
    // It ends with QEMU also when libvirt does not see that.
    command.arg("--follow-front-end").args(words);
    let mut log = log_file(domain, identity.is_some());
    for remark in &plan.remarks {
        // A log that is full is no reason not to start.
        log.as_mut().map(|log| writeln!(log, "vde-libvirt-hook: {remark}").ok());
    }
    command.stderr(log.map_or_else(Stdio::null, Stdio::from));
    sockets.iter().try_for_each(pass_on)?;
    launch(command, identity, plan.privileged).map(drop)
}

/// Has the program that is started next inherit a descriptor.
pub(crate) fn pass_on(socket: impl AsFd) -> Result<(), Failure> {
    fcntl_setfd(socket, FdFlags::empty())
        .map_err(|error| Failure::new(format!("cannot pass a socket on: {error}")))
}

/// Starts a back end as a domain's is, and waits until it serves.
pub(crate) fn launch(
    mut command: Command,
    identity: Option<Identity>,
    privileged: bool,
) -> Result<Child, Failure> {
    command.current_dir("/");
    let user = identity.as_ref().map(|identity| sys::name_of(identity.uid));
    if let Some(identity) = identity {
        // What libvirt was started with is root's.
        command.env_clear().env("PATH", PATH);
        sys::run_as(&mut command, identity, privileged);
    }
    vde_start::start(command, START_LIMIT).map_err(|error| {
        let Failure(said) = sentence(&error);
        // Root has made the switch, perhaps, and wonders; or is about to make it.
        Failure(match user {
            Some(user) if said.contains("ermission") => {
                format!("{said} (it runs as user {user}, as QEMU does)")
            }
            Some(user) if said.contains("vde_switch -s") => {
                format!("{said}, with -m 660 and -g for a group of user {user}, as whom it runs")
            }
            _ => said,
        })
    })
}

/// An error with its causes.
fn sentence(error: &dyn std::error::Error) -> Failure {
    Failure(match error.source() {
        Some(source) => format!("{error}: {}", sentence(source).0),
        None => error.to_string(),
    })
}

/// Listens at a path that is free, for QEMU's user alone, or for us.
///
/// # Errors
/// Those of the system.
pub fn make_socket_of(path: &Path, identity: Option<&Identity>) -> Result<OwnedFd, Failure> {
    let socket = make_socket(path)?;
    if let Some(Identity { uid, gid, .. }) = identity {
        lchown(path, Some(*uid), Some(*gid)).map_err(|error| cannot_make(path, &error))?;
    }
    Ok(socket)
}

/// Listens at a path that is free, for its owner alone.
fn make_socket(path: &Path) -> Result<OwnedFd, Failure> {
    let make = || {
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Its file gets the mode of the socket at birth.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, BACKLOG)?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    make().map_err(|error| cannot_make(path, &error))
}

fn cannot_make(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("cannot make socket {}: {error}", path.display()))
}

/// The file beside QEMU's log; none where there is no directory of libvirt's.
fn log_file(domain: &Domain, is_system: bool) -> Option<File> {
    let directory = match is_system {
        true => PathBuf::from("/var/log/libvirt/qemu"),
        false => {
            let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            cache.or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cache")))?.join("libvirt/qemu/log")
        }
    };
    let path = directory.join(format!("{}-vde.log", domain.name));
    // The directory may be QEMU's user's: what is not a plain file of its own name is left alone.
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).ok()?;
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(0o600).custom_flags(flags).open(path).ok()?;
    let found = file.metadata().ok()?;
    (found.is_file() && found.nlink() == 1).then_some(file)
}

/// Whether there is a back end in a domain's directory.
pub fn answers(directory: &Path) -> bool {
    registry::listener(&directory.join(CONTROL)).is_some()
}

/// Ends the back end in a domain's directory, if there is one, and removes the directory.
///
/// # Errors
/// The directory cannot be removed.
pub fn end(directory: &Path) -> Result<(), Failure> {
    let control = directory.join(CONTROL);
    if let Some(pid) = registry::listener(&control) {
        // Held from the first: each question leaves a connection, and one that hangs has no room for many.
        let process = pid.and_then(held);
        if let Ok(mut client) = Client::connect(&Address::Unix(control), END_LIMIT) {
            // It may be gone before it has answered.
            client.execute("quit", serde_json::json!({})).ok();
        }
        match process {
            Some(process) if !has_ended(&process, END_LIMIT) && answers(directory) => {
                pidfd_send_signal(&process, Signal::KILL).ok();
                has_ended(&process, END_LIMIT);
            }
            Some(_) => {}
            // In another world than ours.
            None => wait_silent(directory),
        }
    }
    registry::remove(directory)
        .map_err(|error| Failure::new(format!("cannot remove {}: {error}", directory.display())))
}

fn held(pid: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits for the end of a process.
fn has_ended(process: &OwnedFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).ok();
    poll(&mut [PollFd::new(process, PollFlags::IN)], limit.as_ref()).is_ok_and(|count| count > 0)
}

fn wait_silent(directory: &Path) {
    let deadline = Instant::now() + END_LIMIT;
    while answers(directory) && Instant::now() < deadline {
        sleep(PAUSE);
    }
}
