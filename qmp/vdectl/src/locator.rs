//! Networks as the back end has to be told of them.
//!
//! A back end has a working directory of its own: what its user calls by a relative path is sent by the absolute one.

use std::env::current_dir;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::Failure;

/// The schemes whose argument begins with a path; that of a locator without a scheme does too.
const OF_PATHS: [&str; 6] = ["vde", "multi", "bonding", "hub", "switch", "ptp"];

/// A locator that means the same in every directory.
pub fn absolute(locator: &str) -> Result<String, Failure> {
    if !is_relative(locator) {
        return Ok(locator.into());
    }
    let here = current_dir().map_err(|error| {
        Failure::new(format!(
            "what '{locator}' is relative to cannot be told ({error}); write a path with / first"
        ))
    })?;
    Ok(below(&here, locator))
}

/// Whether a locator has a path that begins somewhere. Nothing, or options only, is the default network.
pub fn is_relative(locator: &str) -> bool {
    let argument = match locator.split_once("://") {
        Some((scheme, argument)) if OF_PATHS.contains(&scheme) => argument,
        Some(_) => return false,
        None => locator,
    };
    !argument.is_empty() && !argument.starts_with(['/', '['])
}

fn below(directory: &Path, locator: &str) -> String {
    let (scheme, argument) = locator.split_once("://").unwrap_or(("", locator));
    let mut text = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
    for byte in directory.as_os_str().as_bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'/' | b'.' | b'-' | b'_' => {
                text.push(char::from(*byte))
            }
            // Brackets, quotes and others would mean something.
            byte => write!(text, "%{byte:02x}").unwrap_or_default(),
        }
    }
    if !text.ends_with('/') {
        text.push('/');
    }
    text + argument.strip_prefix("./").unwrap_or(argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absolute_stays() {
        for locator in
            ["", "/tmp/sw[5]", "vde:///tmp/sw", "vde://", "vde://[3]", "[3]", "tap://t0", "cmd://a b"]
        {
            assert_eq!(absolute(locator).unwrap(), locator);
        }
        let here = current_dir().unwrap();
        assert_eq!(absolute("sw").unwrap(), below(&here, "sw"));
        assert_eq!(absolute("switch://sw").unwrap(), below(&here, "switch://sw"));
    }

    #[test]
    fn relative_paths_go_below_the_directory() {
        let cases = [
            ("sw", "/tmp/my%20dir%5b1%5d/sw"),
            ("./sw[5]", "/tmp/my%20dir%5b1%5d/sw[5]"),
            ("vde://a/b", "vde:///tmp/my%20dir%5b1%5d/a/b"),
            ("hub://../h", "hub:///tmp/my%20dir%5b1%5d/../h"),
        ];
        for (locator, expected) in cases {
            assert_eq!(below(Path::new("/tmp/my dir[1]"), locator), expected);
        }
        assert_eq!(below(Path::new("/"), "sw"), "/sw");
    }
}
