//! Client of Virtual Distributed Ethernet (VDE) networks.
//!
//! [`open`] turns a locator (`/run/sw[5]`, `vde:///run/sw`, `null://`, a file that holds one, or nothing for
//! the user's default network) into a [`Link`], through which Ethernet frames are sent and received in
//! batches. It knows no virtio, has no state beside the links that it opened, and starts no threads but one or two for each
//! network that it serves itself (`switch:///tmp/sw`).
//!
//! ```text
//! text ── resolve ── locator ─┬─ vde ── directory (which socket) ── data_socket ── request ─┐
//!                             ├─ tap, veth ── kernel ───────────────────────────────────────┤
//!                             ├─ multi, hub, switch, bonding ── node ───────────────────────┤
//!                             ├─ ptp, udp, cmd, seqpacket, null ────────────────────────────┤
//!                             └─ plugin (libvdeplug_SCHEME.so) ─────────────────────────────┴─ dyn Link
//! ```
//!
//! A link lives as long as its `Arc`: the drop of the last one closes its descriptors, by which a switch
//! frees the port at once.
//!
//! # Waiting
//! No call on a link waits. [`Link::data_fd`] is readable when frames may be there and writable when some may be sent;
//! [`Link::control_fd`], where there is one, is readable when the network may have gone. Both go into any event loop,
//! level- or edge-triggered:
//!
//! ```
//! use rustix::event::{PollFd, PollFlags, poll};
//! use vdeplug::{OpenOptions, open};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let home = tempfile::tempdir()?;
//! # let path = home.path().join("net").display().to_string();
//! // A switch of our own, and a plug in it; any VDE program could plug into PATH as well.
//! let node = open(&format!("switch://{path}"), &OpenOptions::default())?;
//! let link = open(&path, &OpenOptions::default())?;
//! assert!(link.send_one(&[0xff; 60])?);
//!
//! poll(&mut [PollFd::from_borrowed_fd(node.data_fd(), PollFlags::IN)], None)?;
//! let mut room = [0; 1514];
//! assert_eq!(node.recv_one(&mut room)?, Some(60));
//! assert_eq!(node.recv_one(&mut room)?, None);
//! # Ok(())
//! # }
//! ```
//!
//! The same with tokio, and two frames a call:
//!
//! ```
//! use tokio::io::{Interest, unix::AsyncFd};
//! use vdeplug::{OpenOptions, RxBuf, RxFrame, TxBuf, TxFrame, open};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(async {
//! # let home = tempfile::tempdir()?;
//! # let path = home.path().join("net").display().to_string();
//! let node = open(&format!("switch://{path}"), &OpenOptions::default())?;
//! let link = open(&path, &OpenOptions::default())?;
//! // A frame may lie in pieces; here they are a header and a payload.
//! let (header, payload) = ([0xff; 14], [7; 46]);
//! let pieces = [TxBuf::new(&header), TxBuf::new(&payload)];
//! assert_eq!(link.send(&[TxFrame::new(&pieces); 2])?.taken, 2);
//!
//! let readiness = AsyncFd::with_interest(node.data_fd(), Interest::READABLE)?;
//! let mut rooms = [[0; 1514]; 2];
//! let mut received = 0;
//! while received < 2 {
//!     let mut ready = readiness.readable().await?;
//!     let bufs: Vec<_> = rooms[received..].iter_mut().map(|room| [RxBuf::new(room)]).collect();
//!     let mut frames: Vec<_> = bufs.iter().map(|bufs| RxFrame::new(bufs)).collect();
//!     match node.recv(&mut frames)? {
//!         0 => ready.clear_ready(),
//!         count => received += count,
//!     }
//! }
//! assert_eq!(rooms[1][..60], [[0xff; 14].as_slice(), &[7; 46]].concat());
//! assert_eq!(node.stats().total.rx_frames, 2);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # })
//! # }
//! ```
//!
//! # Large frames
//! A frame for [`Link::send`] may be one that is still to be segmented, up to 64 KiB, with its checksum left open: its
//! [`Header`] says so, as that of a virtio NIC does. A network that knows such frames (another program with this
//! library, a tap, a veth pair) gets it whole; for every other one it is cut here, without a copy of the payload. To
//! receive such frames, open with [`OpenOptions::offloads`].
//!
//! ```
//! use vdeplug::header::{GSO_TCPV4, NEEDS_CSUM};
//! use vdeplug::{Header, OpenOptions, TxBuf, TxFrame, open};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let home = tempfile::tempdir()?;
//! # let path = home.path().join("net").display().to_string();
//! let node = open(&format!("switch://{path}"), &OpenOptions::default())?;
//! let link = open(&path, &OpenOptions::default())?;
//! // Ethernet, IPv4 and TCP, and a payload of 2500 bytes that is to go in segments of 1000.
//! let mut frame = [0; 14 + 20 + 20 + 2500];
//! frame[..6].fill(0xff);
//! frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
//! frame[16..18].copy_from_slice(&2540_u16.to_be_bytes());
//! (frame[23], frame[46]) = (6, 0x50);
//! let header = Header {
//!     flags: NEEDS_CSUM,
//!     gso_type: GSO_TCPV4,
//!     gso_size: 1000,
//!     csum_start: 34,
//!     csum_offset: 16,
//!     ..Header::NONE
//! };
//! let pieces = [TxBuf::new(&frame)];
//! assert_eq!(link.send(&[TxFrame { header, ..TxFrame::new(&pieces) }])?.taken, 1);
//!
//! // Neither end said that it takes large frames, so segments arrive.
//! # use rustix::event::{PollFd, PollFlags, poll};
//! let mut room = [0; 1514];
//! for payload in [1000, 1000, 500] {
//! #   poll(&mut [PollFd::from_borrowed_fd(node.data_fd(), PollFlags::IN)], None)?;
//!     assert_eq!(node.recv_one(&mut room)?, Some(14 + 20 + 20 + payload));
//! }
//! # Ok(())
//! # }
//! ```

