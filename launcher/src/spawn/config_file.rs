//! What `-readconfig` files say about guest memory.
//!
//! They are QEMU's to read, and it merges them with the command line. Memory that the user gives there would have to
//! give way to the object that we add; so it is looked for, and refused.

use std::fs;
use std::path::Path;

use crate::argv::Token;
use crate::error::Error;

/// Refuses command lines whose configuration files name the guest's memory.
pub fn check(tokens: &[Token]) -> Result<(), Error> {
    for path in tokens.iter().filter(|token| token.is("readconfig")).filter_map(Token::text) {
        // A pipe can be read only once, and a file that cannot be read is QEMU's to report.
        let regular = fs::metadata(path).is_ok_and(|found| found.is_file());
        let text = fs::read_to_string(Path::new(path)).ok().filter(|_| regular);
        if let Some((section, key)) = text.as_deref().and_then(memory) {
            return Err(Error::Memory(format!(
                "-readconfig {path} gives the guest's memory by {key} in [{section}], which would not be kept; \
                 give it on the command line, by -object and -machine memory-backend= or -numa node,memdev="
            )));
        }
    }
    Ok(())
}

/// The section and the key that name an object with the guest's memory.
fn memory(text: &str) -> Option<(&str, &str)> {
    let mut section = "";
    for line in text.lines().map(str::trim) {
        if let Some(head) = line.strip_prefix('[') {
            // An id may follow: [object "ram0"].
            section = head.split([' ', ']']).next().unwrap_or("");
        } else if let Some((key, _)) = line.split_once('=') {
            let key = key.trim();
            // QEMU takes an underscore for a dash in a machine's properties.
            if matches!(
                (section, key),
                ("machine", "memory_backend") | ("machine", "memory-backend") | ("numa", "memdev")
            ) {
                return Some((section, key));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_in_its_sections_only() {
        for (text, found) in [
            ("[machine]\n  type = \"q35\"\n  memory-backend = \"m\"\n", Some(("machine", "memory-backend"))),
            (
                "[object \"m\"]\nsize = \"1G\"\n[numa \"n\"]\ntype=\"node\"\nmemdev=\"m\"",
                Some(("numa", "memdev")),
            ),
            ("# [machine]\n[memory]\nsize = \"1G\"\n[device]\nmemdev = \"d\"\n", None),
            ("[machine]\n# memory-backend = \"m\"\n[numa]\n[machine", None),
            ("", None),
        ] {
            assert_eq!(memory(text), found, "{text}");
        }
    }
}
