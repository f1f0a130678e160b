//! What documents say about the tests is so.

use std::collections::BTreeSet;
use std::path::Path;

/// All text of the Rust files below a directory.
fn sources(directory: &Path, text: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The items of the conformance table and their tests; each test is named for its item.
#[test]
fn conformance_table_names_a_test_for_each_item() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = std::fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let mut code = String::new();
    for directory in ["backend/src", "launcher", "plug/tests", "plug/capi/tests", "tests/tests"] {
        sources(&root.join(directory), &mut code);
    }
    let mut items = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| C-") || line.starts_with("| Q-")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, item, _, tests, _, _] = cells[..] else { panic!("not four cells: {row}") };
        let (kind, number) = item.split_once('-').unwrap();
        assert!(items.insert((kind, number.parse::<u32>().unwrap())), "{item} is there twice");
        let name = format!("{}_{number}", kind.to_lowercase());
        for test in tests.split(',').map(|test| test.trim().trim_matches('`')) {
            assert!(test.contains(&name), "{test} is no test of {item}");
            assert!(code.contains(&format!("fn {test}(")), "there is no test {test}, named for {item}");
        }
    }
    let numbers =
        |of: &str| items.iter().filter(|(kind, _)| *kind == of).map(|(_, number)| *number).collect();
    let (vde, qemu): (Vec<u32>, Vec<u32>) = (numbers("C"), numbers("Q"));
    assert!(vde.iter().copied().eq(1..=58), "the items of VDE are {vde:?}");
    assert!((1..=29).all(|number| qemu.contains(&number)), "the items of QEMU are {qemu:?}");
}
