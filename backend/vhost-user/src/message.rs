//! The table of requests: what comes with each and what it does to rings that run.
//!
//! Requests of protocol features that we do not offer are not in the table. Those with an answer of their own would
//! leave the front end waiting for ever, so an unknown request is either refused (if it wants an acknowledgement) or
//! ends the connection.

use std::os::fd::OwnedFd;

use vhost::vhost_user::message::{
    FrontendReq, VhostUserLog, VhostUserMemory, VhostUserSingleMemoryRegion, VhostUserU64,
    VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

use crate::Device;
use crate::session::{Refused, Session};

/// A whole message.
pub struct Message {
    pub request: u32,
    pub need_reply: bool,
    pub body: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// The body as a fixed structure; its length was checked against the table.
    pub fn get<T: ByteValued>(&self) -> Result<T, Refused> {
        let mut value = T::zeroed();
        let size = value.as_slice().len();
        let bytes = self.body.get(..size).ok_or_else(|| Refused("body too short".into()))?;
        value.as_mut_slice().copy_from_slice(bytes);
        Ok(value)
    }
}

/// How long the body is.
#[derive(Clone, Copy)]
pub enum Body {
    Exactly(usize),
    /// This and more, as the body itself says.
    AtLeast(usize),
}

/// How many descriptors come along.
#[derive(Clone, Copy)]
pub enum Fds {
    None,
    One,
    /// None or one, as the body says.
    Optional,
    /// As many as the body says.
    PerRegion,
}

/// Which running rings are stopped before the handler runs. Those that are still started afterwards go on, from where
/// they were, with what the handler changed.
#[derive(Clone, Copy)]
pub enum Stops {
    None,
    /// The ring whose index begins the body.
    Ring,
    All,
}

/// The answer of a request that has one of its own.
pub type Answer = Option<Vec<u8>>;

/// One line of the table.
pub struct Entry {
    pub request: FrontendReq,
    pub body: Body,
    pub fds: Fds,
    pub stops: Stops,
    pub run: fn(&mut Session, &mut dyn Device, Message) -> Result<Answer, Refused>,
}

const fn entry(
    request: FrontendReq,
    body: Body,
    fds: Fds,
    stops: Stops,
    run: fn(&mut Session, &mut dyn Device, Message) -> Result<Answer, Refused>,
) -> Entry {
    Entry { request, body, fds, stops, run }
}

const EMPTY: Body = Body::AtLeast(0);
const U64: Body = Body::Exactly(size_of::<VhostUserU64>());
const STATE: Body = Body::Exactly(size_of::<VhostUserVringState>());
const ADDR: Body = Body::Exactly(size_of::<VhostUserVringAddr>());
const TABLE_HEAD: Body = Body::AtLeast(size_of::<VhostUserMemory>());
const LOG: Body = Body::Exactly(size_of::<VhostUserLog>());
const REGION: Body = Body::Exactly(size_of::<VhostUserSingleMemoryRegion>());

#[rustfmt::skip]
static TABLE: &[Entry] = &[
    entry(FrontendReq::GET_FEATURES,          EMPTY,      Fds::None,      Stops::None, Session::get_features),
    entry(FrontendReq::SET_FEATURES,          U64,        Fds::None,      Stops::All,  Session::set_features),
    entry(FrontendReq::GET_PROTOCOL_FEATURES, EMPTY,      Fds::None,      Stops::None, Session::get_protocol_features),
    entry(FrontendReq::SET_PROTOCOL_FEATURES, U64,        Fds::None,      Stops::None, Session::set_protocol_features),
    entry(FrontendReq::SET_OWNER,             EMPTY,      Fds::None,      Stops::None, Session::ignore),
    entry(FrontendReq::RESET_OWNER,           EMPTY,      Fds::None,      Stops::None, Session::ignore),
    entry(FrontendReq::GET_QUEUE_NUM,         EMPTY,      Fds::None,      Stops::None, Session::get_queue_num),
    entry(FrontendReq::SET_MEM_TABLE,         TABLE_HEAD, Fds::PerRegion, Stops::All,  Session::set_mem_table),
    entry(FrontendReq::GET_MAX_MEM_SLOTS,     EMPTY,      Fds::None,      Stops::None, Session::get_max_mem_slots),
    entry(FrontendReq::ADD_MEM_REG,           REGION,     Fds::One,       Stops::All,  Session::add_mem_reg),
    entry(FrontendReq::REM_MEM_REG,           REGION,     Fds::Optional,  Stops::All,  Session::rem_mem_reg),
    entry(FrontendReq::SET_LOG_BASE,          LOG,        Fds::One,       Stops::All,  Session::set_log_base),
    entry(FrontendReq::SET_LOG_FD,            EMPTY,      Fds::Optional,  Stops::None, Session::ignore),
    entry(FrontendReq::RESET_DEVICE,          EMPTY,      Fds::None,      Stops::All,  Session::reset_device),
    entry(FrontendReq::SEND_RARP,             U64,        Fds::None,      Stops::None, Session::send_rarp),
    entry(FrontendReq::NET_SET_MTU,           U64,        Fds::None,      Stops::None, Session::net_set_mtu),
    entry(FrontendReq::SET_VRING_NUM,         STATE,      Fds::None,      Stops::Ring, Session::set_vring_num),
    entry(FrontendReq::SET_VRING_ADDR,        ADDR,       Fds::None,      Stops::Ring, Session::set_vring_addr),
    entry(FrontendReq::SET_VRING_BASE,        STATE,      Fds::None,      Stops::Ring, Session::set_vring_base),
    entry(FrontendReq::GET_VRING_BASE,        STATE,      Fds::None,      Stops::Ring, Session::get_vring_base),
    entry(FrontendReq::SET_VRING_KICK,        U64,        Fds::Optional,  Stops::Ring, Session::set_vring_kick),
    entry(FrontendReq::SET_VRING_CALL,        U64,        Fds::Optional,  Stops::None, Session::set_vring_call),
    entry(FrontendReq::SET_VRING_ERR,         U64,        Fds::Optional,  Stops::None, Session::set_vring_err),
    entry(FrontendReq::SET_VRING_ENABLE,      STATE,      Fds::None,      Stops::None, Session::set_vring_enable),
];

/// The table's line for a request, if there is one.
pub fn find(request: u32) -> Option<&'static Entry> {
    let request = FrontendReq::try_from(request).ok()?;
    TABLE.iter().find(|e| e.request == request)
}

/// Is the body of this request a ring index with flags, not a ring state?
pub fn is_ring_fd(request: u32) -> bool {
    matches!(
        FrontendReq::try_from(request),
        Ok(FrontendReq::SET_VRING_KICK | FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_ERR)
    )
}

/// Checks what came with a request against the table.
pub fn check(entry: &Entry, message: &Message) -> Result<(), Refused> {
    let len = message.body.len();
    let (long_enough, wanted) = match entry.body {
        Body::Exactly(size) => (len == size, size),
        Body::AtLeast(size) => (len >= size, size),
    };
    if !long_enough {
        return Err(Refused(format!("its body has {len} bytes instead of {wanted}")));
    }
    let count = message.fds.len();
    let right = match entry.fds {
        Fds::None => count == 0,
        Fds::One => count == 1,
        Fds::Optional => count <= 1,
        Fds::PerRegion => true,
    };
    if right { Ok(()) } else { Err(Refused(format!("{count} descriptors came with it"))) }
}
