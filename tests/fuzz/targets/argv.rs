//! Any command line for `vdeq`. Input: a byte of choices (QEMU's version, whether the host has KVM, the emulator, whether
//! there is a default switch), and the words, each ended by a newline; the first is the name that `vdeq` is called by.
//!
//! A line is refused by a sentence, or becomes another one. There, words that concern neither networks nor memory are
//! what and where they were; nothing changes where no word speaks of VDE or of an old segment; and what was rewritten once is not
//! again.

#![no_main]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use vdeq::argv::{Token, scan};
use vdeq::cli::{self, Command, Request};
use vdeq::error::Error;
use vdeq::plan::Plan;
use vdeq::rewrite::{Facts, Rewrite};
use vdeq::version::QemuVersion;

const VERSIONS: [QemuVersion; 4] =
    [QemuVersion(10, 0, 2), QemuVersion(7, 2, 0), QemuVersion(8, 1, 0), QemuVersion(5, 2, 0)];

const EMULATORS: [&str; 4] = ["qemu-system-x86_64", "qemu-system-aarch64", "qemu-system-s390x", "my-qemu"];

/// Options that may be changed.
const OURS: [&str; 12] = [
    "M",
    "chardev",
    "device",
    "global",
    "m",
    "machine",
    "mem-path",
    "net",
    "netdev",
    "nic",
    "object",
    "readconfig",
];

fuzz_target!(|input: &[u8]| {
    let Some((choices, rest)) = input.split_first() else { return };
    let words = rest.split(|byte| *byte == b'\n').filter(|word| !word.contains(&0));
    let mut request = match cli::parse(words.map(|word| OsStr::from_bytes(word).to_owned())) {
        Ok(Command::Run(request)) => request,
        Ok(Command::Help { .. } | Command::Version) => return,
        Err(error) => return check(&error),
    };
    request.default_switch = choices & 0x40 != 0;
    let choice = |shift: u8| usize::from(*choices >> shift & 3);
    let facts = Facts {
        version: VERSIONS[choice(0)],
        kvm_usable: choice(2) & 1 == 0,
        private_dir: "/run/vdeq/1".into(),
        run_as: None,
        umask_is_strict: true,
    };
    let emulator = EMULATORS[choice(4)];
    let plan = match plan(emulator, &request, &facts) {
        Ok(plan) => plan,
        Err(error) => return check(&error),
    };
    assert_eq!(foreign(&plan.arguments), foreign(&request.args));
    if request.sock.is_none() && !request.default_switch && !speaks(&request.args) {
        assert_eq!(plan.arguments, request.args);
        assert!(plan.back_end.is_none());
    }
    // An older one has no stream, so that some networks stay with its own VDE client, by a word that we know.
    if facts.version < QemuVersion::OLDEST_WITH_STREAM {
        return;
    }
    let again = Request { program: request.program, args: plan.arguments.clone(), ..Request::default() };
    let again = self::plan(emulator, &again, &facts).expect("our own line is a good one");
    assert_eq!(again.arguments, plan.arguments);
    assert!(again.back_end.is_none(), "everything is served already");
});

fn plan(emulator: &str, request: &Request, facts: &Facts) -> Result<Plan, Error> {
    Rewrite::read(emulator, request)?.plan(&request.program, facts)
}

/// Whether a word speaks of VDE, or as only old versions of QEMU understand.
fn speaks(args: &[OsString]) -> bool {
    let is_old = |token: &Token| {
        let text = token.text().unwrap_or("");
        token.is("net") && (text.contains("vlan") || text.contains("name"))
    };
    args.iter().any(|word| word.to_string_lossy().contains("vde")) || scan(args).iter().any(is_old)
}

/// The words that are none of our business, in order.
fn foreign(args: &[OsString]) -> Vec<OsString> {
    let tokens = scan(args);
    let others = tokens.iter().filter(|token| !token.name().is_some_and(|name| OURS.contains(&name)));
    others.flat_map(|token| token.words()).cloned().collect()
}

fn check(error: &Error) {
    let text = error.to_string();
    assert!(text.contains(' '), "a sentence: {text}");
    assert!(matches!(error.status(), 2 | 5 | 6), "{text}");
}
