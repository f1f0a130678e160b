//! What the back ends of several VMs say at one moment.
//!
//! They are asked at the same time, each by a thread of its own, because one that does not answer must not hold up the others.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use vde_control::{Join, Link, Nic, Ring};

use crate::Failure;
use crate::vm::Vm;

/// How long a back end may take for each answer. Who collects counters waits for ten seconds, as a rule.
const PATIENCE: Duration = Duration::from_secs(3);

/// How many are asked at the same time.
const AT_ONCE: usize = 64;

/// What holds links: a NIC or a join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its name.
    pub id: String,
    /// A front end is there; `None` for a join, which has none.
    pub connected: Option<bool>,
    /// Its virtqueues.
    pub rings: Vec<Ring>,
    /// Its links.
    pub links: Vec<Link>,
    /// What happened to its frames.
    pub counters: BTreeMap<String, u64>,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name.
    pub vm: String,
    /// Its NICs, then its joins; or why there is nothing to be said.
    pub seen: Result<Vec<Holder>, Failure>,
}

/// Asks the back ends of these VMs.
pub fn take(vms: &[Vm]) -> Vec<Snapshot> {
    let look = |vm: &Vm| Snapshot { vm: vm.name.clone(), seen: holders(vm) };
    let look_at_some = |vms: &[Vm]| {
        thread::scope(|scope| {
            let threads: Vec<_> = vms.iter().map(|vm| (vm, scope.spawn(move || look(vm)))).collect();
            let ended = threads.into_iter().map(|(vm, thread)| {
                let died = |_| Snapshot { vm: vm.name.clone(), seen: Err(Failure::new("asking it failed")) };
                thread.join().unwrap_or_else(died)
            });
            ended.collect::<Vec<_>>()
        })
    };
    vms.chunks(AT_ONCE).flat_map(look_at_some).collect()
}

fn holders(vm: &Vm) -> Result<Vec<Holder>, Failure> {
    if vm.controls.is_empty() {
        return Err(Failure::new(format!("'{}' has no back end that could be asked", vm.name)));
    }
    let mut holders = Vec::new();
    for mut back_end in vm.back_ends(PATIENCE)? {
        holders.extend(back_end.query_nics()?.into_iter().map(Holder::from));
        holders.extend(back_end.query_joins()?.into_iter().map(Holder::from));
    }
    Ok(holders)
}

impl From<Nic> for Holder {
    fn from(nic: Nic) -> Self {
        let Nic { id, connected, rings, links, counters, .. } = nic;
        Self { id, connected: Some(connected), rings, links, counters }
    }
}

impl From<Join> for Holder {
    fn from(join: Join) -> Self {
        let Join { id, links, counters } = join;
        Self { id, connected: None, rings: Vec::new(), links, counters }
    }
}
