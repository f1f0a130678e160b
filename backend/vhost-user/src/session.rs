//! What the front end configured: features, memory, rings.
//!
//! # Theory of operation
//! A ring is *started* from the moment its kick descriptor arrives until GET_VRING_BASE, and *runs* while the device has
//! it. The two differ inside [`Session::handle`], where a request that changes what rings rest on (memory, features,
//! addresses) takes them from the device first and gives them back afterwards, at the available index they had
//! reached; and while guest memory does not cover the ring. QEMU depends on none of that order: it enables rings before it sets features, and sets call descriptors
//! after it started the ring.
//!
//! While a guest is migrated the front end gives us a dirty log, sets `VHOST_F_LOG_ALL`, and gives the rings' addresses once
//! more with the flag that asks to log the rings themselves. All of that only changes what rings rest on, so they are
//! restarted with the log and know nothing of migration otherwise; the log stays when the memory table changes.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use vhost::vhost_user::message::{
    VhostUserLog, VhostUserMemory, VhostUserMemoryRegion, VhostUserProtocolFeatures,
    VhostUserSingleMemoryRegion, VhostUserU64, VhostUserVirtioFeatures, VhostUserVringAddr,
    VhostUserVringState,
};
use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::ByteValued;
use vring::mem::MAX_REGIONS;
use vring::{DirtyLog, Layout, Memory, RegionSpec, Ring};

use crate::conn::Error;
use crate::message::{self, Answer, Message, Stops};
use crate::{Device, StartedRing};

/// In the body of SET_VRING_KICK, _CALL and _ERR (vhost-user, "Front-end message types"): no descriptor comes along.
const NOFD: u64 = 1 << 8;
/// The same body's bits that are the ring's index.
const RING_INDEX: u64 = 0xff;

/// In the flags of SET_VRING_ADDR: writes to the ring are logged too.
const VRING_F_LOG: u32 = 1;
/// Smallest MTU that a guest may be told (virtio 1.2 § 5.1.4.1); the largest is what 16 bits hold.
const MTU_MIN: u64 = 68;
/// So many refusals of one connection are warned of. A front end can have as many as it likes, one after the other.
const WARNINGS: u32 = 16;

/// A request that we cannot carry out; the text says why and goes into the log.
#[derive(Debug)]
pub struct Refused(pub String);

fn refuse<T>(text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(text.into()))
}

fn chain_text(error: &dyn std::error::Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {}", chain_text(source)),
    }
}

#[derive(Debug, Default)]
struct Vring {
    size: u16,
    addr: Option<(u64, u64, u64)>,
    /// Writes to the ring itself are logged.
    log: bool,
    base: u16,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    enabled: bool,
    running: bool,
}

/// State of one connection.
#[derive(Debug)]
pub struct Session {
    name: String,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    memory: Arc<Memory>,
    log: Option<Arc<DirtyLog>>,
    rings: Vec<Vring>,
    /// Requests that were answered with a no.
    refusals: u32,
}

impl Session {
    pub fn new(name: &str, device: &dyn Device) -> Self {
        Self {
            name: name.into(),
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            memory: Arc::default(),
            log: None,
            refusals: 0,
            rings: (0..device.ring_count()).map(|_| Vring::default()).collect(),
        }
    }

    /// What the driver acknowledged, without what the front end said for itself.
    pub fn features(&self) -> u64 {
        self.features & !log_all()
    }

