//! Guest memory on the real QEMU, 10 and 7.2: whatever way it is given, the back end can map it, and it is what was
//! asked for. The VMs are paused; guests that move frames through such memory are in the end-to-end tests.

mod rig;

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use rig::emulator::{Paused, both, installed};
use rig::{Rig, finish, stderr, stdout};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// What `query-memdev` has to tell of each object: its id if it has one, its bytes and whether it is preallocated.
type Expected = (Option<&'static str>, u64, bool);

/// A VM with a NIC on the switch.
fn with_nic<'a>(rig: &Rig, program: &Path, switch: &str, words: impl IntoIterator<Item = &'a str>) -> Paused {
    let nic = ["-net", "nic,model=virtio", "-net", &format!("vde,sock={switch}")];
    Paused::start(rig.vdeq().arg(program).args(nic), words)
}

/// Whether all objects are shared and as expected.
fn assert_memory(what: &str, vm: &mut Paused, expected: &[Expected]) {
    let list = vm.ask("query-memdev", json!({}));
    let mut found: Vec<Expected> = Vec::new();
    for object in list.as_array().expect("a list") {
        assert_eq!(object["share"], true, "{what}: {list}");
        let known = |id: &&Expected| object["id"].as_str() == id.0;
        let id = expected.iter().find(known).and_then(|expected| expected.0);
        let size = object["size"].as_u64().expect("a size");
        found.push((id, size, object["prealloc"] == true));
    }
    found.sort();
    assert_eq!(found, expected, "{what}: {list}");
}

const RAM: Option<&str> = Some("pc.ram");

#[test]
fn q_6_every_way_to_give_memory_ends_shared() {
    let cases: &[(&str, &[Expected])] = &[
        ("-m 64 -mem-path FILE", &[(RAM, 64 * MIB, false)]),
        ("-m 64 -mem-path DIR -mem-prealloc", &[(RAM, 64 * MIB, true)]),
        ("-mem-path nowhere -mem-path DIR -m 64", &[(RAM, 64 * MIB, false)]),
        ("-m 64 -mem-prealloc -overcommit cpu-pm=off", &[(RAM, 64 * MIB, true)]),
        (
            "-m 64 -object memory-backend-ram,id=m,size=64M -machine memory-backend=m",
            &[(Some("m"), 64 * MIB, false)],
        ),
        (
            "-object memory-backend-ram,size=64M,id=m,prealloc=on -M memory-backend=m",
            &[(Some("m"), 64 * MIB, true)],
        ),
        (
            "-M memory-backend=m -object memory-backend-ram,id=m,size=64M,reserve=off,dump=off,merge=off",
            &[(Some("m"), 64 * MIB, false)],
        ),
        (
            "-M memory-backend=m -object memory-backend-ram,id=m,size=64M,share=on",
            &[(Some("m"), 64 * MIB, false)],
        ),
        (
            "-object memory-backend-file,id=m,size=64M,mem-path=FILE -M pc,memory-backend=m",
            &[(Some("m"), 64 * MIB, false)],
        ),
        (
            "-object memory-backend-file,id=m,size=64M,mem-path=DIR,share=on,prealloc=on -M memory-backend=m",
            &[(Some("m"), 64 * MIB, true)],
        ),
        (
            "-object memory-backend-ram,id=m,size=64M -M memory_backend=x -machine q35,memory_backend=m",
            &[(Some("m"), 64 * MIB, false)],
        ),
        (
            "-object memory-backend-memfd,id=m,size=64M -M memory-backend=x -machine q35,memory-backend=m",
            &[(Some("m"), 64 * MIB, false)],
        ),
        (
            r#"-object {"qom-type":"memory-backend-ram","id":"m","size":67108864} -M memory-backend=m"#,
            &[(Some("m"), 64 * MIB, false)],
        ),
        (
            "-object {'qom-type':'memory-backend-file','id':'m','size':67108864,'mem-path':'FILE'} -M memory-backend=m",
            &[(Some("m"), 64 * MIB, false)],
        ),
        (
            "-m 64 -object memory-backend-ram,id=a,size=32M -object memory-backend-file,id=b,size=32M,mem-path=DIR \
          -numa node,memdev=a -numa node,memdev=b",
            &[(Some("a"), 32 * MIB, false), (Some("b"), 32 * MIB, false)],
        ),
        ("-M pc-i440fx-5.0 -m 64 -numa node,mem=32M -numa node,mem=32M", &[(RAM, 64 * MIB, false)]),
        (
            "-m 64,slots=2,maxmem=1G -object memory-backend-ram,id=d,size=64M -device pc-dimm,memdev=d",
            &[(Some("d"), 64 * MIB, false), (RAM, 64 * MIB, false)],
        ),
        (
            "-m 64,maxmem=1G -object memory-backend-ram,id=d,size=64M,reserve=off -device virtio-mem-pci,memdev=d",
            &[(Some("d"), 64 * MIB, false), (RAM, 64 * MIB, false)],
        ),
        (
            "-M q35,nvdimm=on -m 64,slots=2,maxmem=1G -object memory-backend-ram,id=d,size=64M -device nvdimm,memdev=d",
            &[(Some("d"), 64 * MIB, false), (RAM, 64 * MIB, false)],
        ),
    ];
    let mut rig = Rig::new();
    let switch = rig.switch();
    let place = tempfile::tempdir().expect("a directory");
    let (file, dir) = (place.path().join("ram"), place.path().display().to_string());
    for program in both() {
        for (line, expected) in cases {
            let line = line.replace("FILE", &file.display().to_string()).replace("DIR", &dir);
            let mut vm = with_nic(&rig, &program, &switch, line.split_whitespace());
            let what = format!("{} {line}", program.display());
            assert_memory(&what, &mut vm, expected);
            vm.quit();
        }
    }
}

