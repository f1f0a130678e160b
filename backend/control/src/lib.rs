//! What is said on the control socket of `vhost-user-vde`, as types: `docs/control.md` is its description.
//!
//! Both sides have these: the back end writes the answers and reads the arguments, `vdectl` the reverse. How lines come and
//! go is not here. Of what goes beside the lines there is the file of a capture, which either side may make.

#![forbid(unsafe_code)]

mod file;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use file::{
    create as create_capture_file, create_soon as create_capture_file_soon, resume as resume_capture_file,
};
use serde::{Deserialize, Serialize, Serializer};

/// The answer to `query-nics` is a list of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Nic {
    /// Its name: that of QEMU's netdev, where `vdeq` or `vdectl` made it.
    pub id: String,
    /// The socket that front ends connect to; none if it was inherited. What is no UTF-8 in it cannot be told.
    #[serde(serialize_with = "as_text")]
    pub socket_path: Option<PathBuf>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Its queue pairs.
    pub queues: u16,
    /// A front end is there.
    pub connected: bool,
    /// The front end's process, if it can be told.
    pub pid: Option<u32>,
    /// The feature bits that the guest's driver acknowledged (virtio 1.2 § 5.1.3, § 6); 0 before it did.
    pub features: u64,
    /// Ring 2n is the receive queue of pair n, ring 2n+1 its transmit queue.
    pub rings: Vec<Ring>,
    /// Its links, in the order in which they were plugged in.
    pub links: Vec<Link>,
    /// What happened to its frames, by the names of the manual page, summed over the queue pairs.
    pub counters: BTreeMap<String, u64>,
    /// Its frames are being written down.
    pub capturing: bool,
}

fn as_text<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_deref().map(Path::to_string_lossy).serialize(serializer)
}

/// The answer to `query-joins` is a list of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Join {
    /// Its name.
    pub id: String,
    /// Its two networks.
    pub links: Vec<Link>,
    /// What happened to frames between them.
    pub counters: BTreeMap<String, u64>,
}

/// What is spoken on a NIC's socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// A virtio NIC's.
    #[default]
    VhostUser,
    /// QEMU's netdev stream.
    Stream,
}

/// A virtqueue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ring {
    /// Its descriptors; 0 if it does not run.
    pub size: u16,
    /// The driver wants frames to pass.
    pub enabled: bool,
    /// What the driver has made available and was not used yet: chains of a split ring, descriptors of a packed one.
    pub waiting: u16,
}

/// One link of a NIC. TX leaves the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Link {
    /// Its name, unique in its NIC for as long as that exists.
    pub id: String,
    /// The network that it leads to.
    pub locator: String,
    /// It carries frames.
    pub up: bool,
    /// Why it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What passed through it.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// What passed through a link since it was plugged in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Traffic {
    /// Frames sent.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Frames that could not be sent.
    pub tx_dropped: u64,
    /// Frames among those sent that were handed over unsegmented.
    pub tx_big: u64,
    /// Frames received.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames received that were no good.
    pub rx_dropped: u64,
    /// Frames among those received that came unsegmented.
    pub rx_big: u64,
}

/// Arguments of `nic-add`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NicAdd {
    /// Its name; no other NIC or join has it.
    pub id: String,
    /// Where it shall listen.
    pub socket_path: PathBuf,
    /// Its networks, at least one.
    pub links: Vec<String>,
    /// What is spoken there.
    #[serde(default)]
    pub protocol: Protocol,
    /// Its queue pairs.
    #[serde(default = "one")]
    pub queues: u16,
}

fn one() -> u16 {
    1
}

/// Arguments of `nic-del`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicDel {
    /// The NIC's name.
    pub id: String,
}

/// Arguments of `link-add`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkAdd {
    /// The NIC or join.
    pub nic: String,
    /// The network.
    pub locator: String,
}

/// What `link-add` and `link-replace` return.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkId {
    /// The new link's name.
    pub id: String,
}

/// Arguments of `link-remove`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkRemove {
    /// The NIC or join.
    pub nic: String,
    /// The link, by name or locator.
    pub link: String,
}

/// Arguments of `link-replace`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkReplace {
    /// The NIC or join.
    pub nic: String,
    /// The link that goes, by name or locator.
    pub link: String,
    /// The network that comes.
    pub locator: String,
    /// The guest's address, to be announced there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// Arguments of `capture-start`; a descriptor to write to comes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CaptureStart {
    /// The NIC.
    pub nic: String,
    /// Only this link, by name or locator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Ends when so many bytes were written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Ends after so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_seconds: Option<u64>,
}

/// Arguments of `capture-stop`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureStop {
    /// The NIC.
    pub nic: String,
}

/// What the event `CAPTURE_ENDED` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureEnded {
    /// The NIC.
    pub nic: String,
    /// Why.
    pub reason: CaptureEnd,
    /// The system's word, where the reason is that something failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Frames that were written down.
    pub frames: u64,
    /// Frames that passed meanwhile and were not.
    pub lost: u64,
}

/// Why a capture ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureEnd {
    /// By `capture-stop`, or since whoever asked for it has gone.
    Stopped,
    /// So many bytes were written as were asked for.
    MaxBytes,
    /// The time asked for is over.
    MaxSeconds,
    /// Nobody reads the other end of the pipe any more.
    ReaderGone,
    /// There is no such NIC any more.
    NicDeleted,
    /// What it is written to takes no more.
    Failed,
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    /// Whatever a path is made of, `query-nics` is answered.
    #[test]
    fn a_path_that_is_no_text_is_told_as_far_as_it_is() {
        let path = std::ffi::OsString::from_vec(b"/run/a\xffb".to_vec());
        let nic = Nic {
            id: "n".into(),
            socket_path: Some(path.into()),
            protocol: Protocol::VhostUser,
            queues: 1,
            connected: false,
            pid: None,
            features: 0,
            rings: Vec::new(),
            links: Vec::new(),
            counters: BTreeMap::new(),
            capturing: false,
        };
        let text = serde_json::to_value(&nic).unwrap();
        assert_eq!(text["socket-path"], "/run/a\u{fffd}b");
        let inherited = serde_json::to_value(Nic { socket_path: None, ..nic }).unwrap();
        assert!(inherited["socket-path"].is_null());
    }

    #[test]
    fn the_wire_form_is_that_of_the_description() {
        let link = Link {
            id: "link0".into(),
            locator: "vde:///run/sw[7]".into(),
            up: true,
            reason: None,
            traffic: Traffic { tx_frames: 3, ..Traffic::default() },
        };
        let text = serde_json::to_value(&link).unwrap();
        assert_eq!((&text["tx-frames"], &text["rx-big"]), (&3.into(), &0.into()));
        assert!(text.get("reason").is_none());
        assert_eq!(serde_json::from_value::<Link>(text).unwrap(), link);
        let add = r#"{"id": "n", "socket-path": "/s", "links": ["/sw"]}"#;
        let add: NicAdd = serde_json::from_str(add).unwrap();
        assert_eq!((add.queues, add.protocol), (1, Protocol::VhostUser));
        assert!(serde_json::from_str::<NicDel>(r#"{"id": "n", "nic": "m"}"#).is_err());
    }
}
