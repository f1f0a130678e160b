//! The old `-net` syntax: NICs and networks that meet in numbered segments (`vlan=N`).
//!
//! QEMU lost `vlan=` in 3.0. Here each segment is read, and [`crate::segments`] says what becomes of
//! it. `-net vde` is read by the old wrapper's rules, which are not quite QEMU's: a value may stand in
//! double quotes, and superfluous commas do no harm. QEMU's doubled comma is accepted besides, unless
//! a suboption's name follows it.

use std::collections::BTreeMap;
use std::ffi::OsStr;

use crate::argv::Token;
use crate::cli::octal;
use crate::error::Error;
use crate::locator::Link;
use crate::machine::Machine;
use crate::model::Model;
use crate::props::Props;

/// A `-net nic`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// Its token; `None` for one that the old wrapper added by itself.
    pub token: Option<usize>,
    /// The model as written.
    pub model: Option<String>,
    /// The MAC address.
    pub macaddr: Option<String>,
    /// `name=`, which present QEMU calls `id=`.
    pub id: Option<String>,
    /// Number of MSI-X vectors.
    pub vectors: Option<String>,
    /// PCI address.
    pub addr: Option<String>,
}

/// A `-net` member that is neither a NIC nor ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Its token.
    pub token: usize,
    /// Its type, such as `user` or `tap`.
    pub kind: String,
}

impl Foreign {
    /// Whether it records what the others say.
    pub fn is_dump(&self) -> bool {
        self.kind == "dump"
    }
}

/// One segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Its NICs, in order.
    pub nics: Vec<Nic>,
    /// Its VDE links, each with its token; `None` for an element of `-sock`.
    pub links: Vec<(Option<usize>, Link)>,
    /// Everything else.
    pub foreign: Vec<Foreign>,
}

/// All segments by number.
pub type Segments = BTreeMap<u32, Segment>;

/// Reads all `-net` options. `mode` is the wrapper's own `--mod`.
pub fn read(tokens: &[Token], mode: Option<&str>) -> Result<Segments, Error> {
    let mut segments = Segments::new();
    for (at, token) in tokens.iter().enumerate().filter(|(_, token)| token.is("net")) {
        let Some(text) = token.text() else {
            refuse_odd_vde(token)?;
            continue;
        };
        let mut props = Props::parse(text, "type");
        if let Some(rest) = after_vde(text, &mut props) {
            let (vlan, mut link) = parse_vde(text, &rest)?;
            link.mode = link.mode.or_else(|| mode.map(str::to_owned));
            segments.entry(vlan).or_default().links.push((Some(at), link));
            continue;
        }
        let kind = props.get("type").unwrap_or("");
        // NICs with a netdev= of their own were never in a segment, and `none` is no member.
        if kind == "none" || (props.get("netdev").is_some() && props.get("vlan").is_none()) {
            continue;
        }
        let vlan = props.get("vlan").map_or(Ok(0), |value| number(text, "vlan", value))?;
        let segment = segments.entry(vlan).or_default();
        if kind == "nic" {
            segment.nics.push(Nic::new(at, &props));
        } else {
            segment.foreign.push(Foreign { token: at, kind: kind.to_owned() });
        }
    }
    Ok(segments)
}

/// What follows the type of a `-net vde`, which may be written as `type=vde` in any place; `None` for
/// other types.
fn after_vde(text: &str, props: &mut Props) -> Option<String> {
    let first = text.strip_prefix("type=").unwrap_or(text);
    if let Some(rest) = first.strip_prefix("vde") {
        return Some(rest.to_owned());
    }
    (props.get("type") == Some("vde")).then(|| {
        props.remove("type");
        format!(",{}", props.render())
    })
}

/// Refuses a `-net vde` that is not text: its words become part of options, which are text.
fn refuse_odd_vde(token: &Token) -> Result<(), Error> {
    let word = token.value().map(OsStr::to_string_lossy).unwrap_or_default();
    match after_vde(&word, &mut Props::parse(&word, "type")) {
        None => Ok(()),
        Some(_) => Err(Error::Net {
            problem: "it is not UTF-8 text; give the network a name that is, for example by a symbolic link"
                .into(),
            word: word.into_owned(),
        }),
    }
}

/// What a `-net nic` may say. Present QEMU knows no other, so neither do we where we take one over.
const NIC_KEYS: [&str; 9] = ["type", "vlan", "model", "macaddr", "name", "id", "vectors", "addr", "netdev"];

