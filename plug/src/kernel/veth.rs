//! `veth://NAME[peer=NAME/netns=…/mtu=N/mac=…/up/persist]`: a cable into a network namespace, or any interface there is.
//!
//! With `peer` or `netns`, a pair of interfaces is made: NAME here, as the end of the cable that is ours, and the peer
//! in the namespace (the number of a process, a name of `ip netns`, or a path whose slashes are quoted), where it
//! is never seen to arrive. The peer's name is by default NAME too. `mtu` is that of both ends, `mac` the peer's address,
//! and `up` brings the peer up; ours always is, and this machine has no part in what arrives there (no ARP, no IPv6).
//!
//! The pair is removed with the link, unless `persist` says that it stays. A process that was killed leaves its pair
//! behind; whoever then opens the same locator finds NAME with that very peer, and takes it over (see [`Claim`]).
//!
//! Without `peer` and `netns`, NAME is an interface that exists: the end of a veth, a bridge's port, a network card. It
//! is used as it is, with `mtu` and `up` applied, and left when the link ends.
//!
//! An interface that is down loses the frames sent to it and comes up again; the link ends when it is removed or
//! moved to another namespace. rtnetlink tells of that, so its socket is the control descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

use super::error::{failed, lacking};
use super::interface::{self, Interface, Peer, Settings};
use super::netlink::{self, Netlink};
use super::packet::{self, Completer};
use super::{KernelError, features, interface_name, netns, parse_flag, parse_mac, parse_mtu, sys};
use crate::OpenOptions;
use crate::datagram::{self, Framing};
use crate::error::OpenError;
use crate::link::{Link, LinkError, Meter, RxFrame, Sent, Stats, TxFrame};
use crate::locator::PathForm;

const KEYS: [&str; 6] = ["peer", "netns", "mtu", "mac", "up", "persist"];

/// An open end of an interface.
#[derive(Debug)]
pub(crate) struct VethLink {
    // Before the pair, so that it is closed before the pair is removed.
    socket: OwnedFd,
    /// Hears of changes.
    monitor: Netlink,
    index: u32,
    mtu: AtomicU32,
    /// Completes frames, on a link that was opened without offloads.
    completer: Option<Mutex<Completer>>,
    meter: Meter,
    pair: Option<Pair>,
}

/// A pair that goes with its link.
#[derive(Debug)]
struct Pair {
    route: Arc<Netlink>,
    index: u32,
    stays: bool,
    claim: Option<Claim>,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if let Err(error) = interface::remove(&self.route, self.index)
            && error.raw_os_error() != Some(libc::ENODEV)
        {
            log::warn!("cannot remove the pair of veth with the index {}: {error}", self.index);
        }
    }
}

/// The note on our end of a pair that is to go with its link.
const ALIAS: &str = "made by vdeplug, goes with its link";

/// The word that a pair is somebody's, which ends with the process that gave it, however that ends: a name in the
/// abstract namespace of sockets, of which every network namespace has its own. A pair with our note on it that nobody
/// claims was left behind by a process that was killed.
#[derive(Debug)]
struct Claim(#[expect(dead_code, reason = "the name lives as long as the socket")] OwnedFd);

impl Claim {
    /// Claims the pair, unless somebody else did.
    fn take(index: u32) -> Option<Self> {
        let name = SocketAddrUnix::new_abstract_name(format!("vdeplug/veth/{index}").as_bytes()).ok()?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).ok()?;
        bind(&socket, &name).ok()?;
        Some(Self(socket))
    }
}

/// What a locator says.
#[derive(Debug, Default)]
struct Wish {
    name: String,
    peer: Option<String>,
    netns: Option<String>,
    settings: Settings,
    persist: bool,
}

impl Wish {
    fn parse(text: &str) -> Result<Self, OpenError> {
        let form = PathForm::parse(text, &KEYS, None)?;
        let mut wish = Self { name: interface_name(&form.path)?.into(), ..Self::default() };
        for option in &form.options {
            let value = &option.value;
            match option.key {
                "peer" => wish.peer = Some(interface_name(value.as_ref())?.into()),
                "netns" => wish.netns = Some(value.clone()),
                "mtu" => wish.settings.mtu = Some(form.check(option, parse_mtu(value))?),
                "mac" => wish.settings.mac = Some(form.check(option, parse_mac(value))?),
                "up" => wish.settings.up = form.check(option, parse_flag("up", value))?,
                _ => wish.persist = form.check(option, parse_flag("persist", value))?,
            }
        }
        Ok(wish)
    }