#[test]
fn q_4_sizes_are_those_of_a_plain_qemu() {
    let lines = [
        "",
        "-M q35",
        "-m 0",
        "-m 100001k",
        "-m 100.3M",
        "-m 0.1G",
        "-m 512,slots=2,maxmem=2G",
        "-m 512,slots=2,maxmem=2G -m size=1G",
        "-m size=96M -M q35 -m slots=1,maxmem=1G",
        "-machine memory.size=64M",
        "-machine memory.size=0x4000000",
        "-machine memory.size=67108865 -M memory.max-size=1G,memory.slots=3",
        "-m 80 -machine memory.size=64M",
        "-machine memory.size=64M -m 0",
        "-machine memory.size=64M -machine q35,memory.size=80M",
    ];
    let mut rig = Rig::new();
    let switch = rig.switch();
    for program in both() {
        for line in lines {
            let memory = |vm: &mut Paused| {
                let asked = json!({ "path": "/machine", "property": "memory" });
                vm.ask("qom-get", asked).to_string()
                    + &vm.ask("query-memory-size-summary", json!({})).to_string()
            };
            let mut plain = Paused::start(&mut Command::new(&program), line.split_whitespace());
            let mut ours = with_nic(&rig, &program, &switch, line.split_whitespace());
            assert_eq!(memory(&mut ours), memory(&mut plain), "{} {line}", program.display());
            let list = ours.ask("query-memdev", json!({}));
            assert!(list[0]["share"] == true && list[0]["id"] == "pc.ram", "{line}: {list}");
            plain.quit();
            ours.quit();
        }
    }
}

#[test]
fn q_6_private_memory_is_refused_before_qemu_starts() {
    let rig = Rig::new();
    let config = rig.text("vm.cfg");
    std::fs::write(&config, "[machine]\nmemory-backend = \"m\"\n").expect("a file");
    for (line, word) in [
        (
            "-object memory-backend-file,id=m,size=64M,mem-path=/dev/shm,share=off -M memory-backend=m",
            "share=off",
        ),
        (
            "-object {'qom-type':'memory-backend-ram','id':'m','size':67108864,'share':false} -M memory-backend=m",
            "share=off",
        ),
        (
            "-object memory-backend-file,id=m,size=64M,mem-path=/dev/shm,readonly=on -M memory-backend=m",
            "readonly=on",
        ),
        (
            "-object memory-backend-file,id=m,size=64M,mem-path=/dev/shm,pmem=on -M memory-backend=m",
            "pmem=on",
        ),
        ("-numa node,memdev=m", "-numa node,memdev=m"),
        ("-readconfig vm.cfg -M memory-backend=m", "-readconfig"),
        ("-readconfig vm.cfg", "-m"),
        ("-readconfig CFG -m 64", "memory-backend in [machine]"),
        ("-M q35,memory-encryption=sev0", "memory-encryption="),
    ] {
        let mut command = rig.vdeq();
        command.arg("qemu-system-x86_64").args(line.replace("CFG", &config).split(' ')).args([
            "-net",
            "nic,model=virtio",
            "-net",
            "vde",
        ]);
        let output = finish(&mut command);
        assert_eq!(output.status.code(), Some(5), "{line}: {}", stderr(&output));
        assert!(stderr(&output).contains(word), "{line}: {}", stderr(&output));
        assert!(!rig.qemu_ran(), "{line}");
    }
}

/// The page of guest memory at the beginning of the ROMs, where the firmware has left its tables.
fn low_memory(rig: &Rig, vm: &mut Paused, name: &str) -> Vec<u8> {
    let file = rig.text(name);
    vm.ask("pmemsave", json!({ "val": 0, "size": MIB, "filename": &file }));
    std::fs::read(file).expect("saved")
}

/// Moves a VM, and says whether its memory came over.
fn migrate(rig: &Rig, from: &mut Paused, to: &mut Paused) {
    let uri = format!("unix:{}", rig.text("migration"));
    to.ask("migrate-incoming", json!({ "uri": &uri }));
    from.ask("migrate", json!({ "uri": &uri }));
    rig::until("the VM has moved", || {
        let state = from.ask("query-migrate", json!({}));
        assert_ne!(state["status"], "failed", "{state}: {}", to.last_words());
        state["status"] == "completed"
    });
    rig::until("the VM has arrived", || to.ask("query-status", json!({}))["status"] != "inmigrate");
    assert_eq!(low_memory(rig, from, "from"), low_memory(rig, to, "to"));
}

