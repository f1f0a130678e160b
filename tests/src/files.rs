//! Files for a guest beside those of its image: a second initial memory disk, which the kernel unpacks over the first.
//!
//! The format is cpio's "newc": for each file a header of hexadecimal numbers, its name and its contents, both filled up to four
//! bytes. The kernel takes several archives one after the other.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::machine::Kernel;

const DIRECTORY: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;

/// What is put into a guest.
#[derive(Debug, Default)]
pub struct Files {
    archive: Vec<u8>,
    directories: BTreeSet<PathBuf>,
    libraries: BTreeSet<PathBuf>,
}

impl Files {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// A file with this text, at a path without its first slash.
    pub fn text(&mut self, path: &str, text: &str) -> Result<()> {
        self.add(Path::new(path), FILE | 0o644, text.as_bytes())
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.add(Path::new(path), LINK, target.as_bytes())
    }

    /// A file of this machine.
    pub fn copy(&mut self, path: &str, source: &Path) -> Result<()> {
        self.file(Path::new(path), source)
    }

    /// A program of this machine, with the libraries that it needs.
    pub fn program(&mut self, path: &str, program: &Path) -> Result<()> {
        self.file(Path::new(path), program)?;
        self.libraries(program, Path::new("/"))
    }

    /// A program or library of packages that are unpacked below a directory, with the libraries that it needs, of there if they
    /// have them.
    pub fn unpacked(&mut self, tree: &Path, path: &str) -> Result<()> {
        let program = tree.join(path);
        self.file(Path::new(path), &program)?;
        self.libraries(&program, tree)
    }

    fn libraries(&mut self, program: &Path, tree: &Path) -> Result<()> {
        let mut ldd = Command::new("ldd");
        ldd.arg(program).env("LD_LIBRARY_PATH", tree.join("usr/lib/x86_64-linux-gnu"));
        let listed = String::from_utf8(ldd.output().context("ldd")?.stdout)?;
        for library in listed.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new) {
            let path = library.strip_prefix(tree).or_else(|_| library.strip_prefix("/"))?;
            if self.libraries.insert(path.to_owned()) {
                self.file(path, library)?;
            }
        }
        Ok(())
    }

    /// A directory with all that is in it.
    pub fn tree(&mut self, path: &Path, directory: &Path) -> Result<()> {
        self.directory(path)?;
        for entry in directory.read_dir()? {
            let entry = entry?;
            let (inside, outside) = (path.join(entry.file_name()), entry.path());
            match outside.is_dir() {
                true => self.tree(&inside, &outside)?,
                false => self.file(&inside, &outside)?,
            }
        }
        Ok(())
    }

    /// Writes an initial memory disk: that of the kernel's image, and these files after it.
    pub fn write(mut self, kernel: Kernel, into: &Path) -> Result<()> {
        self.add(Path::new("TRAILER!!!"), 0, b"")?;
        let mut disk = fs::read(kernel.image()?.join("initrd"))?;
        // An archive begins where a number of four bytes can.
        disk.resize(disk.len().next_multiple_of(4), 0);
        disk.extend(self.archive);
        Ok(fs::write(into, disk)?)
    }

    fn file(&mut self, path: &Path, source: &Path) -> Result<()> {
        let bytes = fs::read(source).with_context(|| source.display().to_string())?;
        let mode = fs::metadata(source)?.permissions().mode() & 0o777;
        self.add(path, FILE | mode, &bytes)
    }

    fn directory(&mut self, path: &Path) -> Result<()> {
        match self.directories.insert(path.to_owned()) {
            true => self.add(path, DIRECTORY, b""),
            false => Ok(()),
        }
    }

    fn add(&mut self, path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.directory(parent)?;
        }
        let name = path.to_str().context("a name that is text")?;
        ensure!(!name.starts_with('/'), "{name} begins with a slash");
        let (length, size) = (u32::try_from(name.len() + 1)?, u32::try_from(bytes.len())?);
        self.archive.extend_from_slice(b"070701");
        for number in [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0] {
            self.archive.extend_from_slice(format!("{number:08X}").as_bytes());
        }
        for part in [&[name.as_bytes(), b"\0"].concat(), bytes] {
            self.archive.extend_from_slice(part);
            self.archive.resize(self.archive.len().next_multiple_of(4), 0);
        }
        Ok(())
    }
}
