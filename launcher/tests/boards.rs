//! Boards: real emulators of other architectures, version 7.2, and what a board that is not listed makes of the command
//! line. The VMs are paused, so no firmware is needed; a VM that starts has got the memory and the NIC that it was given.

mod rig;

use std::path::Path;
use std::process::Command;

use rig::emulator::{Paused, installed, of_7_2};
use rig::{Rig, finish, make, stderr, stdout};
use serde_json::json;

const MIB: u64 = 1 << 20;

/// Command lines after the program's name, and what comes of them: name and bytes of the memory, and the NIC's device.
const BOARDS: &[(&str, &str, &str, u64, &str)] = &[
    ("aarch64", "-M virt -net nic,model=virtio", "mach-virt.ram", 128 * MIB, "virtio-net-pci"),
    ("aarch64", "-M virt,gic-version=max -cpu max -m 512", "mach-virt.ram", 512 * MIB, "virtio-net-pci"),
    ("arm", "-M virt -net nic,vectors=0", "mach-virt.ram", 128 * MIB, "virtio-net-pci"),
    (
        "arm",
        "-M virt -netdev vde,id=n,sock=SW -device virtio-net-device,netdev=n",
        "mach-virt.ram",
        128 * MIB,
        "virtio-net-device",
    ),
    ("riscv64", "-M virt -m 96", "riscv_virt_board.ram", 96 * MIB, "virtio-net-pci"),
    ("riscv64", "-M virt -nic vde,sock=SW", "riscv_virt_board.ram", 128 * MIB, "virtio-net-pci"),
    ("s390x", "-net nic,macaddr=52:54:00:00:00:07", "s390.ram", 128 * MIB, "virtio-net-ccw"),
    (
        "s390x",
        "-M s390-ccw-virtio-5.2 -m 256 -net nic,model=virtio-net-ccw",
        "s390.ram",
        256 * MIB,
        "virtio-net-ccw",
    ),
    (
        "s390x",
        "-netdev vde,id=n,sock=SW -device virtio-net-ccw,netdev=n,devno=fe.0.0007",
        "s390.ram",
        128 * MIB,
        "virtio-net-ccw",
    ),
    ("loongarch64", "-M virt", "loongarch.ram", 1024 * MIB, "virtio-net-pci"),
    ("loongarch64", "-m 2G", "loongarch.ram", 2048 * MIB, "virtio-net-pci"),
    // These are not listed.
    ("aarch64", "-M sbsa-ref -net nic", "sbsa-ref.ram", 1024 * MIB, "virtio-net-pci"),
    ("arm", "-M vexpress-a15 -net nic,model=virtio", "vexpress.highmem", 128 * MIB, "virtio-net-device"),
    ("arm", "-M versatilepb -net nic,model=virtio", "versatile.ram", 128 * MIB, "virtio-net-pci"),
    (
        "arm",
        "-M versatileab -m 64 -netdev vde,id=n,sock=SW -device virtio-net,netdev=n",
        "versatile.ram",
        64 * MIB,
        "virtio-net-pci",
    ),
];

#[test]
fn boards_of_other_architectures_have_shared_memory_and_their_nic() {
    let mut rig = Rig::new();
    let switch = rig.switch();
    for (architecture, line, ram, bytes, device) in BOARDS {
        let program = of_7_2(&format!("qemu-system-{architecture}"));
        let line = line.replace("SW", &switch);
        let (mut words, sock) = (line.split(' ').collect::<Vec<_>>(), format!("vde,sock={switch}"));
        if !line.contains("vde,") {
            let bare: &[&str] = if line.contains("-net nic") { &[] } else { &["-net", "nic,model=virtio"] };
            words.extend(bare.iter().chain(&["-net", &sock]));
        }
        let what = format!("qemu-system-{architecture} {line}");
        let mut vm = Paused::start(rig.vdeq().arg(&program), words);
        let memory = vm.ask("query-memdev", json!({}));
        assert_eq!(memory.as_array().map(Vec::len), Some(1), "{what}: {memory}");
        assert_eq!((&memory[0]["id"], &memory[0]["size"]), (&json!(ram), &json!(bytes)), "{what}");
        assert_eq!(memory[0]["share"], true, "{what}");
        let nics = vm.ask("human-monitor-command", json!({ "command-line": "info network" }));
        let nics = nics.as_str().expect("text");
        assert!(nics.starts_with(&format!("{device}.0: ")), "{what}: {nics}");
        assert!(nics.contains("type=vhost-user"), "{what}: {nics}");
        vm.quit();
    }
}

