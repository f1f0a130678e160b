//! The two messages of the handshake, byte by byte (VDE facts 2.3 and 2.4).

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::locator::Port;
use crate::sys;

pub(crate) const MAGIC: u32 = 0xfeed_face;
pub(crate) const VERSION: u32 = 3;
/// Request kinds, the low 8 bits of the type word.
pub(crate) const NEW_CONNECTION: u32 = 0;
const MANAGEMENT_PORT: u32 = 1;

const AF_UNIX: u16 = 1;
/// Room for a path in `sockaddr_un`.
pub(crate) const SUN_PATH_LEN: usize = 108;
/// Longest description, in bytes.
pub(crate) const DESCRIPTION_MAX: usize = 127;
/// Length of the answer: one `sockaddr_un`.
pub const ANSWER_LEN: usize = 2 + SUN_PATH_LEN;

/// The word at the end of a description by which a client of this project says that it takes big frames.
pub(crate) const BIG_WORD: &str = " gso=1";
/// The end of the name of a data socket by which a node of this project says that both will exchange big frames.
pub(crate) const BIG_SUFFIX: &[u8] = b"+gso";
/// The beginning of the name of a data socket of a node of this project, before its number. The original's is `fd`, and its
/// numbers do not begin with a zero: so a client knows that what it sends faster than others receive waits in long
/// queues, and old ones see a number all the same.
pub(crate) const NODE_PREFIX: &str = "fd0";

/// What the switch shows for this plug: the caller's text, who we are, and where a remote user comes from.
/// `big`: we take big frames.
pub(crate) fn description(text: &str, big: bool) -> String {
    let uid = rustix::process::geteuid().as_raw();
    let user = sys::user_name(uid).unwrap_or_else(|| uid.to_string());
    let ssh = std::env::var("SSH_CLIENT").ok();
    describe(text, &user, std::process::id(), ssh.as_deref(), big)
}

fn describe(text: &str, user: &str, pid: u32, ssh: Option<&str>, big: bool) -> String {
    let mut whole = format!("{text} user={user} pid={pid}");
    if let Some(address) = ssh.and_then(|ssh| ssh.split_whitespace().next()) {
        whole.push_str(" SSH=");
        whole.push_str(address);
    }
    // A switch prints this as part of a line.
    let mut whole = whole.replace(char::is_control, " ");
    // Whatever the text is, the word has to be there whole.
    let word = if big { BIG_WORD } else { "" };
    let end = (0..=(DESCRIPTION_MAX - word.len()).min(whole.len())).rfind(|&at| whole.is_char_boundary(at));
    whole.truncate(end.unwrap_or(0));
    whole + word
}

/// The request, to be sent by one call. The name of the data socket fits by construction of that socket.
pub(crate) fn encode(port: &Port, data_socket: &Path, description: &str) -> Vec<u8> {
    let kind = match port {
        Port::Any | Port::Group(_) => NEW_CONNECTION,
        Port::Number(number) => number << 8 | NEW_CONNECTION,
        Port::Management => MANAGEMENT_PORT,
    };
    let mut request = Vec::with_capacity(14 + SUN_PATH_LEN + description.len());
    request.extend_from_slice(&MAGIC.to_ne_bytes());
    request.extend_from_slice(&VERSION.to_ne_bytes());
    request.extend_from_slice(&kind.to_ne_bytes());
    request.extend_from_slice(&AF_UNIX.to_ne_bytes());
    request.extend_from_slice(data_socket.as_os_str().as_bytes());
    request.resize(14 + SUN_PATH_LEN, 0);
    request.extend_from_slice(description.as_bytes());
    request
}

/// The socket that the answer names, or what is wrong with the answer.
pub fn decode_answer(answer: &[u8; ANSWER_LEN]) -> Result<PathBuf, &'static str> {
    let (family, path) = answer.split_at(2);
    if family != AF_UNIX.to_ne_bytes() {
        return Err("its answer is not the address of a local socket");
    }
    match CStr::from_bytes_until_nul(path) {
        Ok(name) if name.is_empty() => Err("its answer names no socket"),
        Ok(name) => Ok(PathBuf::from(OsStr::from_bytes(name.to_bytes()))),
        Err(_) => Err("the name in its answer has no end"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn describe_cuts_between_characters() {
        assert_eq!(describe("x", "u", 7, None, false), "x user=u pid=7");
        assert_eq!(describe("x", "u", 7, Some("10.1.2.3 5 22"), false), "x user=u pid=7 SSH=10.1.2.3");
        assert_eq!(describe("a\nb", "u", 7, Some(""), false), "a b user=u pid=7");
        assert_eq!(describe(&"a".repeat(200), "u", 7, None, false).len(), 127);
        assert_eq!(describe(&"é".repeat(100), "u", 7, None, false).len(), 126);
        let big = describe(&"a".repeat(200), "u", 7, None, true);
        assert!(big.len() == 127 && big.ends_with("a gso=1"));
    }

    #[test]
    fn decode_answer_refuses_what_is_no_address() {
        let mut answer = [0; ANSWER_LEN];
        assert_eq!(decode_answer(&answer), Err("its answer is not the address of a local socket"));
        answer[..2].copy_from_slice(&AF_UNIX.to_ne_bytes());
        assert_eq!(decode_answer(&answer), Err("its answer names no socket"));
        answer[2..].fill(b'x');
        assert_eq!(decode_answer(&answer), Err("the name in its answer has no end"));
        answer[109] = 0;
        assert_eq!(decode_answer(&answer).expect("107 bytes").as_os_str().len(), 107);
    }

    proptest! {
        #[test]
        fn decode_answer_any_bytes_return(answer in prop::collection::vec(any::<u8>(), ANSWER_LEN)) {
            let answer: [u8; ANSWER_LEN] = answer.try_into().expect("of that length");
            if let Ok(path) = decode_answer(&answer) {
                prop_assert!(!path.as_os_str().is_empty() && path.as_os_str().len() < SUN_PATH_LEN);
            }
        }
    }
}
