//! Everything with side effects: from a command line to QEMU.
//!
//! Order matters. First all that can be wrong is found out (program, command line, version, room for
//! guest memory, back end program), then the private directory is made and the back end started, and
//! only when it says that it is ready does this process become QEMU. Whoever fails in between leaves
//! nothing behind: the back end ends and removes the directory when the lifeline closes, and the
//! lifeline is open in this process only.

mod back_end;
mod board;
mod cache;
mod config_file;
mod default_switch;
mod memory_file;
mod probe;
mod program;
mod space;
mod sys;
mod user;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::argv::scan;
use crate::cli::{self, Request, USAGE};
use crate::error::Error;
use crate::plan::{BackEnd, Plan};
use crate::rewrite::{Facts, Rewrite};
use crate::version::QemuVersion;
use memory_file::MemoryFiles;
use program::Program;
use registry::{Directory, LONGEST_SOCKET, MONITOR_CONFIG, Maker, Process, Record};
use sys::{HeldSignals, WaitableChildren};

/// What `--vde-print-plan` shows in the place of the private directory.
const STAND_IN: &str = "/run/vdeq/PID";

/// Runs the wrapper; returns the exit status if it does not become QEMU.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let outcome = cli::parse(args).and_then(|command| match command {
        cli::Command::Help { program } => help(program),
        cli::Command::Version => print(concat!("vdeq ", env!("CARGO_PKG_VERSION"), "\n")),
        cli::Command::Run(request) => start(request),
    });
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            say(&error.to_string());
            error.status()
        }
    }
}

/// Prints one message. A closed stderr is no reason to fail.
fn say(text: &str) {
    let mut line = String::from("vdeq: ");
    // A name or a sentence from elsewhere must not smuggle control characters to a terminal.
    line.extend(text.chars().map(|c| if c.is_control() { ' ' } else { c }));
    line.push('\n');
    std::io::stderr().write_all(line.as_bytes()).ok();
}

fn print(text: &str) -> Result<(), Error> {
    let written = std::io::stdout().write_all(text.as_bytes());
    written.map_err(|source| Error::System { what: "cannot write to standard output", source })
}

/// Prints the usage, as the old wrapper did on stderr, and lets a link's program print its own.
fn help(program: Option<OsString>) -> Result<(), Error> {
    std::io::stderr().write_all(USAGE.as_bytes()).ok();
    match program {
        None => Ok(()),
        Some(name) => become_qemu(&program::find(&name)?, &["-h".into()], None),
    }
}

fn start(mut request: Request) -> Result<(), Error> {
    let children = WaitableChildren::new()
        .map_err(|source| Error::System { what: "cannot have children wait", source })?;
    let program = program::find(&request.program)?;
    if program.is_kvm_stand_in {
        program::prefer_kvm(&mut request.args);
    }
    request.default_switch = default_switch::exists();
    let mut rewrite = Rewrite::read(&program.emulator, &request)?;
    if let Some(kind) = rewrite.unknown_machine() {
        let answer = board::told(&program.path, kind);
        rewrite = Rewrite::read_answered(&program.emulator, &request, answer)?;
    }
    if !rewrite.needs_back_end() {
        let facts = Facts {
            version: QemuVersion::OLDEST,
            kvm_usable: false,
            private_dir: String::new(),
            run_as: None,
            umask_is_strict: true,
        };
        let plan = rewrite.plan(program.path.as_os_str(), &facts)?;
        return match request.print_plan {
            true => print_plan(&plan),
            false => {
                plan.notices.iter().for_each(|notice| say(notice));
                if request.wants_vde() {
                    say("no NIC of this VM is on VDE, so the options before the program have no effect");
                }
                drop(children);
                become_qemu(&program, &plan.arguments, None)
            }
        };
    }
    let version = probe::version(&program.path)?;
    if version < QemuVersion::OLDEST {
        return Err(Error::TooOld {
            program: program.path.display().to_string(),
            version: version.to_string(),
        });
    }
    let mut facts = Facts {
        version,
        kvm_usable: sys::kvm_usable(),
        private_dir: STAND_IN.into(),
        run_as: user::of(&scan(&request.args))?,
        umask_is_strict: user::umask_is_strict(),
    };
    if request.print_plan {
        return print_plan(&rewrite.plan(program.path.as_os_str(), &facts)?);
    }
    let private_dir = Directory::choose()?;
    facts.private_dir = private_dir.path().into();
    let plan = rewrite.plan(program.path.as_os_str(), &facts)?;
    let own_files = plan.memory.as_ref().map(|memory| memory.own_files.as_slice()).unwrap_or_default();
    let memory_files = MemoryFiles::lock(own_files)?;
    let lifeline = serve(&plan, request.back_end.as_deref(), private_dir)?;
    memory_files.keep_through_exec()?;
    // Only now: who gets an error is not to look for it among remarks.
    plan.notices.iter().for_each(|notice| say(notice));
    drop(children);
    become_qemu(&program, &plan.arguments, lifeline)
}

