//! Client of Virtual Distributed Ethernet (VDE) networks.

pub mod link;

use std::sync::Arc;
use std::time::Duration;

pub use link::{Link, LinkError, RxBuf, RxFrame, Sent, TxBuf};

/// How to open a link, beside its locator. What the locator says in brackets wins over these.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Text that the network shows for this attachment; ` user=U pid=N` is appended (VDE fact 2.3).
    pub description: String,
    /// How long the other side may take to answer.
    pub timeout: Duration,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { description: "vdeplug".into(), timeout: Duration::from_secs(5) }
    }
}

/// Why a link could not be opened. Each sentence names the word that was wrong and what would be right.
#[derive(Debug, thiserror::Error)]
#[error("placeholder")]
pub struct OpenError;

/// Opens a link by its locator; an empty one means the user's default network (VDE facts 3.1, 3.4).
pub fn open(_locator: &str, _options: &OpenOptions) -> Result<Arc<dyn Link>, OpenError> {
    Err(OpenError)
}
