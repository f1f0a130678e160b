//! The pieces of a domain's XML that give it a network, as we write them.

use crate::domain::{NAMESPACE, Nics};

/// The lines that make a guest's memory one that a back end can map.
pub const MEMORY: &str =
    "<memoryBacking>\n  <source type='memfd'/>\n  <access mode='shared'/>\n</memoryBacking>\n";

/// An interface that is served at a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its address.
    pub mac: String,
    /// Its socket.
    pub path: String,
    /// Its alias, if it shall have one.
    pub alias: Option<String>,
    /// Its queue pairs.
    pub queues: u16,
}

impl Served {
    /// `<interface>`.
    pub fn to_xml(&self) -> String {
        let driver = match self.queues {
            1 => String::new(),
            queues => format!("  <driver queues='{queues}'/>\n"),
        };
        let alias = self.alias.as_deref().map(|alias| format!("  <alias name='{}'/>\n", escape(alias)));
        format!(
            "<interface type='vhostuser'>\n  <mac address='{}'/>\n  <source type='unix' path='{}' mode='client'>\n    \
             <reconnect enabled='yes' timeout='1'/>\n  </source>\n  <model type='virtio'/>\n{driver}{}</interface>\n",
            escape(&self.mac),
            escape(&self.path),
            alias.unwrap_or_default()
        )
    }
}

impl Nics {
    /// `<vde:nics>`, with its namespace.
    pub fn to_xml(&self) -> String {
        self.write("vde:", &format!(" xmlns:vde='{NAMESPACE}'"))
    }

    /// The same without names of namespaces, as `virsh metadata --set` takes it.
    pub fn to_plain_xml(&self) -> String {
        self.write("", "")
    }

    fn write(&self, prefix: &str, namespace: &str) -> String {
        let mut text = format!("<{prefix}nics{namespace}{}>\n", attributes(&self.settings));
        for nic in &self.nics {
            text.push_str(&format!("  <{prefix}nic"));
            for (key, value) in [("mac", &nic.mac), ("alias", &nic.alias)] {
                text.extend(value.as_ref().map(|value| attribute(key, value)));
            }
            text.push_str(&match nic.links.as_slice() {
                [link] => format!("{}/>\n", attribute("link", link)),
                links => format!(">{}</{prefix}nic>\n", elements(prefix, links)),
            });
        }
        for links in &self.joins {
            text.push_str(&format!("  <{prefix}join>{}</{prefix}join>\n", elements(prefix, links)));
        }
        text + &format!("</{prefix}nics>\n")
    }
}

/// As XML has it, also what a reader would otherwise take for mere space.
fn escape(text: &str) -> String {
    let written = quick_xml::escape::escape(text);
    written.replace('\n', "&#10;").replace('\r', "&#13;").replace('\t', "&#9;")
}

fn attributes(settings: &std::collections::BTreeMap<String, String>) -> String {
    settings.iter().map(|(key, value)| attribute(key, value)).collect()
}

fn attribute(key: &str, value: &str) -> String {
    format!(" {key}='{}'", escape(value))
}

fn elements(prefix: &str, links: &[String]) -> String {
    links.iter().map(|link| format!("<{prefix}link>{}</{prefix}link>", escape(link))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Domain, Nic};

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let nic = |mac: &str, links: &[&str]| Nic {
            mac: Some(mac.into()),
            alias: None,
            links: links.iter().map(|link| (*link).to_owned()).collect(),
        };
        let nics = Nics {
            settings: [("poll-us", "5"), ("description", "a'<&>\"\n\tb\r")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            nics: vec![nic("52:54:00:00:00:01", &["vde:///a'b&c"]), nic("52:54:00:00:00:02", &["/a", "/b<"])],
            joins: vec![vec!["/a".into(), "/b".into()]],
        };
        let served = Served {
            mac: "52:54:00:00:00:01".into(),
            path: "/run/a&b/vde0.sock".into(),
            alias: Some("ua-vde0".into()),
            queues: 4,
        };
        let text = format!(
            "<domain><name>web</name><uuid>0-1</uuid><metadata>{}</metadata>{MEMORY}<devices>{}</devices></domain>",
            nics.to_xml(),
            served.to_xml()
        );
        let domain = Domain::read(&text).unwrap();
        assert_eq!(domain.nics.as_ref(), Some(&nics));
        assert!(domain.shared_memory);
        let interface = &domain.interfaces[0];
        assert_eq!((&*interface.mac, interface.path.as_deref()), (&*served.mac, Some(&*served.path)));
        assert_eq!((interface.alias.as_deref(), interface.queues.as_deref()), (Some("ua-vde0"), Some("4")));
        assert!(interface.reconnects);
        assert!(!nics.to_plain_xml().contains("vde:nic"));
    }
}
