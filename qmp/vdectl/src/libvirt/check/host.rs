//! What of this machine the networks of domains need: the hook where libvirt looks for it, the back end where the hook does,
//! a daemon that knows of the hook, and security modules that let all of them be run.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use vde_libvirt::domain::{Domain, NAMESPACE};
use vde_libvirt::owner;
use vde_libvirt::sys::Identity;
use vde_start::PROGRAM;

use super::daemon::Daemon;
use super::modules::{self, Way};
use super::networks::Trial;

/// Where libvirt looks for hooks.
pub const HOOKS: &str = "/etc/libvirt/hooks";
/// Our hook's name, which scripts that call it have in them.
const HOOK: &str = "vde-libvirt-hook";
/// As much of a file as is read to see whether it is a program of ours.
const PROGRAM_MAX: u64 = 64 << 20;
/// The oldest libvirt that runs what is in `qemu.d`.
const QEMU_D: (u64, u64) = (6, 5);

/// This machine, as the programs of a domain see it.
#[derive(Debug)]
pub struct Machine {
    /// libvirt's daemon.
    pub daemon: Option<Daemon>,
    /// Whom they run as, if not as us; none at all if that cannot be told.
    owner: Option<Option<Identity>>,
}

impl Machine {
    /// Looks at it.
    pub fn of(domain: &Domain, missing: &mut Vec<String>) -> Self {
        let owner = owner::of_back_end(domain).map_err(|failure| missing.push(format!("user: {failure}")));
        Self { daemon: Daemon::find(), owner: owner.ok() }
    }

    /// What security modules have not been told for a way, by which the daemon may run a program.
    pub fn lacks(&self, way: Way, program: Option<&Path>) -> Vec<String> {
        let lacks = |daemon: &Daemon| modules::missing(Path::new("/"), daemon.name, way, program);
        self.daemon.as_ref().map_or(Vec::new(), lacks)
    }

    /// Whom they run as, if not as us.
    pub fn user(&self) -> Option<&Identity> {
        self.owner.as_ref()?.as_ref()
    }

    /// Who joins networks as a domain's back end does, by the program that was found for it, or by our own. None for a
    /// program that is of no use.
    pub fn trial(&self, found: Option<Option<PathBuf>>) -> Option<Trial> {
        let own = || vde_start::find().ok().filter(|program| forbidden(program, self.user()).is_none());
        Some(Trial { program: found?.or_else(own)?, user: self.owner.clone()? })
    }
}

/// Whether libvirt finds the hook, and gives the one that it finds.
pub fn hook(hooks: &Path, daemon: Option<&Daemon>) -> Result<PathBuf, String> {
    let own = fs::read_dir(hooks.join("qemu.d")).into_iter().flatten().flatten().map(|file| file.path());
    let all: Vec<PathBuf> = own.chain([hooks.join("qemu")]).collect();
    let ours: Vec<&PathBuf> = all.iter().filter(|file| is_hook(file)).collect();
    let Some(hook) = ours.iter().copied().find(|file| is_executable(file)) else {
        return Err(match ours.first() {
            Some(file) => format!("hook: {0} is not executable: chmod 755 {0}", file.display()),
            None => format!(
                "hook: there is none of ours in {0}/qemu.d: ln -s /usr/local/bin/{HOOK} {0}/qemu.d/vde, and restart libvirt",
                hooks.display()
            ),
        });
    };
    // Once a daemon has found any, it looks for new ones at each call.
    let is_known = |file: &PathBuf| {
        let changed = fs::symlink_metadata(file).map(|found| (found.ctime(), found.ctime_nsec()));
        daemon.is_none_or(|daemon| changed.is_ok_and(|changed| daemon.is_younger_than(changed)))
    };
    match daemon {
        Some(daemon) if !all.iter().filter(|file| is_executable(file)).any(is_known) => Err(format!(
            "hook: {} is newer than {1}, which looks for hooks when it starts: systemctl restart {1}",
            hook.display(),
            daemon.name
        )),
        _ => Ok(hook.clone()),
    }
}

