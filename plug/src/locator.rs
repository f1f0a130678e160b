//! Locators: the text by which users name networks, as pure functions over that text.
//!
//! Most arguments have the path form, `PATH[WORD/KEY=VALUE/…]`. Reading one takes two steps. The first undoes the quoting
//! ('…' and "…" keep everything, a backslash keeps the next character, `%HH` is a byte) and marks each
//! resulting byte as quoted or not; the second cuts at unquoted `[`, `]`, `/` and `=`. Whatever Debian's
//! libvdeplug accepts means the same here, with three exceptions that it would take in silence and that are
//! errors here: a quote that is never closed, a mode that is no number, and a key with nothing before `=`.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Splits `SCHEME://ARGUMENT`; text without `://` has no scheme (VDE fact 3.1).
pub fn split_scheme(text: &str) -> (Option<&str>, &str) {
    match text.split_once("://") {
        Some((scheme, argument)) => (Some(scheme), argument),
        None => (None, text),
    }
}

/// Which port of a switch to plug into (VDE fact 3.3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Port {
    /// The lowest one that is free.
    #[default]
    Any,
    /// The one of this number, from 1 on.
    Number(u32),
    /// Port 0, which the switch never gives out by itself.
    Management,
    /// The named group of ports that the switch offers as a socket of this name.
    Group(String),
}

impl Port {
    /// The highest number that fits the 24 signed bits of a request.
    pub const MAX: u32 = 0x7f_ffff;

    /// Reads a port as it stands in a locator: nothing, a number, or the name of a port group.
    pub fn parse(word: &str) -> Result<Self, LocatorProblem> {
        if word.is_empty() {
            return Ok(Self::Any);
        }
        if word.bytes().all(|b| b.is_ascii_digit()) {
            return match word.parse() {
                Ok(0) => Ok(Self::Management),
                Ok(number) if number <= Self::MAX => Ok(Self::Number(number)),
                _ => Err(LocatorProblem::PortTooHigh { word: word.into() }),
            };
        }
        if word.contains(['/', '\0']) || word == "." || word == ".." {
            return Err(LocatorProblem::NoPortName { word: word.into() });
        }
        Ok(Self::Group(word.into()))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => Ok(()),
            Self::Number(number) => write!(f, "{number}"),
            Self::Management => f.write_str("0"),
            Self::Group(name) => f.write_str(name),
        }
    }
}

/// A locator of scheme `vde`, taken apart. `Display` writes it back as text that means the same, so that it
/// is also the way to make a locator of an arbitrary path.
///
/// ```
/// use vdeplug::locator::{Port, VdeLocator};
///
/// let mut locator = VdeLocator::new("/run/my switch[1]");
/// locator.port = Port::Number(5);
/// assert_eq!(locator.to_string(), "vde:///run/my%20switch%5b1%5d[port=5]");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VdeLocator {
    /// Directory of the switch; empty means the default switch.
    pub path: PathBuf,
    /// Port to plug into; `Any` leaves the choice to [`OpenOptions::port`](crate::OpenOptions::port).
    pub port: Port,
    /// Group of our end's socket, a name or a number.
    pub group: Option<String>,
    /// Mode of our end's socket; 0 means the default.
    pub mode: Option<u32>,
}

/// What is wrong with a locator, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad locator {text:?}, character {at}: {problem}")]
pub struct LocatorError {
    /// The text that was read: the locator, without its scheme.
    pub text: String,
    /// Which character of `text` the problem begins with, counted from 1.
    pub at: usize,
    /// What is wrong there.
    pub problem: LocatorProblem,
}

