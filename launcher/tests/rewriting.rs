//! Command lines and what becomes of them, from `rewriting.txt`.
//!
//! A case is a line `$ [@VERSION ][kvm ][<TOLD> ][switch ]NAME ARGUMENTS`, as a shell would read it (single and double
//! quotes only; VERSION of QEMU, 10.0.2 unless given; with a default switch or without), followed by the outcome: `>` the back end's and
//! QEMU's lines, `!` what the user is told, `E` a refusal with its exit status. `VDEQ_BLESS=1` writes
//! the outcomes anew; the difference is then for the author to judge.
//!
//! TOLD is what the emulator answers when it is asked about its machine: architecture, type, name of its memory (or -),
//! bytes of it (0: not known) and bus, or a reason why there is no answer. Only who needs it gets it.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::Path;

use vdeq::cli::{self, Command, Request};
use vdeq::error::Error;
use vdeq::machine::{Board, Bus, Told};
use vdeq::plan::Plan;
use vdeq::rewrite::{Facts, Rewrite};
use vdeq::version::QemuVersion;

/// Splits a line as a shell does, without any expansion.
fn words(line: &str) -> Vec<OsString> {
    let mut words = Vec::new();
    let (mut word, mut quote, mut open) = (String::new(), None, false);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(end)) if c == end => quote = None,
            (c, Some(_)) => word.push(c),
            ('\'' | '"', None) => (quote, open) = (Some(c), true),
            (' ', None) => {
                if open || !word.is_empty() {
                    words.push(std::mem::take(&mut word).into());
                }
                open = false;
            }
            (c, None) => word.push(c),
        }
    }
    if open || !word.is_empty() {
        words.push(word.into());
    }
    words
}

fn facts(version: QemuVersion, kvm_usable: bool) -> Facts {
    Facts { version, kvm_usable, private_dir: "/run/vdeq/1".into(), run_as: None, umask_is_strict: true }
}

fn plan(request: &Request, facts: &Facts) -> Result<Plan, Error> {
    let program = request.program.to_string_lossy();
    Rewrite::read(&program, request)?.plan(&request.program, facts)
}

/// The plan for a machine that the emulator has to be asked about, or that must not need it.
fn answered(request: &Request, facts: &Facts, answer: Result<Told, String>) -> Result<Plan, Error> {
    let program = request.program.to_string_lossy();
    let rewrite = Rewrite::read(&program, request)?;
    assert!(rewrite.unknown_machine().is_some(), "{program} need not be asked");
    Rewrite::read_answered(&program, request, answer)?.plan(&request.program, facts)
}

/// Reads TOLD.
fn told(text: &str) -> Result<Told, String> {
    let words: Vec<&str> = text.split(' ').collect();
    let [arch, kind, ram_id, bytes, bus] = words[..] else { return Err(text.to_owned()) };
    let bus = match bus {
        "pci" => Bus::BarePci,
        "mmio" => Bus::Mmio,
        "on-board" => Bus::OnBoard,
        other => panic!("no bus: {other}"),
    };
    let default_ram = Some(bytes.parse().expect("bytes")).filter(|&bytes| bytes != 0);
    let ram_id = Some(ram_id).filter(|id| *id != "-").map(|id| id.to_owned().into());
    let board = Board { ram_id, default_ram, bus };
    Ok(Told { arch: arch.to_owned(), kind: kind.to_owned(), board })
}

