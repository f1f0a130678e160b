//! `vdectl top` on a real terminal: its layout, its keys, and how it leaves the terminal.

#[path = "top/double.rs"]
mod double;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use vde_tests::{Guest, Machine, Station, Switch, Terminal, places, process};

const LIMIT: Duration = Duration::from_secs(60);

/// A back end that serves two NICs, one of them on two networks, and no guest.
struct BackEnd {
    process: process::Owned,
    folder: TempDir,
}

impl BackEnd {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("top").rand_bytes(6).tempdir_in("/tmp").unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let child = Command::new(places::own_program("vhost-user-vde").unwrap())
            .args(["--nic", &format!("socket-path={},link=null://,id=net0", at("0"))])
            .args([
                "--nic",
                &format!("socket-path={},link=switch://{},link=null://,id=net1", at("1"), at("lan")),
            ])
            .args(["--control", &at("web")])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let process = process::Owned::new(child, "vhost-user-vde");
        let ready = || Ok(Path::new(&at("web")).exists().then_some(()));
        process::wait_until("the back end listens for commands", LIMIT, ready).unwrap();
        Self { process, folder }
    }

    fn control(&self) -> PathBuf {
        self.folder.path().join("web")
    }

    /// Text with the name of the folder, which is another one each time, made one of the same length.
    fn masked(&self, text: &str) -> String {
        text.replace(self.folder.path().to_str().unwrap(), "/tmp/topFOLDER")
    }
}

/// The shell's command that runs it; then it says how that ended, and how the terminal was left.
fn command(environment: &str, words: &[&Path]) -> String {
    let program = places::own_program("vdectl").unwrap();
    let words: Vec<String> = words.iter().map(|word| word.display().to_string()).collect();
    let modes = "stty -a | tr ' ;' '\\n\\n' | grep -x -e '-*icanon' -e '-*echo' | sort | tr '\\n' ' '";
    format!("{environment} {} top {}; echo ended with $?; {modes}", program.display(), words.join(" "))
}