/// What vdeq would run.
fn plan(command: &mut Command, words: &[&str]) -> String {
    let output = finish(command.args(words));
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

const NIC: [&str; 4] = ["-net", "nic,model=virtio", "-net", "vde"];

#[test]
fn emulator_of_another_name_is_asked_for_its_machine_once() {
    let rig = Rig::new();
    let (program, cache) = (rig.path("my-emulator"), rig.path("cache"));
    make(Command::new("cp").arg(installed()).arg(&program));
    let ask = || {
        let mut command = rig.vdeq();
        command.env("XDG_CACHE_HOME", &cache).arg("--vde-print-plan").arg(&program);
        plan(&mut command, &NIC)
    };
    let first = ask();
    assert!(first.contains("memory-backend-memfd,id=pc.ram,size=134217728,"), "{first}");
    assert!(first.contains("-net nic,netdev=vdeq0n,model=virtio-net-pci"), "{first}");
    let kept = std::fs::read_dir(cache.join("vdeq")).expect("the cache").flatten().map(|entry| entry.path());
    let kept: Vec<_> = kept
        .filter(|path| std::fs::read_to_string(path).is_ok_and(|text| text.contains("pc-i440fx")))
        .collect();
    let [kept] = &kept[..] else { panic!("not one answer: {kept:?}") };
    // Another answer there is believed, so nobody was asked again; one that is broken is not.
    let text = std::fs::read_to_string(kept).expect("text");
    let (line, answer) = text.split_once('\n').expect("an answer");
    let kind = serde_json::from_str::<serde_json::Value>(answer).expect("JSON")["kind"].clone();
    let other = text.replace(kind.as_str().expect("a type"), "microvm");
    std::fs::write(kept, other).expect("written");
    let again = ask();
    assert!(again.contains("id=microvm.ram") && again.contains("-device virtio-net-device"), "{again}");
    std::fs::write(kept, format!("{line}\n{{}}")).expect("written");
    assert_eq!(ask(), first);
}

/// A fake emulator's answers to the questions about a board, as QEMU documents them since 5.2: later versions have
/// more members, and aliases.
fn answers(arch: &str, kind: &str, machines: &str, pci: &str) -> String {
    format!(
        r#"printf '%s\n' '{{"QMP": {{"version": {{"qemu": {{"micro": 0, "minor": 2, "major": 5}}, "package": ""}}, "capabilities": ["oob"]}}}}'
while read -r line; do
    case $line in
    *qmp_capabilities*) answer='{{"return": {{}}}}' ;;
    *qom-get*) answer='{{"return": "{kind}-machine"}}' ;;
    *query-machines*) answer='{{"return": [{machines}]}}' ;;
    *query-memory-size-summary*) answer='{{"return": {{"base-memory": 268435456, "plugged-memory": 0}}}}' ;;
    *query-target*) answer='{{"return": {{"arch": "{arch}"}}}}' ;;
    *query-pci*) answer='{pci}' ;;
    *qom-list*) answer='{{"return": [{{"name": "device[0]", "type": "child<virtio-mmio>"}}, {{"name": "sysbus", "type": "child<System>"}}]}}' ;;
    *quit*) exit ;;
    *) answer='{{"error": {{"class": "CommandNotFound", "desc": "The command has not been found"}}}}' ;;
    esac
    printf '%s\n' "$answer"
done"#
    )
}