/// Carries a case out.
fn outcome(case: &str) -> String {
    let (mut line, mut version, mut kvm) = (case, QemuVersion(10, 0, 2), false);
    if let Some(rest) = line.strip_prefix('@') {
        let (number, rest) = rest.split_once(' ').expect("a version and a line");
        version = QemuVersion::find(&format!("emulator version {number}")).expect("a version");
        line = rest;
    }
    if let Some(rest) = line.strip_prefix("kvm ") {
        (kvm, line) = (true, rest);
    }
    let mut answer = None;
    if let Some((text, rest)) = line.strip_prefix('<').and_then(|rest| rest.split_once("> ")) {
        (answer, line) = (Some(told(text)), rest);
    }
    let mut default_switch = false;
    if let Some(rest) = line.strip_prefix("switch ") {
        (default_switch, line) = (true, rest);
    }
    let mut text = String::new();
    let outcome = cli::parse(words(line)).and_then(|command| {
        let Command::Run(request) = command else { panic!("{case} is not a VM but {command:?}") };
        let request = Request { default_switch, ..request };
        match answer.clone() {
            None => plan(&request, &facts(version, kvm)),
            Some(answer) => answered(&request, &facts(version, kvm), answer),
        }
    });
    match outcome {
        Ok(plan) => {
            plan.shell().lines().for_each(|line| writeln!(text, "> {line}").expect("write"));
            plan.notices.iter().for_each(|notice| writeln!(text, "! {notice}").expect("write"));
        }
        Err(error) => writeln!(text, "E {} {error}", error.status()).expect("write"),
    }
    text
}

#[test]
fn q_1_q_12_command_lines_become_what_is_written() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rewriting.txt");
    let expected = std::fs::read_to_string(&file).expect("the table");
    let (mut actual, mut cases) = (String::new(), 0);
    for line in expected.lines().filter(|line| !line.starts_with(['>', '!', 'E'])) {
        writeln!(actual, "{line}").expect("write");
        if let Some(case) = line.strip_prefix("$ ") {
            actual.push_str(&outcome(case));
            cases += 1;
        }
    }
    if std::env::var_os("VDEQ_BLESS").is_some() {
        std::fs::write(&file, &actual).expect("written");
        return;
    }
    assert!(cases >= 380, "only {cases} cases");
    for (number, (actual, expected)) in actual.lines().zip(expected.lines()).enumerate() {
        assert_eq!(actual, expected, "line {}", number + 1);
    }
    assert_eq!(actual.lines().count(), expected.lines().count());
}

mod properties {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;

    /// Options and words that are none of our business, values that look like ours among them.
    fn foreign() -> impl Strategy<Value = Vec<OsString>> {
        prop_oneof![
            Just(vec!["-snapshot".into()]),
            Just(vec!["-append".into(), "-net vde".into()]),
            Just(vec!["-name".into(), "-net".into()]),
            Just(vec!["--kernel".into(), "vde,sock=x".into()]),
            Just(vec!["-device".into(), "virtio-rng-pci,weird=,,=".into()]),
            Just(vec!["-netdev".into(), "vhost-user,id=u,chardev=vde".into()]),
            Just(vec!["-nic".into(), "user,model=vde".into()]),
            Just(vec!["-netdev".into(), "{\"type\":\"vdes\",\"id\":\"vde\"}".into()]),
            "[a-z][a-z-]{0,8}".prop_map(|word| vec![format!("-zz-{word}").into()]),
            "[a-z0-9][ -~]{0,12}".prop_map(|word| vec![word.into()]),
            proptest::collection::vec(any::<u8>().prop_filter("no NUL", |byte| *byte != 0), 0..12)
                .prop_map(|bytes| vec!["-append".into(), OsString::from_vec(bytes)]),
        ]
    }

    /// A virtio NIC on a VDE network, or none.
    fn ours() -> impl Strategy<Value = Option<Vec<OsString>>> {
        let words = |words: &[&str]| Just(Some(words.iter().map(OsString::from).collect::<Vec<_>>()));
        prop_oneof![
            Just(None),
            words(&["-net", "nic,model=virtio", "-net", "vde,sock=/tmp/sw"]),
            words(&["-nic", "vde,model=virtio,id=our-id"]),
            words(&["-device", "virtio-net-pci,netdev=our-id", "-netdev", "vde,id=our-id,queues=2"]),
            words(&[
                "-netdev",
                r#"{"type":"vde","id":"our-id"}"#,
                "-device",
                "{'netdev':'our-id','driver':'virtio-net-pci'}"
            ]),
        ]
    }

