//! `tap://NAME[mtu=N/mac=…/up/netns=…/multi/persist]`: an interface whose cable ends in a descriptor.
//!
//! An empty name leaves the choice to the kernel. What exists already by the name is attached to, if it is a tap;
//! `ip tuntap add dev NAME mode tap user USER` makes one that a user without privileges can attach to.
//!
//! `multi` makes it one of several queues: each further `tap://NAME[multi]` adds a queue to the same interface, and the
//! kernel keeps each flow on the queue that it was last sent from. So N workers open the locator N times. All queues
//! have to be opened with the same [`OpenOptions::offloads`], which the interface has once.
//!
//! The interface goes with its last descriptor, unless `persist` says that it stays. With `netns` it is in that
//! namespace, by itself and not as half of a pair; its cable ends here.
//!
//! Of a tap, each system call moves one frame. What a program may still do to the interface meanwhile (take it down,
//! remove it) shows as an error of these calls, so there is no control descriptor.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use offload::Header;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::error::{failed, lacking};
use super::interface::{self, Interface, Settings};
use super::netlink::Netlink;
use super::sys::{self, TapSetting};
use super::{KernelError, interface_name, netns, parse_flag, parse_mac, parse_mtu};
use crate::OpenOptions;
use crate::datagram::{self, Failure};
use crate::error::OpenError;
use crate::link::{
    FRAME_MAX, Link, LinkError, Meter, PIECES_MAX, RxBuf, RxFrame, Sent, Stats, TxBuf, TxFrame,
};
use crate::locator::PathForm;
use crate::single::{self, Room, Went};
use crate::sys::BATCH;

/// What the kernel may leave to be done: checksums, and TCP to be segmented, also with ECN.
const OFFLOADS: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// The same for UDP, from Linux 6.2 on.
const UDP_OFFLOADS: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// How many frames are lost in a call, to rooms that are not there any more: more than a tap's queue holds, so that what
/// is there after them came since.
const LOST_MAX: usize = 1 << 14;

const KEYS: [&str; 6] = ["mtu", "mac", "up", "netns", "multi", "persist"];

/// An open tap.
#[derive(Debug)]
pub(crate) struct TapLink {
    queue: OwnedFd,
    /// For the eye of whoever prints the link: what the kernel chose.
    #[expect(dead_code, reason = "read by Debug")]
    name: String,
    offloads: bool,
    meter: Meter,
}

/// What a locator says.
#[derive(Debug, Default)]
struct Wish {
    name: String,
    settings: Settings,
    netns: Option<String>,
    multi: bool,
    persist: bool,
}

impl Wish {
    fn parse(text: &str) -> Result<Self, OpenError> {
        let form = PathForm::parse(text, &KEYS, None)?;
        let mut wish = Self::default();
        if !form.path.is_empty() {
            wish.name = interface_name(&form.path)?.into();
        }
        for option in &form.options {
            let value = &option.value;
            match option.key {
                "mtu" => wish.settings.mtu = Some(form.check(option, parse_mtu(value))?),
                "mac" => wish.settings.mac = Some(form.check(option, parse_mac(value))?),
                "up" => wish.settings.up = form.check(option, parse_flag("up", value))?,
                "netns" => wish.netns = Some(value.clone()),
                "multi" => wish.multi = form.check(option, parse_flag("multi", value))?,
                _ => wish.persist = form.check(option, parse_flag("persist", value))?,
            }
        }
        Ok(wish)
    }
}

impl TapLink {
    /// Makes a tap or attaches to one, as the part of the locator behind `tap://` says.
    pub(crate) fn open(argument: &str, options: &OpenOptions) -> Result<Self, OpenError> {
        Ok(Self::open_wish(Wish::parse(argument)?, options.offloads)?)
    }

    fn open_wish(wish: Wish, offloads: bool) -> Result<Self, KernelError> {
        let netns = wish.netns.as_deref().map(netns::find).transpose()?;
        let remedy = "that needs root or CAP_SYS_ADMIN";
        let what = format!("enter the network namespace {:?}", wish.netns.as_deref().unwrap_or_default());
        netns::inside(netns.as_ref().map(AsFd::as_fd), move || Ok(Self::open_here(&wish, offloads)))
            .map_err(lacking(what, remedy))?
    }