#[test]
fn q_8_a_plain_qemu_and_a_rewritten_one_take_each_others_vms() {
    let mut rig = Rig::new();
    let switch = rig.switch();
    let incoming = ["-incoming", "defer"];
    let socket = rig.text("plain.sock");
    let mut by_hand = Command::new(rig::back_end());
    let _back_end = rig::spawn(by_hand.args(["--socket-path", &socket, "--link", &switch]));
    rig::until("the back end listens", || UnixStream::connect(&socket).is_ok());
    for program in both() {
        // Without the boot ROM nothing drives the NIC: what its back end can do is then the same for both.
        let machine = ["-m", "64", "-M", "pc", "-global", "virtio-net-pci.romfile="];
        let vectors = if installed() == program { "" } else { ",vectors=0" };
        let nic = format!("nic,netdev=plain,model=virtio{vectors}");
        // The kind of memory is all that differs: until a driver starts, nobody asks for it to be shared.
        let (chardev, netdev) = (format!("socket,id=c,path={socket}"), "vhost-user,id=plain,chardev=c");
        let plain = ["-chardev", &chardev, "-netdev", netdev, "-net", &nic];
        let mut here = with_nic(&rig, &program, &switch, machine);
        here.ask("cont", json!({}));
        let mut there =
            Paused::start(&mut Command::new(&program), machine.into_iter().chain(plain).chain(incoming));
        migrate(&rig, &mut here, &mut there);
        here.quit();
        let mut back = with_nic(&rig, &program, &switch, machine.into_iter().chain(incoming));
        migrate(&rig, &mut there, &mut back);
        there.quit();
        back.quit();
    }
}

#[test]
fn a_file_is_the_memory_of_one_vm() {
    let mut rig = Rig::new();
    let switch = rig.switch();
    let file = rig.text("ram");
    let words = ["-m", "64", "-mem-path", &file];
    for program in both() {
        let first = with_nic(&rig, &program, &switch, words);
        assert_eq!(std::fs::metadata(&file).expect("the file").mode() & 0o777, 0o600);
        let mut second = rig.vdeq();
        second.arg(&program).args(words).args(["-net", "nic,model=virtio", "-net"]);
        let refused = finish(second.arg(format!("vde,sock={switch}")));
        assert_eq!(refused.status.code(), Some(5), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("ram is the memory of another VM"), "{}", stderr(&refused));
        first.quit();
        with_nic(&rig, &program, &switch, words).quit();
    }
}

#[test]
fn q_27_libvirts_question_about_the_emulator_is_answered_as_without_vdeq() {
    const QUESTIONS: [&str; 14] = [
        "query-version",
        "query-target",
        "query-commands",
        "query-kvm",
        "qom-list-types",
        "query-machines",
        "query-cpu-definitions",
        "query-tpm-models",
        "query-tpm-types",
        "query-command-line-options",
        "query-migrate-capabilities",
        "query-qmp-schema",
        "query-named-block-nodes",
        "query-gic-capabilities",
    ];
    let rig = Rig::new();
    for program in both() {
        for accelerators in ["kvm:tcg", "tcg"] {
            let mut answers: Vec<Vec<Value>> = Vec::new();
            for mut command in [Command::new(&program), rig.vdeq()] {
                if answers.len() == 1 {
                    command.arg(&program);
                }
                let (socket, pidfile) = (rig.text("monitor"), rig.text("pidfile"));
                command
                    .env_clear()
                    .env("LC_ALL", "C")
                    .env("PATH", "/usr/bin:/bin")
                    .env("HOME", "/nonexistent");
                command.args(["-S", "-no-user-config", "-nodefaults", "-nographic", "-machine"]);
                command.arg(format!("none,accel={accelerators}"));
                command.args([
                    "-qmp",
                    &format!("unix:{socket},server=on,wait=off"),
                    "-pidfile",
                    &pidfile,
                    "-daemonize",
                ]);
                let output = finish(&mut command);
                assert!(output.status.success() && stdout(&output).is_empty(), "{}", stderr(&output));
                let daemon = rig::Daemon::new(rig.read("pidfile").trim().parse().expect("a PID"));
                let mut client = qmp::Client::connect(&qmp::Address::Unix(socket.clone().into()), rig::LIMIT)
                    .expect("a monitor");
                let ask = |question: &&str| match client.execute(question, json!({})) {
                    Ok(answer) => answer,
                    Err(error) => Value::from(error.to_string()),
                };
                let mut told: Vec<Value> = QUESTIONS.iter().map(ask).collect();
                told.push(Value::from(stderr(&output)));
                answers.push(told);
                drop(daemon);
                std::fs::remove_file(socket).ok();
                std::fs::remove_file(pidfile).ok();
            }
            let named = QUESTIONS.iter().chain(&["stderr"]);
            for ((question, plain), ours) in named.zip(&answers[0]).zip(&answers[1]) {
                assert_eq!(ours, plain, "{question} of {}", program.display());
            }
        }
    }
}
