//! The user that QEMU becomes once it has started.
//!
//! It connects to its sockets before that, but if a connection breaks it does so again as that user.

use rustix::fs::Mode;
use rustix::process::umask;

use crate::argv::Token;
use crate::error::Error;
use crate::props::Props;
use crate::spawn::sys;

/// User and group by `-runas` or `-run-with user=`; QEMU takes a name, else `UID:GID`.
pub fn of(tokens: &[Token]) -> Result<Option<(u32, u32)>, Error> {
    let user = |token: &Token| match token.name() {
        Some("runas") => token.text().map(str::to_owned),
        Some("run-with") => Props::parse(token.text()?, "").get("user").map(str::to_owned),
        _ => None,
    };
    let Some(user) = tokens.iter().rev().find_map(user) else { return Ok(None) };
    let numbers = || {
        let (uid, gid) = user.split_once(':')?;
        Some((uid.parse().ok()?, gid.parse().ok()?))
    };
    match sys::user_ids(&user).or_else(numbers) {
        Some(ids) => Ok(Some(ids)),
        None => Err(Error::UnknownUser(user)),
    }
}

/// Whether what this process and QEMU make can be written by nobody else.
pub fn umask_is_strict() -> bool {
    // It can only be read by setting it.
    let mask = umask(Mode::empty());
    umask(mask);
    mask.contains(Mode::WGRP | Mode::WOTH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::argv::scan;
    use std::ffi::OsString;

    fn ids(line: &str) -> Result<Option<(u32, u32)>, Error> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        of(&scan(&words))
    }

    #[test]
    fn of_knows_both_options_and_both_forms() {
        for (line, expected) in [
            ("-m 64", None),
            ("-run-with chroot=/tmp", None),
            ("-runas root", Some((0, 0))),
            ("--runas 5:6", Some((5, 6))),
            ("-run-with chroot=/tmp,user=root", Some((0, 0))),
            ("-run-with user=7:8", Some((7, 8))),
            ("-append -runas -runas 1:2 -run-with user=3:4", Some((3, 4))),
        ] {
            assert_eq!(ids(line).expect(line), expected, "{line}");
        }
        let error = ids("-runas no-such-user").expect_err("nobody");
        assert!(error.to_string().contains("'no-such-user'"), "{error}");
        assert_eq!(error.status(), 2);
        assert!(ids("-run-with user=5").is_err());
    }
}