    /// Carries out one request and returns the body of the reply, if it gets one.
    pub fn handle(&mut self, device: &mut dyn Device, message: Message) -> Result<Answer, Error> {
        let (request, need_reply) = (message.request, message.need_reply);
        let acknowledge = need_reply && self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);
        let Some(entry) = message::find(request) else {
            log::log!(self.refuses(), "{}: unknown vhost-user request {request}", self.name);
            return match acknowledge {
                true => Ok(Some(ack(false))),
                false => Err(Error::Protocol(format!("unknown request {request}"))),
            };
        };
        log::debug!("{}: {:?}, {} descriptors", self.name, entry.request, message.fds.len());
        let result = message::check(entry, &message).and_then(|()| {
            match entry.stops {
                Stops::None => {}
                Stops::Ring => self.suspend(device, ring_of(&message)),
                Stops::All => (0..self.rings.len()).for_each(|i| self.suspend(device, i)),
            }
            let about = ring_of(&message);
            let answer = (entry.run)(self, device, message);
            let failed = self.resume_all(device);
            match failed {
                // The front end just said how this ring is to run, and it cannot.
                Some((index, why)) if matches!(entry.stops, Stops::Ring) && index == about => {
                    if let Some(ring) = self.rings.get_mut(index) {
                        ring.kick = None;
                    }
                    refuse(format!("ring {index}: {why}"))
                }
                // A region that changes its shape is taken away and then given again, and the ring with it.
                Some((index, why)) => {
                    log::info!("{}: ring {index} rests: {why}", self.name);
                    answer
                }
                None => answer,
            }
        });
        match result {
            Ok(Some(answer)) => Ok(Some(answer)),
            Ok(None) => Ok(acknowledge.then(|| ack(true))),
            Err(Refused(why)) if acknowledge => {
                log::log!(self.refuses(), "{}: {:?} refused: {why}", self.name, entry.request);
                Ok(Some(ack(false)))
            }
            Err(Refused(why)) => Err(Error::Protocol(format!("{:?}: {why}", entry.request))),
        }
    }

    /// Counts a refusal; returns the level at which it is told.
    fn refuses(&mut self) -> log::Level {
        self.refusals = self.refusals.saturating_add(1);
        if self.refusals <= WARNINGS { log::Level::Warn } else { log::Level::Debug }
    }

    /// Takes all rings from the device, for good.
    pub fn stop_all(&mut self, device: &mut dyn Device) {
        for index in 0..self.rings.len() {
            self.suspend(device, index);
        }
    }

    /// Takes a ring from the device, if it runs there.
    fn suspend(&mut self, device: &mut dyn Device, index: usize) {
        let Some(ring) = self.rings.get_mut(index).filter(|r| r.running) else { return };
        let Ok(number) = u16::try_from(index) else { return };
        ring.base = device.stop_ring(number);
        ring.running = false;
    }

    /// Gives the device every ring that is started and does not run. Returns the last that cannot run, and why.
    fn resume_all(&mut self, device: &mut dyn Device) -> Option<(usize, String)> {
        let mut failed = None;
        for index in 0..self.rings.len() {
            if let Err(Refused(why)) = self.resume(device, index) {
                failed = Some((index, why));
            }
        }
        failed
    }

    fn resume(&mut self, device: &mut dyn Device, index: usize) -> Result<(), Refused> {
        let packed = self.packed();
        let Some(ring) = self.rings.get_mut(index).filter(|r| !r.running) else { return Ok(()) };
        let (Some(kick), Ok(number)) = (&ring.kick, u16::try_from(index)) else { return Ok(()) };
        let Some((desc, avail, used)) = ring.addr else { return refuse("it has no address") };
        let event_idx = self.features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let layout = Layout { packed, size: ring.size, desc, avail, used, next_avail: ring.base, event_idx };
        let mut started = Ring::new(self.memory.clone(), &layout, device.direction(number))
            .map_err(|e| Refused(e.to_string()))?;
        if self.features & log_all() != 0
            && let Some(log) = &self.log
        {
            started = started.with_log(log.clone(), ring.log);
        }
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(|e| Refused(e.to_string()));
        let started = StartedRing {
            ring: started,
            kick: copy(kick)?,
            call: ring.call.as_ref().map(copy).transpose()?,
            enabled: ring.enabled,
            features: self.features,
        };
        device.start_ring(number, started);
        ring.running = true;
        Ok(())
    }

    fn packed(&self) -> bool {
        self.features & 1 << VIRTIO_F_RING_PACKED != 0
    }

    fn ring(&mut self, index: u64) -> Result<(u16, &mut Vring), Refused> {
        let found = usize::try_from(index).ok().and_then(|i| self.rings.get_mut(i));
        match (u16::try_from(index), found) {
            (Ok(number), Some(ring)) => Ok((number, ring)),
            _ => refuse(format!("there is no ring {index}")),
        }
    }

    pub(crate) fn ignore(&mut self, _: &mut dyn Device, _: Message) -> Result<Answer, Refused> {
        Ok(None)
    }

    pub(crate) fn get_features(&mut self, device: &mut dyn Device, _: Message) -> Result<Answer, Refused> {
        let bits = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | log_all();
        Ok(Some(u64_body(device.features() | bits)))
    }

    pub(crate) fn set_features(
        &mut self,
        device: &mut dyn Device,
        message: Message,
    ) -> Result<Answer, Refused> {
        let asked = message.get::<VhostUserU64>()?.value;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let extra = asked & !(device.features() | protocol | log_all());
        if extra != 0 {
            return refuse(format!("feature bits {extra:#x} were not offered"));
        }
        self.features = asked & !protocol;
        if asked & protocol == 0 {
            // Such a front end has no SET_VRING_ENABLE: its rings are enabled from the start.
            for (number, ring) in (0..).zip(&mut self.rings) {
                ring.enabled = true;
                device.enable_ring(number, true);
            }
        }
        Ok(None)
    }

    pub(crate) fn get_protocol_features(
        &mut self,
        _: &mut dyn Device,
        _: Message,
    ) -> Result<Answer, Refused> {
        Ok(Some(u64_body(offered().bits())))
    }

    pub(crate) fn set_protocol_features(
        &mut self,
        _: &mut dyn Device,
        message: Message,
    ) -> Result<Answer, Refused> {
        let asked = message.get::<VhostUserU64>()?.value;
        match VhostUserProtocolFeatures::from_bits(asked).filter(|bits| offered().contains(*bits)) {
            None => refuse(format!("not all of protocol feature bits {asked:#x} were offered")),
            Some(bits) => {
                self.protocol = bits;
                Ok(None)
            }
        }
    }

    pub(crate) fn get_queue_num(&mut self, device: &mut dyn Device, _: Message) -> Result<Answer, Refused> {
        Ok(Some(u64_body(device.queue_num().into())))
    }

    pub(crate) fn set_mem_table(&mut self, _: &mut dyn Device, message: Message) -> Result<Answer, Refused> {
        let count = usize::try_from(message.get::<VhostUserMemory>()?.num_regions).unwrap_or(usize::MAX);
        let size = size_of::<VhostUserMemoryRegion>();
        let list = message.body.get(size_of::<VhostUserMemory>()..).unwrap_or_default();
        if count != message.fds.len() || count.checked_mul(size) != Some(list.len()) {
            return refuse(format!("{count} regions, {} descriptors", message.fds.len()));
        }
        let specs = list.chunks_exact(size).zip(message.fds).map(|(bytes, fd)| {
            let mut region = VhostUserMemoryRegion::default();
            region.as_mut_slice().copy_from_slice(bytes);
            spec(&region, fd)
        });
        self.memory = Arc::new(Memory::new(specs.collect()).map_err(|e| Refused(chain_text(&e)))?);
        Ok(None)
    }

    pub(crate) fn get_max_mem_slots(&mut self, _: &mut dyn Device, _: Message) -> Result<Answer, Refused> {
        Ok(Some(u64_body(MAX_REGIONS as u64)))
    }

    /// QEMU 7.2 says this of each region once for each queue pair, and likewise of what goes: what is there as
    /// described stays, and what is not there need not go.
    pub(crate) fn add_mem_reg(
        &mut self,
        _: &mut dyn Device,
        mut message: Message,
    ) -> Result<Answer, Refused> {
        let region = message.get::<VhostUserSingleMemoryRegion>()?;
        let Some(fd) = message.fds.pop() else { return refuse("no descriptor") };
        if self.memory.has_region(region.guest_phys_addr, region.user_addr, region.memory_size) {
            return Ok(None);
        }
        let memory = self.memory.as_ref().clone().with_region(spec(&region, fd));
        self.memory = Arc::new(memory.map_err(|e| Refused(chain_text(&e)))?);
        Ok(None)
    }

    pub(crate) fn rem_mem_reg(&mut self, _: &mut dyn Device, message: Message) -> Result<Answer, Refused> {
        let region = message.get::<VhostUserSingleMemoryRegion>()?;
        let (guest, user, size) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        if !self.memory.overlaps(guest, size) {
            return Ok(None);
        }
        let memory = self.memory.as_ref().clone().without_region(guest, user, size);
        self.memory = Arc::new(memory.map_err(|e| Refused(chain_text(&e)))?);
        Ok(None)
    }

    pub(crate) fn set_log_base(
        &mut self,
        _: &mut dyn Device,
        mut message: Message,
    ) -> Result<Answer, Refused> {
        let VhostUserLog { mmap_size, mmap_offset } = message.get()?;
        let Some(fd) = message.fds.pop() else { return refuse("no descriptor") };
        let log = DirtyLog::new(fd.into(), mmap_size, mmap_offset);
        self.log = Some(Arc::new(log.map_err(|e| Refused(chain_text(&e)))?));
        // Answered whether an acknowledgement was asked for or not. The body is not specified: QEMU reads none, the `vhost`
        // crate wants its own back.
        Ok(Some(message.body))
    }

    /// Everything that the driver brought about goes; what belongs to the connection stays.
    pub(crate) fn reset_device(&mut self, _: &mut dyn Device, _: Message) -> Result<Answer, Refused> {
        self.features = 0;
        for ring in &mut self.rings {
            *ring = Vring { call: ring.call.take(), ..Vring::default() };
        }
        Ok(None)
    }

    pub(crate) fn send_rarp(&mut self, device: &mut dyn Device, message: Message) -> Result<Answer, Refused> {
        let bytes = message.get::<VhostUserU64>()?.value.to_ne_bytes();
        let [a, b, c, d, e, f, _, _] = bytes;
        log::debug!("{}: {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} came here", self.name);
        device.announce([a, b, c, d, e, f]);
        Ok(None)
    }

    /// The guest reads its MTU from the front end; that no frame is too long is between it and its networks.
    pub(crate) fn net_set_mtu(&mut self, _: &mut dyn Device, message: Message) -> Result<Answer, Refused> {
        let mtu = message.get::<VhostUserU64>()?.value;
        if (MTU_MIN..=u64::from(u16::MAX)).contains(&mtu) {
            Ok(None)
        } else {
            refuse(format!("an MTU of {mtu} is not between {MTU_MIN} and {}", u16::MAX))
        }
    }

    pub(crate) fn set_vring_num(&mut self, _: &mut dyn Device, message: Message) -> Result<Answer, Refused> {
        let state = message.get::<VhostUserVringState>()?;
        let size = u16::try_from(state.num).ok().filter(|n| n.is_power_of_two() && *n <= 32768);
        let Some(size) = size else {
            return refuse(format!("ring size {} is not a power of two up to 32768", { state.num }));
        };
        self.ring(state.index.into())?.1.size = size;
        Ok(None)
    }

    pub(crate) fn set_vring_addr(&mut self, _: &mut dyn Device, message: Message) -> Result<Answer, Refused> {
        let addr = message.get::<VhostUserVringAddr>()?;
        let (index, flags) = (addr.index, addr.flags);
        if flags & !VRING_F_LOG != 0 {
            return refuse(format!("flags {flags:#x} have no meaning"));
        }
        let (_, ring) = self.ring(index.into())?;
        ring.addr = Some((addr.descriptor, addr.available, addr.used));
        // The address in the log is not needed: it is the ring's own, known from the memory table, and of a packed ring
        // QEMU names another part than the descriptors, which we write to.
        ring.log = flags & VRING_F_LOG != 0;
        Ok(None)
    }

    /// Of a packed ring the upper half is where used descriptors go. That is the same place, since all chains that we
    /// took are used when a ring is stopped, and DPDK's virtio-user leaves it 0.
    pub(crate) fn set_vring_base(&mut self, _: &mut dyn Device, message: Message) -> Result<Answer, Refused> {
        let state = message.get::<VhostUserVringState>()?;
        let [low, high] = halves(state.num);
        if high != 0 && !self.packed() {
            return refuse(format!("available index {} is not a 16-bit one", { state.num }));
        }
        self.ring(state.index.into())?.1.base = low;
        Ok(None)
    }

    pub(crate) fn get_vring_base(&mut self, _: &mut dyn Device, message: Message) -> Result<Answer, Refused> {
        let state = message.get::<VhostUserVringState>()?;
        let packed = self.packed();
        let (_, ring) = self.ring(state.index.into())?;
        ring.kick = None;
        ring.call = None;
        let base = u32::from(ring.base);
        let base = if packed { base | base << 16 } else { base };
        Ok(Some(VhostUserVringState::new(state.index, base).as_slice().to_vec()))
    }

    pub(crate) fn set_vring_kick(&mut self, _: &mut dyn Device, message: Message) -> Result<Answer, Refused> {
        let (index, fd) = ring_fd(message)?;
        let Some(fd) = fd else { return refuse("a ring without kick descriptor is not supported") };
        self.ring(index)?.1.kick = Some(fd);
        Ok(None)
    }

    pub(crate) fn set_vring_call(
        &mut self,
        device: &mut dyn Device,
        message: Message,
    ) -> Result<Answer, Refused> {
        let (index, fd) = ring_fd(message)?;
        let (number, ring) = self.ring(index)?;
        ring.call = fd;
        if ring.running {
            let copy = ring.call.as_ref().map(OwnedFd::try_clone).transpose();
            device.set_call(number, copy.map_err(|e| Refused(e.to_string()))?);
        }
        Ok(None)
    }

    /// Errors of a ring are counted and logged here; nobody listens on these descriptors.
    pub(crate) fn set_vring_err(&mut self, _: &mut dyn Device, message: Message) -> Result<Answer, Refused> {
        let (index, _) = ring_fd(message)?;
        self.ring(index).map(|_| None)
    }

    pub(crate) fn set_vring_enable(
        &mut self,
        device: &mut dyn Device,
        message: Message,
    ) -> Result<Answer, Refused> {
        let state = message.get::<VhostUserVringState>()?;
        let (number, ring) = self.ring(state.index.into())?;
        ring.enabled = state.num != 0;
        if ring.running {
            device.enable_ring(number, ring.enabled);
        }
        Ok(None)
    }
}

