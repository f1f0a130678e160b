//! What is wrong with plug-ins that everybody has installed, and what helps against it from outside.
//!
//! - `vlan` 0.1.0 cuts the last character of a list of tags before it counts them (defect V-13): a list of one digit is
//!   taken for none, and one that ends in such a number is written past its end. A full stop behind the list is cut
//!   instead. Its manual page shows options in brackets; what it reads are slashes.
//! - `vlan` also returns the room as length of a frame whose tag it changed (V-13). The length is then what the headers
//!   in the frame say, and a frame whose headers do not say it is lost.
//! - `vxlan` up to at least 4.0.1 notes senders' addresses that it never asked the kernel for, so that no frame to a
//!   station that was heard of arrives. Without a table of stations it sends all to the group, where they do arrive.

use crate::locator;

/// The argument as the plug-in, and those that are nested in it, should have it.
pub(super) fn argument(scheme: &str, text: &str) -> String {
    let nested = locator::nested(text).ok().flatten();
    let Some((head, inner, tail)) = nested.and_then(|inner| around(text, inner)) else {
        return own(scheme, text);
    };
    let inner = match locator::split_scheme(inner) {
        (Some(scheme), text) => format!("{scheme}://{}", argument(scheme, text)),
        (None, text) => text.into(),
    };
    format!("{}{{{inner}}}{tail}", own(scheme, head))
}

/// What stands before the brace in front of `inner`, and behind the brace that ends it.
fn around<'t>(text: &'t str, inner: &'t str) -> Option<(&'t str, &'t str, &'t str)> {
    let at = text.find(&format!("{{{inner}}}"))?;
    Some((text.get(..at)?, inner, text.get(at + inner.len() + 2..)?))
}

/// The part of the argument that is the plug-in's own.
fn own(scheme: &str, text: &str) -> String {
    match scheme {
        "vlan" => vlan(text),
        "vxlan" if !text.contains("/h") => format!("{text}/hashsize=0"),
        _ => text.into(),
    }
}

fn vlan(text: &str) -> String {
    let slashes = match text.split_once('[') {
        Some((tag, options)) => format!("{tag}/{}", options.trim_end_matches(']')),
        None => text.into(),
    };
    let words: Vec<String> = slashes
        .split('/')
        .map(|word| match word.split_once('=') {
            Some(("t" | "ta" | "tag", list)) if !list.is_empty() => format!("{word}."),
            _ => word.into(),
        })
        .collect();
    words.join("/")
}

/// The length of a tagged frame, as the headers in it say.
pub(super) fn length(frame: &[u8]) -> Option<usize> {
    const TAGGED: usize = 18;
    let word = |at: usize| frame.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes);
    let packet = match word(16)? {
        0x0800 => usize::from(word(TAGGED + 2)?),
        0x86dd => 40 + usize::from(word(TAGGED + 4)?),
        0x0806 => 28,
        _ => return None,
    };
    Some((TAGGED + packet).max(60)).filter(|&len| len <= frame.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn argument_mends_what_is_known() {
        for (scheme, text, mended) in [
            ("vlan", "5{/t/sw[3/m=0600]}", "5{/t/sw[3/m=0600]}"),
            ("vlan", "5/tag=7{/t/sw}", "5/tag=7.{/t/sw}"),
            ("vlan", "/t=7:8-9/untag=3/trunk{/t/sw}x", "/t=7:8-9./untag=3/trunk{/t/sw}x"),
            ("vlan", "5[trunk/tag=7]{/t/sw}", "5/trunk/tag=7.{/t/sw}"),
            ("agno", "key{vlan://[t=1]{vxlan://}}", "key{vlan:///t=1.{vxlan:///hashsize=0}}"),
            ("vxlan", "239.0.0.1/vni=3", "239.0.0.1/vni=3/hashsize=0"),
            ("vxlan", "239.0.0.1/hashsize=8", "239.0.0.1/hashsize=8"),
            ("slirp", "///tag=1[]", "///tag=1[]"),
        ] {
            assert_eq!(argument(scheme, text), mended);
        }
    }

    #[test]
    fn length_by_headers() {
        let frame = |kind: [u8; 2], at: usize, word: u16| {
            let mut frame = vec![0; 2000];
            frame[12..18].copy_from_slice(&[0x81, 0, 0, 5, kind[0], kind[1]]);
            frame[at..at + 2].copy_from_slice(&word.to_be_bytes());
            length(&frame)
        };
        assert_eq!(frame([8, 0], 20, 1500), Some(1518));
        assert_eq!(frame([8, 0], 20, 20), Some(60));
        assert_eq!(frame([8, 0], 20, 1983), None);
        assert_eq!(frame([0x86, 0xdd], 22, 1000), Some(1058));
        assert_eq!(frame([8, 6], 20, 1), Some(60));
        assert_eq!(frame([0x88, 0xb5], 20, 1), None);
        assert_eq!(length(&[0; 17]), None);
    }

    proptest! {
        #[test]
        fn argument_any_text_returns(text in r#"(vlan://|vxlan://|t=|[a5:/={}%'"\[\]\\]){0,12}"#) {
            argument("vlan", &text);
        }
    }
}