    fn run(args: Vec<OsString>) -> Result<Plan, Error> {
        let request = Request { program: "qemu-system-x86_64".into(), args, ..Request::default() };
        plan(&request, &facts(QemuVersion(10, 0, 2), false))
    }

    proptest! {
        #[test]
        fn foreign_words_pass_in_order(parts in proptest::collection::vec(foreign(), 0..12), at in 0usize..12, vde in ours()) {
            let foreign: Vec<OsString> = parts.concat();
            let mut parts = parts;
            let is_vde = vde.is_some();
            parts.splice(at.min(parts.len())..at.min(parts.len()), vde);
            let arguments = run(parts.concat()).expect("a good line").arguments;
            if is_vde {
                let ours = ["-chardev", "-netdev", "-net", "-nic", "-device", "-object", "-machine", "-readconfig"];
                let marks = ["vdeq0", "pc.ram", "our-id", "/run/vdeq/1/monitor.conf"];
                let mut rest = Vec::new();
                let mut words = arguments.into_iter();
                while let Some(word) = words.next() {
                    let value = words.as_slice().first().map(|value| value.to_string_lossy().into_owned()).unwrap_or_default();
                    if ours.iter().any(|name| word == *name) && marks.iter().any(|mark| value.contains(mark)) {
                        words.next();
                    } else {
                        rest.push(word);
                    }
                }
                prop_assert_eq!(rest, foreign);
            } else {
                prop_assert_eq!(arguments, foreign);
            }
        }

        #[test]
        fn rewriting_twice_changes_nothing(
            parts in proptest::collection::vec(foreign(), 0..6),
            model in prop_oneof![Just(""), Just(",model=virtio"), Just(",model=e1000"), Just(",addr=7")],
            sock in "[a-z,/=\\[\\]]{0,8}",
            nic in any::<bool>(),
            ours in ours(),
        ) {
            let mut args: Vec<OsString> = parts.concat();
            args.extend(ours.into_iter().flatten());
            args.extend(["-net".into(), format!("vde,sock=\"{sock}\"").into()]);
            if nic {
                args.extend(["-net".into(), format!("nic{model}").into()]);
            }
            let once = run(args).expect("a good line").arguments;
            let twice = run(once.clone()).expect("its own outcome");
            prop_assert_eq!(&twice.arguments, &once);
            // What stands in a file may be anything, ours included.
            let said = |notice: &String| !notice.starts_with("-readconfig /run/vdeq/1/monitor.conf is read by QEMU alone");
            prop_assert!(twice.back_end.is_none() && !twice.notices.iter().any(said));
        }

        #[test]
        fn no_line_panics(line in proptest::collection::vec("(-{0,2}(net|netdev|nic|m|machine|object|device|numa|sock|mod)|[ -~é]{0,10}|(nic|vde|user|size|memory-backend-file)[a-z=,\"{}0-9.]{0,20}|\\{['\"](type|id|netdev|driver)['\"]:['\"](vde|a|virtio-net)['\"](,'(id|queues|mode)':('a'|2|null|\\[\\]))?\\})", 0..8)) {
            let words: Vec<OsString> = std::iter::once("vdeq".into()).chain(line.iter().map(OsString::from)).collect();
            let outcome = cli::parse(words).and_then(|command| match command {
                Command::Run(request) => plan(&request, &facts(QemuVersion(7, 2, 0), false)).map(drop),
                Command::Help { .. } | Command::Version => Ok(()),
            });
            // An outcome of either kind is right, but a refusal must have a sentence and a status.
            if let Err(error) = outcome {
                prop_assert!(!error.to_string().is_empty() && error.status() != 0);
            }
        }
    }
}
