//! vdeq as a process: what the program sees that it becomes, and what is left when it does not.

mod rig;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rig::{
    Rig, finish, finish_child, gone, private_dir, processes_with, spawn, stderr, stdout, until, wait_for,
};
use rustix::process::Signal;

const NIC: [&str; 2] = ["-net", "nic,model=virtio"];

/// A word `-net vde` for the switch.
fn vde(sock: &str) -> [String; 2] {
    ["-net".into(), format!("vde,sock={sock}")]
}

#[test]
fn c_51_exec_keeps_pid_argv0_and_status() {
    let rig = Rig::new();
    let mut command = rig.vdeq();
    command.args(["bash", "-c", "echo $$; tr '\\0' '\\n' </proc/$$/cmdline; exit 42"]);
    let child = spawn(&mut command);
    let pid = child.id();
    let output = finish_child(child);
    let text = stdout(&output);
    assert!(text.starts_with(&format!("{pid}\nbash\n-c\n")), "{text}");
    assert_eq!(output.status.code(), Some(42));

    let killed = finish(rig.vdeq().args(["bash", "-c", "kill -9 $$"]));
    assert_eq!(killed.status.signal(), Some(9));
}

#[test]
fn own_options_without_a_vde_nic_are_told_to_be_idle() {
    let rig = Rig::new();
    for own in
        [&["--vde-poll-us", "5"][..], &["--vde-queues", "4"], &["--mod", "0777"], &["--vde-capture", "/x"]]
    {
        let output = finish(rig.vdeq().args(own).args(["true", "-nic", "none"]));
        assert_eq!(output.status.code(), Some(0));
        assert!(stderr(&output).contains("options before the program have no effect"), "{own:?}");
    }
    let silent = finish(rig.vdeq().args(["true", "-nic", "none"]));
    assert_eq!(stderr(&silent), "");
}

#[test]
fn exec_with_a_nic_keeps_pid_and_passes_the_words() {
    let mut rig = Rig::new();
    let switch = rig.switch();
    let mut command = rig.vdeq();
    command
        .args(["qemu-system-x86_64", "-m", "64"])
        .args(NIC)
        .args(vde(&switch))
        .args(["-append", "-net vde"]);
    command.env("FQ_DO", "echo $$; printf '%s\\n' \"$@\"; exit 7");
    let child = spawn(&mut command);
    let pid = child.id();
    let output = finish_child(child);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    let text = stdout(&output);
    let lines: Vec<&str> = text.lines().collect();
    let socket = format!("socket,id=vdeq0c,path={}/0.sock,reconnect-ms=1000", private_dir(pid));
    let monitor = format!("{}/monitor.conf", private_dir(pid));
    let expected = [
        &pid.to_string(),
        "-m",
        "64",
        "-chardev",
        &socket,
        "-netdev",
        "vhost-user,id=vdeq0n,chardev=vdeq0c",
        "-net",
        "nic,netdev=vdeq0n,model=virtio-net-pci",
        "-append",
        "-net vde",
        "-object",
        "memory-backend-memfd,id=pc.ram,size=67108864,share=on,x-use-canonical-path-for-ramblock-id=off",
        "-machine",
        "memory-backend=pc.ram",
        "-readconfig",
        &monitor,
    ];
    assert_eq!(lines, expected);
    gone(pid);
}

