//! `vdectl vms`, and which VM a word means: for a user who is not root, whose VMs are in a place of their own.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use qmp::{Address, Client};
use rustix::process::Signal;
use serde_json::{Value, json};
use vde_tests::back_end::signal;
use vde_tests::process::{Owned, wait_until};
use vde_tests::vdectl::Said;
use vde_tests::{BackEnd, Qemu, executable, places};

const LIMIT: Duration = Duration::from_secs(60);
/// `nobody`.
const USER: u32 = 65534;

/// A user with a runtime directory, and our programs where they can be read.
struct User {
    home: tempfile::TempDir,
}

impl User {
    fn new() -> Result<Self> {
        let home = tempfile::tempdir()?;
        for name in ["vdeq", "vhost-user-vde", "vdectl"] {
            executable::copy(&places::own_program(name)?, &home.path().join(name))?;
        }
        let runtime = home.path().join("run");
        std::fs::create_dir(&runtime)?;
        std::os::unix::fs::chown(&runtime, Some(USER), Some(USER)).context("run the tests as root")?;
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755))?;
        Ok(Self { home })
    }

    fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(places::system_program("setpriv")?);
        command.args([format!("--reuid={USER}"), format!("--regid={USER}"), "--clear-groups".into()]);
        command.arg(self.home.path().join(program)).stdin(Stdio::null());
        command
            .env("XDG_RUNTIME_DIR", self.home.path().join("run"))
            .env("HOME", self.home.path().join("run"));
        command.env_remove("XDG_CACHE_HOME");
        Ok(command)
    }

    /// A VM that does not run yet, on a network where nobody is.
    fn start(&self, words: &[&str]) -> Result<Owned> {
        let mut command = self.command("vdeq")?;
        command.arg(Qemu::Installed.program()?);
        command.args(["-display", "none", "-accel", "tcg", "-m", "32", "-nodefaults", "-S"]);
        command.args(["-nic", "vde,model=virtio,sock=null://,id=net0"]).args(words);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(Owned::new(child, "the VM"))
    }

    fn vdectl(&self, words: &[&str]) -> Result<Said> {
        let output = self.command("vdectl")?.args(words).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let status = output.status.code().context("it died")?;
        Ok(Said { status, text: text(&output.stdout), complaint: text(&output.stderr) })
    }

    fn vms(&self) -> Result<Vec<Value>> {
        let said = self.vdectl(&["vms", "--json"])?;
        ensure!(said.status == 0 && said.complaint.is_empty(), "{said:?}");
        Ok(serde_json::from_str(&said.text)?)
    }

    /// Waits until this VM and its back end answer, and gives what is said of it.
    fn vm(&self, pid: u32) -> Result<Value> {
        wait_until("the VM in vms", LIMIT, || {
            let vms = self.vms()?;
            let is_whole = |vm: &Value| vm["status"].is_string() && vm["nics"].is_array();
            Ok(vms.into_iter().find(|vm| vm["pid"] == pid && vm["version"].is_string() && is_whole(vm)))
        })
    }

    fn directories(&self) -> usize {
        std::fs::read_dir(self.home.path().join("run/vdeq")).map_or(0, Iterator::count)
    }
}

fn kill(pid: u32) -> Result<()> {
    signal(pid, Signal::KILL)
}

/// The back end of a VM.
fn back_end(vm: &Value) -> Result<BackEnd> {
    BackEnd::in_directory(Path::new(vm["directory"].as_str().context("no directory")?))
}

