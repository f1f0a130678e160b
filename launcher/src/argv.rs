//! The argument list as QEMU reads it: options, their values, and bare words.
//!
//! QEMU takes `-opt` and `--opt` alike, never `-opt=value`, and always takes the next word as the
//! value of an option that has one. A word without a dash is a disk image. Words are kept as the
//! caller gave them, so that whatever is not rewritten stays the same byte for byte.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use crate::qemu_options::{Arity, arity, is_query};

/// One option with its value, or one bare word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    words: Vec<OsString>,
    name: Option<String>,
    missing_value: bool,
}

impl Token {
    /// The option's name without dashes; `None` for a bare word.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether this is the option `name`.
    pub fn is(&self, name: &str) -> bool {
        self.name() == Some(name)
    }

    /// The value as given.
    pub fn value(&self) -> Option<&OsStr> {
        self.words.get(1).map(OsString::as_os_str)
    }

    /// The value if it is text. What we rewrite is text; the rest is none of our business.
    pub fn text(&self) -> Option<&str> {
        self.value().and_then(OsStr::to_str)
    }

    /// The words that this token was made of.
    pub fn words(&self) -> &[OsString] {
        &self.words
    }

    /// Whether the list ended where the value should stand.
    pub fn lacks_value(&self) -> bool {
        self.missing_value
    }

    /// Whether QEMU will print something and end.
    pub fn is_query(&self) -> bool {
        self.name().is_some_and(|name| is_query(name, self.value()))
    }
}

/// Splits an argument list (without the program name) into tokens.
pub fn scan(words: &[OsString]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = words.iter().peekable();
    while let Some(word) = rest.next() {
        let Some(name) = option_name(word) else {
            tokens.push(Token { words: vec![word.clone()], name: None, missing_value: false });
            continue;
        };
        let takes_value = match arity(&name) {
            Arity::Flag => false,
            Arity::Value => true,
            // An option of a QEMU that is not known yet: a word that looks like an option is one.
            Arity::Unknown => rest.peek().is_some_and(|next| !next.as_bytes().starts_with(b"-")),
        };
        let mut token = Token { words: vec![word.clone()], name: Some(name), missing_value: false };
        if takes_value {
            match rest.next() {
                Some(value) => token.words.push(value.clone()),
                None => token.missing_value = true,
            }
        }
        tokens.push(token);
    }
    tokens
}

/// The option's name if the word is an option. A name that is not text cannot be one of QEMU's.
fn option_name(word: &OsStr) -> Option<String> {
    let bytes = word.as_bytes().strip_prefix(b"-")?;
    let bytes = bytes.strip_prefix(b"-").unwrap_or(bytes);
    Some(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan_line(line: &[&str]) -> Vec<(Option<String>, usize)> {
        let words: Vec<OsString> = line.iter().map(OsString::from).collect();
        scan(&words).into_iter().map(|t| (t.name.clone(), t.words.len())).collect()
    }

    fn opt(name: &str, words: usize) -> (Option<String>, usize) {
        (Some(name.to_owned()), words)
    }

    #[test]
    fn scan_values_belong_to_their_option() {
        assert_eq!(scan_line(&["-append", "-net", "-net", "vde"]), [opt("append", 2), opt("net", 2)]);
        assert_eq!(scan_line(&["-snapshot", "disk.img"]), [opt("snapshot", 1), (None, 1)]);
        assert_eq!(scan_line(&["--net", "vde"]), [opt("net", 2)]);
    }

    #[test]
    fn scan_unknown_option_takes_only_a_plain_word() {
        assert_eq!(scan_line(&["-newopt", "x", "-net", "vde"]), [opt("newopt", 2), opt("net", 2)]);
        assert_eq!(scan_line(&["-newopt", "-net", "vde"]), [opt("newopt", 1), opt("net", 2)]);
        assert_eq!(scan_line(&["-tun-fd", "3", "-"]), [opt("tun-fd", 2), opt("", 1)]);
    }

    #[test]
    fn scan_last_option_without_value_is_marked() {
        let tokens = scan(&[OsString::from("-append")]);
        assert!(tokens[0].lacks_value());
    }
}
