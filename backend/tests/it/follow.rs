//! A back end that ends with the virtual machine, though nobody gave it a life line.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::control::{Rig, add, nics};
use crate::driver::{Driver, VERSION_1};
use crate::world::{Backend, process, wait_for};

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn is_over(rig: &mut Rig) {
    let status = wait_for("its end", || rig.backend.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
    assert!(!rig.control.exists());
}

#[test]
fn back_end_ends_with_the_process_that_it_serves() {
    let mut rig = Rig::start(&["--follow-front-end"]);
    let mut client = rig.client();
    let sockets = [rig.path("n0"), rig.path("n1")];
    add(&mut client, "net0", &sockets[0], &["null://"]).unwrap();
    add(&mut client, "net1", &sockets[1], &["null://"]).unwrap();
    // Who only looks whether somebody listens is not who is served.
    let looker = process(&sockets[0]);
    wait_for("one who looks", || (nics(&mut client)[0].pid == Some(looker.id())).then_some(()));
    let qemu = process(&sockets[1]);
    wait_for("the one who stays", || (nics(&mut client)[1].pid == Some(qemu.id())).then_some(()));
    end(looker);
    wait_for("the first to be gone", || (!nics(&mut client)[0].connected).then_some(()));
    // Others come and go.
    let driver = Driver::connect(Path::new(&sockets[0]), VERSION_1, 1);
    drop(driver);
    wait_for("the driver to be gone", || (!nics(&mut client)[0].connected).then_some(()));
    assert!(rig.backend.child.try_wait().unwrap().is_none());
    end(qemu);
    is_over(&mut rig);
}

#[test]
fn back_end_ends_with_its_last_nic_if_it_follows() {
    for (args, follows) in [(&["--follow-front-end"][..], true), (&[], false)] {
        let mut rig = Rig::start(args);
        let mut client = rig.client();
        let sockets = [rig.path("n0"), rig.path("n1")];
        add(&mut client, "net0", &sockets[0], &["null://"]).unwrap();
        add(&mut client, "net1", &sockets[1], &["null://"]).unwrap();
        let _qemu = UnixStream::connect(&sockets[0]).unwrap();
        client.execute("nic-del", json!({ "id": "net0" })).unwrap();
        assert_eq!(nics(&mut client).len(), 1);
        assert_eq!(client.execute("nic-del", json!({ "id": "net1" })).unwrap(), json!({}));
        match follows {
            true => is_over(&mut rig),
            false => assert!(nics(&mut client).is_empty()),
        }
    }
}

/// A QEMU may have failed to start, and libvirt then not know of its back end any more.
#[test]
fn back_end_to_which_nobody_comes_ends_after_a_minute() {
    let dir = tempfile::tempdir().unwrap();
    let [mut stays, mut leaves] = [&[][..], &["--follow-front-end"]].map(|more| {
        let socket = dir.path().join(more.len().to_string());
        let words = ["--socket-path", socket.to_str().unwrap(), "--link", "null://", "--one-off"];
        Backend::start(&[&words, more].concat(), &socket)
    });
    let deadline = Instant::now() + Duration::from_secs(120);
    while leaves.child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it is still there after two minutes");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(stays.child.try_wait().unwrap().is_none());
}

/// A monitor that `vdectl` was given as a descriptor serves nobody else while anybody has it open.
#[test]
fn back_end_that_follows_keeps_nothing_of_its_starters() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    for (args, keeps) in [(&["--follow-front-end"][..], false), (&[], true)] {
        // As a careless starter passes it on.
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
        let rig = Rig::start(args);
        let inode = |link: &Path| std::fs::read_link(link).unwrap_or_default();
        let wanted = inode(Path::new(&format!("/proc/self/fd/{}", theirs.as_raw_fd())));
        let fds = std::fs::read_dir(format!("/proc/{}/fd", rig.backend.child.id())).unwrap();
        let kept = fds.flatten().any(|entry| inode(&entry.path()) == wanted);
        assert_eq!(kept, keeps, "{args:?}");
    }
    drop(ours);
}
