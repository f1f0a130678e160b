//! `vdectl vms`: what runs here.
//!
//! All VMs are asked at once, and none for long: a monitor that another client uses does not answer, and that VM is shown all
//! the same.

use std::thread;
use std::time::Duration;

use qmp::{Client, Error};
use registry::{Entry, Record, running_domains};
use serde_json::{Value, json};

use crate::Failure;
use crate::cli::Vms;
use crate::table::Table;
use crate::vm::Vm;

/// How long a VM may take for each answer.
const LIMIT: Duration = Duration::from_millis(500);

/// What a VM has told.
#[derive(Debug, Default)]
struct Answers {
    version: Option<String>,
    status: Option<String>,
    nics: Option<Vec<String>>,
}

/// Carries it out.
pub fn run(args: &Vms) -> Result<(), Failure> {
    let vms = Vm::all();
    let answers: Vec<Answers> = thread::scope(|scope| {
        let asked: Vec<_> = vms.iter().map(|vm| scope.spawn(|| ask(vm))).collect();
        asked.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let rows: Vec<_> = vms.iter().filter_map(|vm| vm.entry.as_ref()).zip(&answers).zip(&vms).collect();
    let text = match args.json {
        true => {
            let rows = rows.iter().map(|((entry, answers), vm)| as_json(vm, entry, answers));
            format!("{:#}\n", Value::Array(rows.collect()))
        }
        false if rows.is_empty() => none(&running_domains()),
        false => {
            let mut table = Table::new(&["VM", "PID", "QEMU", "STATUS", "NICS", "UP"]);
            rows.iter().for_each(|((entry, answers), vm)| table.row(fields(vm, entry, answers)));
            table.to_string()
        }
    };
    crate::print(&text)
}

/// What is said in place of a table. Domains of libvirt that nothing serves are not known to have a network of ours.
fn none(domains: &[String]) -> String {
    let none = "no VM runs here that vdeq has started, or that vdectl has given a NIC, as this user";
    let hint = match domains {
        [] => String::new(),
        [domain] => format!("; for libvirt's domain '{domain}' see: vdectl libvirt check {domain}"),
        [_, _, ..] => "; for libvirt's domains see: vdectl libvirt check DOMAIN".into(),
    };
    // Names are their authors' to choose.
    format!("{}\n", Failure::new(format!("{none}{hint}")))
}

fn ask(vm: &Vm) -> Answers {
    let mut answers = Answers::default();
    let entry = vm.entry.as_ref().filter(|entry| entry.record.qmp.is_some());
    if let Some(entry) = entry {
        match Client::connect(&vm.qmp, LIMIT) {
            Ok(mut monitor) => {
                answers.version = monitor.version().ok().map(|version| version.to_string());
                let status = monitor.execute("query-status", json!({})).ok();
                answers.status = status.and_then(|status| Some(status.get("status")?.as_str()?.to_owned()));
            }
            Err(Error::TimedOut(_)) => answers.status = Some("busy".into()),
            Err(_) => answers.status = Some(if entry.pid.is_some() { "starting" } else { "ended" }.into()),
        }
    }
    let back_ends = vm.back_ends(LIMIT).ok().filter(|back_ends| !back_ends.is_empty());
    let nics =
        back_ends.and_then(|all| all.into_iter().map(|mut back_end| back_end.query_nics().ok()).collect());
    let ids = |nics: Vec<Vec<vde_control::Nic>>| nics.into_iter().flatten().map(|nic| nic.id).collect();
    answers.nics = nics.map(ids);
    answers
}

fn fields(vm: &Vm, entry: &Entry, answers: &Answers) -> [String; 6] {
    let up = Duration::from_secs(Record::now().saturating_sub(entry.record.since));
    [
        vm.name.clone(),
        entry.pid.map(|pid| pid.to_string()).unwrap_or_default(),
        answers.version.clone().unwrap_or_default(),
        answers.status.clone().unwrap_or_default(),
        answers.nics.as_ref().map(|nics| nics.len().to_string()).unwrap_or_default(),
        age(up),
    ]
}

fn as_json(vm: &Vm, entry: &Entry, answers: &Answers) -> Value {
    let Entry { directory, record, controls, pid } = entry;
    json!({
        "name": record.name,
        "pid": pid,
        "program": record.program,
        "version": answers.version,
        "status": answers.status,
        "nics": answers.nics,
        "qmp": record.qmp,
        "control": vm.control(),
        "controls": controls,
        "directory": directory,
        "made-by": record.made_by,
        "since": record.since,
    })
}

/// A time in the two largest units that it has.
fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nothing_is_served_libvirts_domains_are_looked_for() {
        let said = |domains: &[&str]| {
            let domains: Vec<String> = domains.iter().map(|domain| (*domain).to_owned()).collect();
            none(&domains)
        };
        assert!(said(&[]).ends_with("has given a NIC, as this user\n"));
        assert!(said(&["web"]).ends_with("vdectl libvirt check web\n"));
        assert!(said(&["web", "db"]).ends_with("vdectl libvirt check DOMAIN\n"));
    }

    #[test]
    fn age_has_two_units() {
        for (seconds, text) in
            [(0, "0s"), (59, "59s"), (61, "1m01s"), (3600, "1h00m"), (86399, "23h59m"), (90000, "1d01h")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }
}
