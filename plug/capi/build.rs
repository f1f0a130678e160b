//! Gives the shared library the name by which programs ask the loader for it, and keeps it in memory once it is there.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libvdeplug.so.2");
    // Programs that load it by dlopen also unload it; the thread of a node must not lose its code by that.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
