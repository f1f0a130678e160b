//! `vdectl attach`.
//!
//! Everything that can be wrong is found out before anything is changed: names, MAC address, model, memory, place. Then come
//! the [steps], and when one fails those before it are undone. One `vdectl` at a time changes a VM.

mod memory;
mod model;
mod places;
mod serving;
mod steps;

use std::time::{Duration, Instant};

use qmp::{Client, Version};
use serde_json::{Map, Value, json};
use vde_control::{NicAdd, Protocol};

use model::Model;
use serving::Serving;
use steps::Steps;

use crate::back_end::BackEnd;
use crate::cli::Attach;
use crate::hold::Held;
use crate::interrupt::Interrupt;
use crate::locator::absolute;
use crate::names::{Names, Taken, mac};
use crate::nics::{Nics, property};
use crate::vm::Vm;
use crate::{Failure, Status, report};

/// QEMU counts the pauses between attempts to connect in milliseconds since then.
const RECONNECT_MS: Version = Version { major: 9, minor: 2, micro: 0 };
/// The oldest QEMU whose netdev stream connects again.
const STREAM_RECONNECT: Version = Version { major: 8, minor: 0, micro: 0 };
/// Before it, a vhost-user NIC with interrupt vectors crashes a QEMU that runs without KVM.
const SAFE_VECTORS: Version = Version { major: 8, minor: 0, micro: 0 };
/// Time between two looks at whether a driver is up.
const PAUSE: Duration = Duration::from_millis(20);

/// Carries it out.
pub fn run(args: &Attach) -> Result<(), Failure> {
    let mut held = Held::take(&args.vm)?;
    // Until here there is nothing to be undone.
    let interrupt = Interrupt::watch()?;
    let (names, back_end) = plug(args, &held.vm, &mut held.monitor, &interrupt)?;
    // Others may have their turn while we wait for the guest.
    drop(held);
    match args.wait {
        Some(seconds) => {
            let limit = Duration::from_secs(seconds);
            wait_for_driver(back_end, &names.netdev, &names.device, limit, &interrupt)
        }
        None => Ok(()),
    }
}

/// What is going to be plugged in, all checked.
struct Plan {
    names: Names,
    mac: String,
    model: Model,
    bus: Option<String>,
    version: Version,
    kvm: bool,
}

fn plug(
    args: &Attach,
    vm: &Vm,
    monitor: &mut Client,
    interrupt: &Interrupt,
) -> Result<(Names, BackEnd), Failure> {
    let links = args.locators.iter().map(|locator| absolute(locator)).collect::<Result<Vec<_>, _>>()?;
    let mut back_end = serving::existing(vm)?;
    let served = back_end.as_mut().map_or_else(|| Ok(Vec::new()), BackEnd::query_nics)?;
    let plan = Plan::check(args, monitor, &served)?;
    interrupt.check()?;
    let serving = Serving::of(vm, back_end, monitor)?;
    let socket = serving.socket(&plan.names.device);
    let mut steps = Steps::new(vm, monitor, serving, interrupt.clone());
    let carried_out = socket.and_then(|socket_path| {
        let nic = NicAdd {
            id: plan.names.netdev.clone(),
            socket_path,
            links: links.clone(),
            protocol: plan.model.protocol,
            queues: args.queues,
        };
        plan.carry_out(args, &nic, &mut steps)
    });
    if let Err(failure) = carried_out {
        return Err(steps.undo(failure));
    }
    let back_end = steps.keep();
    report(&format!("{} {} {}", plan.names.device, plan.mac, place(monitor, &plan.names.device)))?;
    Ok((plan.names, back_end))
}

impl Plan {
    /// Finds out whatever can be wrong.
    fn check(args: &Attach, monitor: &mut Client, served: &[vde_control::Nic]) -> Result<Self, Failure> {
        let nics = Nics::of(monitor)?;
        let names = Taken::of(monitor, &nics, served)?.choose(args.id.as_deref())?;
        let mac = mac(args.mac.as_deref(), &nics)?;
        let model = Model::find(&args.model, monitor)?;
        check_options(args, &model)?;
        let bus = match &args.bus {
            Some(bus) => Some(bus.clone()),
            None if model.is_pci => Some(places::find(monitor)?),
            None => None,
        };
        if model.is_virtio() {
            memory::check_shared(monitor)?;
        }
        let ask = |error| Failure::new(crate::back_end::sentence(&error));
        let (version, kvm) = (monitor.version().map_err(ask)?, monitor.query_kvm().map_err(ask)?);
        Ok(Self { names, mac, model, bus, version, kvm })
    }

