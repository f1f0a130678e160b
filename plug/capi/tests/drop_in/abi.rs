//! What a linker and a compiler see, and what calls say that reach no network.

use std::path::Path;
use std::process::Command;

use rustix::io::Errno;

use crate::harness::{RealSwitch, until};
use crate::library::{BOTH, Library, Original, Ours, Program, succeed};

/// Symbols that a library defines for others: letter and name.
fn exports(library: Library) -> Vec<String> {
    let text = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(library.file()));
    text.lines()
        .map(|line| line.rsplit(' ').next().expect("a name").split('@').next().expect("a name").to_owned())
        .collect()
}

/// Values of a library's dynamic section with this tag.
fn dynamic(library: Library, tag: &str) -> Vec<String> {
    let text = succeed(Command::new("readelf").arg("-d").arg(library.file()));
    let lines = text.lines().filter(|line| line.contains(&format!("({tag})")));
    lines.filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned())).collect()
}

#[test]
fn c_23_exports_what_the_original_does_and_nothing_else() {
    assert_eq!(exports(Ours), exports(Original));
    assert_eq!(exports(Ours).len(), 11);
    assert_eq!(dynamic(Ours, "SONAME"), ["libvdeplug.so.2"]);
    for needed in dynamic(Ours, "NEEDED") {
        // Parts of every C program's run time.
        let base = ["libc.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];
        assert!(base.contains(&needed.as_str()), "{needed}");
    }
}

#[test]
fn c_24_c_25_layout_version_and_null_handles() {
    let dir = tempfile::tempdir().expect("temporary directory");
    // A program made for the one runs on the other.
    for header in BOTH {
        let program = Program::compile("interface", header, &[]);
        for library in BOTH {
            assert_eq!(succeed(program.on(library).arg(dir.path())), "");
        }
    }
}

#[test]
fn errno_says_why() {
    let switch = RealSwitch::start();
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = |rest: &str| format!("{}/{rest}", dir.path().display());
    std::fs::write(path("file"), "text\n").expect("write");
    std::fs::create_dir(path("empty")).expect("mkdir");
    std::fs::create_dir(path("dead")).expect("mkdir");
    // Not only closed: a child that another test is starting has it, too, until it is a program.
    let dead = std::os::unix::net::UnixListener::bind(path("dead/ctl")).expect("bind");
    rustix::net::shutdown(&dead, rustix::net::Shutdown::Both).expect("shutdown");
    let program = Program::compile("errors", Ours, &[]);
    let tell = |library: Library, locator: &str| {
        let text = succeed(program.on(library).arg(locator));
        Errno::from_raw_os_error(text.trim().parse().expect("a number"))
    };
    for (locator, errno) in [
        ("/nowhere/sw".to_owned(), Errno::NOENT),
        (path("empty"), Errno::NOENT),
        (format!("vde://{}", path("file")), Errno::NOTDIR),
        (path("file/sw"), Errno::NOTDIR),
        (path("dead"), Errno::CONNREFUSED),
        ("no-such-scheme://x".to_owned(), Errno::PROTONOSUPPORT),
    ] {
        for library in BOTH {
            assert_eq!(tell(library, &locator), errno, "{locator} on {library:?}");
        }
    }
    // Where the original writes to standard error, goes on regardless, waits for ever or leaves errno as it was.
    for (locator, errno) in [
        (switch.at("[nosuchkey=1]"), Errno::INVAL),
        (switch.at("[mode=rw]"), Errno::INVAL),
        (switch.at("[group=no such group]"), Errno::INVAL),
        (switch.at("[no-such-group-of-ports]"), Errno::NOENT),
        (switch.at("[99999999]"), Errno::INVAL),
        (path(&"x".repeat(120)), Errno::NOENT),
    ] {
        assert_eq!(tell(Ours, &locator), errno, "{locator}");
    }
}

#[test]
fn locator_of_bytes_that_are_no_text_opens() {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let dir = tempfile::tempdir().expect("temporary directory");
    let name = std::ffi::OsString::from_vec([dir.path().as_os_str().as_bytes(), b"/sw\xff\xe9"].concat());
    let switch = RealSwitch::start_with(&[], Some(Path::new(&name)), None);
    let program = Program::compile("calls", Ours, &[]);
    for library in BOTH {
        succeed(program.on(library).arg("open").arg(&name));
        until("the ports are free", || switch.plugs() == 0);
    }
}
