//! `-netdev vde` and `-nic vde` on the real QEMU, 10 and 7.2: what NICs the machine has then, and what they are connected to.
//! The VMs are paused and on a network that goes nowhere; guests that send frames are in the end-to-end tests.

mod rig;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use rig::Rig;
use rig::emulator::{Paused, both, installed, of_7_2};
use serde_json::json;

/// The NICs that an emulator made, in their order: the end of the address, the model, and the kind and the id of what it is
/// connected to.
fn nics(vm: &mut Paused) -> Vec<String> {
    let text = vm.ask("human-monitor-command", json!({ "command-line": "info network" }));
    let mut nics: Vec<String> = Vec::new();
    for line in text.as_str().expect("text").lines() {
        // "NAME: ..." for a NIC, " \ NAME: ..." for its peer, " \ PORT: NAME: ..." for each side of a hub.
        let Some((names, told)) = line.split_once(": index=0,type=") else { continue };
        let names: Vec<&str> = names.trim_start_matches([' ', '\\']).split(": ").collect();
        let kind = told.split(',').next().unwrap_or("");
        match (kind, told.split_once(",model=").and_then(|(_, nic)| nic.split_once(",macaddr="))) {
            ("nic", Some((model, mac))) => {
                let end = mac.rsplit(':').next().unwrap_or("");
                let port = if names.len() == 2 { format!(" hubport {}", names[0]) } else { String::new() };
                nics.push(format!("{end} {model}{port}"));
            }
            _ if names.len() == 1 && line.starts_with(' ') => {
                nics.last_mut().expect("a NIC before its peer").push_str(&format!(" {kind} {}", names[0]));
            }
            _ => {}
        }
    }
    // The addresses are given one after the other.
    nics.sort();
    nics
}

/// A paused VM of `vdeq`, with the words of a line.
fn start(rig: &Rig, program: &Path, line: &str) -> Paused {
    let line = format!("-accel tcg -m 64 {line}");
    Paused::start(rig.vdeq().arg(program), line.split(' '))
}

#[test]
fn nics_are_as_asked_for_and_served() {
    let rig = Rig::new();
    let cases: &[(&str, &[&str])] = &[
        (
            "-netdev vde,id=a,sock=null:// -device virtio-net-pci,netdev=a",
            &["56 virtio-net-pci vhost-user a"],
        ),
        (
            "-device virtio-net,netdev=a,addr=9 -netdev vde,id=a,sock=null://",
            &["56 virtio-net-pci vhost-user a"],
        ),
        (
            r#"-netdev {"type":"vde","id":"a","sock":"null://","queues":3} -device {"driver":"virtio-net-pci","netdev":"a"}"#,
            &["56 virtio-net-pci vhost-user a"],
        ),
        (
            r#"-device {'driver':'virtio-net-pci-non-transitional','netdev':'a'} -netdev {'type':'vde','id':'a','sock':'null://'}"#,
            &["56 virtio-net-pci-non-transitional vhost-user a"],
        ),
        (
            r#"-netdev {"type":"vde","id":"a","sock":"null://"} -device rtl8139,netdev=a"#,
            &["56 rtl8139 stream a"],
        ),
        (
            "-M microvm -netdev vde,id=a,sock=null:// -device virtio-net-device,netdev=a",
            &["56 virtio-net-device vhost-user a"],
        ),
        ("-M isapc -net nic,netdev=a -netdev vde,id=a,sock=null://", &["56 ne2k_isa stream a"]),
        (
            "-net nic,netdev=a,macaddr=52:54:00:00:00:07 -netdev vde,id=a,sock=null://",
            &["07 virtio-net-pci vhost-user a"],
        ),
        (
            "-net nic,netdev=a,model=virtio-net -netdev vde,id=a,sock=null://",
            &["56 virtio-net-pci vhost-user a"],
        ),
        ("-nic vde,sock=null://", &["56 virtio-net-pci vhost-user vdeq0n"]),
        (
            "-nic vde,sock=null://,model=virtio,queues=2,mac=52:54:00:00:00:07,id=a",
            &["07 virtio-net-pci vhost-user a"],
        ),
        ("-nic vde,sock=null://,model=e1000,mac=52:54:00:00:00:07,id=a", &["07 e1000 stream a"]),
        (
            "-nic vde,sock=null://,model=virtio-net-pci-transitional -nic user,model=e1000,id=u",
            &["56 virtio-net-pci-transitional vhost-user vdeq0n", "57 e1000 user u"],
        ),
        (
            "-netdev vde,id=a,sock=null:// -device virtio-net-pci,netdev=a -object filter-dump,id=d,netdev=a,file=DIR/d",
            &["56 virtio-net-pci stream a"],
        ),
        (
            "-nic vde,id=a,sock=null://,model=virtio -object filter-dump,id=d,netdev=a,file=DIR/d",
            &["56 virtio-net-pci stream a"],
        ),
        (
            "-netdev vde,id=a,sock=null:// -netdev vde,id=b,sock=null:// -device e1000,netdev=b -device virtio-net-pci,netdev=a",
            &["56 e1000 stream b", "57 virtio-net-pci vhost-user a"],
        ),
        ("-netdev vde,id=a,sock=null:// -net none", &[]),
    ];
    for program in both() {
        for (line, expected) in cases {
            let mut vm = start(&rig, &program, &line.replace("DIR", &rig.text("")));
            assert_eq!(nics(&mut vm), *expected, "{} {line}", program.display());
            vm.quit();
        }
    }
}

