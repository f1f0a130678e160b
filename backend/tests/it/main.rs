//! The built program, as a virtual machine monitor and an administrator see it: real processes, a real `vde_switch`, the
//! `vhost` crate's front end, and a virtio driver that does by hand what a guest does.

mod cables;
mod capture;
mod clients;
mod combinations;
mod control;
mod data;
mod dpdk;
mod driver;
mod follow;
mod hostile;
mod join;
mod joined;
mod life;
mod offload;
mod one_off;
mod pace;
mod pcapng;
mod shared;
mod stream;
mod supervise;
mod world;