#[test]
fn c_55_exec_sets_sigpipe_back_and_leaves_other_dispositions() {
    let mut rig = Rig::new();
    let vdeq = env!("CARGO_BIN_EXE_vdeq");
    let field = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        u64::from_str_radix(line.trim(), 16).expect("hexadecimal")
    };
    // A caller that ignores SIGPIPE and SIGHUP, the latter on purpose as nohup does.
    let line = format!("trap '' PIPE HUP; exec {vdeq} cat /proc/self/status");
    let output = finish(rig.vdeq().args(["sh", "-c", &line]));
    let text = stdout(&output);
    assert_eq!(field(&text, "SigIgn:") & (1 << 12), 0, "SIGPIPE is ignored");
    assert_eq!(field(&text, "SigBlk:"), 0);
    // The same behind a back end.
    let switch = rig.switch();
    let mut command = rig.vdeq();
    command.arg("qemu-system-x86_64").args(NIC).args(vde(&switch)).env("FQ_DO", "cat /proc/self/status");
    let text = stdout(&finish(&mut command));
    let bits = [Signal::PIPE, Signal::USR1, Signal::USR2].map(|signal| 1 << (signal.as_raw() - 1));
    assert_eq!(field(&text, "SigIgn:") & bits.iter().sum::<u64>(), 0, "{text}");
    assert_eq!(field(&text, "SigBlk:"), 0);
    // A caller that does not want to hear of its children: ours are waited for, and the program inherits it.
    let ignoring = |words: &mut Command| {
        let mut command = Command::new("env");
        command.arg("--ignore-signal=CHLD").arg(words.get_program()).args(words.get_args());
        command.envs(words.get_envs().filter_map(|(key, value)| Some((key, value?))));
        stdout(&finish(&mut command))
    };
    assert_eq!(field(&ignoring(&mut command), "SigBlk:"), 0);
    let text = ignoring(rig.vdeq().args(["cat", "/proc/self/status"]));
    assert_ne!(field(&text, "SigIgn:") & 1 << (Signal::CHILD.as_raw() - 1), 0, "{text}");
    let nohup = finish(Command::new("sh").args(["-c", &line]));
    assert_eq!(field(&stdout(&nohup), "SigIgn:") & 1, 1, "SIGHUP is no longer ignored");
    assert_eq!(field(&stdout(&nohup), "SigIgn:") & (1 << 12), 0, "SIGPIPE is ignored");
}

#[test]
fn q_20_exec_passes_the_callers_descriptors_and_the_lifeline() {
    let mut rig = Rig::new();
    let switch = rig.switch();
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "exec 7</dev/null; exec \"$0\" \"$@\"",
        env!("CARGO_BIN_EXE_vdeq"),
        "qemu-system-x86_64",
    ]);
    command.args(NIC).args(vde(&switch));
    for (key, value) in rig.vdeq().get_envs() {
        command.env(key, value.unwrap_or_default());
    }
    let go = rig.text("go");
    command.env("FQ_DO", wait_for(&go));
    command.stdin(Stdio::null());
    let child = spawn(&mut command);
    let pid = child.id();
    let dir = private_dir(pid);
    until("QEMU runs", || rig.qemu_ran());

    let back_end = *processes_with(&dir).first().expect("a back end");
    let parent = fs::read_to_string(format!("/proc/{back_end}/status")).expect("status");
    assert!(parent.contains("\nPPid:\t1\n"), "the back end is QEMU's child: {parent}");
    let descriptors = |pid: u32| -> Vec<(String, String)> {
        let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("fd").flatten();
        let target = |path| fs::read_link(path).map(|to| to.display().to_string()).unwrap_or_default();
        entries.map(|entry| (entry.file_name().display().to_string(), target(entry.path()))).collect()
    };
    assert!(descriptors(pid).contains(&("7".into(), "/dev/null".into())));
    assert!(!descriptors(back_end).iter().any(|(fd, to)| fd == "7" && to == "/dev/null"));
    // Of ours only the writing end of the lifeline. A runner of tests may have pipes that all inherit.
    let mut pipes = descriptors(pid);
    let inherited = descriptors(std::process::id());
    pipes.retain(|(fd, to)| {
        !matches!(fd.as_str(), "1" | "2")
            && to.starts_with("pipe:")
            && !inherited.iter().any(|(_, other)| other == to)
    });
    assert_eq!(pipes.len(), 1, "{pipes:?}");
    let writers = descriptors(back_end).into_iter().filter(|(_, to)| *to == pipes[0].1).count();
    assert_eq!(writers, 1, "the back end holds the reading end only");

    fs::write(rig.path("go"), "").expect("go");
    finish_child(child);
    gone(pid);
}