#[test]
fn vms_of_another_user_are_named_and_found() {
    let user = User::new().unwrap();
    let none = user.vdectl(&["vms"]).unwrap();
    assert_eq!((none.status, none.text.lines().count()), (0, 1), "{none:?}");
    assert_eq!(user.vms().unwrap(), Vec::<Value>::new());
    let lonely = user.vdectl(&["list", "twin"]).unwrap();
    assert_eq!(lonely.status, 3);
    assert!(lonely.complaint.contains("there is no VM 'twin'; none runs"), "{lonely:?}");

    let twins = [(); 2].map(|()| user.start(&["-name", "twin"]).unwrap());
    let pidfile = user.home.path().join("run/pid");
    let background = ["-name", "guest=bg,process=q", "-daemonize", "-pidfile", pidfile.to_str().unwrap()];
    let mut started = user.start(&background).unwrap();
    assert!(started.wait(LIMIT).unwrap().success());
    let daemon: u32 = std::fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
    assert_ne!(daemon, started.pid());

    let of_daemon = user.vm(daemon).unwrap();
    assert_eq!((&of_daemon["name"], &of_daemon["nics"]), (&json!("bg"), &json!(["net0"])));
    for vm in &twins {
        let vm = user.vm(vm.pid()).unwrap();
        assert_eq!(
            (&vm["name"], &vm["status"], &vm["made-by"]),
            (&json!("twin"), &json!("prelaunch"), &json!("vdeq"))
        );
    }
    let table = user.vdectl(&["vms"]).unwrap().text;
    assert_eq!(table.lines().count(), 4, "{table}");
    // Root has a place of its own.
    let roots = vde_tests::vdectl::run_ok(&["vms", "--json"]).unwrap();
    assert!(!roots.contains(user.home.path().to_str().unwrap()), "{roots}");

    // By name, by process, by another word for the monitor's socket.
    let (place, directory) = of_daemon["directory"].as_str().unwrap().rsplit_once('/').unwrap();
    let socket = format!("unix:{place}/../vdeq/{directory}/qmp.sock");
    for word in ["bg", &daemon.to_string(), &twins[1].pid().to_string(), &socket] {
        let said = user.vdectl(&["list", word, "--json"]).unwrap();
        let list: Value = serde_json::from_str(&said.text).unwrap_or_else(|_| panic!("{word}: {said:?}"));
        assert_eq!(list["nics"][0]["back-end"]["id"], "net0", "{word}: {list}");
    }
    let both = user.vdectl(&["list", "twin"]).unwrap();
    assert_eq!(both.status, 3);
    for twin in &twins {
        assert!(both.complaint.contains(&format!("process {} at unix:", twin.pid())), "{both:?}");
    }
    let unknown = user.vdectl(&["list", "1"]).unwrap();
    assert_eq!(unknown.status, 3);
    assert!(unknown.complaint.contains("is process 1; name it by its QMP socket"), "{unknown:?}");
    kill(daemon).unwrap();
    drop(twins);
    wait_until("the back ends have left", LIMIT, || Ok((user.directories() == 0).then_some(()))).unwrap();
}

#[test]
fn vms_does_not_wait_for_a_monitor_in_use() {
    let user = User::new().unwrap();
    let machine = user.start(&["-name", "busy"]).unwrap();
    let vm = user.vm(machine.pid()).unwrap();
    let address: Address = vm["qmp"].as_str().unwrap().parse().unwrap();
    let client = Client::connect(&address, LIMIT).unwrap();
    // The first fills the queue up to where only the kernel's limit helps.
    for _ in 0..6 {
        let look = || {
            let begin = Instant::now();
            let vms = user.vms()?;
            ensure!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
            // The back end has half a second to answer.
            Ok((!vms[0]["nics"].is_null()).then_some(vms))
        };
        let vms = wait_until("the back end's answer", LIMIT, look).unwrap();
        let [vm] = &vms[..] else { panic!("{vms:?}") };
        assert_eq!((&vm["status"], &vm["nics"]), (&json!("busy"), &json!(["net0"])));
        assert_eq!((&vm["pid"], &vm["name"]), (&json!(machine.pid()), &json!("busy")));
    }
    drop(client);
    assert_eq!(user.vm(machine.pid()).unwrap()["status"], "prelaunch");
}

#[test]
fn vms_forgets_those_who_were_killed() {
    let user = User::new().unwrap();
    for (kills_machine, kills_back_end) in [(true, false), (false, true), (true, true)] {
        let mut machine = user.start(&[]).unwrap();
        let vm = user.vm(machine.pid()).unwrap();
        assert_eq!(vm["name"], Value::Null);
        let back_end = back_end(&vm).unwrap();
        if kills_back_end {
            back_end.kill().unwrap();
            // The VM goes on, and can be seen, with no NIC that anybody serves.
            wait_until("it has ended", LIMIT, || Ok(user.vms()?[0]["nics"].is_null().then_some(()))).unwrap();
            let goes_on = || Ok((user.vms()?[0]["status"] == "prelaunch").then_some(()));
            wait_until("it goes on", LIMIT, goes_on).unwrap();
        }
        if kills_machine {
            kill(machine.pid()).unwrap();
            machine.wait(LIMIT).unwrap();
        } else {
            machine.signal(Signal::TERM).unwrap();
            assert!(machine.wait(LIMIT).unwrap().success());
        }
        if kills_back_end {
            // Too young to be removed, but not listed any more.
            assert_eq!((user.vms().unwrap(), user.directories()), (Vec::new(), 1));
            let old = SystemTime::now() - Duration::from_secs(120);
            let directory = std::fs::File::open(vm["directory"].as_str().unwrap()).unwrap();
            directory.set_modified(old).unwrap();
        } else {
            wait_until("the back end has left", LIMIT, || Ok((user.directories() == 0).then_some(())))
                .unwrap();
        }
        assert_eq!((user.vms().unwrap(), user.directories()), (Vec::new(), 0));
    }
}
