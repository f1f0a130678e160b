//! What `-netdev vde` and `-nic vde` say of their network, in either of QEMU's forms.
//!
//! The keys are those of QEMU's own VDE client, and `queues=` besides. Unlike there, where a mode
//! without a leading zero counts as decimal, `mode=` is octal always, as QEMU's manual says; only a
//! JSON number is what it is.

use serde_json::Value;

use crate::argv::Token;
use crate::cli::octal;
use crate::error::Error;
use crate::locator::Link;
use crate::properties::Properties;
use crate::queues;

/// An option with `vde` as its type.
#[derive(Clone, Debug)]
pub struct VdeWords<'a> {
    option: &'static str,
    word: &'a str,
    /// Everything that it says.
    pub properties: Properties,
}

impl<'a> VdeWords<'a> {
    /// Reads a token if it is this option and about VDE.
    pub fn read(token: &'a Token, option: &'static str) -> Result<Option<Self>, Error> {
        if !token.is(option) {
            return Ok(None);
        }
        let Some(word) = token.text() else { return refuse_odd(token, option).map(|()| None) };
        let properties = Properties::parse(word, "type");
        let vde = properties.filter(|properties| properties.get("type").as_deref() == Some("vde"));
        Ok(vde.map(|properties| Self { option, word, properties }))
    }

    /// An error about this option.
    pub fn refuse(&self, problem: impl Into<String>) -> Error {
        Error::Vde { option: self.option, word: self.word.to_owned(), problem: problem.into() }
    }

    /// The network; `others` are the keys that the option has besides, `mode` is `--mod`.
    pub fn link(&self, others: &[&str], mode: Option<&str>) -> Result<Link, Error> {
        const KEYS: [&str; 6] = ["type", "sock", "port", "group", "mode", "queues"];
        if let Some(key) =
            self.properties.keys().into_iter().find(|key| !KEYS.contains(key) && !others.contains(key))
        {
            let known =
                others.iter().chain(&KEYS[1..]).map(|key| format!("{key}=")).collect::<Vec<_>>().join(", ");
            return Err(self.refuse(format!("unknown suboption '{key}'; known are {known}")));
        }
        let port = match self.properties.get("port") {
            Some(text) => Some(self.port(&text)?).filter(|&port| port != 0),
            None => None,
        };
        Ok(Link {
            sock: self.properties.get("sock").unwrap_or_default(),
            port,
            group: self.properties.get("group"),
            mode: self.mode()?.or_else(|| mode.map(str::to_owned)),
            name: None,
        })
    }

    /// The number of queue pairs, if it is said.
    pub fn queues(&self) -> Result<Option<u16>, Error> {
        let text = self.properties.get("queues");
        text.map(|text| queues::parse(&text).map_err(|problem| self.refuse(problem))).transpose()
    }

    fn port(&self, text: &str) -> Result<u32, Error> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.ok_or_else(|| self.refuse(format!("'{text}' is not a number; write for example port=1")))
    }

    fn mode(&self) -> Result<Option<String>, Error> {
        let Some(text) = self.properties.get("mode") else { return Ok(None) };
        if let Properties::Json(map) = &self.properties {
            let number = map.get("mode").and_then(Value::as_u64).filter(|mode| *mode <= 0o777);
            let problem = || self.refuse(format!("'{text}' is no file mode; in JSON write 432 for 0660"));
            return Ok(Some(format!("{:04o}", number.ok_or_else(problem)?)));
        }
        octal(&text, "mode=").map(Some)
    }
}

/// Refuses a VDE network that is not text: its words become part of options, which are text.
fn refuse_odd(token: &Token, option: &'static str) -> Result<(), Error> {
    let word = token.value().map(std::ffi::OsStr::to_string_lossy).unwrap_or_default().into_owned();
    let kind = Properties::parse(&word, "type").and_then(|properties| properties.get("type"));
    if kind.as_deref() != Some("vde") {
        return Ok(());
    }
    let problem =
        "it is not UTF-8 text; give the network a name that is, for example by a symbolic link".into();
    Err(Error::Vde { option, word, problem })
}