/// What we offer.
fn offered() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::RARP
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::MTU
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
}

/// The feature bit by which the front end, not the driver, says that writes to guest memory are to be logged.
const fn log_all() -> u64 {
    VhostUserVirtioFeatures::LOG_ALL.bits()
}

/// The lower and the upper half.
fn halves(number: u32) -> [u16; 2] {
    let [a, b, c, d] = number.to_le_bytes();
    [u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])]
}

/// 0 is success (vhost-user, REPLY_ACK).
fn ack(done: bool) -> Vec<u8> {
    u64_body(u64::from(!done))
}

fn u64_body(value: u64) -> Vec<u8> {
    VhostUserU64 { value }.as_slice().to_vec()
}

/// Index of the ring that a [`Stops::Ring`] request is about: its body begins with it, for kicks in the low byte.
fn ring_of(message: &Message) -> usize {
    let kick = message.body.len() == size_of::<VhostUserU64>() && message::is_ring_fd(message.request);
    let index = match kick {
        true => message.get::<VhostUserU64>().map(|b| b.value & RING_INDEX),
        false => message.get::<VhostUserVringState>().map(|s| s.index.into()),
    };
    index.ok().and_then(|i| usize::try_from(i).ok()).unwrap_or(usize::MAX)
}

/// Ring index and descriptor of SET_VRING_KICK, _CALL and _ERR.
fn ring_fd(mut message: Message) -> Result<(u64, Option<OwnedFd>), Refused> {
    let value = message.get::<VhostUserU64>()?.value;
    let fd = message.fds.pop();
    if fd.is_some() == (value & NOFD != 0) {
        return refuse("descriptor and flag disagree");
    }
    if let Some(fd) = &fd {
        // The front end may pass anything; a worker that reads or writes it must never block, which O_NONBLOCK ensures
        // for whatever can be waited for, and for nothing else.
        let kind = FileType::from_raw_mode(fstat(fd).map_err(|e| Refused(e.to_string()))?.st_mode);
        if !matches!(kind, FileType::Fifo | FileType::Socket | FileType::Unknown) {
            return refuse("the descriptor is no eventfd, pipe or socket");
        }
        let flags = fcntl_getfl(fd).map_err(|e| Refused(e.to_string()))?;
        fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(|e| Refused(e.to_string()))?;
    }
    Ok((value & RING_INDEX, fd))
}

fn spec(region: &VhostUserMemoryRegion, fd: OwnedFd) -> RegionSpec {
    RegionSpec {
        guest_addr: region.guest_phys_addr,
        size: region.memory_size,
        user_addr: region.user_addr,
        offset: region.mmap_offset,
        file: fd.into(),
    }
}
