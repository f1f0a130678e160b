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

/// The tests of the conformance table by the number of their item.
#[test]
fn conformance_table_names_a_test_for_each_item() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = std::fs::read_to_string(root.join("docs/conformance.md")).unwrap();
    let mut code = String::new();
    for directory in ["plug/tests", "plug/capi/tests"] {
        sources(&root.join(directory), &mut code);
    }
    let mut items = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| C-")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, item, _, tests, _, _] = cells[..] else { panic!("not four cells: {row}") };
        let number = item.strip_prefix("C-").unwrap();
        assert!(items.insert(number.parse::<u32>().unwrap()), "{item} is there twice");
        for test in tests.split(',').map(|test| test.trim().trim_matches('`')) {
            assert!(test.contains(&format!("c_{number}")), "{test} is no test of {item}");
            assert!(code.contains(&format!("fn {test}(")), "there is no test {test}, named for {item}");
        }
    }
    assert!(items.iter().copied().eq(1..=44), "the items are {items:?}");
}
