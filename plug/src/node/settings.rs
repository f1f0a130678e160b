//! What a node's locator says: `PATH[mode=/dirmode=/grp=/hashsize=/hashseed=/expiretime=]` (VDE fact 4.1).

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::table::TableSettings;
use crate::OpenOptions;
use crate::error::OpenError;
use crate::locator::{FormOption, LocatorProblem, PathForm, parse_mode};
use crate::sys;

const KEYS: [&str; 6] = ["mode", "dirmode", "grp", "hashsize", "hashseed", "expiretime"];

/// Most addresses that a switch may be told to remember: 24 MiB of them.
const HASH_SIZE_MAX: usize = 1 << 20;

/// Everything that can be said about a node.
#[derive(Debug)]
pub(super) struct Settings {
    /// Its directory.
    pub(super) path: PathBuf,
    pub(super) access: Access,
    pub(super) table: TableSettings,
}

/// Who may join.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// Mode of `ctl` and of the data sockets.
    pub(super) mode: u32,
    /// Mode of the directory.
    pub(super) dirmode: u32,
    /// The group that is given them, as it was named and as a number.
    pub(super) group: Option<(String, u32)>,
}

impl Settings {
    /// Reads the part of a locator behind `://`. What it says wins over the options.
    pub(super) fn parse(argument: &str, options: &OpenOptions) -> Result<Self, OpenError> {
        let form = PathForm::parse(argument, &KEYS, None)?;
        let path = if form.path.is_empty() { default_path() } else { PathBuf::from(&form.path) };
        let (mut mode, mut dirmode, mut group) = (Some(options.mode), None, options.group.clone());
        let mut table = TableSettings::default();
        for option in form.options.iter().filter(|option| !option.value.is_empty()) {
            let value = &option.value;
            match option.key {
                "mode" => mode = form.check(option, parse_mode(value))?,
                "dirmode" => dirmode = form.check(option, parse_mode(value))?,
                "grp" => group = Some(value.clone()),
                "hashsize" => {
                    let right = "a number from 1 to 1048576";
                    table.slots = form.check(option, number(option, 1..=HASH_SIZE_MAX, right))?;
                }
                "hashseed" => {
                    let right = "a number from 0 to 18446744073709551615";
                    table.seed = Some(form.check(option, number(option, 0..=u64::MAX, right))?);
                }
                _ => {
                    let right = "a number of seconds from 0 to 4294967295";
                    let seconds = form.check(option, number(option, 0..=u32::MAX, right))?;
                    table.expire = Duration::from_secs(seconds.into());
                }
            }
        }
        let access = Access::new(mode.unwrap_or(0), dirmode, group.filter(|group| !group.is_empty()))?;
        Ok(Self { path, access, table })
    }
}

impl Access {
    /// Mode 0 is the default: nobody but us. A directory without a mode of its own lets in whom `mode` lets in.
    ///
    /// A directory that all may write to has no sticky bit unless `dirmode` gives it one, for that is how VDE has it;
    /// everybody can then take the network's place. `[mode=0666/dirmode=3777]` is the safe way.
    fn new(mode: u32, dirmode: Option<u32>, group: Option<String>) -> Result<Self, OpenError> {
        let mode = if mode == 0 { 0o600 } else { mode };
        let search = (mode & 0o444) >> 2 | (mode & 0o222) >> 1;
        let dirmode = dirmode.unwrap_or(0o2000 | mode & 0o777 | search);
        let group = match group {
            None => None,
            Some(name) => match sys::group_id(&name).or_else(|| name.parse().ok()) {
                Some(gid) if gid != u32::MAX => Some((name, gid)),
                _ => return Err(OpenError::UnknownGroup { group: name }),
            },
        };
        Ok(Self { mode: mode & 0o666, dirmode, group })
    }
}

/// Reads a number in these bounds.
fn number<T: FromStr + PartialOrd>(
    option: &FormOption,
    bounds: std::ops::RangeInclusive<T>,
    right: &'static str,
) -> Result<T, LocatorProblem> {
    let number = option.value.parse().ok().filter(|number| bounds.contains(number));
    number.ok_or_else(|| LocatorProblem::BadValue { key: option.key, word: option.value.clone(), right })
}

/// Where a node is that was given no path.
fn default_path() -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    let user = sys::user_name(uid).unwrap_or_else(|| format!("u{uid}"));
    PathBuf::from(format!("/tmp/vdenode_{user}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(locator: &str) -> (u32, u32) {
        let settings = Settings::parse(locator, &OpenOptions::default()).expect(locator);
        (settings.access.dirmode, settings.access.mode)
    }

    #[test]
    fn modes_follow_from_each_other() {
        for (locator, dirmode, mode) in [
            ("/m", 0o2700, 0o600),
            ("/m[mode=0]", 0o2700, 0o600),
            ("/m[mode=0666]", 0o2777, 0o666),
            ("/m[m=0640]", 0o2750, 0o640),
            ("/m[mode=0660]", 0o2770, 0o660),
            ("/m[mode=0755]", 0o2755, 0o644),
            ("/m[mode=0620]", 0o2730, 0o620),
            ("/m[dirmode=0711]", 0o711, 0o600),
            ("/m[mode=0666/dirmode=3777]", 0o3777, 0o666),
        ] {
            assert_eq!(modes(locator), (dirmode, mode), "{locator}");
        }
    }

    #[test]
    fn options_are_below_the_locator() {
        let options = OpenOptions { mode: 0o660, group: Some("12345".into()), ..OpenOptions::default() };
        let access = |locator| Settings::parse(locator, &options).expect("good").access;
        let group = |gid: u32| Some((gid.to_string(), gid));
        assert_eq!(access("/m"), Access { mode: 0o660, dirmode: 0o2770, group: group(12345) });
        assert_eq!(access("/m[mode=0600/grp=7]"), Access { mode: 0o600, dirmode: 0o2700, group: group(7) });
    }

    #[test]
    fn numbers_are_checked() {
        let table =
            |locator| Settings::parse(locator, &OpenOptions::default()).map(|settings| settings.table);
        let read = table("/s[hashsize=100/hashseed=7/expiretime=3]").expect("good");
        assert_eq!((read.slots, read.seed, read.expire), (100, Some(7), Duration::from_secs(3)));
        for (locator, text) in [
            ("/s[hashsize=0]", "character 4: hashsize=0 makes no sense; write a number from 1 to 1048576"),
            ("/s[expiretime=x]", "expiretime=x makes no sense; write a number of seconds"),
            ("/s[hashseed=-1]", "hashseed=-1 makes no sense"),
            ("/s[zzz=1]", "there is no option \"zzz\"; the options are mode, dirmode, grp, hashsize,"),
            ("/s[grp=no such group]", "there is no group \"no such group\""),
        ] {
            let error = table(locator).expect_err(locator);
            assert!(error.to_string().contains(text), "{error}");
            assert_eq!(error.kind(), crate::OpenErrorKind::Usage);
        }
    }
}