    fn carry_out(&self, args: &Attach, nic: &NicAdd, steps: &mut Steps<'_>) -> Result<(), Failure> {
        let Names { device, netdev, chardev } = &self.names;
        steps.serve(nic)?;
        match self.model.protocol {
            Protocol::VhostUser => {
                steps.connect(nic, chardev)?;
                steps.add_netdev(netdev, self.vhost_user(args))?;
            }
            Protocol::Stream => {
                steps.add_netdev(netdev, self.stream(nic))?;
                steps.wait_connected(nic)?;
            }
        }
        steps.add_device(device, self.device(args))
    }

    fn vhost_user(&self, args: &Attach) -> Value {
        let Names { netdev, chardev, .. } = &self.names;
        json!({ "type": "vhost-user", "id": netdev, "chardev": chardev, "queues": args.queues })
    }

    fn stream(&self, nic: &NicAdd) -> Value {
        let address = json!({ "type": "unix", "path": nic.socket_path });
        let mut options = Map::new();
        options.insert("type".into(), "stream".into());
        options.insert("id".into(), self.names.netdev.as_str().into());
        options.insert("server".into(), false.into());
        options.insert("addr".into(), address);
        if self.version >= RECONNECT_MS {
            options.insert("reconnect-ms".into(), 1000.into());
        } else if self.version >= STREAM_RECONNECT {
            options.insert("reconnect".into(), 1.into());
        }
        Value::Object(options)
    }

    fn device(&self, args: &Attach) -> Value {
        let mut options = Map::new();
        let mut set = |key: &str, value: Value| options.insert(key.into(), value);
        set("driver", self.model.driver.as_str().into());
        set("id", self.names.device.as_str().into());
        set("netdev", self.names.netdev.as_str().into());
        set("mac", self.mac.as_str().into());
        if let Some(bus) = &self.bus {
            set("bus", bus.as_str().into());
        }
        if let Some(addr) = &args.addr {
            set("addr", addr.as_str().into());
        }
        if args.queues > 1 {
            set("mq", true.into());
        }
        if let Some(mtu) = args.mtu {
            set("host_mtu", mtu.into());
        }
        if self.model.is_virtio() && self.model.is_pci && !self.kvm && self.version < SAFE_VECTORS {
            set("vectors", 0.into());
        }
        Value::Object(options)
    }
}

/// What goes with virtio only.
fn check_options(args: &Attach, model: &Model) -> Result<(), Failure> {
    let usage = |sentence: String| Err(Failure { status: Status::Usage, sentence });
    let driver = &model.driver;
    match (model.is_virtio(), args.mtu) {
        (false, Some(_)) => usage(format!("--mtu is for virtio: an {driver} is told nothing")),
        (false, None) if args.queues > 1 => {
            usage(format!("--queues is for virtio: an {driver} has one pair"))
        }
        (false, None) if args.wait.is_some() => {
            usage(format!("--wait is for virtio: an {driver} does not show when its driver is up"))
        }
        _ => Ok(()),
    }
}

/// Where a device has got to: bus and address, as far as it has them.
fn place(monitor: &mut Client, device: &str) -> String {
    let path = format!("/machine/peripheral/{device}");
    let mut text = |name| match property(monitor, &path, name) {
        Ok(Some(Value::String(text))) => text,
        // It has been plugged in, whatever can be said of it now.
        _ => "-".into(),
    };
    let (bus, addr) = (text("parent_bus"), text("legacy-addr"));
    format!("{} {addr}", bus.rsplit('/').next().unwrap_or_default())
}

/// Waits until the guest's driver has taken a NIC, which the back end serves as `id` and people know by `name`.
pub fn wait_for_driver(
    mut back_end: BackEnd,
    id: &str,
    name: &str,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let begin = Instant::now();
    let pending = |why: String| {
        Err(Failure { status: Status::Pending, sentence: format!("{why}; {name} stays plugged in") })
    };
    loop {
        let nics = back_end.query_nics()?;
        let Some(nic) = nics.iter().find(|nic| nic.id == id) else {
            return Err(Failure::new(format!("{name} has been taken out meanwhile")));
        };
        // The first pair is the one that every driver uses.
        let runs = nic.rings.iter().take(2).all(|ring| ring.size > 0 && ring.enabled);
        if nic.features != 0 && runs {
            return Ok(());
        }
        if interrupt.has_come() {
            return pending("interrupted".into());
        }
        if begin.elapsed() >= limit {
            return pending(format!("the guest's driver has not come up within {} s", limit.as_secs()));
        }
        std::thread::sleep(PAUSE);
    }
}