fn print_plan(plan: &Plan) -> Result<(), Error> {
    print(&format!("{}{}\n", plan.shell(), plan.json()))
}

/// Checks what only the machine can tell, then starts the back end; gives the lifeline.
fn serve(plan: &Plan, asked: Option<&OsStr>, private_dir: Directory) -> Result<Option<OwnedFd>, Error> {
    let Some(back_end) = &plan.back_end else { return Ok(None) };
    if let Some(memory) = &plan.memory {
        space::check(&memory.places)?;
        if memory.bytes.is_some() {
            config_file::check(&scan(&plan.arguments))?;
        }
    }
    let program = back_end::find(asked)?;
    // Dropped last: who is ended while the back end starts leaves nothing behind either.
    let signals =
        HeldSignals::new().map_err(|source| Error::System { what: "cannot hold signals back", source })?;
    if let Some(nic) = back_end.nics.iter().find(|nic| nic.socket.len() > LONGEST_SOCKET) {
        return Err(Error::SocketPath((&nic.socket).into()));
    }
    let private_dir = private_dir.create(back_end.socket_owner.is_some())?;
    introduce(plan, back_end, &private_dir)?;
    // QEMU closes its standard descriptors when it goes to the background, so that callers who read
    // them to the end go on; a back end that kept them would hold such callers until the VM ends.
    let quiet = scan(&plan.arguments).iter().any(|token| token.is("daemonize"));
    let lifeline = back_end::start(&program, &back_end.arguments(), quiet, &signals)?;
    // From here on the directory is the back end's to remove.
    private_dir.hand_over();
    Ok(Some(lifeline))
}

/// Says in the private directory who the VM is, and what gives it a monitor there.
fn introduce(plan: &Plan, back_end: &BackEnd, private_dir: &Directory) -> Result<(), Error> {
    if let Some(monitor) = &plan.monitor {
        private_dir.write(MONITOR_CONFIG, &monitor.file())?;
    }
    let record = Record {
        name: plan.name.clone(),
        program: plan.program.to_string_lossy().into_owned(),
        process: Process::own(),
        qmp: plan.monitor.as_ref().map(|monitor| format!("unix:{}", monitor.socket)),
        control: back_end.control.as_ref().map(PathBuf::from),
        nics: Vec::new(),
        made_by: Maker::Vdeq,
        since: Record::now(),
    };
    Ok(private_dir.record(&record)?)
}

/// Becomes QEMU; returns only if that fails. The lifeline is passed on; SIGPIPE and the signal mask
/// are set back to their defaults by the standard library's `exec`.
fn become_qemu(program: &Program, args: &[OsString], lifeline: Option<OwnedFd>) -> Result<(), Error> {
    if let Some(lifeline) = &lifeline {
        sys::keep_through_exec(lifeline)?;
    }
    let source = Command::new(&program.path).arg0(&program.argv0).args(args).exec();
    Err(program::exec_error(&program.path, source))
}