    /// Whether a pair is asked for.
    fn is_pair(&self) -> bool {
        self.peer.is_some() || self.netns.is_some()
    }

    fn peer_name(&self) -> &str {
        self.peer.as_ref().unwrap_or(&self.name)
    }
}

impl VethLink {
    /// Makes a pair or attaches to an interface, as the part of the locator behind `veth://` says.
    pub(crate) fn open(argument: &str, options: &OpenOptions) -> Result<Self, OpenError> {
        Ok(Self::open_wish(&Wish::parse(argument)?, options.offloads)?)
    }

    fn open_wish(wish: &Wish, offloads: bool) -> Result<Self, KernelError> {
        let name = &wish.name;
        let netns = wish.netns.as_deref().map(netns::find).transpose()?;
        let peer = Peer { name: wish.peer_name(), netns: netns.as_ref().map(AsFd::as_fd) };
        let route = Arc::new(Netlink::route().map_err(failed("open a socket to rtnetlink"))?);
        let (it, pair) = match find(&route, name)? {
            Some(it) => attach(&route, wish, &peer, it)?,
            None if !wish.is_pair() => return Err(KernelError::NoInterface { name: name.clone() }),
            None => make(&route, wish, &peer)?,
        };
        // From here on, an error's way out removes a pair that was made.
        let what = format!("watch the interface {name:?}");
        let monitor = Netlink::monitor(libc::RTMGRP_LINK.cast_unsigned()).map_err(failed(what))?;
        let remedy = "that needs root or CAP_NET_RAW";
        let socket =
            packet::open(it.index).map_err(lacking(format!("read the interface {name:?}"), remedy))?;
        raise(&route, wish, &peer, &it, pair.is_some())?;
        let completer = (!offloads).then(|| Mutex::new(Completer::new()));
        let mtu = AtomicU32::new(wish.settings.mtu.unwrap_or(it.mtu));
        let mut link =
            Self { socket, monitor, index: it.index, mtu, completer, meter: Meter::default(), pair };
        if let Some(pair) = &mut link.pair {
            pair.stays = wish.persist;
        }
        Ok(link)
    }

    /// Notes what is told of our interface; `false` when there is no more.
    fn listen(&self) -> io::Result<bool> {
        let mut buffer = [0; 16384];
        match self.monitor.listen(&mut buffer) {
            Ok(None) => return Ok(false),
            Ok(Some(got)) => {
                let told = netlink::messages(buffer.get(..got).unwrap_or_default());
                for it in
                    told.filter_map(|message| Interface::told(&message)).filter(|it| it.index == self.index)
                {
                    self.mtu.store(it.mtu, Relaxed);
                }
            }
            // More was told than there was room for. Some of it is lost, but not what the socket itself knows.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

fn find(route: &Netlink, name: &str) -> Result<Option<Interface>, KernelError> {
    Interface::find(route, name).map_err(failed(format!("look up the interface {name:?}")))
}

/// Checks an interface that exists, and takes over a pair that nobody removes any more.
fn attach(
    route: &Arc<Netlink>,
    wish: &Wish,
    peer: &Peer<'_>,
    it: Interface,
) -> Result<(Interface, Option<Pair>), KernelError> {
    let name = &wish.name;
    if wish.is_pair()
        && !it.is_end_of(route, peer).map_err(failed(format!("look up the peer of {name:?}")))?
    {
        return Err(KernelError::OtherPeer {
            name: name.clone(),
            peer: peer.name.into(),
            netns: wish.netns.clone(),
        });
    }
    if !it.is_ethernet {
        return Err(KernelError::NotEthernet { name: name.clone() });
    }
    let is_left = wish.is_pair() && it.alias.as_deref() == Some(ALIAS);
    let claim = if is_left { Claim::take(it.index) } else { None };
    let pair =
        claim.map(|claim| Pair { route: route.clone(), index: it.index, stays: true, claim: Some(claim) });
    Ok((it, pair))
}

/// Makes a pair.
fn make(
    route: &Arc<Netlink>,
    wish: &Wish,
    peer: &Peer<'_>,
) -> Result<(Interface, Option<Pair>), KernelError> {
    let name = &wish.name;
    let what = || format!("make the pair of veth {name:?} and {:?}", peer.name);
    interface::make_pair(route, name, peer, &wish.settings).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            KernelError::NameTaken { name: peer.name.into(), netns: wish.netns.clone() }
        }
        _ => lacking(what(), "that needs root, or CAP_NET_ADMIN here and in the peer's network namespace")(
            error,
        ),
    })?;
    let gone = || io::Error::from_raw_os_error(libc::ENODEV);
    let it = Interface::find(route, name).and_then(|it| it.ok_or_else(gone)).map_err(failed(what()))?;
    let pair = Pair { route: route.clone(), index: it.index, stays: false, claim: Claim::take(it.index) };
    if pair.claim.is_some() && !wish.persist {
        interface::set_alias(route, it.index, ALIAS).map_err(failed(what()))?;
    }
    let peer_name = peer.name.to_owned();
    if let Err(error) = netns::inside(peer.netns, move || features::limit(&peer_name)) {
        // It takes a privilege more than all else, for something that most never need.
        log::warn!(
            "tunnels and SCTP of the peer {:?} may not pass: cannot set its features: {error}",
            peer.name
        );
    }
    Ok((it, Some(pair)))
}

