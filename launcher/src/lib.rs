//! `vdeq`: starts QEMU with NICs that live on VDE networks.
//!
//! A command line of the old wrapper is turned into one that a present QEMU understands, the back
//! end that serves the NICs is started, and then this process *becomes* QEMU by `exec`: same PID,
//! same terminal, same exit status. Nothing of `vdeq` is left running, so there is nobody here to
//! relay frames, to forward signals or to reap children.
//!
//! ```text
//!  argv ──► cli ──► argv ──► legacy, modern (NICs) ─┐
//!          (names)  (tokens) ► machine ► memory ──────┴─► rewrite ──► plan ──► spawn ──► exec QEMU
//!                                                         (pure)     (data)   (side effects)
//! ```
//!
//! Everything left of `spawn` is a pure function of the command line and of three [`rewrite::Facts`];
//! only `spawn` opens, forks or executes anything. No thread is ever started: `fork` is then safe
//! without further thought.
//!
//! This crate knows neither vhost-user messages nor frames: the back end is another program.

pub mod argv;
pub mod cli;
pub mod error;
pub mod exit;
pub mod hub;
pub mod legacy;
pub mod locator;
pub mod machine;
pub mod memory;
pub mod model;
pub mod modern;
pub mod monitor;
pub mod netdev;
pub mod nic_option;
pub mod plan;
pub mod properties;
pub mod props;
mod qemu_options;
pub mod queues;
pub mod rewrite;
pub mod segments;
pub mod settings;
pub mod size;
pub mod sock_list;
pub mod spawn;
pub mod vde_words;
pub mod version;
pub mod wiring;