    /// Opens it in the namespace of this thread.
    fn open_here(wish: &Wish, offloads: bool) -> Result<Self, KernelError> {
        let (queue, name) = attach(wish)?;
        let fd = queue.as_fd();
        let header_len = c_int::try_from(Header::LEN).unwrap_or_default();
        let mask = if offloads { OFFLOADS } else { 0 };
        for setting in
            [TapSetting::HeaderLen(header_len), TapSetting::HeaderLittle(1), TapSetting::Offloads(mask)]
        {
            sys::tap_set(fd, setting).map_err(failed(format!("set up the tap {name:?}")))?;
        }
        if offloads && let Err(error) = sys::tap_set(fd, TapSetting::Offloads(OFFLOADS | UDP_OFFLOADS)) {
            log::debug!("this kernel segments UDP for the tap {name} by itself: {error}");
        }
        configure(&name, &wish.settings)?;
        // Last, so that nothing stays when something failed.
        if wish.persist {
            sys::tap_set(fd, TapSetting::Persist(true))
                .map_err(failed(format!("make the tap {name:?} stay")))?;
        }
        log::debug!("tap {name} is open");
        Ok(Self { queue, name, offloads, meter: Meter::default() })
    }

    fn write(&self, frame: &TxFrame<'_>) -> Result<(), Failure> {
        let header = frame.header.encode(0);
        let mut pieces = Vec::with_capacity(1 + frame.bufs.len());
        pieces.push(TxBuf::new(&header));
        pieces.extend_from_slice(frame.bufs);
        match sys::write_frame(self.queue.as_fd(), &pieces) {
            Ok(_) => Ok(()),
            // A header that this kernel does not know (UDP before Linux 6.2) or does not like.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !frame.header.is_done() => {
                self.write_complete(frame)
            }
            Err(error) => Err(failure(error)),
        }
    }

    /// Does here what a frame's header asks for, and writes what it becomes.
    fn write_complete(&self, frame: &TxFrame<'_>) -> Result<(), Failure> {
        let header = Header::NONE.encode(0);
        let mut last = None;
        let sent = single::send(&[*frame], FRAME_MAX, &mut Room::default(), &Meter::default(), |bytes| {
            let pieces = [TxBuf::new(&header), TxBuf::new(bytes)];
            Ok(match sys::write_frame(self.queue.as_fd(), &pieces) {
                Ok(_) => Went::Sent,
                Err(error) => {
                    last = Some(error);
                    Went::Lost
                }
            })
        });
        match (sent.map_err(Failure::Link)?.dropped, last) {
            (0, _) => Ok(()),
            (_, Some(error)) => Err(failure(error)),
            (_, None) => Err(Failure::Frame),
        }
    }

    /// Receives frames as long as there are some, up to a batch. Fewer mean that there are no more, as callers rely on.
    fn read(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, Failure> {
        let (mut done, mut lost) = (0, 0);
        while let Some(frame) = frames.get_mut(done).filter(|_| done < BATCH) {
            match self.read_one(frame) {
                Ok(()) => done += 1,
                Err(Failure::Interrupted | Failure::Frame) if lost < LOST_MAX => lost += 1,
                Err(_) if done > 0 => break,
                Err(failure) => return Err(failure),
            }
        }
        Ok(done)
    }

    fn read_one(&self, frame: &mut RxFrame<'_>) -> Result<(), Failure> {
        let (mut header, mut beyond) = ([0; Header::LEN], [0; 1]);
        let (got, room) = {
            let mut pieces = Vec::with_capacity(2 + frame.bufs.len().min(PIECES_MAX));
            pieces.push(RxBuf::new(&mut header));
            frame.lend_again(&mut pieces);
            pieces.truncate(PIECES_MAX - 1);
            let room: usize = pieces.iter().map(RxBuf::len).sum();
            // The kernel does not say how long a frame was that it cut; one more byte does.
            pieces.push(RxBuf::new(&mut beyond));
            (sys::read_frame(self.queue.as_fd(), &pieces)?, room)
        };
        let header = Header::decode(&header);
        if !self.offloads && !header.is_done() {
            // Another queue of the interface was opened with offloads.
            self.meter.received(0, 0, 1);
            return Err(Failure::Frame);
        }
        frame.header = if self.offloads { header } else { Header::NONE };
        frame.len = if got > room { usize::MAX } else { got.saturating_sub(Header::LEN) };
        Ok(())
    }
}