#[test]
fn answers_of_qemu_5_2_about_its_machine_are_understood() {
    const NO_PCI: &str = r#"{"return": []}"#;
    const WITHOUT: &str =
        r#"{"error": {"class": "CommandNotFound", "desc": "The command query-pci has not been found"}}"#;
    const PCI: &str = r#"{"return": [{"bus": 0, "devices": []}]}"#;
    let rig = Rig::new();
    for (arch, kind, ram, pci, device) in [
        ("arm", "vexpress-a9", "vexpress.highmem", NO_PCI, "virtio-net-device"),
        ("microblaze", "petalogix", "ddr.ram", WITHOUT, "virtio-net-device"),
        ("mips64", "malta", "mips_malta.ram", PCI, "virtio-net-pci"),
    ] {
        let machines = format!(
            r#"{{"hotpluggable-cpus": false, "name": "none", "numa-mem-supported": false, "cpu-max": 1, "deprecated": false, "default-ram-id": "ram"}}, {{"hotpluggable-cpus": false, "name": "{kind}", "numa-mem-supported": false, "cpu-max": 4, "deprecated": false, "default-ram-id": "{ram}"}}"#
        );
        let mut command = rig.vdeq();
        command.env("FQ_VERSION", "5.2.0").env("FQ_DO", answers(arch, kind, &machines, pci));
        let text = plan(command.args(["--vde-print-plan", "qemu-system-x86_64", "-M", kind]), &NIC);
        let object = format!("-object memory-backend-memfd,id={ram},size=268435456,share=on,");
        assert!(
            text.contains(&object) && text.contains(&format!("-device {device},netdev=vdeq0n")),
            "{text}"
        );
        assert!(text.contains(",reconnect=1"), "{text}");
    }
}

#[test]
fn a_machine_that_does_not_start_alone_is_looked_up_in_the_list_of_all() {
    let rig = Rig::new();
    // As a board that wants firmware does: it says so and ends, unless no board is asked for.
    let machines = r#"{"name": "board", "cpu-max": 1, "default-ram-id": "board.ram"}"#;
    let answers = answers("arm", "none", machines, r#"{"return": []}"#);
    let script = format!(
        "case \"$*\" in *board*) echo 'qemu-system-x86_64: no firmware' >&2; exit 1 ;; esac\n{answers}"
    );
    let plan_of = |kind: &str, words: &[&str]| {
        let mut command = rig.vdeq();
        command.env("FQ_DO", &script).args(["--vde-print-plan", "qemu-system-x86_64", "-M", kind]);
        finish(command.args(words).args(NIC))
    };
    let output = plan_of("board", &["-m", "64"]);
    assert!(stdout(&output).contains("id=board.ram,size=67108864,"), "{}", stderr(&output));
    // Its size is not in that list.
    let output = plan_of("board", &[]);
    assert!(output.status.code() == Some(5) && stderr(&output).contains("give -m"), "{}", stderr(&output));
    let output = plan_of("keyboard", &["-m", "64"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(
        stderr(&output).contains("machine keyboard in this emulator is not known (no firmware)"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_emulator_that_is_mute_is_not_waited_for() {
    let rig = Rig::new();
    let mut command = rig.vdeq();
    command.env("FQ_DO", "echo hello").args(["qemu-system-x86_64", "-M", "board"]).args(NIC);
    let output = finish(&mut command);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(!Path::new(&rig::private_dir(std::process::id())).exists());
}

#[test]
fn a_vm_that_was_only_asked_is_not_left_behind() {
    let rig = Rig::new();
    // A signal to the script would not reach its child, and a paused VM does not mind that nobody talks to it.
    let script = format!("#!/bin/sh\n{} -name '{}' \"$@\"\n", installed().display(), rig.text("asked"));
    let program = rig.script("wrapper", &script);
    let text = plan(rig.vdeq().arg("--vde-print-plan").arg(&program), &NIC);
    assert!(text.contains("id=pc.ram"), "{text}");
    // One that was asked to end does so in its time; one that was not, never.
    rig::until("nobody is left", || rig::processes_with(&rig.text("asked")).is_empty());
}
