//! Between `vdectl` and a real monitor: passes everything on, but for one command.
//!
//! A real QEMU cannot be made to fail at a step of one's choice. Connections are taken one after another, as QEMU does. It listens
//! on TCP, where nobody can tell by whom: this process is no VM.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use vde_tests::BackEnd;

use crate::rig::{back_end, process_with};

/// What happens to the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// It is answered with an error, and QEMU never sees it.
    Refused,
    /// The connection ends instead.
    Vanished,
    /// QEMU carries it out, and the connection ends instead of the answer.
    Lost,
    /// This process, QEMU, is killed instead.
    Killed(u32),
    /// Whoever gave it gets a Ctrl-C, and it is carried out.
    Interrupted,
    /// What serves the back end is killed, and it is carried out.
    Unserved,
}

/// Which command, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// The first of this name.
    Named(&'static str),
    /// The one of this number.
    Numbered(usize),
}

#[derive(Debug, Default)]
struct Plan {
    fault: Option<(When, How)>,
    seen: Vec<String>,
}

/// A monitor that fails once.
pub struct Proxy {
    /// As `vdectl` takes it.
    pub address: String,
    plan: Arc<Mutex<Plan>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens for the monitor on `real`.
    pub fn start(real: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("tcp:{}", listener.local_addr().unwrap());
        let (plan, over) = (Arc::<Mutex<Plan>>::default(), Arc::new(AtomicBool::new(false)));
        let (real, its_plan, its_over) = (real.to_owned(), Arc::clone(&plan), Arc::clone(&over));
        let its_address = address.clone();
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if its_over.load(Ordering::Relaxed) {
                    break;
                }
                // Who only looks whether somebody listens has gone already; a QEMU that was killed takes nobody.
                if let (Ok(client), Ok(qemu)) = (client, UnixStream::connect(&real)) {
                    talk(&client, &qemu, &its_plan, &its_address).ok();
                }
            }
        });
        Self { address, plan, over, thread: Some(thread) }
    }

    /// From here on this fault waits, and commands are counted from 0.
    pub fn fail(&self, when: When, how: How) {
        *self.plan.lock().unwrap() = Plan { fault: Some((when, how)), seen: Vec::new() };
    }

    /// The commands since then, by name; whether the fault has come.
    pub fn seen(&self) -> (Vec<String>, bool) {
        let plan = self.plan.lock().unwrap();
        (plan.seen.clone(), plan.fault.is_none())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        TcpStream::connect(self.address.trim_start_matches("tcp:")).ok();
        self.thread.take().map(JoinHandle::join);
    }
}

/// One client's time. However it ends, so does that on the monitor, or nobody else would ever be greeted there.
fn talk(client: &TcpStream, qemu: &UnixStream, plan: &Mutex<Plan>, address: &str) -> std::io::Result<()> {
    // Short lines would wait for the other side to say that it has the one before.
    client.set_nodelay(true)?;
    let lose = Arc::new(AtomicBool::new(false));
    let back = (qemu.try_clone()?, client.try_clone()?, Arc::clone(&lose));
    let answers = std::thread::spawn(move || pass_back(back.0, back.1, &back.2));
    // Who goes without having read everything, an event for instance, resets the connection.
    let passed = pass_on(client, qemu, (plan, address), &lose);
    // The other thread ends with them.
    client.shutdown(Shutdown::Both).ok();
    qemu.shutdown(Shutdown::Both).ok();
    answers.join().ok();
    passed
}

/// Commands, until the client goes or one is not to be passed on.
fn pass_on(
    client: &TcpStream,
    qemu: &UnixStream,
    (plan, address): (&Mutex<Plan>, &str),
    lose: &AtomicBool,
) -> std::io::Result<()> {
    for line in BufReader::new(client).lines() {
        let line = line?;
        let command: Value = serde_json::from_str(&line)?;
        let name = command["execute"].as_str().unwrap_or_default().to_owned();
        match next(plan, &name) {
            None => {}
            Some(How::Refused) => {
                let error = json!({ "class": "GenericError", "desc": format!("{name} is refused") });
                say(client, &json!({ "error": error, "id": command["id"] }).to_string())?;
                continue;
            }
            Some(How::Vanished) => break,
            Some(How::Lost) => lose.store(true, Ordering::SeqCst),
            Some(How::Killed(pid)) => {
                signal(pid, Signal::KILL)?;
                break;
            }
            // Nobody else has the address among its words.
            Some(How::Interrupted) => signal(process_with(address).unwrap(), Signal::INT)?,
            Some(How::Unserved) => kill_worker(address),
        }
        say(qemu, &line)?;
    }
    Ok(())
}

/// Kills what serves the back end for the VM whose monitor has this address.
pub fn kill_worker(address: &str) {
    let (_, directory) = back_end(address).unwrap();
    BackEnd::in_directory(&directory).unwrap().kill_worker().unwrap();
}

/// A line at once: two threads write to the client.
fn say(mut to: impl Write, line: &str) -> std::io::Result<()> {
    to.write_all(format!("{line}\n").as_bytes())
}

fn signal(pid: u32, signal: Signal) -> std::io::Result<()> {
    Ok(kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal)?)
}

/// Notes a command, and says whether it is the one.
fn next(plan: &Mutex<Plan>, name: &str) -> Option<How> {
    let mut plan = plan.lock().unwrap();
    let number = plan.seen.len();
    plan.seen.push(name.to_owned());
    let is_it = match plan.fault.as_ref()?.0 {
        When::Named(wanted) => wanted == name,
        When::Numbered(wanted) => wanted == number,
    };
    if is_it { plan.fault.take().map(|(_, how)| how) } else { None }
}

/// Answers and events; ends both connections instead of the next answer once `lose` is set.
fn pass_back(qemu: UnixStream, client: TcpStream, lose: &AtomicBool) {
    for line in BufReader::new(&qemu).lines().map_while(Result::ok) {
        if lose.load(Ordering::SeqCst) && line.contains("\"return\"") {
            break;
        }
        if say(&client, &line).is_err() {
            break;
        }
    }
    client.shutdown(Shutdown::Both).ok();
    qemu.shutdown(Shutdown::Both).ok();
}