/// Brings up what is to be up. The socket is there already, so that nothing is missed that the peer sends; and ours
/// comes last, as the kernel takes frames at once from the end that comes up last, and from the other only after a
/// while, losing what it is given till then.
fn raise(
    route: &Netlink,
    wish: &Wish,
    peer: &Peer<'_>,
    it: &Interface,
    is_ours: bool,
) -> Result<(), KernelError> {
    let what = || failed(format!("configure the interface {:?}", it.name));
    if wish.settings.up && wish.is_pair() {
        raise_peer(wish, peer)?;
    }
    if is_ours {
        interface::raise_bare(route, it.index).map_err(what())?;
    }
    // An address in the locator is the peer's.
    let settings = Settings { mac: None, ..wish.settings };
    if settings.up || settings.mtu.is_some() {
        interface::change(route, it.index, &settings).map_err(what())?;
    }
    Ok(())
}

/// Brings up the peer, where it is.
fn raise_peer(wish: &Wish, peer: &Peer<'_>) -> Result<(), KernelError> {
    let remedy = "that needs root, or CAP_NET_ADMIN and, for another network namespace, CAP_SYS_ADMIN";
    let what = || lacking(format!("bring up the peer {:?}", peer.name), remedy);
    let route = netns::inside(peer.netns, Netlink::route).map_err(what())?;
    let it = Interface::find(&route, peer.name).map_err(what())?;
    let it = it.ok_or_else(|| KernelError::OtherPeer {
        name: wish.name.clone(),
        peer: peer.name.into(),
        netns: wish.netns.clone(),
    })?;
    interface::change(&route, it.index, &Settings { up: true, ..Settings::default() }).map_err(what())
}

impl Link for VethLink {
    fn data_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn control_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.monitor.fd())
    }

    fn max_frame(&self) -> usize {
        // Addresses, type and a VLAN tag come on top.
        self.mtu.load(Relaxed) as usize + 14 + 4
    }

    fn send(&self, frames: &[TxFrame<'_>]) -> Result<Sent, LinkError> {
        datagram::send(self.socket.as_fd(), Framing::Packet, self.max_frame(), frames, &self.meter)
    }

    fn recv(&self, frames: &mut [RxFrame<'_>]) -> Result<usize, LinkError> {
        let fd = self.socket.as_fd();
        let Some(completer) = &self.completer else {
            return datagram::recv(fd, Framing::Packet, frames, &self.meter);
        };
        // A thread that panicked while it held this left a frame that is completed anew.
        let mut completer = completer.lock().unwrap_or_else(PoisonError::into_inner);
        datagram::recv_by(frames, &self.meter, |rest| completer.recv(fd, rest, &self.meter))
    }

    fn offloads(&self) -> bool {
        self.completer.is_none()
    }

    fn stats(&self) -> Stats {
        // What nobody received in time was lost before it could be counted here.
        let lost = sys::packet_lost(self.socket.as_fd()).unwrap_or_default();
        self.meter.received(0, 0, lost as usize);
        self.meter.stats()
    }

    fn check_control(&self) -> Result<(), LinkError> {
        // A machine whose interfaces change all the time does not keep us here: the descriptor stays readable.
        for _ in 0..16 {
            if !self.listen().map_err(LinkError::Io)? {
                break;
            }
        }
        match sys::packet_is_bound(self.socket.as_fd()) {
            Ok(true) => Ok(()),
            Ok(false) => Err(LinkError::Closed),
            Err(error) => Err(LinkError::Io(error)),
        }
    }
}