#![deny(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing))]

mod cmd;
mod datagram;
mod errno;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod kernel;
pub mod link;
pub mod locator;
mod lossy;
mod node;
mod null;
mod plugin;
mod ptp;
mod resolve;
mod seqpacket;
mod single;
mod soft;
pub mod stream;
mod sys;
mod udp;
mod vde;

use std::sync::Arc;
use std::time::Duration;

pub use cmd::CmdError;
pub use error::{OpenError, OpenErrorKind};
pub use kernel::KernelError;
pub use link::{Link, LinkError, Receiver, RxBuf, RxFrame, Sent, Stats, Traffic, TxBuf, TxFrame};
pub use locator::{Port, VdeLocator};
pub use node::NodeError;
pub use offload::{Header, header};
pub use plugin::PluginError;
pub use ptp::{Form as PtpForm, PtpError};
pub use seqpacket::SeqPacketError;
pub use udp::UdpError;

use resolve::Target;

/// The schemes that [`open`] knows itself; others are those of installed plug-ins.
///
/// Into the kernel go `tap://NAME[mtu=N/mac=M/up/netns=NS/multi/persist]` and
/// `veth://NAME[peer=NAME/netns=NS/mtu=N/mac=M/up/persist]`, where NS is the number of a process, a name that
/// `ip netns` lists, or a quoted path.
pub const SCHEMES: &[&str] =
    &["vde", "ptp", "udp", "cmd", "seqpacket", "tap", "veth", "multi", "bonding", "hub", "switch", "null"];

/// How to open a link, beside its locator. What the locator says in brackets wins over these.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Text that the network shows for this attachment; ` user=U pid=N` is appended (VDE fact 2.3).
    pub description: String,
    /// How long the other side may take to answer.
    pub timeout: Duration,
    /// Port to plug into.
    pub port: Port,
    /// Group, a name or a number, that our end's socket is given to.
    pub group: Option<String>,
    /// Mode of our end's socket; 0 means the default (VDE fact 2.6).
    pub mode: u32,
    /// Received frames may be left to be completed or segmented by the receiver, as [`RxFrame::header`] then says;
    /// the network is told so where that can be said. Frames may be *sent* like that on every link.
    pub offloads: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            description: "vdeplug".into(),
            timeout: Duration::from_secs(5),
            port: Port::Any,
            group: None,
            mode: 0,
            offloads: false,
        }
    }
}

/// Opens a link by its locator; an empty one means the user's default network (VDE facts 3.1, 3.4).
///
/// Returns within the time-out of the options, whatever the other side does (a user database that asks a
/// network for names may take longer), and leaves no descriptor and no file behind when it fails.
///
/// ```
/// use vdeplug::{OpenErrorKind, OpenOptions, TxBuf, TxFrame, open};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let link = open("null://", &OpenOptions::default())?;
/// let frame = [0xff; 60];
/// let pieces = [TxBuf::new(&frame[..14]), TxBuf::new(&frame[14..])];
/// let sent = link.send(&[TxFrame::new(&pieces)])?;
/// assert_eq!((sent.taken, sent.dropped), (1, 0));
///
/// let error = open("/nowhere/sw", &OpenOptions::default()).unwrap_err();
/// assert_eq!(error.kind(), OpenErrorKind::NotFound);
/// assert_eq!(
///     error.to_string(),
///     r#"there is no switch "/nowhere/sw"; start it with: vde_switch -s "/nowhere/sw""#
/// );
/// # Ok(())
/// # }
/// ```
pub fn open(locator: &str, options: &OpenOptions) -> Result<Arc<dyn Link>, OpenError> {
    let Target { scheme, argument, file } = resolve::resolve(locator, std::env::var_os("HOME").as_deref())?;
    open_scheme(&scheme, &argument, options).map_err(|error| match file {
        Some(path) => OpenError::InFile { path, source: Box::new(error) },
        None => error,
    })
}

/// Opens a link by the two parts of a locator.
fn open_scheme(scheme: &str, argument: &str, options: &OpenOptions) -> Result<Arc<dyn Link>, OpenError> {
    Ok(match scheme {
        "vde" => Arc::new(vde::VdeLink::open(&VdeLocator::parse(argument)?, options)?),
        "tap" => Arc::new(kernel::TapLink::open(argument, options)?),
        "veth" => Arc::new(kernel::VethLink::open(argument, options)?),
        "ptp" => ptp::open(argument, options)?,
        "cmd" => Arc::new(cmd::CmdLink::open(argument)?),
        "udp" => Arc::new(udp::UdpLink::open(argument)?),
        "seqpacket" => Arc::new(seqpacket::SeqPacketLink::open(argument)?),
        "multi" => Arc::new(node::NodeLink::open(node::Kind::Multi, argument, options)?),
        "bonding" => Arc::new(node::NodeLink::open(node::Kind::Bonding, argument, options)?),
        "hub" => Arc::new(node::NodeLink::open(node::Kind::Hub, argument, options)?),
        "switch" => Arc::new(node::NodeLink::open(node::Kind::Switch, argument, options)?),
        "null" => Arc::new(null::NullLink::open()?),
        _ => {
            locator::check_nested(argument)?;
            Arc::new(plugin::PluginLink::open(scheme, argument, options)?)
        }
    })
}