impl Nic {
    /// Reads a `-net nic`.
    pub fn new(token: usize, props: &Props) -> Self {
        let get = |key: &str| props.get(key).map(str::to_owned);
        Self {
            token: Some(token),
            model: get("model"),
            macaddr: get("macaddr"),
            id: get("name").or_else(|| get("id")),
            vectors: get("vectors"),
            addr: get("addr"),
        }
    }

    /// Its model on a machine; `default` is the one that the user chose for NICs without one.
    pub fn model(&self, tokens: &[Token], machine: &Machine, default: Option<&str>) -> Result<Model, Error> {
        self.check(tokens)?;
        let word = || self.token.and_then(|at| tokens[at].text()).unwrap_or("nic").to_owned();
        let model = Model::of(self.model.as_deref(), default, machine);
        model.map_err(|problem| Error::Net { word: word(), problem })
    }

    /// Refuses a NIC with a suboption that would be lost.
    pub fn check(&self, tokens: &[Token]) -> Result<(), Error> {
        let Some(text) = self.token.and_then(|at| tokens[at].text()) else { return Ok(()) };
        let refuse = |problem: String| Err(Error::Net { word: text.to_owned(), problem });
        let props = Props::parse(text, "type");
        if props.get("netdev").is_some() {
            return refuse("netdev= and vlan= exclude each other; drop one of them".into());
        }
        match props.keys().find(|key| !NIC_KEYS.contains(key)) {
            None => Ok(()),
            Some("mac") => refuse("unknown suboption 'mac'; -net nic calls it macaddr=".into()),
            Some(key) => refuse(format!(
                "unknown suboption '{key}'; known are vlan, model, macaddr, name, vectors and addr"
            )),
        }
    }
}

/// Reads what follows `vde`; gives the segment and the link.
fn parse_vde(word: &str, rest: &str) -> Result<(u32, Link), Error> {
    let bad = |problem: String| Error::Net { word: word.to_owned(), problem };
    if !rest.is_empty() && !rest.starts_with(',') {
        return Err(bad("the type is 'vde'; write the network as -net vde,sock=LOCATOR".into()));
    }
    let (mut vlan, mut link) = (0, Link::default());
    let mut rest = rest.trim_start_matches(',');
    while !rest.is_empty() {
        let stop = rest.find(['=', ',']).unwrap_or(rest.len());
        let (key, after) = rest.split_at(stop);
        let Some(after) = after.strip_prefix('=').filter(|_| SUBOPTIONS.contains(&key)) else {
            let hint = match key {
                "model" | "mac" | "macaddr" | "vectors" | "addr" => "it belongs to -net nic",
                _ => {
                    "known are vlan=, sock=, port=, group=, mode= and name=; a comma inside sock= is written twice"
                }
            };
            return Err(bad(format!("unknown suboption '{key}'; {hint}")));
        };
        let (value, left) = take_value(after);
        match key {
            "vlan" => vlan = number(word, key, &value)?,
            "sock" => link.sock = value,
            "port" => link.port = Some(number(word, key, &value)?).filter(|&port| port != 0),
            "group" => link.group = Some(value),
            "name" | "id" => link.name = Some(value),
            _ => link.mode = Some(octal(&value, "mode=")?),
        }
        rest = left.trim_start_matches(',');
    }
    Ok((vlan, link))
}

const SUBOPTIONS: [&str; 7] = ["vlan", "sock", "port", "group", "mode", "name", "id"];

/// Takes a value off the front: up to the closing quote if it begins with one, else up to a comma
/// that is not doubled.
fn take_value(text: &str) -> (String, &str) {
    if let Some(quoted) = text.strip_prefix('"') {
        let (value, left) = quoted.split_once('"').unwrap_or((quoted, ""));
        return (value.to_owned(), left);
    }
    let mut value = String::new();
    let mut left = text;
    loop {
        let stop = left.find(',').unwrap_or(left.len());
        value.push_str(&left[..stop]);
        left = &left[stop..];
        match left.strip_prefix(",,") {
            Some(more) if !more.is_empty() && !starts_suboption(more.trim_start_matches(',')) => {
                value.push(',');
                left = more;
            }
            _ => return (value, left),
        }
    }
}

/// Whether the text is the beginning of another suboption, or nothing at all.
fn starts_suboption(text: &str) -> bool {
    text.is_empty()
        || SUBOPTIONS.iter().any(|key| text.strip_prefix(key).is_some_and(|rest| rest.starts_with('=')))
}

