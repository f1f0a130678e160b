//! What the end-to-end tests are written with: real switches, real guests and host processes on the switch.
//!
//! | module | gives |
//! |---|---|
//! | [`switch`] | a `vde_switch` of its own, with its management socket |
//! | [`machine`] | the command line of a guest: which QEMU, which kernel, which NICs |
//! | [`guest`] | a guest that runs: its shell, its logs, its end |
//! | [`namespace`] | a network namespace of its own |
//! | [`station`] | a host process on the switch through Debian's `vde_plug`, which answers ARP, ping and IPv6 |
//! | [`wire`] | the few headers that a station reads and writes |
//! | [`process`] | children with deadlines |
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

pub mod guest;
pub mod machine;
pub mod namespace;
pub mod places;
pub mod process;
pub mod station;
pub mod switch;
pub mod wire;

mod boot_slot;

pub use guest::{Guest, Output};
pub use machine::{Kernel, Machine, Qemu};
pub use station::Station;
pub use switch::{Port, Switch};
