//! Writes an archive in cpio's "newc" form, the one that Linux unpacks as its initramfs.
//!
//! Written by hand because the guest needs device nodes before `/dev` is mounted, and only root can make those as
//! files for a packer to find. Each entry is a header of 110 hexadecimal digits, the name and the content,
//! both padded to 4 bytes (Linux, `Documentation/driver-api/early-userspace/buffer-format.rst`). All times and owners
//! are 0: the same input gives the same bytes.

use std::collections::BTreeSet;

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive in memory.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    folders: BTreeSet<String>,
}

impl Archive {
    /// Adds a folder and those above it; one that is there already is left alone.
    pub fn folder(&mut self, path: &str) {
        for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
            let name = &path[..end];
            if !name.is_empty() && self.folders.insert(name.to_owned()) {
                self.entry(name, FOLDER | 0o755, 2, (0, 0), &[]);
            }
        }
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.parent(path);
        self.entry(path, FILE | (permissions & 0o7777), 1, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, points_to: &str) {
        self.parent(path);
        self.entry(path, LINK | 0o777, 1, (0, 0), points_to.as_bytes());
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, permissions: u32, number: (u32, u32)) {
        self.parent(path);
        self.entry(path, CHARACTER_DEVICE | permissions, 1, number, &[]);
    }

    /// The archive with its end mark.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, 1, (0, 0), &[]);
        self.bytes
    }

    fn parent(&mut self, path: &str) {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, links: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let size = u32::try_from(content.len()).expect("files of a guest are smaller than 4 GiB");
        let name_size = u32::try_from(name.len() + 1).expect("names are short");
        self.bytes.extend_from_slice(b"070701");
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finish_known_archive_has_the_documented_bytes() {
        let mut archive = Archive::default();
        archive.file("a/b", 0o644, b"xyz");
        let bytes = archive.finish();
        let folder = "070701000000010000 41ed 0000000000000000 00000002 0000000000000000 00000000000000000000000000000000 00000002 00000000";
        assert_eq!(&bytes[..110], folder.replace(' ', "").as_bytes());
        assert_eq!(&bytes[110..112], b"a\0");
        let file = "07070100000002000081a4 0000000000000000 00000001 00000000 00000003 00000000000000000000000000000000 00000004 00000000";
        assert_eq!(&bytes[112..222], file.replace(' ', "").as_bytes());
        assert_eq!(&bytes[222..232], b"a/b\0\0\0xyz\0"[..10].as_ref());
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn folder_same_twice_is_written_once() {
        let mut archive = Archive::default();
        archive.device("dev/console", 0o600, (5, 1));
        archive.link("dev/x", "console");
        archive.folder("dev");
        assert_eq!(archive.entries, 3);
    }
}
