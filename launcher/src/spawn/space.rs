//! Whether guest memory fits where it shall live.
//!
//! A file system that fills up does not fail a write to mapped memory, it kills QEMU by SIGBUS while the
//! guest runs. So it is looked at before anything is started.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::statfs;

use crate::error::Error;
use crate::memory::Place;
use crate::size::human;

/// `f_type` of hugetlbfs.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

const PAGES_REMEDY: &str = "reserve huge pages (vm.nr_hugepages), or give the guest less memory";
const FILE_REMEDY: &str = "free or enlarge it, or give the guest less memory or another place";

/// What several places may have in common, so that their sizes add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    /// A file system, by `st_dev`.
    FileSystem(u64),
    /// The huge pages of one size, in however many file systems.
    HugePages(u64),
}

/// What is wanted of one pool.
#[derive(Debug)]
struct Room {
    pool: Pool,
    names: Vec<String>,
    wanted: u64,
    free: u64,
}

/// Refuses places that lack room, those in one pool taken together.
pub fn check(places: &[Place]) -> Result<(), Error> {
    let mut rooms: Vec<Room> = Vec::new();
    for place in places {
        let Some(room) = look_at(place)? else { continue };
        match rooms.iter_mut().find(|other| other.pool == room.pool) {
            None => rooms.push(room),
            Some(other) => {
                other.wanted = other.wanted.saturating_add(room.wanted);
                other.names.extend(room.names);
                other.names.dedup();
            }
        }
    }
    rooms.iter().try_for_each(enough)
}

/// Looks at one place; `None` if QEMU alone can judge it.
fn look_at(place: &Place) -> Result<Option<Room>, Error> {
    match place {
        Place::Path { path, bytes } => look_at_path(path, *bytes),
        Place::HugePages { page, bytes } => {
            let page = page.or_else(default_huge_page);
            // A host that does not tell is QEMU's to judge.
            let found = page.and_then(|page| Some((page, free_huge_pages(page)?)));
            let names = vec!["huge pages".to_owned()];
            Ok(found.map(|(page, free)| Room { pool: Pool::HugePages(page), names, wanted: *bytes, free }))
        }
    }
}

fn look_at_path(path: &Path, bytes: u64) -> Result<Option<Room>, Error> {
    let name = path.display().to_string();
    let failed = |source: io::Error| Error::MemoryPath { path: name.clone(), source };
    let (found, existing, present) = match fs::metadata(path) {
        Ok(found) if found.is_dir() => (found, path, 0),
        // Device memory is as large as it is.
        Ok(found) if found.file_type().is_char_device() || found.file_type().is_block_device() => {
            return Ok(None);
        }
        Ok(found) => {
            let present = found.blocks().saturating_mul(512);
            (found, path, present)
        }
        // QEMU makes the file; its directory must be there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = parent(path);
            (fs::metadata(directory).map_err(failed)?, directory, 0)
        }
        Err(error) => return Err(failed(error)),
    };
    let fs = statfs(existing).map_err(|errno| failed(errno.into()))?;
    let block = u64::try_from(fs.f_bsize).unwrap_or(0);
    let (pool, free) = match u64::try_from(fs.f_type).is_ok_and(|kind| kind == HUGETLBFS_MAGIC) {
        true => (Pool::HugePages(block), free_huge_pages(block).unwrap_or(0)),
        false => (Pool::FileSystem(found.dev()), fs.f_bavail.saturating_mul(block)),
    };
    Ok(Some(Room { pool, names: vec![name], wanted: bytes.saturating_sub(present), free }))
}

/// The directory of a file that does not exist yet.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn enough(room: &Room) -> Result<(), Error> {
    if room.wanted <= room.free {
        return Ok(());
    }
    Err(Error::Space {
        path: room.names.join(" and "),
        wanted: human(room.wanted),
        free: human(room.free),
        remedy: match room.pool {
            Pool::FileSystem(_) => FILE_REMEDY,
            Pool::HugePages(_) => PAGES_REMEDY,
        },
    })
}

/// Bytes of huge pages of one size that can still be had.
fn free_huge_pages(page: u64) -> Option<u64> {
    let count = |name: &str| -> Option<u64> {
        let file = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/{name}", page >> 10);
        fs::read_to_string(file).ok()?.trim().parse().ok()
    };
    let reserved = count("resv_hugepages").unwrap_or(0);
    let over =
        count("nr_overcommit_hugepages").unwrap_or(0).saturating_sub(count("surplus_hugepages").unwrap_or(0));
    Some(count("free_hugepages")?.saturating_sub(reserved).saturating_add(over).saturating_mul(page))
}

/// The size of a huge page when none is named.
fn default_huge_page() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("Hugepagesize:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_wants_room() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = |bytes| Place::Path { path: scratch.path().to_owned(), bytes };
        check(&[path(4096)]).expect("room for a page");
        let error = check(&[path(1 << 60)]).expect_err("no room for an exbibyte");
        assert_eq!(error.status(), 5);
        let text = error.to_string();
        assert!(
            text.contains("1073741824 GiB") && text.contains(&scratch.path().display().to_string()),
            "{text}"
        );

        let missing = Place::Path { path: scratch.path().join("no/such/file"), bytes: 1 };
        assert!(matches!(check(&[missing]), Err(Error::MemoryPath { .. })));
        let device = Place::Path { path: "/dev/zero".into(), bytes: 1 << 60 };
        check(&[device]).expect("a device is not asked");
    }

    #[test]
    fn check_adds_up_what_shares_a_file_system() {
        let scratch = tempfile::tempdir().expect("scratch");
        let fs = statfs(scratch.path()).expect("statfs");
        let free = fs.f_bavail * u64::try_from(fs.f_bsize).expect("a size");
        // Others write here too: each alone must fit by far, and both must not.
        let part = |name: &str| Place::Path { path: scratch.path().join(name), bytes: free / 4 * 3 };
        check(&[part("a")]).expect("one fits");
        let text = check(&[part("a"), part("b")]).expect_err("both do not").to_string();
        let path = |name: &str| scratch.path().join(name).display().to_string();
        assert!(text.contains(&format!("{} and {}", path("a"), path("b"))), "{text}");
    }
}