#[test]
fn c_52_a_program_that_ends_at_once_never_hangs() {
    let mut rig = Rig::new();
    for _ in 0..1000 {
        assert!(finish(rig.vdeq().args(["true", "-m", "64"])).status.success());
    }
    let switch = rig.switch();
    let mut pids = Vec::new();
    for _ in 0..50 {
        let mut command = rig.vdeq();
        let child = spawn(command.arg("qemu-system-x86_64").args(NIC).args(vde(&switch)));
        pids.push(child.id());
        let output = finish_child(child);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    pids.into_iter().for_each(gone);
}

#[test]
fn a_killed_qemu_takes_its_back_end_along() {
    let mut rig = Rig::new();
    let switch = rig.switch();
    let mut command = rig.vdeq();
    command.arg("qemu-system-x86_64").args(NIC).args(vde(&switch)).env("FQ_DO", "exec sleep 60");
    let mut child = spawn(&mut command);
    until("QEMU runs", || rig.qemu_ran());
    assert_eq!(processes_with(&private_dir(child.id())).len(), 2, "a supervisor and its worker");
    let children = format!("/proc/{0}/task/{0}/children", child.id());
    assert_eq!(fs::read_to_string(children).expect("children"), "", "QEMU has a child that it knows not");
    child.kill().expect("kill");
    assert_eq!(child.wait().expect("wait").signal(), Some(9));
    gone(child.id());
}

/// Runs a line that must be refused: status, message, and nothing started.
fn refused(rig: &Rig, command: &mut Command, status: i32, words: &[&str]) {
    let child = spawn(command);
    let pid = child.id();
    let output = finish_child(child);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{text}");
    assert!(text.lines().last().is_some_and(|line| line.starts_with("vdeq: ")), "{text}");
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} not in: {text}");
    assert!(output.stdout.is_empty(), "{}", stdout(&output));
    assert!(!rig.qemu_ran(), "QEMU was started");
    gone(pid);
}

#[test]
fn c_49_refusals_name_the_word_and_start_nothing() {
    let rig = Rig::new();
    let line = |args: &[&str]| {
        let mut command = rig.vdeq();
        command.args(args);
        command
    };
    let nic = ["qemu-system-x86_64", "-net", "nic,model=virtio", "-net"];
    let with = |last: &'static str| [nic.as_slice(), &[last]].concat();

    refused(&rig, &mut line(&["no-such-program", "-m", "1"]), 127, &["'no-such-program'"]);
    refused(
        &rig,
        &mut line(&["./no/such", "-net", "nic", "-net", "vde"]),
        127,
        &["'./no/such'", "give the path"],
    );
    refused(
        &rig,
        line(&["qemu", "-m", "1"]).env("VDEQ_QEMU", env!("CARGO_BIN_EXE_vdeq")),
        2,
        &["VDEQ_QEMU", "vdeq itself"],
    );
    refused(&rig, &mut line(&["/etc/passwd"]), 126, &["/etc/passwd", "ermission", "you may execute"]);
    refused(&rig, &mut line(&with("vdefoo")), 2, &["vdefoo"]);
    refused(&rig, &mut line(&with("vde,port=x")), 2, &["'x'"]);
    refused(&rig, &mut line(&["qemu-system-x86_64", "-sock"]), 2, &["-sock"]);
    let mut odd = line(&["qemu-system-x86_64", "-sock"]);
    refused(&rig, odd.arg(OsStr::from_bytes(b"/tmp/\xff")), 2, &["-sock /tmp/", "not UTF-8 text"]);
    refused(
        &rig,
        line(&with("vde")).env("FQ_VERSION", "4.2.1"),
        6,
        &["4.2.1", "5.2", "name a newer program"],
    );
    refused(&rig, line(&with("vde")).env("FQ_VERSION", "?"), 6, &["does not name a QEMU version"]);
    refused(&rig, &mut line(&with("vde,sock=/no/such/switch")), 3, &["/no/such/switch"]);
    let memory = [with("vde").as_slice(), &["-m", "999999G", "-mem-path", "/dev/shm"]].concat();
    refused(&rig, &mut line(&memory), 5, &["/dev/shm", "999999 GiB"]);
    let shm = ["-object", "memory-backend-shm,id=m,size=999999G", "-M", "pc,memory-backend=m"];
    let memory = [with("vde").as_slice(), &shm].concat();
    refused(&rig, &mut line(&memory), 5, &["/dev/shm", "999999 GiB"]);
    let memory = [with("vde").as_slice(), &["-mem-path", "/no/such/directory/file"]].concat();
    refused(&rig, &mut line(&memory), 5, &["/no/such/directory/file", "directory that exists"]);
}

