//! Any text as a locator: what is read is written and read again as the same, and what is refused is refused at a
//! place in the text.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vdeplug::locator::{LocatorError, PathForm, VdeLocator, nested, split_scheme};

fn check_place(error: &LocatorError, text: &str) {
    assert_eq!(error.text, text);
    assert!((1..=text.chars().count() + 1).contains(&error.at), "{error}");
    assert!(!error.to_string().is_empty());
}

fuzz_target!(|text: &str| {
    match VdeLocator::parse(text) {
        Ok(locator) => {
            let written = locator.to_string();
            assert!(
                written.bytes().all(|byte| byte.is_ascii_graphic() && !b",'\"\\$ ".contains(&byte)),
                "{written}"
            );
            let (scheme, argument) = split_scheme(&written);
            assert_eq!(scheme, Some("vde"));
            assert_eq!(VdeLocator::parse(argument), Ok(locator), "{written}");
        }
        Err(error) => check_place(&error, text),
    }
    match PathForm::parse(text, &["mode", "dirmode", "grp", "hashsize", "hashseed", "expiretime"], None) {
        Ok(form) => assert!(form.options.len() <= text.len()),
        Err(error) => check_place(&error, text),
    }
    // A locator in a locator in a locator: each is shorter than the one around it.
    let mut argument = text;
    loop {
        match nested(argument) {
            Ok(None) => break,
            Ok(Some(inner)) => {
                assert!(inner.len() + 2 <= argument.len() && argument.contains(inner));
                argument = split_scheme(inner).1;
            }
            Err(error) => {
                check_place(&error, argument);
                break;
            }
        }
    }
});
