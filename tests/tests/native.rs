//! The harness against QEMU's own `-netdev vde`: guests, switch and stations work before anything of ours is in
//! the way. The same guests are the peers of our back end elsewhere.

use std::time::Duration;

use vde_tests::{Guest, Kernel, Machine, Qemu, Station, Switch};

const PING_LIMIT: Duration = Duration::from_secs(30);
const END_LIMIT: Duration = Duration::from_secs(30);

fn machine(switch: &Switch, number: u8) -> Machine {
    Machine::new()
        .native_nic(&switch.path(), &format!("52:54:00:00:00:{number:02x}"))
        .address(0, &format!("10.0.0.{number}/24"))
        .address(0, &format!("fd00::{number}/64"))
}

#[test]
fn two_guests_native_nics_ping_each_other() {
    let switch = Switch::start().unwrap();
    let (first, second) = (machine(&switch, 1), machine(&switch, 2).kernel(Kernel::Linux6_12));
    let mut guests = Guest::start_all(&[("native-pair-1", &first), ("native-pair-2", &second)]).unwrap();
    assert_eq!(switch.ports().unwrap().len(), 2);
    guests[0].ping(3, "10.0.0.2").unwrap();
    guests[1].ping(3, "-6 fd00::1").unwrap();
    for guest in guests {
        assert!(guest.power_off(END_LIMIT).unwrap().success());
    }
    switch.wait_ports("no guest on the switch", END_LIMIT, <[_]>::is_empty).unwrap();
}

#[test]
fn guest_of_each_qemu_reaches_a_station() {
    for (name, qemu) in [("native-station-installed", Qemu::Installed), ("native-station-7.2", Qemu::V7_2)] {
        let switch = Switch::start().unwrap();
        let station = Station::start(&switch, 99).unwrap();
        station.wait_plugged(&switch).unwrap();
        let plain = Machine::new().qemu(qemu).native_nic(&switch.path(), "52:54:00:00:00:01");
        let mut guest =
            Guest::start(name, &plain.address(0, "10.0.0.1/24").address(0, "fd00::1/64")).unwrap();
        guest.run_ok("ping -c 2 -W 5 -s 1472 10.0.0.99", PING_LIMIT).unwrap();
        guest.run_ok("ping -6 -c 2 -W 5 fd00::99", PING_LIMIT).unwrap();
        // The guest's own frames came here from its own address.
        let from_guest = |frame: &[u8]| frame.get(6..12) == Some(&[0x52, 0x54, 0, 0, 0, 1]);
        station.wait_frame("a frame of the guest", PING_LIMIT, from_guest).unwrap();
        assert!(guest.power_off(END_LIMIT).unwrap().success());
    }
}

#[test]
fn shell_odd_commands_leave_it_usable() {
    let mut guest = Guest::start("native-shell", &Machine::new()).unwrap();
    let limit = Duration::from_secs(20);
    assert_eq!(guest.run("exit 7", limit).unwrap().status, 7);
    assert_ne!(guest.run("if then", limit).unwrap().status, 0);
    assert_eq!(guest.run_ok("echo \"it's\"; cat", limit).unwrap(), "it's\n");
    let job = guest.start_job("echo begun; sleep 1; echo done; exit 3").unwrap();
    let ended = guest.finish_job(job, limit).unwrap();
    assert_eq!((ended.status, ended.text.as_str()), (3, "begun\ndone\n"));
    let late = guest.run("sleep 60", Duration::from_secs(1)).unwrap_err();
    assert!(format!("{late:#}").contains("\"sleep 60\" in a guest did not end"), "{late:#}");
    let busy = guest.run("true", limit).unwrap_err();
    assert!(busy.to_string().contains("still busy"), "{busy}");
}