/// The largest number of a hub of QEMU's.
const MAX_NUMBER: u32 = i32::MAX.cast_unsigned();

/// A number that is one. The old wrapper made 0 of anything else.
fn number(word: &str, key: &str, value: &str) -> Result<u32, Error> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    let parsed = value.parse().ok().filter(|&number| digits && number <= MAX_NUMBER);
    parsed.ok_or_else(|| Error::Net {
        word: word.to_owned(),
        problem: format!("'{value}' is not a number up to {MAX_NUMBER}; write for example {key}=1"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::argv::scan;
    use proptest::prelude::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStrExt;

    fn vde(text: &str) -> Result<(u32, Link), Error> {
        parse_vde(text, text.strip_prefix("vde").expect("begins with vde"))
    }

    #[test]
    fn parse_vde_values() {
        for (text, vlan, sock, port) in [
            ("vde", 0, "", None),
            ("vde,", 0, "", None),
            ("vde,,,vlan=3,,port=7,", 3, "", Some(7)),
            ("vde,sock=", 0, "", None),
            ("vde,sock=/tmp/sw,port=0", 0, "/tmp/sw", None),
            ("vde,sock=\"T/a,b\",vlan=1", 1, "T/a,b", None),
            ("vde,sock=\"T/a,b", 0, "T/a,b", None),
            ("vde,sock=a,,b", 0, "a,b", None),
            ("vde,sock=a,,vlan=2", 2, "a", None),
            ("vde,sock=a,,,port=2", 0, "a", Some(2)),
            ("vde,sock=a,,", 0, "a", None),
            ("vde,sock=x=y", 0, "x=y", None),
            ("vde,sock=vxvde:///234.0.0.1,vlan=1", 1, "vxvde:///234.0.0.1", None),
        ] {
            let (got_vlan, link) = vde(text).expect(text);
            assert_eq!((got_vlan, link.sock.as_str(), link.port), (vlan, sock, port), "{text}");
        }
    }

    #[test]
    fn parse_vde_takes_a_name_by_both_keys() {
        for (text, sock, name) in [
            ("vde,name=lan,sock=a", "a", "lan"),
            ("vde,sock=a,id=lan", "a", "lan"),
            ("vde,sock=a,,name=lan", "a", "lan"),
        ] {
            let (_, link) = vde(text).expect(text);
            assert_eq!((link.sock.as_str(), link.name.as_deref()), (sock, Some(name)), "{text}");
        }
    }

    #[test]
    fn parse_vde_errors_name_the_word() {
        for (text, word) in [
            ("vdefoo", "vdefoo"),
            ("vde:///x", "vde:///x"),
            ("vde,mac=1", "'mac'"),
            ("vde,model=virtio", "-net nic"),
            ("vde,name", "'name'"),
            ("vde,port", "'port'"),
            ("vde,port=abc", "'abc'"),
            ("vde,port=-1", "'-1'"),
            ("vde,port=+1", "'+1'"),
            ("vde,vlan=99999999999999", "'99999999999999'"),
            ("vde,mode=999", "'999'"),
            ("vde,sock=\"a\"b", "'b'"),
        ] {
            let error = vde(text).expect_err(text);
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.status(), 2);
        }
    }

    #[test]
    fn read_refuses_a_network_that_is_not_text() {
        let read_word = |word: &[u8]| {
            let words = [OsString::from("-net"), OsStr::from_bytes(word).to_owned()];
            read(&scan(&words), None)
        };
        for word in [&b"vde,sock=/tmp/\xff"[..], b"type=vde,sock=\xff", b"sock=\xff,type=vde"] {
            let error = read_word(word).expect_err("not text");
            assert!(error.to_string().contains("not UTF-8 text"), "{error}");
            assert_eq!(error.status(), 2);
        }
        assert_eq!(read_word(b"user,hostname=\xff").expect("QEMU's"), Segments::new());
    }

    proptest! {
        #[test]
        fn parse_vde_never_panics(text in "vde[a-z=,\"0-9é]{0,32}") {
            // Only that it returns: the meaning is pinned by the tables above.
            let accepted = vde(&text).is_ok();
            prop_assert!(accepted || vde(&text).is_err());
        }

        #[test]
        fn parse_vde_quoted_sock_is_kept(sock in "[^\"]{0,24}") {
            let (_, link) = vde(&format!("vde,sock=\"{sock}\",port=3")).expect("quoted");
            prop_assert_eq!(link.sock, sock);
            prop_assert_eq!(link.port, Some(3));
        }
    }
}