/// What stands on the terminal is what is stored, or is it in a moment: the terminal takes what is drawn in pieces.
fn compare(name: &str, terminal: &Terminal, masked: impl Fn(&str) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/top").join(name);
    if std::env::var_os("VDEQ_BLESS").is_some() {
        std::fs::write(&path, masked(&terminal.text().unwrap())).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap();
    let what = format!("it is what {} has", path.display());
    terminal.wait_until(&what, LIMIT, |text| masked(text) == stored).unwrap();
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// The program has ended with this status, and the terminal is as it was before.
fn check_left_clean(terminal: &Terminal, status: i32) {
    let text = terminal.wait_for("icanon", LIMIT).unwrap();
    // The shell may say in a line of its own which signal it was.
    let text = text.trim_end();
    assert!(
        text.ends_with(&format!("ended with {status}\necho icanon")),
        "modes and old screen are back: {text}"
    );
    assert!(!text.contains("NIC"), "{text}");
    assert_eq!(terminal.variable("alternate_on").unwrap(), "0");
    assert_eq!(terminal.variable("cursor_flag").unwrap(), "1");
}

#[test]
fn layout_on_terminals_of_two_sizes() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["mail", "web"] {
        double::serve(&folder.path().join(name));
    }
    let words = [&*folder.path().join("mail"), &*folder.path().join("web")];
    let terminal = Terminal::start((80, 24), &command("", &words)).unwrap();
    // Rates are there with the second answer.
    let rates =
        |text: &str| text.lines().filter(|line| line.contains("     0     0     0     0")).count() == 6;
    terminal.wait_until("all rates are known", LIMIT, rates).unwrap();
    compare("80x24.txt", &terminal, str::to_owned);
    terminal.press(&["End", "Up", "Enter"]).unwrap();
    terminal.wait_for("drops  rx_overrun=42", LIMIT).unwrap();
    compare("80x24-unfolded.txt", &terminal, str::to_owned);
    terminal.press(&["Enter", "Home"]).unwrap();
    terminal.resize((200, 50)).unwrap();
    let below = |text: &str| {
        text.contains("HISTORY") && text.contains("-- mail net0 --") && !text.contains("rx_overrun")
    };
    terminal.wait_until("the details have gone below", LIMIT, below).unwrap();
    compare("200x50.txt", &terminal, str::to_owned);
    terminal.resize((40, 10)).unwrap();
    terminal.wait_for("40x10: too small, 80x24 is enough", LIMIT).unwrap();
    terminal.press(&["q"]).unwrap();
    check_left_clean(&terminal, 0);
}

#[test]
fn real_back_end_with_idle_nics() {
    let back_end = BackEnd::start();
    let terminal = Terminal::start((80, 24), &command("", &[&back_end.control()])).unwrap();
    terminal
        .wait_until("both NICs have rates", LIMIT, |text| text.matches("     0     0").count() >= 2)
        .unwrap();
    terminal.press(&["j", "Space"]).unwrap();
    terminal.wait_for("link1", LIMIT).unwrap();
    compare("real-80x24.txt", &terminal, |text| back_end.masked(text));
    terminal.press(&["/", "n", "e", "t", "0", "Enter"]).unwrap();
    terminal
        .wait_until("only the first NIC is shown", LIMIT, |text| {
            text.contains("filter: net0  q quit")
                && text.contains("web         net0")
                && !text.contains("net1 ")
        })
        .unwrap();
}

/// The row of the VM with this name.
fn row(text: &str, name: &str) -> Vec<String> {
    let row = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    row.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn guest_that_works_is_seen_by_its_name_until_it_ends() {
    let limit = Duration::from_secs(60);
    let switch = Switch::start().unwrap();
    let station = Station::start(&switch, 99).unwrap();
    station.wait_plugged(&switch).unwrap();
    let name = format!("top{}", std::process::id());
    let machine = Machine::new().through_vdeq().unwrap().vdeq_nic(&switch.path(), "52:54:00:00:00:01");
    let machine = machine.address(0, "10.0.0.1/24").args(&["-name", &name]);
    let mut guest = Guest::start("top", &machine).unwrap();
    // Of all that run here only this one is of interest.
    let terminal = Terminal::start((80, 24), &command("", &[])).unwrap();
    terminal.press(&["/", &name, "Enter"]).unwrap();
    let job = guest.start_job("ping -c 100 -i 0.1 -W 5 10.0.0.99").unwrap();
    // VM, NIC, state, then frames and bits; ten each second, if the machine is not too busy.
    let flows = |text: &str| {
        let row = row(text, &name);
        row.get(2).is_some_and(|state| state == "up")
            && row.get(3..7).is_some_and(|rates| rates.iter().all(|rate| rate != "0" && rate != "-"))
    };
    terminal.wait_until("the guest's frames are seen", limit, flows).unwrap();
    terminal.press(&["Enter"]).unwrap();
    let text = terminal.wait_for("guest  virtio, process", LIMIT).unwrap();
    assert!(text.contains(&format!("process {},", guest.pid())) && text.contains("version-1"), "{text}");
    assert!(text.contains(switch.path().to_str().unwrap()), "{text}");
    assert_eq!(guest.finish_job(job, limit).unwrap().status, 0);
    guest.power_off(limit).unwrap();
    terminal.wait_until("the VM has gone", LIMIT, |text| row(text, &name).is_empty()).unwrap();
}

#[test]
fn back_end_that_hangs_is_marked_and_holds_up_nothing() {
    let mut back_end = BackEnd::start();
    let terminal = Terminal::start((80, 24), &command("", &[&back_end.control()])).unwrap();
    terminal.wait_for("net0      idle", LIMIT).unwrap();
    back_end.process.signal(Signal::STOP).unwrap();
    terminal.wait_for("net0      late", LIMIT).unwrap();
    terminal.press(&["?"]).unwrap();
    terminal.wait_for("Any key goes back.", Duration::from_secs(6)).unwrap();
    terminal.press(&["x", "p"]).unwrap();
    terminal.wait_for("PAUSED", Duration::from_secs(6)).unwrap();
    back_end.process.signal(Signal::CONT).unwrap();
    terminal.press(&["p"]).unwrap();
    terminal.wait_for("net0      idle", LIMIT).unwrap();
    // One that dies is late as well, and says why.
    back_end.process.signal(Signal::KILL).unwrap();
    terminal.press(&["Enter"]).unwrap();
    terminal.wait_for("does not answer", LIMIT).unwrap();
    terminal.press(&["q"]).unwrap();
    check_left_clean(&terminal, 0);
}

#[test]
fn terminal_is_left_clean_however_it_ends() {
    let back_end = BackEnd::start();
    let words = [&*back_end.control()];
    let ways: [(&str, i32, Option<Signal>); 7] = [
        ("q", 0, None),
        ("Escape", 0, None),
        ("C-c", 0, None),
        ("", 128 + 15, Some(Signal::TERM)),
        ("", 128 + 1, Some(Signal::HUP)),
        ("", 128 + 2, Some(Signal::INT)),
        ("", 128 + 3, Some(Signal::QUIT)),
    ];
    for (key, status, end) in ways {
        let terminal = Terminal::start((80, 24), &command("", &words)).unwrap();
        terminal.wait_for("net1", LIMIT).unwrap();
        assert_eq!(terminal.variable("alternate_on").unwrap(), "1");
        assert_eq!(terminal.variable("cursor_flag").unwrap(), "0");
        match end {
            Some(end) => signal(terminal.command_pid().unwrap(), end),
            None => terminal.press(&[key]).unwrap(),
        }
        check_left_clean(&terminal, status);
    }
}

#[test]
fn terminal_that_goes_takes_it_along() {
    let back_end = BackEnd::start();
    // A shell may have it ignore the signal: then the end of its input must tell.
    for environment in ["", "trap '' HUP;"] {
        let terminal = Terminal::start((80, 24), &command(environment, &[&back_end.control()])).unwrap();
        terminal.wait_for("net1", LIMIT).unwrap();
        let process = PathBuf::from(format!("/proc/{}", terminal.command_pid().unwrap()));
        terminal.close().unwrap();
        let gone = || Ok((!process.exists()).then_some(()));
        process::wait_until("it has ended with its terminal", LIMIT, gone).unwrap();
    }
}

#[test]
fn stopped_and_continued_it_has_its_terminal_again() {
    let back_end = BackEnd::start();
    let script = command("", &[&back_end.control()]).replace('\'', "'\\''");
    // A shell with job control; it says when the job is stopped.
    let shell = format!("bash --norc -i -c 'set -m; {script}; fg; echo; echo ended'");
    let terminal = Terminal::start((80, 24), &shell).unwrap();
    terminal.wait_for("net1", LIMIT).unwrap();
    terminal.press(&["C-z"]).unwrap();
    terminal.wait_until("it is there again after fg", LIMIT, |text| text.contains("net1")).unwrap();
    terminal.press(&["q"]).unwrap();
    terminal.wait_for("ended", LIMIT).unwrap();
    assert_eq!(terminal.variable("alternate_on").unwrap(), "0");
}

#[test]
fn colours_only_where_they_are_wanted() {
    let back_end = BackEnd::start();
    back_end_with_a_colour(&back_end, "", true);
    back_end_with_a_colour(&back_end, "NO_COLOR=1", false);
    back_end_with_a_colour(&back_end, "TERM=vt100", false);
}

/// A NIC with a link that is up is idle, without colour; one that was killed is late, in red.
fn back_end_with_a_colour(back_end: &BackEnd, environment: &str, coloured: bool) {
    let terminal = Terminal::start((80, 24), &command(environment, &[&back_end.control()])).unwrap();
    terminal.wait_for("net1", LIMIT).unwrap();
    signal(back_end.process.pid(), Signal::STOP);
    terminal.wait_for("late", LIMIT).unwrap();
    let red =
        terminal.styled_text().unwrap().lines().any(|line| line.contains("late") && line.contains("38;5;1m"));
    signal(back_end.process.pid(), Signal::CONT);
    assert_eq!(red, coloured, "{environment}");
}

#[test]
fn without_a_terminal_it_points_to_stats() {
    for term in ["xterm", "dumb"] {
        let output = Command::new(places::own_program("vdectl").unwrap())
            .arg("top")
            .env("TERM", term)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            complaint,
            "vdectl: top fills a terminal, and there is none here; 'vdectl stats' prints the same numbers\n"
        );
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn it_costs_little() {
    let back_end = BackEnd::start();
    let terminal = Terminal::start((80, 24), &command("", &[&back_end.control()])).unwrap();
    terminal.wait_for("net1", LIMIT).unwrap();
    let pid = terminal.command_pid().unwrap();
    let ticks = |field: usize| -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(')').next().unwrap().split_whitespace().nth(field).unwrap().parse().unwrap()
    };
    // utime and stime; the times at which the main thread slept are counted beside them.
    let used = || ticks(11) + ticks(12);
    let sleeps = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // A few seconds' worth of ticks: two or three wake-ups each second.
    let spend = || {
        let (before, slept) = (used(), sleeps());
        let enough = || Ok((sleeps() >= slept + 8).then_some(()));
        process::wait_until("it wakes up now and then", LIMIT, enough).unwrap();
        used() - before
    };
    // What the machine's host takes away may be counted as well.
    let too_much: Vec<u64> = (0..3).map(|_| spend()).take_while(|spent| *spent > 10).collect();
    assert!(too_much.len() < 3, "{too_much:?} ticks of 10 ms for a handful of wake-ups");
}
