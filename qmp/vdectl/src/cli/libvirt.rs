//! `vdectl libvirt`, whose VMs are domains.

use clap::{Args, Subcommand, ValueEnum};

use super::queues;
use crate::names::read_mac;

/// `vdectl libvirt`
#[derive(Debug, Args)]
pub struct Libvirt {
    /// The libvirt [default: the one that virsh talks to by itself]
    #[arg(long, value_name = "URI", global = true)]
    pub connect: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Domains,
}

/// What to do with a domain. It is named as for virsh: by name, id or UUID.
#[derive(Debug, Subcommand)]
pub enum Domains {
    /// Plug a NIC on a VDE network into a domain
    Attach(AttachDomain),
    /// Take a NIC out of a domain
    Detach(DetachDomain),
    /// Print what a NIC takes in the XML of a domain
    Xml(Xml),
    /// Say what a domain lacks for its VDE networks
    Check {
        /// The domain
        domain: String,
    },
}

/// `vdectl libvirt attach`
#[derive(Debug, Args)]
pub struct AttachDomain {
    /// The domain
    pub domain: String,
    /// Network that the NIC is plugged into; several make it a member of each
    #[arg(required = true, value_name = "LOCATOR")]
    pub locators: Vec<String>,
    /// Name of the NIC; its alias is ua-NAME [default: the first of vde0, vde1, ... that is free]
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// Its MAC address [default: a random one]
    #[arg(long, value_parser = read_mac)]
    pub mac: Option<String>,
    /// Queue pairs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = queues)]
    pub queues: u16,
    /// Also for when the domain is started the next time, and only for then if it does not run
    #[arg(long)]
    pub config: bool,
    /// Wait until the guest's driver is up, so many seconds at most
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "30")]
    pub wait: Option<u64>,
}

/// `vdectl libvirt detach`
#[derive(Debug, Args)]
pub struct DetachDomain {
    /// The domain
    pub domain: String,
    /// The NIC, by its alias or MAC address
    pub nic: String,
    /// Also for when the domain is started the next time, and only for then if it does not run
    #[arg(long)]
    pub config: bool,
    /// How long the guest may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 15)]
    pub wait: u64,
}

/// `vdectl libvirt xml`
#[derive(Debug, Args)]
pub struct Xml {
    /// Network that the NIC is plugged into; several make it a member of each
    #[arg(required = true, value_name = "LOCATOR")]
    pub locators: Vec<String>,
    /// Name of the NIC; its alias is ua-NAME [default: none, and the socket of the first NIC]
    #[arg(long, value_name = "NAME")]
    pub id: Option<String>,
    /// Its MAC address [default: a random one]
    #[arg(long, value_parser = read_mac)]
    pub mac: Option<String>,
    /// Queue pairs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = queues)]
    pub queues: u16,
    /// Name of the domain, which is in the path of the NIC's socket
    #[arg(long, value_name = "NAME", default_value = "DOMAIN")]
    pub domain: String,
    /// Only this part, without remarks
    #[arg(long)]
    pub part: Option<Part>,
}

/// A part of what a NIC takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Its network, as virsh metadata --set takes it
    Metadata,
    /// What makes the guest's memory one that the back end can map
    Memory,
    /// Its interface, as virsh attach-device takes it
    Interface,
}
