//! Names, owners and modes of sockets, and other users.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use vdeplug::{OpenErrorKind, OpenOptions};

use crate::harness::{Act, FakeSwitch, NOBODY, RealSwitch, as_user, impatient, names, need_root, open};

/// Lets everybody use a fake switch, but not make files in its directory.
fn admit_all(fake: &FakeSwitch, dir_mode: u32) {
    for (path, mode) in [(fake.dir().join("ctl"), 0o777), (fake.dir().to_path_buf(), dir_mode)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }
}

#[test]
fn c_07_data_socket_has_a_name_only_for_the_handshake() {
    let mut fake = FakeSwitch::start(Act::Answer);
    let _link = open(fake.at(""));
    let seen = fake.seen();
    let name = seen.data_name();
    let file = name.file_name().and_then(|name| name.to_str()).expect("ASCII");
    assert_eq!(name.parent(), Some(fake.dir()));
    let start = format!(".{:05}-", std::process::id());
    assert!(file.starts_with(&start) && file.len() >= start.len() + 5, "{file}");
    let (uid, _, mode) = seen.data.expect("the data socket");
    assert_eq!((uid, mode), (rustix::process::geteuid().as_raw(), 0o700));
    assert_eq!(names(fake.dir()), ["001.7", "ctl"]);
    // The switch's end was given the same mode.
    let mode = fs::metadata(fake.dir().join("001.7")).expect("the peer").permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
}

#[test]
fn c_08_data_socket_goes_elsewhere_if_it_must() {
    let mut fake = FakeSwitch::start(Act::Answer);
    admit_all(&fake, 0o755);
    let locator = fake.at("");
    let _link = as_user(NOBODY, &[], || open(&locator));
    let name = fake.seen().data_name();
    assert!(name.to_str().expect("ASCII").starts_with("/var/tmp/vde."), "{name:?}");
    assert!(!name.exists());

    let switch = RealSwitch::start_with(&["--dirmode", "0755", "-m", "0666"], None, None);
    let _link = as_user(NOBODY, &[], || open(switch.at("")));
    assert_eq!(switch.plugs(), 1);
}

#[test]
fn c_09_group_and_mode_are_set_before_the_request() {
    need_root("to give a socket to a group it is no member of");
    for (options, group, mode) in
        [("[group=12345/mode=0660]", 12345, 0o660), ("[group=daemon]", 1, 0o700), ("[mode=0640]", 0, 0o640)]
    {
        let mut fake = FakeSwitch::start(Act::Answer);
        let _link = open(fake.at(options));
        let (_, gid, real) = fake.seen().data.expect("the data socket");
        assert_eq!((gid, real), (group, mode), "{options}");
    }
    let fake = FakeSwitch::start(Act::Answer);
    let error = vdeplug::open(&fake.at("[group=no such group]"), &impatient()).expect_err("no such group");
    assert!(error.to_string().contains("there is no group \"no such group\""), "{error}");
    assert_eq!(error.kind(), OpenErrorKind::Usage);
    assert_eq!(names(fake.dir()), ["ctl"]);
    drop(vdeplug::open(&fake.at(""), &OpenOptions::default()).expect("end of the fake switch"));
}

#[test]
fn c_09_group_of_others_is_refused() {
    let switch = RealSwitch::start_with(&["-m", "0777"], None, None);
    let locator = switch.at("[group=daemon]");
    let error = as_user(NOBODY, &[], || vdeplug::open(&locator, &impatient())).expect_err("not a member");
    assert_eq!(error.kind(), OpenErrorKind::Permission);
    assert!(error.to_string().contains("\"daemon\""), "{error}");
    assert_eq!(names(&switch.dir), ["ctl"]);
}

#[test]
fn c_10_switch_of_a_third_user_is_let_in() {
    for (groups, mode) in [(&[12345][..], 0o770), (&[][..], 0o777)] {
        let mut fake = FakeSwitch::start(Act::Answer);
        admit_all(&fake, 0o777);
        chown(fake.dir().join("ctl"), Some(65533), Some(12345)).expect("this test needs root, to chown");
        let locator = fake.at("");
        let _link = as_user(NOBODY, groups, || open(&locator));
        let (uid, gid, real) = fake.seen().data.expect("the data socket");
        assert_eq!((uid, real), (NOBODY, mode));
        assert_eq!(gid == 12345, mode == 0o770);
    }
}

#[test]
fn c_12_port_of_another_user_is_an_error_in_time() {
    let switch = RealSwitch::start_with(&["-m", "0777"], None, None);
    let _ours = open(switch.at("[3]"));
    let locator = switch.at("[3]");
    let error = as_user(NOBODY, &[], || vdeplug::open(&locator, &impatient())).expect_err("port 3 is taken");
    assert_eq!(error.kind(), OpenErrorKind::Refused);
    assert!(error.to_string().contains("port 3"), "{error}");
}

#[test]
fn c_17_mode_zero_is_the_default() {
    let switch = RealSwitch::start_with(&[], None, Some(NOBODY));
    as_user(NOBODY, &[], || {
        let options = OpenOptions { mode: 0, ..OpenOptions::default() };
        let _link = vdeplug::open(&switch.at(""), &options).expect("mode 0 in the options");
        let _link = open(switch.at("[mode=0]"));
        assert_eq!(switch.plugs(), 2);
    });
}

#[test]
fn no_permission_names_the_owner_and_the_mode() {
    let switch = RealSwitch::start();
    let error = as_user(NOBODY, &[], || vdeplug::open(&switch.at(""), &impatient())).expect_err("0700");
    assert_eq!(error.kind(), OpenErrorKind::Permission);
    let path = &switch.dir;
    assert!(
        error.to_string().contains(&format!("{path:?} belongs to root:root and has mode 2700")),
        "{error}"
    );

    let switch = RealSwitch::start_with(&["--dirmode", "0755", "-m", "0600"], None, None);
    let error = as_user(NOBODY, &[], || vdeplug::open(&switch.at(""), &impatient())).expect_err("0600");
    let ctl = switch.dir.join("ctl");
    let text = format!("{ctl:?} belongs to root:root and has mode 0");
    assert!(error.to_string().contains(&text), "{error}");
}

#[test]
fn mode_of_what_a_switch_names_is_changed_in_its_directory_only() {
    let elsewhere = crate::harness::open_dir();
    let victim = elsewhere.path().join("victim");
    let _victim = std::os::unix::net::UnixDatagram::bind(&victim).expect("bind");
    let before = fs::metadata(&victim).expect("victim").permissions().mode();
    let fake = FakeSwitch::start(Act::Bytes(crate::harness::answer(Path::new(&victim))));
    let _link = open(fake.at("[mode=0740]"));
    assert_eq!(fs::metadata(&victim).expect("victim").permissions().mode(), before);
}
