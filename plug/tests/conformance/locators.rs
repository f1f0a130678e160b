//! Which switch a locator means.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use vdeplug::{OpenErrorKind, VdeLocator};

use crate::harness::{RealSwitch, impatient, in_child, names, need_root, open, open_dir, until};

#[test]
fn c_18_all_forms_open() {
    let switch = RealSwitch::start();
    let dir = switch.dir.display().to_string();
    let escaped = dir.replace("/sw", "/%73w");
    for text in [
        dir.clone(),
        format!("vde://{dir}"),
        format!("{dir}[]"),
        format!("'{dir}'[5]"),
        format!("\"{dir}\"[5"),
        escaped,
        format!("{dir}[m=0640]"),
        format!("{dir}[5]junk"),
        VdeLocator::new(&dir).to_string(),
    ] {
        drop(open(text));
    }
    let error = vdeplug::open(&switch.at("[zzz=1]"), &impatient()).expect_err("no such option");
    assert_eq!(error.kind(), OpenErrorKind::Usage);
    assert!(error.to_string().contains("there is no option \"zzz\""), "{error}");
}

#[test]
fn c_18_display_of_an_odd_path_opens() {
    let home = open_dir();
    let odd = home.path().join("a, b[1]'%41\"");
    let _switch = RealSwitch::start_with(&[], Some(&odd), None);
    open(VdeLocator::new(&odd).to_string());
}

#[test]
fn c_19_file_holds_a_locator() {
    let switch = RealSwitch::start();
    let home = open_dir();
    let file = home.path().join("locator");
    let name = file.to_str().expect("ASCII");
    for end in ["", "\n", "\nignored\n"] {
        fs::write(&file, format!("{}{end}", switch.at("[7]"))).expect("write");
        let _link = open(name);
        assert!(switch.manage("port/print 7").contains("endpoint ID"));
    }
    let error = vdeplug::open(&format!("vde://{name}"), &impatient()).expect_err("a file is no switch");
    assert!(error.to_string().contains("it is a file, not a directory"), "{error}");
    assert_eq!(error.kind(), OpenErrorKind::NotFound);
}

/// Runs the test again with these directories in the place of `/run` and `/tmp`, and with this home.
fn with_own_run_and_tmp(command: Command, home: &Path) -> Command {
    let mut isolated = Command::new("unshare");
    let script = "exec 9<\"$0\" && mount -t tmpfs none /run && mount -t tmpfs none /tmp && exec /proc/self/fd/9 \"$@\"";
    isolated.args(["--mount", "sh", "-c", script]).arg(command.get_program()).env("HOME", home);
    isolated
}

#[test]
fn c_20_c_21_empty_locator_means_the_default() {
    need_root("to mount its own /run and /tmp");
    let name = "locators::c_20_c_21_empty_locator_means_the_default";
    in_child(
        name,
        |command| with_own_run_and_tmp(command, Path::new("/tmp/home")),
        || {
            let home = Path::new("/tmp/home");
            let (first, second) = (home.join(".vdeplug/default"), home.join(".vde2/default.switch"));
            let (a, b) = (RealSwitch::start(), RealSwitch::start());
            let plugs = |locator| {
                let link = open(locator);
                let found = (a.plugs(), b.plugs());
                drop(link);
                until("the plug is out", || a.plugs() + b.plugs() == 0);
                found
            };
            let error = vdeplug::open("", &impatient()).expect_err("nothing there");
            assert!(error.to_string().contains("/var/run/vde.ctl or /tmp/vde.ctl"), "{error}");
            assert_eq!(error.kind(), OpenErrorKind::NotFound);

            let tmp = RealSwitch::start_with(&[], Some("/tmp/vde.ctl".as_ref()), None);
            let _link = open("");
            assert_eq!(tmp.plugs(), 1);
            let run = RealSwitch::start_with(&[], Some("/var/run/vde.ctl".as_ref()), None);
            let _link = open("[5]");
            assert_eq!((tmp.plugs(), run.plugs()), (1, 1));

            for dir in [".vdeplug", ".vde2"] {
                fs::create_dir_all(home.join(dir)).expect("mkdir");
            }
            symlink(&b.dir, &second).expect("link");
            assert_eq!(plugs(""), (0, 1), "a link, the second name");
            fs::write(&first, a.at("")).expect("write");
            assert_eq!(plugs(""), (1, 0), "a file, the first name");
            fs::remove_file(&first).expect("remove");
            let directory = RealSwitch::start_with(&[], Some(&first), None);
            let _link = open("");
            assert_eq!(directory.plugs(), 1, "a directory, the first name");
            let _link = open("vde://");
            assert_eq!((directory.plugs(), run.plugs()), (1, 2), "C-21: no home");
        },
    );
}

#[test]
fn file_is_named_in_errors_about_its_first_line() {
    let home = open_dir();
    let file = home.path().join("net");
    for (line, kind) in [
        ("/nowhere/sw\n", OpenErrorKind::NotFound),
        ("vde:///nowhere[nosuchkey=1]", OpenErrorKind::Usage),
        ("no-such-scheme://", OpenErrorKind::Usage),
    ] {
        fs::write(&file, line).expect("write");
        let error = vdeplug::open(file.to_str().expect("ASCII"), &impatient()).expect_err(line);
        let alone = vdeplug::open(line.trim_end(), &impatient()).expect_err(line);
        assert!(error.to_string().contains(&format!("the first line of {file:?}")), "{error}");
        let cause = std::error::Error::source(&error).expect("a cause");
        assert_eq!(cause.to_string(), alone.to_string());
        assert_eq!((error.kind(), error.errno()), (alone.kind(), alone.errno()), "{line}");
        assert_eq!(error.kind(), kind, "{line}");
    }
}

#[test]
fn names_of_no_switch_say_what_is_there() {
    let home = open_dir();
    let at = |name: &str| home.path().join(name).to_str().expect("ASCII").to_owned();
    fs::create_dir(at("empty")).expect("mkdir");
    fs::create_dir(at("odd")).expect("mkdir");
    fs::write(at("odd/ctl"), "").expect("write");
    let _socket = std::os::unix::net::UnixDatagram::bind(at("socket")).expect("bind");
    for (name, message) in [
        ("none", "start it with: vde_switch -s"),
        ("empty", "there is no socket called ctl in it"),
        ("empty[office]", "there is no socket called ctl in it"),
        ("empty[5]", "there is no socket called ctl in it"),
        ("odd", "its ctl is no socket"),
        ("socket", "it is a single socket"),
        ("socket/x", "a part of its path is a file"),
    ] {
        let error = vdeplug::open(&at(name), &impatient()).expect_err(name);
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.kind(), OpenErrorKind::NotFound, "{error}");
    }
    assert_eq!(names(home.path()), ["empty", "odd", "socket"]);
}
