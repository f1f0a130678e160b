//! The built program, as a virtual machine monitor and an administrator see it: real processes, a real `vde_switch`, the
//! `vhost` crate's front end, and a virtio driver that does by hand what a guest does.

mod combinations;
mod data;
mod dpdk;
mod driver;
mod hostile;
mod join;
mod joined;
mod life;
mod offload;
mod pace;
mod shared;
mod stream;
mod world;