/// The program itself has its namespace in it, a script the program's name.
fn is_hook(file: &Path) -> bool {
    contents(file).is_some_and(|bytes| has(&bytes, NAMESPACE) || is_script(&bytes) && has(&bytes, HOOK))
}

/// What is in a file.
pub fn contents(file: &Path) -> Option<Vec<u8>> {
    // What is a pipe here would hold us.
    let is_file = fs::metadata(file).is_ok_and(|found| found.is_file());
    let mut bytes = Vec::new();
    let read = |file: fs::File| file.take(PROGRAM_MAX).read_to_end(&mut bytes).is_ok();
    (is_file && fs::File::open(file).is_ok_and(read)).then_some(bytes)
}

/// Whether a word is in it.
pub fn has(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

fn is_script(bytes: &[u8]) -> bool {
    bytes.starts_with(b"#!")
}

/// Whether a file is a program.
pub fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The back end that a program of ours finds, if its user may run it; none if that cannot be told.
pub fn program(
    starter: &Path,
    daemon: Option<&Daemon>,
    user: Option<&Identity>,
) -> Result<Option<PathBuf>, String> {
    // It goes by its own file, not by the link that libvirt knows. A script calls it from anywhere.
    let Ok(file) = fs::canonicalize(starter) else { return Ok(None) };
    let mut start = [0; 2];
    let read = fs::File::open(&file).and_then(|mut file| file.read_exact(&mut start));
    let folder = match (read, file.parent()) {
        (Ok(()), Some(folder)) if !is_script(&start) => folder,
        _ => return Ok(None),
    };
    let path = daemon.map(|daemon| daemon.path.clone()).unwrap_or_default();
    let found = [folder.to_owned()].into_iter().chain(path).map(|folder| folder.join(PROGRAM));
    match found.into_iter().find(|file| file.is_file()).map(fs::canonicalize) {
        Some(Ok(program)) => forbidden(&program, user).map_or(Ok(Some(program)), Err),
        // What the daemon's PATH has cannot be told.
        None if daemon.is_none() => Ok(None),
        _ => Err(format!(
            "program: {PROGRAM} is neither beside {} nor on the daemon's PATH: install -m 755 {PROGRAM} {}",
            file.display(),
            folder.display()
        )),
    }
}

/// Whether a user may not run a program: it, or a directory above it, is not for others.
pub fn forbidden(program: &Path, user: Option<&Identity>) -> Option<String> {
    let Some(user) = user else {
        let denied = access(program, Access::EXEC_OK).is_err();
        return denied.then(|| format!("program: {0} may not be run: chmod 755 {0}", program.display()));
    };
    let is_closed = |path: &&Path| {
        fs::metadata(path).is_ok_and(|found| {
            let is_of_group = user.gid == found.gid() || user.groups.contains(&found.gid());
            let others = if is_of_group { 0o010 } else { 0o001 };
            found.mode() & if found.uid() == user.uid { 0o100 } else { others } == 0
        })
    };
    let closed = program.ancestors().filter(is_closed).last()?;
    Some(format!(
        "program: {} may not be run by user {}, as QEMU is: chmod a+rx {}",
        program.display(),
        user.uid,
        closed.display()
    ))
}

/// Whether this libvirt runs what is in `qemu.d`.
pub fn version(said: &str, hook: &Path) -> Option<String> {
    let version = said.lines().find_map(|line| line.strip_prefix("Running against daemon:"))?.trim();
    let mut numbers = version.split('.').map(|word| word.parse::<u64>().unwrap_or_default());
    let number = (numbers.next()?, numbers.next()?);
    let is_alone = hook.file_name().is_some_and(|name| name == "qemu");
    (number < QEMU_D && !is_alone).then(|| {
        format!(
            "hook: libvirt {version} does not read qemu.d, as 6.5 and later do: have {HOOKS}/qemu call {HOOK} \"$@\""
        )
    })
}

#[cfg(test)]
mod tests;
