//! What the calls do on an open connection: `c/calls.c` on both libraries, each time with a switch of its own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use rustix::io::Errno;

use crate::harness::{LONG, NOBODY, RealSwitch, need_root, open_dir, until};
use crate::library::{BOTH, Library, Original, Ours, Program, succeed};

fn on_both(test: &str) {
    let program = Program::compile("calls", Ours, &[]);
    for library in BOTH {
        let switch = RealSwitch::start();
        let limit = LONG.as_secs().to_string();
        succeed(library.command("timeout").arg(&limit).arg(program.path()).arg(test).arg(&switch.dir));
    }
}

#[test]
fn frames_go_both_ways_cut_and_short() {
    on_both("frames");
}

#[test]
fn descriptor_that_is_nonblocking_never_waits() {
    on_both("nonblocking");
}

#[test]
fn descriptor_that_is_blocking_waits_for_frames_and_for_room() {
    on_both("blocking");
}

#[test]
fn signal_ends_a_wait() {
    on_both("interrupted");
}

#[test]
fn thread_that_waits_can_be_cancelled() {
    on_both("cancelled");
}

#[test]
fn close_after_fork_leaves_the_other_side_its_plug() {
    on_both("fork");
}

#[test]
fn dead_switch_shows_on_the_control_descriptor() {
    on_both("dead");
}

#[test]
fn link_without_a_socket_waits_and_can_be_cancelled() {
    let program = Program::compile("calls", Ours, &[]);
    // The original returns 1 at once and for ever.
    succeed(program.on(Ours).args(["silent", "null://"]));
}

#[test]
fn lengths_that_were_errors_are_refused() {
    let program = Program::compile("calls", Ours, &[]);
    let home = open_dir();
    // Believed, they lead behind the end of the buffer.
    succeed(program.on(Ours).arg("negative").arg(home.path().join("m")));
}

#[test]
fn network_outlives_a_child_that_closes_it() {
    let program = Program::compile("calls", Ours, &[]);
    for scheme in ["multi", "hub", "switch"] {
        let dir = open_dir();
        // On the original the child takes the network away.
        succeed(
            program.on(Ours).arg("fork-of-owner").arg(format!("{scheme}://{}/net", dir.path().display())),
        );
    }
}

#[test]
fn end_of_a_link_shows_once_on_each_descriptor() {
    let program = Program::compile("calls", Ours, &[]);
    succeed(program.on(Ours).args(["socket", "seqpacket://"]));
}

/// A program that holds a connection.
struct Holder(Child);

/// What it opens with.
struct Words<'a> {
    port: &'a str,
    mode: &'a str,
    group: &'a str,
    description: &'a str,
    user: u32,
}

const PLAIN: Words<'_> = Words { port: "0", mode: "0700", group: "-", description: "holds", user: 0 };

impl Holder {
    /// Opens with these arguments; `Err` is errno.
    fn open(library: Library, program: &Program, locator: &str, words: &Words<'_>) -> Result<Self, Errno> {
        let Words { port, mode, group, description, user } = words;
        let mut command = program.on(library);
        let command =
            command.arg("hold").arg(locator).args([port, mode, group, description, &&*user.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let holder = Self(child);
        match line.trim() {
            "open" => Ok(holder),
            number => Err(Errno::from_raw_os_error(number.parse().expect("a number"))),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn arguments_choose_port_and_description() {
    need_root("as the program becomes the user that it is told");
    let program = Program::compile("calls", Ours, &[]);
    for library in BOTH {
        for (port, shown) in [("5", "Port 0005"), ("0", "Port 0001"), ("-1", "Port 0000")] {
            let switch = RealSwitch::start();
            let holder = Holder::open(library, &program, &switch.at(""), &Words { port, ..PLAIN });
            let holder = holder.unwrap_or_else(|errno| panic!("{errno}"));
            let ports = switch.manage("port/print");
            assert!(ports.contains(shown) && ports.contains(": holds user="), "{library:?}: {ports}");
            drop(holder);
            until("the port is free", || switch.plugs() == 0);
        }
    }
    // Without a description the original shows what printf makes of NULL.
    let switch = RealSwitch::start();
    let holder = Holder::open(Ours, &program, &switch.at(""), &Words { description: "-", ..PLAIN });
    let ports = switch.manage("port/print");
    assert!(holder.is_ok() && ports.contains(" user=") && !ports.contains("null"), "{ports}");
}

#[test]
fn arguments_that_are_refused_are_errors() {
    need_root("as the program becomes the user that it is told");
    let program = Program::compile("calls", Ours, &[]);
    let switch = RealSwitch::start();
    // The original waits for ever, and takes an unknown group for that of root.
    for (words, errno) in [
        (Words { port: "99", ..PLAIN }, Errno::TIMEDOUT),
        (Words { port: "99999999", ..PLAIN }, Errno::INVAL),
        (Words { group: "no such group", ..PLAIN }, Errno::INVAL),
    ] {
        assert_eq!(Holder::open(Ours, &program, &switch.at(""), &words).err(), Some(errno));
    }
}

#[test]
fn c_17_mode_0_is_the_default() {
    need_root("to start a switch and a program as another user");
    let program = Program::compile("calls", Ours, &[]);
    let switch = RealSwitch::start_with(&[], None, Some(NOBODY));
    let words = Words { mode: "0", user: NOBODY, ..PLAIN };
    assert!(Holder::open(Ours, &program, &switch.at(""), &words).is_ok());
    assert!(Holder::open(Original, &program, &switch.at(""), &words).is_err());
}
