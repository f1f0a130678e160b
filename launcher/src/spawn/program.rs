//! Finding the emulator.
//!
//! `qemu` and `kvm`, the names of the old examples, exist on few machines now: unless a program of
//! that very name is on PATH they mean the system emulator of this machine.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

use crate::argv::scan;
use crate::error::Error;
use crate::machine::Machine;

/// Searched when PATH is not set, as the C library does.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// An emulator that exists.
#[derive(Debug)]
pub struct Program {
    /// Its path.
    pub path: PathBuf,
    /// What it is called: the name as the user typed it, unless another program stands in for it.
    pub argv0: OsString,
    /// The file name that tells the architecture.
    pub emulator: String,
    /// `kvm` was asked for, and a plain emulator stands in for it.
    pub is_kvm_stand_in: bool,
}

/// Finds the program `name` by the rules of a shell.
pub fn find(name: &OsStr) -> Result<Program, Error> {
    let generic = name == "qemu" || name == "kvm";
    if let Some(chosen) = env::var_os("VDEQ_QEMU").filter(|chosen| generic && !chosen.is_empty()) {
        let path = look_up(&chosen)?.ok_or_else(|| {
            missing(&chosen, " (named by VDEQ_QEMU); set it to an emulator that exists, or unset it".into())
        })?;
        if is_vdeq(&path) {
            return Err(Error::NamesItself(chosen.to_string_lossy().into_owned()));
        }
        return Ok(program(path, chosen, name == "kvm"));
    }
    if let Some(path) = look_up(name)? {
        return Ok(program(path, name.to_owned(), false));
    }
    if !generic {
        let hint = if name.as_encoded_bytes().contains(&b'/') {
            "; give the path of an emulator that exists"
        } else {
            " on PATH; install it or give its path"
        };
        return Err(missing(name, hint.into()));
    }
    let stand_in = OsString::from(format!("qemu-system-{}", host_architecture()));
    let hint = format!(", nor {}; install it, or set VDEQ_QEMU to an emulator", stand_in.to_string_lossy());
    let path = look_up(&stand_in)?.ok_or_else(|| missing(name, hint))?;
    Ok(program(path, stand_in, name == "kvm"))
}

/// Whether this program is our own, by whatever link: it would look for the emulator again, without end.
fn is_vdeq(path: &Path) -> bool {
    let file = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    env::current_exe().is_ok_and(|ours| file(&ours).is_some_and(|ours| file(path) == Some(ours)))
}

/// Gives a plain emulator what `kvm` promises: KVM if the host has it, unless the user chose.
pub fn prefer_kvm(args: &mut Vec<OsString>) {
    let tokens = scan(args);
    let refused = tokens.iter().any(|token| token.is("no-kvm"));
    if !refused && !Machine::read("", &tokens).names_accelerator() {
        // Merges with the user's own -machine, which -accel would not.
        args.splice(0..0, ["-machine".into(), "accel=kvm:tcg".into()]);
    }
}

/// What a failed `exec` means.
pub fn exec_error(path: &Path, source: io::Error) -> Error {
    let program = path.display().to_string();
    match source.kind() {
        io::ErrorKind::NotFound => {
            Error::NotFound { program, hint: " (or the interpreter that it names); install it again".into() }
        }
        _ => Error::NotExecutable { program, source },
    }
}

/// Looks a name up on PATH, or takes it as a path if it has a slash. A file that may not be executed
/// is an error only if no later directory has a better one.
pub fn look_up(name: &OsStr) -> Result<Option<PathBuf>, Error> {
    let search = match name.as_encoded_bytes().contains(&b'/') {
        true => return candidate(Path::new(name)).transpose(),
        false => env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()),
    };
    let mut refused = None;
    for directory in env::split_paths(&search).filter(|_| !name.is_empty()) {
        match candidate(&directory.join(name)) {
            Some(Ok(path)) => return Ok(Some(path)),
            Some(Err(error)) => refused = refused.or(Some(error)),
            None => {}
        }
    }
    refused.map_or(Ok(None), Err)
}

/// The path, if there is a file that can be executed.
fn candidate(path: &Path) -> Option<Result<PathBuf, Error>> {
    let metadata = path.metadata().ok()?;
    let executable = match metadata.is_file() {
        true => rustix::fs::access(path, Access::EXEC_OK).map_err(io::Error::from),
        false => Err(io::Error::from(io::ErrorKind::IsADirectory)),
    };
    let refuse = |source| Error::NotExecutable { program: path.display().to_string(), source };
    Some(executable.map(|()| path.to_owned()).map_err(refuse))
}

fn missing(name: &OsStr, hint: String) -> Error {
    Error::NotFound { program: format!("'{}'", name.to_string_lossy()), hint }
}

fn program(path: PathBuf, argv0: OsString, is_kvm_stand_in: bool) -> Program {
    let file_name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut emulator = file_name(&path);
    // A link such as /usr/local/bin/my-qemu tells its architecture only by what it points to.
    if !emulator.starts_with("qemu-system-") {
        let target = path.canonicalize().map(|target| file_name(&target));
        emulator = target.ok().filter(|target| target.starts_with("qemu-system-")).unwrap_or(emulator);
    }
    Program { path, argv0, emulator, is_kvm_stand_in }
}

/// QEMU's name of the architecture that `uname -m` tells.
fn host_architecture() -> String {
    let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
    match machine.as_str() {
        "i486" | "i586" | "i686" => "i386".into(),
        "ppc64le" => "ppc64".into(),
        "armv6l" | "armv7l" | "armv8l" => "arm".into(),
        _ => machine,
    }
}