/// What can be wrong with a locator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocatorProblem {
    /// A quote was opened and not closed.
    #[error("this quote is never closed; close it, or write %{:02x} for the character itself", u32::from(*.quote))]
    UnclosedQuote {
        /// The quoting character.
        quote: char,
    },
    /// A nested locator has no end.
    #[error(
        "the locator that begins at this brace has no end; write }} behind it, or %7b for the character itself"
    )]
    UnclosedBrace,
    /// A nested locator has no beginning.
    #[error(
        "no locator ends at this brace, for none began; write {{ before it, or %7d for the character itself"
    )]
    UnopenedBrace,
    /// Nothing follows a backslash.
    #[error("nothing follows this backslash; write \\\\ for the character itself")]
    LoneBackslash,
    /// A zero byte, which no path can hold.
    #[error("a zero byte can be part of no name")]
    Nul,
    /// No option has a name that begins like this.
    #[error("there is no option {word:?}; {}", known(.keys))]
    UnknownKey {
        /// The word in the key's place.
        word: String,
        /// The options that there are.
        keys: &'static [&'static str],
    },
    /// A value with nothing before its `=`.
    #[error("there is no key before '='; {}", known(.keys))]
    MissingKey {
        /// The options that there are.
        keys: &'static [&'static str],
    },
    /// An option's value cannot be what the option is about.
    #[error("{key}={word} makes no sense; write {right}")]
    BadValue {
        /// The option.
        key: &'static str,
        /// Its value as it was written.
        word: String,
        /// What would be right.
        right: &'static str,
    },
    /// A word of the options is no UTF-8 text once its quoting is undone.
    #[error(
        "this word of the options is not UTF-8 text; write its characters, or the %HH of each of their bytes in UTF-8"
    )]
    NotText,
    /// The port number does not fit the protocol.
    #[error("port {word} is too high; ports go from 0 to {}", Port::MAX)]
    PortTooHigh {
        /// The number as it was written.
        word: String,
    },
    /// The name of a port group would leave the switch's directory.
    #[error(
        "{word:?} can name no port group; use the name of a socket in the switch's directory, a number, or none \
         for any free port"
    )]
    NoPortName {
        /// The name as it was written.
        word: String,
    },
    /// The mode is not an octal number of at most four digits.
    #[error("the mode {word:?} is no octal number from 0 to 7777; write one such as mode=0660")]
    BadMode {
        /// The mode as it was written.
        word: String,
    },
}

impl VdeLocator {
    /// A locator of the switch in this directory, any port.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// Reads the part of a locator that follows `vde://`, or a whole one that has no scheme.
    pub fn parse(text: &str) -> Result<Self, LocatorError> {
        let form = PathForm::parse(text, &Self::KEYS, Some("port"))?;
        let mut locator = Self::new(form.path.clone());
        for option in &form.options {
            let value = &option.value;
            match option.key {
                "group" => locator.group = Some(value.clone()).filter(|group| !group.is_empty()),
                "mode" => locator.mode = form.check(option, parse_mode(value))?,
                _ => locator.port = form.check(option, Port::parse(value))?,
            }
        }
        Ok(locator)
    }

    /// The options of a `vde` locator, in the order in which an abbreviation is looked up.
    const KEYS: [&str; 4] = ["port", "portgroup", "group", "mode"];
}

/// A locator's argument in path form, `PATH[KEY=VALUE/KEY/…]`, with its quoting undone (VDE fact 3.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathForm<'a> {
    text: &'a str,
    /// What stands before the bracket.
    pub path: OsString,
    /// What stands in the bracket, in order; a later one wins over an earlier one of the same key.
    pub options: Vec<FormOption>,
}

/// A word of a bracket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormOption {
    /// Which of the known keys it has.
    pub key: &'static str,
    /// What stands behind its `=`; empty if nothing does.
    pub value: String,
    /// Byte offset of the word in the text.
    at: usize,
}

impl<'a> PathForm<'a> {
    /// Takes the text apart. An option belongs to the first of `keys` that it begins like; a word without `=` that
    /// begins like none of them is the value of `unnamed`, if the scheme has such an option.
    pub fn parse(
        text: &'a str,
        keys: &'static [&'static str],
        unnamed: Option<&'static str>,
    ) -> Result<Self, LocatorError> {
        let (path, words) = cut(text).map_err(|(problem, at)| LocatorError::new(text, at, problem))?;
        let path = OsString::from_vec(path.iter().map(|item| item.byte).collect());
        let mut options = Vec::new();
        for word in words.split(|item| item.is('/')).filter(|word| !word.is_empty()) {
            let at = word.first().map_or(0, |item| item.at);
            let (key, value) =
                read_word(word, keys, unnamed).map_err(|problem| LocatorError::new(text, at, problem))?;
            options.push(FormOption { key, value, at });
        }
        Ok(Self { text, path, options })
    }

    /// Gives a problem with an option's value its place in the text.
    pub fn check<T>(
        &self,
        option: &FormOption,
        result: Result<T, LocatorProblem>,
    ) -> Result<T, LocatorError> {
        result.map_err(|problem| LocatorError::new(self.text, option.at, problem))
    }
}

