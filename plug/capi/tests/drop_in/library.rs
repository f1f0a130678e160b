//! The two libraries, programs in C that are made for either, and how a program gets the one or the other.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Which `libvdeplug.so.2` a program gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    Ours,
    Original,
}

pub use Library::{Original, Ours};

pub const BOTH: [Library; 2] = [Ours, Original];

/// Where this package lies.
const HERE: &str = env!("CARGO_MANIFEST_DIR");

impl Library {
    /// The file.
    pub fn file(self) -> PathBuf {
        match self {
            Ours => loader_path().join("libvdeplug.so.2"),
            Original => "/usr/lib/x86_64-linux-gnu/libvdeplug.so.2".into(),
        }
    }

    /// The directory of its `libvdeplug.h`.
    fn include(self) -> PathBuf {
        match self {
            Ours => Path::new(HERE).join("include"),
            Original => "/usr/include".into(),
        }
    }

    /// A command whose program loads this library.
    pub fn command(self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        // Cargo sets it for its own libraries.
        command.env_remove("LD_LIBRARY_PATH").env_remove("VDEPLUGIN_PATH").env_remove("SSH_CLIENT");
        if self == Ours {
            command.env("LD_LIBRARY_PATH", loader_path());
        }
        command
    }
}

/// A directory in which our library has the name that programs look for.
fn loader_path() -> PathBuf {
    let test = std::env::current_exe().expect("the test program");
    let built = test.parent().expect("a directory").join("libvdeplug_capi.so");
    assert!(built.exists(), "Cargo puts {} beside the test", built.display());
    let dir = built.with_file_name("libvdeplug.loader-path");
    std::fs::create_dir_all(&dir).expect("mkdir");
    // Several tests do this at once: each in one step.
    let (link, fresh) = (dir.join("libvdeplug.so.2"), dir.join(format!("{:?}", std::thread::current().id())));
    if !link.exists() {
        std::os::unix::fs::symlink(&built, &fresh).expect("symlink");
        std::fs::rename(&fresh, &link).expect("rename");
    }
    dir
}

/// A program in C, made for one of the libraries.
pub struct Program {
    dir: TempDir,
}

impl Program {
    /// Compiles `c/NAME.c` with the header of a library.
    pub fn compile(name: &str, header: Library, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let source = Path::new(HERE).join("tests/drop_in/c").join(name).with_extension("c");
        let output = Command::new("cc")
            .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-pthread", "-I"])
            .arg(header.include())
            .arg(source)
            .arg("-o")
            .arg(dir.path().join("program"))
            .args(more)
            .arg(header.file())
            .output()
            .expect("cc has to be installed (package gcc)");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { dir }
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("program")
    }

    /// A command that runs it on a library.
    pub fn on(&self, library: Library) -> Command {
        library.command(self.path())
    }
}

/// Runs a command to its end, which has to be a success without a word on standard error; returns what it printed.
pub fn succeed(command: &mut Command) -> String {
    let output = run(command);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{command:?}: {}\n{error}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Output {
    // Not our own standard input: most VDE programs read it.
    let output = command.stdin(std::process::Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}