/// What a failed write means.
fn failure(error: io::Error) -> Failure {
    match Errno::from_io_error(&error) {
        // There is no memory for the frame, which a tap is always ready to take.
        Some(Errno::NOMEM | Errno::NOBUFS) => Failure::Frame,
        _ => error.into(),
    }
}

/// Opens a descriptor and makes it the end of the interface; returns the interface's name too.
fn attach(wish: &Wish) -> Result<(OwnedFd, String), KernelError> {
    let name = &wish.name;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let queue = open("/dev/net/tun", flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => KernelError::NoTun { source: errno.into() },
        _ => lacking("open /dev/net/tun", "give its group or everybody access to it")(errno.into()),
    })?;
    let multi = if wish.multi { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | multi;
    let name = sys::tap_attach(queue.as_fd(), name, flags).map_err(|error| refused(wish, error))?;
    Ok((queue, name))
}

/// Why the kernel did not attach.
fn refused(wish: &Wish, error: io::Error) -> KernelError {
    let (name, multi) = (wish.name.clone(), wish.multi);
    match error.raw_os_error() {
        Some(libc::EINVAL) => KernelError::NotTap { name, multi },
        Some(libc::EBUSY) => KernelError::TapInUse { name },
        Some(libc::E2BIG) => {
            KernelError::System { what: format!("add a queue to the tap {name:?}"), source: error }
        }
        _ => {
            let exists = Netlink::route()
                .and_then(|route| Interface::find(&route, &name))
                .is_ok_and(|it| it.is_some());
            if exists {
                let remedy = format!(
                    "become the user that it was made for: ip tuntap add dev {name} mode tap user USER"
                );
                lacking(format!("use the tap {name:?}"), remedy)(error)
            } else {
                let remedy = "that needs root or CAP_NET_ADMIN; or have root make one for you: ip tuntap add dev NAME \
                              mode tap user USER";
                lacking(format!("make the tap {name:?}"), remedy)(error)
            }
        }
    }
}

/// Sets what the locator says about the interface.
fn configure(name: &str, settings: &Settings) -> Result<(), KernelError> {
    let Settings { mtu, mac, up } = settings;
    if mtu.is_none() && mac.is_none() && !up {
        return Ok(());
    }
    let what = || failed(format!("configure the tap {name:?}"));
    let route = Netlink::route().map_err(what())?;
    let gone = || io::Error::from_raw_os_error(libc::ENODEV);
    let it = Interface::find(&route, name).and_then(|it| it.ok_or_else(gone)).map_err(what())?;
    interface::change(&route, it.index, settings).map_err(what())
}

impl Link for TapLink {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What the kernel sends is bounded by the interface's MTU; what it takes is not.
    fn max_frame(&self) -> usize {
        FRAME_MAX
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        let mut done = Sent::default();
        while let Some(frame) = frames.get(done.taken) {
            let result =
                if datagram::is_frame(frame, FRAME_MAX) { self.write(frame) } else { Err(Failure::Frame) };
            match result {
                Ok(()) => self.meter.sent(1, frame.len(), 0),
                Err(Failure::Again) => break,
                Err(Failure::Interrupted) => continue,
                Err(Failure::Frame) => {
                    done.dropped += 1;
                    self.meter.sent(0, 0, 1);
                }
                // Told by the next call.
                Err(Failure::Link(_)) if done.taken > 0 => break,
                Err(Failure::Link(error)) => return Err(error),
            }
            done.taken += 1;
        }
        Ok(done)
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        datagram::recv_by(frames, &self.meter, |rest| self.read(rest))
    }

    fn offloads(&self) -> bool {
        self.offloads
    }

    fn stats(&self) -> Stats {
        self.meter.stats()
    }

    fn check_control(&self) -> Result<(), LinkError> {
        Ok(())
    }
}
