//! The grammar of locators, case by case, and for any text at all.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;

fn parsed(text: &str) -> (String, Port) {
    let locator = VdeLocator::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    (locator.path.to_str().expect("the cases are ASCII").to_owned(), locator.port)
}

#[test]
fn split_scheme_cuts_at_the_first_separator() {
    assert_eq!(split_scheme("vde:///run/sw[5]"), (Some("vde"), "/run/sw[5]"));
    assert_eq!(split_scheme("a://b://c"), (Some("a"), "b://c"));
    assert_eq!(split_scheme("/run/sw"), (None, "/run/sw"));
    assert_eq!(split_scheme("://x"), (Some(""), "x"));
    assert_eq!(split_scheme(""), (None, ""));
}

#[test]
fn parse_forms_of_one_path_mean_the_same() {
    for text in [
        "/t/sw",
        "'/t/sw'",
        "\"/t/sw\"",
        "/t/s%77",
        "/t/\\sw",
        "/t/sw[]",
        "/t/sw[",
        "/t/sw[]junk",
        "/t/'s'w",
        "/t/sw[]it's",
    ] {
        assert_eq!(parsed(text), ("/t/sw".into(), Port::Any), "{text}");
    }
}

#[test]
fn parse_quoting_keeps_separators() {
    for (text, path) in [
        ("'/t/a[b]'", "/t/a[b]"),
        ("/t/a%5bb%5D", "/t/a[b]"),
        ("/t/a\\[b", "/t/a[b"),
        ("'/t/50%25'", "/t/50%25"),
        ("'/t/a\\b'", "/t/a\\b"),
        ("\"it's\"", "it's"),
        ("/t/%zz%", "/t/%zz%"),
        ("/t/sw]x", "/t/sw]x"),
        ("", ""),
    ] {
        assert_eq!(parsed(text), (path.into(), Port::Any), "{text}");
    }
}

#[test]
fn parse_ports() {
    for (text, port) in [
        ("sw[5]", Port::Number(5)),
        ("sw[5]junk", Port::Number(5)),
        ("sw[5", Port::Number(5)),
        ("sw[/5]", Port::Number(5)),
        ("sw[m/5]", Port::Number(5)),
        ("sw[5/6]", Port::Number(6)),
        ("sw[007]", Port::Number(7)),
        ("sw[port=5]", Port::Number(5)),
        ("sw[portg=5]", Port::Number(5)),
        ("sw[p=5]", Port::Number(5)),
        ("sw[p]", Port::Any),
        ("sw[0]", Port::Management),
        ("sw[8388607]", Port::Number(Port::MAX)),
        ("sw[5x]", Port::Group("5x".into())),
        ("sw[-3]", Port::Group("-3".into())),
        ("sw[5,6]", Port::Group("5,6".into())),
        ("sw[5]junk]x", Port::Group("5]junk".into())),
        ("sw[port='a=b']", Port::Group("a=b".into())),
    ] {
        assert_eq!(parsed(text), ("sw".into(), port), "{text}");
    }
}

#[test]
fn parse_options_by_any_prefix() {
    let locator = VdeLocator::parse("sw[g=users/m=0640/portgroup=7]").expect("good");
    assert_eq!(locator.group.as_deref(), Some("users"));
    assert_eq!((locator.mode, locator.port), (Some(0o640), Port::Number(7)));
    let empty = VdeLocator::parse("sw[group=/mode=/port=]").expect("good");
    assert_eq!(empty, VdeLocator::new("sw"));
}

