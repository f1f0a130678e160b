//! What a client asks for and what it is told, seen from the node (VDE facts 2.3, 2.4, 4.3).
//!
//! A request has no length of its own: it is what one read brings. Its description is of any length up to a limit, so
//! one that arrived in parts can only be told from a whole one while its fixed part is incomplete; that is waited for.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::vde::request::{
    ANSWER_LEN, BIG_WORD, DESCRIPTION_MAX, MAGIC, NEW_CONNECTION, SUN_PATH_LEN, VERSION,
};

const AF_UNIX: u16 = 1;

/// Length of what comes before the description.
const FIXED_LEN: usize = 14 + SUN_PATH_LEN;

/// The longest request: some clients send the NUL behind a description of the greatest length.
pub const REQUEST_MAX: usize = FIXED_LEN + DESCRIPTION_MAX + 1;

/// A client's wish to join.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// The socket that is to be connected to.
    pub data_socket: ClientName,
    /// Who it says that it is.
    pub description: String,
    /// It takes big frames.
    pub big: bool,
}

/// The name of a client's data socket.
#[derive(Debug, PartialEq, Eq)]
pub enum ClientName {
    /// In the file system.
    Path(PathBuf),
    /// In the kernel's name space, without the NUL that marks it; those at its end are part of it.
    Abstract(Vec<u8>),
}

/// What was read so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// All of it.
    Whole(Request),
    /// The rest has to be waited for.
    Part,
    /// No request for us, and why.
    Bad(&'static str),
}

/// Reads a request.
pub fn decode(bytes: &[u8]) -> Reading {
    let word = |at: usize| {
        let word = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(word))
    };
    // Each word is judged as soon as it is there, so that what is wrong at once is refused at once.
    if word(0).is_some_and(|magic| magic != MAGIC) {
        return Reading::Bad("it does not begin like a request");
    }
    if word(4).is_some_and(|version| version != VERSION) {
        return Reading::Bad("it is a request of another version");
    }
    // The bits above hold the number of a port, which a node does not have.
    if word(8).is_some_and(|kind| kind & 0xff != NEW_CONNECTION) {
        return Reading::Bad("it asks for something else than a connection");
    }
    if bytes.len() > REQUEST_MAX {
        return Reading::Bad("it is too long");
    }
    let Some((fixed, description)) = bytes.split_at_checked(FIXED_LEN) else { return Reading::Part };
    if fixed.get(12..14) != Some(&AF_UNIX.to_ne_bytes()) {
        return Reading::Bad("its data socket is not a local one");
    }
    match client_name(fixed.get(14..).unwrap_or_default()) {
        Err(reason) => Reading::Bad(reason),
        Ok(data_socket) => {
            let end = description.iter().position(|&byte| byte == 0).unwrap_or(description.len());
            let text = String::from_utf8_lossy(description.get(..end).unwrap_or_default());
            let big = text.ends_with(BIG_WORD);
            Reading::Whole(Request { data_socket, description: text.replace(char::is_control, " "), big })
        }
    }
}

fn client_name(path: &[u8]) -> Result<ClientName, &'static str> {
    match path {
        [0, name @ ..] if name.iter().any(|&byte| byte != 0) => Ok(ClientName::Abstract(name.into())),
        [0, ..] | [] => Err("it names no data socket"),
        // A name without a directory could only mean something in the directory that this process happens to be in.
        [b'/', ..] => match path.iter().position(|&byte| byte == 0) {
            Some(end) => Ok(ClientName::Path(OsStr::from_bytes(path.get(..end).unwrap_or_default()).into())),
            None => Err("the name of its data socket has no end"),
        },
        _ => Err("the name of its data socket is not absolute"),
    }
}

/// The answer that names our end of the cable, whose name fits by construction.
pub fn encode_answer(data_socket: &Path) -> [u8; ANSWER_LEN] {
    let mut answer = [0; ANSWER_LEN];
    let bytes = AF_UNIX.to_ne_bytes().into_iter().chain(data_socket.as_os_str().as_bytes().iter().copied());
    for (to, from) in answer.iter_mut().zip(bytes) {
        *to = from;
    }
    answer
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::locator::Port;
    use crate::vde::request::{decode_answer, encode};

    fn request(path: &[u8], description: &str) -> Vec<u8> {
        encode(&Port::Any, Path::new(OsStr::from_bytes(path)), description)
    }

    #[test]
    fn decode_undoes_encode() {
        for (description, big) in [("x user=u pid=7", false), ("x user=u pid=7 gso=1", true), ("", false)] {
            let Reading::Whole(read) = decode(&request(b"/run/sw/.00007-00000", description)) else {
                panic!("{description}")
            };
            assert_eq!(read.data_socket, ClientName::Path("/run/sw/.00007-00000".into()));
            assert_eq!((read.description.as_str(), read.big), (description, big));
        }
        let Reading::Whole(read) = decode(&request(b"/a", "a\nb\0c")) else { panic!("odd description") };
        assert_eq!(read.description, "a b");
        let port = encode(&Port::Number(5), Path::new("/a"), "");
        assert!(matches!(decode(&port), Reading::Whole(_)), "a port's number means nothing");
        let Reading::Whole(read) = decode(&request(b"\0name", "")) else { panic!("abstract") };
        let ClientName::Abstract(name) = read.data_socket else { panic!("abstract") };
        assert_eq!((name.len(), &name[..6]), (107, &b"name\0\0"[..]));
    }

    #[test]
    fn decode_refuses_as_soon_as_it_can() {
        let good = request(b"/a", "text");
        for end in 0..FIXED_LEN {
            assert_eq!(decode(&good[..end]), Reading::Part, "{end} bytes");
        }
        let with = |at: usize, byte: u8, len: usize| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            decode(&bytes[..len])
        };
        assert_eq!(with(0, 0, 4), Reading::Bad("it does not begin like a request"));
        assert_eq!(with(4, 1, 8), Reading::Bad("it is a request of another version"));
        assert_eq!(with(8, 1, 12), Reading::Bad("it asks for something else than a connection"));
        assert_eq!(with(12, 2, FIXED_LEN), Reading::Bad("its data socket is not a local one"));
        let bad = |path: &[u8]| decode(&request(path, ""));
        assert_eq!(bad(&[b'/'; SUN_PATH_LEN]), Reading::Bad("the name of its data socket has no end"));
        assert_eq!(bad(b"a"), Reading::Bad("the name of its data socket is not absolute"));
        assert_eq!(bad(b""), Reading::Bad("it names no data socket"));
        assert!(matches!(decode(&request(b"/a", &"x".repeat(128))), Reading::Whole(_)));
        assert_eq!(decode(&request(b"/a", &"x".repeat(129))), Reading::Bad("it is too long"));
    }

    #[test]
    fn answer_is_read_by_a_client() {
        let path = Path::new("/run/m/fd7+gso");
        assert_eq!(decode_answer(&encode_answer(path)).as_deref(), Ok(path));
    }

    proptest! {
        #[test]
        fn decode_any_bytes_return(bytes in prop::collection::vec(any::<u8>(), 0..300), head in 0usize..=14) {
            let mut bytes = bytes;
            for (to, from) in bytes.iter_mut().zip(request(b"/a", "").into_iter().take(head)) {
                *to = from;
            }
            if let Reading::Whole(request) = decode(&bytes) {
                prop_assert!(bytes.len() >= FIXED_LEN && request.description.len() <= 3 * 128);
            }
        }
    }
}