impl LocatorError {
    /// A problem that begins at a byte offset of the text.
    fn new(text: &str, at: usize, problem: LocatorProblem) -> Self {
        Self { text: text.into(), at: chars_before(text, at) + 1, problem }
    }
}

/// Finds the locator inside of another one, `PARAMETERS{LOCATOR}`: what stands between the first unquoted `{` of
/// an argument and the last unquoted `}`, with its quoting as it is, for it is read in its turn. Only schemes
/// that are plug-ins nest; in a path braces mean nothing. (VDE fact 3.2.)
///
/// ```
/// assert_eq!(vdeplug::locator::nested("5/tag=7{vde:///run/sw[3]}").unwrap(), Some("vde:///run/sw[3]"));
/// assert_eq!(vdeplug::locator::nested("///tcpfwd=8080:10.0.2.15:80").unwrap(), None);
/// ```
pub fn nested(argument: &str) -> Result<Option<&str>, LocatorError> {
    let (items, misfit) = unquote(argument);
    let place = |item: Option<&Item>| item.map(|item| item.at);
    let open = place(items.iter().find(|item| item.is('{')));
    let close = place(items.iter().rfind(|item| item.is('}')));
    let wrong = |(problem, at)| Err(LocatorError::new(argument, at, problem));
    match (open, close) {
        (_, None) if misfit.is_some() => misfit.map_or(Ok(None), wrong),
        (None, None) => Ok(None),
        (None, Some(at)) => wrong((LocatorProblem::UnopenedBrace, at)),
        (Some(open), Some(close)) if open < close => Ok(argument.get(open + 1..close)),
        (Some(at), _) => wrong((LocatorProblem::UnclosedBrace, at)),
    }
}

/// Checks what is nested in a plug-in's argument as far as its grammar is known here, so that the sentence names the
/// character; a plug-in only says that something is wrong.
pub(crate) fn check_nested(mut argument: &str) -> Result<(), LocatorError> {
    while let Some(inner) = nested(argument)? {
        match split_scheme(inner) {
            (None | Some("vde"), inner) => return VdeLocator::parse(inner).map(drop),
            (Some(_), inner) => argument = inner,
        }
    }
    Ok(())
}

/// Reads a word of a bracket as key and value.
fn read_word(
    word: &[Item],
    keys: &'static [&'static str],
    unnamed: Option<&'static str>,
) -> Result<(&'static str, String), LocatorProblem> {
    let mut parts = word.splitn(2, |item| item.is('='));
    let key = text_of(parts.next().unwrap_or_default())?;
    let value = parts.next().map(text_of).transpose()?;
    if key.is_empty() && value.is_some() {
        return Err(LocatorProblem::MissingKey { keys });
    }
    // The first of these names that begins with the key is meant, as `m=0640` (VDE fact 3.2).
    match (keys.iter().find(|full| full.starts_with(&key)), value, unnamed) {
        (Some(full), value, _) => Ok((full, value.unwrap_or_default())),
        (None, None, Some(unnamed)) => Ok((unnamed, key)),
        (None, ..) => Err(LocatorProblem::UnknownKey { word: key, keys }),
    }
}

fn known(keys: &[&str]) -> String {
    match keys {
        [] => "this scheme has no options".into(),
        [only] => format!("the only option is {only}"),
        [first @ .., last] => format!("the options are {} and {last}", first.join(", ")),
    }
}

/// Reads a file mode in octal; nothing is no mode.
pub(crate) fn parse_mode(text: &str) -> Result<Option<u32>, LocatorProblem> {
    if text.is_empty() {
        return Ok(None);
    }
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && !text.starts_with('+') => Ok(Some(mode)),
        _ => Err(LocatorProblem::BadMode { word: text.into() }),
    }
}

/// A byte of a locator after its quoting is undone.
#[derive(Clone, Copy)]
struct Item {
    byte: u8,
    /// Whether it stood in quotes or was escaped: then it separates nothing.
    quoted: bool,
    /// Where it began in the text.
    at: usize,
}

