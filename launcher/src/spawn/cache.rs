//! What emulators answered, kept from one start to the next.
//!
//! Asking a program costs more than all the rest that is done before it is started. The answer is kept in a
//! file of its own, whose first line says which program was asked what: its path, device, inode, size and
//! times. Another program under the same name has another line, and is asked anew.
//!
//! Only programs in machine code are believed not to change behind that: a script may run another
//! emulator tomorrow. A cache that is broken, that another user may write, or that cannot be written is as
//! good as none.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// More than any answer.
const LONGEST: u64 = 1 << 20;

const MACHINE_CODE: &[u8] = b"\x7fELF";

/// Gives what `program` answered to `question` when it was last asked, or asks it.
pub fn answer<E>(
    program: &Path,
    question: &str,
    ask: impl FnOnce() -> Result<String, E>,
) -> Result<String, E> {
    let Some((file, first_line)) = place(program, question) else { return ask() };
    if let Some(kept) = read(&file).as_deref().and_then(|text| text.strip_prefix(&first_line)) {
        return Ok(kept.to_owned());
    }
    let answer = ask()?;
    // The next start is slower if this fails.
    write(&file, &format!("{first_line}{answer}")).ok();
    Ok(answer)
}

/// Where the answer is kept, and the line that it must begin with.
fn place(program: &Path, question: &str) -> Option<(PathBuf, String)> {
    let program = program.canonicalize().ok()?;
    let mut file = File::open(&program).ok()?;
    let mut start = [0; MACHINE_CODE.len()];
    file.read_exact(&mut start).ok().filter(|()| start == MACHINE_CODE)?;
    let found = file.metadata().ok()?;
    let numbers = [found.dev(), found.ino(), found.size()].map(|number| number.to_string()).join(" ");
    let times =
        [found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec()].map(|time| time.to_string());
    let name = format!("{program:?} {question:?}");
    let file = directory()?.join(format!("{:016x}", hash(name.as_bytes())));
    Some((file, format!("{name} {numbers} {}\n", times.join(" "))))
}

/// The directory of all answers: root's is the machine's.
fn directory() -> Option<PathBuf> {
    let by_variable = |name, below: &str| {
        let found = env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        found.map(|path| path.join(below))
    };
    let own = by_variable("XDG_CACHE_HOME", "vdeq");
    match rustix::process::geteuid().is_root() {
        true => Some(own.unwrap_or_else(|| "/var/cache/vdeq".into())),
        false => own.or_else(|| by_variable("HOME", ".cache/vdeq")),
    }
}

/// Whether nobody else could have written there.
fn is_ours(found: &fs::Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o022 == 0
}

fn read(path: &Path) -> Option<String> {
    let directory = fs::symlink_metadata(path.parent()?).ok()?;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let found = file.metadata().ok()?;
    let usable = directory.is_dir() && is_ours(&directory) && found.is_file() && is_ours(&found);
    let mut text = String::new();
    let mut file = Some(&mut file).filter(|_| usable && found.size() <= LONGEST)?.take(LONGEST);
    file.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Puts a whole file in the place of whatever is there.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let found = fs::symlink_metadata(directory)?;
    if !found.is_dir() || !is_ours(&found) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let new = path.with_extension(std::process::id().to_string());
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| fs::rename(&new, path));
    written.inspect_err(|_| drop(fs::remove_file(&new)))
}

/// FNV-1a. Two names that meet push each other out, no more: the first line tells them apart.
fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn place_depends_on_the_program_and_the_question() {
        let scratch = tempfile::tempdir().expect("scratch");
        let program = scratch.path().join("emulator");
        fs::write(&program, b"\x7fELF one").expect("program");
        let (file, line) = place(&program, "--version").expect("a place");
        assert_eq!(place(&program, "--version"), Some((file.clone(), line.clone())));
        assert_ne!(place(&program, "-M help").expect("a place").0, file);
        // Another program under the same name, as a package manager brings it.
        let new = scratch.path().join("new");
        fs::write(&new, b"\x7fELF two").expect("program");
        fs::rename(&new, &program).expect("rename");
        let (again, other) = place(&program, "--version").expect("a place");
        assert!(again == file && other != line, "{other}");
        fs::write(&program, "#!/bin/sh\n").expect("script");
        assert_eq!(place(&program, "--version"), None);
        assert_eq!(place(&scratch.path().join("no"), "--version"), None);
    }

    #[test]
    fn read_gives_what_was_written_unless_others_may_write_it() {
        let scratch = tempfile::tempdir().expect("scratch");
        let directory = scratch.path().join("a/vdeq");
        let file = directory.join("x");
        assert_eq!(read(&file), None);
        write(&file, "one").expect("written");
        write(&file, "two").expect("written again");
        assert_eq!(read(&file).as_deref(), Some("two"));
        assert_eq!(fs::read_dir(&directory).expect("directory").count(), 1, "nothing else is left");

        set_mode(&file, 0o666);
        assert_eq!(read(&file), None);
        set_mode(&file, 0o600);
        set_mode(&directory, 0o777);
        assert_eq!(read(&file), None);
        assert!(write(&file, "three").is_err());
        set_mode(&directory, 0o700);
        assert_eq!(read(&file).as_deref(), Some("two"));

        let link = directory.join("link");
        std::os::unix::fs::symlink(&file, &link).expect("link");
        assert_eq!(read(&link), None);
        fs::write(&file, b"\xff").expect("broken");
        assert_eq!(read(&file), None);
        let plain = scratch.path().join("plain");
        fs::write(&plain, "").expect("file");
        assert!(write(&plain.join("x"), "four").is_err());
    }
}