#[test]
fn back_ends_that_fail_are_reported() {
    let rig = Rig::new();
    let refuse = |back_end: &str, status: i32, words: &[&str]| {
        let mut command = rig.vdeq();
        command
            .args(["qemu-system-x86_64", "-net", "nic,model=virtio", "-net", "vde"])
            .env("VDEQ_BACKEND", back_end);
        refused(&rig, &mut command, status, words);
    };
    let script =
        |name: &str, text: &str| rig.script(name, &format!("#!/bin/sh\n{text}\n")).display().to_string();
    // The contract puts the descriptor's number second.
    refuse(&script("dies", "exit 1"), 4, &["dies", "before it was ready"]);
    refuse(&script("babbles", "eval \"echo HELLO >&$2\""), 4, &["before it was ready"]);
    refuse(
        &script("refuses", "eval \"echo ERROR 3 no switch at /tmp/x >&$2\""),
        3,
        &["vdeq: no switch at /tmp/x"],
    );
    let lingers = rig.script("lingers", "#!/bin/bash\nready=$2; exec {ready}>&-; sleep 60; true\n");
    refuse(lingers.to_str().expect("text"), 4, &["lingers", "before it was ready"]);
    refuse("/no/such/back-end", 4, &["'/no/such/back-end', named by VDEQ_BACKEND", "set VDEQ_BACKEND"]);
    refuse("/etc/passwd", 4, &["/etc/passwd", "ermission", "set VDEQ_BACKEND"]);
}

#[test]
fn print_plan_runs_nothing() {
    let rig = Rig::new();
    let mut command = rig.vdeq();
    command
        .args(["--vde-print-plan", "qemu-system-x86_64", "-m", "64"])
        .args(NIC)
        .args(vde("/no/such/switch"));
    let output = finish(&mut command);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!rig.qemu_ran());
    let text = stdout(&output);
    let (shell, json) = text.split_once("\n{").expect("lines, then JSON");
    let qemu = shell.lines().nth(1).expect("two lines");
    assert!(shell.starts_with("vhost-user-vde --private-dir /run/vdeq/PID "), "{shell}");
    assert!(qemu.starts_with(&format!("{} -m 64 -chardev", rig.text("qemu-system-x86_64"))), "{qemu}");
    let json: serde_json::Value = serde_json::from_str(&format!("{{{json}")).expect("JSON");
    assert_eq!(json["back_end"]["nics"][0]["links"][0], "/no/such/switch");
    assert_eq!(json["memory"]["bytes"], 64 << 20);
    assert_eq!(json["qemu_version"], "10.0.2");
}

#[test]
fn a_path_that_is_not_text_and_a_chatty_library_do_no_harm() {
    let rig = Rig::new();
    let directory = rig.scratch.path().join(OsStr::from_bytes(b"odd\xff"));
    fs::create_dir(&directory).expect("directory");
    let program = directory.join("qemu-system-x86_64");
    let banner = "#!/bin/sh\n\
        echo 'warning: library version 2.74, once of emulator version 1.2' >&2\n\
        echo 'QEMU emulator version 9.0.1'\n";
    fs::rename(rig.script("chatty", banner), &program).expect("rename");
    let plain = finish(rig.vdeq().arg(&program));
    assert_eq!(stdout(&plain), "QEMU emulator version 9.0.1\n", "{}", stderr(&plain));

    let plan = finish(rig.vdeq().arg("--vde-print-plan").arg(&program).args(NIC).args(vde("")));
    assert!(plan.status.success(), "{}", stderr(&plan));
    let text = stdout(&plan);
    assert!(text.contains("\"qemu_version\": \"9.0.1\"") && text.contains("/odd\\xff/"), "{text}");
}

