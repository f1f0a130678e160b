//! What the end-to-end tests are written with: real switches, real guests and host processes on the switch.
//!
//! | module | gives |
//! |---|---|
//! | [`back_end`] | the back end of a machine, and what it leaves |
//! | [`switch`] | a `vde_switch` of its own, with its management socket |
//! | [`machine`] | the command line of a guest: which QEMU, which kernel, which NICs |
//! | [`console`] | a guest's shell on a terminal that somebody else gives |
//! | [`executable`] | programs that a test makes |
//! | [`files`] | files for a guest beside those of its image |
//! | [`guest`] | a guest that runs: its shell, its logs, its end |
//! | [`libvirt`] | daemons of libvirt in a world of their own |
//! | [`namespace`] | a network namespace of its own |
//! | [`station`] | a host process on the switch through Debian's `vde_plug`, which answers ARP, ping and IPv6 |
//! | [`terminal`] | a terminal with a program on it, and what stands there |
//! | [`pinger`] | a ping that knows what became of each request |
//! | [`wire`] | the few headers that a station reads and writes |
//! | [`process`] | children with deadlines |
//! | [`vdectl`] | our `vdectl`, run to its end |
//! | [`places`] | where programs, guests and logs lie |
//!
//! Nothing here is mocked, and nothing is skipped: what is missing fails the test with the command that brings it.
//! Every wait has a deadline, and every child dies with the value that stands for it. The life of a test:
//!
//! ```text
//! Switch::start ── Machine::new().native_nic(..) ── Guest::start ── guest.run("ping ..") ── guest.power_off
//!                                                  Station::start ── station.wait_frame(..)
//! ```

#![forbid(unsafe_code)]

pub mod apparmor;
pub mod back_end;
pub mod console;
pub mod executable;
pub mod files;
pub mod guest;
pub mod libvirt;
pub mod machine;
pub mod namespace;
pub mod pinger;
pub mod places;
pub mod process;
pub mod station;
pub mod switch;
pub mod terminal;
pub mod vdectl;
pub mod wire;

mod boot_slot;

pub use back_end::BackEnd;
pub use console::Console;
pub use files::Files;
pub use guest::{Guest, Output};
pub use libvirt::Libvirt;
pub use machine::{Kernel, Machine, Qemu};
pub use station::Station;
pub use switch::{Port, Switch};
pub use terminal::Terminal;
