//! `libvdeplug.so.2` in the place of the original: Debian's own programs and small ones in C run on it through the loader
//! path, and on the original beside it, which has to behave the same where it is right. Tests that stand for a
//! line of the VDE conformance checklist carry its number.
//!
//! They need a C compiler with binutils and Debian's `vde-switch`, `vdeplug`, `libvdeplug-dev`, `libvdestack-dev`, `vdens`,
//! `vde2`, `qemu-system-x86` and `ipxe-qemu`, and root.

mod abi;
mod calls;
#[path = "../../../tests/conformance/harness.rs"]
#[expect(dead_code, reason = "the tests of the Rust interface use the rest of it")]
mod harness;
mod install;
mod library;
mod nodes;
mod process;
mod programs;
mod stream;