impl Item {
    fn is(&self, separator: char) -> bool {
        !self.quoted && char::from(self.byte) == separator
    }
}

/// A problem and the byte offset in the text where it begins.
type Misfit = (LocatorProblem, usize);

/// Undoes the quoting and cuts the text into path and options. Text behind the options is ignored, and so is
/// what is wrong with it.
fn cut(text: &str) -> Result<(Vec<Item>, Vec<Item>), Misfit> {
    let (mut path, misfit) = unquote(text);
    let open = path.iter().position(|item| item.is('['));
    let mut options = open.map_or_else(Vec::new, |open| path.split_off(open).split_off(1));
    let close = options.iter().rposition(|item| item.is(']'));
    let end = close.and_then(|close| options.get(close)).map_or(text.len(), |item| item.at);
    if let Some(close) = close {
        options.truncate(close);
    }
    match misfit.filter(|(_, at)| *at < end) {
        Some(misfit) => Err(misfit),
        None => match path.iter().chain(&options).find(|item| item.byte == 0) {
            Some(nul) => Err((LocatorProblem::Nul, nul.at)),
            None => Ok((path, options)),
        },
    }
}

/// Undoes the quoting, up to the end or to the first thing that makes no sense.
fn unquote(text: &str) -> (Vec<Item>, Option<Misfit>) {
    let bytes = text.as_bytes();
    let mut items = Vec::with_capacity(bytes.len());
    let mut quote: Option<(u8, usize)> = None;
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let mut len = 1;
        match (quote, byte) {
            (Some((opened, _)), _) if opened == byte => quote = None,
            (Some(_), _) => items.push(Item { byte, quoted: true, at }),
            (None, b'\'' | b'"') => quote = Some((byte, at)),
            (None, b'\\') => match bytes.get(at + 1) {
                Some(&byte) => {
                    items.push(Item { byte, quoted: true, at });
                    len = 2;
                }
                None => return (items, Some((LocatorProblem::LoneBackslash, at))),
            },
            // A percent sign that no two hexadecimal digits follow stands for itself.
            (None, b'%') => match hex_pair(bytes.get(at + 1..).unwrap_or_default()) {
                Some(byte) => {
                    items.push(Item { byte, quoted: true, at });
                    len = 3;
                }
                None => items.push(Item { byte, quoted: false, at }),
            },
            (None, _) => items.push(Item { byte, quoted: false, at }),
        }
        at += len;
    }
    let misfit = quote.map(|(quote, at)| (LocatorProblem::UnclosedQuote { quote: char::from(quote) }, at));
    (items, misfit)
}

fn hex_pair(bytes: &[u8]) -> Option<u8> {
    let [high, low, ..] = bytes else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*high)? << 4 | digit(*low)?)
}

fn text_of(items: &[Item]) -> Result<String, LocatorProblem> {
    String::from_utf8(items.iter().map(|item| item.byte).collect()).map_err(|_| LocatorProblem::NotText)
}

/// How many characters begin before a byte offset, which may lie inside of a character.
fn chars_before(text: &str, offset: usize) -> usize {
    text.char_indices().take_while(|(at, _)| *at < offset).count()
}

impl fmt::Display for VdeLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("vde://")?;
        escape(self.path.as_os_str().as_bytes(), true, f)?;
        let port = Some(self.port.to_string()).filter(|port| !port.is_empty());
        let mode = self.mode.map(|mode| format!("{mode:04o}"));
        let options = [("port", &port), ("group", &self.group), ("mode", &mode)];
        let mut separator = "[";
        for (key, value) in options {
            if let Some(value) = value {
                write!(f, "{separator}{key}=")?;
                escape(value.as_bytes(), false, f)?;
                separator = "/";
            }
        }
        if separator == "/" { f.write_str("]") } else { Ok(()) }
    }
}

/// Writes bytes so that no reader of locators, of shells, or of QEMU's comma lists sees anything in them.
fn escape(bytes: &[u8], slash: bool, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for &byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b'+' | b'@' | b':' => {
                write!(f, "{}", char::from(byte))?;
            }
            b'/' if slash => f.write_str("/")?,
            _ => write!(f, "%{byte:02x}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