#[test]
fn parse_errors_point_at_the_word() {
    for (text, at, message) in [
        ("sw[zzz=1]", 4, "there is no option \"zzz\""),
        ("sw[5/zzz=1]", 6, "there is no option \"zzz\""),
        ("sw[5,mode=0660]", 4, "there is no option \"5,mode\""),
        ("sw[mode=9]", 4, "the mode \"9\" is no octal number from 0 to 7777; write one such as mode=0660"),
        ("sw[mode=+7]", 4, "the mode \"+7\""),
        ("sw[mode=17777]", 4, "the mode \"17777\""),
        ("sw[8388608]", 4, "port 8388608 is too high"),
        ("sw[99999999999999999999]", 4, "is too high"),
        ("sw['a/b']", 5, "\"a/b\" can name no port group"),
        ("sw[..]", 4, "\"..\" can name no port group; use the name of a socket"),
        ("sw[=5]", 4, "no key before '='"),
        ("sw[group=%ff]", 4, "not UTF-8 text; write its characters"),
        ("é/it's", 5, "this quote is never closed"),
        ("a\\", 2, "nothing follows this backslash"),
        ("a%00b", 2, "zero byte"),
        ("sw['5]", 4, "this quote is never closed; close it, or write %27"),
    ] {
        let error = VdeLocator::parse(text).expect_err(text);
        assert_eq!(error.at, at, "{error}");
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn display_survives_commas_and_shells() {
    let locator = VdeLocator::new("/tmp/a,b $(c)'[d]%41");
    assert_eq!(locator.to_string(), "vde:///tmp/a%2cb%20%24%28c%29%27%5bd%5d%2541");
    assert_eq!(VdeLocator::default().to_string(), "vde://");
}

#[test]
fn nested_is_between_the_outer_braces() {
    for (text, inner) in [
        ("5{/t/sw}", Some("/t/sw")),
        ("5/t=1{vlan://6{/t/sw[2]}}", Some("vlan://6{/t/sw[2]}")),
        ("{}", Some("")),
        ("{/t/sw}junk", Some("/t/sw")),
        ("'a{'{/t/s%7b}", Some("/t/s%7b")),
        ("a%7b", None),
        ("///host=x", None),
        ("", None),
    ] {
        assert_eq!(nested(text).expect(text), inner, "{text}");
    }
    nested("{it's}").expect_err("the quote reaches over the brace");
}

#[test]
fn check_nested_points_at_the_word() {
    check_nested("5{vlan://6{/t/sw[2/mode=0600]}}").expect("good");
    for (text, at, message) in [
        ("5{/t/sw", 2, "has no end"),
        ("5}{/t/sw", 3, "has no end"),
        ("5/t/sw}", 7, "no locator ends at this brace"),
        ("5{vlan://6{/t/sw[zzz=1]}}", 7, "there is no option \"zzz\""),
        ("5{agno://{'}}", 11, "this quote is never closed"),
    ] {
        let error = check_nested(text).expect_err(text);
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.at, at, "{error}");
    }
}

fn any_port() -> impl Strategy<Value = Port> {
    prop_oneof![
        Just(Port::Any),
        Just(Port::Management),
        (1..=Port::MAX).prop_map(Port::Number),
        "[^/\0]{1,12}".prop_filter_map("no number and no dots", |word| match Port::parse(&word) {
            Ok(port @ Port::Group(_)) => Some(port),
            _ => None,
        }),
    ]
}

proptest! {
    #[test]
    fn parse_any_text_returns(text in any::<String>()) {
        if let Err(error) = VdeLocator::parse(&text) {
            prop_assert!(error.at >= 1 && error.at <= text.chars().count(), "{error}");
        }
    }

    #[test]
    fn parse_text_of_separators_returns(text in r#"[a5=/%'"\[\]\\]{0,24}"#) {
        if let Err(error) = VdeLocator::parse(&text) {
            prop_assert!(error.at >= 1 && error.at <= text.chars().count(), "{error}");
        }
    }

    #[test]
    fn nested_any_text_returns(text in r#"[a5:/{}%'"\[\]\\]{0,24}"#) {
        if let Err(error) = check_nested(&text) {
            prop_assert!(error.at >= 1 && error.at <= error.text.chars().count(), "{error}");
        }
    }

    #[test]
    fn nested_of_any_depth_is_found(depth in 0..100_usize, name in "[a-z/]{1,8}") {
        let mut text = name.clone();
        for _ in 0..depth {
            text = format!("vlan://1{{{text}}}");
        }
        let mut left = text.as_str();
        for _ in 0..depth {
            left = nested(left).expect("closed").expect("nested");
        }
        prop_assert_eq!(left, name);
    }

    #[test]
    fn display_any_path_reads_back(
        path in prop::collection::vec(1..=255_u8, 0..64),
        port in any_port(),
        group in proptest::option::of("[^\0]{1,12}"),
        mode in proptest::option::of(0..=0o7777_u32),
    ) {
        let locator = VdeLocator { path: OsString::from_vec(path).into(), port, group, mode };
        let text = locator.to_string();
        let (scheme, argument) = split_scheme(&text);
        prop_assert_eq!(scheme, Some("vde"));
        prop_assert_eq!(VdeLocator::parse(argument).expect("our own text"), locator);
    }
}

#[test]
fn parse_bytes_that_are_no_text_make_a_path() {
    let locator = VdeLocator::parse("/t/%ff").expect("good");
    assert_eq!(locator.path, Path::new(&OsString::from_vec(b"/t/\xff".to_vec())));
}