#[test]
fn generic_names_find_the_machines_emulator() {
    let rig = Rig::new();
    // A PATH of our own: this machine may have a program called kvm.
    let native = format!("qemu-system-{}", std::env::consts::ARCH);
    let show = "#!/bin/sh\necho \"${0##*/}\" \"$@\"\n";
    rig.script(&native, show);
    rig.script("other", show);
    let run = |args: &[&str], chosen: &str| {
        let output = finish(rig.vdeq().args(args).env("PATH", rig.scratch.path()).env("VDEQ_QEMU", chosen));
        assert!(output.status.success(), "{}", stderr(&output));
        stdout(&output)
    };
    assert_eq!(run(&["qemu", "-m", "64"], ""), format!("{native} -m 64\n"));
    assert_eq!(run(&["kvm", "-m", "64"], ""), format!("{native} -machine accel=kvm:tcg -m 64\n"));
    assert_eq!(run(&["kvm", "-accel", "tcg"], ""), format!("{native} -accel tcg\n"));
    assert_eq!(run(&["qemu"], &rig.text("other")), "other\n");
    rig.script("kvm", show);
    assert_eq!(run(&["kvm", "-m", "64"], ""), "kvm -m 64\n");
}

#[test]
fn c_46_help_and_version_go_where_they_should() {
    let rig = Rig::new();
    for args in [&[][..], &["-h"], &["--help"], &["qemu-system-x86_64", "-h"]] {
        let output = finish(rig.vdeq().args(args));
        assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), ""), "{args:?}");
        assert!(stderr(&output).contains("Examples:"), "{args:?}");
    }
    assert!(!rig.qemu_ran());
    let version = finish(rig.vdeq().arg("--version"));
    assert_eq!(stdout(&version), concat!("vdeq ", env!("CARGO_PKG_VERSION"), "\n"));

    let link = rig.path("vdeqemu-system-x86_64");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_vdeq"), &link).expect("link");
    let mut command = Command::new(&link);
    let path = format!("{}:{}", rig.scratch.path().display(), std::env::var("PATH").unwrap_or_default());
    let output = finish(command.arg("-h").env("PATH", path).env("FQ_DO", "echo QEMU help: \"$@\""));
    assert_eq!(stdout(&output), "QEMU help: -h\n");
    assert!(stderr(&output).contains("Usage:"));
}

#[test]
fn versions_are_remembered_unless_in_doubt() {
    let rig = Rig::new();
    let cache = rig.path("cache/vdeq");
    // The real one, since scripts are asked each time.
    let version = || {
        let mut command = rig.vdeq();
        command.env("PATH", std::env::var("PATH").unwrap_or_default());
        command.args(["--vde-print-plan", "qemu-system-x86_64"]).args(NIC).args(vde("x"));
        let output = finish(command.env("XDG_CACHE_HOME", rig.path("cache")));
        assert!(output.status.success(), "{}", stderr(&output));
        let text = stdout(&output);
        let line = text.lines().find_map(|line| line.trim().strip_prefix("\"qemu_version\": \""));
        line.expect("a version").trim_end_matches("\",").to_owned()
    };
    let real = version();
    let kept = fs::read_dir(&cache).expect("the cache").next().expect("an answer").expect("a name").path();
    let text = fs::read_to_string(&kept).expect("an answer");
    assert!(text.ends_with(&format!("\nemulator version {real}\n")), "{text}");

    let (first_line, _) = text.split_once('\n').expect("two lines");
    let other = format!("{first_line}\nemulator version 9.8.7\n");
    fs::write(&kept, &other).expect("write");
    assert_eq!(version(), "9.8.7", "it was not asked");
    for broken in ["", "rubbish", &format!("{first_line}\nrubbish"), &other.replacen(' ', " 1", 3)] {
        fs::write(&kept, broken).expect("write");
        assert_eq!(version(), real, "{broken}");
    }
    fs::write(&kept, &other).expect("write");
    std::os::unix::fs::chown(&cache, Some(65534), None).expect("chown: run the tests as root");
    assert_eq!(version(), real, "somebody else's cache was believed");
    fs::remove_dir_all(&cache).expect("remove");
    fs::write(&cache, "").expect("a file in its place");
    assert_eq!(version(), real);
}
