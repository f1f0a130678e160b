//! What `install.sh` leaves behind is all that a C program needs, whether it is linked or loads the library by itself.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::RealSwitch;
use crate::library::{Ours, succeed};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn installed_library_is_found_linked_and_loaded() {
    let dir = tempfile::tempdir().expect("temporary directory");
    // As Cargo would have left it.
    let built = dir.path().join("target/capi");
    fs::create_dir_all(&built).expect("mkdir");
    fs::copy(Ours.file(), built.join("libvdeplug_capi.so")).expect("copy");
    let (stage, libdir) = (dir.path().join("stage"), "/opt/vde/lib/here");
    let mut install = Command::new(Path::new(HERE).join("install.sh"));
    install
        .args(["/opt/vde", libdir])
        .env("DESTDIR", &stage)
        .env("CARGO_TARGET_DIR", dir.path().join("target"));
    succeed(&mut install);

    let installed = |name: &str| format!("{}{name}", stage.display());
    let pc = fs::read_to_string(installed(&format!("{libdir}/pkgconfig/vdeplug.pc"))).expect("read");
    assert!(!pc.contains('@') && pc.contains("prefix=/opt/vde\n"), "{pc}");
    assert!(pc.contains(&format!("Version: {}\n", env!("CARGO_PKG_VERSION"))), "{pc}");

    let program = dir.path().join("program");
    let source = |name: &str| format!("{HERE}/tests/drop_in/c/{name}.c");
    succeed(
        Command::new("cc")
            .args(["-std=gnu11", "-pthread", &source("calls"), "-o"])
            .arg(&program)
            .args([format!("-I{}", installed("/opt/vde/include")), format!("-L{}", installed(libdir))])
            .arg("-lvdeplug"),
    );
    let switch = RealSwitch::start();
    succeed(Command::new(&program).env("LD_LIBRARY_PATH", installed(libdir)).arg("frames").arg(&switch.dir));

    // Emulators load it when it is there, and unload it.
    let loader = dir.path().join("loader");
    succeed(Command::new("cc").args(["-std=gnu11", &source("loads"), "-o"]).arg(&loader).arg("-ldl"));
    let network = format!("hub://{}/net", dir.path().display());
    let library = installed(&format!("{libdir}/libvdeplug.so.2"));
    succeed(Command::new(&loader).args([&library, &network, &switch.at("")]));
}
