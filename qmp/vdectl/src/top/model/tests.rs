//! The arithmetic, and what comes and goes.

use std::time::Duration;

use vde_control::{Join, Ring};

use super::super::sample::{answer, model, nic};
use super::*;

const KEY: &str = "/run/web";

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn port<'a>(model: &'a Model, id: &str) -> &'a Port {
    &model.vms[KEY].ports[id]
}

#[test]
fn two_readings_give_rates_and_ratios() {
    let mut model = model(&["web"]);
    model.heard(KEY, at(1000), answer(&[nic("net0", 100)]));
    assert!(port(&model, "net0").tx().is_none(), "one reading is no rate");
    model.heard(KEY, at(3000), answer(&[nic("net0", 102)]));
    let port = port(&model, "net0");
    assert_eq!(port.tx(), Some(Flow { frames: 10.0, bits: 80_000.0 }));
    assert_eq!(port.rx(), Some(Flow { frames: 10.0, bits: 360_000.0 }));
    // rx_overrun and tx_refused; rx_waited is no drop.
    assert_eq!(port.drops(), Some(3.0));
    assert_eq!(port.big(), Some(5.0 / 40.0));
    assert_eq!(port.joined(), Some(20.0 / 30.0));
    assert_eq!((port.rx_fill(), port.tx_fill()), (Some(250.0 / 256.0), Some(3.0 / 256.0)));
    assert_eq!(port.history, [440_000.0]);
}

#[test]
fn back_end_that_was_restarted_has_no_rates_for_one_reading() {
    let mut model = model(&["web"]);
    for (time, count) in [(1000, 100), (2000, 3), (3000, 4)] {
        model.heard(KEY, at(time), answer(&[nic("net0", count)]));
        assert_eq!(port(&model, "net0").tx().is_some(), time == 3000, "at {time}");
    }
    assert_eq!(port(&model, "net0").history, [0.0, 440_000.0]);
}

#[test]
fn time_that_stands_or_runs_back_changes_nothing() {
    let mut model = model(&["web"]);
    model.heard(KEY, at(1000), answer(&[nic("net0", 1)]));
    model.heard(KEY, at(2000), answer(&[nic("net0", 2)]));
    let rate = port(&model, "net0").tx();
    for time in [2000, 500] {
        model.heard(KEY, at(time), answer(&[nic("net0", 3)]));
        assert_eq!(port(&model, "net0").tx(), rate);
    }
    // Compared with the reading of second 2, not with the one that came at the same time.
    model.heard(KEY, at(3000), answer(&[nic("net0", 3)]));
    assert_eq!(port(&model, "net0").tx(), rate);
    // A suspended machine: a long time, and a small rate.
    model.heard(KEY, at(3_603_000), answer(&[nic("net0", 363)]));
    assert_eq!(port(&model, "net0").tx().unwrap().frames, 1.0);
}

#[test]
fn nics_come_and_go() {
    let mut model = model(&["web"]);
    model.heard(KEY, at(1000), answer(&[nic("net0", 1)]));
    model.heard(KEY, at(2000), answer(&[nic("net0", 2), nic("net1", 900)]));
    assert!(port(&model, "net0").tx().is_some());
    assert!(port(&model, "net1").tx().is_none(), "its first reading is no rate since nothing");
    model.heard(KEY, at(3000), answer(&[nic("net1", 901)]));
    assert_eq!(model.vms[KEY].ports.keys().collect::<Vec<_>>(), ["net1"]);
    assert_eq!(port(&model, "net1").tx().unwrap().frames, 10.0);
}

#[test]
fn link_of_the_same_name_that_leads_elsewhere_starts_anew() {
    let mut model = model(&["web"]);
    model.heard(KEY, at(1000), answer(&[nic("net0", 1)]));
    let mut moved = nic("net0", 2);
    moved.links[0].locator = "vde:///tmp/b".into();
    model.heard(KEY, at(2000), answer(&[moved]));
    assert!(port(&model, "net0").tx().is_some(), "the NIC goes on");
    assert_eq!(port(&model, "net0").link_rates, [None]);
    assert_eq!(port(&model, "net0").big(), None);
}

#[test]
fn vm_that_is_gone_is_forgotten_and_not_heard() {
    let mut model = model(&["web"]);
    model.heard(KEY, at(1000), answer(&[nic("net0", 1)]));
    model.running(at(1500), &[]);
    model.heard(KEY, at(2000), answer(&[nic("net0", 2)]));
    assert!(model.vms.is_empty());
    // Another one at the same place is not compared with it.
    model.running(at(2500), &[(KEY.into(), "web".into())]);
    model.heard(KEY, at(3000), answer(&[nic("net0", 3)]));
    assert!(port(&model, "net0").tx().is_none());
}

#[test]
fn silence_keeps_what_was_known() {
    let mut model = model(&["web"]);
    model.heard(KEY, at(1000), answer(&[nic("net0", 1)]));
    model.heard(KEY, at(2000), Err("it does not answer".into()));
    let vm = &model.vms[KEY];
    assert_eq!((vm.answered, vm.trouble.as_deref()), (at(1000), Some("it does not answer")));
    assert_eq!(vm.ports.len(), 1);
    model.heard(KEY, at(3000), answer(&[nic("net0", 3)]));
    assert_eq!(model.vms[KEY].trouble, None);
    assert_eq!(port(&model, "net0").tx().unwrap().frames, 10.0);
}

#[test]
fn rings_that_do_not_run_have_no_fill_and_liars_are_full_at_most() {
    let mut model = model(&["web"]);
    let mut nic = nic("net0", 1);
    nic.rings = vec![Ring::default(); 2];
    model.heard(KEY, at(1000), answer(std::slice::from_ref(&nic)));
    assert_eq!((port(&model, "net0").rx_fill(), port(&model, "net0").tx_fill()), (None, None));
    // The emptiest receive queue and the fullest transmit queue count.
    let ring = |waiting| Ring { size: 100, enabled: true, waiting };
    nic.rings = vec![ring(90), ring(1), ring(20), ring(60_000), Ring::default(), Ring::default()];
    model.heard(KEY, at(2000), answer(&[nic]));
    assert_eq!((port(&model, "net0").rx_fill(), port(&model, "net0").tx_fill()), (Some(0.2), Some(1.0)));
}

#[test]
fn join_is_the_sum_of_its_links() {
    let mut model = model(&["web"]);
    for (time, count) in [(1000, 1), (2000, 2)] {
        let links = [nic("x", count).links, nic("x", 2 * count).links].concat();
        let join = Join { id: "vlan0".into(), links, counters: Counters::new() };
        model.heard(KEY, at(time), Ok(Answer { nics: vec![], joins: vec![join] }));
    }
    let port = port(&model, "vlan0");
    // Both links have one name here, as an odd peer may say: the first is taken for both, and nothing is set back.
    assert_eq!(port.rx().unwrap().frames, 30.0 + 90.0);
    assert_eq!((port.drops(), port.joined(), port.rx_fill()), (Some(0.0), None, None));
}
