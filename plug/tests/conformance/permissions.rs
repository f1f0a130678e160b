//! Names, owners and modes of sockets, and other users.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use rustix::io::Errno;
use vdeplug::{OpenError, OpenErrorKind, OpenOptions};

use crate::harness::{
    Act, FakeSwitch, NOBODY, RealSwitch, answer, as_user, dead_datagram, impatient, names, need_root, open,
    open_dir,
};

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
fn what_a_switch_names_outside_its_directory_is_refused() {
    let elsewhere = open_dir();
    let victim = elsewhere.path().join("victim");
    let receiver = UnixDatagram::bind(&victim).expect("bind");
    receiver.set_nonblocking(true).expect("non-blocking");
    let before = fs::metadata(&victim).expect("victim").permissions().mode();
    let outside = elsewhere.path().file_name().expect("a name");
    let spellings = [
        victim.clone(),
        Path::new("..").join(outside).join("victim"),
        "..".into(),
        "missing/001.7".into(),
        "ctl/001.7".into(),
    ];
    for named in spellings {
        let fake = FakeSwitch::start(Act::Name(named.clone()));
        let error = vdeplug::open(&fake.at("[mode=0740]"), &impatient()).expect_err("outside");
        let (path, named) = (fake.dir(), fake.dir().join(named));
        let text = format!("what listens at {path:?} is no VDE switch: it names {named:?} as its end");
        assert!(error.to_string().contains(&text), "{error}");
        let remedy = format!("; end it and start one with: vde_switch -s {path:?}");
        assert!(error.to_string().ends_with(&remedy), "{error}");
        assert!(matches!(error, OpenError::BadAnswer { .. }), "{error:?}");
        assert_eq!(names(fake.dir()), ["ctl"]);
    }
    // A relative name could only mean something in the directory that this process happens to be in.
    let fake = FakeSwitch::start(Act::Bytes(answer("001.7".as_ref())));
    let error = vdeplug::open(&fake.at(""), &impatient()).expect_err("relative");
    assert!(matches!(error, OpenError::BadAnswer { .. }), "{error:?}");
    // An abstract name has no directory at all.
    let fake = FakeSwitch::start(Act::Bytes(answer("\0victim".as_ref())));
    let error = vdeplug::open(&fake.at(""), &impatient()).expect_err("abstract");
    assert!(error.to_string().contains("its answer names no socket"), "{error}");

    assert_eq!(fs::metadata(&victim).expect("victim").permissions().mode(), before);
    let nothing = receiver.recv(&mut [0; 16]).expect_err("nobody sent anything");
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn what_a_switch_names_is_a_socket_and_no_link_to_one() {
    let elsewhere = open_dir();
    let victim = elsewhere.path().join("victim");
    let _receiver = UnixDatagram::bind(&victim).expect("bind");
    let before = fs::metadata(&victim).expect("victim").permissions().mode();
    for (name, reason) in [("link", Errno::NOTSOCK), ("missing", Errno::NOENT), ("dead", Errno::CONNREFUSED)]
    {
        let fake = FakeSwitch::start(Act::Name(name.into()));
        symlink(&victim, fake.dir().join("link")).expect("link");
        dead_datagram(fake.dir().join("dead"));
        let error = vdeplug::open(&fake.at("[mode=0740]"), &impatient()).expect_err(name);
        let OpenError::BadPeer { source, .. } = &error else { panic!("{name}: {error:?}") };
        assert_eq!(Errno::from_io_error(source), Some(reason), "{name}");
        assert!(error.to_string().contains(&format!("{:?}", fake.dir().join(name))), "{error}");
        assert!(error.to_string().contains("with a wider --mode or with --group"), "{error}");
    }
    assert_eq!(fs::metadata(&victim).expect("victim").permissions().mode(), before);
}

#[test]
fn switch_may_spell_its_directory_in_its_own_way() {
    // The client goes by one link to the switch, the fake switch by another to itself.
    let home = open_dir();
    let fake = FakeSwitch::start(Act::Name(home.path().join("theirs/001.7")));
    let _peer = UnixDatagram::bind(fake.dir().join("001.7")).expect("bind");
    for name in ["ours", "theirs"] {
        symlink(fake.dir(), home.path().join(name)).expect("link");
    }
    open(home.path().join("ours").to_str().expect("ASCII"));

    let parent = home.path().join("parent");
    symlink(home.path(), &parent).expect("link");
    let switch = RealSwitch::start_with(&[], Some(&parent.join("sw")), None);
    symlink(&switch.dir, home.path().join("sw-link")).expect("link");
    let _links =
        ["parent/sw", "sw", "sw-link"].map(|path| open(home.path().join(path).to_str().expect("ASCII")));
    assert_eq!(switch.plugs(), 3);
}

#[test]
fn link_to_a_socket_of_ours_is_no_switchs_end() {
    // A switch names a link to another's private socket as its end of the cable, to have its mode changed.
    let home = open_dir();
    let private = home.path().join("private");
    let _open = UnixDatagram::bind(&private).expect("bind");
    fs::set_permissions(&private, fs::Permissions::from_mode(0o600)).expect("chmod");
    let fake = FakeSwitch::start(Act::Name("001.5".into()));
    fs::hard_link(&private, fake.dir().join("001.5")).expect("link");
    let error = vdeplug::open(&fake.at("[mode=0777]"), &OpenOptions::default()).expect_err("a link");
    assert!(matches!(error, OpenError::BadPeer { .. }), "{error:?}");
    assert_eq!(fs::metadata(&private).expect("it").permissions().mode() & 0o777, 0o600);
}