/// What the guest can tell: which NICs there are, in which order, and in which slots.
#[test]
fn nics_of_other_options_keep_their_places() {
    let rig = Rig::new();
    for program in both() {
        for line in [
            "-nic NET,model=virtio-net-pci -nic user,model=e1000",
            "-nic user,model=rtl8139 -nic NET,model=e1000 -nic NET,model=virtio-net-pci",
            "-nic NET,model=e1000 -nic user,model=pcnet -nic NET,model=ne2k_pci",
            "-net nic,model=rtl8139 -net user -nic NET,model=virtio-net-pci",
            "-nic NET,model=e1000e -device virtio-rng-pci -net nic,model=rtl8139 -net user",
            "-device virtio-rng-pci -nic NET,model=virtio-net-pci -netdev NET,id=n -device e1000,netdev=n",
            "-M q35 -nic NET,model=virtio-net-pci -nic user,model=e1000e",
        ] {
            let line = format!("-accel tcg -m 64 {line}");
            let (native, vde) = (line.replace("NET", "user"), line.replace("NET", "vde,sock=null://"));
            let places = |mut vm: Paused| {
                let nics: Vec<String> = nics(&mut vm);
                let words = |nic: &String| nic.split(' ').take(2).map(str::to_owned).collect::<Vec<_>>();
                let nics: Vec<_> = nics.iter().map(words).collect();
                let buses = vm.ask("query-pci", json!({}));
                vm.quit();
                // Not the regions: QEMU gives no interrupt vectors to the virtio NICs of -nic.
                let devices = buses[0]["devices"].as_array().expect("a list").iter();
                let slots: Vec<_> =
                    devices.map(|device| (device["slot"].clone(), device["id"].to_string())).collect();
                (nics, slots)
            };
            let plain = places(Paused::start(&mut Command::new(&program), native.split(' ')));
            let ours = places(Paused::start(rig.vdeq().arg(&program), vde.split(' ')));
            assert!(!plain.0.is_empty());
            assert_eq!(ours, plain, "{} {line}", program.display());
        }
    }
}

/// Models that both emulators have.
const MODELS: [&str; 26] = [
    "e1000",
    "e1000-82544gc",
    "e1000-82545em",
    "e1000e",
    "i82550",
    "i82551",
    "i82557a",
    "i82557b",
    "i82557c",
    "i82558a",
    "i82558b",
    "i82559a",
    "i82559b",
    "i82559c",
    "i82559er",
    "i82562",
    "i82801",
    "ne2k_pci",
    "pcnet",
    "rtl8139",
    "tulip",
    "usb-net",
    "vmxnet3",
    "virtio-net-pci",
    "virtio-net-pci-transitional",
    "virtio-net-pci-non-transitional",
];

#[test]
fn all_models_start_in_all_forms() {
    let rig = Rig::new();
    let protocol = |model: &str| if model.starts_with("virtio") { "vhost-user" } else { "stream" };
    for program in both() {
        let by_device =
            |model: &&str| format!("-netdev vde,id={model},sock=null:// -device {model},netdev={model}");
        let by_nic = |model: &&str| format!("-nic vde,sock=null://,model={model},id={model}");
        let by_net = |model: &&str| {
            format!("-netdev vde,id={model},sock=null:// -net nic,netdev={model},model={model}")
        };
        let mut batches = vec![(MODELS.to_vec(), MODELS.iter().map(by_device).collect::<Vec<_>>())];
        // QEMU makes no more than eight NICs with the machine.
        for models in MODELS.chunks(8) {
            let (first, second) = models.split_at(4.min(models.len()));
            batches
                .push((models.to_vec(), first.iter().map(by_nic).chain(second.iter().map(by_net)).collect()));
        }
        // Alone, because it wants the rest of the bus for its virtual functions; 7.2 does not have it.
        if program == installed() {
            batches.push((vec!["igb"], vec![by_nic(&"igb")]));
        }
        for (models, words) in batches {
            let line = format!("-usb {}", words.join(" "));
            let mut vm = start(&rig, &program, &line);
            let made = nics(&mut vm);
            let made: BTreeSet<&str> = made.iter().filter_map(|nic| Some(nic.split_once(' ')?.1)).collect();
            let asked: Vec<String> =
                models.iter().map(|model| format!("{model} {} {model}", protocol(model))).collect();
            assert_eq!(made, asked.iter().map(String::as_str).collect(), "{} {line}", program.display());
            vm.quit();
        }
    }
}

#[test]
fn a_board_has_the_nic_that_fits_it() {
    let rig = Rig::new();
    for (program, board, nic) in [
        ("qemu-system-arm", "versatilepb", "smc91c111"),
        ("qemu-system-arm", "vexpress-a9", "lan9118"),
        ("qemu-system-aarch64", "virt", "virtio-net-pci"),
        ("qemu-system-riscv64", "virt", "virtio-net-pci"),
        ("qemu-system-s390x", "s390-ccw-virtio", "virtio-net-ccw"),
    ] {
        let kind = if nic.starts_with("virtio") { "vhost-user" } else { "stream" };
        for words in ["-nic vde,sock=null://,id=a", "-net nic,netdev=a -netdev vde,id=a,sock=null://"] {
            let line = format!("-M {board} -audiodev none,id=audio {words}");
            let mut vm = start(&rig, &of_7_2(program), &line);
            assert_eq!(nics(&mut vm), [format!("56 {nic} {kind} a")], "{line}");
            vm.quit();
        }
    }
}
