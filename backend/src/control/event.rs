//! What everybody who is connected is told.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use vde_control::CaptureEnded;

/// Something that happened.
#[derive(Debug)]
pub struct Event {
    name: &'static str,
    data: Value,
}

impl Event {
    /// Something that happened to a NIC.
    pub fn nic(name: &'static str, nic: &str) -> Self {
        Self { name, data: json!({ "nic": nic }) }
    }

    /// Something that happened to a link of a NIC or a join.
    pub fn link(name: &'static str, nic: &str, link: &str, locator: &str) -> Self {
        Self { name, data: json!({ "nic": nic, "link": link, "locator": locator }) }
    }

    /// Says why, too.
    pub fn because(mut self, reason: &str) -> Self {
        if let Some(data) = self.data.as_object_mut() {
            data.insert("reason".into(), reason.into());
        }
        self
    }

    /// A capture has ended.
    pub fn capture_ended(ended: &CaptureEnded) -> Self {
        Self { name: "CAPTURE_ENDED", data: json!(ended) }
    }

    /// We end.
    pub fn shutdown() -> Self {
        Self { name: "SHUTDOWN", data: json!({}) }
    }

    /// Its wire form; the time is now.
    pub fn to_value(&self) -> Value {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let timestamp = json!({ "seconds": since.as_secs(), "microseconds": since.subsec_micros() });
        json!({ "event": self.name, "data": self.data, "timestamp": timestamp })
    }
}
