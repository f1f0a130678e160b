//! The client against real and fake switches. Tests that stand for a line of the VDE conformance checklist
//! carry its number. They need Debian's `vde-switch` and `vdeplug`, and root for those that change user.

mod cmd;
mod frames;
mod harness;
mod kernel;
mod kernel_offloads;
mod kernel_tap;
mod kernel_veth;
mod life;
mod locators;
mod node;
mod node_faults;
mod node_frames;
mod node_hostile;
mod node_load;
mod node_peers;
mod node_ports;
mod permissions;
mod plugins;
mod ptp;
mod ptp_frames;
mod request;
mod udp;
