//! Which words belong to an option is known as QEMU's own help has it, of every emulator that is here.

mod rig;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::Command;

use rig::emulator::{both, of_7_2};
use rig::{finish, stdout};
use vdeq::argv::scan;

/// The options in a help text, and whether each takes a value. A line that is about one begins with it, its names
/// joined by "/" or "or"; what stands before the first wide gap is the option.
fn options(help: &str) -> BTreeMap<String, bool> {
    let mut options = BTreeMap::new();
    for line in help.lines().filter(|line| line.starts_with('-')) {
        let line = line.replace('\t', "  ");
        let mut words = line.split("  ").next().unwrap_or("").split(' ').filter(|word| !word.is_empty());
        let mut names: Vec<&str> = words.next().unwrap_or("").split('/').collect();
        let mut rest: Vec<&str> = words.collect();
        if let ["or", second, ..] = rest[..] {
            names.push(second);
            rest.drain(..2);
        }
        for name in names {
            let name = name.trim_start_matches('-');
            // One has the gap in its middle, and one has none.
            let takes_value = match name {
                "dtb" => true,
                "async-teardown" => false,
                _ => !rest.is_empty(),
            };
            options.insert(name.to_owned(), takes_value);
        }
    }
    options
}

#[test]
fn values_belong_to_options_as_in_qemus_help() {
    let [new, old] = both();
    let others = ["aarch64", "arm", "riscv64", "s390x"].map(|arch| of_7_2(&format!("qemu-system-{arch}")));
    for program in [new, old].iter().chain(&others) {
        let options = options(&stdout(&finish(Command::new(program).arg("-help"))));
        assert!(options.len() > 100, "{}: {options:?}", program.display());
        for (name, takes_value) in options {
            // A value that looks like an option of ours: the hardest case.
            let words = [format!("-{name}"), "-nic".into(), "vde".into()].map(OsString::from);
            let tokens = scan(&words);
            assert_eq!(tokens[0].words().len() == 2, takes_value, "{} -{name}", program.display());
            assert_eq!(tokens[1].is("nic"), !takes_value, "{} -{name}", program.display());
        }
    }
}
