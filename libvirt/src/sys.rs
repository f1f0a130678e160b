//! Users by name, and running a program as another user: what the standard library does not offer.
//!
//! Invariant A: this process has one thread, so a forked child may do what the parent may; still only system calls are
//! made between `fork` and `exec`.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::{CapabilitySet, CapabilitySets};

/// Making and changing interfaces, and frames of interfaces that are there.
const OF_INTERFACES: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::NET_RAW);

/// Who a program runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// The user's group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
}

/// An entry of the user database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: CString,
    /// The number.
    pub uid: u32,
    /// The number of the first group.
    pub gid: u32,
}

/// The user with this name.
pub fn user_by_name(name: &str) -> Option<User> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` ends in NUL and outlives the call.
    user(unsafe { libc::getpwnam(name.as_ptr()) })
}

/// The user with this number.
pub fn user_by_uid(uid: u32) -> Option<User> {
    // SAFETY: no memory operands.
    user(unsafe { libc::getpwuid(uid) })
}

/// What the user with this number is called: by the number, if there is no name.
pub fn name_of(uid: u32) -> String {
    user_by_uid(uid).map_or_else(|| uid.to_string(), |user| user.name.to_string_lossy().into_owned())
}

fn user(found: *mut libc::passwd) -> Option<User> {
    // SAFETY: null, or an entry that stays as it is until the next such call; invariant A.
    let entry = unsafe { found.as_ref() }?;
    // SAFETY: the name of an entry ends in NUL.
    let name = unsafe { CStr::from_ptr(entry.pw_name) };
    Some(User { name: name.into(), uid: entry.pw_uid, gid: entry.pw_gid })
}

/// The number of the group with this name.
pub fn group_by_name(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` ends in NUL and outlives the call.
    let found = unsafe { libc::getgrnam(name.as_ptr()) };
    // SAFETY: null, or an entry that stays as it is until the next such call; invariant A.
    unsafe { found.as_ref() }.map(|entry| entry.gr_gid)
}

/// All groups of a user.
pub fn groups_of(user: &User) -> Vec<u32> {
    let mut groups = vec![user.gid; 1024];
    let mut count = libc::c_int::try_from(groups.len()).unwrap_or(libc::c_int::MAX);
    // SAFETY: the name ends in NUL; there is room for as many groups as `count` says.
    let code =
        unsafe { libc::getgrouplist(user.name.as_ptr(), user.gid, groups.as_mut_ptr(), &raw mut count) };
    // Of one who is in more, what fitted in.
    if code >= 0 {
        groups.truncate(usize::try_from(count).unwrap_or(0));
    }
    groups
}

/// Has a program run as `identity`, which then never gains rights again. `privileged`: it keeps the right to make and
/// change interfaces.
pub fn run_as(command: &mut Command, identity: Identity, privileged: bool) {
    // SAFETY: invariant A; the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(move || become_user(&identity, privileged)) };
}

fn become_user(identity: &Identity, privileged: bool) -> io::Result<()> {
    rustix::thread::set_keep_capabilities(privileged)?;
    // SAFETY: as many groups as are said.
    check(unsafe { libc::setgroups(identity.groups.len(), identity.groups.as_ptr()) })?;
    // SAFETY: no memory operands; invariant A.
    check(unsafe { libc::setresgid(identity.gid, identity.gid, identity.gid) })?;
    // SAFETY: as above.
    check(unsafe { libc::setresuid(identity.uid, identity.uid, identity.uid) })?;
    // Said also where there are none: QEMU may run as root, whose back end needs no more than that of others.
    let kept = if privileged { OF_INTERFACES } else { CapabilitySet::empty() };
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    rustix::thread::set_capabilities(None, sets)?;
    if privileged {
        rustix::thread::configure_capability_in_ambient_set(CapabilitySet::NET_ADMIN, true)?;
        rustix::thread::configure_capability_in_ambient_set(CapabilitySet::NET_RAW, true)?;
    }
    Ok(rustix::thread::set_no_new_privs(true)?)
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of `/proc/self/status` of a program that runs so.
    fn status(uid: u32, gid: u32, privileged: bool) -> String {
        let mut command = Command::new("cat");
        run_as(command.arg("/proc/self/status"), Identity { uid, gid, groups: vec![gid] }, privileged);
        let output = command.output().expect("become another user: run the tests as root");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn run_as_leaves_no_right_but_those_to_interfaces() {
        for (uid, gid) in [(0, 0), (64055, 64054)] {
            for (privileged, capabilities) in [(false, "0000000000000000"), (true, "0000000000003000")] {
                let status = status(uid, gid, privileged);
                for line in [
                    format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n"),
                    format!("Gid:\t{gid}\t{gid}\t{gid}\t{gid}\n"),
                    format!("Groups:\t{gid} \n"),
                    format!("CapPrm:\t{capabilities}\nCapEff:\t{capabilities}\n"),
                    "NoNewPrivs:\t1\n".into(),
                ] {
                    assert!(status.contains(&line), "{line} is not in {status}");
                }
            }
        }
    }
}
