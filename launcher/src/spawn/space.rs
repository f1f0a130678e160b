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

/// Refuses a place that lacks room.
pub fn check(place: &Place) -> Result<(), Error> {
    match place {
        Place::Path { path, bytes } => check_path(path, *bytes),
        Place::HugePages { page, bytes } => {
            let page = page.or_else(default_huge_page);
            let free = page.and_then(free_huge_pages);
            // A host that does not tell is QEMU's to judge.
            free.map_or(Ok(()), |free| enough("huge pages", *bytes, free, PAGES_REMEDY))
        }
    }
}

fn check_path(path: &Path, bytes: u64) -> Result<(), Error> {
    let name = path.display().to_string();
    let failed = |source: io::Error| Error::MemoryPath { path: name.clone(), source };
    let (directory, present) = match fs::metadata(path) {
        Ok(found) if found.is_dir() => (path, 0),
        // Device memory is as large as it is.
        Ok(found) if found.file_type().is_char_device() || found.file_type().is_block_device() => {
            return Ok(());
        }
        Ok(found) => (path, found.blocks().saturating_mul(512)),
        // QEMU makes the file; its directory must be there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => (parent(path), 0),
        Err(error) => return Err(failed(error)),
    };
    let fs = statfs(directory).map_err(|errno| failed(errno.into()))?;
    let block = u64::try_from(fs.f_bsize).unwrap_or(0);
    if u64::try_from(fs.f_type).is_ok_and(|kind| kind == HUGETLBFS_MAGIC) {
        let free = free_huge_pages(block).unwrap_or(0);
        return enough(&name, bytes.saturating_sub(present), free, PAGES_REMEDY);
    }
    enough(&name, bytes.saturating_sub(present), fs.f_bavail.saturating_mul(block), FILE_REMEDY)
}

/// The directory of a file that does not exist yet.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn enough(path: &str, wanted: u64, free: u64, remedy: &'static str) -> Result<(), Error> {
    if wanted <= free {
        return Ok(());
    }
    Err(Error::Space { path: path.to_owned(), wanted: human(wanted), free: human(free), remedy })
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
    fn check_path_wants_room() {
        let scratch = tempfile::tempdir().expect("scratch");
        let path = |bytes| Place::Path { path: scratch.path().to_owned(), bytes };
        check(&path(4096)).expect("room for a page");
        let error = check(&path(1 << 60)).expect_err("no room for an exbibyte");
        assert_eq!(error.status(), 5);
        let text = error.to_string();
        assert!(
            text.contains("1073741824 GiB") && text.contains(&scratch.path().display().to_string()),
            "{text}"
        );

        let missing = Place::Path { path: scratch.path().join("no/such/file"), bytes: 1 };
        assert!(matches!(check(&missing), Err(Error::MemoryPath { .. })));
        let device = Place::Path { path: "/dev/zero".into(), bytes: 1 << 60 };
        check(&device).expect("a device is not asked");
    }
}
